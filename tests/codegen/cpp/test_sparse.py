"""What the contract suite does not see: wrong lists, NaN, infinities, mixed dtypes, odd layouts."""

from __future__ import annotations

import warnings

import pytest
import torch

from tests.codegen.parity import assert_agree, oracle_of, visible
from tokenpass.codegen import TEMPLATES
from tokenpass.codegen.base import problem_of
from tokenpass.codegen.cpp.sparse_template import NO_MEMORY, require_memory
from tokenpass.codegen.dispatch import Dispatcher
from tokenpass.errors import CallError, FallbackWarning
from tokenpass.lower.kernels import installed_kernels
from tokenpass.ops import OPERATORS
from tokenpass.ops.mask_compact import mask_compact
from tokenpass.ops.sparse_input_gemv import sparse_input_gemv

OPERATOR = {operator.name: operator for operator in OPERATORS}
NAN, INF = torch.nan, torch.inf


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Calls an operator's C++ kernel through a dispatcher that must not give way."""
    found = {}

    def call(name, *arguments):
        if name not in found:
            templates = [t for t in TEMPLATES if t.operator == name and t.target == "cpp"]
            found[name] = Dispatcher(OPERATOR[name], templates)
        with warnings.catch_warnings():
            warnings.simplefilter("error", FallbackWarning)
            return found[name](*arguments)

    return call


def assert_agrees(run, name, *arguments):
    """The kernel's results, which agree with the reference's."""
    results = run(name, *arguments)
    assert_agree(OPERATOR[name], arguments, results, OPERATOR[name].reference(*arguments))
    return visible(oracle_of(name), arguments, results)


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize(
    ("index", "count", "message"),
    [
        (int32(0, 1, 4), 3, "an index is not within 0 to 2"),
        (int32(0, -1, 2), 2, "an index is not within 0 to 2"),
        (int32(0, 1, 2), 4, "count is 4, expected 0 to 3"),
        (int32(0, 1, 2), -1, "count is -1, expected 0 to 3"),
    ],
)
@pytest.mark.parametrize("name", ["sparse_input_gemv", "sparse_output_gemv"])
def test_a_list_that_is_out_of_range_is_refused(run, name, index, count, message):
    if name == "sparse_input_gemv":
        arguments = (index, torch.ones(1, 3), int32(count), torch.ones(4, 3), [], "y")
    else:
        arguments = (torch.ones(1, 4), index, int32(count), torch.ones(3, 4), [], "y")
    for call in (lambda *given: run(name, *given), OPERATOR[name].reference):
        with pytest.raises(CallError, match=message):
            call(*arguments)


def test_what_lies_behind_the_list_is_not_looked_at(run):
    index = int32(2, 99, -5)
    assert_agrees(
        run, "sparse_input_gemv", index, torch.ones(1, 3), int32(1), torch.ones(4, 3), [], "y"
    )
    assert_agrees(
        run, "sparse_output_gemv", torch.ones(1, 4), index, int32(1), torch.ones(3, 4), [], "y"
    )


@pytest.mark.parametrize("threshold", [None, torch.tensor([0.5]), torch.full((21,), 0.5)])
def test_nan_and_infinities_are_listed(run, threshold):
    x = torch.zeros(2, 21)
    x[0, [3, 19, 20]] = torch.tensor([NAN, INF, -INF])
    x[1, 7] = NAN
    listed = agree_with_nan(run, "mask_compact", [x], "a0", threshold)
    index, kept, count = tuple(listed)
    assert index.tolist() == [3, 7, 19, 20] and int(count) == 4
    assert kept[0].tolist()[1:] == [0.0, INF, -INF] and kept[0, 0].isnan() and kept[1, 1].isnan()


def test_a_threshold_that_is_nan_lists_all_and_an_infinite_one_only_nan(run):
    x = torch.tensor([[1.0, 2.0, NAN]])
    for limit, places in ((NAN, [0, 1, 2]), (INF, [2]), (-INF, [0, 1, 2])):
        index, *_ = agree_with_nan(run, "mask_compact", [x], "a0", torch.tensor([limit]))
        assert index.tolist() == places


def agree_with_nan(run, name, *arguments):
    results = run(name, *arguments)
    oracle, wanted = oracle_of(name), OPERATOR[name].reference(*arguments)
    seen = [visible(oracle, arguments, one) for one in (results, wanted)]
    for got, want in zip(*seen, strict=True):
        torch.testing.assert_close(got, want, equal_nan=True, rtol=1e-6, atol=1e-6)
    return seen[0]


def test_weights_that_are_listed_pass_nan_and_infinities_on(run):
    packed = torch.ones(12, 40)
    packed[1, 3], packed[5, 39], packed[7] = NAN, INF, NAN
    index, count = int32(*range(7), 0, 0, 0, 0, 0), int32(7)
    kept = torch.ones(2, 12)
    kept[1, 5] = 0.0  # listed because of the other row: 0 * inf is NaN, as in any product
    (y,) = agree_with_nan(run, "sparse_input_gemv", index, kept, count, packed.T, [], "y")
    assert y.isnan().nonzero().tolist() == [[0, 3], [1, 3], [1, 39]] and y[0, 39] == INF
    weight, x = packed.T.contiguous()[:12, :12], torch.ones(2, 12)
    agree_with_nan(run, "sparse_output_gemv", x, index, count, weight, [], "y")


def test_row_statistics_pass_nan_and_infinities_on(run):
    x = torch.randn(4, 37, generator=torch.Generator().manual_seed(0))
    x[1, 3], x[2, 36], x[3, 0] = NAN, INF, -INF
    (y,) = agree_with_nan(run, "row_stats_relu", x, 0.5)
    assert not y[0].isnan().any() and y[1:].isnan().any(1).all()


@pytest.mark.parametrize("rows", [1, 2, 8, 11, 17])
def test_dtypes_may_differ_and_rows_may_be_many(run, rows):
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 45, generator=generator).half()
    gate = torch.randn(rows, 70, generator=generator)
    up = torch.randn(70, 45, generator=generator).bfloat16()
    bias = torch.randn(70, generator=generator)
    packed = torch.randn(70, 130, generator=generator).half()
    residual = torch.randn(1, 130, generator=generator).bfloat16()
    limit = torch.tensor([0.9])
    assert_agrees(
        run, "glu_neuron", x, [gate, gate[:1].half()], "mul(square(relu(a0)), a1)", limit, up, bias,
        packed.T, [residual, torch.ones(rows, 1)], "add(mul(0.5, y), mul(a0, a1))",
    )  # fmt: skip
    index, kept, count = run("mask_compact", [gate], "relu(a0)", limit)
    assert_agrees(run, "sparse_input_gemv", index, kept, count, packed.T, [residual], "add(y, a0)")
    assert_agrees(run, "sparse_output_gemv", x, index, count, up, [gate.bfloat16()], "add(y, a0)")


def test_no_rows_no_columns(run):
    empty = (int32(0, 0), torch.ones(0, 2), int32(0))
    assert run("sparse_input_gemv", *empty, torch.ones(5, 2), [], "y").shape == (0, 5)
    none = (int32(0, 1), torch.ones(3, 2), int32(2))
    assert run("sparse_input_gemv", *none, torch.ones(0, 2), [], "y").shape == (3, 0)
    index, kept, count = run("mask_compact", [torch.ones(0, 4)], "a0", None)
    assert index.shape == (4,) and kept.shape == (0, 4) and int(count) == 0
    assert run("row_stats_relu", torch.ones(0, 0), 1.0).shape == (0, 0)
    nothing = (torch.ones(0, 3), int32(0, 1), int32(2), torch.ones(2, 3), [], "y")
    assert run("sparse_output_gemv", *nothing).shape == (0, 2)
    assert run("few_rows_linear", [torch.ones(0, 3)], "a0", torch.ones(2, 3), [], "y").shape[0] == 0
    assert run("few_rows_linear", [torch.ones(2, 3)], "a0", torch.ones(0, 3), [], "y").shape[1] == 0
    rows = ([torch.ones(0, 3)], "a0", None, torch.ones(2, 3), [], "y")
    assert run("sparse_linear", *rows).shape == (0, 2)


def test_weights_in_other_layouts(run):
    """A transposed view is copied, rows with a gap and repeated ones are read where they are."""
    generator = torch.Generator().manual_seed(0)
    kept = torch.randn(2, 30, generator=generator)
    index, count = torch.arange(30, dtype=torch.int32), int32(17)
    wide = torch.randn(70, 90, generator=generator)
    for packed in (wide[:30, :50], wide[:50, :30].T, wide[:1, :50].expand(30, 50), wide[::2][:30]):
        assert_agrees(run, "sparse_input_gemv", index, kept, count, packed.T, [], "y")
        x = torch.randn(3, packed.shape[1], generator=generator)
        assert_agrees(run, "sparse_output_gemv", x, index, count, packed, [], "y")
        assert_agrees(run, "sparse_output_gemv", x.T.contiguous().T, index, count, packed, [], "y")
    stepped = torch.arange(60, dtype=torch.int32)[::2] // 2
    assert_agrees(
        run, "sparse_input_gemv", stepped, kept.T.contiguous().T, count, wide[:30].T, [], "y"
    )


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("outputs", [1, 64, 129, 385, 1000])
def test_threads_share_all_columns_and_all_entries(run, threads, outputs):
    """Enough work for each thread, and sizes that do not divide."""
    generator = torch.Generator().manual_seed(outputs)
    kept, count = torch.randn(1, 997, generator=generator), int32(993)
    index = torch.arange(997, dtype=torch.int32)
    packed = torch.randn(997, outputs, generator=generator)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_agrees(run, "sparse_input_gemv", index, kept, count, packed.T, [], "y")
        x = torch.randn(2, outputs, generator=generator)
        assert_agrees(run, "sparse_output_gemv", x, index, count, packed, [], "y")
        gate = (torch.rand(2, 997, generator=generator) - 0.1).relu()
        assert_agrees(run, "glu_neuron", x, [gate], "a0", None, packed, None, packed.T, [], "y")
        assert_agrees(run, "row_stats_relu", torch.randn(5, 10_007, generator=generator), 0.3)
    finally:
        torch.set_num_threads(before)


def test_outputs_are_new_tensors(run):
    x = torch.randn(2, 20)
    index, kept, count = run("mask_compact", [x], "a0", None)
    packed = torch.eye(20)
    y = run("sparse_input_gemv", index, kept, count, packed.T, [], "y")
    assert torch.equal(y, x)
    y.zero_()
    assert x.ne(0).all() and packed.sum() == 20


def test_compiled_graphs_call_the_kernels():
    """A whole sparse layer in one graph; the kernels, not the references, run in it."""
    installed_kernels()

    def layer(x, weight, residual):
        index, kept, count = mask_compact([x], "relu(a0)")
        return sparse_input_gemv(index, kept, count, weight, [residual], "add(y, a0)") * 2

    x, weight, residual = torch.randn(1, 64), torch.randn(48, 64), torch.randn(1, 48)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        found = torch.compile(layer, backend="aot_eager", fullgraph=True)(x, weight, residual)
    want = (x.relu() @ weight.T + residual) * 2
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)


def test_says_what_is_too_large():
    template = next(t for t in TEMPLATES if t.name == "cpp_sparse_input_gemv")
    with torch.device("meta"):
        arguments = (
            torch.empty(2**31),
            torch.empty(1, 2**31),
            torch.empty(1),
            torch.empty(2**31, 1),
        )
    rejection = template.supports(problem_of("sparse_input_gemv", (*arguments, [], "y")))
    assert rejection is not None and rejection.code == "kernel_shape"


def test_dense_rows_pass_nan_and_infinities_on(run):
    x, weight = torch.ones(2, 37), torch.ones(20, 37)
    x[1, 36], weight[3, 0], weight[19, 35] = NAN, INF, -INF
    (y,) = agree_with_nan(run, "few_rows_linear", [x], "a0", weight, [], "y")
    assert y[1].isnan().all() and y[0, 3] == INF and y[0, 19] == -INF and y[0, 4] == 37


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 11])
def test_one_launch_and_dense_rows_take_any_layout_and_dtype(run, rows):
    generator = torch.Generator().manual_seed(rows)
    wide = torch.randn(140, 180, generator=generator)
    x, half = torch.randn(rows, 70, generator=generator), wide[:1, :70].half()
    residual = torch.randn(1, 90, generator=generator).bfloat16()
    for weight in (
        wide[:90, :70],
        wide[:70, :90].T,
        wide[:1, :70].expand(90, 70),
        wide[:90, ::2][:, :70],
        wide[:90, :70].bfloat16(),
        wide[:90, 1:71].half(),
    ):
        for given in (x, x.T.contiguous().T, torch.cat([x, x], 1)[:, ::2]):
            few = ([given, half], "mul(a0, relu(a1))", weight, [residual], "add(y, a0)")
            assert_agrees(run, "few_rows_linear", *few)
            texts = ("mul(a0, relu(a1))", torch.tensor([0.4]), weight, [residual], "add(y, a0)")
            assert_agrees(run, "sparse_linear", [given, half], *texts)


@pytest.mark.parametrize("name", ["few_rows_linear", "sparse_linear", "sparse_input_gemv"])
@pytest.mark.parametrize(("outputs", "entries"), [(1, 4000), (4000, 1), (130, 1500), (5000, 300)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_for_every_number_of_threads(run, name, outputs, entries, dtype):
    """Short rows of the packed weight, whose list is cut, and long ones, whose columns are."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, entries, generator=generator).to(dtype)
    x = torch.randn(2, entries, generator=generator).to(dtype)
    whole = (torch.arange(entries, dtype=torch.int32), x.float(), int32(entries))
    given = {
        "few_rows_linear": ([x], "a0", weight, [], "y"),
        "sparse_linear": ([x], "relu(a0)", None, weight, [], "y"),
        "sparse_input_gemv": (*whole, weight, [], "y"),
    }[name]
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 16):
            torch.set_num_threads(threads)
            results.append(assert_agrees(run, name, *given)[0])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, results[0]) for one in results)


def scale(weight):
    weight.mul_(2.0)


def scale_unseen(weight):
    weight.data.mul_(2.0)


def swap(weight):
    weight.data = torch.randn(weight.shape)


@pytest.mark.parametrize("change", [scale, scale_unseen, swap])
def test_a_changed_weight_is_noticed_by_the_kernels(run, change):
    weight, x, up = torch.randn(48, 70), torch.randn(1, 70), torch.randn(70, 70)
    index, kept, count = run("mask_compact", [x], "relu(a0)", None)
    for _ in range(2):
        assert_agrees(run, "sparse_linear", [x], "relu(a0)", None, weight, [], "y")
        assert_agrees(run, "sparse_input_gemv", index, kept, count, weight, [], "y")
        assert_agrees(run, "glu_neuron", x, [x], "relu(a0)", None, up, None, weight, [], "y")
        assert_agrees(run, "few_rows_linear", [x], "a0", weight, [], "y")
        with torch.no_grad():
            change(weight)


def test_no_memory_for_what_lies_between_is_said():
    with pytest.raises(MemoryError, match="tokenpass::glu_neuron"):
        require_memory("glu_neuron", NO_MEMORY)
    require_memory("glu_neuron", 0)
