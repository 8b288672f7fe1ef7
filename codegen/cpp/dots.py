"""Products of rows by rows of a weight, in registers: of listed rows, or of all in turn."""

from __future__ import annotations

from string import Template

from tokenpass.codegen.cpp.isa import ISAS

DOTS = Template("""\
constexpr int64_t DOT_ROWS = $rows;  // rows of x and
constexpr int64_t DOT_LANES = $lanes;  // rows of the weight that are multiplied in registers
constexpr int64_t CHUNK = 16;  // entries of one task: whole vectors of every instruction set

// R rows of x, laid out by `widened`, times some rows of a weight; sums over lanes come last.
template <int64_t R, typename T> static inline void dots(
    const float *x, int64_t x_row, const T *const weight[DOT_LANES], int64_t width,
    float to[R][DOT_LANES]) {
    vf sum[R][DOT_LANES];
    for (int64_t row = 0; row < R; row++)
        for (int64_t lane = 0; lane < DOT_LANES; lane++) sum[row][lane] = all(0.0f);
    int64_t at = 0;
    for (; at + 2 * W <= width; at += 2 * W) {
        vf first[R], second[R];
#pragma GCC unroll 4
        for (int64_t row = 0; row < R; row++) {
            first[row] = load(x + row * x_row + at);
            second[row] = load(x + row * x_row + at + W);
        }
#pragma GCC unroll 8
        for (int64_t lane = 0; lane < DOT_LANES; lane++) {
            vf a, b;
            load_two(weight[lane] + at, a, b);
#pragma GCC unroll 4
            for (int64_t row = 0; row < R; row++) {
                sum[row][lane] += first[row] * a;
                sum[row][lane] += second[row] * b;
            }
        }
    }
    for (; at < width; at += W) {
        int64_t n = width - at < W ? width - at : W;
        for (int64_t lane = 0; lane < DOT_LANES; lane++) {
            vf w = load_part(weight[lane] + at, n);
            for (int64_t row = 0; row < R; row++)
                sum[row][lane] += load_part(x + row * x_row + at, n) * w;
        }
    }
    for (int64_t row = 0; row < R; row++)
        for (int64_t lane = 0; lane < DOT_LANES; lane += 4) {
            v4f four = sums(sum[row][lane], sum[row][lane + 1], sum[row][lane + 2],
                            sum[row][lane + 3]);
            memcpy(to[row] + lane, &four, sizeof four);
        }
}

// h[row, j - base] for DOT_LANES places j of the list, which end at `stop`; those beyond its end
// repeat the last. Without a list every row of the weight is one of its places.
template <typename T> static inline void listed_dots(
    const float *x, int64_t rows, int64_t width, const int32_t *index, int64_t first,
    int64_t stop, const T *weight, int64_t weight_row, float *h, int64_t h_row) {
    const T *from[DOT_LANES];
    int64_t n = stop - first < DOT_LANES ? stop - first : DOT_LANES;
    for (int64_t lane = 0; lane < DOT_LANES; lane++) {
        int64_t j = first + (lane < n ? lane : n - 1);
        from[lane] = weight + (index ? index[j] : j) * weight_row;
    }
    if (index)
        for (int64_t next = first + DOT_LANES; next < first + 2 * DOT_LANES && next < stop; next++)
            for (int64_t line = 0; line < 4 * 64; line += 64)
                __builtin_prefetch((const char *)(weight + index[next] * weight_row) + line);
    int64_t row = 0;
    for (; row + DOT_ROWS <= rows; row += DOT_ROWS) {
        float sum[DOT_ROWS][DOT_LANES];
        dots<DOT_ROWS>(x + row * width, width, from, width, sum);
        for (int64_t at = 0; at < DOT_ROWS; at++)
            for (int64_t lane = 0; lane < n; lane++)
                h[(row + at) * h_row + first + lane] = sum[at][lane];
    }
    for (; row < rows; row++) {
        float sum[1][DOT_LANES];
        dots<1>(x + row * width, width, from, width, sum);
        for (int64_t lane = 0; lane < n; lane++) h[row * h_row + first + lane] = sum[0][lane];
    }
}

// x as floats, in the order in which a weight of type T is loaded.
template <typename T, typename X> static void widened(
    const X *x, int64_t x_row, float *to, int64_t rows, int64_t width) {
    for (int64_t row = 0; row < rows; row++) {
        const X *from = x + row * x_row;
        float *line = to + row * width;
        int64_t at = 0;
        for (; at + 2 * W <= width; at += 2 * W) {
            vf a = load(from + at), b = load(from + at + W);
            split(a, b, T());
            store(line + at, a);
            store(line + at + W, b);
        }
        for (; at < width; at += W) {
            int64_t n = width - at < W ? width - at : W;
            store_part(line + at, load_part(from + at, n), n);
        }
    }
}

""")


def dots(isa: str, rows: int) -> str:
    """`listed_dots` and `widened`, for blocks of up to `rows` rows that registers hold."""
    most = 4 if ISAS[isa].lanes == 16 else 2
    together = max(1, min(rows, most))
    return DOTS.substitute(rows=together, lanes=8 if most == 4 and together <= 2 else 4)
