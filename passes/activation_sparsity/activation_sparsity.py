"""activation_sparsity: weights that meet small entries of a projection's input are not read.

    before   y[rows, n] = x[rows, k] @ W^T                                all of W
    after    y = sum over k with |x_k| > threshold_k of x_k W^T[k]

    neurons  y = (g * (x @ U^T)) @ W^T              rows of U and of W^T where |g_i| > threshold_i

Lossy; the policy gives the thresholds and nothing else. For few rows alone, as in decoding: the
union of their lists is soon everything.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import Node

from tokenpass.edits import Rejection
from tokenpass.errors import CalibrationMismatchError
from tokenpass.graph.projections import (
    ProjectionRegion,
    gated,
    in_parts,
    projection_region,
    projections,
)
from tokenpass.graph.zeros import zero_regions
from tokenpass.ops.pointwise import Call, Input, parts
from tokenpass.passes.activation_sparsity.errors import measured_error, prior_error
from tokenpass.passes.activation_sparsity.policies import POLICIES, UNCALIBRATED, Policy
from tokenpass.passes.activation_sparsity.policies.teal import teal
from tokenpass.passes.activation_sparsity.sparse_calls import (
    Listing,
    most_rows,
    replacement,
    union,
    unsound,
)
from tokenpass.passes.base import (
    EntryMask,
    LossyChoice,
    LossyContext,
    LossyRegionPass,
    Observation,
    Reason,
    RegionContext,
)
from tokenpass.rewrite.replacing import Given, Replacement
from tokenpass.rewrite.rewriter import hinted
from tokenpass.statistics.histogram import Histogram
from tokenpass.statistics.stored import Calibration, SiteStatistics, weight_fingerprint
from tokenpass.tracing import fake_value, source_line

ACTIVATIONS = frozenset({"relu", "silu", "gelu", "gelu_tanh", "sigmoid", "tanh", "erf", "exp"})
"""Functions that tell an MLP's neurons from what a norm or an attention gives."""


@dataclass(frozen=True, eq=False)
class Place:
    """One projection where a policy could act.

    `known`: what was calibrated of it; `apart`: operators that other regions compute, for their
    neurons or natural zeros; `last`: no projection comes behind it.
    """

    site: str
    region: ProjectionRegion
    policy: Policy
    weight: Tensor
    known: SiteStatistics | None
    seed: int
    apart: frozenset[Node]
    last: bool

    @cached_property
    def column_norms(self) -> Tensor:
        """What each entry multiplies: L2 norms of the weight's columns, float32 [entries]."""
        norms = torch.linalg.vector_norm(self.weight.detach(), dim=0, dtype=torch.float32)
        return norms.cpu()

    @property
    def by_gate(self) -> bool:
        """Whether neurons are listed by their gate."""
        return self.policy.place == "neurons" and self.region.up is not None

    @property
    def natural(self) -> float:
        """The share of entries that are zero by themselves, as far as is known."""
        return 0.0 if self.known is None else self.known.zero_share(by_gate=self.by_gate)


class ActivationSparsity(LossyRegionPass):
    """Inputs of projections, or neurons of MLPs, below a threshold."""

    name: ClassVar[str] = "activation_sparsity"
    policies: ClassVar[tuple[str, ...]] = tuple(policy.name for policy in POLICIES)

    def choices(
        self, context: RegionContext, told: LossyContext
    ) -> tuple[tuple[LossyChoice, ...], tuple[Rejection, ...]]:
        policy = chosen_policy(told, context.calibration)
        rows, before = most_rows(1 - policy.highest), before_projections(context)
        found: list[LossyChoice] = []
        refused: list[Rejection] = []
        names = projections(context.module.graph, context.static)
        regions = {node: region_for(node, context, policy) for node in names}
        apart = computed_for_zeros(context).union(*(r.nodes for r in regions.values() if r))
        for node, region in regions.items():
            if region is None:
                continue
            site = names[node]
            weight = context.weights[region.weight]
            known = calibrated(site, weight, context.calibration)
            reason = unsound(region, context, rows) or unknown(policy, region, known)
            if reason is not None:
                refused.append(Rejection(reason[0], site, *reason[1:], source_line(node)))
                continue
            seed = zlib.crc32(f"{told.seed} {site}".encode())
            last = node not in before
            found.append(choice(Place(site, region, policy, weight, known, seed, apart, last)))
        return tuple(found), tuple(refused)

    def observations(self, context: RegionContext, told: LossyContext) -> tuple[Observation, ...]:
        policy = chosen_policy(told, context.calibration)
        if policy.seen is None:
            return ()
        most, found = most_rows(1 - policy.highest), list[Observation]()
        for node, site in projections(context.module.graph, context.static).items():
            region = region_for(node, context, policy)
            if region is not None and bool(region.rows > most):
                found.append(Observation(policy.name, site, region.hidden, policy.seen))
        return tuple(found)


def chosen_policy(told: LossyContext, calibration: Calibration | None) -> Policy:
    """The user's, else the best that has what it reads."""
    default = UNCALIBRATED if calibration is None else POLICIES[0].name
    return next(policy for policy in POLICIES if policy.name == (told.policy or default))


def computed_for_zeros(context: RegionContext) -> frozenset[Node]:
    """Operators whose zeros are found by computing them: they stay what they are."""
    regions = zero_regions(context.module.graph, context.static)
    return frozenset(node for region in regions for node in region.nodes)


def before_projections(context: RegionContext) -> frozenset[Node]:
    """Values that some projection is computed from."""
    graph, found = context.module.graph, set[Node]()
    later = set(projections(graph, context.static))
    for node in reversed(graph.nodes):
        if node in found or node in later:
            found.update(node.all_input_nodes)
    return frozenset(found)


def region_for(node: Node, context: RegionContext, policy: Policy) -> ProjectionRegion | None:
    """The projection as a policy sees it; None where it has no place there."""
    region = projection_region(node, context.static)
    if region is None:
        return None
    if policy.place == "inputs":
        return as_input(region)
    called = {part.function for part in parts(region.expression) if isinstance(part, Call)}
    if region.blocked:  # a router's neurons come in blocks, an attention's heads too
        return as_input(region) if called & ACTIVATIONS else None
    found = gated(region, context.static) or (region if called & ACTIVATIONS else None)
    if found is not None and policy.by_prompt:
        return replace(found, parts=in_parts(found, context.static))
    return found


def as_input(region: ProjectionRegion) -> ProjectionRegion:
    """The region whose input is a value as it stands."""
    return ProjectionRegion(
        region.down,
        region.hidden,
        Input(0),
        (region.hidden,),
        frozenset(),
        region.rows,
        region.entries,
    )


def unknown(policy: Policy, region: ProjectionRegion, known: SiteStatistics | None) -> Reason:
    """Why a policy has no threshold for a region; None if it has one."""
    if not policy.calibrated:
        return None
    if known is None:
        because = f"{policy.name} reads statistics that no calibration has of it"
        return "not_calibrated", because, "tokenpass.calibrate, or policy: top_k"
    wanted = {"gate": known.gate, "up": known.up}
    if region.up is None:
        wanted |= {"gate": known.magnitude, "up": known.magnitude}
    lacking = [name for name, value in wanted.items() if name in policy.signals and value is None]
    if lacking:
        because = f"the calibration has no {lacking[0]} of it, which {policy.name} reads"
        return "not_calibrated", because, "calibrate anew"
    return None


def calibrated(site: str, weight: Tensor, calibration: Calibration | None) -> SiteStatistics | None:
    """What is known of a projection.

    Raises `CalibrationMismatchError` where another weight of that name was calibrated.
    """
    if calibration is None:
        return None
    mark = weight_fingerprint(weight)
    known = calibration.find(site, mark)
    if known is None and site in calibration.sites:
        raise CalibrationMismatchError(
            f"calibration: {site} was calibrated with another weight "
            f"({calibration.sites[site].weight}, this one is {mark}): calibrate this model, or "
            "leave the option out"
        )
    return known


def choice(place: Place) -> LossyChoice:
    """The place as the planner sees it."""
    region, policy, natural = place.region, place.policy, place.natural
    thresholds = cache(partial(threshold, place))

    def density(share: float) -> float:
        return union(1 - share, int(hinted(region.rows)))

    def error(share: float) -> float:
        if place.known is None:
            return prior_error(share, place.last)
        bound = teal(place.known.magnitude, share) if policy.at_run_time else thresholds(share)
        return measured_error(place.known, place.column_norms, bound, place.by_gate)

    @cache
    def made(share: float) -> Replacement:
        listing = Listing(density(share), constant=partial(thresholds, share))
        if policy.by_prompt:
            listing = Listing(density(share), given=given(place, share))
        if policy.at_run_time:
            listing = Listing(density(share), computed=partial(policy.threshold, sparsity=share))
        return replacement(region, place.site, policy.name, repr(share), listing, place.apart)

    def mask(share: float) -> EntryMask:
        if policy.at_run_time:
            alone = isinstance(region.rows, int) and region.rows == 1
            return EntryMask(None, share, each_row=alone)
        if policy.by_prompt:
            return EntryMask(given(place, share).default, share)
        return EntryMask(thresholds(share), share, place.by_gate)

    weight = fake_value(region.weight)
    kind = (*weight.shape, weight.dtype, place.by_gate, len(region.inputs), str(region.expression))
    return LossyChoice(
        ActivationSparsity.name,
        policy.name,
        place.site,
        " ".join(map(str, kind)),
        natural + (1 - natural) * policy.highest,
        natural,
        density,
        error,
        made,
        mask,
    )


def given(place: Place, share: float) -> Given:
    """The thresholds that the prompt decides; before any prompt all entries are listed."""
    policy, device = place.policy, place.weight.device
    default = torch.full((place.region.entries,), -1.0, device=device)
    derive = partial(policy.threshold, sparsity=share)
    return Given(policy.name, place.site, derive, default)


def threshold(place: Place, share: float) -> Tensor:
    """The policy's thresholds, float32 [1] or [entries]."""
    policy, known, entries = place.policy, place.known, place.region.entries
    signals: dict[str, Any] = {"entries": entries, "seed": place.seed, "sparsity": share}
    if known is not None:
        signals["magnitude"] = known.magnitude
        signals |= {"gate": known.magnitude, "up": Histogram.of(torch.ones(1, entries))}
        if place.by_gate:
            signals |= {"gate": known.gate, "up": known.up}
        if policy.expected is not None:
            signals["prompt"] = policy.expected(known)
    if "column_norms" in policy.signals:
        signals["column_norms"] = place.column_norms
    return policy.threshold(**{name: signals[name] for name in policy.signals}).float()
