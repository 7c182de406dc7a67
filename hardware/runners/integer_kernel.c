/* Layer norm, neurons and spike attention of the integer runner, each in one pass over a token.
 *
 * What each line means stands in export/operators: layer_norm.py, leaky_integrate_and_fire.py, spike_attention.py. All
 * floating numbers here are whole below 2^53 (2^24 in float), or such by a power of two, as the runner proves before it
 * calls. Nothing is rounded but where floor and trunc say so: neither the order of operations nor fused multiply-adds
 * can change a number. The macros in capitals that are not defined here come from the Python side.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define ACTIVATION_STEP ((double)(1 << ACTIVATION_SHIFT))
#define BLOCK 64 /* features that go through all time steps together: what they remember stays in the first cache */

typedef struct {
    int64_t groups, size, drop;
    const int64_t *eps;   /* (groups) */
    const int64_t *roots; /* the table of inverse square roots */
    const double *gain, *offset; /* (groups * size) */
} layer_norm;

typedef struct {
    int64_t subtract, fire_on_equal;
    const double *keep, *threshold, *bias; /* (features) */
} neurons;

typedef struct {
    double first, second, third; /* n = floor(x first + second); normed = floor(n third + 1/2) */
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

static factors factors_of(const int32_t *restrict x, const layer_norm *norm, int64_t group)
{
    int64_t sum = 0, squares = 0;
    for (int64_t i = 0; i < norm->size; i++) {
        sum += x[i];
        squares += (int64_t)x[i] * x[i];
    }
    int64_t radicand = norm->size * squares - sum * sum + norm->eps[group];
    int64_t exponent = (RADICAND_BITS - (64 - __builtin_clzll((uint64_t)radicand))) & ~(int64_t)1;
    double power = ldexp(1.0, (int)(exponent / 2 - norm->drop));
    double root = (double)inverse_square_root(radicand << exponent, norm->roots);
    return (factors){power * (double)norm->size, 0.5 - (double)sum * power,
                     ldexp(root, (int)(norm->drop + NORMED_BITS - PRODUCT_BITS))};
}

static inline double normed(int32_t x, factors by, double gain, double offset)
{
    return floor(floor(floor(x * by.first + by.second) * by.third + 0.5) * gain + offset);
}

/* Layer norm of rows of features, which stay below 2^31. */
void normalise(const int32_t *restrict x, int64_t rows, const layer_norm *norm, int32_t *restrict y)
{
    for (int64_t row = 0; row < rows; row++)
        for (int64_t group = 0; group < norm->groups; group++) {
            factors by = factors_of(x, norm, group);
            const double *gain = norm->gain + group * norm->size, *offset = norm->offset + group * norm->size;
            for (int64_t i = 0; i < norm->size; i++)
                y[i] = (int32_t)normed(x[i], by, gain[i], offset[i]);
            x += norm->size;
            y += norm->size;
        }
}

/* All steps of up to BLOCK features of one token; returns how many potentials were held at their limit. */
static inline __attribute__((always_inline)) int64_t fire_block(const int32_t *x, int64_t x_stride, int64_t steps, int64_t count, const factors *by,
                          int64_t by_stride, const double *restrict gain, const double *restrict offset,
                          const neurons *cells, int64_t from, int64_t stride, int8_t *spikes, int32_t *potentials)
{
    const double *restrict keep = cells->keep + from, *restrict threshold = cells->threshold + from;
    const double *restrict bias = cells->bias + from;
    double later = cells->subtract ? 1.0 : 0.0, now = 1.0 - later, margin = cells->fire_on_equal ? 1.0 : 0.0;
    double potential[BLOCK] = {0}, tested[BLOCK], fired[BLOCK] = {0}, charge[BLOCK];
    int64_t saturated = 0;
    for (int64_t step = 0; step < steps; step++) {
        const int32_t *restrict now_in = x + step * x_stride;
        int8_t *restrict out = spikes + step * stride;
        if (by) {
            factors f = by[step * by_stride];
            for (int64_t i = 0; i < count; i++)
                charge[i] = normed(now_in[i], f, gain[i], offset[i]);
        } else
            for (int64_t i = 0; i < count; i++)
                charge[i] = now_in[i];
        int64_t held = 0; /* a sum of floating numbers would keep the loop from being vectorised */
        for (int64_t i = 0; i < count; i++) {
            double v = trunc(potential[i] * keep[i]) + charge[i] * ACTIVATION_STEP + bias[i];
            v -= later * fired[i] * threshold[i];
            double kept = fmin(fmax(v, -POTENTIAL_MAX), POTENTIAL_MAX);
            double s = kept + margin > threshold[i] ? 1.0 : 0.0;
            held += kept != v;
            tested[i] = kept;
            fired[i] = s;
            out[i] = (int8_t)s;
            potential[i] = kept - now * s * kept;
        }
        saturated += held;
        if (potentials)
            for (int64_t i = 0; i < count; i++)
                potentials[step * stride + i] = (int32_t)tested[i];
    }
    return saturated;
}

/* Neurons, behind a layer norm where `norm` is not NULL. x: (x_steps, tokens, features), the same at every step where
 * x_steps is 1; spikes, potentials (may be NULL): tokens of (steps, stride / features, features), so that a part of
 * the tokens can be filled; scratch: x_steps * groups factors. Returns how many potentials were held at their limit. */
int64_t fire(const int32_t *x, int64_t x_steps, int64_t steps, int64_t tokens, int64_t features,
             const layer_norm *norm, const neurons *cells, int64_t stride, int8_t *spikes, int32_t *potentials,
             factors *scratch)
{
    int64_t saturated = 0, moving = x_steps > 1, groups = norm ? norm->groups : 1, size = features / groups;
    for (int64_t token = 0; token < tokens; token++) {
        const int32_t *row = x + token * features;
        for (int64_t step = 0; norm && step < x_steps; step++)
            for (int64_t group = 0; group < groups; group++)
                scratch[step * groups + group] = factors_of(row + step * tokens * features + group * size, norm, group);
        for (int64_t group = 0; group < groups; group++)
            for (int64_t i = 0; i < size; i += BLOCK) {
                int64_t from = group * size + i, out = token * features + from;
                const factors *by = norm ? scratch + group : NULL;
                const double *gain = norm ? norm->gain + from : NULL, *offset = norm ? norm->offset + from : NULL;
                int32_t *shown = potentials ? potentials + out : NULL;
                if (size - i >= BLOCK) /* a number the compiler knows unrolls and vectorises better */
                    saturated += fire_block(row + from, moving * tokens * features, steps, BLOCK, by, moving * groups,
                                            gain, offset, cells, from, stride, spikes + out, shown);
                else
                    saturated += fire_block(row + from, moving * tokens * features, steps, size - i, by,
                                            moving * groups, gain, offset, cells, from, stride, spikes + out, shown);
            }
    }
    return saturated;
}

/* sums[j] += the sum over `count` rows of weight times row[j], four rows at a time to spare loads and stores. */
static inline void add_rows(float *restrict sums, int64_t size, const float *restrict rows, int64_t count,
                            const int8_t *weights, int64_t weight_stride)
{
    int64_t row = 0;
    for (; row + 4 <= count; row += 4) {
        const float *first = rows + row * size, *second = first + size, *third = second + size, *fourth = third + size;
        const int8_t *at = weights + row * weight_stride;
        float a = at[0], b = at[weight_stride], c = at[2 * weight_stride], d = at[3 * weight_stride];
        for (int64_t j = 0; j < size; j++)
            sums[j] += (a * first[j] + b * second[j]) + (c * third[j] + d * fourth[j]);
    }
    for (; row < count; row++) {
        float weight = weights[row * weight_stride];
        for (int64_t j = 0; j < size; j++)
            sums[j] += weight * rows[row * size + j];
    }
}

/* Attention without softmax, (Q K^T) V = Q (K^T V), of sentences that lie one behind the other. x: (steps, tokens, 3,
 * heads, size); lengths: (sentences), their sum is tokens; y: (steps, tokens, heads, size); scratch: size rows of
 * `size`, one row, and as many as the longest sentence has tokens. */
void attend(const int8_t *x, int64_t steps, const int64_t *lengths, int64_t sentences, int64_t heads,
            int64_t size, int64_t factor, int32_t *y, float *scratch)
{
    int64_t width = heads * size;
    float *products = scratch, *sums = products + size * size, *values = sums + size;
    for (int64_t step = 0; step < steps; step++)
        for (int64_t sentence = 0; sentence < sentences; sentence++) {
            for (int64_t head = 0; head < heads; head++) {
                const int8_t *query = x + head * size, *key = query + width, *value = key + width;
                for (int64_t token = 0; token < lengths[sentence]; token++)
                    for (int64_t j = 0; j < size; j++)
                        values[token * size + j] = value[token * 3 * width + j];
                memset(products, 0, (size_t)(size * size) * sizeof(float));
                for (int64_t i = 0; i < size; i++)
                    add_rows(products + i * size, size, values, lengths[sentence], key + i, 3 * width);
                for (int64_t token = 0; token < lengths[sentence]; token++) {
                    memset(sums, 0, (size_t)size * sizeof(float));
                    add_rows(sums, size, products, size, query + token * 3 * width, 1);
                    for (int64_t j = 0; j < size; j++)
                        y[token * width + head * size + j] = (int32_t)sums[j] * (int32_t)factor;
                }
            }
            x += lengths[sentence] * 3 * width;
            y += lengths[sentence] * width;
        }
}
