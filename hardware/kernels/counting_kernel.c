/* What spikes are counted by, a byte each: sums along tokens and along features, values of a residual stream, and what
 * the two attention products of bits come to. Every spike is read once.
 *
 * What each number means stands where it is counted: firing.py, energy/operation_counts.py, energy/attention_counts.py.
 * The macros in capitals that are not defined here come from the Python side.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define MOST (UINT8_MAX / GROUP) /* what a lane may count up to, so that the lanes of a vector can be summed quickly */
#define BLOCK (LANES * MOST) /* bytes that are worked on together: they stay in the first cache */

typedef uint8_t lanes __attribute__((vector_size(LANES), aligned(1), may_alias));
typedef uint16_t wide_lanes __attribute__((vector_size(LANES)));
typedef uint64_t group __attribute__((vector_size(LANES), aligned(8), may_alias));

static int64_t smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* The sum of a vector of bytes up to MOST. */
static int64_t sum_of_lanes(lanes x)
{
    const uint64_t low_bytes = 0x00FF00FF00FF00FF, ones = 0x0001000100010001;
    uint64_t sum = 0;
    for (int64_t i = 0; i < GROUP; i++)
        sum += ((group)x)[i]; /* eight sums, none above a byte */
    sum = (sum & low_bytes) + (sum >> 8 & low_bytes);
    return (int64_t)(sum * ones >> 48);
}

/* Add a row of bits to `columns` and return its sum; `seen` keeps every bit that was there. */
static inline __attribute__((always_inline)) int64_t add_row(const uint8_t *restrict row, uint8_t *restrict columns,
                                                             int64_t features, lanes *restrict seen)
{
    int64_t sum = 0, i = 0;
    uint8_t bits = 0;
    while (i + LANES <= features) {
        lanes sums = {0};
        int64_t stop = smaller(features, i + MOST * LANES);
        for (; i + LANES <= stop; i += LANES) {
            lanes x = *(const lanes *)(row + i);
            *(lanes *)(columns + i) += x;
            *seen |= x;
            sums += x;
        }
        sum += sum_of_lanes(sums);
    }
    for (; i < features; i++) {
        columns[i] += row[i];
        bits |= row[i];
        sum += row[i];
    }
    (*seen)[0] |= bits;
    return sum;
}

static void empty(uint8_t *columns, int64_t features, int64_t *total)
{
    for (int64_t i = 0; i < features; i++)
        total[i] += columns[i];
    memset(columns, 0, (size_t)features);
}

/* Sums of spikes (steps, sentences, tokens, features) of 0 and 1, of which the last axis lies in one piece.
 * strides: bytes from step to step, sentence to sentence, token to token; real: (sentences, tokens), 0 at padding;
 * by_position (steps, tokens) and by_neuron (steps, features): zeros, filled with the sums over real tokens;
 * at_padding: filled with the sum over all others; scratch: 2 features of zeros, fastest where its address is a
 * multiple of LANES. Returns all bits of all values: where that is above 1, they are not spikes of 0 and 1 and the sums
 * mean nothing. */
int64_t add_up(const uint8_t *x, int64_t steps, int64_t sentences, int64_t tokens, int64_t features,
               int64_t step_stride, int64_t sentence_stride, int64_t token_stride, const uint8_t *real,
               int64_t *by_position, int64_t *by_neuron, int64_t *at_padding, uint8_t *scratch)
{
    lanes seen = {0};
    uint8_t *columns = scratch, *unread = scratch + features;
    *at_padding = 0;
    for (int64_t step = 0; step < steps; step++) {
        int64_t rows = 0;
        for (int64_t sentence = 0; sentence < sentences; sentence++)
            for (int64_t token = 0; token < tokens; token++) {
                const uint8_t *row = x + step * step_stride + sentence * sentence_stride + token * token_stride;
                if (real[sentence * tokens + token]) {
                    by_position[step * tokens + token] += add_row(row, columns, features, &seen);
                    if (++rows % UINT8_MAX == 0) /* a byte holds no more */
                        empty(columns, features, by_neuron + step * features);
                } else
                    *at_padding += add_row(row, unread, features, &seen);
            }
        empty(columns, features, by_neuron + step * features);
    }
    uint8_t bits = 0;
    for (int64_t i = 0; i < LANES; i++)
        bits |= seen[i];
    return bits;
}

/* What the running sums of spikes come to, of 0 and 1 in one piece each: the sum of the first two, of the first three, …
 * x: `addends` arrays of `count` values, at least two and no more than a byte holds; found (addends - 1, 3): for each
 * sum how many values are not 0, how many are above 1, and their total, added to. */
void count_running_sums(const uint8_t *const *x, int64_t addends, int64_t count, int64_t *found)
{
    uint8_t sums[BLOCK];
    for (int64_t from = 0; from < count; from += BLOCK) {
        int64_t size = smaller(BLOCK, count - from);
        memset(sums, 0, sizeof sums);
        memcpy(sums, x[0] + from, (size_t)size);
        for (int64_t addend = 1; addend < addends; addend++) {
            const uint8_t *next = x[addend] + from;
            lanes nonzero = {0}, graded = {0};
            wide_lanes even = {0}, odd = {0};
            int64_t i = 0, total = 0;
            for (; i + LANES <= size; i += LANES)
                *(lanes *)(sums + i) += *(const lanes *)(next + i);
            for (; i < size; i++)
                sums[i] += next[i];
            for (i = 0; i < size; i += LANES) { /* behind the last are zeros */
                lanes sum = *(lanes *)(sums + i);
                nonzero -= (lanes)(sum > 0); /* a comparison is -1 where it holds */
                graded -= (lanes)(sum > 1);
                even += (wide_lanes)sum & UINT8_MAX;
                odd += (wide_lanes)sum >> 8;
            }
            for (i = 0; i < LANES / 2; i++)
                total += even[i] + odd[i];
            found[0 + 3 * (addend - 1)] += sum_of_lanes(nonzero);
            found[1 + 3 * (addend - 1)] += sum_of_lanes(graded);
            found[2 + 3 * (addend - 1)] += total;
        }
    }
}

/* A word of up to 64 bits, a bit for each byte; in which order does not matter as long as it is always the same. */
static uint64_t pack(const uint8_t *x, int64_t count)
{
    uint64_t word = 0, eight;
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        memcpy(&eight, x + i, 8);
        word |= eight << (i / 8);
    }
    for (int64_t j = 0; i + j < count; j++)
        word |= (uint64_t)x[i + j] << (8 * j + i / 8);
    return word;
}

/* The sum of value[j] over all pairs of a query i and a key j that have a bit in common. Words are (words, tokens), of
 * which `count` are there; tokens is a multiple of GROUP, and values behind `count` are 0. */
static int64_t add_where_they_meet(const uint64_t *query, const uint64_t *key, const uint64_t *value, int64_t words,
                                   int64_t tokens, int64_t count)
{
    const group none = {0};
    group sums = none;
    for (int64_t i = 0; i < count; i++)
        for (int64_t j = 0; j < count; j += GROUP) {
            group common = *(const group *)(key + j) & query[i];
            for (int64_t word = 1; word < words; word++)
                common |= *(const group *)(key + word * tokens + j) & query[word * tokens + i];
            sums += *(const group *)(value + j) & (group)(common != none);
        }
    int64_t sum = 0;
    for (int64_t i = 0; i < GROUP; i++)
        sum += (int64_t)sums[i];
    return sum;
}

/* What the two orders of the attention product come to, among the attended tokens of each sentence and step.
 * x: (steps, sentences, tokens, 3, heads, size) of 0 and 1, query, key and value, with strides as above; attended:
 * (sentences, tokens); token_map, feature_map: attention_and, attention_count and attention_add of Q K^T first and of
 * K^T V first, added to; NULL where it is not asked for. longest: tokens, up to a multiple of GROUP; words: of `size`
 * bits; scratch: words of 64 bits, (2 words + 2) longest + words size + 4 heads size of them, and 2 heads size bytes. */
void count_attention(const uint8_t *x, int64_t steps, int64_t sentences, int64_t tokens, int64_t heads, int64_t size,
                     int64_t step_stride, int64_t sentence_stride, int64_t token_stride, const uint8_t *attended,
                     int64_t longest, int64_t words, int64_t *token_map, int64_t *feature_map, uint64_t *scratch)
{
    int64_t width = heads * size;
    uint64_t *query = scratch, *key = query + words * longest, *keys = key + words * longest, *values = keys + longest;
    uint64_t *met = values + longest; /* (words, size): which features of V a feature of K meets */
    int64_t *sums = (int64_t *)(met + words * size); /* (2, heads, size): of Q and K, over tokens */
    uint8_t *columns = (uint8_t *)(sums + 2 * width);
    lanes seen = {0}; /* which nobody asks here */
    memset(columns, 0, (size_t)(2 * width));
    for (int64_t pair = 0; pair < steps * sentences; pair++) {
        const uint8_t *first = x + pair / sentences * step_stride + pair % sentences * sentence_stride;
        const uint8_t *is_attended = attended + pair % sentences * tokens;
        int64_t count = 0;
        memset(sums, 0, (size_t)(2 * width) * sizeof *sums);
        for (int64_t token = 0; token < tokens; token++)
            if (is_attended[token]) {
                add_row(first + token * token_stride, columns, 2 * width, &seen);
                if (++count % UINT8_MAX == 0)
                    empty(columns, 2 * width, sums);
            }
        empty(columns, 2 * width, sums);
        for (int64_t head = 0; head < heads; head++) {
            const int64_t *query_sums = sums + head * size, *key_sums = query_sums + width;
            int64_t at = 0;
            memset(values, 0, (size_t)longest * sizeof *values);
            memset(met, 0, (size_t)(words * size) * sizeof *met);
            for (int64_t token = 0; token < tokens; token++) {
                if (!is_attended[token])
                    continue;
                const uint8_t *q = first + token * token_stride + head * size, *k = q + width, *v = k + width;
                keys[at] = 0;
                for (int64_t word = 0; word < words; word++) {
                    int64_t from = word * WORD_BITS, bits = smaller(WORD_BITS, size - from), to = word * longest + at;
                    uint64_t value = pack(v + from, bits);
                    query[to] = pack(q + from, bits);
                    key[to] = pack(k + from, bits);
                    keys[at] += (uint64_t)__builtin_popcountll(key[to]);
                    values[at] += (uint64_t)__builtin_popcountll(value);
                    if (feature_map)
                        for (int64_t i = 0; i < size; i++)
                            met[word * size + i] |= -(uint64_t)k[i] & value;
                }
                at++;
            }
            if (token_map) {
                int64_t met_tokens = 0, coincide = 0; /* in registers: the compiler cannot tell token_map from sums */
                for (int64_t i = 0; i < size; i++) {
                    met_tokens += query_sums[i];
                    coincide += query_sums[i] * key_sums[i];
                }
                token_map[0] += met_tokens * count;
                token_map[1] += coincide;
                token_map[2] += add_where_they_meet(query, key, values, words, longest, count);
            }
            if (feature_map) {
                int64_t met_features = 0, coincide = 0, added = 0;
                for (int64_t i = 0; i < count; i++) {
                    met_features += (int64_t)keys[i];
                    coincide += (int64_t)(keys[i] * values[i]);
                }
                for (int64_t word = 0; word < words; word++)
                    for (int64_t i = 0; i < size; i++)
                        added += query_sums[i] * __builtin_popcountll(met[word * size + i]);
                feature_map[0] += met_features * size;
                feature_map[1] += coincide;
                feature_map[2] += added;
            }
        }
    }
}
