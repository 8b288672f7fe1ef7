"""C++ kernel of `tokenpass::bipartite_match`: sources and targets in tiles of registers."""

from __future__ import annotations

from collections.abc import Callable
from string import Template
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenpass.codegen.base import Parameters, Problem
from tokenpass.codegen.cpp.isa import ISAS
from tokenpass.codegen.cpp.template import POINTER, SIZE, STORED, CppTemplate
from tokenpass.codegen.cpp.vectors import prelude
from tokenpass.edits import Rejection
from tokenpass.errors import InternalError
from tokenpass.ops.bipartite_match import TINY, blocked_tokens

ROWS = {16: 6, 8: 2, 4: 2}
"""Sources of a tile, by lanes: with 4 targets the sums take 24 of 32 registers, or 8 of 16."""

SOURCE = Template("""\
#include <cmath>

// Best target (odd token) of each source (even token) by the mean of its heads' cosines:
// score[b, i] = max_j mean_h cos(keys[b, 2i, h], keys[b, 2j + 1, h]), partner[b, i] = lowest such j
typedef $stored T;
constexpr int64_t ROWS = $rows;
constexpr int64_t MOST_TILES = 16;
constexpr int64_t BLOCK_FLOATS = 1 << 16;  // of targets: 256 KiB, in the second-level cache
constexpr float MINUS_INFINITY = -__builtin_inff();

// One token's channels, each head divided by its norm, padded with zeros to whole vectors.
static void unit_token(const T *key, int64_t stride, float *unit, int64_t heads, int64_t width,
                       int64_t padded) {
    for (int64_t at = 0; at < heads * width; at++)
        if (stride != 1) unit[at] = one(key + at * stride);
    for (int64_t head = 0; head < heads; head++) {
        float *part = unit + head * width;
        const T *from = key + head * width;
        vf squares = all(0.0f);
        int64_t at = 0;
        for (; at + W <= width; at += W) {
            vf x = stride == 1 ? load(from + at) : load(part + at);
            squares += x * x;
            store(part + at, x);
        }
        if (at < width) {
            int64_t rest = width - at;
            vf x = stride == 1 ? load_part(from + at, rest) : load_part(part + at, rest);
            squares += x * x;
            store_part(part + at, x, rest);
        }
        v4f sum = sums(squares, squares, squares, squares);
        float norm = sqrtf(sum[0]);
        vf divisor = all(norm < $tiny ? $tiny : norm);
        for (at = 0; at + W <= width; at += W) store(part + at, load(part + at) / divisor);
        if (at < width)
            store_part(part + at, load_part(part + at, width - at) / divisor, width - at);
    }
    for (int64_t at = heads * width; at < padded; at++) unit[at] = 0.0f;
}

struct Best { v4f score[ROWS]; v4i at[ROWS]; };

// ROWS sources against targets `start` to `stop`. Sources beyond the last repeat it; so do targets,
// which then are forbidden. Each lane keeps the first best of every fourth target.
static void match_targets(const float *units, const float *forbidden, int64_t first,
                          int64_t sources, int64_t start, int64_t stop, int64_t padded,
                          Best &best) {
    const float *source[ROWS];
    for (int64_t row = 0; row < ROWS; row++) {
        int64_t place = first + row < sources ? first + row : sources - 1;
        source[row] = units + 2 * place * padded;
    }
    for (int64_t j = start; j < stop; j += 4) {
        const float *target[4];
        v4f allowed;
        for (int64_t lane = 0; lane < 4; lane++) {
            int64_t place = j + lane < stop ? j + lane : stop - 1;
            target[lane] = units + (2 * place + 1) * padded;
            allowed[lane] = j + lane < stop ? forbidden[place] : MINUS_INFINITY;
        }
        vf product[ROWS][4];
        for (int64_t row = 0; row < ROWS; row++)
            for (int64_t lane = 0; lane < 4; lane++) product[row][lane] = all(0.0f);
        for (int64_t at = 0; at < padded; at += W) {
            vf right[4];
            for (int64_t lane = 0; lane < 4; lane++) right[lane] = load(target[lane] + at);
#pragma GCC unroll 8
            for (int64_t row = 0; row < ROWS; row++) {
                vf left = load(source[row] + at);
#pragma GCC unroll 4
                for (int64_t lane = 0; lane < 4; lane++) product[row][lane] += left * right[lane];
            }
        }
        v4i index = v4i{0, 1, 2, 3} + (int32_t)j;
        for (int64_t row = 0; row < ROWS; row++) {
            v4f found = allowed + sums(product[row][0], product[row][1], product[row][2],
                                       product[row][3]);
            v4i better = found > best.score[row];  // strictly: equal stays with the lower target
            best.score[row] = better ? found : best.score[row];
            best.at[row] = better ? index : best.at[row];
        }
    }
}

// `tiles` times ROWS sources of one sample: targets pass by in blocks that stay in the cache.
static void match_sources(const float *units, const float *forbidden, int64_t first,
                          int64_t tiles, int64_t sources, int64_t targets, int64_t padded,
                          int64_t heads, float *score, int64_t *partner) {
    Best best[MOST_TILES];
    for (int64_t tile = 0; tile < tiles; tile++)
        for (int64_t row = 0; row < ROWS; row++) {
            best[tile].score[row] =
                v4f{MINUS_INFINITY, MINUS_INFINITY, MINUS_INFINITY, MINUS_INFINITY};
            best[tile].at[row] = v4i{0, 0, 0, 0};
        }
    int64_t block = (BLOCK_FLOATS / padded + 4) / 4 * 4;
    for (int64_t start = 0; start < targets; start += block) {
        int64_t stop = start + block < targets ? start + block : targets;
        for (int64_t tile = 0; tile < tiles; tile++)
            match_targets(units, forbidden, first + tile * ROWS, sources, start, stop, padded,
                          best[tile]);
    }
    for (int64_t row = 0; row < tiles * ROWS && first + row < sources; row++) {
        v4f scores = best[row / ROWS].score[row % ROWS];
        v4i places = best[row / ROWS].at[row % ROWS];
        float top = MINUS_INFINITY;
        int32_t at = 0;
        for (int64_t lane = 0; lane < 4; lane++)
            if (scores[lane] > top || (scores[lane] == top && places[lane] < at)) {
                top = scores[lane];
                at = places[lane];
            }
        score[first + row] = top / (float)heads;
        partner[first + row] = at;
    }
}

// forbidden [batch, targets] is 0, or -inf where a target may not be joined.
extern "C" __attribute__((visibility("default"))) int bipartite_match(
    const T *keys, const float *forbidden, float *units, float *score, int64_t *partner,
    int64_t batch, int64_t tokens, int64_t heads, int64_t width, int64_t stride_batch,
    int64_t stride_token, int64_t stride_channel, int64_t threads) {
    int64_t sources = (tokens + 1) / 2, targets = tokens / 2;
    int64_t padded = ((heads * width > 0 ? heads * width : 1) + W - 1) / W * W;
    int64_t tiles = (sources + ROWS - 1) / ROWS;
    int64_t together = batch * tiles / (4 * threads);  // tiles of one task
    together = together < 1 ? 1 : together > MOST_TILES ? MOST_TILES : together;
    int64_t tasks = (tiles + together - 1) / together;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t at = 0; at < batch * tokens; at++)
            unit_token(keys + at / tokens * stride_batch + at % tokens * stride_token,
                       stride_channel, units + at * padded, heads, width, padded);
#pragma omp for schedule(static)
        for (int64_t at = 0; at < batch * tasks; at++) {
            int64_t sample = at / tasks, tile = at % tasks * together;
            match_sources(units + sample * tokens * padded, forbidden + sample * targets,
                          tile * ROWS, tiles - tile < together ? tiles - tile : together, sources,
                          targets, padded, heads, score + sample * sources,
                          partner + sample * sources);
        }
    }
    return 0;
}
""")


class CppBipartiteMatch(CppTemplate):
    """Tokens are divided by their norms once; a similarity lives in registers alone.

    Lanes are channels, so that nothing is transposed: a tile's sums over lanes are taken four
    vectors at a time. Sums are float32 in a fixed order, whatever the thread count.
    """

    name: ClassVar[str] = "cpp_bipartite_match"
    operator: ClassVar[str] = "bipartite_match"
    any_threads: ClassVar[bool] = True

    def supports(self, problem: Problem) -> Rejection | None:
        keys = problem.tensor(0)
        if keys is None or keys.dtype not in STORED:
            given = None if keys is None else keys.dtype
            return Rejection("kernel_dtype", self.name, f"keys are {given}", "cast to float32")
        if keys.shape[1] is not None and keys.shape[1] >= 2**31:
            return Rejection("kernel_shape", self.name, f"{keys.shape[1]} tokens exceed 32 bits")
        return None

    def details(self, problem: Problem) -> Parameters:
        keys = problem.tensor(0)
        if keys is None:
            raise InternalError(f"{self.name}: a problem without keys was not rejected")
        return {"stored": STORED[keys.dtype]}

    def arguments(self, parameters: Parameters) -> tuple[Any, ...]:
        return (POINTER,) * 5 + (SIZE,) * 8

    def render(self, parameters: Parameters) -> str:
        isa = str(parameters["isa"])
        rows = ROWS[ISAS[isa].lanes]
        return prelude(isa) + SOURCE.substitute(parameters, rows=rows, tiny=f"{TINY}f")

    def bind(self, function: Callable[..., int], parameters: Parameters) -> Callable[..., Any]:
        lanes = ISAS[str(parameters["isa"])].lanes

        def launch(
            keys: Tensor,
            sizes: Tensor | None = None,
            protected: Tensor | None = None,
            heads: int = 1,
        ) -> tuple[Tensor, Tensor]:
            batch, tokens, channels = keys.shape
            shape = (batch, (tokens + 1) // 2)
            score = torch.empty(shape, dtype=torch.float32)
            partner = torch.empty(shape, dtype=torch.int64)
            if score.numel() == 0:
                return score, partner
            padded = -(-max(1, channels) // lanes) * lanes
            units = torch.empty(batch * tokens * padded, dtype=torch.float32)
            forbidden = torch.zeros(batch, tokens // 2, dtype=torch.float32)
            blocked = blocked_tokens(keys, sizes, protected)
            if blocked is not None:
                forbidden.masked_fill_(blocked[:, 1::2], -torch.inf)
            function(
                keys.data_ptr(),
                forbidden.data_ptr(),
                units.data_ptr(),
                score.data_ptr(),
                partner.data_ptr(),
                batch,
                tokens,
                heads,
                channels // heads,
                *keys.stride(),
                torch.get_num_threads(),
            )
            if blocked is not None:
                score.masked_fill_(blocked[:, 0::2], -torch.inf)
            return score, partner

        return launch
