"""What could be done to a graph: candidates of the allowed passes, and exact edits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenpass.config import Config, PassSpec
from tokenpass.edits import Edit, Rejection
from tokenpass.errors import OptionError
from tokenpass.graph.layers import layer_prefixes
from tokenpass.graph.view import View
from tokenpass.option_values import Spans, joined_spans
from tokenpass.options import all_passes
from tokenpass.passes.base import Candidate, ExactPass, LossyPass, PassContext
from tokenpass.plan.choice import Choice
from tokenpass.rewrite.rewriter import Actions, hinted

MOST_SITES = 5
"""Sites of a stream that the planner weighs."""


@dataclass(frozen=True, eq=False)
class Found:
    """What could be done to a graph: lossy candidates in graph order, and the exact edits."""

    candidates: tuple[Candidate, ...]
    fixed: tuple[float | None, ...]
    exact: Actions
    exact_edits: tuple[Edit, ...]
    rejections: tuple[Rejection, ...]


def find_edits(view: View, config: Config) -> Found:
    """Candidates of the passes that the config allows, in graph order, and the exact edits."""
    specs = config.passes
    lossy = [item for item in all_passes() if isinstance(item, LossyPass)]
    named = [(item, PassSpec(name=item.name)) for item in lossy]
    if specs is not None:
        by_name = {item.name: item for item in lossy}
        named = [(by_name[spec.name], spec) for spec in specs if spec.name in by_name]
    candidates: list[tuple[Candidate, float | None]] = []
    rejections = list(view.rejections)
    taken: set[int] = set()
    for item, spec in named:
        span = span_of(spec, config)
        require_inside(view, spec, span)
        context = PassContext(spec.policy, config.seed, config.shorter_cache, span)
        found = item.candidates(view, context)
        rejections += found.rejections
        inside = [c for c in found.candidates if spec.covers(c.site.layer, c.site.name)]
        if found.candidates and not inside:
            because = f"none of the {len(found.candidates)} sites is in what the pass is limited to"
            hint = f"sites are called {found.candidates[0].site.name}; layers count from 0"
            rejections.append(Rejection("out_of_scope", item.name, because, hint))
        if specs is None:
            inside = [c for c in inside if id(c.stream) not in taken]
            taken |= {id(c.stream) for c in inside}
        keep = getattr(spec.options, "keep_ratio", "auto")
        fixed = None if keep == "auto" else float(keep)
        candidates += [(c, fixed) for c in (thinned(inside) if fixed is None else inside)]
    exact, edits, refused = exact_edits(view, len(candidates))
    order = {node: at for at, node in enumerate(view.module.graph.nodes)}
    candidates.sort(key=lambda pair: order[pair[0].site.node])
    require_one_span([candidate for candidate, _ in candidates])
    return Found(
        tuple(c for c, _ in candidates),
        tuple(f for _, f in candidates),
        exact,
        edits,
        (*rejections, *refused, *view_summary(view)),
    )


def span_of(spec: PassSpec, config: Config) -> Spans:
    """The positions where a pass may take tokens: its own span, else all that the options name."""
    own, named = getattr(spec.options, "span", None), config.spans or {}
    if isinstance(own, str):
        return named[own]
    return own or joined_spans(pair for pairs in named.values() for pair in pairs)


def require_inside(view: View, spec: PassSpec, span: Spans) -> None:
    """Raise `OptionError` where no stream that a pass is limited to reaches the end of its span."""
    streams = [s for s in view.streams if any(spec.covers(t.layer, t.name) for t in s.sites)]
    if not span or not streams or any(s.axis.size >= span[-1][1] for s in streams):
        return
    longest = max(int(hinted(s.axis.size)) for s in streams)
    raise OptionError(
        f"{spec.name}: the span {list(span[-1])} ends outside the prompt, which has {longest} "
        "tokens; positions count from 0 and the stop is not included (where the prompt is in "
        "another graph, name its modules with `include`)"
    )


def require_one_span(candidates: Sequence[Candidate]) -> None:
    """Raise `OptionError` where passes would act on one stream with different spans.

    What one takes away, the other could not count.
    """
    for stream in dict.fromkeys(candidate.stream for candidate in candidates):
        spans = {c.span: c.pass_name for c in candidates if c.stream is stream}
        if len(spans) > 1:
            first, second = list(spans.items())[:2]
            raise OptionError(
                f"span: {first[1]} and {second[1]} act on the same tokens with different spans, "
                f"{list(first[0]) or 'all tokens'} and {list(second[0]) or 'all tokens'}; give "
                "both the same one"
            )


def thinned(candidates: Sequence[Candidate]) -> list[Candidate]:
    """At most MOST_SITES of each stream, evenly spread from the first: what the planner weighs.

    Pricing takes time for every site, and plans of many stages compile slowly in any case.
    """
    kept: list[Candidate] = []
    for stream in dict.fromkeys(candidate.stream for candidate in candidates):
        mine = [candidate for candidate in candidates if candidate.stream is stream]
        count = min(len(mine), MOST_SITES)
        kept += [mine[at * len(mine) // count] for at in range(count)]
    return kept


def view_summary(view: View) -> tuple[Rejection, ...]:
    """Streams whose values are all barriers get a reason of their own."""
    return tuple(
        Rejection("no_site", stream.birth.name, "no value of this stream can be shortened")
        for stream in view.streams
        if not stream.sites
    )


def exact_edits(view: View, owners: int) -> tuple[Actions, tuple[Edit, ...], tuple[Rejection, ...]]:
    """The exact passes' cuts, as actions and as edits."""
    cuts, edits, rejections = [], [], []
    for item in all_passes():
        if not isinstance(item, ExactPass):
            continue
        found, why = item.read_cuts(view, owners + len(cuts))
        rejections += why.rejections
        for cut in found:
            last = cut.stream.regions[-1]
            prefix = layer_prefixes(cut.stream.regions)[-1] or last.node.name
            positions = ",".join(str(p) for p in cut.positions)
            edits.append(Edit(item.name, f"{prefix}:queries", positions, str(len(cut.positions))))
        cuts += found
    return Actions({}, tuple(cuts)), tuple(edits), tuple(rejections)


def choices_of(found: Found, view: View) -> tuple[Choice, ...]:
    """Candidates as the planner's numbers."""
    weights = {i.name: i.error_weight for i in all_passes() if isinstance(i, LossyPass)}
    streams = {id(stream): at for at, stream in enumerate(view.streams)}
    return tuple(
        Choice(
            c.pass_name,
            c.site.name,
            c.policy,
            streams[id(c.stream)],
            int(hinted(c.stream.axis.size)),
            c.depth,
            c.lowest,
            c.never_below,
            weights[c.pass_name].get(c.policy, 1.0),
            fixed,
            c.spared,
            c.apart,
            not isinstance(c.stream.axis.size, int),
        )
        for c, fixed in zip(found.candidates, found.fixed, strict=True)
    )
