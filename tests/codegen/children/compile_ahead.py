"""Compiles Triton templates to machine code without a GPU; prints what each kernel needs.

Usage: compile_ahead.py [PART_OF_A_NAME]. Prints one JSON list with a record for each kernel,
architecture and variant. A process of its own, because triton cannot compile where it interprets.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tokenpass.codegen import TEMPLATES
from tokenpass.codegen.base import problem_of
from tokenpass.codegen.cache import load
from tokenpass.ops import OPERATORS

ARCHS = {
    torch.float32: (80, 90, 100),
    torch.bfloat16: (80, 90, 100),
    torch.float16: (90,),  # other conversions than bfloat16's, on every architecture alike
}
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def main(part=""):
    operators = {operator.name: operator for operator in OPERATORS}
    usage = []
    for template in TEMPLATES:
        if template.target != "triton" or part not in template.name:
            continue
        for dtype, archs in ARCHS.items():
            for parameters in variants(template, operators[template.operator], dtype):
                for plan in template.ahead_of_time(parameters):
                    for arch in archs:
                        found = resources(template, parameters, plan, arch)
                        usage.append({"dtype": str(dtype), **found})
    print(json.dumps(usage))


def variants(template, operator, dtype):
    """The distinct sources that examples of typical and of small sizes lead to.

    Operators with a text have more sources than can be compiled: one text for each size, and a
    step of decoding, one row of thousands.
    """
    texts = "str " in operator.schema
    sizes = [dict.fromkeys(operator.sizes, size) for size in (16, 64)]
    if operator.gradient == "refused":
        sizes.append({name: 1 if name == "rows" else 2048 for name in operator.sizes})
    found = {}
    for seed in range(1 if texts else 8):
        for at, size in enumerate(sizes):
            generator = torch.Generator().manual_seed(seed + 3 * at)
            arguments = operator.example(generator, dtype, **size)
            parameters = template.parameters(problem_of(operator.name, arguments))
            found[tuple(sorted(parameters.items()))] = parameters
    return [parameters for parameters in found.values() if texts or all_or_none(parameters)]


def all_or_none(parameters):
    """Whether all optional tensors are there, or none: what is between compiles the same parts."""
    optional = [value for name, value in parameters.items() if name.startswith("has_")]
    return all(optional) or not any(optional)


def resources(template, parameters, plan, arch):
    function = getattr(load(template, parameters), plan.function)
    names = list(plan.signature)
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in plan.divisible}
    source = ASTSource(
        fn=function,
        signature=dict(plan.signature),
        constexprs=dict(plan.constants),
        attrs=attributes,
    )
    kernel = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=dict(plan.options))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        report = subprocess.run(
            [CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    return {
        "kernel": template.name,
        "function": plan.function,
        "arch": arch,
        "parameters": dict(parameters),
        "registers": int(re.search(r"REG:(\d+)", report)[1]),
        "stack": int(re.search(r"STACK:(\d+)", report)[1]),
        "shared": kernel.metadata.shared,
        "threads": 32 * plan.options["num_warps"],
        "tensor_cores": bool(re.search(r"\b(mma\.sync|wgmma|tcgen05\.mma)", kernel.asm["ptx"])),
        "wants_tensor_cores": plan.tensor_cores,
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
