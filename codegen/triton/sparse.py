"""The kernels that activation sparsity's operators are made of, as text: list, dots, sums, finish.

A product is two launches: `combine` gives each part of the list to a program of its own, which
writes float32 sums; `finish` adds the parts in their order and applies the epilogue. Sums thus have
one order for each length of list, there is no atomic addition and nothing to set to zero before.
"""

from __future__ import annotations

from collections.abc import Mapping
from string import Template

from tokenpass.codegen.base import Parameters
from tokenpass.codegen.packed import PROBES
from tokenpass.codegen.triton.sizes import power_of_two
from tokenpass.codegen.triton.template import AheadOfTime
from tokenpass.codegen.triton.texts import Inputs

PROGRAMS = 1056
"""Programs of a product: eight for each of an H100's 132 processors, two waves of what fits."""
SEGMENT_BYTES = 512
"""What a program reads of one row of the weight: below it, memory gives less than it could."""
LANES = 32
"""Rows of the weight that a program reads at once, when it has one row of values."""
SUMS = 4096
"""Products that a program of `listed_dots` holds: four loads in flight for each of 128 threads."""
FINISHED = 128
"""Columns of a program of `finish`."""

COMPACT = Template('''\
@triton.jit
def is_listed(value, threshold, threshold_step, column, inside):
    """Not "greater than the threshold": NaN is listed."""
    if HAS_THRESHOLD:
        limit = tl.load(threshold + column * threshold_step, mask=inside, other=0.0)
        return inside & ((tl.abs(value) <= limit) == 0)
    else:
        return inside & (value != 0.0)


@triton.jit
def listed_in_any_row($parameters threshold, threshold_step, rows, column, inside):
    found = inside & (column < 0)
    for row in range(rows):
        value = prologue($parameters row, column, inside)
        found = found | is_listed(value, threshold, threshold_step, column, inside)
    return found


@triton.jit
def mask_compact(
    $parameters threshold, threshold_step, index, kept, count, rows, entries
):
    """The list of a block of entries: the entries before it are read again, not waited for.

    What is not listed goes to the end, from the back: every place is written.
    """
    first = tl.program_id(0) * BLOCK_ENTRIES
    before = tl.zeros([BLOCK_BEFORE], tl.int32)
    for start in range(0, first, BLOCK_BEFORE):
        column = start + tl.arange(0, BLOCK_BEFORE)
        found = listed_in_any_row(
            $parameters threshold, threshold_step, rows, column, column < first
        )
        before += found.to(tl.int32)
    ahead = tl.sum(before, axis=0)
    column = first + tl.arange(0, BLOCK_ENTRIES)
    inside = column < entries
    found = listed_in_any_row($parameters threshold, threshold_step, rows, column, inside)
    number = found.to(tl.int32)
    hits = ahead + tl.cumsum(number, axis=0) - number
    place = tl.where(found, hits, entries - 1 - (column - hits))
    tl.store(index + place, column, mask=inside)
    for row in range(rows):
        value = prologue($parameters row, column, inside)
        here = is_listed(value, threshold, threshold_step, column, inside)
        tl.store(kept + row * entries + place, tl.where(here, value, 0.0), mask=inside)
    if tl.program_id(0) == tl.num_programs(0) - 1:
        tl.store(count, ahead + tl.sum(number, axis=0))


def launch_mask_compact(inputs, threshold, rows, entries):
    given, device = lines(inputs), inputs[0].device
    if threshold is not None:
        threshold = threshold.contiguous()
    index = torch.empty(entries, dtype=torch.int32, device=device)
    kept = torch.empty((rows, entries), dtype=torch.float32, device=device)
    count = torch.empty(1, dtype=torch.int32, device=device)
    mask_compact[(max(1, triton.cdiv(entries, $block_entries)),)](
        *given,
        threshold,
        0 if threshold is None or threshold.shape[0] == 1 else 1,
        index,
        kept,
        count,
        rows,
        entries,
        num_warps=$compact_warps,
    )
    return index, kept, count
''')

LISTED = """\
@triton.jit
def length_of(count, entries):
    return tl.minimum(tl.maximum(tl.load(count), 0), entries)
"""

DOTS = Template('''\
@triton.jit
def listed_dots(
    x, index, kept, count, weight, bias, $parameters out,
    rows, entries, width, x_row, weight_row,
):
    """out[:, j] = $formula: whole rows of the weight, in the list's order."""
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None, None]
    line = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    many = length_of(count, entries)
    for first in range(
        tl.program_id(0) * BLOCK_LIST, many, tl.num_programs(0) * BLOCK_LIST
    ):
        place = first + tl.arange(0, BLOCK_LIST)[None, :, None]
        k = tl.load(index + place, mask=place < many, other=-1)
        there = (k >= 0) & (k < entries)  # an index out of range reads nothing
        source = weight + k.to(tl.int64) * weight_row
        total = tl.zeros([ROWS, BLOCK_LIST, BLOCK_WIDTH], tl.float32)
        for start in range(0, width, BLOCK_WIDTH):
            channel = start + tl.arange(0, BLOCK_WIDTH)[None, None, :]
            inside = channel < width
            w = tl.load(source + channel, mask=there & inside, other=0.0).to(tl.float32)
            a = tl.load(x + row * x_row + channel, mask=(row < rows) & inside, other=0.0)
            total += a.to(tl.float32) * w
        y = tl.sum(total, axis=2)
        spot = first + tl.arange(0, BLOCK_LIST)[None, :]
        inside = (line < rows) & (spot < many)
        column = tl.load(index + spot, mask=spot < many, other=-1)
        known = inside & (column >= 0) & (column < entries)
        $result
        tl.store(out + line * entries + spot, value, mask=inside)


def launch_dots(x, index, kept, count, weight, bias, inputs):
    rows, (entries, width) = x.shape[0], weight.shape
    out = torch.empty((rows, entries), dtype=torch.float32, device=x.device)
    if out.numel() == 0:
        return out
    x, weight = rows_of(x), weight if weight.stride(1) == 1 else weight.contiguous()
    programs = min(triton.cdiv(entries, $block_list), $programs)
    listed_dots[(programs, triton.cdiv(rows, $rows))](
        x,
        index,
        kept,
        count,
        weight,
        bias,
        *lines(inputs),
        out,
        rows,
        entries,
        width,
        x.stride(0),
        weight.stride(0),
        num_warps=4,
    )
    return out
''')

PLAIN_RESULT = "value = epilogue(y, $parameters line, column, known)"
GATED_RESULT = """\
if HAS_BIAS:
            y += tl.load(bias + column, mask=known, other=0.0).to(tl.float32)
        value = tl.load(kept + line * entries + spot, mask=inside, other=0.0) * y"""

COMBINE = Template('''\
@triton.jit
def combine(index, kept, count, packed, parts, rows, entries, outputs, kept_row):
    """parts[s] = sum over part s of the list of kept[:, j] packed[index[j]], in rising j."""
    column = tl.program_id(0) * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)[None, None, :]
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)[:, None, None]
    lane = tl.arange(0, BLOCK_LANES)[None, :, None]
    part = tl.program_id(1)
    many = length_of(count, entries).to(tl.int64)
    begin = (many * part // PARTS).to(tl.int32)
    end = (many * (part + 1) // PARTS).to(tl.int32)
    total = tl.zeros([ROWS, BLOCK_LANES, BLOCK_OUTPUTS], tl.float32)
    place = begin + lane
    k = tl.load(index + place, mask=place < end, other=-1)
    v = tl.load(kept + row * kept_row + place, mask=(row < rows) & (place < end), other=0.0)
    for first in range(begin, end, BLOCK_LANES):
        there = (k >= 0) & (k < entries)  # an index out of range reads nothing
        source = packed + k.to(tl.int64) * outputs + column
        w = tl.load(source, mask=there & (column < outputs), other=0.0)
        # the next places, while the weights are on their way
        place = first + BLOCK_LANES + lane
        inside = (row < rows) & (place < end)
        k = tl.load(index + place, mask=place < end, other=-1)
        values = tl.load(kept + row * kept_row + place, mask=inside, other=0.0)
        total += v * w.to(tl.float32)
        v = values
    y = tl.sum(total, axis=1)
    column = tl.program_id(0) * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)[None, :]
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)[:, None]
    goal = parts + (part * rows + row).to(tl.int64) * outputs + column
    tl.store(goal, y, mask=(row < rows) & (column < outputs))


@triton.jit
def finish(
    parts, index, kept, count, weight, probes, $parameters out,
    rows, entries, outputs, kept_row, weight_row, weight_column, probe_count, probe_step,
):
    """The parts added in their order, and the epilogue.

    A weight that is not what its packed copy was made from (written through `.data`, or between
    replays of a CUDA graph: the host does not see it) is read itself, slowly.
    """
    row = tl.program_id(1)
    column = tl.program_id(0) * BLOCK_FINISHED + tl.arange(0, BLOCK_FINISHED)
    inside = column < outputs
    part = tl.arange(0, PARTS_ABOVE)
    source = parts + (part * rows + row).to(tl.int64)[:, None] * outputs + column[None, :]
    there = (part < PARTS)[:, None] & inside[None, :]
    probe = tl.arange(0, PROBES)
    asked = probe < probe_count
    known = tl.load(probes + probe, mask=asked, other=0)
    seen = tl.load(weight + probe.to(tl.int64) * probe_step, mask=asked, other=0.0)
    bits = tl.where(asked, seen.to(BITS, bitcast=True), 0)
    y = tl.sum(tl.load(source, mask=there, other=0.0), axis=0)
    if tl.sum((known != bits).to(tl.int32), axis=0) > 0:
        y = tl.zeros([BLOCK_FINISHED], tl.float32)
        for j in range(length_of(count, entries)):
            k = tl.load(index + j)
            v = tl.load(kept + row * kept_row + j)
            place = column.to(tl.int64) * weight_row + k.to(tl.int64) * weight_column
            within = inside & (k >= 0) & (k < entries)
            y += v * tl.load(weight + place, mask=within, other=0.0).to(tl.float32)
    result = epilogue(y, $parameters row, column, inside)
    tl.store(out + row * outputs + column, result.to(out.dtype.element_ty), mask=inside)


def launch_product(index, kept, count, weight, extras):
    rows, (outputs, entries) = kept.shape[0], weight.shape
    held = PACKED.packed(weight)
    out = torch.empty((rows, outputs), dtype=weight.dtype, device=weight.device)
    if out.numel() == 0:
        return out
    given = lines(extras)
    parts = torch.empty(($parts, rows, outputs), dtype=torch.float32, device=weight.device)
    columns = triton.cdiv(outputs, $block_outputs)
    combine[(columns, $parts, triton.cdiv(rows, $rows))](
        index,
        kept,
        count,
        held.copy,
        parts,
        rows,
        entries,
        outputs,
        kept.stride(0),
        num_warps=$combine_warps,
    )
    finish[(triton.cdiv(outputs, $block_finished), rows)](
        parts,
        index,
        kept,
        count,
        weight,
        held.probes,
        *given,
        out,
        rows,
        entries,
        outputs,
        kept.stride(0),
        weight.stride(0),
        weight.stride(1),
        held.probes.shape[0],
        held.step,
        num_warps=4,
    )
    return out
''')

HEAD = Template('''\
"""$about"""

import torch
import triton
import triton.language as tl

$imports
$constants

$mathematics
''')

IMPORTS = {
    "lines": "from tokenpass.codegen.triton.texts import lines",
    "lines, rows_of": "from tokenpass.codegen.triton.texts import lines, rows_of",
    "PACKED": "from tokenpass.codegen.packed import PACKED",
}
BITS = {"fp32": "int32", "fp16": "int16", "bf16": "int16"}
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


def constants_of(values: Mapping[str, object]) -> str:
    """Definitions of a kernel's constants."""
    return "\n".join(f"{name} = tl.constexpr({value})" for name, value in values.items())


def compact_sizes(entries: int | None) -> Parameters:
    """How `mask_compact` shares a vector of `entries` among programs."""
    block = power_of_two(entries, 16, 1024)
    before = power_of_two(entries, 16, 8192)
    return {
        "block_entries": block,
        "block_before": before,
        "compact_warps": max(1, min(16, before // 64)),
    }


def product_sizes(stored: str, rows: int, entries: int | None, outputs: int | None) -> Parameters:
    """How `combine` and `finish` share a weight [outputs, entries] among programs."""
    block = power_of_two(outputs, 16, SEGMENT_BYTES // BYTES[stored])
    lanes = max(1, LANES // rows)
    columns = 8 if outputs is None else max(1, -(-outputs // block))
    parts = max(1, PROGRAMS // columns)
    if entries is not None:
        parts = max(1, min(parts, entries // (2 * lanes)))
    return {
        "block_outputs": block,
        "block_lanes": lanes,
        "block_finished": power_of_two(outputs, 16, FINISHED),
        "parts": min(parts, 128),
        "combine_warps": 4,
    }


def dots_sizes(rows: int, width: int | None) -> Parameters:
    """How many rows of a weight [entries, width] `listed_dots` multiplies at once."""
    return {"block_list": 2, "block_width": power_of_two(width, 16, SUMS // (2 * rows))}


def product_constants(parameters: Parameters) -> dict[str, object]:
    """The constants of `combine` and `finish`."""
    parts = int(parameters["parts"])
    return {
        "BLOCK_OUTPUTS": parameters["block_outputs"],
        "BLOCK_LANES": parameters["block_lanes"],
        "BLOCK_FINISHED": parameters["block_finished"],
        "PARTS": parts,
        "PARTS_ABOVE": 1 << (parts - 1).bit_length(),
        "PROBES": PROBES,
        "BITS": f"tl.{BITS[str(parameters['stored'])]}",
    }


def compact_constants(parameters: Parameters) -> dict[str, object]:
    """The constants of `mask_compact`."""
    return {
        "BLOCK_ENTRIES": parameters["block_entries"],
        "BLOCK_BEFORE": parameters["block_before"],
        "HAS_THRESHOLD": parameters["has_threshold"],
    }


def compact_plan(parameters: Parameters, inputs: Inputs) -> AheadOfTime:
    """How `mask_compact` is compiled without a device."""
    given = bool(parameters["has_threshold"])
    return AheadOfTime(
        function="mask_compact",
        signature={
            **inputs.signature,
            "threshold": "*fp32" if given else "constexpr",
            "threshold_step": "constexpr",
            "index": "*i32",
            "kept": "*fp32",
            "count": "*i32",
            **dict.fromkeys(("rows", "entries"), "i32"),
        },
        constants={"threshold_step": 1} if given else {"threshold": None, "threshold_step": 0},
        divisible=(*inputs.names, "index", "kept", "count", "entries"),
        options={"num_warps": int(parameters["compact_warps"])},
    )


def product_plans(parameters: Parameters, inputs: Inputs) -> tuple[AheadOfTime, AheadOfTime]:
    """How `combine` and `finish` are compiled without a device."""
    stored = str(parameters["stored"])
    lists = {"index": "*i32", "kept": "*fp32", "count": "*i32"}
    sizes = dict.fromkeys(("rows", "entries", "outputs", "kept_row"), "i32")
    near = ("entries", "outputs", "kept_row")
    return (
        AheadOfTime(
            function="combine",
            signature={**lists, "packed": f"*{stored}", "parts": "*fp32", **sizes},
            constants={},
            divisible=("index", "kept", "packed", "parts", *near),
            options={"num_warps": int(parameters["combine_warps"])},
        ),
        AheadOfTime(
            function="finish",
            signature={
                "parts": "*fp32",
                **lists,
                "weight": f"*{stored}",
                "probes": f"*i{8 * BYTES[stored]}",
                **inputs.signature,
                "out": f"*{stored}",
                **sizes,
                "weight_row": "i32",
                "weight_column": "constexpr",
                **dict.fromkeys(("probe_count", "probe_step"), "i32"),
            },
            constants={"weight_column": 1},
            divisible=("parts", "index", "weight", "probes", *inputs.names, "out", *near),
            options={"num_warps": 4},
        ),
    )


def dots_constants(parameters: Parameters, *, bias: bool) -> dict[str, object]:
    """The constants of `listed_dots`."""
    return {
        "ROWS": parameters["rows"],
        "BLOCK_LIST": parameters["block_list"],
        "BLOCK_WIDTH": parameters["block_width"],
        "HAS_BIAS": bias,
    }


def dots_plan(
    parameters: Parameters, inputs: Inputs, *, gated: bool, bias: str | None
) -> AheadOfTime:
    """How `listed_dots` is compiled without a device; `gated`: it multiplies the list's values."""
    absent = ("kept",) * (not gated) + ("bias",) * (bias is None)
    signature = {
        "x": f"*{parameters['x_stored']}",
        "index": "*i32",
        "kept": "*fp32",
        "count": "*i32",
        "weight": f"*{parameters['stored']}",
        "bias": f"*{bias}",
        **inputs.signature,
        "out": "*fp32",
        **dict.fromkeys(("rows", "entries", "width", "x_row", "weight_row"), "i32"),
    }
    return AheadOfTime(
        function="listed_dots",
        signature=signature | dict.fromkeys(absent, "constexpr"),
        constants=dict.fromkeys(absent),
        divisible=("x", "index", "weight", *inputs.names, "out", "width", "x_row", "weight_row"),
        options={"num_warps": 4},
    )
