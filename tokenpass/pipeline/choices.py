"""Where entries could be left out: choices of the passes that may act on a graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch.fx import Node

from tokenpass.capture.dynamo import Captured
from tokenpass.config import Config, PassSpec
from tokenpass.edits import Edit, Rejection
from tokenpass.graph.layers import layer_prefixes, numbered_prefixes, under
from tokenpass.graph.projections import projections
from tokenpass.options import all_passes
from tokenpass.passes.base import (
    EntryMask,
    LossyChoice,
    LossyContext,
    LossyRegionPass,
    RegionContext,
)
from tokenpass.passes.projection_tail import MOST_ROWS
from tokenpass.pipeline.planned import Planned
from tokenpass.pipeline.regions import Named, region_context, static_inputs, unserved
from tokenpass.tracing import fake_value, source_line


@dataclass(frozen=True, eq=False)
class Choices:
    """What could be left out of a graph, and why not elsewhere.

    `tokens`: the plan before any region was replaced.
    """

    tokens: Planned
    captured: Captured
    config: Config

    @cached_property
    def context(self) -> RegionContext:
        """That graph, as region passes are told of it."""
        return region_context(self.tokens, self.captured, self.config)

    @cached_property
    def specs(self) -> list[tuple[LossyRegionPass, PassSpec]]:
        """The passes that may act, and what the user says of each.

        Without a calibration, those that the user names: what a step of decoding loses stays in
        its cache, and a prior says little about one model.
        """
        passes = region_passes()
        if self.config.passes is None:
            if self.context.calibration is None:
                return []
            return [(item, PassSpec(name=name)) for name, item in passes.items()]
        return [(passes[spec.name], spec) for spec in self.config.passes if spec.name in passes]

    @property
    def unnamed(self) -> tuple[Rejection, ...]:
        """Why no pass may act on a graph of few rows."""
        if self.config.passes is not None or self.context.calibration is not None:
            return ()
        found = projections(self.context.module.graph, self.context.static)
        rows = [math.prod(fake_value(node).shape[:-1]) for node in found]
        few = any(isinstance(count, int) and count <= MOST_ROWS for count in rows)
        if not few:
            return ()
        because = "without a calibration it acts only where `passes` names it"
        return tuple(Rejection("not_calibrated", name, because) for name in region_passes())

    @cached_property
    def found(self) -> tuple[list[tuple[LossyChoice, float | None]], tuple[Rejection, ...]]:
        """What could be left out, with the share that the user fixed."""
        prefixes = self.prefixes
        found: list[tuple[LossyChoice, float | None]] = []
        rejections: list[Rejection] = []
        taken: set[str] = set()
        for item, spec in self.specs:
            told = LossyContext(spec.policy, self.config.seed)
            choices, refused = item.choices(self.context, told)
            inside = [c for c in choices if in_scope(spec, c.site, prefixes)]
            rejections += gathered(refused)
            if not choices and not refused:
                because = f"{spec.policy or 'its policy'} finds no linear layer to act on"
                rejections.append(Rejection("no_projection", item.name, because))
            if choices and not inside:
                because = f"none of the {len(choices)} projections is in what it is limited to"
                hint = f"they are called {choices[0].site}; layers count from 0"
                rejections.append(Rejection("out_of_scope", item.name, because, hint))
            for one in inside:
                reason = unserved(one.replacement(one.highest), self.captured)
                if reason is not None:
                    rejections.append(reason)
                elif one.site not in taken:
                    taken.add(one.site)
                    found.append((one, fixed_share(spec)))
        found, more = self.same_rows(found)
        rejections += more
        instead = {n for one, _ in found for n in one.replacement(one.highest).instead}
        found = [pair for pair in found if origin(pair[0]) not in instead]
        return found, tuple(rejections)

    @property
    def fixed(self) -> bool:
        """Whether the user fixed a level."""
        return any(fixed_share(spec) is not None for _, spec in self.specs)

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The paths of the layers."""
        found = layer_prefixes(self.tokens.view.regions)
        names = projections(self.context.module.graph, self.context.static).values()
        return found or numbered_prefixes(name.rsplit(":", 1)[0] for name in names)

    def same_rows(
        self, found: list[tuple[LossyChoice, float | None]]
    ) -> tuple[list[tuple[LossyChoice, float | None]], list[Rejection]]:
        """Choices whose rows are all there, where rows decide together what is left out."""
        static = static_inputs(self.tokens.view.module, self.captured)
        names = projections(self.tokens.view.module.graph, static)
        dense = {site: fake_value(node).shape for node, site in names.items()}
        kept, refused = list[tuple[LossyChoice, float | None]](), list[Rejection]()
        for choice, share in found:
            node = origin(choice)
            few = math.prod(fake_value(node).shape[:-1])
            same = choice.site in dense and str(few) == str(math.prod(dense[choice.site][:-1]))
            if same or str(few) == "1" or choice.mask(choice.highest).threshold is not None:
                kept.append((choice, share))
                continue
            because = f"{choice.policy} compares rows, and some of them have left"
            hint = "tokenpass.calibrate, and a policy with fixed thresholds"
            refused.append(Rejection("unalignable", choice.site, because, hint, source_line(node)))
        return kept, refused


def region_passes() -> dict[str, LossyRegionPass]:
    """The passes that could leave something out, by name."""
    return {item.name: item for item in all_passes() if isinstance(item, LossyRegionPass)}


def gathered(rejections: Sequence[Rejection]) -> list[Rejection]:
    """Rejections for one reason as one: a prompt has too many rows for every projection alike."""
    alike: dict[tuple[str, str], list[Rejection]] = {}
    for one in rejections:
        alike.setdefault((one.code, one.because), []).append(one)
    return [
        same[0]
        if len(same) == 1
        else replace(same[0], where=f"{same[0].where} and {len(same) - 1} more")
        for same in alike.values()
    ]


def fixed_share(spec: PassSpec) -> float | None:
    """The share that the user fixed; None where the planner decides."""
    share = getattr(spec.options, "sparsity", "auto")
    return None if share == "auto" else float(share)


def origin(choice: LossyChoice) -> Node:
    """The projection of a choice."""
    return choice.replacement(choice.highest).origin


def in_scope(spec: PassSpec, site: str, prefixes: Sequence[str]) -> bool:
    """Whether a pass may act at a projection, which is named by its site or its module's path."""
    return spec.covers(layer_of_site(site, prefixes), site, site.rsplit(":", 1)[0])


def layer_of_site(site: str, prefixes: Sequence[str]) -> int | None:
    """The layer whose modules a projection belongs to; None outside all of them."""
    path = site.rsplit(":", 1)[0]
    return next((at for at, prefix in enumerate(prefixes) if prefix and under(path, prefix)), None)


def pinned_lossy(
    planned: Planned, captured: Captured, config: Config, edits: Sequence[Edit]
) -> tuple[list[Named], dict[str, EntryMask], tuple[Rejection, ...]]:
    """The replacements that pinned edits name, those the graph has, and their masks by site.

    Rejections say why it lacks others.
    """
    context = region_context(planned, captured, config)
    passes = region_passes()
    found: list[Named] = []
    masks: dict[str, EntryMask] = {}
    rejections: list[Rejection] = []
    for name, policy in dict.fromkeys((edit.pass_name, edit.policy) for edit in edits):
        told = LossyContext(policy, planned.plan.seed)
        all_choices, refused = passes[name].choices(context, told)
        choices = {choice.site: choice for choice in all_choices}
        rejections += refused
        for edit in edits:
            if (edit.pass_name, edit.policy) == (name, policy) and edit.site in choices:
                choice, share = choices[edit.site], float(edit.level)
                made = choice.replacement(share)
                reason = unserved(made, captured)
                if reason is not None:
                    rejections.append(reason)
                    continue
                found.append((name, made))
                masks[edit.site] = choice.mask(share)
    return found, masks, tuple(rejections)
