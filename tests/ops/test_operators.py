"""The contract of every operator in `OPERATORS`."""

from __future__ import annotations

import pytest
import sympy
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode

from tokenpass.ops import (
    OPERATORS,
    attention_column_sums,
    attention_row,
    bipartite_match,
    farthest_point,
    gather_tokens,
    merge_tokens,
)
from tokenpass.ops.cost_record import OpCost

every_operator = pytest.mark.parametrize("operator", OPERATORS, ids=lambda o: o.name)
CHOOSING = tuple(o for o in OPERATORS if o.backward is None and o.gradient == "none")
LEARNING = tuple(operator for operator in OPERATORS if operator.backward is not None)
property_test = settings(
    deadline=None,
    max_examples=60,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def draw_arguments(data, operator):
    sizes = {
        name: data.draw(st.integers(span.start, span.stop - 1), label=name)
        for name, span in operator.sizes.items()
    }
    dtype = data.draw(st.sampled_from(operator.dtypes), label="dtype")
    seed = data.draw(st.integers(0, 2**16), label="seed")
    return operator.example(torch.Generator().manual_seed(seed), dtype, **sizes)


def arguments_of(operator, dtype=torch.float32, seed=0, **sizes):
    chosen = {name: span.stop // 2 for name, span in operator.sizes.items()} | sizes
    return operator.example(torch.Generator().manual_seed(seed), dtype, **chosen)


def flat(results):
    return results if isinstance(results, tuple) else (results,)


@every_operator
@property_test
@given(data=st.data())
def test_reference_agrees_with_the_oracle(operator, oracle, data):
    arguments = draw_arguments(data, operator)
    for call in (operator.reference, operator.overload):
        oracle(operator.name).assert_correct(arguments, call(*arguments))


@every_operator
def test_exact_cases(operator, oracle):
    known = oracle(operator.name)
    visible = getattr(known, "visible", lambda arguments, results: flat(results))
    for arguments, expected in known.exact_cases():
        results = visible(arguments, operator.reference(*arguments))
        for got, want in zip(results, expected, strict=True):
            assert got.tolist() == want


@every_operator
@property_test
@given(data=st.data())
def test_fake_kernel_gives_the_shapes_of_the_reference(operator, data):
    arguments = draw_arguments(data, operator)
    real = flat(operator.overload(*arguments))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = flat(operator.overload(*map(fake_of(mode), arguments)))
    assert [(x.shape, x.dtype, x.device) for x in fake] == [
        (x.shape, x.dtype, x.device) for x in real
    ]


def fake_of(mode):
    def fake(x):
        if isinstance(x, list):
            return list(map(fake, x))
        return mode.from_tensor(x) if isinstance(x, torch.Tensor) else x

    return fake


@every_operator
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_opcheck(operator, requires_grad, seed):
    arguments = arguments_of(operator, seed=seed)
    with torch.set_grad_enabled(operator.gradient == "none"):
        first_tensor(arguments).requires_grad_(requires_grad)
        torch.library.opcheck(operator.overload, arguments)


def first_tensor(arguments):
    """The first that can require grad, one in a list included."""
    flattened = (
        one for value in arguments for one in (value if isinstance(value, list) else [value])
    )
    return next(
        one for one in flattened if isinstance(one, torch.Tensor) and one.is_floating_point()
    )


@every_operator
def test_equal_calls_give_equal_results(operator):
    for dtype in operator.dtypes:
        arguments = arguments_of(operator, dtype)
        first, second = (flat(operator.overload(*arguments)) for _ in range(2))
        assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@every_operator
def test_cost_is_symbolic_and_positive(operator):
    mode = FakeTensorMode(shape_env=ShapeEnv())
    cost = operator.cost(*map(fake_of(mode), arguments_of(operator)))
    assert isinstance(cost, OpCost)
    symbols = cost.flops.free_symbols
    assert symbols, "fake tensors with symbolic sizes must give an expression of them"
    small, large = (cost.flops.subs(dict.fromkeys(symbols, size)) for size in (64, 128))
    assert 0 < small < large
    assert all(dim.subs(dict.fromkeys(symbols, 64)) > 0 for dim in cost.dims)
    real = operator.cost(*arguments_of(operator))
    assert isinstance(real.flops, sympy.Integer) and real.flops > 0


@pytest.mark.parametrize("operator", CHOOSING, ids=lambda o: o.name)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_gradients_pass_by(operator, backend):
    """Inputs that require grad neither raise nor receive a gradient through the operator."""
    arguments = arguments_of(operator)

    def loss(keys):
        results = flat(operator.overload(keys * 2, *arguments[1:]))
        assert not any(x.requires_grad for x in results)
        return (keys * 3).sum() + sum(torch.nan_to_num(x.float(), neginf=0).sum() for x in results)

    keys = arguments[0].clone().requires_grad_()
    torch.compile(loss, backend=backend, fullgraph=True)(keys).backward()
    assert torch.equal(keys.grad, torch.full_like(keys, 3.0))


@pytest.mark.parametrize("operator", LEARNING, ids=lambda o: o.name)
@pytest.mark.parametrize("seed", range(6))
def test_gradients_are_the_slopes(operator, seed):
    """Against finite differences, all inputs that have a gradient and each by itself."""
    sizes = {"batch": 1 + seed % 2, "tokens": (1, 5, 6)[seed % 3], "width": 3}
    arguments = arguments_of(operator, torch.float64, seed, **sizes)
    for learned in (operator.backward.inputs, *((place,) for place in operator.backward.inputs)):
        leaves = [arguments[place].clone().requires_grad_() for place in learned]

        def call(*values, learned=learned):
            given = dict(zip(learned, values, strict=True))
            return operator.overload(*(given.get(at, x) for at, x in enumerate(arguments)))

        assert torch.autograd.gradcheck(call, leaves)


@pytest.mark.parametrize("operator", LEARNING, ids=lambda o: o.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_gradients_are_those_of_eager(operator, dtype):
    arguments = arguments_of(operator, dtype, seed=1)
    torch._dynamo.reset()
    compiled = torch.compile(operator.overload, backend="aot_eager", fullgraph=True)
    found = []
    for call in (operator.overload, compiled):
        given = [x.clone() if isinstance(x, torch.Tensor) else x for x in arguments]
        leaves = [given[place].requires_grad_() for place in operator.backward.inputs]
        call(*given).sin().sum().backward()
        found.append([leaf.grad for leaf in leaves])
    for eager, traced, leaf in zip(*found, leaves, strict=True):
        assert eager.dtype == leaf.dtype and torch.equal(eager, traced) and eager.abs().sum() > 0


@pytest.mark.parametrize(
    "operator", [o for o in OPERATORS if o.gradient == "refused"], ids=lambda o: o.name
)
@pytest.mark.parametrize("backend", [None, "eager", "aot_eager"])
def test_gradients_are_refused(operator, backend):
    arguments = arguments_of(operator)
    call = operator.overload
    if backend is not None:
        call = torch.compile(call, backend=backend, fullgraph=True)
    want = flat(operator.overload(*arguments))
    first_tensor(arguments).requires_grad_()
    with pytest.raises(Exception, match=f"tokenpass::{operator.name} has no gradient"):
        call(*arguments)
    for quiet in (torch.no_grad, torch.inference_mode):
        torch._dynamo.reset()
        with quiet():
            found = flat(call(*arguments))
        assert all(torch.equal(x, y) for x, y in zip(found, want, strict=True))


@every_operator
def test_one_graph_serves_several_sizes(operator):
    torch._dynamo.reset()
    compiled = torch.compile(operator.overload, backend="aot_eager", dynamic=True, fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for scale in (2, 3, 4):
            sizes = {name: scale * (3 + place) for place, name in enumerate(operator.sizes)}
            arguments = arguments_of(operator, **sizes)
            got, want = flat(compiled(*arguments)), flat(operator.overload(*arguments))
            assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))


def test_cost_of_bipartite_match_by_hand():
    cost = bipartite_match.cost(torch.empty(2, 5, 7))
    pairs = 2 * 3 * 2
    assert cost.flops == 2 * pairs * 7 + pairs + 3 * 2 * 5 * 7
    assert [int(dim) for dim in cost.dims] == [2, 3, 2, 7]


def test_bipartite_match_in_tiles_equals_one_tile(monkeypatch):
    keys = torch.randn(5, 61, 8, generator=torch.Generator().manual_seed(1))
    protected = torch.randint(0, 61, (5, 9), generator=torch.Generator().manual_seed(2))
    score, partner = bipartite_match.reference(keys, None, protected, 2)
    for tile in (1, 100, 30 * 31, 2 * 30 * 31 + 5):
        monkeypatch.setattr(bipartite_match, "TILE", tile)
        tiled = bipartite_match.reference(keys, None, protected, 2)
        torch.testing.assert_close(tiled[0], score)
        assert torch.equal(tiled[1], partner)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bipartite_match_keeps_partners_in_range(value):
    keys = torch.randn(2, 9, 4)
    keys[0, 3] = value
    keys[1, 4] = value
    _, partner = bipartite_match.bipartite_match(keys)
    assert ((partner >= 0) & (partner < 4)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(3, 4),), "batch, tokens, channels"),
        ((torch.ones(1, 3, 4, dtype=torch.int64),), "floating point"),
        ((torch.ones(1, 3, 4), None, None, 3), "3 equal heads"),
        ((torch.ones(1, 3, 4), torch.ones(1, 2)), r"sizes must be floating point \[1, 3\]"),
        ((torch.ones(1, 3, 4), None, torch.zeros(2, 1, dtype=torch.int64)), "protected must be"),
        ((torch.ones(1, 3, 4), None, torch.zeros(1, 1)), "protected must be int64"),
    ],
)
def test_bipartite_match_refuses_what_does_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        torch.ops.tokenpass.bipartite_match(*arguments)


@every_operator
def test_cost_counts_the_calls_of_the_reference(operator):
    """A small problem, where starting them is what an operator costs."""

    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.calls += 1
            return function(*args, **kwargs or {})

    for arguments in small_arguments()[operator.name]:
        with Count() as count:
            operator.reference(*arguments)
        assert count.calls == operator.cost(*arguments).calls


def small_arguments():
    protected = torch.zeros(1, 1, dtype=torch.int64)
    score = torch.randn(1, 99)
    index, kept, limit = torch.arange(40).int(), torch.randn(1, 40), torch.ones(1)
    count, wide = torch.tensor([30]).int(), torch.randn(40, 50)
    x, y = torch.randn(1, 50), torch.randn(1, 50)
    query, keys = torch.randn(1, 6, 197, 64), torch.randn(1, 3, 197, 64)
    tokens, places, sizes = torch.randn(1, 197, 384), torch.arange(197)[None], torch.ones(1, 197)
    weight = wide.T.contiguous()
    gated = (x, [kept], "a0", limit, wide, wide[:, 0], weight, [y], "add(y, a0)")
    return {
        "attention_column_sums": [(query, keys, torch.zeros(1, 1, 1, 197), False, 0.125)],
        "attention_row": [(query[:, :, :1], keys, torch.zeros(1, 1, 197), 0.125)],
        "farthest_point": [(tokens, 20, protected[0], sizes)],
        "gather_tokens": [(tokens, places)],
        "merge_tokens": [(tokens, places // 2, sizes, 120)],
        "bipartite_match": [(torch.randn(1, 197, 384), None, protected, 6)],
        "merge_assignment": [(score, score.long() * 0, torch.ones(1, 197), protected, 120, False)],
        "mask_compact": [([kept], "relu(a0)", limit), ([kept], "a0", None)],
        "sparse_input_gemv": [
            (index, kept, count, weight, [y], "add(y, a0)"),
            (index, kept, count, weight, [], "y"),
        ],
        "sparse_output_gemv": [
            (x, index, count, wide, [kept], "mul(y, a0)"),
            (x, index, count, wide, [], "y"),
        ],
        "glu_neuron": [
            gated,
            (*gated[:3], None, wide, None, weight, [], "y"),
        ],
        "row_stats_relu": [(x, 0.5)],
        "sparse_linear": [
            ([kept], "relu(a0)", limit, weight, [y], "add(y, a0)"),
            ([kept], "a0", None, weight, [], "y"),
        ],
        "few_rows_linear": [
            ([kept, kept], "mul(a0, relu(a1))", weight, [y], "add(y, a0)"),
            ([kept], "a0", weight, [], "y"),
        ],
    }


def test_calls_that_depend_on_a_count_are_an_expression():
    """Each token that is chosen costs its steps, and the price says so for every level."""
    x = torch.randn(1, 197, 384)
    first = torch.zeros(1, dtype=torch.int64)
    few, many = (farthest_point.cost(x, count, first).calls for count in (10, 20))
    assert many - few == 10 * farthest_point.STEP_CALLS


@pytest.mark.parametrize("tile", [1, 400, 2**12])
def test_column_sums_in_tiles_equal_one_tile(monkeypatch, tile):
    arguments = arguments_of(attention_column_sums.OPERATOR, seed=3, tokens=31)
    assert arguments[0].shape[2] > 1
    whole = attention_column_sums.reference(*arguments)
    monkeypatch.setattr(attention_column_sums, "TILE", tile)
    torch.testing.assert_close(attention_column_sums.reference(*arguments), whole)


def test_column_sums_hold_a_tile_of_scores_and_no_more(monkeypatch):
    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **kwargs or {})
            self.elements = max(self.elements, *(x.numel() for x in flat(out)))
            return out

    monkeypatch.setattr(attention_column_sums, "TILE", 4000)
    query, keys = torch.randn(1, 2, 300, 4), torch.randn(1, 1, 200, 4)
    with Largest() as largest:
        attention_column_sums.reference(query, keys, None, True, 0.5)
    assert largest.elements == 4000


def test_column_sums_are_the_sums_of_rows():
    query, keys = torch.randn(2, 4, 9, 8), torch.randn(2, 2, 7, 8)
    bias = torch.randn(2, 1, 9, 7)
    rows = [
        attention_row.attention_row(query[:, :, [q]], keys, bias[:, :, q], scale=0.3)
        for q in range(9)
    ]
    sums = attention_column_sums.attention_column_sums(query, keys, bias, scale=0.3)
    torch.testing.assert_close(sums, torch.stack(rows).sum(0))


@pytest.mark.parametrize("causal", [False, True])
def test_nan_stays_in_its_row_and_head(causal):
    query, keys = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4)
    query[0, 0, 1, 2] = float("nan")
    row = attention_row.attention_row(query[:, :, 1:2], keys, scale=1.0)
    assert row[0, 0].isnan().all() and not row[0, 1].isnan().any()
    sums = attention_column_sums.attention_column_sums(query, keys, causal=causal, scale=1.0)
    seen = 2 if causal else 3
    assert sums[0, 0, :seen].isnan().all() and not sums[0, 1].isnan().any()


def test_farthest_points_of_unit_vectors_are_those_of_cosine_distance():
    """DivPrune's choice: largest cosine distance to the nearest one chosen."""
    x = torch.nn.functional.normalize(torch.randn(1, 60, 16, dtype=torch.float64), dim=-1)
    apart = 1 - x[0] @ x[0].T
    chosen = [5]
    while len(chosen) < 20:
        nearest = apart[:, chosen].amin(1)
        nearest[chosen] = -1
        chosen.append(int(nearest.argmax()))
    assert farthest_point.farthest_point(x, 20, torch.tensor([5])).tolist() == [chosen]


INDEX = torch.zeros(1, 2, dtype=torch.int64)
HEADS = torch.ones(1, 4, 1, 8)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("gather_tokens", (torch.ones(2, 3), INDEX), "batch, tokens, width"),
        ("gather_tokens", (torch.ones(3, 2, 1), INDEX.int()), r"index must be int64 \[3 or 1"),
        ("gather_tokens", (torch.ones(3, 2, 1), INDEX.expand(2, -1)), r"int64 \[3 or 1, count\]"),
        ("merge_tokens", (torch.ones(1, 2, 1), INDEX[0], INDEX.float(), 1), "segment must be"),
        ("merge_tokens", (torch.ones(1, 2, 1), INDEX, INDEX, 1), "shares must be floating"),
        ("attention_row", (torch.ones(1, 4, 2, 8), HEADS, None, 1.0), "one query .* got 2"),
        ("attention_row", (HEADS, torch.ones(1, 3, 5, 8), None, 1.0), "a multiple of"),
        ("attention_row", (HEADS, HEADS.half(), None, 1.0), "of one dtype"),
        ("attention_row", (HEADS, HEADS, torch.ones(1, 4, 2), 1.0), r"bias must be .*\(1, 4, 1\)"),
        ("attention_row", (HEADS, HEADS, torch.ones(1, 4, 1).bool(), 1.0), "bias must be floating"),
        ("attention_column_sums", (HEADS, HEADS[0], None, True, 1.0), "query .batch, heads"),
        ("attention_column_sums", (HEADS, HEADS, HEADS, True, 1.0), r"bias must be .*4, 1, 1"),
        ("farthest_point", (torch.ones(1, 2, 1), 3, INDEX[0, :1]), r"count must be in 0 \.\. 2"),
        ("farthest_point", (torch.ones(1, 2, 1), 1, INDEX), r"first must be int64 \[1 or 1\]"),
        ("farthest_point", (torch.ones(1, 2, 1), 1, INDEX[0, :1], INDEX), "sizes must be"),
    ],
)
def test_operators_refuse_what_does_not_fit(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(torch.ops.tokenpass, name)(*arguments)


@pytest.mark.parametrize("place", [-1, 3])
def test_places_out_of_range_raise_on_the_cpu(place):
    x, index = torch.ones(2, 3, 1), torch.tensor([[0, 1, 2], [0, place, 1]])
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        gather_tokens.gather_tokens(x, index)
    with pytest.raises(IndexError, match=r"segments must lie in 0 \.\. 2"):
        merge_tokens.merge_tokens(x, index, torch.ones(2, 3), 3)
