"""Triton kernels of `tokenpass::sparse_linear`: each program makes the list of its own entries."""

from __future__ import annotations

from string import Template
from typing import ClassVar

import torch

from tokenpass.codegen.base import Parameters, Problem
from tokenpass.codegen.triton.mask_compact import tallest, widest
from tokenpass.codegen.triton.pointwise import MATHEMATICS
from tokenpass.codegen.triton.sparse import (
    FINISH,
    FOUND,
    HEAD,
    IMPORTS,
    combine_text,
    constants_of,
)
from tokenpass.codegen.triton.sparse_plans import (
    product_constants,
    product_sizes,
    slice_plans,
    slice_sizes,
)
from tokenpass.codegen.triton.template import AheadOfTime, TritonTemplate
from tokenpass.codegen.triton.texts import (
    Inputs,
    beyond,
    canonical,
    described,
    kind_of,
    rows_at_once,
)
from tokenpass.edits import Rejection

COMBINE = Template('''\
@triton.jit
def where_ranked(rank, place, value):
    """The value of the entry that is listed at a place; 0 where none is. Bits: NaN stays NaN."""
    return tl.sum(tl.where(rank == place, value, 0), axis=0)


@triton.jit
def combine(
    $parameters
    threshold, threshold_step, packed, parts, rows, entries, outputs,
):
    """parts[s] = sum over the listed k of slice s of v[:, k] packed[k], in rising k.

    The list of a slice is never stored: a lane asks all threads for the entry of its rank.
    """
$go_on    column = tl.program_id(0) * BLOCK_OUTPUTS + tl.arange(0, BLOCK_OUTPUTS)
    inside = column < outputs
    part = tl.program_id(1)
    row = tl.program_id(2) * ROWS
    begin = (part.to(tl.int64) * entries // PARTS).to(tl.int32)
    end = ((part.to(tl.int64) + 1) * entries // PARTS).to(tl.int32)
    $begin
    for start in range(begin, end, BLOCK_SLICE):
        k = start + tl.arange(0, BLOCK_SLICE)
        within = k < end
        found = listed_in_any_row(
            $parameters threshold, threshold_step, rows, k, within
        )
        number = found.to(tl.int32)
        rank = tl.where(found, tl.cumsum(number, axis=0) - 1, -1)
        many = tl.sum(number, axis=0)
        $values
        for first in range(0, many, LANES):
            $lanes
    goal = parts + (part * rows + row).to(tl.int64) * outputs + column
    $end


@triton.jit
def bits_in_row(
    $parameters threshold, threshold_step, row, rows, column, inside
):
    """What a row has at the entries of a slice, as bits; 0 where it is below the threshold."""
    there = inside & (row < rows)
    value = prologue($parameters row, column, there)
    listed = is_listed(value, threshold, threshold_step, column, there)
    return tl.where(listed, value, 0.0).to(tl.int32, bitcast=True)


@triton.jit
def weights_of(packed, k, is_there, outputs, column, inside):
    source = packed + k.to(tl.int64) * outputs + column
    return tl.load(source, mask=inside & is_there, other=0.0).to(tl.float32)
''')

GO_ON = "    tl.extra.cuda.gdc_launch_dependents()\n"
WAIT = "    tl.extra.cuda.gdc_wait()\n"
"""Programmatic dependent launch: programs of `finish` are placed while `combine` still runs, and
wait there for all that it writes. Gives the time between two launches back.
"""

LANE = {
    "place": "k{j} = where_ranked(rank, first + {j}, k)",
    "weight": ("w{j} = weights_of(packed, k{j}, first + {j} < many, outputs, column, inside)"),
    "value": "v{r}_{j} = where_ranked(rank, first + {j}, b{r}).to(tl.float32, bitcast=True)",
}

BY_ENTRIES = {
    "given": "$values\n    threshold, threshold_step,",
    "sizes": "",
    "unpacked": """\
for start in range(0, entries, 16):
            k = start + tl.arange(0, 16)
            found = listed_in_any_row(
                $values threshold, threshold_step, rows, k, k < entries
            )
            value = prologue($values row, k, found)
            v = tl.where(is_listed(value, threshold, threshold_step, k, found), value, 0.0)
            place = column.to(tl.int64)[None, :] * weight_row
            place += k.to(tl.int64)[:, None] * weight_column
            within = inside[None, :] & found[:, None]
            w = tl.load(weight + place, mask=within, other=0.0).to(tl.float32)
            y += tl.sum(v[:, None] * w, axis=0)""",
}
"""What `finish` is told of the values, and how it multiplies by the weight itself."""

LAUNCH = Template("""\
def launch(inputs, prologue, threshold, weight, extras, epilogue, density=1.0):
    rows = next((one.shape[0] for one in inputs if one.shape[0] != 1), 1)
    outputs, entries = weight.shape
    held = PACKED.held(weight)
    out = torch.empty((rows, outputs), dtype=weight.dtype, device=weight.device)
    if out.numel() == 0:
        return out
    values, given = lines(inputs), lines(extras)
    if threshold is not None:
        threshold = threshold.contiguous()
    step = 0 if threshold is None or threshold.shape[0] == 1 else 1
    parts = torch.empty(($parts, rows, outputs), dtype=torch.float32, device=weight.device)
    combine[(triton.cdiv(outputs, $block_outputs), $parts, triton.cdiv(rows, $rows))](
        *values,
        threshold,
        step,
        held.copy,
        parts,
        rows,
        entries,
        outputs,
        num_warps=$combine_warps,
    )
    finish[(triton.cdiv(outputs, $block_finished), rows)](
        parts,
        *values,
        threshold,
        step,
        weight,
        held.probes,
        *given,
        out,
        rows,
        entries,
        outputs,
        weight.stride(0),
        weight.stride(1),
        held.probes.shape[0],
        held.step,
        num_warps=4,
        $early
    )
    return out
""")


class TritonSparseLinear(TritonTemplate):
    """Two launches: the one that makes a list alone takes a tenth of a product's time.

    Slices of equal length have lists of nearly equal length; a list of all entries, which would
    have parts of equal length, is not worth a launch.
    """

    name: ClassVar[str] = "triton_sparse_linear"
    operator: ClassVar[str] = "sparse_linear"

    def supports(self, problem: Problem) -> Rejection | None:
        return beyond(self.name, problem, tallest(problem.tensors(0)))

    def parameters(self, problem: Problem) -> Parameters:
        inputs, weight = problem.tensors(0), problem.tensor(3)
        stored, rows = kind_of(self.name, weight), rows_at_once(tallest(inputs))
        outputs, entries = (None, widest(inputs)) if weight is None else weight.shape
        return {
            "inputs": described(inputs),
            "prologue": canonical(problem.text(1)),
            "has_threshold": problem.tensor(2) is not None,
            "stored": stored,
            "rows": rows,
            "extras": described(problem.tensors(4)),
            "epilogue": canonical(problem.text(5)),
            **slice_sizes(entries),
            **product_sizes(stored, rows, entries, outputs),
            "early": launches_early(),
        }

    def render(self, parameters: Parameters) -> str:
        inputs, extras = _both(parameters)
        constants = {
            "HAS_THRESHOLD": parameters["has_threshold"],
            "ROWS": parameters["rows"],
            "BLOCK_SLICE": parameters["block_slice"],
            **product_constants(parameters),
        }
        text = combine_text(parameters, LANE)
        values = [
            f"b{r} = bits_in_row(\n            {inputs.parameters}\n"
            f"            threshold, threshold_step, row + {r}, rows, k, within,\n        )"
            for r in range(int(parameters["rows"]))
        ]
        by_entries = {
            name: Template(one).substitute(values=inputs.parameters)
            for name, one in BY_ENTRIES.items()
        }
        early = bool(parameters["early"])
        sections = (
            HEAD.substitute(
                about="y = epilogue(sum over the listed k of v[:, k] packed[k]).",
                imports="\n".join((IMPORTS["PACKED"], IMPORTS["lines"])),
                constants=constants_of(constants),
                mathematics=MATHEMATICS,
            ),
            inputs.function(str(parameters["prologue"])),
            extras.function(str(parameters["epilogue"])),
            FOUND.substitute(parameters=inputs.parameters),
            COMBINE.substitute(
                parameters=inputs.parameters,
                go_on=GO_ON * early,
                begin=text["begin"],
                values="\n        ".join(values),
                lanes=text["lanes"].replace("\n", "\n    "),
                end=text["end"],
            ),
            FINISH.substitute(by_entries, parameters=extras.parameters, wait=WAIT * early),
            LAUNCH.substitute({**parameters, "early": "launch_pdl=True," * early}),
        )
        return "\n\n".join(sections)

    def ahead_of_time(self, parameters: Parameters) -> tuple[AheadOfTime, ...]:
        return slice_plans(parameters, *_both(parameters))


def launches_early() -> bool:
    """Whether the device can place a kernel's programs before the one in front has ended."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)


def _both(parameters: Parameters) -> tuple[Inputs, Inputs]:
    prologue, epilogue = str(parameters["inputs"]), str(parameters["extras"])
    return Inputs("prologue", prologue), Inputs("epilogue", epilogue)
