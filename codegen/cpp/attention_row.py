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

// Four products of a query [whole vectors, padded with zeros] with keys; `left` of them are real.
static inline v4f products(const float *query, const T *keys, int64_t stride, int64_t left,
                           int64_t width) {
    const T *key[4];
    for (int64_t k = 0; k < 4; k++) key[k] = keys + (k < left ? k : left - 1) * stride;
    vf total[4] = {all(0.0f), all(0.0f), all(0.0f), all(0.0f)};
    int64_t at = 0;
    for (; at + W <= width; at += W) {
        vf asked = load(query + at);
        for (int64_t k = 0; k < 4; k++) total[k] += asked * load(key[k] + at);
    }
    if (at < width) {
        vf asked = load(query + at);
        for (int64_t k = 0; k < 4; k++) total[k] += asked * load_part(key[k] + at, width - at);
    }
    return sums(total[0], total[1], total[2], total[3]);
}

// padded: room in a row of scores, whole vectors; wide: the same of channels. scratch has room for
// one query and one row for each task.
extern "C" __attribute__((visibility("default"))) int attention_row(
    const T *query, const T *keys, const float *bias, float *out, float *scratch, float scale,
    int64_t batch, int64_t heads, int64_t group, int64_t tokens, int64_t width, int64_t padded,
    int64_t wide, int64_t query_batch, int64_t query_head, int64_t keys_batch, int64_t keys_head,
    int64_t keys_token, int64_t bias_batch, int64_t bias_head, int64_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t task = 0; task < batch * heads; task++) {
        int64_t sample = task / heads, head = task % heads;
        float *row = scratch + task * (padded + wide), *asked = row + padded;
        const T *from = query + sample * query_batch + head * query_head;
        const T *there = keys + sample * keys_batch + head / group * keys_head;
        for (int64_t at = 0; at < wide; at++) asked[at] = at < width ? one(from + at) : 0.0f;
        for (int64_t key = 0; key < padded; key += 4) {
            v4f score;
            for (int64_t k = 0; k < 4; k++) score[k] = -__builtin_inff();
            if (key < tokens) {
                int64_t left = tokens - key < 4 ? tokens - key : 4;
                v4f found = products(asked, there + key * keys_token, keys_token, left, width);
                for (int64_t k = 0; k < left; k++) score[k] = found[k] * scale;
                if (bias) {
                    const float *more = bias + sample * bias_batch + head * bias_head + key;
                    for (int64_t k = 0; k < left; k++) score[k] += more[k];
                }
            }
            memcpy(row + key, &score, sizeof score);
        }
        softmax_row(row, tokens, nullptr);
        memcpy(out + task * tokens, row, tokens * sizeof(float));
    }
    return 0;
}
""")


class CppAttentionRow(CppTemplate):
    """Keys are read once, where they are; scores and weights are float32."""

    name: ClassVar[str] = "cpp_attention_row"
    operator: ClassVar[str] = "attention_row"
    any_threads: ClassVar[bool] = True
    arguments: ClassVar[tuple[Any, ...]] = (POINTER,) * 5 + (NUMBER,) + (SIZE,) * 15

    def supports(self, problem: Problem) -> Rejection | None:
        return not_float(self.name, problem.tensor(1))

    def details(self, problem: Problem) -> Parameters:
        return {"stored": float_type(self.name, problem.tensor(1))}

    def render(self, parameters: Parameters) -> str:
        return prelude(str(parameters["isa"])) + exponential.TEXT + SOURCE.substitute(parameters)

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
