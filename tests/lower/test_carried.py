"""What belongs to a cache: found by its memory, never mixed, forgotten with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenpass.lower.carried import Caches, Carried, CarryingRun, Places
from tokenpass.rewrite.replacing import Given, listed_count, listed_places

NAME = ("griffin", "layer")


def carried(value: float) -> Carried:
    return Carried({NAME: torch.tensor([value])})


def test_a_cache_is_found_by_its_memory() -> None:
    caches, first, second = Caches(), torch.zeros(4), torch.zeros(4)
    mine, other = carried(1), carried(2)
    caches.keep([first], mine)
    caches.keep([second], other)
    assert caches.find([first]) is mine and caches.find([second]) is other
    assert caches.find([first[1:3]]) is mine, "a cropped cache is the same"
    assert caches.find([torch.zeros(4), 3, None]) is None
    assert caches.find([3, first.clone(), second]) is other


def test_a_freed_cache_is_forgotten() -> None:
    caches = Caches()
    for step in range(50):  # the allocator hands the same memory out again
        cache = torch.zeros(1000)
        assert caches.find([cache]) is None
        caches.keep([cache], carried(step))
        del cache
    caches.forget_freed()
    assert not caches.known


def test_empty_caches_are_none() -> None:
    caches = Caches()
    caches.keep([torch.zeros(0), None, 5], carried(1))
    assert not caches.known


def test_what_two_calls_kept_is_added() -> None:
    other = ("griffin", "another")
    both = carried(1).plus({NAME: torch.tensor([4.0]), other: torch.tensor([2.0])})
    assert {name: float(value) for name, value in both.kept.items()} == {NAME: 5.0, other: 2.0}


def smallest_out(seen: Tensor) -> Tensor:
    return torch.where(seen > seen.min(), -1.0, torch.inf)


def test_thresholds_are_derived_once() -> None:
    calls: list[Tensor] = []

    def derive(seen: Tensor) -> Tensor:
        calls.append(seen)
        return smallest_out(seen)

    given = Given("griffin", "layer", derive, torch.full((3,), -1.0))
    index, count = given.places()
    known = Carried({NAME: torch.tensor([3.0, 1.0, 2.0])})
    assert known.value(index).tolist() == [0, 2, 1] and known.value(count).tolist() == [2]
    assert known.value(index) is known.value(index) and len(calls) == 2
    nothing = Carried({})
    assert nothing.value(index).tolist() == [0, 1, 2] and nothing.value(count).tolist() == [3]
    assert nothing.value(given) is given.default


def test_lists_of_places() -> None:
    threshold = torch.tensor([torch.inf, -1.0, torch.inf, -1.0, -1.0])
    assert listed_places(threshold).tolist() == [1, 3, 4, 0, 2]
    assert listed_places(threshold).dtype == listed_count(threshold).dtype == torch.int32
    assert listed_count(threshold).tolist() == [3]


def stepped(caches: Caches, in_place: bool = False) -> tuple[CarryingRun, CarryingRun]:
    """A prompt's graph that keeps what it read, and a step's that gives back what it is given."""

    def prompt(cache: Tensor, x: Tensor) -> Any:
        cache = cache.copy_(x) if in_place else torch.cat([cache, x])
        return cache, x.sum(), x[:3].clone()

    def step(cache: Tensor, threshold: Tensor) -> Any:
        return torch.cat([cache, cache[:1]]), threshold

    given = Given("griffin", "layer", smallest_out, torch.full((3,), -1.0))
    places = Places(() if in_place else (0,), (0,) if in_place else (), (0,))
    return (
        CarryingRun(prompt, tuple, (), (NAME,), places, caches),
        CarryingRun(step, tuple, (given,), (), Places((0,), (), (0,)), caches),
    )


def test_interleaved_generations_do_not_mix() -> None:
    prompt, step = stepped(Caches())
    first, _ = prompt(torch.zeros(0), torch.tensor([1.0, 2, 3]))
    second, _ = prompt(torch.zeros(0), torch.tensor([3.0, 2, 1]))
    for _ in range(3):
        first, mine = step(first)
        assert mine.tolist() == [torch.inf, -1, -1]
        second, other = step(second)
        assert other.tolist() == [-1, -1, torch.inf]
        assert step.thresholds()["layer"].tolist() == other.tolist()
    unknown, given = step(torch.zeros(4))
    assert given.tolist() == [-1, -1, -1], "a cache from elsewhere loses nothing"
    step.caches.forget_freed()
    assert len(step.caches.known) == 2 and unknown.shape == (5,)


def test_a_second_prompt_on_a_cache_adds_to_it() -> None:
    prompt, step = stepped(Caches())
    cache, _ = prompt(torch.zeros(0), torch.tensor([1.0, 2, 3]))
    forked, _ = prompt(cache, torch.tensor([9.0, 0, 3]))
    assert step(forked)[1].tolist() == [-1, torch.inf, -1]
    assert step(cache)[1].tolist() == [torch.inf, -1, -1], "the cache before it has its own"


def test_a_cache_written_in_place_has_its_last_prompt() -> None:
    prompt, step = stepped(Caches(), in_place=True)
    cache = torch.zeros(3)
    prompt(cache, torch.tensor([1.0, 2, 3]))
    prompt(cache, torch.tensor([5.0, 0, 1]))
    assert step(cache)[1].tolist() == [-1, torch.inf, -1]
