"""The reference of a plan: the dense graph with its edits carried out at full length.

Merged tokens become equal copies of their mean, and later attention asks and answers for each as
its representative; pruned tokens answer nobody and come back with the value they left with. Slow
and obvious on purpose: samples and groups are Python loops, and nothing is shared with the axis
rules or the replay. Policies are shared: they have tests of their own.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import map_arg

from tokenpass.edits import Edit
from tokenpass.errors import InternalError
from tokenpass.ops.merge_assignment import merge_best, padding_first
from tokenpass.passes.token_reduction.matchers import MATCHERS
from tokenpass.passes.token_reduction.scorers import SCORERS
from tokenpass.passes.token_reduction.selectors import keep_best
from tokenpass.ranks import heads_of_all_ranks
from tokenpass.reference.attention import (
    grouped_attention,
    grouped_softmax,
    grouped_values,
    hidden_keys,
)
from tokenpass.reference.facts import FUSED, AttentionFacts, GraphFacts, ShortFacts, SiteFacts
from tokenpass.reference.groups import Groups, rows, untouched
from tokenpass.reference.levels import level_count
from tokenpass.reference.masks import masked_entries

EXACT = frozenset({"dead_tokens"})


class Reference(Interpreter):
    """Runs a dense graph with the edits of a plan; outputs have the dense shapes.

    What mixes neighbouring tokens (a convolution, a recurrence) sees every token, and the members
    of a group differ behind it; on the stream they have their mean again. A value that is computed
    before a merge and used behind it (a long skip connection) is so merged where it joins.
    """

    def __init__(
        self, module: GraphModule, edits: Sequence[Edit], facts: GraphFacts, seed: int = 0
    ) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.facts = facts
        self.seed = seed
        self.edits: dict[str, list[Edit]] = {}
        for edit in edits:
            if edit.pass_name not in EXACT:
                self.edits.setdefault(facts.sites[edit.site].node, []).append(edit)
        self.groups: dict[int, Groups] = {}
        self.pruned: dict[int, SiteFacts] = {}
        self.named = {node.name: node for node in module.graph.nodes}

    def run_node(self, n: Node) -> Any:
        edits = self.edits.get(n.name, [])
        if n.name in self.facts.whole:
            for edit in edits:
                self.groups.pop(self.facts.sites[edit.site].stream, None)
        value = self.settle(n, self.run_grouped(n))
        for edit in edits:
            self.env[n] = value
            value = self.carry_out(edit, self.facts.sites[edit.site], value)
        return self.bring_back(n, value)

    def map_nodes_to_values(self, args: Any, n: Node) -> Any:
        """The operands of a node, as its edited twin reads them.

        Where it needs all tokens of a short value, it reads representatives; where a value with all
        tokens meets a short one, the mean over each group.
        """

        def read(source: Node) -> Any:
            value = self.env[source]
            if n.name not in self.facts.short:
                return self.each(self.facts.short.get(source.name, ()), value, representatives)
            if source.name not in self.facts.short:
                return self.each(self.facts.averaged.get(source.name, ()), value, group_means)
            return value

        return map_arg(args, read)

    def each(
        self,
        dims: Sequence[ShortFacts],
        value: Any,
        change: Callable[[Tensor, Groups], Tensor],
    ) -> Any:
        """A value changed in every dimension that holds groups."""
        for short in dims:
            groups = self.groups.get(short.stream)
            if groups is None or (short.batch_dim is None and groups.samples > 1):
                continue
            flat = flattened(value, short.dim, short.batch_dim)
            value = unflattened(change(flat, groups), value, short.dim, short.batch_dim)
        return value

    def is_short(self, node: Node, dim: int) -> bool:
        """Whether a dimension (counted from the end) holds groups in the edited graph."""
        rank = self.env[node].dim()
        return any(short.dim == rank + dim for short in self.facts.short.get(node.name, ()))

    # attention ---------------------------------------------------------------------------

    def run_grouped(self, n: Node) -> Any:
        """One node; attention over a stream with groups runs over their representatives."""
        for attention in self.facts.attentions:
            if n.name not in (attention.node, attention.softmax):
                continue
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            first, second = n.all_input_nodes[0], n.all_input_nodes[-1]
            if n.target is FUSED:
                query, key = self.named[attention.query], self.named[attention.key]
                asking = self.groups_of(attention.query_stream, query, -2)
                answering = self.groups_of(attention.key_stream, key, -2)
                if answering is None:  # keys with all tokens meet short values
                    answering = self.groups_of(attention.key_stream, n.all_input_nodes[2], -2)
                    averaged = self.facts.averaged.get(key.name, ())
                    args = (args[0], self.each(averaged, args[1], group_means), *args[2:])
                return grouped_attention(*args, **kwargs, asking=asking, answering=answering)
            if n.name == attention.softmax:
                asking = self.groups_of(attention.query_stream, first, -2)
                answering = self.groups_of(attention.key_stream, first, -1)
                return grouped_softmax(args[0], asking, answering)
            answering = self.groups_of(attention.key_stream, second, -2)
            return args[0] @ grouped_values(args[1], answering)
        if n.name in self.facts.masks:
            (value, *rest), kwargs = self.fetch_args_kwargs_from_env(n)
            mask = self.facts.masks[n.name]
            by = [self.env[self.named[name]] for name in mask.inputs]
            return F.linear(masked_entries(value, mask, by), *rest, **kwargs)
        if n.target is torch.ops.aten.view.default:  # what is grouped may be laid out otherwise
            (value, shape), _ = self.fetch_args_kwargs_from_env(n)
            return value.reshape(shape)
        return super().run_node(n)

    def groups_of(self, stream: int | None, node: Node, dim: int) -> Groups | None:
        """The groups that an operand's dimension holds, None where it holds single tokens."""
        return self.groups.get(stream) if stream is not None and self.is_short(node, dim) else None

    def settle(self, n: Node, value: Any) -> Any:
        """A value of a stream's chain: real members of a group have their mean.

        Padding has the value of the token that stays for it.
        """
        for at, groups in self.groups.items():
            place = self.facts.streams[at].chain.get(n.name)
            if place is None or n.name not in self.facts.short:
                continue
            flat = group_means(flattened(value, *place), groups)
            value = unflattened(flat, value, *place)
        return value

    # edits -------------------------------------------------------------------------------

    def carry_out(self, edit: Edit, site: SiteFacts, value: Tensor) -> Tensor:
        """The site's value after one edit, at full length."""
        flat = to_rows(value, site)
        if site.stream not in self.groups:
            self.groups[site.stream] = untouched(
                flat.shape[0], flat.shape[1], self.padding(site.attention)
            )
        count = level_count(edit.level, flat.shape[1])
        if edit.pass_name == "token_merge":
            flat = self.merge(edit, site, flat, count)
        elif edit.pass_name == "token_prune":
            self.prune(edit, site, flat, count)
            self.pruned[site.stream] = site
        else:
            raise InternalError(f"no reference for {edit.pass_name}")
        return from_rows(flat, value, site)

    def merge(self, edit: Edit, site: SiteFacts, value: Tensor, count: int) -> Tensor:
        """Pairs join: every member gets the mean of its group, weighted by what each stands for."""
        groups, stream = self.groups[site.stream], self.facts.streams[site.stream]
        seats, sizes = groups.seats(), groups.sizes()
        protected = self.protected(site, edit)
        matcher = next(m for m in MATCHERS if m.__name__ == edit.policy)
        free = sizes.float().masked_fill(protected, 0.0)  # what has size 0 is left alone
        score, partner = matcher(self.keys(site), free, None)
        score, partner = padding_first(score, partner, sizes)
        segment, kept, _ = merge_best(score, partner, seats.shape[1], count)
        groups.merged = True
        old, value = groups.stands.clone(), value.clone()
        old_seat = groups.seat.clone()
        for sample in range(groups.samples):
            for place in range(count):
                joined = torch.nonzero(segment[sample] == place)[:, 0].tolist()
                tokens = torch.isin(old_seat[sample], seats[sample, joined])
                real = [j for j in joined if sizes[sample, j] > 0]
                stays = int(seats[sample, kept[sample, place]])
                seat, stands = stays, int(old[sample, stays])
                mean = value[sample, stays].clone()
                if real:
                    stands = max(int(old[sample, seats[sample, j]]) for j in real)
                    total = sum(float(sizes[sample, j]) for j in real)
                    terms = [
                        value[sample, seats[sample, j]] * float(sizes[sample, j]) for j in real
                    ]
                    mean = torch.stack(terms).sum(0) / total
                if stream.causal:
                    seat = stands
                groups.seat[sample, tokens] = seat
                groups.stands[sample, tokens] = stands
                value[sample, tokens] = mean.to(value.dtype)
        return value

    def prune(self, edit: Edit, site: SiteFacts, value: Tensor, count: int) -> None:
        """The groups of lowest score leave, with the value that they have now."""
        groups = self.groups[site.stream]
        seats, padding = groups.seats(), groups.sizes() == 0
        scorer = next(s for s in SCORERS if s.__name__ == edit.policy)
        signals = {
            "keys": lambda: self.keys(site),
            "attention_row": lambda: self.attention_row(site),
            "position": lambda: groups.stands.gather(1, seats),
            "count": lambda: count,
            "seed": lambda: self.seed,
        }
        score = scorer(**{name: signals[name]() for name in inspect.signature(scorer).parameters})
        score = score.expand(groups.samples, -1)
        kept = seats.gather(1, keep_best(score, count, self.protected(site, edit), padding))
        here = (groups.seat[:, :, None] == kept[:, None, :]).any(-1)
        groups.left.append((groups.present & ~here, value.clone()))
        groups.present &= here

    def bring_back(self, n: Node, value: Any) -> Any:
        """Later values of the site's kind: who left has what it left with; at the end, for good."""
        for stream, site in list(self.pruned.items()):
            kind = self.named[site.node].target
            place = self.facts.streams[stream].chain.get(n.name)
            if n.target is not kind or place != (site.token_dim, site.batch_dim):
                continue
            flat, end = to_rows(value, site).clone(), n.name == site.end
            for gone, then in self.groups[stream].left:
                flat[gone] = then[gone].to(flat.dtype)
            value = from_rows(flat, value, site)
            if end:
                del self.pruned[stream], self.groups[stream]
        return value

    # what policies may read -------------------------------------------------------------

    def keys(self, site: SiteFacts) -> Tensor:
        """Keys `[batch, heads, groups, width]` of the attention before the site."""
        groups, attention = self.groups[site.stream], site.attention
        key = self.env[self.named[attention.key]]
        key = key.transpose(-1, -2) if attention.key_transposed else key
        taken = rows(key, groups.stands.gather(1, groups.seats()))
        return heads_of_all_ranks(per_head(taken, groups.samples), attention.groups)

    def attention_row(self, site: SiteFacts) -> Tensor:
        """`[batch, heads, groups]`: what the first position that the outputs read looks at."""
        groups, place = self.groups[site.stream], self.protected_positions(site)[:, :1]
        if site.attention.softmax:
            weights = self.env[self.named[site.attention.softmax]]
            row = rows(per_head(weights, groups.samples), place)[:, :, 0]
        else:
            row = self.fused_row(site, place)
        seats = groups.seats().tolist()
        shares = [
            [row[b][:, self.counted_members(groups, b, s)].sum(-1) for s in seats[b]]
            for b in range(groups.samples)
        ]
        found = torch.stack([torch.stack(sample, -1) for sample in shares]).float()
        return heads_of_all_ranks(found, site.attention.groups)

    def counted_members(self, groups: Groups, sample: int, seat: int) -> Tensor:
        """Members of a group that attention sees."""
        members = groups.members(sample, seat)
        return members[groups.counted[sample, members]]

    def fused_row(self, site: SiteFacts, place: Tensor) -> Tensor:
        """`[batch, heads, tokens]`: one row of a fused attention's weights, at full length."""
        groups, attention = self.groups[site.stream], site.attention
        query = per_head(self.env[self.named[attention.query]], groups.samples)
        key = per_head(self.env[self.named[attention.key]], groups.samples)
        key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
        scale = 1 / math.sqrt(query.shape[-1]) if attention.scale is None else attention.scale
        scores = query @ key.transpose(-1, -2) * scale
        for name, _ in attention.masks:
            mask = self.env[self.named[name]]
            visible = mask.dtype == torch.bool
            scores = scores.masked_fill(~mask, -math.inf) if visible else scores + mask
        return rows(grouped_softmax(scores, groups, groups), place)[:, :, 0]

    def padding(self, attention: AttentionFacts) -> Tensor | None:
        """Tokens that no query may look at, `[batch or 1, tokens]`."""
        found = None
        for name, hides in attention.masks:
            hidden = hidden_keys(self.env[self.named[name]], hides)
            found = hidden if found is None else found | hidden
        return found

    def protected_positions(self, site: SiteFacts) -> Tensor:
        """`[batch, positions]`: tokens that the outputs read alone."""
        groups = self.groups[site.stream]
        tokens = groups.seat.shape[1]
        columns = [torch.zeros(groups.samples, 0, dtype=torch.long)]
        for at in self.facts.streams[site.stream].protected:
            if isinstance(at, str):
                column = self.ahead(self.named[at]).long().reshape(-1, 1)
            else:
                column = torch.tensor([[at]])
            columns.append(column.remainder(tokens).expand(groups.samples, 1))
        return torch.cat(columns, 1)

    def protected(self, site: SiteFacts, edit: Edit) -> Tensor:
        """`[batch, groups]`: groups that hold such a token, or one outside the edit's span."""
        groups = self.groups[site.stream]
        positions = self.protected_positions(site)
        if edit.span:
            inside = {at for start, stop in edit.span for at in range(start, stop)}
            outside = [at for at in range(groups.seat.shape[1]) if at not in inside]
            rows = torch.tensor([outside], dtype=torch.long).expand(groups.samples, -1)
            positions = torch.cat([positions, rows], 1)
        held = groups.seat.gather(1, positions)
        return (groups.seats()[:, :, None] == held[:, None, :]).any(-1)

    def ahead(self, node: Node) -> Any:
        """A value that the graph computes later (from inputs alone)."""
        if node in self.env:
            return self.env[node]
        for source in node.all_input_nodes:
            self.env.setdefault(source, self.ahead(source))
        return super().run_node(node)


def representatives(flat: Tensor, groups: Groups) -> Tensor:
    """`[batch, tokens, ..]` (heads may lie in the batch): each token has its representative's."""
    return rows(flat, groups.stands, 1)


def group_means(flat: Tensor, groups: Groups) -> Tensor:
    """The same: real members of a group have their mean, padding what the token that stays has."""
    out, heads = flat.clone(), flat.shape[0] // groups.samples
    for sample, seats in enumerate(groups.seats().tolist()):
        part = out[sample * heads : (sample + 1) * heads]
        for seat in seats:
            members = groups.members(sample, seat)
            real = members[~groups.padding[sample, members]]
            if len(real) == 0:
                part[:, members] = part[:, seat : seat + 1].clone()
            elif len(real) > 1:
                part[:, real] = part[:, real].mean(1, keepdim=True)
    return out


def to_rows(value: Tensor, site: SiteFacts) -> Tensor:
    """A site's value as `[batch, tokens, ..]`."""
    return flattened(value, site.token_dim, site.batch_dim)


def from_rows(flat: Tensor, like: Tensor, site: SiteFacts) -> Tensor:
    """Back to the site's own order of dimensions."""
    return unflattened(flat, like, site.token_dim, site.batch_dim)


def flattened(value: Tensor, token_dim: int, batch_dim: int | None) -> Tensor:
    """A stream value as `[batch, tokens, ..]`."""
    if batch_dim is None:
        return value.movedim(token_dim, 0)[None]
    return value.movedim((batch_dim, token_dim), (0, 1))


def unflattened(flat: Tensor, like: Tensor, token_dim: int, batch_dim: int | None) -> Tensor:
    """Back to a stream value's own order of dimensions."""
    if batch_dim is None:
        return flat[0].movedim(0, token_dim).reshape(like.shape)
    return flat.movedim((0, 1), (batch_dim, token_dim)).reshape(like.shape)


def per_head(value: Tensor, samples: int) -> Tensor:
    """`[batch x heads, tokens, width]` with the heads apart."""
    if value.dim() == 3:
        return value.reshape(samples, -1, *value.shape[1:])
    return value.expand(samples, *value.shape[1:])
