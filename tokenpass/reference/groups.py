"""What became of the tokens of a stream, told at full length."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

Mask = Tensor
Index = Tensor


@dataclass(eq=False)
class Groups:
    """For every token of every sample (all tensors are `[batch, tokens]`).

    `seat`: the token whose place in the order the group has taken; `stands`: the token whose
    position the group has; `present`: False once pruned; `padding`: what no query may look at.
    `merged`: whether groups have sizes, in which padding counts nothing. `left`: for each pruning,
    who left and the stream's value at that moment.
    """

    seat: Index
    stands: Index
    present: Mask
    padding: Mask
    merged: bool = False
    left: list[tuple[Mask, Tensor]] = field(default_factory=list)

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return self.seat.shape[0]

    @property
    def counted(self) -> Mask:
        """Tokens that later attention may look at, as far as its masks let it."""
        return self.present & ~self.padding if self.merged else self.present

    def seats(self) -> Index:
        """`[batch, groups]`: one token for each group that is left, in order."""
        place = torch.arange(self.seat.shape[1])
        return torch.stack(
            [place[(s == place) & p] for s, p in zip(self.seat, self.present, strict=True)]
        )

    def members(self, sample: int, seat: int) -> Index:
        """The tokens of one group."""
        return torch.nonzero(self.seat[sample] == seat)[:, 0]

    def sizes(self) -> Tensor:
        """`[batch, groups]`: full-length tokens in each group, padding not counted."""
        return torch.tensor(
            [
                [int((~self.padding[b][self.members(b, s)]).sum()) for s in row]
                for b, row in enumerate(self.seats().tolist())
            ]
        )


def untouched(samples: int, tokens: int, padding: Mask | None) -> Groups:
    """Every token by itself."""
    place = torch.arange(tokens).expand(samples, tokens).clone()
    here = torch.ones(samples, tokens, dtype=torch.bool)
    hidden = ~here if padding is None else padding.expand(samples, tokens)
    return Groups(place, place.clone(), here, hidden.clone())


def rows(value: Tensor, index: Index, dim: int = -2) -> Tensor:
    """`out[b, .., i, ..] = value[b, .., index[b, i], ..]` along a dimension.

    The first dimension of `value` is the batch, perhaps with heads folded in, or 1.
    """
    dim %= value.dim()
    if value.shape[0] < index.shape[0]:
        value = value.expand(index.shape[0], *value.shape[1:])
    index = index.repeat_interleave(value.shape[0] // index.shape[0], 0)
    taken = [v.index_select(dim - 1, i) for v, i in zip(value, index, strict=True)]
    return torch.stack(taken)
