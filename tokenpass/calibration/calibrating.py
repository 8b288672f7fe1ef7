"""`tokenpass.calibrate`: from batches to a `Calibration`, in steps that can be interrupted."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit

from tokenpass.calibration.progress import Told, progress_of, say
from tokenpass.calibration.sensitivity import Measurement, first_tokens
from tokenpass.calibration.watching import WatchedGraph, Watcher
from tokenpass.dynamo_state import as_uncompiled, forgotten
from tokenpass.errors import CalibrationWarning, UserError
from tokenpass.options import read_options
from tokenpass.statistics import Calibration, Histogram, SiteStatistics

SAVE_EVERY_S = 30.0
SAVING_SHARE = 0.1
"""Most of the time that goes into writing files of large models."""

RECOMPILES = 256
"""Shapes of batches that are followed; behind them Dynamo would run the model unobserved."""


def calibrate(
    model: Callable[..., Any],
    batches: Iterable[Any],
    options: Mapping[str, Any] | None = None,
    *,
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
    sensitivity: bool = True,
) -> Calibration:
    """Run a model on batches and keep statistics of what its projections multiply.

    A batch is a mapping (`model(**batch)`), a tuple or list (`model(*batch)`) or the one argument.
    Where it has an `attention_mask` `[batch, tokens]`, padded tokens do not count. The model must
    be in eval mode; it runs eagerly under `no_grad`, and Dynamo forgets what it learned on the way.
    The same batches give the same calibration, bit for bit.

    `path`: a file that is written every half minute, at the end, and when an error or Ctrl-C ends
    it; a file that is there already is gone on with, the batches that are in it skipped.
    `sensitivity` False leaves out how much each projection's error changes the output, which takes
    the longest: one partial run on the first batch's first 256 tokens for each projection.

    Raises `UserError` for no batches, a model in train mode or without projections, a `path` of
    another model; `OptionError` for wrong options; `ConfigError` for a file that cannot be read;
    whatever the model raises.
    """
    read_options(options)
    refuse_wrong_call(model, batches)
    target = None if path is None else Path(path)
    start = opened(target)
    run = Run(start, target, progress)
    with forgotten(run.watcher), as_uncompiled(model) as plain, observed_alone(), torch.no_grad():
        compiled = torch.compile(plain, backend=run.watcher)
        try:
            first = run.all_batches(compiled, batches)
            if sensitivity:
                run.sensitivities(compiled, first)
        except BaseException:
            run.save(complete=False)
            raise
    run.save(complete=True)
    run.warn()
    return run.calibration(complete=True)


def refuse_wrong_call(model: Any, batches: Any) -> None:
    """What is told before anything runs."""
    if not callable(model):
        raise UserError(f"calibrate: expected a model, got {type(model).__name__}")
    if getattr(model, "training", False):
        raise UserError("calibrate: the model is in train mode: call model.eval() first")
    if isinstance(batches, Mapping | Tensor | str) or not isinstance(batches, Iterable):
        kind = type(batches).__name__
        raise UserError(
            f"calibrate: expected an iterable of batches, got a {kind}: write [batch] for one"
        )


def opened(path: Path | None) -> Calibration:
    """What is in the file already; nothing where there is none. A missing folder is an error."""
    if path is None:
        return Calibration(complete=False)
    if not path.parent.is_dir():
        raise UserError(f"calibrate: {path}: there is no folder {path.parent}")
    return Calibration.load(path) if path.exists() else Calibration(complete=False)


@contextmanager
def observed_alone() -> Iterator[None]:
    """No shape of a batch makes Dynamo give up and run the model unobserved."""
    with torch._dynamo.config.patch(
        recompile_limit=RECOMPILES,
        accumulated_recompile_limit=RECOMPILES,
        fail_on_recompile_limit_hit=True,
    ):
        yield


@dataclass(eq=False)
class Run:
    """One calibration on its way: `sites` are those of whole batches, `pending` of the one at work.

    `known`: the weight behind each plain name; another weight of that name is `name@weight`.
    """

    start: Calibration
    path: Path | None
    progress: bool
    sites: dict[str, SiteStatistics] = field(init=False)
    pending: dict[str, SiteStatistics] = field(default_factory=dict)
    known: dict[str, str] = field(init=False)
    sums: dict[tuple[int, int], Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sites = dict(self.start.sites)
        self.known = {name: one.weight for name, one in self.sites.items() if "@" not in name}
        self.batches, self.tokens = self.start.batches, self.start.tokens
        self.watcher = Watcher(self.receive)
        self.saved_at, self.saving_s = time.monotonic(), 0.0
        self.changed = False

    def receive(self, name: str, found: SiteStatistics) -> None:
        """One call's statistics."""
        key = self.key(name, found.weight)
        before = self.pending.get(key)
        self.pending[key] = found if before is None else before.merged(found, self.sums)

    def key(self, name: str, weight: str) -> str:
        """Under what a projection is kept."""
        return name if self.known.setdefault(name, weight) == weight else f"{name}@{weight}"

    def all_batches(self, model: Callable[..., Any], batches: Iterable[Any]) -> Any:
        """Run all batches that are not in yet; returns the first of all."""
        total = len(batches) if hasattr(batches, "__len__") else None  # type: ignore[arg-type]
        skip, first, count = self.start.batches, None, 0
        with progress_of("calibrating", shown=self.progress) as tell:
            for batch in batches:
                if not count:
                    first = batch
                    if skip:
                        self.check(model, batch)
                count += 1
                if count > skip:
                    self.one_batch(model, batch)
                tell(count, total)
        if not count:
            raise UserError(
                "calibrate: expected batches, got an empty iterable; a generator that was used "
                "before is empty"
            )
        if count < skip:
            raise UserError(
                f"calibrate: {self.path} holds {skip} batches, and there are {count}: calibrate "
                "with the batches that it was made with, or give another path"
            )
        return first

    def check(self, model: Callable[..., Any], batch: Any) -> None:
        """Whether the file is this model's, by the first batch that is skipped."""
        self.call(model, batch)
        seen, self.pending = self.pending, {}
        missing = next((name for name in seen if name not in self.sites), None)
        if missing is not None:
            name, _, weight = missing.partition("@")
            because = f"its {name} has another weight than {weight}" if weight else f"no {name}"
            raise UserError(
                f"calibrate: {self.path} is of another model ({because}): give another path"
            )
        if self.progress:
            say(f"{self.path} holds {self.start.batches} batches, which are skipped")

    def one_batch(self, model: Callable[..., Any], batch: Any) -> None:
        """Run one batch and take its statistics in, all or none."""
        self.call(model, batch)
        pending, self.pending = self.pending, {}
        if not pending:
            raise UserError(nothing_found(self.watcher))
        merged = dict(self.sites)
        for name, found in pending.items():
            stored = merged.get(name)
            merged[name] = found if stored is None else stored.merged(found, self.sums)
        self.sums = {}
        # measured at the thresholds of fewer batches
        stale = {name: one for name, one in merged.items() if one.sensitivity is not None}
        merged |= {name: replace(one, sensitivity=None) for name, one in stale.items()}
        self.tokens += max(found.rows for found in pending.values())
        self.sites, self.batches, self.changed = merged, self.batches + 1, True
        self.save_sometimes()

    def call(self, model: Callable[..., Any], batch: Any) -> None:
        """The model on one batch; raises what the watcher found."""
        self.pending, self.sums = {}, {}
        mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
        is_table = isinstance(mask, Tensor) and mask.dim() == 2
        self.watcher.padding = mask if is_table else None
        try:
            called(model, batch)
        except FailOnRecompileLimitHit as error:
            raise UserError(
                f"calibrate: the batches have over {RECOMPILES} kinds of shapes: pad them to a few"
            ) from error
        if self.watcher.errors:
            raise self.watcher.errors[0]

    def sensitivities(self, model: Callable[..., Any], batch: Any) -> None:
        """Measure every site that has no sensitivity yet."""
        missing = {name for name, one in self.sites.items() if one.sensitivity is None}
        if not missing:
            return
        total = len(missing)
        with progress_of("sensitivity", shown=self.progress) as tell:
            self.watcher.measure = partial(self.measure, missing, total, tell)
            try:
                self.call(model, first_tokens(batch))
            finally:
                self.watcher.measure = None

    def measure(
        self, missing: set[str], total: int, tell: Told, graph: WatchedGraph, inputs: Any
    ) -> Any:
        """Run one graph and measure its sites; a site that comes again is measured once."""

        def ask(name: str, weight: str) -> Histogram | None:
            key = self.key(name, weight)
            return self.sites[key].magnitude if key in missing else None

        def told(name: str, weight: str, value: float | None) -> None:
            key = self.key(name, weight)
            missing.discard(key)
            self.sites[key] = replace(self.sites[key], sensitivity=value)
            self.changed = True
            tell(total - len(missing), total)
            self.save_sometimes()

        return Measurement(graph).measure(inputs, ask, told)

    def calibration(self, complete: bool) -> Calibration:
        """What is known so far."""
        return Calibration(self.sites, self.batches, self.tokens, complete)

    def save_sometimes(self) -> None:
        """Write the file where half a minute went by; less often where writing takes long."""
        pause = max(SAVE_EVERY_S, self.saving_s / SAVING_SHARE)
        if time.monotonic() - self.saved_at >= pause:
            self.save(complete=False)

    def save(self, complete: bool) -> None:
        """Write the file, if there is anything that it does not hold yet."""
        finished = complete and not self.start.complete
        if self.path is None or not self.batches or not (self.changed or finished):
            return
        began = time.monotonic()
        self.calibration(complete).save(self.path)
        self.saved_at = time.monotonic()
        self.saving_s = self.saved_at - began
        self.changed = False

    def warn(self) -> None:
        """Tell what was met and not used."""
        broken = {n: int(x.magnitude.not_finite.sum()) for n, x in self.sites.items()}
        broken = {name: count for name, count in broken.items() if count}
        texts = [
            f"{count} graphs were not observed because of {cause}"
            for cause, count in self.watcher.left_out.items()
        ]
        if broken:
            name, count = next(iter(broken.items()))
            texts.append(
                f"NaN or infinity in the inputs of {len(broken)} projections, {count} in {name}; "
                "they are counted apart, and no other statistic has them"
            )
        for text in texts:
            warnings.warn(f"calibrate: {text}", CalibrationWarning, stacklevel=3)


def called(model: Callable[..., Any], batch: Any) -> Any:
    """The model on one batch."""
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, tuple | list):
        return model(*batch)
    return model(batch)


def nothing_found(watcher: Watcher) -> str:
    """Why no projection was seen."""
    causes = "; ".join(watcher.left_out)
    because = f": its graphs could not be read ({causes})" if causes else ""
    return (
        "calibrate: expected a model with linear layers (a parameter [out, in]), found none in "
        f"what torch.compile sees of this one{because}"
    )
