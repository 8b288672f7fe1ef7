"""Every Triton template on a CUDA device: references, exact cases, real sizes, CUDA graphs."""

from __future__ import annotations

import warnings

import pytest
import torch

from tests.codegen.parity import OPERATOR, assert_agree, check_exact, check_grid, flat
from tokenpass.codegen import TEMPLATES
from tokenpass.codegen.dispatch import Dispatcher
from tokenpass.errors import FallbackWarning

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    # What drivers and other versions of torch and triton have to say is not the kernels' fault.
    pytest.mark.filterwarnings("default"),
]

TRITON = [template for template in TEMPLATES if template.target == "triton"]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MOST = 4
"""Cases of each template and dtype: each has kernels of its own to compile."""
SPANS = {
    "batch": (1, 3),
    "tokens": (0, 1, 7, 131, 300),
    "width": (1, 65, 128),
    "rows": (1, 3, 9),
    "entries": (0, 1, 130, 1500),
    "outputs": (1, 33, 300),
    "columns": (1, 5, 131, 2048),
}
DECODING = {"rows": 1, "entries": 4096, "outputs": 2048, "width": 2048, "columns": 16384}
WEIGHT = {"sparse_linear": 3, "sparse_input_gemv": 3, "glu_neuron": 6}
"""Where the weight stands of which a second copy is kept."""

every_template = pytest.mark.parametrize("template", TRITON, ids=lambda t: t.name)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
with_copies = pytest.mark.parametrize("name", WEIGHT)


def on_gpu(value):
    """The same numbers in the same layout on the device."""
    if isinstance(value, list | tuple):
        return [on_gpu(one) for one in value]
    if not isinstance(value, torch.Tensor):
        return value
    if value.numel() == 0:
        return value.cuda()
    storage = torch.empty(0, dtype=value.dtype).set_(value.untyped_storage())
    return storage.cuda().as_strided(value.shape, value.stride(), value.storage_offset())


def kernel_of(name):
    """The operator by its Triton kernel; a reference that stands in is an error."""
    template = next(t for t in TRITON if t.operator == name)
    call = Dispatcher(OPERATOR[name], (template,))

    def run(*arguments):
        with warnings.catch_warnings():
            warnings.simplefilter("error", FallbackWarning)
            return call(*arguments)

    return run


def through_gpu(name):
    """The kernel for arguments in main memory."""
    run = kernel_of(name)

    def there_and_back(*arguments):
        results = run(*on_gpu(arguments))
        if isinstance(results, tuple):
            return tuple(one.cpu() for one in results)
        return results.cpu()

    return there_and_back


def first_values(arguments):
    """What a call's list is made of; of a call that is given a list, the values in it."""
    lists = [one for one in arguments[:2] if isinstance(one, list)]
    return lists[0][0] if lists else arguments[1]


def decoding_example(name, seed=5, **others):
    """A step of decoding, with a seed whose lists are neither empty nor full."""
    operator = OPERATOR[name]
    sizes = {size: {**DECODING, **others}[size] for size in operator.sizes}
    return operator.example(torch.Generator().manual_seed(seed), torch.bfloat16, **sizes)


@every_template
@every_dtype
def test_agrees_with_references(template, dtype):
    operator = OPERATOR[template.operator]
    assert check_grid(through_gpu(operator.name), operator, dtype, MOST, SPANS) > 6


@every_template
@every_dtype
def test_exact_cases(template, dtype):
    assert check_exact(through_gpu(template.operator), OPERATOR[template.operator], dtype) > 1


SPARSE = [t.operator for t in TRITON if OPERATOR[t.operator].gradient == "refused"]


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize("rows", [1, 5])
def test_real_sizes(name, rows):
    arguments = decoding_example(name, rows=rows)
    wanted = OPERATOR[name].reference(*arguments)
    assert_agree(OPERATOR[name], arguments, through_gpu(name)(*arguments), wanted)


def seen(name, arguments, results):
    """Results without what lies behind the list."""
    cut = None if name != "sparse_output_gemv" else int(arguments[2])
    return [one[..., :cut] for one in flat(results)]


@pytest.mark.parametrize("name", SPARSE)
def test_same_bits_again(name):
    arguments, run = on_gpu(decoding_example(name)), kernel_of(name)
    first = [one.clone() for one in seen(name, arguments, run(*arguments))]
    for _ in range(20):
        again = seen(name, arguments, run(*arguments))
        assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))


@pytest.mark.parametrize("name", SPARSE)
def test_nothing_waits_for_the_device(name):
    arguments, run = on_gpu(decoding_example(name)), kernel_of(name)
    first = run(*arguments)  # compiles, packs
    torch.cuda.set_sync_debug_mode("error")  # whoever waits raises
    try:
        again = run(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    pairs = zip(seen(name, arguments, first), seen(name, arguments, again), strict=True)
    assert all(torch.equal(x, y) for x, y in pairs)


@with_copies
def test_replays_follow_their_inputs_and_weights(name):
    """In a CUDA graph no host looks: the list's length and a changed weight are the device's."""
    arguments, run = on_gpu(decoding_example(name)), kernel_of(name)
    values, weight = first_values(arguments), arguments[WEIGHT[name]]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run(*arguments)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        results = run(*arguments)
    for change in (values, weight):
        change.mul_(-2)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(results, run(*arguments)) or change is weight
        assert_close_to_reference(name, arguments, results)


@with_copies
def test_captured_at_once(name):
    """A weight of which there is no copy yet: nothing that is only recorded is kept."""
    arguments, run = on_gpu(decoding_example(name)), kernel_of(name)
    run(*on_gpu(decoding_example(name)))  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run(*arguments)
    assert_close_to_reference(name, arguments, run(*arguments))
    graph.replay()
    torch.cuda.synchronize()
    assert_close_to_reference(name, arguments, results)


@with_copies
def test_writes_through_data_are_seen(name):
    arguments, run = on_gpu(decoding_example(name)), kernel_of(name)
    before = run(*arguments).clone()
    arguments[WEIGHT[name]].data.mul_(-3)
    results = run(*arguments)
    assert not torch.equal(results, before)
    assert_close_to_reference(name, arguments, results)


def assert_close_to_reference(name, arguments, results):
    here = [
        [each.cpu() for each in one]
        if isinstance(one, list)
        else one.cpu()
        if isinstance(one, torch.Tensor)
        else one
        for one in arguments
    ]
    assert_agree(OPERATOR[name], here, results.cpu(), OPERATOR[name].reference(*here))
