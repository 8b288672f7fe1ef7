"""Pointwise expressions in C++: statements over vectors, and the mathematics that they call.

NaN and infinities pass as they do in torch. exp, log, tanh and erf are polynomials fitted for the
least relative error on their intervals (Remez), within 2 units in the last place of float32.
"""

from __future__ import annotations

from collections.abc import Callable
from string import Template

from tokenpass.ops.pointwise import Call, Computed, Expression, Input, Number, parts
from tokenpass.ops.pointwise_functions import FUNCTIONS

MATHEMATICS = Template("""\
static inline vf absolute(vf x) { return (vf)((vu)x & 0x7fffffff); }
static inline vf with_sign(vf x, vf sign) { return (vf)((vu)x | ((vu)sign & 0x80000000)); }
static inline vf relu(vf x) { return x < all(0.0f) ? all(0.0f) : x; }
static inline vf maximum(vf a, vf b) { return (a > b) | (a != a) ? a : b; }
static inline vf minimum(vf a, vf b) { return (a < b) | (a != a) ? a : b; }

static inline vf root(vf x) {
    float lanes[W];
    memcpy(lanes, &x, sizeof x);
    for (int64_t at = 0; at < W; at++) lanes[at] = __builtin_sqrtf(lanes[at]);
    memcpy(&x, lanes, sizeof x);
    return x;
}

template <int exponent> static inline vf power(vf x) {
    if constexpr (exponent < 0) return all(1.0f) / power<-exponent>(x);
    else if constexpr (exponent == 0) return all(1.0f);
    else if constexpr (exponent == 1) return x;
    else if constexpr (exponent % 2) return power<exponent - 1>(x) * x;
    else { vf half_way = power<exponent / 2>(x); return half_way * half_way; }
}

static inline vf power_of_two(vi exponent) { return (vf)((exponent + 127) << 23); }

// e^x = 2^n e^r, n whole, |r| <= ln(2) / 2; 2^n in two steps, so that results may be subnormal.
static inline vf exponential(vf x) {
    x = x > all(89.0f) ? all(89.0f) : x;  // infinity from here on; NaN is not greater
    x = x < all(-104.0f) ? all(-104.0f) : x;  // zero
    vf shifted = x * 0x1.715476p+0f + 0x1.8p+23f;  // to the nearest whole number
    vf n = shifted - 0x1.8p+23f;
    vi whole = (vi)shifted - 0x4b400000;
    vf r = (x - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;
    vf p = $exp;
    vf result = 1.0f + (r + r * r * p);
    vi first = whole >> 1;
    return result * power_of_two(first) * power_of_two(whole - first);
}

// log(x) = n log(2) + log(1 + f), x = 2^n (1 + f), sqrt(1/2) <= 1 + f < sqrt(2).
static inline vf logarithm(vf x) {
    vi small = x < all(0x1p-126f);
    vf scaled = small ? x * 0x1p25f : x;
    vi above = (vi)scaled - 0x3f3504f3;
    vi n = above >> 23;
    vf f = (vf)((vi)scaled - (n << 23)) - 1.0f;
    vf whole = __builtin_convertvector(small ? n - 25 : n, vf);
    vf s = f / (f + 2.0f), z = s * s, halved = 0.5f * f * f;
    vf p = $log;
    vf low = s * (halved + z * p) + whole * 0x1.7f7d1cp-20f;
    vf result = whole * 0x1.62e4p-1f + ((low - halved) + f);
    result = x == all(__builtin_inff()) ? x : result;
    result = x == all(0.0f) ? all(-__builtin_inff()) : result;
    return (x >= all(0.0f)) ? result : all(__builtin_nanf(""));
}

static inline vf hyperbolic(vf x) {
    vf size = absolute(x), z = x * x;
    vf p = $tanh;
    vf near = x + x * (z * p);
    vf far = with_sign(1.0f - 2.0f / (exponential(size + size) + 1.0f), x);
    return size < all(0.7f) ? near : far;
}

static inline vf error_function(vf x) {
    vf size = absolute(x), z = x * x;
    vf p = $erf;
    vf near = x + x * p;
    size = size > all(4.0f) ? all(4.0f) : size;
    vf q = $log_erfc;
    vf far = with_sign(1.0f - exponential(q), x);
    return size < all(1.0f) ? near : far;
}

static inline vf sigmoid(vf x) { return 1.0f / (exponential(-x) + 1.0f); }
static inline vf silu(vf x) { return x / (exponential(-x) + 1.0f); }
static inline vf gelu(vf x) {
    return x * 0.5f * (error_function(x * 0x1.6a09e6p-1f) + 1.0f);
}
static inline vf gelu_tanh(vf x) {
    vf inner = 0x1.988454p-1f * (x + 0x1.6e4e26p-5f * x * x * x);
    return 0.5f * x * (hyperbolic(inner) + 1.0f);
}

""")

COEFFICIENTS: dict[str, tuple[str, tuple[float, ...]]] = {
    # (e^r - 1 - r) / r^2 for |r| <= 0.35; error of e^r 3e-9
    "exp": ("r", (0.5, 0.16666512, 0.041666187, 0.0083695985, 0.0013951723)),
    # (2 atanh(s) / s - 2) / s^2 for s^2 <= 0.0296
    "log": ("z", (0.66666663, 0.4000034, 0.28536919, 0.2358999)),
    # (tanh(x) / x - 1) / x^2 for x^2 <= 0.49; error of tanh(x) / x 6e-10
    "tanh": (
        "z",
        (-0.33333325, 0.13332996, -0.053922124, 0.021575842, -0.0078921895, 0.0019018042),
    ),
    # erf(x) / x - 1 for x^2 <= 1.02; error 4e-11
    "erf": (
        "z",
        (
            0.12837917,
            -0.37612638,
            0.11283781,
            -0.026865376,
            0.0052208588,
            -0.00084812805,
            0.00011243722,
            -9.5982641e-06,
        ),
    ),
    # log(1 - erf(x)) for 1 <= x <= 4; error of erf(x) 2e-11
    "log_erfc": (
        "size",
        (
            0.00018846794,
            -1.1295803,
            -0.63321638,
            -0.1084221,
            0.02521034,
            -0.0042052846,
            0.00044147263,
            -2.1697611e-05,
        ),
    ),
}


def _polynomial(variable: str, coefficients: tuple[float, ...]) -> str:
    """Horner's scheme, as one expression over lines that are short enough."""
    text = f"all({coefficients[-1]!r}f)"
    for coefficient in reversed(coefficients[:-1]):
        text = f"({text} * {variable}\n        + {coefficient!r}f)"
    return text


def mathematics() -> str:
    """The functions that rendered statements may call."""
    return MATHEMATICS.substitute(
        {name: _polynomial(*entry) for name, entry in COEFFICIENTS.items()}
    )


def literal(value: float) -> str:
    """A float32 constant, exactly."""
    if value in (float("inf"), float("-inf")):
        return "__builtin_inff()" if value > 0 else "(-__builtin_inff())"
    return f"{value.hex()}f"


def statements(expression: Expression, read: Callable[[Input | Computed], str]) -> tuple[str, ...]:
    """C++ statements that end with the definition of `vf result`.

    `read` gives the vector that stands for an input or for y. Equal parts are computed once.
    """
    names: dict[Expression, str] = {}
    lines: list[str] = []
    for part in parts(expression):
        if part in names:
            continue
        if isinstance(part, Call):
            function = FUNCTIONS[part.function]
            given = [names[argument] for argument in part.arguments]
            if part.function == "pow" and isinstance(part.arguments[1], Number):
                given[1] = str(int(part.arguments[1].value))
            text = function.cpp.format(*given)
        else:
            text = f"all({literal(part.value)})" if isinstance(part, Number) else read(part)
        names[part] = f"t{len(names)}"
        lines.append(f"vf {names[part]} = {text};")
    return (*lines, f"vf result = {names[expression]};")
