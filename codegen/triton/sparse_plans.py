"""How activation sparsity's kernels share their work, and how they compile without a device."""

from __future__ import annotations

from tokenpass.codegen.base import Parameters
from tokenpass.codegen.packed import PROBES
from tokenpass.codegen.triton.sizes import power_of_two
from tokenpass.codegen.triton.template import AheadOfTime
from tokenpass.codegen.triton.texts import Inputs

BITS = {"fp32": "int32", "fp16": "int16", "bf16": "int16"}
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
PROGRAMS = 2048
"""Programs of a product: about sixteen for each of an H100's 132 processors, all there at once."""
DOT_PROGRAMS = 1056
"""Programs that walk a list of rows in strides: eight for each processor."""
SEGMENT_BYTES = 512
"""What a program reads of one row of the weight: below it, memory gives less than it could."""
LANES = 16
"""Rows of the weight that a program of 32 threads has under way, when it has one row of values."""
MOST_PARTS = 128
"""Parts of a list: each costs a row of float32 sums, written and read."""
LEAST_PART = 32
"""Entries of a part: half of them active are the rows that a program has under way."""
SUMS = 4096
"""Products that a program of `listed_dots` holds: four loads in flight for each of 128 threads."""
FINISHED = 64
"""Most columns of a program of `finish`, which there are about 128 of: parts are read by all."""
SLICE = 128
"""Entries whose list a program makes for itself at a time: four for each of its threads."""


def compact_sizes(entries: int | None) -> Parameters:
    """How `mask_compact` shares a vector of `entries` among programs."""
    block = power_of_two(entries, 16, 1024)
    before = power_of_two(entries, 16, 8192)
    return {
        "block_entries": block,
        "block_before": before,
        "compact_warps": max(1, min(8, before // 256)),
    }


def product_sizes(stored: str, rows: int, entries: int | None, outputs: int | None) -> Parameters:
    """How `combine` and `finish` share a weight [outputs, entries] among programs."""
    block = power_of_two(outputs, 32, SEGMENT_BYTES // BYTES[stored])
    lanes = LANES if rows == 1 else LANES // 2
    columns = 8 if outputs is None else max(1, -(-outputs // block))
    parts = max(1, PROGRAMS // columns)
    if entries is not None:
        parts = max(1, min(parts, entries // LEAST_PART))
    return {
        "block_outputs": block,
        "lanes": lanes,
        "block_finished": power_of_two(None if outputs is None else outputs // 128, 16, FINISHED),
        "parts": min(parts, MOST_PARTS),
        "combine_warps": 1,
    }


def slice_sizes(entries: int | None) -> Parameters:
    """How many entries a program of `sparse_linear` tests at once."""
    return {"block_slice": power_of_two(entries, 16, SLICE)}


def dots_sizes(stored: str, rows: int, width: int | None) -> Parameters:
    """How many rows of a weight [entries, width] `listed_dots` multiplies at once."""
    return {"block_list": 2, "block_width": power_of_two(width, 16, SUMS // (BYTES[stored] * rows))}


def product_constants(parameters: Parameters) -> dict[str, object]:
    """The constants of `combine` and `finish`."""
    parts = int(parameters["parts"])
    return {
        "BLOCK_OUTPUTS": parameters["block_outputs"],
        "LANES": parameters["lanes"],
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
    blocks = dict.fromkeys(
        ("weight_block", "weight_size") * bool(parameters.get("in_blocks")), "i32"
    )
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
                **blocks,
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


def slice_plans(
    parameters: Parameters, inputs: Inputs, extras: Inputs
) -> tuple[AheadOfTime, AheadOfTime]:
    """How `sparse_linear`'s kernels, which make lists of their own, compile without a device."""
    stored, given = str(parameters["stored"]), bool(parameters["has_threshold"])
    values = {
        **inputs.signature,
        "threshold": "*fp32" if given else "constexpr",
        "threshold_step": "constexpr",
    }
    absent = {"threshold_step": 1} if given else {"threshold": None, "threshold_step": 0}
    sizes = dict.fromkeys(("rows", "entries", "outputs"), "i32")
    there = ("entries", "outputs", *inputs.names, *("threshold",) * given)
    return (
        AheadOfTime(
            function="combine",
            signature={**values, "packed": f"*{stored}", "parts": "*fp32", **sizes},
            constants=absent,
            divisible=("packed", "parts", *there),
            options={"num_warps": int(parameters["combine_warps"])},
        ),
        AheadOfTime(
            function="finish",
            signature={
                "parts": "*fp32",
                **values,
                "weight": f"*{stored}",
                "probes": f"*i{8 * BYTES[stored]}",
                **extras.signature,
                "out": f"*{stored}",
                **sizes,
                "weight_row": "i32",
                "weight_column": "constexpr",
                **dict.fromkeys(("probe_count", "probe_step"), "i32"),
            },
            constants={**absent, "weight_column": 1},
            divisible=("parts", "weight", "probes", *extras.names, "out", *there),
            options={"num_warps": 4},
        ),
    )
