"""What can be configured: the frozen models of options, pass entries and pinned edits.

A field's description says what is expected of it; messages and documentation read it from here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    SerializeAsAny,
)

from tokenpass import option_values
from tokenpass.errors import InternalError
from tokenpass.option_values import LayerRanges, Spans

VERSION = 1

# Named in the documentation as coming; giving one is an error, never ignored.
OBJECTIVES_NOT_AVAILABLE = ("energy",)

# What stands in a file alone: `version`, and what pins a plan.
FILE_ONLY = ("version", "edits", "fingerprint", "predicted_share", "error")

STRICT = ConfigDict(strict=True, frozen=True, extra="forbid")


def _objective(value: Any) -> Any:
    if value in OBJECTIVES_NOT_AVAILABLE:
        raise ValueError("not available in this version")
    return value


def _version(value: Any) -> int:
    if type(value) is not int or value != VERSION:
        raise ValueError("")
    return value


def _path_text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


@runtime_checkable
class Measured(Protocol):
    """A calibration in memory; its class needs torch, which reading options does without."""

    sites: Mapping[str, Any]
    batches: int
    tokens: int
    complete: bool


def _calibration(value: Any) -> Any:
    if value is None or isinstance(value, Measured):
        return value
    return option_values.word(_path_text(value))


def _inductor(value: Any) -> str | dict[str, Any]:
    if isinstance(value, str):
        return value
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError("")
    return {key.replace("-", "_"): item for key, item in value.items()}


class PassOptions(BaseModel):
    """Base of a pass's own options; each field's description says what is expected."""

    model_config = STRICT


KeepRatio = Annotated[float | Literal["auto"], PlainValidator(option_values.keep_ratio)]


class TokenOptions(PassOptions):
    """Options of the passes that shorten the token stream."""

    keep_ratio: KeepRatio = Field(
        default="auto",
        description='"auto" or the share of tokens (of the span) kept, above 0 and below 1',
    )
    span: Annotated[Spans | str | None, PlainValidator(option_values.span_or_name)] = Field(
        default=None,
        description="a name from `spans`, or positions [start, stop], the stop not included",
    )


class SparsityOptions(PassOptions):
    """Options of the pass that leaves out entries of projections' inputs."""

    sparsity: Annotated[float | Literal["auto"], PlainValidator(option_values.sparsity)] = Field(
        default="auto",
        description='"auto" or the share of entries left out, above 0 and below 1',
    )


class Scope(BaseModel):
    """Where a pass may act and by which policy; an option left out does not limit."""

    model_config = STRICT

    policy: Annotated[str | None, PlainValidator(option_values.word)] = Field(
        default=None, description="a policy's name"
    )
    layers: Annotated[LayerRanges | None, PlainValidator(option_values.layers)] = Field(
        default=None, description='layers such as 2, "2-11" or [0, "2-4"]'
    )
    include: Annotated[tuple[str, ...] | None, PlainValidator(option_values.patterns)] = Field(
        default=None, description='a list of globs or "re:..." patterns on module paths'
    )
    exclude: Annotated[tuple[str, ...], PlainValidator(option_values.patterns)] = Field(
        default=(), description='a list of globs or "re:..." patterns on module paths'
    )

    def covers(self, layer: int | None, *names: str) -> bool:
        """Whether a site, by any of its names, is in scope; outside every layer `layer` is None."""
        if self.layers is not None and not any(
            layer is not None and first <= layer <= last for first, last in self.layers
        ):
            return False
        if self.include is not None and not any(
            option_values.matches(name, self.include) for name in names
        ):
            return False
        return not any(option_values.matches(name, self.exclude) for name in names)


class PassSpec(Scope):
    """One entry of `passes`: the pass, its scope, and its own options."""

    name: str
    options: SerializeAsAny[PassOptions] = PassOptions()


class EditSpec(BaseModel):
    """One pinned edit of a plan file."""

    model_config = STRICT

    pass_name: str = Field(alias="pass", min_length=1, description="the name of a pass")
    site: str = Field(min_length=1, description="a site: module path, role and ordinal")
    policy: str = Field(description="a policy's name")
    level: Annotated[str, PlainValidator(option_values.level)] = Field(
        description="a number, or arithmetic over `tokens` with + - * / //, floor, ceiling, "
        "Min, Max and Mod"
    )
    span: Annotated[Spans, PlainValidator(option_values.span)] = Field(
        default=(), description="positions [start, stop], the stop not included, or a list of them"
    )


@dataclass(frozen=True)
class PassSchema:
    """What reading options needs of one pass.

    `exact` passes are always on: plans may pin them, `passes` may not list them. A pass without
    `policies` takes none.
    """

    options: type[PassOptions] = PassOptions
    policies: tuple[str, ...] = ()
    exact: bool = False

    def __post_init__(self) -> None:
        taken = sorted(set(self.options.model_fields) & set(Scope.model_fields))
        if taken:
            raise InternalError(f"{self.options.__name__}: {', '.join(taken)} is every pass's")


class Config(BaseModel):
    """All options of one compilation, resolved.

    `budget` is None where `max_error` alone binds. `passes` is None where every lossy pass may act.
    `edits` is None where the planner decides, and a tuple, perhaps empty, where a plan is pinned;
    `predicted_share` and `error` then tell what was predicted for it. `origin` is the file that
    was read, for messages.
    """

    model_config = STRICT

    budget: Annotated[float | None, PlainValidator(option_values.share)] = Field(
        default=1.0,
        description='a share of the dense cost above 0 and at most 1, such as 0.3 or "30%"',
    )
    max_error: Annotated[float | None, PlainValidator(option_values.positive)] = Field(
        default=None, description="a relative L2 error above 0, such as 0.05"
    )
    objective: Annotated[Literal["latency", "flops", "memory"], BeforeValidator(_objective)] = (
        "latency"
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="a whole number from 0")
    passes: tuple[PassSpec, ...] | None = Field(
        default=None, description="a list of passes, each a name or {name: {option: value}}"
    )
    spans: Annotated[dict[str, Spans] | None, PlainValidator(option_values.named_spans)] = Field(
        default=None,
        description="{name: [start, stop]}, token positions with the stop not included",
    )
    device_profile: Annotated[str | None, BeforeValidator(_path_text)] = Field(
        default=None,
        min_length=1,
        description="the name of a device profile or the path of its file",
    )
    calibration: Annotated[str | Measured | None, PlainValidator(_calibration)] = Field(
        default=None,
        description="the path of a file that `tokenpass.calibrate` wrote, or what it returned",
    )
    pack_memory: float = Field(
        default=0.5,
        ge=0,
        allow_inf_nan=False,
        strict=False,
        description="a share of the weights' bytes from 0, such as 0.5",
    )
    training: Literal["refuse", "allow"] = "refuse"
    shorter_cache: bool = Field(default=False, description="true or false")
    verify: Literal["never", "first", "always"] = "never"
    lowering: Literal["inductor", "eager"] = "inductor"
    inductor: Annotated[str | dict[str, Any], PlainValidator(_inductor)] = Field(
        default="default",
        description="the name of an Inductor mode or a mapping of Inductor's options",
    )
    on_failure: Literal["fallback", "raise"] = "fallback"

    version: Annotated[int, PlainValidator(_version)] = Field(
        default=VERSION, description="1, the version of the file format"
    )
    edits: tuple[EditSpec, ...] | None = Field(
        default=None, description="a list of {pass, site, policy, level}"
    )
    fingerprint: str | None = Field(
        default=None, min_length=1, description="the fingerprint of a graph"
    )
    predicted_share: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="a number from 0"
    )
    error: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="a number from 0"
    )
    origin: str = "options"


OPTION_NAMES = (*(n for n in Config.model_fields if n not in (*FILE_ONLY, "origin")), "config")
FILE_KEYS = tuple(n for n in Config.model_fields if n != "origin")
