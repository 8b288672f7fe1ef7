"""The parts of kernels that list entries and sum listed rows, and what they remember between."""

from __future__ import annotations

from string import Template

from tokenpass.codegen.cpp.isa import ISAS

SCRATCH = """\
#include <cstdlib>

enum { LONG_LIST = 1, BAD_INDEX = 2, CHANGED = 3, NO_MEMORY = 4 };

// Memory of this thread that stays: made anew, its pages would have to be found at every call.
struct Scratch {
    char *at = nullptr;
    int64_t size = 0;
    ~Scratch() { free(at); }
};

// `bytes` of it, or null: memory has run out.
static inline char *scratch(int64_t bytes) {
    static thread_local Scratch memory;
    bytes = bytes / 64 * 64 + 64;  // never nothing
    if (memory.size < bytes) {
        free(memory.at);
        memory.at = (char *)aligned_alloc(64, bytes);
        memory.size = memory.at ? bytes : 0;
    }
    return memory.at;
}

// Whether a weight holds other numbers at the places that were remembered of it.
template <typename T> static inline bool is_changed(
    const T *weight, const T *known, int64_t step, int64_t count) {
    bool same = true;
    for (int64_t at = 0; at < count; at++)
        same &= !memcmp(weight + at * step, known + at, sizeof(T));
    return !same;
}

"""

COMPACT = Template("""\
constexpr bool HAS_THRESHOLD = $has_threshold;

#if defined(__AVX512F__)
// The lanes that are true, and the lanes of a vector that they name, moved to its front.
static inline uint16_t lanes_of(vi which) {
    uint16_t lanes; asm("vptestmd %1, %1, %0" : "=Yk"(lanes) : "v"(which)); return lanes;
}
static inline vi front(vi x, uint16_t lanes) {
    vi y; asm("vpcompressd %1, %0%{%2%}%{z%}" : "=v"(y) : "v"(x), "Yk"(lanes)); return y;
}
#endif

// Lists the entries at .. at + n that are active in any row, and moves their values to the front.
static inline int32_t listed(
    vi any, int64_t at, int64_t n, int32_t *index, float *kept, int64_t rows, int64_t entries,
    int32_t count) {
#if defined(__AVX512F__)
    if (n == W) {  // count <= at: there is room for a whole vector
        uint16_t lanes = lanes_of(any);
        if (!lanes) return count;
        vi places = front(vi{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, lanes);
        store((float *)(index + count), (vf)(places + (int32_t)at));
        for (int64_t row = 0; row < rows; row++) {
            float *line = kept + row * entries;
            store(line + count, (vf)front((vi)load(line + at), lanes));
        }
        return count + __builtin_popcount(lanes);
    }
#endif
    int32_t flags[W];
    memcpy(flags, &any, sizeof any);
    int32_t before = count;
    for (int64_t lane = 0; lane < n; lane++) {
        index[count] = (int32_t)(at + lane);
        count -= flags[lane];  // true is -1
    }
    for (int64_t row = 0; row < rows; row++)
        for (int32_t j = before; j < count; j++)
            kept[row * entries + j] = kept[row * entries + index[j]];
    return count;
}

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
        if (HAS_THRESHOLD && threshold_step == 0) limit = all(*threshold);
        if (HAS_THRESHOLD && threshold_step != 0)
            limit = n == W ? load(threshold + at) : load_part(threshold + at, n);
        for (int64_t row = 0; row < rows; row++) {
            vf y = all(0.0f);
            vf v = n == W ? prologue<false>(y, in, row, at, n) : prologue<true>(y, in, row, at, n);
            vi active = HAS_THRESHOLD ? (vi)~(absolute(v) <= limit) : (vi)(v != all(0.0f));
            any |= active;  // NaN is not below its limit
            v = active ? v : all(0.0f);
            if (n == W) store(kept + row * entries + at, v);
            else store_part(kept + row * entries + at, v, n);
        }
        count = listed(any, at, n, index, kept, rows, entries, count);
    }
    return count;
}

""")


def compact(has_threshold: bool) -> str:
    """`compact`, which calls `prologue`."""
    return COMPACT.substitute(has_threshold="true" if has_threshold else "false")


COMBINE = Template("""\
constexpr int64_t SUM_ROWS = $rows;
constexpr int64_t TILE = $tile;  // columns whose sums stay in the second-level cache
constexpr int64_t HEAD = 256;  // bytes of a row that are fetched before it is its turn
constexpr int64_t GROUP = $group;  // entries of one pass over a tile
constexpr int64_t MOST_SUMS = 65536;

// y += coefficients x G rows of the packed weight, for R rows of y and `columns` columns; y is in
// the order in which T is loaded.
template <int64_t R, int64_t G, typename T> static inline void add_rows(
    const T *const from[G], const float coefficient[R][G], int64_t columns, float *y,
    int64_t y_row) {
    int64_t at = 0;
    for (; at + 2 * W <= columns; at += 2 * W) {
        if constexpr (R == 1) {
            vf first = load(y + at), second = load(y + at + W);
#pragma GCC unroll 8
            for (int64_t g = 0; g < G; g++) {
                vf a, b;
                load_two(from[g] + at, a, b);
                first += coefficient[0][g] * a;
                second += coefficient[0][g] * b;
            }
            store(y + at, first);
            store(y + at + W, second);
        } else {
            vf a[G], b[G];
#pragma GCC unroll 8
            for (int64_t g = 0; g < G; g++) load_two(from[g] + at, a[g], b[g]);
#pragma GCC unroll 8
            for (int64_t row = 0; row < R; row++) {
                float *to = y + row * y_row + at;
                vf first = load(to), second = load(to + W);
#pragma GCC unroll 8
                for (int64_t g = 0; g < G; g++) {
                    first += coefficient[row][g] * a[g];
                    second += coefficient[row][g] * b[g];
                }
                store(to, first);
                store(to + W, second);
            }
        }
    }
    for (; at < columns; at += W) {
        int64_t n = columns - at < W ? columns - at : W;
        for (int64_t row = 0; row < R; row++) {
            float *to = y + row * y_row + at;
            vf sum = load_part(to, n);
            for (int64_t g = 0; g < G; g++)
                sum += coefficient[row][g] * load_part(from[g] + at, n);
            store_part(to, sum, n);
        }
    }
}

template <int64_t R, int64_t G, typename T> static inline void add_group(
    const T *packed, int64_t packed_row, const int32_t *index, const float *kept,
    int64_t kept_row, int64_t j, int64_t stop, int64_t columns, float *y, int64_t y_row) {
    const T *from[G];
    float coefficient[R][G];
    for (int64_t g = 0; g < G; g++) {
        from[g] = packed + index[j + g] * packed_row;
        for (int64_t at = 0; at < R; at++) coefficient[at][g] = kept[at * kept_row + j + g];
    }
    for (int64_t next = j + G; next < j + 2 * G && next < stop; next++) {
        const char *head = (const char *)(packed + index[next] * packed_row);
        for (int64_t line = 0; line < HEAD; line += 64) __builtin_prefetch(head + line);
    }
    add_rows<R, G>(from, coefficient, columns, y, y_row);
}

// The sums of a tile over the places j .. stop of the list.
template <int64_t R, typename T> static void sum_tile(
    const T *packed, int64_t packed_row, const int32_t *index, const float *kept,
    int64_t kept_row, int64_t j, int64_t stop, int64_t columns, float *y, int64_t y_row) {
    for (int64_t at = 0; at < R; at++) memset(y + at * y_row, 0, columns * sizeof(float));
    for (; j + GROUP <= stop; j += GROUP)
        add_group<R, GROUP>(packed, packed_row, index, kept, kept_row, j, stop, columns, y, y_row);
    for (; j + 2 <= stop; j += 2)
        add_group<R, 2>(packed, packed_row, index, kept, kept_row, j, stop, columns, y, y_row);
    if (j < stop)
        add_group<R, 1>(packed, packed_row, index, kept, kept_row, j, stop, columns, y, y_row);
}

// What the epilogue makes of the sums of `parts` parts of the list, added in their order.
template <typename T, typename O> static void finish(
    const float *y, int64_t y_row, int64_t parts, int64_t apart, EpilogueInputs in, int64_t first,
    int64_t rows, int64_t start, int64_t columns, O *out, int64_t out_row) {
    for (int64_t row = 0; row < rows; row++) {
        const float *from = y + row * y_row;
        O *to = out + row * out_row + start;
        int64_t at = 0;
        for (; at + 2 * W <= columns; at += 2 * W) {
            vf a = load(from + at), b = load(from + at + W);
            for (int64_t part = 1; part < parts; part++) {
                a += load(from + part * apart + at);
                b += load(from + part * apart + at + W);
            }
            joined(a, b, T());
            store(to + at, epilogue<false>(a, in, first + row, start + at, W));
            store(to + at + W, epilogue<false>(b, in, first + row, start + at + W, W));
        }
        for (; at < columns; at += W) {
            int64_t n = columns - at < W ? columns - at : W;
            vf a = load_part(from + at, n);
            for (int64_t part = 1; part < parts; part++)
                a += load_part(from + part * apart + at, n);
            store_part(to + at, epilogue<true>(a, in, first + row, start + at, n), n);
        }
    }
}

// Parts of the list with sums of their own. Short rows are not cut any shorter by threads; the
// number depends on sizes alone, so that the order of every sum does.
static int64_t parts_of(int64_t row_bytes, int64_t sums, int64_t count) {
    int64_t parts = row_bytes <= 8192 ? 8 : row_bytes <= 32768 ? 4 : 1;
    if (parts > count / (4 * GROUP)) parts = count / (4 * GROUP);
    if (parts * sums > MOST_SUMS) parts = MOST_SUMS / sums;
    return parts < 1 ? 1 : parts;
}

// out = epilogue(kept x packed[index]): threads share parts of the list, and columns.
// `part_sums` has room for MOST_SUMS.
template <typename T, typename O> static void combine(
    const T *packed, int64_t packed_row, const int32_t *index, const float *kept,
    int64_t kept_row, int64_t count, EpilogueInputs in, O *out, int64_t rows, int64_t outputs,
    float *part_sums, int64_t threads) {
    int64_t apart = rows * outputs;
    int64_t parts = parts_of(outputs * sizeof(T), apart, count);
    int64_t length = (count / parts + GROUP) / GROUP * GROUP;
    threads = useful_threads(rows * (count + 1) * outputs, threads);
    int64_t across = (threads + parts - 1) / parts;
    int64_t share = ((outputs + across - 1) / across + 63) / 64 * 64;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t task = 0; task < parts * across; task++) {
            int64_t part = task / across, from = task % across * share, to = from + share;
            int64_t j = part * length < count ? part * length : count;
            int64_t last = part + 1 == parts || j + length > count ? count : j + length;
            if (to > outputs) to = outputs;
            for (int64_t start = from; start < to; start += TILE) {
                int64_t columns = to - start < TILE ? to - start : TILE, row = 0;
                alignas(64) float tile[SUM_ROWS * TILE];
                while (row < rows) {
                    bool whole = row + SUM_ROWS <= rows;
                    float *own = part_sums + part * apart + row * outputs + start;
                    float *y = parts == 1 ? tile : own;
                    int64_t y_row = parts == 1 ? TILE : outputs;
                    const float *values = kept + row * kept_row;
                    if (whole)
                        sum_tile<SUM_ROWS>(packed + start, packed_row, index, values, kept_row, j,
                                           last, columns, y, y_row);
                    else
                        sum_tile<1>(packed + start, packed_row, index, values, kept_row, j, last,
                                    columns, y, y_row);
                    int64_t done = whole ? SUM_ROWS : 1;
                    if (parts == 1)
                        finish<T>(y, y_row, 1, 0, in, row, done, start, columns,
                                  out + row * outputs, outputs);
                    row += done;
                }
            }
        }
        if (parts > 1) {
#pragma omp for schedule(static)
            for (int64_t start = 0; start < outputs; start += 1024)
                finish<T>(part_sums + start, outputs, parts, apart, in, 0, rows, start,
                          outputs - start < 1024 ? outputs - start : 1024, out, outputs);
        }
    }
}

""")

CHECK_LIST = """\
static int check_list(const int32_t *index, int64_t count, int64_t entries) {
    if (count < 0 || count > entries) return LONG_LIST;
    int32_t bad = 0;
    for (int64_t j = 0; j < count; j++) bad |= (uint32_t)index[j] >= (uint32_t)entries;
    return bad ? BAD_INDEX : 0;
}

"""


def combine(isa: str, rows: int) -> str:
    """`combine`, which calls `epilogue`; a group of rows of the weight fits the registers."""
    together = max(1, min(rows, 8))
    group = 8 if together == 1 or ISAS[isa].lanes == 16 else 4
    return COMBINE.substitute(rows=together, tile=16384 // together // 64 * 64, group=group)
