"""C++ kernel of `tokenpass::attention_row`: one task per sample and head."""

from __future__ import annotations

from collections.abc import Callable
from string import Template
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokenpass.codegen.base import Parameters, Problem
from tokenpass.codegen.cpp import exponential
from tokenpass.codegen.cpp.isa import ISAS
from tokenpass.codegen.cpp.template import (
    NUMBER,
    POINTER,
    SIZE,
    CppTemplate,
    float_type,
    not_float,
)
from tokenpass.codegen.cpp.vectors import prelude
from tokenpass.edits import Rejection

SOURCE = Template("""\
// One query's attention: out[b, h] = softmax over keys of query[b, h] . keys[b, h] scale + bias.
typedef $stored T;

constexpr int64_t ROWS = $rows;  // heads that share their keys, taken together

// Products of ROWS queries [whole vectors, padded with zeros] with 4 keys; `left` of them are real.
static inline void products(const float *asked, int64_t wide, const T *keys, int64_t stride,
                            int64_t left, int64_t width, v4f *found) {
    const T *key[4];
    for (int64_t k = 0; k < 4; k++) key[k] = keys + (k < left ? k : left - 1) * stride;
    vf total[ROWS][4];
    for (int64_t row = 0; row < ROWS; row++)
        for (int64_t k = 0; k < 4; k++) total[row][k] = all(0.0f);
    for (int64_t at = 0; at < width; at += W) {
        vf there[4];
        for (int64_t k = 0; k < 4; k++)
            there[k] = at + W <= width ? load(key[k] + at) : load_part(key[k] + at, width - at);
#pragma GCC unroll 4
        for (int64_t row = 0; row < ROWS; row++) {
            vf here = load(asked + row * wide + at);
#pragma GCC unroll 4
            for (int64_t k = 0; k < 4; k++) total[row][k] += here * there[k];
        }
    }
    for (int64_t row = 0; row < ROWS; row++)
        found[row] = sums(total[row][0], total[row][1], total[row][2], total[row][3]);
}

// padded: room in a row of scores, whole vectors; wide: the same of channels. scratch has room for
// both for each head. group / ROWS tasks read the same keys.
extern "C" __attribute__((visibility("default"))) int attention_row(
    const T *query, const T *keys, const float *bias, float *out, float *scratch, float scale,
    int64_t batch, int64_t heads, int64_t group, int64_t tokens, int64_t width, int64_t padded,
    int64_t wide, int64_t query_batch, int64_t query_head, int64_t keys_batch, int64_t keys_head,
    int64_t keys_token, int64_t bias_batch, int64_t bias_head, int64_t threads) {
    threads = useful_threads(batch * heads * tokens * width, threads);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t task = 0; task < batch * heads / ROWS; task++) {
        int64_t sample = task * ROWS / heads, head = task * ROWS % heads;
        float *rows = scratch + task * ROWS * (padded + wide), *asked = rows + ROWS * padded;
        const T *there = keys + sample * keys_batch + head / group * keys_head;
        for (int64_t row = 0; row < ROWS; row++) {
            const T *from = query + sample * query_batch + (head + row) * query_head;
            for (int64_t at = 0; at < wide; at++)
                asked[row * wide + at] = at < width ? one(from + at) * scale : 0.0f;
        }
        for (int64_t key = 0; key < padded; key += 4) {
            v4f found[ROWS];
            int64_t left = tokens - key < 4 ? tokens - key : 4;
            if (left > 0)
                products(asked, wide, there + key * keys_token, keys_token, left, width, found);
            for (int64_t row = 0; row < ROWS; row++)
                for (int64_t k = 0; k < 4; k++)
                    rows[row * padded + key + k] = k < left ? found[row][k] : -__builtin_inff();
        }
        for (int64_t row = 0; row < ROWS; row++) {
            float *score = rows + row * padded;
            if (bias) {
                const float *more = bias + sample * bias_batch + (head + row) * bias_head;
                for (int64_t key = 0; key < tokens; key++) score[key] += more[key];
            }
            softmax_row(score, tokens, nullptr);
            memcpy(out + (task * ROWS + row) * tokens, score, tokens * sizeof(float));
        }
    }
    return 0;
}
""")


ROWS = {16: (4, 2), 8: (2,), 4: (2,)}
"""Heads of a tile where the group divides by it, by lanes; else 1."""


class CppAttentionRow(CppTemplate):
    """Keys are read where they are, once for several heads of a group; all else is float32."""

    name: ClassVar[str] = "cpp_attention_row"
    operator: ClassVar[str] = "attention_row"
    any_threads: ClassVar[bool] = True

    def supports(self, problem: Problem) -> Rejection | None:
        return not_float(self.name, problem.tensor(1))

    def details(self, problem: Problem) -> Parameters:
        query, keys = problem.tensor(0), problem.tensor(1)
        heads = query.shape[1] if query is not None else None
        shared = keys.shape[1] if keys is not None else None
        group = heads // shared if heads and shared else 1
        return {"stored": float_type(self.name, keys), "group": group}

    def arguments(self, parameters: Parameters) -> tuple[Any, ...]:
        return (POINTER,) * 5 + (NUMBER,) + (SIZE,) * 15

    def render(self, parameters: Parameters) -> str:
        isa = str(parameters["isa"])
        some = (rows for rows in ROWS[ISAS[isa].lanes] if int(parameters["group"]) % rows == 0)
        source = SOURCE.substitute(parameters, rows=next(some, 1))
        return prelude(isa) + exponential.TEXT + source

    def bind(self, function: Callable[..., int], parameters: Parameters) -> Callable[..., Any]:
        lanes = ISAS[str(parameters["isa"])].lanes

        def launch(query: Tensor, keys: Tensor, bias: Tensor | None, scale: float) -> Tensor:
            batch, heads, _, width = query.shape
            kv_heads, tokens = keys.shape[1:3]
            out = torch.empty((batch, heads, tokens), dtype=torch.float32)
            if out.numel() == 0:
                return out
            query = query if query.stride(3) == 1 else query.contiguous()
            keys = keys if keys.stride(3) == 1 else keys.contiguous()
            if bias is not None:
                bias = bias.float()
                bias = bias if bias.stride(2) == 1 else bias.contiguous()
                bias = bias.expand(batch, heads, tokens)
            padded, wide = -(-tokens // lanes) * lanes, -(-width // lanes) * lanes
            scratch = torch.empty(batch * heads * (padded + wide), dtype=torch.float32)
            function(
                query.data_ptr(),
                keys.data_ptr(),
                None if bias is None else bias.data_ptr(),
                out.data_ptr(),
                scratch.data_ptr(),
                scale,
                batch,
                heads,
                heads // kv_heads,
                tokens,
                width,
                padded,
                wide,
                query.stride(0),
                query.stride(1),
                *keys.stride()[:3],
                *((0, 0) if bias is None else bias.stride()[:2]),
                torch.get_num_threads(),
            )
            return out

        return launch
