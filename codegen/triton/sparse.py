"""The kernels that activation sparsity's operators are made of, as text: list, dots, sums, finish.

A product is two launches: `combine` gives each part of the list to a program of its own, which
writes float32 sums; `finish` adds the parts in their order and applies the epilogue. Sums thus have
one order for each length of list, there is no atomic addition and nothing to set to zero before.
"""

from __future__ import annotations

from collections.abc import Mapping
from string import Template

from tokenpass.codegen.base import Parameters

FOUND = Template('''\
@triton.jit
def is_listed(value, threshold, threshold_step, column, inside):
    """Not "greater than the threshold": NaN is listed."""
    if HAS_THRESHOLD:
        limit = tl.load(threshold + column * threshold_step, mask=inside, other=0.0)
        return inside & ((tl.abs(value) <= limit) == 0)
    else:
        return inside & (value != 0.0)


@triton.jit
def listed_in_any_row(
    $parameters threshold, threshold_step, rows, column, inside
):
    found = inside & (column < 0)
    for row in range(rows):
        value = prologue($parameters row, column, inside)
        found = found | is_listed(value, threshold, threshold_step, column, inside)
    return found
''')

COMPACT = Template('''\
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
            $parameters
            threshold, threshold_step, rows, column, column < first,
        )
        before += found.to(tl.int32)
    ahead = tl.sum(before, axis=0)
    column = first + tl.arange(0, BLOCK_ENTRIES)
    inside = column < entries
    found = listed_in_any_row(
        $parameters threshold, threshold_step, rows, column, inside
    )
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

LISTED = '''\
@triton.jit
def length_of(count, entries):
    return tl.minimum(tl.maximum(tl.load(count), 0), entries)


@triton.jit
def weights_of(packed, k, entries, outputs, column, inside):
    """Part of a row of W^T; an index out of range reads nothing."""
    there = inside & (k >= 0) & (k < entries)
    return tl.load(packed + k.to(tl.int64) * outputs + column, mask=there, other=0.0)


@triton.jit
def value_of(kept, row, rows, place, end, kept_row):
    return tl.load(kept + row * kept_row + place, mask=(row < rows) & (place < end), other=0.0)
'''

DOTS = Template('''\
@triton.jit
def listed_dots(
    x, index, kept, count, weight, bias, $parameters out,
    rows, entries, width, x_row, weight_row,
):
    """out[:, j] = $formula, in the list's order."""
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
    """parts[s] = sum over part s of the list of kept[:, j] packed[index[j]], in rising j.

    Places are numbers, not blocks: a block of few would be held several times by each thread.
    """
    column = tl.program_id(0) * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    inside = column < outputs
    part = tl.program_id(1)
    row = tl.program_id(2) * ROWS
    many = length_of(count, entries).to(tl.int64)
    begin = (many * part // PARTS).to(tl.int32)
    end = (many * (part + 1) // PARTS).to(tl.int32)
    $begin
    for first in range(begin, end, LANES):
        $lanes
    goal = parts + (part * rows + row).to(tl.int64) * outputs + column
    $end
''')

FINISH = Template('''\
@triton.jit
def finish(
    parts, $given weight, probes,
    $parameters out, rows, entries, outputs,
    $sizes weight_row, weight_column, probe_count, probe_step,
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
$wait    y = tl.sum(tl.load(source, mask=there, other=0.0), axis=0)
    if tl.sum((known != bits).to(tl.int32), axis=0) > 0:
        y = tl.zeros([BLOCK_FINISHED], tl.float32)
        $unpacked
    result = epilogue(y, $parameters row, column, inside)
    tl.store(out + row * outputs + column, result.to(out.dtype.element_ty), mask=inside)
''')

BY_LIST = {
    "given": "index, kept, count,",
    "sizes": "kept_row,",
    "wait": "",
    "unpacked": """\
for j in range(length_of(count, entries)):
            k = tl.load(index + j)
            v = tl.load(kept + row * kept_row + j)
            place = column.to(tl.int64) * weight_row + k.to(tl.int64) * weight_column
            within = inside & (k >= 0) & (k < entries)
            y += v * tl.load(weight + place, mask=within, other=0.0).to(tl.float32)""",
}
"""What `finish` is told of a list, and how it multiplies by the weight itself."""

BY_BLOCKS = {
    **BY_LIST,
    "sizes": "kept_row, weight_block, weight_size,",
    "unpacked": BY_LIST["unpacked"].replace(
        "k.to(tl.int64) * weight_column",
        "(k % weight_size) * weight_column\n"
        "            place += (k // weight_size).to(tl.int64) * weight_block",
    ),
}
"""The same for a weight in blocks of `weight_size` entries."""

PRODUCT = Template("""\
def launch_product(index, kept, count, weight, extras):
    (rows, entries), outputs = kept.shape, weight.shape[-2]
    held = PACKED.held(weight)
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
        $blocks
        weight.stride(-2),
        weight.stride(-1),
        held.probes.shape[0],
        held.step,
        num_warps=4,
    )
    return out
""")

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


LISTED_LANE = {
    "place": "k{j} = tl.load(index + first + {j}, mask=first + {j} < end, other=-1)",
    "weight": "w{j} = weights_of(packed, k{j}, entries, outputs, column, inside).to(tl.float32)",
    "value": "v{r}_{j} = value_of(kept, row + {r}, rows, first + {j}, end, kept_row)",
}
"""How lane j finds its entry in a list, the entry's weights, and its value in row r."""


def product_text(parameters: Parameters, inputs: str) -> str:
    """The product by a list: `combine`, `finish`, and what launches them."""
    combine = COMBINE.substitute(combine_text(parameters, LISTED_LANE))
    blocks = bool(parameters.get("in_blocks"))
    finish = FINISH.substitute(BY_BLOCKS if blocks else BY_LIST, parameters=inputs)
    given = "weight.stride(0),\n        weight.shape[2]," if blocks else ""
    launch = PRODUCT.substitute(parameters, blocks=given).replace("        \n", "")
    return "\n\n".join((combine, finish, launch))


def combine_text(parameters: Parameters, lane: Mapping[str, str]) -> dict[str, str]:
    """The parts of `combine` for each row r and lane j: first all places, then weights, then sums.

    In this order, so that the loads of all lanes are under way at the same time.
    """
    rows, lanes = range(int(parameters["rows"])), range(int(parameters["lanes"]))
    places, weights = ([lane[part].format(j=j) for j in lanes] for part in ("place", "weight"))
    values = [lane["value"].format(r=r, j=j) for j in lanes for r in rows]
    sums = [f"y{r} += v{r}_{j} * w{j}" for j in lanes for r in rows]
    zeros = [f"y{r} = tl.zeros([BLOCK_OUTPUTS], tl.float32)" for r in rows]
    stores = [
        f"tl.store(goal + {r} * outputs, y{r}, mask=inside & (row + {r} < rows))" for r in rows
    ]
    return {
        "begin": "\n    ".join(zeros),
        "lanes": "\n        ".join((*places, *weights, *values, *sums)),
        "end": "\n    ".join(stores),
    }


def constants_of(values: Mapping[str, object]) -> str:
    """Definitions of a kernel's constants."""
    return "\n".join(f"{name} = tl.constexpr({value})" for name, value in values.items())
