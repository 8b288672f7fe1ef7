"""The harness notices wrong rules: each mutant below must fail on some example of its overload."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch

from tokenpass.graph import attention_rule
from tokenpass.graph.attention_rule import Attention
from tokenpass.graph.axis_rules import AXIS_RULES, LINEAR, PLAIN
from tokenpass.graph.rules_apart import Factory, Like, Lookup, Normalise, Project
from tokenpass.graph.rules_layout import Concatenate, Expand, Permute, Reshape
from tokenpass.graph.rules_mixing import Contract, Reduce, Softmax
from tokenpass.graph.rules_position import Along, Gather, Parts, Read
from tokenpass.rewrite.reduction import Reduction

from .rule_examples import EXAMPLES
from .rule_harness import check
from .rule_language import T, ex
from .rule_trial import CLAIMS, draw_trial

aten = torch.ops.aten


def backwards(call):
    """The inverse of `permute`'s order."""
    order = [dim % len(call["dims"]) for dim in call["dims"]]
    return [order.index(at) for at in range(len(order))]


def no_dims(call):
    """Claims that no dimension is mixed."""
    return []


@dataclass(frozen=True)
class Deaf(Contract):
    """Never weighs by the sizes."""

    def execute(self, call, outs, runner):
        return call.execute()


@dataclass(frozen=True)
class Plain(Softmax):
    """Forgets the log sizes."""

    def execute(self, call, outs, runner):
        return call.execute()


@dataclass(frozen=True)
class Intensive(Softmax):
    """Forgets that a merged token's probability is a sum."""

    def infer(self, call):
        return (call.operands[0].label,)


@dataclass(frozen=True)
class Uneven(Attention):
    """Forgets to cut values like keys."""

    def targets(self, call, outs):
        targets = super().targets(call, outs)
        targets[2] = call.operands[2].label
        return targets


@dataclass(frozen=True)
class Unmasked(Attention):
    """Leaves the mask as it is."""

    def targets(self, call, outs):
        targets = super().targets(call, outs)
        targets[3:] = [operand.label for operand in call.operands[3:]]
        return targets


@dataclass(frozen=True)
class Literal(Reshape):
    """Uses the shape that the graph was captured with."""

    def execute(self, call, outs, runner):
        return call.execute()


@dataclass(frozen=True)
class Alone(Lookup):
    """Loses the tokens of the indices."""

    def infer(self, call):
        return (call.fresh_label(),)


MUTANTS = {
    aten.transpose.int: [Permute(lambda call: list(range(len(call.operands[0].label)))), LINEAR],
    aten.permute.default: [Permute(backwards), Like()],
    aten.movedim.int: [Permute(lambda call: list(range(len(call.operands[0].label))))],
    aten.t.default: [Like()],
    aten.view.default: [Like(), Literal()],
    aten.flatten.using_ints: [Like()],
    aten.expand.default: [Like(), Reshape()],
    aten.repeat.default: [Like(), Expand()],
    aten.linear.default: [PLAIN, Like(), Contract()],
    aten.matmul.default: [PLAIN, Deaf(), Project()],
    aten.mm.default: [Deaf(), Project()],
    aten.bmm.default: [Deaf()],
    aten.addmm.default: [Contract(), Deaf(first=1)],
    aten.conv1d.default: [PLAIN, Project()],
    aten.conv2d.default: [Like()],
    aten.scaled_dot_product_attention.default: [Uneven(), Unmasked(), PLAIN, Like()],
    aten.softmax.int: [Plain(), Intensive(), PLAIN, Normalise(no_dims)],
    aten.mean.dim: [Reduce("max"), Reduce("sum"), PLAIN],
    aten.mean.default: [Reduce("sum")],
    aten.sum.dim_IntList: [Reduce("max"), Reduce("mean")],
    aten.amax.default: [Reduce("sum"), Reduce("mean")],
    aten.any.dim: [Reduce("mean")],
    aten.var.correction: [Reduce("mean"), Reduce("max")],
    aten.var.dim: [Reduce("sum")],
    aten.std.correction: [Reduce("mean")],
    aten.argmax.default: [Reduce("max")],
    aten.max.dim: [Reduce("max")],
    aten.logsumexp.default: [Reduce("max"), Reduce("sum")],
    aten.layer_norm.default: [PLAIN, Normalise(no_dims)],
    aten.native_layer_norm.default: [Normalise(no_dims), Like()],
    aten.rms_norm.default: [PLAIN],
    aten.group_norm.default: [Normalise(no_dims)],
    aten.log_softmax.int: [PLAIN, Normalise(no_dims)],
    aten.select.int: [PLAIN, Read(keep=True)],
    aten.slice.Tensor: [PLAIN, Read(keep=False)],
    aten.split.Tensor: [PLAIN, Parts(keep=False)],
    aten.chunk.default: [Parts(keep=False), Like()],
    aten.unbind.int: [Parts(keep=True), Like()],
    aten.cat.default: [Concatenate(new=True), PLAIN],
    aten.stack.default: [Concatenate(new=False), PLAIN],
    aten.cumsum.default: [PLAIN, LINEAR, Along(no_dims)],
    aten.roll.default: [PLAIN, Along(no_dims)],
    aten.flip.default: [Along(no_dims)],
    aten.sort.default: [Along(no_dims)],
    aten.topk.default: [Along(no_dims), Like()],
    aten.triu.default: [PLAIN],
    aten.pad.default: [Along(no_dims)],
    aten.embedding.default: [Alone(), PLAIN],
    aten.index.Tensor: [Gather(), Lookup()],
    aten.gather.default: [PLAIN, Like()],
    aten.new_zeros.default: [Like(), PLAIN],
    aten.arange.default: [Like()],
    aten.where.self: [Like()],
    aten.mul.Tensor: [Like(), Project(), Factory()],
    aten.masked_fill.Scalar: [Like()],
    aten.conv3d.default: [Like()],
}
CASES = [
    pytest.param(target, rule, id=f"{target}-{type(rule).__name__}-{at}")
    for target, rules in MUTANTS.items()
    for at, rule in enumerate(rules)
]


def caught(target, examples=None, claims=CLAIMS, seeds=4):
    """Whether some trial fails."""
    for seed in range(seeds):
        chance = random.Random(seed)
        for example in examples or EXAMPLES[target]:
            for claim in claims:
                trial = draw_trial(example, target, chance, claim)
                try:
                    check(trial)
                except Exception:
                    return True
    return False


@pytest.mark.parametrize(("target", "rule"), CASES)
def test_wrong_rule_is_caught(target, rule, monkeypatch):
    monkeypatch.setitem(AXIS_RULES, target, rule)
    assert caught(target)


LAWS = {
    "weight": (aten.mean.dim, aten.sum.dim_IntList, aten.matmul.default),
    "add_log_sizes": (aten.softmax.int,),
}


@pytest.mark.parametrize(("law", "target"), [(law, t) for law, ts in LAWS.items() for t in ts])
def test_forgotten_sizes_are_caught(law, target, monkeypatch):
    monkeypatch.setattr(Reduction, law, lambda self, value, *rest: value)
    assert caught(target)


def test_attention_without_log_sizes_is_caught(monkeypatch):
    monkeypatch.setattr(attention_rule, "with_log_sizes", lambda bias, log_sizes: bias)
    assert caught(aten.scaled_dot_product_attention.default)


def test_causal_attention_without_positions_is_caught(monkeypatch):
    causal = [ex(*[T("b h n d")] * 3, is_causal=True, tokens="mixed")]
    target = aten.scaled_dot_product_attention.default
    assert not caught(target, causal, claims=["permutation"])
    monkeypatch.setattr(attention_rule, "causal_mask", lambda *args: None)
    assert caught(target, causal, claims=["permutation"])


def test_shared_selection_for_per_sample_ones_is_caught(monkeypatch):
    """Selections are per sample: taking every sample's tokens by the first one's index fails."""
    monkeypatch.setattr(Reduction, "per_sample", False)
    assert caught(aten.softmax.int) and caught(aten.cumsum.default)
