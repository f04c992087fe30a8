/* y[m][n] += sum over scales of s[n][i] * (sum over its columns of q[n][c] * x[m][c]), from planar words.

   Sixteen words at a time, in the vectors of GCC and Clang, which fit any processor.  AVX-512 has a shorter way from fields to
   numbers: a permutation of a register that holds 0, 1, .. 15 reads the low four bits of every word, so a field of 1, 2 or 4
   bits needs a shift and no mask.  Exact in float32. */
#include <stdint.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define TOKENS 4  /* rows of x that share an unpacked field */
#define AHEAD 512 /* words: 2 KB ahead of what is being read; without it the product waits for memory half of the time */

typedef int32_t ints __attribute__((vector_size(64)));
typedef float floats __attribute__((vector_size(64)));
typedef int32_t loose_ints __attribute__((vector_size(64), aligned(4)));
typedef float loose_floats __attribute__((vector_size(64), aligned(4)));

/* The numbers in the lowest `width` bits of sixteen words. */
static inline __attribute__((always_inline)) floats field(ints v, const int width, floats table)
{
#ifdef __AVX512F__
    if (width < 8) return (floats)_mm512_permutexvar_ps((__m512i)v, (__m512)table);
#endif
    (void)table;
    return __builtin_convertvector(v & ((1 << width) - 1), floats);
}

/* One row of words and M rows of x.  M, width and together are constants where this is inlined. */
static inline __attribute__((always_inline)) void row(
    const int32_t *words, const float *s, const float *x, int64_t x_row, float *y, int64_t y_row,
    int64_t slices, int64_t plane, const int M, const int width, const int64_t together)
{
    const int64_t fields = 32 / width, scales = fields / together;
    floats table, total[TOKENS];
    for (int i = 0; i < 16; i++) table[i] = (float)(i & ((1 << width) - 1));
    for (int m = 0; m < M; m++) total[m] = (floats){0};
    for (int64_t i = 0; i < slices; i++, s += scales, words += plane, x += fields * plane)
        for (int64_t w = 0; w < plane; w += 16) {
            ints v = *(const loose_ints *)(words + w);
            __builtin_prefetch(words + w + AHEAD);
            const float *at = x + w;
            for (int64_t g = 0; g < scales; g++) {
                floats sum[TOKENS];
                for (int m = 0; m < M; m++) sum[m] = (floats){0};
                for (int64_t j = 0; j < together; j++, at += plane, v >>= width) {
                    const floats q = field(v, width, table);
                    for (int m = 0; m < M; m++) sum[m] += q * *(const loose_floats *)(at + m * x_row);
                }
                for (int m = 0; m < M; m++) total[m] += sum[m] * s[g];
            }
        }
    for (int m = 0; m < M; m++) {
        float sum = 0;
        for (int k = 0; k < 16; k++) sum += total[m][k];
        y[m * y_row] += sum;
    }
}

typedef struct {
    const int32_t *words;
    const float *s, *x;
    float *y;
    int64_t words_row, s_row, x_row, y_row, slices, plane;
} problem;

/* One row of inputs meets every row of words from end to end; several meet them in bites of 1024 or 2048 columns, whose inputs
   stay in the first cache. */
static inline __attribute__((always_inline)) void rows(
    problem p, int64_t first, int64_t last, const int M, const int width, const int64_t together)
{
    const int64_t fields = 32 / width, bite = M == 1 ? p.slices : width < 4 ? 1 : width / 2;
    for (int64_t i = 0; i < p.slices; i += bite)
        for (int64_t n = first; n < last; n++)
            row(p.words + n * p.words_row + i * p.plane, p.s + n * p.s_row + i * (fields / together),
                p.x + i * fields * p.plane, p.x_row, p.y + n, p.y_row,
                p.slices - i < bite ? p.slices - i : bite, p.plane, M, width, together);
}

#define BY_TOGETHER(M, WIDTH)                                                                                          \
    if (together == 1) rows(p, first, last, M, WIDTH, 1);                                                              \
    else if (together == 2) rows(p, first, last, M, WIDTH, 2);                                                         \
    else if (together == 4) rows(p, first, last, M, WIDTH, 4);                                                         \
    else rows(p, first, last, M, WIDTH, together);
#define BY_WIDTH(M)                                                                                                    \
    if (width == 1) { BY_TOGETHER(M, 1) } else if (width == 2) { BY_TOGETHER(M, 2) }                                   \
    else if (width == 4) { BY_TOGETHER(M, 4) } else { BY_TOGETHER(M, 8) }

/* Rows first .. last - 1 of the weight, all rows of x. */
void add_product(const int32_t *words, int64_t words_row, const float *s, int64_t s_row, const float *x, int64_t x_row,
                 float *y, int64_t y_row, int64_t first, int64_t last, int64_t slices, int64_t plane, int64_t width,
                 int64_t together, int64_t tokens)
{
    problem p = {words, s, x, y, words_row, s_row, x_row, y_row, slices, plane};
    for (; tokens >= TOKENS; tokens -= TOKENS, p.x += TOKENS * x_row, p.y += TOKENS * y_row) { BY_WIDTH(TOKENS) }
    for (; tokens >= 1; tokens--, p.x += x_row, p.y += y_row) { BY_WIDTH(1) }
}

const char *way(void)
{
#ifdef __AVX512F__
    return "AVX-512";
#else
    return "plain C";
#endif
}
