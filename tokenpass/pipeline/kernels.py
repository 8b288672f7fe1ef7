"""Which generated kernel serves each call of our operators in a plan's graph, and its source."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node
from torch.fx.node import map_arg

from tokenpass.codegen import TEMPLATES
from tokenpass.codegen.base import problem_of
from tokenpass.codegen.cache import source_hash, source_of
from tokenpass.codegen.select import choose
from tokenpass.ops import OPERATORS
from tokenpass.pipeline.planned import Planned
from tokenpass.tracing import calls, fake_value, module_path


@dataclass(frozen=True)
class KernelUse:
    """One kernel of a graph. `nodes`: the calls that it serves; `modules`: where in the model.

    `template` is empty and `because` says why where the reference runs.
    """

    operator: str
    template: str
    source: str
    nodes: tuple[str, ...]
    modules: tuple[str, ...]
    because: str = ""

    @property
    def name(self) -> str:
        """The operator and the hash of the source, as its file is called."""
        return f"{self.operator}_{source_hash(self.source)}" if self.source else self.operator


def kernels_of(planned: Planned) -> tuple[KernelUse, ...]:
    """The kernels of a plan's graph, each source once, in graph order; nothing is compiled."""
    if planned.module is None:
        return ()
    found: dict[tuple[str, str, str, str], list[Node]] = {}
    for node in calls(planned.module.graph):
        operator = next((o for o in OPERATORS if o.overload is node.target), None)
        if operator is not None:
            found.setdefault(kernel_for(node, operator.name), []).append(node)
    return tuple(
        KernelUse(
            operator,
            template,
            source,
            tuple(node.name for node in nodes),
            tuple(dict.fromkeys(filter(None, map(module_path, nodes)))),
            because,
        )
        for (operator, template, source, because), nodes in found.items()
    )


def kernel_for(node: Node, operator: str) -> tuple[str, str, str, str]:
    """(operator, template, source, why there is none) of one call."""
    given = list(map_arg(node.args, fake_value))
    defaults = [argument.default_value for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    problem = problem_of(operator, [*given, *defaults[len(given) :]])
    choice = choose(problem, TEMPLATES)
    if choice.template is None:
        return operator, "", "", "; ".join(map(str, choice.rejections))
    parameters = choice.template.parameters(problem)
    return operator, choice.template.name, source_of(choice.template, parameters), ""
