/* Layer norm, neurons and spike attention of the integer runner, each in one pass over a token.
 *
 * What each line means stands in export/operators: layer_norm.py, leaky_integrate_and_fire.py, spike_attention.py. All
 * floating numbers here are whole below 2^53 (2^24 in float), or such by a power of two, as the runner proves before it
 * calls. Nothing is rounded but where floor, trunc and nearest say so (and in `fire_block` where it makes no
 * difference): fused multiply-adds cannot change a number. The macros in capitals that are not defined here come from
 * the Python side.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define ACTIVATION_STEP ((float)(1 << ACTIVATION_SHIFT))
#define BLOCK 128 /* features that go through all time steps together: what they remember stays in the first cache */

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

typedef struct {
    int64_t groups, size, drop;
    const int64_t *eps;   /* (groups) */
    const int64_t *roots; /* the table of inverse square roots */
    const double *gain, *offset; /* (groups * size) */
} layer_norm;

typedef struct {
    int64_t reset_to_zero;
    const float *keep, *above, *taken, *bias; /* (features): the share that is kept from step to step, what a potential
                                                 must exceed to fire, what a spike takes from the next one */
} neurons;

/* A feature x is normed as floor(floor(x first + second) third + 1/2); where third is 0, as nearest(x first + second). */
typedef struct {
    double first, second, third;
} factors;

static int64_t inverse_square_root(int64_t x, const int64_t *roots)
{
    int64_t root = roots[(x >> (RADICAND_BITS - TABLE_BITS)) - (1 << (TABLE_BITS - 2))];
    int64_t scaled = x >> (RADICAND_BITS - 2 - ROOT_BITS);
    for (int turn = 0; turn < 2; turn++) {
        int64_t square = (root * root) >> ROOT_BITS;
        root = (root * (((int64_t)3 << ROOT_BITS) - ((scaled * square) >> ROOT_BITS))) >> (ROOT_BITS + 1);
    }
    int64_t bits = ROOT_BITS - FACTOR_BITS;
    return (root + ((int64_t)1 << (bits - 1))) >> bits;
}

/* ldexp, which is a call, for exponents that are neither very large nor very small */
static inline double power_of_two(int64_t exponent)
{
    int64_t bits = (exponent + 1023) << 52;
    double power;
    memcpy(&power, &bits, sizeof power);
    return power;
}

/* The nearest whole number, where |x| < 2^51 and x does not lie halfway between two: adding NEAREST leaves no room for
 * a fraction. `nearest_bits` gives its lower 32 bits, which then end the sum's. */
#define NEAREST 6755399441055744.0 /* 2^52 + 2^51 */

static inline double nearest(double x)
{
    return (x + NEAREST) - NEAREST;
}

static inline int32_t nearest_bits(double x)
{
    double sum = x + NEAREST;
    int64_t bits;
    memcpy(&bits, &sum, sizeof bits);
    return (int32_t)bits;
}

static factors factors_of(const int32_t *restrict x, const layer_norm *norm, int64_t group)
{
    int64_t sum = 0, squares = 0;
    for (int64_t i = 0; i < norm->size; i++) {
        sum += x[i];
        squares += (int64_t)x[i] * x[i];
    }
    int64_t radicand = norm->size * squares - sum * sum + norm->eps[group];
    int64_t exponent = (RADICAND_BITS - (64 - __builtin_clzll((uint64_t)radicand))) & ~(int64_t)1;
    int64_t root = inverse_square_root(radicand << exponent, norm->roots), half = exponent / 2;
    double size = (double)norm->size;
    /* Where the numerator is not shifted right and |D x| < 2^28, so that |S| is, too: D x f and S f, whole and below
     * 2^52, are exact, and one product does. Half of the last place more, and nothing lies halfway. */
    if (half >= norm->drop && size * size * (double)squares < 0x1p56) {
        double scale = power_of_two(half + NORMED_BITS - PRODUCT_BITS);
        return (factors){size * (double)root * scale, (0.5 - (double)(sum * root)) * scale, 0};
    }
    double power = power_of_two(half - norm->drop);
    return (factors){power * size, 0.5 - (double)sum * power,
                     (double)root * power_of_two(norm->drop + NORMED_BITS - PRODUCT_BITS)};
}

static inline int32_t normed(int32_t x, factors by, int at_once, double gain, double offset)
{
    double scaled = x * by.first + by.second;
    double whole = at_once ? nearest(scaled) : floor(floor(scaled) * by.third + 0.5);
    return nearest_bits(whole * gain + offset); /* the offset has half of the last place more: nothing lies halfway */
}

static inline __attribute__((always_inline)) void
normalise_part(const int32_t *restrict x, int64_t count, factors by, const double *restrict gain,
               const double *restrict offset, int32_t *restrict y)
{
    if (by.third == 0)
        for (int64_t i = 0; i < count; i++)
            y[i] = normed(x[i], by, 1, gain[i], offset[i]);
    else
        for (int64_t i = 0; i < count; i++)
            y[i] = normed(x[i], by, 0, gain[i], offset[i]);
}

/* Layer norm of rows of features, which stay below 2^31. */
void normalise(const int32_t *restrict x, int64_t rows, const layer_norm *norm, int32_t *restrict y)
{
    for (int64_t row = 0; row < rows; row++)
        for (int64_t group = 0; group < norm->groups; group++) {
            normalise_part(x, norm->size, factors_of(x, norm, group), norm->gain + group * norm->size,
                           norm->offset + group * norm->size, y);
            x += norm->size;
            y += norm->size;
        }
}

/* trunc(v keep): the lower twelve bits of a potential and the upper ones by themselves, so that products stay below
 * 2^24, the decay having twelve bits. */
static inline float decayed(float v, float keep)
{
    float upper = truncf(v * (1.0f / DECAY_UNITY)) * DECAY_UNITY;
    return upper * keep + truncf((v - upper) * keep);
}

typedef struct {
    const int32_t *x;         /* of the first step */
    int64_t x_stride, steps;  /* numbers from one step to the next, 0 where all are the same */
    const factors *by;        /* NULL without layer norm */
    int64_t by_stride;
    const double *gain, *offset;
    const float *keep, *above, *taken, *bias;
    int64_t stride; /* spikes and potentials from one step to the next */
    int8_t *spikes;
    int32_t *potentials; /* may be NULL */
} block;

/* All steps of up to BLOCK features of one token; returns how many potentials were held at their limit. Where `hold` is
 * 0 none is: then -1 where one should have been, and all is to be done again.
 *
 * In float: potentials, activations times 2^6 and thresholds are below 2^23, biases below 2^20, so that each of the two
 * sums in parentheses is below 2^24 and exact. Their own sum is rounded only above 2^24, and there it is held. */
static inline __attribute__((always_inline)) int64_t
fire_block(block now, int64_t count, int reset_to_zero, int hold)
{
    const float *restrict keep = now.keep, *restrict above = now.above;
    const float *restrict taken = now.taken, *restrict bias = now.bias;
    float potential[BLOCK], fired[BLOCK], shown[BLOCK];
    int32_t normed_now[BLOCK];
    float largest = 0;
    int64_t saturated = 0;
    for (int64_t step = 0; step < now.steps; step++) {
        const int32_t *charge = now.x + step * now.x_stride;
        int8_t *restrict spikes = now.spikes + step * now.stride;
        if (now.by) {
            if (step == 0 || now.x_stride)
                normalise_part(charge, count, now.by[step * now.by_stride], now.gain, now.offset, normed_now);
            charge = normed_now;
        }
        int32_t held = 0; /* as wide as a float */
        if (step == 0) /* nothing is left of any step before */
            for (int64_t i = 0; i < count; i++)
                shown[i] = charge[i] * ACTIVATION_STEP + bias[i];
        else
            for (int64_t i = 0; i < count; i++)
                shown[i] = (decayed(potential[i], keep[i]) + charge[i] * ACTIVATION_STEP)
                           + (bias[i] - fired[i] * taken[i]);
#pragma omp simd reduction(+ : held) reduction(max : largest)
        for (int64_t i = 0; i < count; i++) {
            float v = shown[i], kept = v;
            if (hold) {
                kept = fminf(fmaxf(v, -POTENTIAL_MAX), POTENTIAL_MAX);
                held += kept != v;
            } else
                largest = fmaxf(largest, fabsf(v));
            shown[i] = kept;
            fired[i] = kept > above[i] ? 1.0f : 0.0f;
            potential[i] = reset_to_zero && kept > above[i] ? 0.0f : kept;
        }
        for (int64_t i = 0; i < count; i++)
            spikes[i] = (int8_t)fired[i];
        saturated += held;
        if (now.potentials)
            for (int64_t i = 0; i < count; i++)
                now.potentials[step * now.stride + i] = (int32_t)shown[i];
    }
    return largest > POTENTIAL_MAX ? -1 : saturated;
}

/* The number BLOCK is one the compiler knows: it unrolls and vectorises better. */
static int64_t fire_whole_block(const block *now, int reset_to_zero)
{
    int64_t saturated = reset_to_zero ? fire_block(*now, BLOCK, 1, 0) : fire_block(*now, BLOCK, 0, 0);
    return saturated < 0 ? fire_block(*now, BLOCK, reset_to_zero, 1) : saturated;
}

/* Neurons, behind a layer norm where `norm` is not NULL. x: (x_steps, tokens, features), the same at every step where
 * x_steps is 1; spikes, potentials (may be NULL): tokens of (steps, stride / features, features), so that a part of
 * the tokens can be filled; scratch: x_steps * groups factors. Returns how many potentials were held at their limit. */
int64_t fire(const int32_t *x, int64_t x_steps, int64_t steps, int64_t tokens, int64_t features,
             const layer_norm *norm, const neurons *cells, int64_t stride, int8_t *spikes, int32_t *potentials,
             factors *scratch)
{
    int64_t saturated = 0, moving = x_steps > 1, groups = norm ? norm->groups : 1, size = features / groups;
    int reset_to_zero = cells->reset_to_zero != 0;
    for (int64_t token = 0; token < tokens; token++) {
        const int32_t *row = x + token * features;
        for (int64_t step = 0; norm && step < x_steps; step++)
            for (int64_t group = 0; group < groups; group++)
                scratch[step * groups + group] = factors_of(row + step * tokens * features + group * size, norm, group);
        for (int64_t group = 0; group < groups; group++)
            for (int64_t i = 0; i < size; i += BLOCK) {
                int64_t from = group * size + i, out = token * features + from;
                block now = {row + from, moving * tokens * features, steps, norm ? scratch + group : NULL,
                             moving * groups, norm ? norm->gain + from : NULL, norm ? norm->offset + from : NULL,
                             cells->keep + from, cells->above + from, cells->taken + from, cells->bias + from,
                             stride, spikes + out, potentials ? potentials + out : NULL};
                saturated += size - i < BLOCK ? fire_block(now, size - i, reset_to_zero, 1)
                                              : fire_whole_block(&now, reset_to_zero);
            }
    }
    return saturated;
}

/* `TILE` rows and `width` columns of a product: c[r][j] = the sum over k of a[r row_step + k inner_step] b[k][j]. */
static inline __attribute__((always_inline)) void
multiply_tile(const float *a, int64_t row_step, int64_t inner_step, int64_t inner, const lanes *b, lanes *c,
              int64_t columns, int64_t width)
{
    lanes sums[TILE][TILE] = {{{0}}}; /* in registers */
    for (int64_t k = 0; k < inner; k++)
        for (int64_t row = 0; row < TILE; row++)
            for (int64_t column = 0; column < width; column++)
                sums[row][column] += a[row * row_step + k * inner_step] * b[k * columns + column];
    for (int64_t row = 0; row < TILE; row++)
        for (int64_t column = 0; column < width; column++)
            c[row * columns + column] = sums[row][column];
}

/* The same for `rows` rows, a multiple of TILE, and all columns. */
static void multiply(const float *a, int64_t row_step, int64_t inner_step, int64_t rows, int64_t inner, const lanes *b,
                     lanes *c, int64_t columns)
{
    for (int64_t row = 0; row < rows; row += TILE)
        for (int64_t column = 0; column < columns;) {
            const float *first = a + row * row_step;
            lanes *out = c + row * columns + column;
            if (columns - column >= TILE) { /* numbers the compiler knows, so that the sums stay in registers */
                multiply_tile(first, row_step, inner_step, inner, b + column, out, columns, TILE);
                column += TILE;
            } else
                multiply_tile(first, row_step, inner_step, inner, b + column++, out, columns, 1);
        }
}

static void widen(const int8_t *restrict x, int64_t x_step, float *restrict y, int64_t y_step, int64_t rows, int64_t size)
{
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < size; i++)
            y[row * y_step + i] = x[row * x_step + i];
}

static void narrow(const float *restrict x, int64_t x_step, int32_t *restrict y, int64_t y_step, int64_t rows,
                   int64_t size, int32_t factor)
{
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < size; i++)
            y[row * y_step + i] = (int32_t)x[row * x_step + i] * factor;
}

/* Attention without softmax, (Q K^T) V = Q (K^T V), of sentences that lie one behind the other. x: (steps, tokens, 3,
 * heads, size); lengths: (sentences), their sum is tokens; longest: as many as the longest has, up to a multiple of
 * TILE; y: (steps, tokens, heads, size); scratch: zeros, 4 longest + padded rows of `padded`, size up to whole lanes. */
void attend(const int8_t *x, int64_t steps, const int64_t *lengths, int64_t sentences, int64_t longest, int64_t heads,
            int64_t size, int64_t factor, int32_t *y, float *scratch)
{
    int64_t width = heads * size, columns = (size + LANES - 1) / LANES, padded = columns * LANES;
    float *query = scratch, *key = query + longest * padded, *value = key + longest * padded;
    float *attended = value + longest * padded, *products = attended + longest * padded;
    for (int64_t step = 0; step < steps; step++)
        for (int64_t sentence = 0; sentence < sentences; sentence++) {
            int64_t tokens = lengths[sentence];
            for (int64_t head = 0; head < heads; head++) {
                const int8_t *at = x + head * size;
                widen(at, 3 * width, query, padded, tokens, size);
                widen(at + width, 3 * width, key, padded, tokens, size);
                widen(at + 2 * width, 3 * width, value, padded, tokens, size);
                multiply(key, 1, padded, padded, tokens, (const lanes *)value, (lanes *)products, columns);
                multiply(query, padded, 1, (tokens + TILE - 1) / TILE * TILE, size, (const lanes *)products,
                         (lanes *)attended, columns);
                narrow(attended, padded, y + head * size, width, tokens, size, (int32_t)factor);
            }
            x += tokens * 3 * width;
            y += tokens * width;
        }
}
