/* Layer norm and neurons of the integer runner in one pass, in float64 that holds only whole numbers below 2^53.
 *
 * What each line means stands in export/operators/layer_norm.py and leaky_integrate_and_fire.py. Nothing here is rounded
 * but where floor and trunc say so, so neither the order of operations nor fused multiply-adds can change a number.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define POTENTIAL_MAX 8388607.0
#define ACTIVATION_STEP 64.0

/* Sums of x and x^2 over `size` features of each of `rows` groups. */
void group_sums(const int32_t *restrict x, int64_t rows, int64_t size, int64_t *restrict sums, int64_t *restrict squares)
{
    for (int64_t row = 0; row < rows; row++) {
        const int32_t *part = x + row * size;
        int64_t sum = 0, square = 0;
        for (int64_t i = 0; i < size; i++) {
            sum += part[i];
            square += (int64_t)part[i] * part[i];
        }
        sums[row] = sum;
        squares[row] = square;
    }
}

/* One step of one group of a token's features; returns how many potentials were held at their limit. */
static int64_t advance(const int32_t *restrict x, double first, double second, double third, int64_t size,
                      const double *restrict gain, const double *restrict offset, const double *restrict keep,
                      const double *restrict threshold, const double *restrict bias, double later, double now,
                      double margin, double *restrict potential, double *restrict fired, double *restrict tested,
                      int8_t *restrict spikes)
{
    int64_t held = 0; /* a sum of float64 would keep the loop from being vectorised */
    for (int64_t i = 0; i < size; i++) {
        double normed = floor(floor(x[i] * first + second) * third + 0.5);
        double charge = floor(normed * gain[i] + offset[i]) * ACTIVATION_STEP + bias[i];
        double v = trunc(potential[i] * keep[i]) + charge - later * fired[i] * threshold[i];
        double kept = fmin(fmax(v, -POTENTIAL_MAX), POTENTIAL_MAX);
        double s = kept + margin > threshold[i] ? 1.0 : 0.0;
        held += kept != v;
        tested[i] = kept;
        fired[i] = s;
        spikes[i] = (int8_t)s;
        potential[i] = kept - now * s * kept;
    }
    return held;
}

/* x: (steps, tokens, groups, size), the same at every step where x_steps is 1; first, second, third: (x_steps, tokens,
 * groups); gain, offset, keep, threshold, bias: (groups, size); spikes, potentials: (steps, tokens, groups, size), the
 * latter may be NULL; state: 3 x groups x size of scratch. Returns how many potentials were held at their limit. */
int64_t norm_and_fire(const int32_t *x, int64_t x_steps, int64_t steps, int64_t tokens, int64_t groups, int64_t size,
                      const double *first, const double *second, const double *third, const double *gain,
                      const double *offset, const double *keep, const double *threshold, const double *bias,
                      int subtract, int fire_on_equal, int8_t *spikes, int32_t *potentials, double *state)
{
    int64_t features = groups * size, saturated = 0;
    double later = subtract ? 1.0 : 0.0, now = 1.0 - later, margin = fire_on_equal ? 1.0 : 0.0;
    double *potential = state, *fired = state + features, *tested = state + 2 * features;
    for (int64_t token = 0; token < tokens; token++) {
        memset(state, 0, 2 * features * sizeof(double));
        for (int64_t step = 0; step < steps; step++) {
            int64_t row = (x_steps > 1 ? step : 0) * tokens + token, out = (step * tokens + token) * features;
            for (int64_t group = 0; group < groups; group++) {
                int64_t at = row * groups + group, from = group * size;
                saturated += advance(x + row * features + from, first[at], second[at], third[at], size,
                                     gain + from, offset + from, keep + from, threshold + from, bias + from, later,
                                     now, margin, potential + from, fired + from, tested + from, spikes + out + from);
            }
            if (potentials)
                for (int64_t i = 0; i < features; i++)
                    potentials[out + i] = (int32_t)tested[i];
        }
    }
    return saturated;
}
