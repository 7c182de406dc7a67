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
static int64_t fire_block(const int32_t *x, int64_t x_stride, int64_t steps, int64_t count, const factors *by,
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
                saturated += fire_block(row + from, moving * tokens * features, steps, size - i < BLOCK ? size - i : BLOCK,
                                        norm ? scratch + group : NULL, moving * groups, norm ? norm->gain + from : NULL,
                                        norm ? norm->offset + from : NULL, cells, from, stride, spikes + out,
                                        potentials ? potentials + out : NULL);
            }
    }
    return saturated;
}

/* Attention without softmax, (Q K^T) V = Q (K^T V), of sentences that lie one behind the other. x: (steps, tokens, 3,
 * heads, size); lengths: (sentences), their sum is `tokens`; y: (steps, tokens, heads, size); scratch: size * size. */
void attend(const int8_t *x, int64_t steps, int64_t tokens, const int64_t *lengths, int64_t sentences, int64_t heads,
            int64_t size, int64_t factor, int32_t *y, float *restrict scratch)
{
    int64_t width = heads * size;
    for (int64_t step = 0; step < steps; step++) {
        const int8_t *sentence = x + step * tokens * 3 * width;
        int32_t *out = y + step * tokens * width;
        for (int64_t s = 0; s < sentences; s++) {
            for (int64_t head = 0; head < heads; head++) {
                memset(scratch, 0, (size_t)(size * size) * sizeof(float));
                for (int64_t token = 0; token < lengths[s]; token++) {
                    const int8_t *key = sentence + (3 * token + 1) * width + head * size, *value = key + width;
                    for (int64_t i = 0; i < size; i++) {
                        float weight = key[i];
                        float *restrict sums = scratch + i * size;
                        for (int64_t j = 0; j < size; j++)
                            sums[j] += weight * (float)value[j];
                    }
                }
                for (int64_t token = 0; token < lengths[s]; token++) {
                    const int8_t *query = sentence + 3 * token * width + head * size;
                    for (int64_t from = 0; from < size; from += BLOCK) {
                        int64_t count = size - from < BLOCK ? size - from : BLOCK;
                        float sums[BLOCK] = {0};
                        for (int64_t i = 0; i < size; i++) {
                            float weight = query[i];
                            const float *restrict row = scratch + i * size + from;
                            for (int64_t j = 0; j < count; j++)
                                sums[j] += weight * row[j];
                        }
                        for (int64_t j = 0; j < count; j++)
                            out[token * width + head * size + from + j] = (int32_t)sums[j] * (int32_t)factor;
                    }
                }
            }
            sentence += lengths[s] * 3 * width;
            out += lengths[s] * width;
        }
    }
}
