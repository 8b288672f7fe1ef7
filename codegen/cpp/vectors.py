"""The C++ text that every kernel begins with: vectors of floats, however they are stored.

Written with the vector extensions that g++ and clang share, so that one text serves every
instruction set; only the lane count differs.
"""

from __future__ import annotations

from string import Template

from tokenpass.codegen.cpp.isa import ISAS

TEXT = Template("""\
#include <cstdint>
#include <cstring>

typedef float vf __attribute__((vector_size($bytes)));
typedef int32_t vi __attribute__((vector_size($bytes)));
typedef uint32_t vu __attribute__((vector_size($bytes)));
typedef double vd __attribute__((vector_size($double_bytes)));
typedef uint16_t vs __attribute__((vector_size($half_bytes)));
typedef float v4f __attribute__((vector_size(16)));
typedef int32_t v4i __attribute__((vector_size(16)));
constexpr int64_t W = $lanes;

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, decltype((a) < (b)){__VA_ARGS__})
#endif

struct bf16 { uint16_t bits; };
struct half { uint16_t bits; };

static inline vf all(float x) { return vf{$all_x}; }
static inline vu all_bits(uint32_t x) { return vu{$all_x}; }

// bfloat16: the upper half of a float. Rounded to nearest, ties to even; NaN as torch writes it.
static inline vf widen(vs x, bf16) { return (vf)(__builtin_convertvector(x, vu) << 16); }
static inline vs narrow(vf x, bf16) {
    vu bits = (vu)x;
    vu rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return __builtin_convertvector(x == x ? rounded : all_bits(0x7fc0), vs);
}

// float16: the processor's own conversion (as assembly: its header costs more to read than a kernel
// to compile), else the exponent is moved by a multiplication, exact for subnormal numbers too.
#if defined(__AVX512F__)
static inline vf widen(vs x, half) { vf y; asm("vcvtph2ps %1, %0" : "=v"(y) : "v"(x)); return y; }
#elif defined(__F16C__)
static inline vf widen(vs x, half) { vf y; asm("vcvtph2ps %1, %0" : "=x"(y) : "x"(x)); return y; }
#else
static inline vf widen(vs x, half) {
    vu wide = __builtin_convertvector(x, vu);
    vu sign = (wide & 0x8000) << 16, magnitude = wide & 0x7fff;
    vu number = (vu)((vf)(magnitude << 13) * 0x1p112f);
    vu special = (magnitude << 13) | 0x7f800000;
    return (vf)((magnitude >= 0x7c00 ? special : number) | sign);
}
#endif
static inline vs narrow(vf x, half) {
    vu bits = (vu)x & 0x7fffffff, sign = ((vu)x & 0x80000000) >> 16;
    vu normal = (bits - 0x38000000 + 0xfff + ((bits >> 13) & 1)) >> 13;
    vu subnormal = (vu)((vf)bits + 0.5f) - 0x3f000000;
    vu big = bits > 0x7f800000 ? all_bits(0x7e00) : all_bits(0x7c00);
    vu result = bits >= 0x47800000 ? big : bits < 0x38800000 ? subnormal : normal;
    return __builtin_convertvector(result | sign, vs);
}

// W elements as floats, from and to any address.
static inline vf load(const float *p) { vf x; memcpy(&x, p, sizeof x); return x; }
static inline void store(float *p, vf x) { memcpy(p, &x, sizeof x); }
static inline vf load(const double *p) {
    vd x; memcpy(&x, p, sizeof x); return __builtin_convertvector(x, vf);
}
static inline void store(double *p, vf x) {
    vd y = __builtin_convertvector(x, vd); memcpy(p, &y, sizeof y);
}
template <typename T> static inline vf load(const T *p) {
    vs x; memcpy(&x, p, sizeof x); return widen(x, T());
}
template <typename T> static inline void store(T *p, vf x) {
    vs y = narrow(x, T()); memcpy(p, &y, sizeof y);
}

// 2W elements as two vectors, in the order that is cheapest to load: of bfloat16 the even places,
// then the odd ones (one load, a shift, a mask). `split` brings numbers into it, `joined` back.
template <typename T> static inline void load_two(const T *p, vf &a, vf &b) {
    a = load(p); b = load(p + W);
}
template <> inline void load_two(const bf16 *p, vf &a, vf &b) {
    vu x; memcpy(&x, p, sizeof x); a = (vf)(x << 16); b = (vf)(x & 0xffff0000u);
}
template <typename T> static inline void split(vf &, vf &, T) {}
static inline void split(vf &a, vf &b, bf16) {
    vf even = SHUFFLE(a, b, $even_places);
    b = SHUFFLE(a, b, $odd_places);
    a = even;
}
template <typename T> static inline void joined(vf &, vf &, T) {}
static inline void joined(vf &a, vf &b, bf16) {
    vf first = SHUFFLE(a, b, $first_half);
    b = SHUFFLE(a, b, $second_half);
    a = first;
}

// The first n < W of them; what is not loaded is 0.
template <typename T> static inline vf load_part(const T *p, int64_t n) {
    T part[W] = {}; memcpy(part, p, n * sizeof(T)); return load(part);
}
template <typename T> static inline void store_part(T *p, vf x, int64_t n) {
    T part[W]; store(part, x); memcpy(p, part, n * sizeof(T));
}
template <bool part, typename T> static inline vf take(const T *p, int64_t n) {
    return part ? load_part(p, n) : load(p);
}
template <bool part, typename T> static inline void put(T *p, vf x, int64_t n) {
    if (part) store_part(p, x, n); else store(p, x);
}
template <typename T> static inline float one(const T *p) { return load_part(p, 1)[0]; }
template <> inline float one(const float *p) { return *p; }
template <typename T> static inline vf gather(const T *p, const int32_t *index, int64_t n) {
    float each[W] = {};
    for (int64_t at = 0; at < n; at++) each[at] = one(p + index[at]);
    return load(each);
}

// Threads for so many multiplications: starting one costs about a microsecond.
static inline int64_t useful_threads(int64_t work, int64_t threads) {
    int64_t most = work / 32768 + 1;
    return most < threads ? most : threads;
}

// The sums of the lanes of four vectors.
static inline v4f sums(vf a, vf b, vf c, vf d) {
    vf ab = SHUFFLE(a, b, $low);
    ab += SHUFFLE(a, b, $high);
    vf cd = SHUFFLE(c, d, $low);
    cd += SHUFFLE(c, d, $high);
    vf each = SHUFFLE(ab, cd, $even);
    each += SHUFFLE(ab, cd, $odd);
    v4f quarters[W / 4];
    memcpy(quarters, &each, sizeof each);
    v4f sum = quarters[0];
    for (int64_t at = 1; at < W / 4; at++) sum += quarters[at];
    return sum;
}

""")


def prelude(isa: str) -> str:
    """Types, conversions, loads, stores and sums for the lanes of `isa`."""
    lanes = ISAS[isa].lanes
    quarters = range(0, lanes, 4)

    def places(first: list[int], second: list[int]) -> str:
        """For each quarter: `first` of the left vector, `second` of the right, interleaved."""
        return ", ".join(
            str(at)
            for quarter in quarters
            for at in (
                quarter + first[0],
                lanes + quarter + second[0],
                quarter + first[1],
                lanes + quarter + second[1],
            )
        )

    def blocks(at: list[int]) -> str:
        """For each quarter: two places of the left vector, then the same two of the right."""
        return ", ".join(
            str(place)
            for quarter in quarters
            for place in (
                *(quarter + one for one in at),
                *(lanes + quarter + one for one in at),
            )
        )

    def interleaved(start: int) -> str:
        """Half of the places of two vectors, in turns."""
        return ", ".join(f"{at}, {lanes + at}" for at in range(start, start + lanes // 2))

    return TEXT.substitute(
        lanes=lanes,
        bytes=4 * lanes,
        half_bytes=2 * lanes,
        double_bytes=8 * lanes,
        all_x=", ".join(["x"] * lanes),
        low=places([0, 1], [0, 1]),  # a0 b0 a1 b1
        high=places([2, 3], [2, 3]),  # a2 b2 a3 b3
        even_places=", ".join(str(at) for at in range(0, 2 * lanes, 2)),
        odd_places=", ".join(str(at) for at in range(1, 2 * lanes, 2)),
        first_half=interleaved(0),
        second_half=interleaved(lanes // 2),
        even=blocks([0, 1]),
        odd=blocks([2, 3]),
    )
