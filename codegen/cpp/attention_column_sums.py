"""C++ kernel of `tokenpass::attention_column_sums`: a few queries' scores at a time, in cache."""

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
// How much attention every key receives: out[k] = sum_q softmax over k of (score[q, k]).
typedef $stored T;
constexpr int64_t ROWS = $rows;  // queries whose products stay in registers
constexpr float MINUS_INFINITY = -__builtin_inff();

struct Call {
    const T *query, *keys;
    const float *bias;
    float *out, *scratch;
    float scale;
    int64_t heads, group, queries, tokens, width, padded, wide, causal;
    int64_t query_step[3], keys_step[3], bias_step[3];
};

static void widen_rows(const T *from, int64_t stride, float *to, int64_t rows, const Call &call) {
    for (int64_t row = 0; row < rows; row++)
        for (int64_t at = 0; at < call.wide; at += W) {
            int64_t left = call.width - at;
            const T *place = from + row * stride + at;
            store(to + row * call.wide + at, left >= W ? load(place) : load_part(place, left));
        }
}

// Scores of ROWS queries with 4 keys each; queries and keys beyond the last repeat it.
static void score_rows(const float *asked, int64_t queries, const float *keys, int64_t seen,
                       float *scores, const Call &call) {
    const float *left[ROWS];
    for (int64_t row = 0; row < ROWS; row++)
        left[row] = asked + (row < queries ? row : queries - 1) * call.wide;
    for (int64_t key = 0; key < seen; key += 4) {
        const float *right[4];
        for (int64_t k = 0; k < 4; k++)
            right[k] = keys + (key + k < call.tokens ? key + k : call.tokens - 1) * call.wide;
        vf total[ROWS][4];
        for (int64_t row = 0; row < ROWS; row++)
            for (int64_t k = 0; k < 4; k++) total[row][k] = all(0.0f);
        for (int64_t at = 0; at < call.wide; at += W) {
            vf there[4];
            for (int64_t k = 0; k < 4; k++) there[k] = load(right[k] + at);
#pragma GCC unroll 8
            for (int64_t row = 0; row < ROWS; row++) {
                vf here = load(left[row] + at);
#pragma GCC unroll 4
                for (int64_t k = 0; k < 4; k++) total[row][k] += here * there[k];
            }
        }
        for (int64_t row = 0; row < ROWS; row++) {
            v4f score = sums(total[row][0], total[row][1], total[row][2], total[row][3]);
            score *= call.scale;
            memcpy(scores + row * call.padded + key, &score, sizeof score);
        }
    }
}

// One sample and head: keys as floats, ROWS rows of scores and the sums, all in `scratch`.
static void sum_head(const Call &call, int64_t task) {
    int64_t sample = task / call.heads, head = task % call.heads;
    int64_t room = (call.tokens + ROWS) * call.wide + (ROWS + 1) * call.padded;
    float *keys = call.scratch + task * room, *asked = keys + call.tokens * call.wide;
    float *scores = asked + ROWS * call.wide, *onto = scores + ROWS * call.padded;
    widen_rows(call.keys + sample * call.keys_step[0] + head / call.group * call.keys_step[1],
               call.keys_step[2], keys, call.tokens, call);
    for (int64_t at = 0; at < call.padded; at++) onto[at] = 0.0f;
    for (int64_t first = 0; first < call.queries; first += ROWS) {
        int64_t rows = call.queries - first < ROWS ? call.queries - first : ROWS;
        int64_t seen = call.causal && first + rows < call.tokens ? first + rows : call.tokens;
        widen_rows(call.query + sample * call.query_step[0] + head * call.query_step[1] +
                       first * call.query_step[2],
                   call.query_step[2], asked, rows, call);
        score_rows(asked, rows, keys, seen, scores, call);
        for (int64_t row = 0; row < rows; row++) {
            float *score = scores + row * call.padded;
            int64_t end = call.causal && first + row + 1 < seen ? first + row + 1 : seen;
            if (call.bias) {
                const float *more = call.bias + sample * call.bias_step[0] +
                                    head * call.bias_step[1] + (first + row) * call.bias_step[2];
                for (int64_t at = 0; at < end; at++) score[at] += more[at];
            }
            for (int64_t at = end; at < (end + W - 1) / W * W; at++) score[at] = MINUS_INFINITY;
            softmax_row(score, end, onto);
        }
    }
    memcpy(call.out + task * call.tokens, onto, call.tokens * sizeof(float));
}

extern "C" __attribute__((visibility("default"))) int attention_column_sums(
    const T *query, const T *keys, const float *bias, float *out, float *scratch, float scale,
    int64_t batch, int64_t heads, int64_t group, int64_t queries, int64_t tokens, int64_t width,
    int64_t padded, int64_t wide, int64_t causal, int64_t query_batch, int64_t query_head,
    int64_t query_token, int64_t keys_batch, int64_t keys_head, int64_t keys_token,
    int64_t bias_batch, int64_t bias_head, int64_t bias_query, int64_t threads) {
    Call call = {query, keys, bias, out, scratch, scale, heads, group, queries, tokens, width,
                 padded, wide, causal, {query_batch, query_head, query_token},
                 {keys_batch, keys_head, keys_token}, {bias_batch, bias_head, bias_query}};
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t task = 0; task < batch * heads; task++) sum_head(call, task);
    return 0;
}
""")

ROWS = {16: 6, 8: 2, 4: 2}
"""Queries of a tile, by lanes: with 4 keys the sums take 24 of 32 registers, or 8 of 16."""


class CppAttentionColumnSums(CppTemplate):
    """A row's scores are used and forgotten, so one pass does: no score is computed twice.

    Heads are the tasks; one thread sums a head's queries in order, whatever the thread count.
    """

    name: ClassVar[str] = "cpp_attention_column_sums"
    operator: ClassVar[str] = "attention_column_sums"
    any_threads: ClassVar[bool] = True

    def supports(self, problem: Problem) -> Rejection | None:
        return not_float(self.name, problem.tensor(1))

    def details(self, problem: Problem) -> Parameters:
        return {"stored": float_type(self.name, problem.tensor(1))}

    def arguments(self, parameters: Parameters) -> tuple[Any, ...]:
        return (POINTER,) * 5 + (NUMBER,) + (SIZE,) * 19

    def render(self, parameters: Parameters) -> str:
        isa = str(parameters["isa"])
        rows = ROWS[ISAS[isa].lanes]
        return prelude(isa) + exponential.TEXT + SOURCE.substitute(parameters, rows=rows)

    def bind(self, function: Callable[..., int], parameters: Parameters) -> Callable[..., Any]:
        lanes = ISAS[str(parameters["isa"])].lanes
        rows = ROWS[lanes]

        def launch(
            query: Tensor, keys: Tensor, bias: Tensor | None, causal: bool, scale: float
        ) -> Tensor:
            batch, heads, queries, width = query.shape
            kv_heads, tokens = keys.shape[1:3]
            if batch * heads * tokens * queries == 0:
                return torch.zeros((batch, heads, tokens), dtype=torch.float32)
            out = torch.empty((batch, heads, tokens), dtype=torch.float32)
            query = query if query.stride(3) == 1 else query.contiguous()
            keys = keys if keys.stride(3) == 1 else keys.contiguous()
            if bias is not None:
                bias = bias.float()
                bias = bias if bias.stride(3) == 1 else bias.contiguous()
                bias = bias.expand(batch, heads, queries, tokens)
            padded, wide = -(-tokens // lanes) * lanes, -(-width // lanes) * lanes
            room = (tokens + rows) * wide + (rows + 1) * padded
            scratch = torch.empty(batch * heads * room, dtype=torch.float32)
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
                queries,
                tokens,
                width,
                padded,
                wide,
                int(causal),
                *query.stride()[:3],
                *keys.stride()[:3],
                *((0, 0, 0) if bias is None else bias.stride()[:3]),
                torch.get_num_threads(),
            )
            return out

        return launch
