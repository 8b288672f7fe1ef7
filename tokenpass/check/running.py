"""A case from start to verdict: facts, outputs, quality, speed."""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from tokenpass.backend import tokenpass as backend
from tokenpass.check import speed, surroundings
from tokenpass.check.baseline import (
    Baseline,
    CaseBaseline,
    Fingerprint,
    MeasuredSpeed,
    fingerprint,
)
from tokenpass.check.check_file import Case, CheckFile
from tokenpass.check.differences import differences
from tokenpass.check.facts import CaseFacts, case_facts, profile_hash
from tokenpass.check.inputs import Repeated, described, timeable
from tokenpass.check.loading import Loader, LoadFailed
from tokenpass.check.outcome import CaseResult, Gate, Outcome, Status
from tokenpass.check.pairs import Interval, Work
from tokenpass.check.quality import MEASURES, main_tensor, wrong
from tokenpass.cost.device import find_profile
from tokenpass.errors import FallbackWarning, UserError

DIGITS = 6
Say = Callable[[str, float | None], None]
"""Told what is being done, and how many seconds that takes at most (None: not known)."""


@dataclass(frozen=True)
class Step:
    """What is being done for a case, when `done` of all `cases` are over."""

    case: str
    what: str
    done: int
    cases: int
    left_s: float | None = None


@dataclass(frozen=True)
class How:
    """What is asked of all cases.

    `timing`: whether the clock is used; `limit`: seconds of a case's pairs; `update`: facts and
    numbers are taken down, and only what needs no baseline is gated; `update_with`: how a user
    asks for that.
    """

    timing: bool = True
    limit: float = 60.0
    update: bool = False
    fail_on_improvement: bool = False
    update_with: str = "--update-baseline"


def run(
    file: CheckFile,
    baseline: Baseline | None,
    how: How,
    loader: Loader,
    tell: Callable[[Step], None],
) -> tuple[Outcome, Baseline]:
    """All cases, and the baseline that they would make.

    Ctrl-C ends it: what is there stays, and the rest is skipped.
    """
    profile = find_profile("cpu", file.device_profile, measured=False)
    mark, now = profile_hash(profile), fingerprint()
    same = baseline is not None and baseline.device_profile_hash == mark
    made: dict[str, CaseBaseline] = {} if baseline is None else dict(baseline.cases)
    results: list[CaseResult] = []
    interrupted = False
    for case in file.cases:
        if interrupted:
            results.append(CaseResult(case.name, case.line, (Gate("all", "skipped", STOPPED),)))
            continue
        old = None if baseline is None else baseline.cases.get(case.name)

        def say(what: str, left_s: float | None, name: str = case.name) -> None:
            tell(Step(name, what, len(results), len(file.cases), left_s))

        one = Running(case, None if how.update else old, same, how, now, loader, say)
        started = time.monotonic()
        try:
            result = one.run()
        except KeyboardInterrupt:
            interrupted = True
            result = one.so_far(Gate("all", "skipped", "interrupted in the middle"))
        results.append(replace(result, seconds=round(time.monotonic() - started, 2)))
        if (
            result.facts is not None
            and result.status not in ("wrong", "broken")
            and not interrupted
        ):
            made[case.name] = taken_down(case, result.facts, result, old, now)
    outcome = Outcome(str(file.path), tuple(results), now, notes(baseline, file, how), interrupted)
    new = Baseline(device_profile=profile.name, device_profile_hash=mark, cases=made)
    return outcome, new


def taken_down(
    case: Case, facts: CaseFacts, result: CaseResult, old: CaseBaseline | None, now: Fingerprint
) -> CaseBaseline:
    """A case as it is now; a ratio that was not measured now stays if it is of the same options."""
    same = old is not None and (old.model, old.options) == (case.spec.model, case.spec.options)
    kept = old.speed if old is not None and same else None
    return CaseBaseline(
        model=case.spec.model,
        options=case.spec.options,
        facts=facts,
        quality=result.quality,
        speed=result.speed or kept,
        fingerprint=now,
    )


STOPPED = "not started: interrupted before"


def notes(baseline: Baseline | None, file: CheckFile, how: How) -> tuple[str, ...]:
    """What is told beside the cases."""
    told: tuple[str, ...] = ()
    if how.timing:
        told += surroundings.warnings_of(surroundings.limits(), torch.get_num_threads())
    gone = sorted(set(baseline.cases if baseline else ()) - set(file.names))
    if gone:
        told += (f"the baseline has cases that the check file lacks: {', '.join(gone)}",)
    return told


class Running:
    """One case on its way."""

    def __init__(
        self,
        case: Case,
        old: CaseBaseline | None,
        same_profile: bool,
        how: How,
        now: Fingerprint,
        loader: Loader,
        say: Say,
    ) -> None:
        self.case, self.old, self.same_profile = case, old, same_profile
        self.how, self.now, self.loader, self.say = how, now, loader, say
        self.gates: list[Gate] = []
        self.facts: CaseFacts | None = None
        self.quality: dict[str, float] = {}
        self.speed: MeasuredSpeed | None = None
        self.inputs = ""

    def so_far(self, *more: Gate) -> CaseResult:
        """What is known by now."""
        gates = (*self.gates, *more)
        return CaseResult(
            self.case.name, self.case.line, gates, self.facts, self.quality, self.speed
        )

    def run(self) -> CaseResult:
        """All gates; what the model raises ends the case as broken."""
        self.say("loading the model", None)
        try:
            with told_apart():
                target = self.loader.target(self.case.spec.model)
                more = self.loader.calls(self.case.spec.shapes)
                metric = self.loader.function(self.case.spec.gates.metric)
            call = (target.args, target.kwargs)
            self.inputs, first = described(target.model, call), Repeated(call)
            self.say("planning", None)
            with told_apart():
                self.facts = case_facts(target.model, call, more, self.case.config)
                first.prepare()
            self.gates.append(self.facts_gate(self.facts))
            if self.how.timing or self.case.spec.gates.of_outputs:
                self.say("comparing outputs", None)
                with told_apart(), torch.no_grad():
                    self.judge(target.model, first, metric)
        except LoadFailed as error:
            return self.so_far(Gate("model", "broken", str(error)))
        except UserError as error:
            return self.so_far(Gate("plan", "broken", str(error)))
        except Exception as error:
            self.gates.append(Gate("model", "broken", self.loader.told(error)))
        return self.so_far()

    # facts -------------------------------------------------------------------------------------

    def facts_gate(self, facts: CaseFacts) -> Gate:
        """Facts beside the baseline's."""
        count = f"{len(facts.graphs)} graph{'' if len(facts.graphs) == 1 else 's'}"
        if self.how.update:
            return Gate("facts", "passed", f"{count}, taken down")
        if self.old is None:
            return Gate("facts", "failed", f"{count}; not in the baseline: {self.how.update_with}")
        found = differences(self.old, facts, self.case.spec.options, self.now, self.same_profile)
        bad = [one for one in found if not one.better or self.how.fail_on_improvement]
        if not found:
            return Gate("facts", "passed", f"{count}, as in the baseline")
        told = f"{len(found)} differ: {found[0].why}"
        return Gate("facts", "failed" if bad else "passed", told, found)

    # outputs and quality -----------------------------------------------------------------------

    def judge(self, model: Any, first: Repeated, metric: Callable[..., Any] | None) -> None:
        """Outputs, their distances, the metric, and then the clock."""
        torch._dynamo.reset()
        options = dict(self.case.spec.options)
        if not self.how.timing:  # the same plan on every machine
            options |= {"lowering": "eager", "device_profile": self.case.config.device_profile}
        ours = torch.compile(model, backend=backend, options=options)
        plain = torch.compile(model) if self.how.timing else model
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always", FallbackWarning)
            dense, found = (first.result(one, own_tensor) for one in (plain, ours))
        bad = wrong(found, dense)
        if bad is not None:
            self.gates.append(Gate("outputs", "wrong", bad))
            return
        fell = [str(one.message) for one in heard if issubclass(one.category, FallbackWarning)]
        if fell:
            self.gates.append(Gate("fallback", "failed", fell[0]))
        if dense is not None and found is not None:
            self.quality = {name: round(of(found, dense), DIGITS) for name, of in MEASURES.items()}
        self.gates += self.bounds()
        if metric is not None:
            self.gates.append(self.metric_gate(metric, ours))
        if self.how.timing:
            self.gates.append(self.speed_gate(timeable(plain, first), timeable(ours, first)))

    def bounds(self) -> Iterator[Gate]:
        """Distances beside their bounds."""
        gates = self.case.spec.gates
        for name, bound, above in (
            ("error", gates.max_error, False),
            ("cosine", gates.min_cosine, True),
            ("kl", gates.max_kl, False),
        ):
            if bound is None:
                continue
            if name not in self.quality:
                yield Gate(name, "broken", "the model returns no floating tensor")
                continue
            value = self.quality[name]
            kept = value >= bound if above else value <= bound
            status: Status = "passed" if kept else "wrong"
            yield Gate(name, status, f"{value:.4g}, at {'least' if above else 'most'} {bound:g}")

    def metric_gate(self, metric: Callable[..., Any], ours: Callable[..., Any]) -> Gate:
        """The user's own number."""
        floor = self.case.spec.gates.min_metric
        try:
            value = float(metric(ours))
        except Exception as error:
            return Gate("metric", "broken", self.loader.told(error))
        if value != value:
            return Gate("metric", "wrong", "it is not a number")
        self.quality["metric"] = round(value, DIGITS)
        if floor is None:
            return Gate("metric", "passed", f"{value:.4g}")
        status: Status = "passed" if value >= floor else "wrong"
        return Gate("metric", status, f"{value:.4g}, at least {floor:g}")

    # speed -------------------------------------------------------------------------------------

    @property
    def comparable(self) -> bool:
        """Whether the baseline's ratio is of what is measured now, on such a machine."""
        old = None if self.old is None else self.old.speed
        return old is not None and (old.fingerprint, old.inputs) == (self.now, self.inputs)

    def floor(self) -> speed.Floor:
        """The ratio that must be reached."""
        old = None if self.old is None else self.old.speed
        return speed.floor_of(self.case.spec.gates, old, self.comparable)

    def speed_gate(self, dense: Work, ours: Work) -> Gate:
        """The ratio beside its floor, or the reason why this machine cannot tell."""
        floor = self.floor()

        def progress(count: int, left_s: float) -> None:
            self.say(f"{count} pairs", max(left_s, 0.0))

        decisive = None if self.how.update else floor.ratio
        load = surroundings.load_of_others()
        found = speed.clocked(dense, ours, decisive, self.how.limit, progress)
        status, told = speed.verdict(found, floor)
        told += surroundings.busy(load)
        if not found.bounded:
            return Gate("speed", status, told)
        loose = speed.too_wide(found.now, self.case.spec.gates.tolerance)
        if self.how.update and loose is not None:
            worse: Status = "inconclusive" if status == "passed" else status
            return Gate("speed", worse, f"{told}; not taken down: {loose}")
        self.speed = self.taken(found, load)
        if status == "passed" and self.how.fail_on_improvement and self.improved(found.now):
            return Gate("speed", "failed", f"{told}; faster than the baseline: update it")
        return Gate("speed", status, told)

    def taken(self, found: speed.Clocked, load: float) -> MeasuredSpeed:
        """What was measured, as a baseline keeps it."""
        now, noise = found.now, found.noise
        return MeasuredSpeed(
            speedup=round(now.ratio, 4),
            low=round(now.low, 4),
            high=round(now.high, 4),
            pairs=now.pairs,
            noise_low=round(noise.low, 4),
            noise_high=round(noise.high, 4),
            dense_ms=round(found.measured.first_ms, 4),
            ours_ms=round(found.measured.second_ms, 4),
            load=load,
            inputs=self.inputs,
            fingerprint=self.now,
        )

    def improved(self, now: Interval) -> bool:
        """Whether the ratio is beyond what the baseline's tolerance explains."""
        if self.old is None or self.old.speed is None or not self.comparable:
            return False
        return speed.improved(now, self.old.speed, self.case.spec.gates.tolerance)


def own_tensor(output: Any) -> torch.Tensor | None:
    """A copy of an output's main tensor, which may be an input's memory."""
    found = main_tensor(output)
    return None if found is None else found.clone()


@contextlib.contextmanager
def told_apart() -> Iterator[None]:
    """What the user's code prints goes to standard error: standard output is the check's."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
