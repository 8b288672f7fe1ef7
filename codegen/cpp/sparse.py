"""The three parts that the kernels of activation sparsity are made of."""

from __future__ import annotations

from string import Template

from tokenpass.codegen.cpp.isa import ISAS

COMPACT = Template("""\
constexpr bool HAS_THRESHOLD = $has_threshold;

// The entries of v = prologue(inputs) that are active in any row: their list and their values.
// Values are written where they stand and then moved to the front.
static int32_t compact(
    PrologueInputs in, const float *threshold, int64_t threshold_step, int32_t *index,
    float *kept, int64_t rows, int64_t entries) {
    int32_t count = 0;
    for (int64_t at = 0; at < entries; at += W) {
        int64_t n = entries - at < W ? entries - at : W;
        vi any = {};
        vf limit = all(0.0f);
        if (HAS_THRESHOLD)
            limit = threshold_step == 0 ? all(*threshold) : load_part(threshold + at, n);
        for (int64_t row = 0; row < rows; row++) {
            vf y = all(0.0f);
            vf v = n == W ? prologue<false>(y, in, row, at, n) : prologue<true>(y, in, row, at, n);
            vi active = HAS_THRESHOLD ? (vi)~(absolute(v) <= limit) : (vi)(v != all(0.0f));
            any |= active;  // true is -1; NaN is not below its limit
            store_part(kept + row * entries + at, active ? v : all(0.0f), n);
        }
        int32_t flags[W];
        memcpy(flags, &any, sizeof any);
        for (int64_t lane = 0; lane < n; lane++) {
            index[count] = (int32_t)(at + lane);
            for (int64_t row = 0; row < rows; row++)
                kept[row * entries + count] = kept[row * entries + at + lane];
            count -= flags[lane];
        }
    }
    return count;
}

""")


def compact(has_threshold: bool) -> str:
    """`compact`, which calls `prologue`."""
    return COMPACT.substitute(has_threshold="true" if has_threshold else "false")


DOTS = Template("""\
constexpr int64_t DOT_ROWS = $rows;
constexpr int64_t CHUNK = 16;  // entries of one task: whole vectors of every instruction set

// R rows of x times four rows of a weight; sums over lanes come last.
template <int64_t R, typename T> static inline void dots(
    const float *x, int64_t x_row, const T *const weight[4], int64_t width, v4f to[R]) {
    vf sum[R][4];
    for (int64_t row = 0; row < R; row++)
        for (int64_t lane = 0; lane < 4; lane++) sum[row][lane] = all(0.0f);
    int64_t at = 0;
    for (; at + W <= width; at += W) {
        vf w[4];
#pragma GCC unroll 4
        for (int64_t lane = 0; lane < 4; lane++) w[lane] = load(weight[lane] + at);
#pragma GCC unroll 4
        for (int64_t row = 0; row < R; row++) {
            vf left = load(x + row * x_row + at);
#pragma GCC unroll 4
            for (int64_t lane = 0; lane < 4; lane++) sum[row][lane] += left * w[lane];
        }
    }
    if (at < width)
        for (int64_t lane = 0; lane < 4; lane++) {
            vf w = load_part(weight[lane] + at, width - at);
            for (int64_t row = 0; row < R; row++)
                sum[row][lane] += load_part(x + row * x_row + at, width - at) * w;
        }
    for (int64_t row = 0; row < R; row++)
        to[row] = sums(sum[row][0], sum[row][1], sum[row][2], sum[row][3]);
}

// h[row, j] for four places j of the list; those beyond its end repeat the last.
template <typename T> static inline void listed_dots(
    const float *x, int64_t rows, int64_t width, const int32_t *index, int64_t first,
    int64_t count, const T *weight, int64_t weight_row, float *h, int64_t h_row) {
    const T *from[4];
    int64_t n = count - first < 4 ? count - first : 4;
    for (int64_t lane = 0; lane < 4; lane++)
        from[lane] = weight + index[first + (lane < n ? lane : n - 1)] * weight_row;
    for (int64_t next = first + 4; next < first + 8 && next < count; next++)
        for (int64_t line = 0; line < 4 * 64; line += 64)
            __builtin_prefetch((const char *)(weight + index[next] * weight_row) + line);
    int64_t row = 0;
    for (; row + DOT_ROWS <= rows; row += DOT_ROWS) {
        v4f sum[DOT_ROWS];
        dots<DOT_ROWS>(x + row * width, width, from, width, sum);
        for (int64_t at = 0; at < DOT_ROWS; at++)
            for (int64_t lane = 0; lane < n; lane++)
                h[(row + at) * h_row + first + lane] = sum[at][lane];
    }
    for (; row < rows; row++) {
        v4f sum[1];
        dots<1>(x + row * width, width, from, width, sum);
        for (int64_t lane = 0; lane < n; lane++) h[row * h_row + first + lane] = sum[0][lane];
    }
}

template <typename T> static void widened(
    const T *x, int64_t x_row, float *to, int64_t rows, int64_t width) {
    for (int64_t row = 0; row < rows; row++) {
        int64_t at = 0;
        for (; at + W <= width; at += W) store(to + row * width + at, load(x + row * x_row + at));
        if (at < width)
            store_part(to + row * width + at, load_part(x + row * x_row + at, width - at),
                       width - at);
    }
}

""")


def dots(isa: str, rows: int) -> str:
    """`listed_dots` and `widened`, for blocks of up to `rows` rows that registers hold."""
    most = 4 if ISAS[isa].lanes == 16 else 2
    return DOTS.substitute(rows=max(1, min(rows, most)))


COMBINE = Template("""\
constexpr int64_t SUM_ROWS = $rows;
constexpr int64_t TILE = $tile;  // columns whose sums stay in the second-level cache
constexpr int64_t AHEAD = 512;  // bytes
constexpr int64_t GROUP = 8;  // entries of one pass over a tile

// y += coefficients x G rows of the packed weight, for R rows of y and `columns` columns.
template <int64_t R, int64_t G, typename T> static inline void add_rows(
    const T *const from[G], const float coefficient[R][G], int64_t columns, float *y) {
    int64_t at = 0;
    for (; at + W <= columns; at += W) {
        vf w[G];
#pragma GCC unroll 8
        for (int64_t g = 0; g < G; g++) {
            w[g] = load(from[g] + at);
            __builtin_prefetch((const char *)(from[g] + at) + AHEAD);
        }
#pragma GCC unroll 8
        for (int64_t row = 0; row < R; row++) {
            vf sum = load(y + row * TILE + at);
#pragma GCC unroll 8
            for (int64_t g = 0; g < G; g++) sum += coefficient[row][g] * w[g];
            store(y + row * TILE + at, sum);
        }
    }
    if (at < columns)
        for (int64_t row = 0; row < R; row++) {
            vf sum = load(y + row * TILE + at);
            for (int64_t g = 0; g < G; g++)
                sum += coefficient[row][g] * load_part(from[g] + at, columns - at);
            store(y + row * TILE + at, sum);
        }
}

// The sums of a tile over the whole list, and what the epilogue makes of them.
template <int64_t R, typename T, typename O> static void combine_tile(
    const T *packed, int64_t packed_row, const int32_t *index, const float *kept,
    int64_t kept_row, int64_t count, int64_t start, int64_t columns, EpilogueInputs in,
    int64_t row, O *out, int64_t out_row) {
    alignas(64) float y[R * TILE];
    for (int64_t at = 0; at < R; at++)
        for (int64_t column = 0; column < columns; column += W)
            store(y + at * TILE + column, all(0.0f));
    int64_t j = 0;
    for (; j + GROUP <= count; j += GROUP) {
        const T *from[GROUP];
        float coefficient[R][GROUP];
        for (int64_t g = 0; g < GROUP; g++) {
            from[g] = packed + index[j + g] * packed_row + start;
            for (int64_t at = 0; at < R; at++) coefficient[at][g] = kept[at * kept_row + j + g];
        }
        for (int64_t next = j + GROUP; next < j + 2 * GROUP && next < count; next++) {
            const char *head = (const char *)(packed + index[next] * packed_row + start);
            for (int64_t line = 0; line < 4 * 64; line += 64) __builtin_prefetch(head + line);
        }
        add_rows<R, GROUP>(from, coefficient, columns, y);
    }
    for (; j < count; j++) {
        const T *from[1] = {packed + index[j] * packed_row + start};
        float coefficient[R][1];
        for (int64_t at = 0; at < R; at++) coefficient[at][0] = kept[at * kept_row + j];
        add_rows<R, 1>(from, coefficient, columns, y);
    }
    for (int64_t at = 0; at < R; at++) {
        O *to = out + at * out_row + start;
        const float *from = y + at * TILE;
        int64_t column = 0, n;
        for (; column + W <= columns; column += W)
            store(to + column,
                  epilogue<false>(load(from + column), in, row + at, start + column, W));
        if ((n = columns - column) > 0)
            store_part(to + column,
                       epilogue<true>(load(from + column), in, row + at, start + column, n), n);
    }
}

// out = epilogue(kept x packed[index]): threads share the columns, so that every sum has one order.
template <typename T, typename O> static void combine(
    const T *packed, int64_t packed_row, const int32_t *index, const float *kept,
    int64_t kept_row, int64_t count, EpilogueInputs in, O *out, int64_t rows, int64_t outputs,
    int64_t threads) {
    threads = useful_threads(rows * (count + 1) * outputs, threads);
    int64_t share = ((outputs + threads - 1) / threads + 63) / 64 * 64;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t part = 0; part < threads; part++) {
        int64_t stop = (part + 1) * share < outputs ? (part + 1) * share : outputs;
        for (int64_t start = part * share; start < stop; start += TILE) {
            int64_t columns = stop - start < TILE ? stop - start : TILE, row = 0;
            for (; row + SUM_ROWS <= rows; row += SUM_ROWS)
                combine_tile<SUM_ROWS>(packed, packed_row, index, kept + row * kept_row, kept_row,
                                       count, start, columns, in, row, out + row * outputs,
                                       outputs);
            for (; row < rows; row++)
                combine_tile<1>(packed, packed_row, index, kept + row * kept_row, kept_row, count,
                                start, columns, in, row, out + row * outputs, outputs);
        }
    }
}

""")

CHECK_LIST = """\
// 1: the count is out of range; 2: an index is.
static int check_list(const int32_t *index, int64_t count, int64_t entries) {
    if (count < 0 || count > entries) return 1;
    int32_t bad = 0;
    for (int64_t j = 0; j < count; j++) bad |= (uint32_t)index[j] >= (uint32_t)entries;
    return bad ? 2 : 0;
}

"""


def combine(rows: int) -> str:
    """`combine`, which calls `epilogue`."""
    together = max(1, min(rows, 8))
    return COMBINE.substitute(rows=together, tile=16384 // together // 64 * 64)
