"""One check in one test: what a check file would ask for, in the test's own words."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tokenpass.check.baseline import Baseline, read_baseline, write_baseline
from tokenpass.check.check_file import CheckFile, read_case
from tokenpass.check.loading import Loader
from tokenpass.check.outcome import CaseResult
from tokenpass.check.running import How, run
from tokenpass.check.written import as_text
from tokenpass.cli.target import Target, told
from tokenpass.errors import ConfigError
from tokenpass.yaml_file import YamlFile

BASELINE = "tokenpass.baseline.pytest.json"
"""Beside the test file, and apart from a check file's, whose cases are others."""

UPDATE = "--tokenpass-update"
HERE = "the test"


@dataclass
class Check:
    """Checks models in one test: plans and kernels exactly, outputs and, on demand, speed.

    The baseline stands beside the test file; `--tokenpass-update` writes it.
    """

    node: pytest.Item
    config: pytest.Config
    count: int = 0

    def __call__(
        self,
        model: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        options: Mapping[str, Any] | None = None,
        shapes: Sequence[Any] = (),
        **gates: Any,
    ) -> CaseResult:
        """Fail the test where a gate does; skip it where the clock cannot tell.

        `options`: as for `torch.compile`; `shapes`: further calls, whose recompilations are
        counted; `gates`: those of a check file, and `metric` may be the function itself.
        Raises `ConfigError` for options and gates that are none.
        """
        metric = gates.get("metric")
        if callable(metric):
            gates["metric"] = f"{HERE}:metric"
        target = Target(model, tuple(args), dict(kwargs or {}))
        loader = Loader(lambda _: target, lambda _: shapes, lambda _: metric, told)
        asked = self.asked(dict(options or {}), gates, bool(shapes))
        path = self.node.path.with_name(BASELINE)
        outcome, made = run(asked, read_baseline(path), self.how, loader, lambda _: None)
        (result,) = outcome.cases
        if outcome.interrupted:
            raise KeyboardInterrupt
        if self.how.update and result.status not in ("wrong", "broken"):
            self.write(made, result.name, path)
        if result.status == "inconclusive":
            pytest.skip(as_text(result))
        if result.status != "passed":
            pytest.fail(as_text(result), pytrace=False)
        return result

    @property
    def how(self) -> How:
        """What is asked of all checks."""
        return How(
            timing=bool(self.config.getoption("--tokenpass-timing")),
            limit=float(str(self.config.getoption("--tokenpass-time-limit"))),
            update=bool(self.config.getoption(UPDATE)),
            update_with=UPDATE,
        )

    def asked(self, options: dict[str, Any], gates: dict[str, Any], more: bool) -> CheckFile:
        """The check file that would say the same."""
        name = self.name()
        data: dict[str, Any] = {"model": f"{HERE}:model", "options": options, "gates": gates}
        if more:
            data["shapes"] = f"{HERE}:shapes"
        profile = str(self.config.getini("tokenpass_device_profile"))
        line = (self.node.location[1] or 0) + 1
        file = YamlFile(self.node.path, data, {("cases", name): line})
        problems: list[str] = []
        case = read_case(name, data, profile, file, problems)
        if case is None or problems:
            raise ConfigError("\n".join(problems))
        return CheckFile(self.node.path, profile, (case,), (name,))

    def name(self) -> str:
        """The test's name within its folder, with a number from its second check on."""
        self.count += 1
        inner = self.node.nodeid.partition("::")[2]
        number = f" ({self.count})" if self.count > 1 else ""
        return f"{self.node.path.name}::{inner}{number}"

    @staticmethod
    def write(made: Baseline, name: str, path: Path) -> None:
        """Put one case into the baseline; other processes of the same run may be at it too."""
        mark = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
        with FileLock(Path(tempfile.gettempdir()) / f"tokenpass-{mark}.lock"):
            known = read_baseline(path)
            cases = {} if known is None else dict(known.cases)
            cases[name] = made.cases[name]
            write_baseline(made.model_copy(update={"cases": cases}), path)
