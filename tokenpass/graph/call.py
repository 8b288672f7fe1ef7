"""One operator call as the rules see it: bound arguments, with tensors as labelled operands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from tokenpass.graph.axis import AxisTable, Cut, Factor, Label, Size
from tokenpass.graph.meaning import Meaning


@dataclass(frozen=True, eq=False)
class Operand:
    """A tensor argument: its label, its full shape, and its value where the graph is being run.

    `stream`: the value descends from the token stream's birth (else it is a side operand: a
    table, a mask, a parameter). `nonnegative`: provably no entry below zero. `meaning`: what its
    integers say about rows, if they do.
    """

    label: Label
    shape: tuple[Size, ...]
    value: Any = None
    stream: bool = False
    nonnegative: bool = False
    meaning: Meaning | None = None


class Runner(Protocol):
    """What a rule may ask of the interpreter that runs it on shortened operands."""

    def shape(self, label: Label) -> list[Size]:
        """The sizes that a value with this label has now."""
        ...

    def restore(self, operand: Operand, at: tuple[int, int]) -> Operand:
        """The operand with one factor back at full length."""
        ...

    def slots(self, cut: Cut, positions: tuple[Any, ...]) -> list[int] | None:
        """Where a cut by position holds these full-length positions; None if it does not."""
        ...


@dataclass(frozen=True, eq=False)
class Call:
    """An operator call. `bound` maps schema names to arguments, defaults included."""

    node: torch.fx.Node
    target: Any
    bound: Mapping[str, Any]
    out_shapes: tuple[tuple[Size, ...], ...]
    table: AxisTable
    key: Any = field(default=None)

    @property
    def operands(self) -> list[Operand]:
        """All tensor operands, in the order of the arguments."""
        leaves, _ = tree_flatten(dict(self.bound), is_leaf=is_operand)
        return [leaf for leaf in leaves if isinstance(leaf, Operand)]

    def __getitem__(self, name: str) -> Any:
        return self.bound[name]

    def get(self, name: str, default: Any = None) -> Any:
        """The argument of that name, or the default where the schema lacks it."""
        return self.bound.get(name, default)

    def dim(self, name: str = "dim", rank: int | None = None) -> int:
        """A dimension argument, made non-negative."""
        rank = len(self.operands[0].label) if rank is None else rank
        return self.bound[name] % rank

    def with_operands(self, operands: list[Operand]) -> Call:
        """The same call on other operands, given in the order of `operands`."""
        leaves, spec = tree_flatten(dict(self.bound), is_leaf=is_operand)
        new = iter(operands)
        leaves = [next(new) if isinstance(leaf, Operand) else leaf for leaf in leaves]
        return replace(self, bound=tree_unflatten(leaves, spec))

    def with_arguments(self, **changes: Any) -> Call:
        """The same call with some arguments changed."""
        return replace(self, bound={**self.bound, **changes})

    def fresh(self, place: object, size: Size, constant: bool = False) -> Factor:
        """A new axis born here; asking again with the same place gives the same axis."""
        name = f"{self.node.name}.{place}"
        return Factor(self.table.fresh((self.node, place), size, name, constant))

    def fresh_label(self, output: int = 0) -> Label:
        """A label in which every dimension is new (dimensions of size 1 count nothing)."""
        shape = self.out_shapes[output]
        return tuple(
            () if is_one(size) else (self.fresh((output, at), size),)
            for at, size in enumerate(shape)
        )

    def execute(self) -> Any:
        """Run the operator on the operands' values."""
        values = tree_map(
            lambda leaf: leaf.value if isinstance(leaf, Operand) else leaf,
            dict(self.bound),
            is_leaf=is_operand,
        )
        return run_bound(self.target, values)


def is_operand(leaf: object) -> bool:
    """Leaf test for pytree functions."""
    return isinstance(leaf, Operand)


def is_one(size: Size) -> bool:
    """Whether a size is the constant 1; never adds a guard."""
    return isinstance(size, int) and size == 1


def is_zero(size: Size) -> bool:
    """Whether a size is the constant 0; never adds a guard."""
    return isinstance(size, int) and size == 0


def bind(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by schema name, with defaults filled in."""
    bound: dict[str, Any] = {}
    for at, argument in enumerate(target._schema.arguments):
        if at < len(args) and not argument.kwarg_only:
            bound[argument.name] = args[at]
        elif argument.name in kwargs:
            bound[argument.name] = kwargs[argument.name]
        elif argument.has_default_value():
            bound[argument.name] = argument.default_value
    return bound


def run_bound(target: Callable[..., Any], bound: Mapping[str, Any]) -> Any:
    """Call an operator with arguments by schema name, positional ones first."""
    schema = target._schema  # type: ignore[attr-defined]
    args, kwargs, positional = [], {}, True
    for argument in schema.arguments:
        if argument.name not in bound:
            positional = False
            continue
        value = bound[argument.name]
        if argument.kwarg_only or not positional:
            plain = value is None or isinstance(value, bool | int | float | str)
            if plain and argument.has_default_value() and value == argument.default_value:
                continue
            kwargs[argument.name] = value
        else:
            args.append(value)
    return target(*args, **kwargs)
