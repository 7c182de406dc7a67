/* Layers and spike attention of the integer runner: products of bytes, layer norm and neurons in one pass over a token.
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
#if defined(__AMX_INT8__) && defined(__linux__)
#define TILES
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

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

/* Bytes from 0 to 127 times weights, and a bias: sums below 2^31. */
typedef struct {
    int64_t inputs, outputs; /* outputs up to a multiple of PANEL */
    int64_t depth;           /* a multiple of 4 up to 64 that divides the inputs: so many go into a tile */
    int64_t rows;            /* of weights: the outputs that there are */
    int64_t sums_stride;     /* from one token's sums to the next one's */
    const int8_t *weights;   /* (rows, inputs) */
    const int32_t *bias;     /* (outputs) */
} affine;

typedef struct {
    int64_t features;
    const affine *map;      /* NULL: the sums are there */
    const layer_norm *norm; /* NULL: none */
    const neurons *cells;
} layer;

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
    double in_double = 0, squared = 0; /* the sum is exact: inputs are below 2^25, and no more than 4096 */
#pragma omp simd reduction(+ : in_double, squared)
    for (int64_t i = 0; i < norm->size; i++) {
        in_double += x[i];
        squared += (double)x[i] * x[i];
    }
    int64_t sum = (int64_t)in_double, squares = (int64_t)squared;
    if (squared >= 0x1p53) { /* else no part of it was rounded, for a part is not larger than the whole */
        squares = 0;
        for (int64_t i = 0; i < norm->size; i++)
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

/* Products of bytes on the processor's tiles (AMX): eight registers of up to 16 rows of 64 bytes. */
#ifdef TILES

/* Whether there are tiles, and this process may use them: Linux wants to be asked (ARCH_REQ_XCOMP_PERM for
 * XFEATURE_XTILEDATA), once for all threads, and again does no harm. */
int64_t has_tiles(void)
{
    return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
}

/* To compilers tile instructions read no memory: what they are to find there has to be written before this. */
#define WRITTEN __asm__ volatile("" ::: "memory")

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} tile_shapes;

/* 16 rows of 16 numbers the other way round, by twos, fours, eights and sixteens. */
static void transpose(__m512i rows[TILE_ROWS])
{
    __m512i other[TILE_ROWS];
    for (int i = 0; i < 16; i += 2) {
        other[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        other[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            rows[i + 2 * j] = _mm512_unpacklo_epi64(other[i + j], other[i + j + 2]);
            rows[i + 2 * j + 1] = _mm512_unpackhi_epi64(other[i + j], other[i + j + 2]);
        }
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 4; j++) {
            other[i + j] = _mm512_shuffle_i32x4(rows[i + j], rows[i + j + 4], 0x88);
            other[i + j + 4] = _mm512_shuffle_i32x4(rows[i + j], rows[i + j + 4], 0xdd);
        }
    for (int i = 0; i < 8; i++) {
        rows[i] = _mm512_shuffle_i32x4(other[i], other[i + 8], 0x88);
        rows[i + 8] = _mm512_shuffle_i32x4(other[i], other[i + 8], 0xdd);
    }
}

/* Weights as tiles want them: of 16 outputs four inputs each in a row of 64 bytes, `depth` inputs a tile, two tiles of
 * outputs (a panel) in turn. */
static void pack(const affine *map, int8_t *packed)
{
    __mmask64 part = map->depth == TILE_BYTES ? ~(__mmask64)0 : ((__mmask64)1 << map->depth) - 1;
    for (int64_t panel = 0; panel < map->outputs; panel += PANEL)
        for (int64_t input = 0; input < map->inputs; input += map->depth)
            for (int64_t output = panel; output < panel + PANEL; output += TILE_ROWS) {
                __m512i rows[TILE_ROWS];
                for (int i = 0; i < TILE_ROWS; i++)
                    rows[i] = output + i < map->rows
                                  ? _mm512_maskz_loadu_epi8(part, map->weights + (output + i) * map->inputs + input)
                                  : _mm512_setzero_si512();
                transpose(rows);
                for (int64_t i = 0; i < map->depth / 4; i++, packed += TILE_BYTES)
                    _mm512_storeu_si512(packed, rows[i]);
            }
}

/* Sums (steps, rows, sums_stride) of bytes (steps, rows, inputs), steps of which are x_stride apart. Where rows do not
 * fill tiles, the last tile of a step takes some of them again. */
static void multiply_bytes(const int8_t *x, int64_t x_stride, int64_t steps, int64_t rows, const affine *map,
                           const int8_t *packed, int32_t *sums)
{
    tile_shapes shapes = {.palette = 1};
    int64_t height = rows < TILE_ROWS ? rows : TILE_ROWS, depth = map->depth;
    for (int tile = 0; tile < 8; tile++) { /* 0 to 3: sums; 4, 5: bytes; 6, 7: weights */
        shapes.rows[tile] = (uint8_t)(tile < 6 ? height : depth / 4);
        shapes.bytes[tile] = (uint16_t)(tile == 4 || tile == 5 ? depth : TILE_BYTES);
    }
    WRITTEN;
    _tile_loadconfig(&shapes);
    int64_t a_step = map->inputs, c_step = map->sums_stride * (int64_t)sizeof *sums;
    for (int64_t column = 0; column < map->outputs; column += PANEL, packed += PANEL * map->inputs) {
        const int32_t *bias = map->bias + column;
        for (int64_t step = 0, row = 0; step < steps;) {
            const int8_t *a[2];
            int32_t *c[2];
            for (int i = 0; i < 2; i++) { /* where there is no second tile, the first again */
                if (i == 0 || step < steps) {
                    int64_t from = row < rows - height ? row : rows - height;
                    a[i] = x + step * x_stride + from * map->inputs;
                    c[i] = sums + (step * rows + from) * map->sums_stride + column;
                    row += height;
                    if (row >= rows)
                        step++, row = 0;
                } else
                    a[1] = a[0], c[1] = c[0];
            }
            _tile_loadd(0, bias, 0); /* the same in every row */
            _tile_loadd(1, bias + TILE_ROWS, 0);
            _tile_loadd(2, bias, 0);
            _tile_loadd(3, bias + TILE_ROWS, 0);
            const int8_t *b = packed;
            for (int64_t input = 0; input < map->inputs; input += depth, b += PANEL * depth) {
                _tile_loadd(4, a[0] + input, a_step);
                _tile_loadd(5, a[1] + input, a_step);
                _tile_loadd(6, b, TILE_BYTES);
                _tile_loadd(7, b + TILE_ROWS * depth, TILE_BYTES);
                _tile_dpbusd(0, 4, 6);
                _tile_dpbusd(1, 4, 7);
                _tile_dpbusd(2, 5, 6);
                _tile_dpbusd(3, 5, 7);
            }
            _tile_stored(0, c[0], c_step);
            _tile_stored(1, c[0] + TILE_ROWS, c_step);
            _tile_stored(2, c[1], c_step);
            _tile_stored(3, c[1] + TILE_ROWS, c_step);
        }
    }
    _tile_release();
}
#else
int64_t has_tiles(void)
{
    return 0;
}

static void pack(const affine *map, int8_t *packed) { (void)map, (void)packed; }

static void multiply_bytes(const int8_t *x, int64_t x_stride, int64_t steps, int64_t rows, const affine *map,
                           const int8_t *packed, int32_t *sums)
{
    (void)x, (void)x_stride, (void)steps, (void)rows, (void)map, (void)packed, (void)sums;
}
#endif

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

/* All steps of one token. x: its numbers, x_step apart from step to step, 0 where all are the same; out: where its spikes
 * lie in those of a step; scratch: x_steps * groups factors. */
static int64_t fire_token(const int32_t *x, int64_t x_step, int64_t steps, const layer *what, int64_t stride, int64_t out,
                          int8_t *spikes, int32_t *potentials, factors *scratch)
{
    const layer_norm *norm = what->norm;
    const neurons *cells = what->cells;
    int64_t saturated = 0, groups = norm ? norm->groups : 1, size = what->features / groups;
    int reset_to_zero = cells->reset_to_zero != 0;
    for (int64_t step = 0; norm && step < (x_step ? steps : 1); step++)
        for (int64_t group = 0; group < groups; group++)
            scratch[step * groups + group] = factors_of(x + step * x_step + group * size, norm, group);
    for (int64_t group = 0; group < groups; group++)
        for (int64_t i = 0; i < size; i += BLOCK) {
            int64_t from = group * size + i;
            block now = {x + from, x_step, steps, norm ? scratch + group : NULL, x_step ? groups : 0,
                         norm ? norm->gain + from : NULL, norm ? norm->offset + from : NULL,
                         cells->keep + from, cells->above + from, cells->taken + from, cells->bias + from,
                         stride, spikes + out + from, potentials ? potentials + out + from : NULL};
            saturated += size - i < BLOCK ? fire_block(now, size - i, reset_to_zero, 1)
                                          : fire_whole_block(&now, reset_to_zero);
        }
    return saturated;
}

/* Neurons, behind a layer norm and an affine map where the layer has them. x: (x_steps, tokens, features), x_steps being
 * 1 where every step is the same, else steps: int32, or, for an affine map, int8 of as many features as it has inputs;
 * spikes, potentials (may be NULL): (steps, tokens, features). Steps of these are `stride` numbers apart and those of x
 * `x_stride`, so that a part of the tokens can be read and filled. An affine map writes the sums of `at_once` tokens to
 * `sums`, (x_steps, at_once, sums_stride), and its weights to `packed`. scratch: x_steps * groups factors. Returns how
 * many potentials were held at their limit. */
int64_t fire(const layer *what, const void *x, int64_t x_steps, int64_t x_stride, int64_t steps, int64_t tokens,
             int64_t stride, int8_t *spikes, int32_t *potentials, int64_t at_once, int32_t *sums, int8_t *packed,
             factors *scratch)
{
    const affine *map = what->map;
    int64_t saturated = 0;
    if (map)
        pack(map, packed);
    for (int64_t start = 0; start < tokens; start += at_once) {
        int64_t count = tokens - start < at_once ? tokens - start : at_once;
        const int32_t *read = (const int32_t *)x + start * what->features;
        int64_t row_stride = what->features, step_stride = x_stride;
        if (map) {
            row_stride = map->sums_stride, step_stride = count * row_stride, read = sums;
            multiply_bytes((const int8_t *)x + start * map->inputs, x_stride, x_steps, count, map, packed, sums);
        }
        for (int64_t token = 0; token < count; token++)
            saturated += fire_token(read + token * row_stride, x_steps > 1 ? step_stride : 0, steps, what, stride,
                                    (start + token) * what->features, spikes, potentials, scratch);
    }
    return saturated;
}

/* `SQUARE` rows and `width` columns of a product: c[r][j] = the sum over k of a[r row_step + k inner_step] b[k][j]. */
static inline __attribute__((always_inline)) void
multiply_square(const float *a, int64_t row_step, int64_t inner_step, int64_t inner, const lanes *b, lanes *c,
              int64_t columns, int64_t width)
{
    lanes sums[SQUARE][SQUARE] = {{{0}}}; /* in registers */
    for (int64_t k = 0; k < inner; k++)
        for (int64_t row = 0; row < SQUARE; row++)
            for (int64_t column = 0; column < width; column++)
                sums[row][column] += a[row * row_step + k * inner_step] * b[k * columns + column];
    for (int64_t row = 0; row < SQUARE; row++)
        for (int64_t column = 0; column < width; column++)
            c[row * columns + column] = sums[row][column];
}

/* The same for `rows` rows, a multiple of SQUARE, and all columns. */
static void multiply(const float *a, int64_t row_step, int64_t inner_step, int64_t rows, int64_t inner, const lanes *b,
                     lanes *c, int64_t columns)
{
    for (int64_t row = 0; row < rows; row += SQUARE)
        for (int64_t column = 0; column < columns;) {
            const float *first = a + row * row_step;
            lanes *out = c + row * columns + column;
            if (columns - column >= SQUARE) { /* numbers the compiler knows, so that the sums stay in registers */
                multiply_square(first, row_step, inner_step, inner, b + column, out, columns, SQUARE);
                column += SQUARE;
            } else
                multiply_square(first, row_step, inner_step, inner, b + column++, out, columns, 1);
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
 * SQUARE; y: (steps, tokens, heads, size); scratch: zeros, 4 longest + padded rows of `padded`, size up to whole lanes. */
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
                multiply(query, padded, 1, (tokens + SQUARE - 1) / SQUARE * SQUARE, size, (const lanes *)products,
                         (lanes *)attended, columns);
                narrow(attended, padded, y + head * size, width, tokens, size, (int32_t)factor);
            }
            x += tokens * 3 * width;
            y += tokens * width;
        }
}

#ifdef TILES
/* 64 tokens of 16 features, those of four tokens beside each other, in a row for every four; zeros behind the last. */
static inline void load_tokens(const int8_t *x, int64_t x_step, int64_t tokens, __m512i rows[TILE_ROWS])
{
    const __m512i feature = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i turned = /* byte 4 f + t of a row is byte 16 t + f of four tokens */
        _mm512_add_epi32(_mm512_set1_epi32(0x30201000), _mm512_mullo_epi32(feature, _mm512_set1_epi32(0x01010101)));
    static const int8_t none[TILE_ROWS] = {0};
    for (int64_t row = 0; row < TILE_ROWS; row++) {
        __m128i four[4];
        for (int64_t i = 0; i < 4; i++)
            four[i] = _mm_loadu_si128((const void *)(row * 4 + i < tokens ? x + (row * 4 + i) * x_step : none));
        __m256i first = _mm256_set_m128i(four[1], four[0]), second = _mm256_set_m128i(four[3], four[2]);
        rows[row] = _mm512_permutexvar_epi8(turned, _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1));
    }
}

/* One head of a sentence: what `attend_bytes` multiplies. */
typedef struct {
    const int8_t *query, *key, *value; /* (tokens, 3 width), of which `size` features are the head's */
    int64_t tokens, width, size, depth;
    int8_t *keys, *values, *products; /* room */
} head_bytes;

/* K^T V to `products`, in the order in which tiles take it as the right-hand side. */
static void multiply_keys(head_bytes now)
{
    int64_t parts = (now.tokens + TILE_BYTES - 1) / TILE_BYTES, tile = TILE_ROWS * TILE_BYTES;
    for (int64_t from = 0; from < now.size; from += TILE_ROWS)
        for (int64_t part = 0; part < parts; part++) {
            __m512i rows[TILE_ROWS];
            int64_t token = part * TILE_BYTES, at = (from / TILE_ROWS * parts + part) * tile;
            int64_t read = token * 3 * now.width + from;
            load_tokens(now.value + read, 3 * now.width, now.tokens - token, rows);
            memcpy(now.values + at, rows, sizeof rows);
            load_tokens(now.key + read, 3 * now.width, now.tokens - token, rows);
            transpose(rows);
            memcpy(now.keys + at, rows, sizeof rows);
        }
    WRITTEN;
    for (int64_t i = 0; i < now.size; i += TILE_ROWS)
        for (int64_t j = 0; j < now.size; j += TILE_ROWS) {
            const int8_t *keys = now.keys + i * parts * TILE_BYTES, *values = now.values + j * parts * TILE_BYTES;
            uint32_t sums[TILE_ROWS][TILE_ROWS], four[TILE_ROWS];
            _tile_zero(0);
            for (int64_t part = 0; part < parts; part++) {
                _tile_loadd(1, keys + part * tile, TILE_BYTES);
                _tile_loadd(2, values + part * tile, TILE_BYTES);
                _tile_dpbuud(0, 1, 2);
            }
            _tile_stored(0, sums, TILE_BYTES);
            for (int64_t row = 0; row < TILE_ROWS; row += 4) { /* of four features beside each other */
                for (int64_t column = 0; column < TILE_ROWS; column++)
                    four[column] = sums[row][column] | sums[row + 1][column] << 8 | sums[row + 2][column] << 16
                                   | sums[row + 3][column] << 24;
                memcpy(now.products + j * now.size + (i + row) / 4 * TILE_BYTES, four, sizeof four);
            }
        }
    WRITTEN;
}

/* `factor` times Q (K^T V) to y, (tokens, width); where tokens do not fill tiles, the last one takes some again. */
static void multiply_queries(head_bytes now, int64_t height, int32_t factor, int32_t *y)
{
    for (int64_t token = 0; token < now.tokens; token += height) {
        int64_t from = token < now.tokens - height ? token : now.tokens - height;
        for (int64_t j = 0; j < now.size; j += TILE_ROWS) {
            int32_t *out = y + from * now.width + j, sums[TILE_ROWS][TILE_ROWS];
            _tile_zero(3);
            for (int64_t i = 0; i < now.size; i += now.depth) {
                _tile_loadd(4, now.query + from * 3 * now.width + i, 3 * now.width);
                _tile_loadd(5, now.products + j * now.size + i / 4 * TILE_BYTES, TILE_BYTES);
                _tile_dpbuud(3, 4, 5);
            }
            _tile_stored(3, sums, TILE_BYTES);
            for (int64_t row = 0; row < height; row++)
                for (int64_t column = 0; column < TILE_ROWS; column++)
                    out[row * now.width + column] = sums[row][column] * factor;
        }
    }
}

/* `attend` where heads are a multiple of 16 features and K^T V fits bytes without sign. longest: as many tokens as the
 * longest sentence has, up to a multiple of 64; scratch: two times longest, and size, rows of `size` bytes. */
void attend_bytes(const int8_t *x, int64_t steps, const int64_t *lengths, int64_t sentences, int64_t longest,
                  int64_t heads, int64_t size, int64_t factor, int32_t *y, int8_t *scratch)
{
    int64_t width = heads * size, depth = TILE_BYTES;
    while (size % depth)
        depth -= TILE_ROWS;
    for (int64_t step = 0; step < steps; step++)
        for (int64_t sentence = 0; sentence < sentences; sentence++) {
            int64_t tokens = lengths[sentence], height = tokens < TILE_ROWS ? tokens : TILE_ROWS;
            if (tokens == 0) /* of which there are no tiles */
                continue;
            tile_shapes shapes = {.palette = 1};
            for (int tile = 0; tile < 6; tile++) { /* K^T V, K^T, V; Q (K^T V), Q, K^T V */
                shapes.rows[tile] = (uint8_t)(tile < 3 ? TILE_ROWS : tile < 5 ? height : depth / 4);
                shapes.bytes[tile] = (uint16_t)(tile == 4 ? depth : TILE_BYTES);
            }
            WRITTEN;
            _tile_loadconfig(&shapes);
            for (int64_t head = 0; head < heads; head++) {
                const int8_t *query = x + head * size;
                head_bytes now = {query, query + width, query + 2 * width, tokens, width, size, depth,
                                  scratch, scratch + longest * size, scratch + 2 * longest * size};
                multiply_keys(now);
                multiply_queries(now, height, (int32_t)factor, y + head * size);
            }
            x += tokens * 3 * width;
            y += tokens * width;
        }
    _tile_release();
}
#else
void attend_bytes(const int8_t *x, int64_t steps, const int64_t *lengths, int64_t sentences, int64_t longest,
                  int64_t heads, int64_t size, int64_t factor, int32_t *y, int8_t *scratch)
{
    (void)x, (void)steps, (void)lengths, (void)sentences, (void)longest, (void)heads, (void)size, (void)factor;
    (void)y, (void)scratch;
}
#endif
