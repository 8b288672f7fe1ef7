"""C++ text for weights of a softmax: exp of vectors of numbers that are zero or less."""

from __future__ import annotations

TEXT = """\
// exp(x) for x <= 0, to about one unit in the last place; below -87 it is 0, NaN stays NaN.
// x = n log 2 + r with |r| <= log(2) / 2: a polynomial of r (Cephes' coefficients for expf), whose
// exponent n is then added to. 12582912 = 1.5 * 2^23 rounds n to a whole number.
static inline vf exp_of_negative(vf x) {
    vf shifted = x * 1.44269504088896341f + 12582912.0f;
    vf n = shifted - 12582912.0f;
    vf r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    vf p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    vi exponent = ((vi)shifted - 0x4b400000) << 23;
    vf result = (vf)((vi)p + exponent);
    result = x < -87.0f ? all(0.0f) : result;
    return x == x ? result : x;
}

// Softmax of `count` scores where they stand; zeros where all are -inf. Adds the weights to `onto`
// where there is one. The row has room for whole vectors, filled with -inf.
static inline void softmax_row(float *row, int64_t count, float *onto) {
    vf highest = all(-__builtin_inff());
    for (int64_t at = 0; at < count; at += W) {
        vf x = load(row + at);
        highest = x > highest ? x : highest;  // passes NaN by: the sum meets it
    }
    float top = highest[0];
    for (int64_t lane = 1; lane < W; lane++) top = highest[lane] > top ? highest[lane] : top;
    vf safe = all(top == -__builtin_inff() ? 0.0f : top);
    vf sum = all(0.0f);
    for (int64_t at = 0; at < count; at += W) {
        vf weight = exp_of_negative(load(row + at) - safe);
        sum += weight;
        store(row + at, weight);
    }
    float total = sums(sum, sum, sum, sum)[0];
    vf share = all(total == 0.0f ? 0.0f : 1.0f / total);
    for (int64_t at = 0; at < count; at += W) {
        vf weight = load(row + at) * share;
        if (onto) store(onto + at, load(onto + at) + weight);
        else store(row + at, weight);
    }
}

"""
