"""What a check file asks for: cases, each a model, its options, and gates.

    version: 1
    device_profile: generic-cpu
    cases:
      encoder:
        model: my_models:encoder
        options: {budget: 0.5}
        gates: {min_speedup: 1.3, max_error: 0.2}

Read strictly: whatever is unknown is an error with its line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, model_validator

from tokenpass.config import Config
from tokenpass.cost.device import DEVICES
from tokenpass.errors import ConfigError, UserError, nearest
from tokenpass.options import read_options
from tokenpass.yaml_file import KeyPath, YamlFile, read_yaml, show_key

VERSION = 1
NAME = "tokenpass.check.yaml"
STRICT = ConfigDict(frozen=True, extra="forbid")

NOT_OF_A_CASE = ("device_profile", "lowering", "verify", "on_failure")
"""Options that the check itself decides."""


def share_below_one(value: Any) -> float:
    """A share from 0 and below 1: a number, or a text with its percent sign."""
    if isinstance(value, str) and value.endswith("%"):
        try:
            value = float(value[:-1]) / 100
        except ValueError:
            value = None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError("")
    return float(value)


def reference(value: Any) -> str:
    """`MODULE:NAME` or `FILE.py:NAME`; nothing is imported."""
    where, colon, name = str(value).rpartition(":")
    if not isinstance(value, str) or not (where and colon and name):
        raise ValueError("")
    return value


Reference = Annotated[str, PlainValidator(reference)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Gates(BaseModel):
    """Bounds that a case must keep.

    Whatever the bounds, facts that differ from the baseline's fail the case.
    """

    model_config = STRICT

    min_speedup: Positive | None = Field(
        default=None, description="a ratio to dense above 0, such as 1.3"
    )
    tolerance: Annotated[float, PlainValidator(share_below_one)] = Field(
        default=0.05, description='a share from 0 and below 1, such as 0.05 or "5%"'
    )
    max_error: Positive | None = Field(
        default=None, description="a relative L2 distance to dense above 0, such as 0.1"
    )
    min_cosine: float | None = Field(
        default=None, ge=-1, le=1, description="a cosine from -1 to 1, such as 0.99"
    )
    max_kl: Positive | None = Field(
        default=None, description="a divergence of the logits in nats above 0, such as 0.01"
    )
    metric: Reference | None = Field(
        default=None, description="MODULE:NAME of a function of the model that gives a number"
    )
    min_metric: float | None = Field(
        default=None, allow_inf_nan=False, description="the least number that it may give"
    )

    @property
    def of_outputs(self) -> bool:
        """Whether something is asked of what the model returns."""
        asked = (self.max_error, self.min_cosine, self.max_kl, self.metric)
        return any(bound is not None for bound in asked)

    @model_validator(mode="after")
    def _pairs(self) -> Gates:
        if self.min_metric is not None and self.metric is None:
            raise ValueError("min_metric: there is no `metric` to be compared with it")
        return self


class CaseSpec(BaseModel):
    """One case. `shapes` gives further calls of the model, of which recompilations are counted."""

    model_config = STRICT

    model: Reference = Field(
        description="MODULE:NAME or FILE.py:NAME of what gives (model, args) or "
        "(model, args, kwargs)"
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="a mapping of options, as for torch.compile"
    )
    shapes: Reference | None = Field(
        default=None,
        description="MODULE:NAME of what gives a list of (args) or (args, kwargs) of more calls",
    )
    gates: Gates = Field(default_factory=Gates, description="a mapping of gates")


class _Head(BaseModel):
    model_config = STRICT

    version: Literal[1] = Field(description="1, the version of the file format")
    device_profile: str = Field(
        default="generic-cpu",
        description=f"a shipped device profile: {', '.join(DEVICES)}, or the path of its file",
    )
    cases: dict[str, Any] = Field(min_length=1, description="a mapping of cases by their names")


@dataclass(frozen=True)
class Case:
    """One case: what is asked, its options resolved, and where it stands in the file."""

    name: str
    spec: CaseSpec
    config: Config
    line: int = 1


@dataclass(frozen=True)
class CheckFile:
    """What a check file says: `cases` that are asked for, of all that it has by `names`."""

    path: Path
    device_profile: str
    cases: tuple[Case, ...]
    names: tuple[str, ...]

    def only(self, names: tuple[str, ...]) -> CheckFile:
        """The same with some of its cases; raises `UserError` for a name that it lacks."""
        for name in names:
            if name not in self.names:
                raise UserError(
                    f"--only: {self.path} has no case {name!r}{nearest(name, self.names)}; "
                    f"it has {', '.join(self.names)}"
                )
        cases = tuple(case for case in self.cases if not names or case.name in names)
        return replace(self, cases=cases)


def read_check_file(path: str | Path) -> CheckFile:
    """Reads a check file; nothing that it names is imported.

    Raises `ConfigError` that lists every problem with its line.
    """
    file = read_yaml(path)
    problems = list(file.problems)
    head = validated(_Head, file.data, (), file, problems)
    cases: list[Case] = []
    profile = "generic-cpu" if head is None else profile_path(head.device_profile, file)
    for name, data in (head.cases if head is not None else {}).items():
        case = read_case(name, data, profile, file, problems)
        cases += [] if case is None else [case]
    if problems:
        raise ConfigError("\n".join(problems))
    return CheckFile(file.path, profile, tuple(cases), tuple(case.name for case in cases))


def profile_path(name: str, file: YamlFile) -> str:
    """A profile's name, or its path relative to the check file."""
    return name if name in DEVICES else str(file.path.parent / name)


def read_case(
    name: str, data: Any, profile: str, file: YamlFile, problems: list[str]
) -> Case | None:
    """One case of a file."""
    at: KeyPath = ("cases", name)
    line = file.lines.get(at, 1)
    if not isinstance(data, Mapping):
        problems.append(f"{file.place(at)}: {show_key(at)}: expected a mapping with `model`")
        return None
    nested = {"gates": Gates}
    found = len(problems)
    for key, model in nested.items():
        if isinstance(data.get(key), Mapping):
            validated(model, data[key], (*at, key), file, problems)
    if len(problems) > found:
        return None
    spec = validated(CaseSpec, data, at, file, problems)
    if spec is None:
        return None
    own = [key for key in spec.options if key in NOT_OF_A_CASE]
    for key in own:
        place = (*at, "options", key)
        problems.append(
            f"{file.place(place)}: {show_key(place)}: is decided by the check, not by a case"
        )
    options = {key: value for key, value in spec.options.items() if key not in own}
    for key in ("config", "calibration"):
        if isinstance(options.get(key), str):
            options[key] = str(file.path.parent / options[key])
    try:
        config = read_options({**options, "device_profile": profile})
    except UserError as error:
        place = (*at, "options")
        lines = str(error).splitlines()
        problems += [f"{file.place(place)}: {show_key(place)}: {line.strip()}" for line in lines]
        return None
    return Case(name, spec.model_copy(update={"options": options}), config, line)


def validated(
    model: type[BaseModel],
    data: Mapping[str, Any],
    at: KeyPath,
    file: YamlFile,
    problems: list[str],
) -> Any:
    """The model of a mapping; None, and problems in the words of its fields, where it is none."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        for found in {one["loc"][:1]: one for one in error.errors()[::-1]}.values():
            problems.append(described(model, found, at, file))
        return None


def described(model: type[BaseModel], found: Any, at: KeyPath, file: YamlFile) -> str:
    """One problem with its place."""
    key = found["loc"][0] if found["loc"] else None
    where = at if key is None else (*at, str(key))
    place = f"{file.place(where)}: {show_key(where) if where else 'the file'}"
    if key is None:
        return f"{place}: {found.get('ctx', {}).get('error', found['msg'])}"
    if key not in model.model_fields:
        allowed = ", ".join(model.model_fields)
        return f"{place}: unknown key{nearest(str(key), model.model_fields)}; allowed: {allowed}"
    expected = model.model_fields[key].description
    if found["type"] == "missing":
        return f"{place}: missing; expected {expected}"
    return f"{place}: expected {expected}, got {found['input']!r}"
