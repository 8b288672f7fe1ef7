"""Options and pass-config files, read strictly into one frozen `Config`; options beat files.

Every problem is found before any is reported: one error lists them all, each with its place, what
was expected, what was got and the nearest allowed name. Passes and their options arrive as
arguments, so this module knows none of them.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from tokenpass.config_schema import (
    FILE_KEYS,
    FILE_ONLY,
    OPTION_NAMES,
    VERSION,
    Config,
    EditSpec,
    KeepRatio,
    PassOptions,
    PassSchema,
    PassSpec,
    Scope,
    TokenOptions,
)
from tokenpass.errors import ConfigError, OptionError, nearest
from tokenpass.yaml_file import KeyPath, YamlFile, read_yaml, show_key

__all__ = [
    "Config",
    "EditSpec",
    "KeepRatio",
    "PassOptions",
    "PassSchema",
    "PassSpec",
    "TokenOptions",
    "resolve",
]

_Model = TypeVar("_Model", bound=BaseModel)

# What decides a plan: beside pinned edits these options would have no effect.
_PLANNING = ("budget", "max_error", "objective", "passes", "spans")


@dataclass(frozen=True)
class _Source:
    """Where values come from: the options, a mapping given as `config`, or a file."""

    data: Mapping[Any, Any]
    allowed: tuple[str, ...]
    kind: Literal["options", "mapping", "file"]
    name: str
    file: YamlFile | None = None

    @property
    def folder(self) -> Path:
        """What relative paths are relative to."""
        return self.file.path.parent if self.file else Path()

    def problem(self, key: KeyPath, text: str) -> str:
        """One line of the error: place, key, what is wrong."""
        where = self.file.place(key) if self.file else self.name
        place = "" if self.kind == "options" else f"{where}: "
        return f"{place}{show_key(key)}: {text}"


@dataclass(frozen=True)
class _Known:
    """What the caller knows and this module must not import; None leaves a name unchecked."""

    passes: Mapping[str, PassSchema]
    inductor_modes: Collection[str] | None
    inductor_options: Collection[str] | None
    device_profiles: Collection[str] | None


def resolve(
    options: Mapping[str, Any] | None,
    passes: Mapping[str, PassSchema],
    *,
    inductor_modes: Collection[str] | None = None,
    inductor_options: Collection[str] | None = None,
    device_profiles: Collection[str] | None = None,
) -> Config:
    """Reads options and the file or mapping that they name as `config`; options beat it.

    The names that this module cannot know come as arguments; those left out are not checked.

    Raises:
        OptionError: something is wrong with the options (what else is wrong with the file is
            listed too).
        ConfigError: the file or mapping alone is wrong.
    """
    known = _Known(passes, inductor_modes, inductor_options, device_profiles)
    problems: list[str] = []
    if options is not None and not isinstance(options, Mapping):
        raise OptionError(f"options: expected a mapping, got {_shown(options)}")
    given = dict(options or {})
    path = given.pop("config", None)
    values = _read(_Source(given, OPTION_NAMES, "options", "options"), known, problems)

    file_problems: list[str] = []
    file_values: dict[str, Any] = {}
    name = "options"
    if isinstance(path, Mapping) or (isinstance(path, str | os.PathLike) and os.fspath(path)):
        file = _open(path, file_problems)
        name = file.name
        file_values = _read(file, known, file_problems)
    elif path is not None:
        problems.append(f"config: expected a path or a mapping, got {_shown(path)}")

    if not problems and not file_problems:
        problems += _conflicts(values, file_values, name)
    if problems:
        raise OptionError(_report("the options", problems + file_problems))
    if file_problems:
        raise ConfigError(_report(name, file_problems))
    merged = file_values | values
    if merged.get("max_error") is not None:
        merged.setdefault("budget", None)
    return Config.model_construct(**merged, origin=name)


def _open(config: Mapping[Any, Any] | str | os.PathLike[str], problems: list[str]) -> _Source:
    """The source behind `config`; an unreadable file is a problem and an empty source."""
    if isinstance(config, Mapping):
        return _Source(config, FILE_KEYS, "mapping", "config")
    try:
        file = read_yaml(config)
    except ConfigError as error:
        problems.append(str(error))
        return _Source({}, FILE_KEYS, "file", os.fspath(config))
    problems += file.problems
    if "version" not in file.data:
        problems.append(f"{file.path}:1: version: missing; write `version: {VERSION}`")
    return _Source(file.data, FILE_KEYS, "file", str(file.path), file)


def _read(source: _Source, known: _Known, problems: list[str]) -> dict[str, Any]:
    """The values that a source gives, in normal form; what is wrong goes to `problems`."""
    version = source.data.get("version", VERSION)
    if "version" in source.allowed and type(version) is int and version != VERSION:
        text = f"expected {VERSION}, the version that this tokenpass reads, got {version}"
        problems.append(source.problem(("version",), text))
        return {}
    data = {key: value for key, value in source.data.items() if key in source.allowed}
    problems += [
        source.problem((str(key),), _unknown(key, source)) for key in source.data if key not in data
    ]
    flat = {key: value for key, value in data.items() if key not in ("passes", "edits")}
    checked = _validated(Config, flat, (), source, problems)
    values = {key: getattr(checked, key) for key in flat} if checked else {}
    if "passes" in data:
        values["passes"] = tuple(_pass_specs(data["passes"], source, known, problems))
    if "edits" in data:
        values["edits"] = tuple(_edit_specs(data["edits"], source, known, problems))
    if _is_path(values.get("device_profile")):
        values["device_profile"] = str(source.folder / values["device_profile"])
    if isinstance(values.get("calibration"), str):
        values["calibration"] = str(source.folder / values["calibration"])
    problems += _unknown_names(values, source, known)
    problems += _half_plan(data, source)
    return values


def _unknown(key: Any, source: _Source) -> str:
    if key == "config":
        return "a config file cannot name another one"
    if key in FILE_ONLY:
        return "belongs in a config file, not among the options"
    return f"unknown option{_choices(str(key), source.allowed)}"


def _choices(name: str, allowed: Collection[str]) -> str:
    """The nearest allowed name and, if they are few enough to read, all of them."""
    listed = f"; allowed: {', '.join(allowed) or 'none'}" if len(allowed) <= 30 else ""
    return f"{nearest(name, allowed)}{listed}"


def _validated(
    model: type[_Model], data: dict[str, Any], at: KeyPath, source: _Source, problems: list[str]
) -> _Model | None:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems += _described(model, error, at, source)
        return None


def _described(
    model: type[BaseModel], error: ValidationError, at: KeyPath, source: _Source
) -> Iterator[str]:
    """One problem for each wrong key, in the words of the field's description."""
    fields = {info.alias or name: info for name, info in model.model_fields.items()}
    first = {str(found["loc"][0]) if found["loc"] else "": found for found in error.errors()[::-1]}
    for key, found in reversed(first.items()):
        value, reason = found["input"], str(found.get("ctx", {}).get("error", ""))
        if not key:  # a rule over several fields
            yield source.problem(at, reason or found["msg"])
            continue
        where = (*at, key)
        if key not in fields:
            yield source.problem(where, f"unknown option{_choices(key, fields)}")
            continue
        info = fields[key]
        choices = [choice for choice in get_args(info.annotation) if isinstance(choice, str)]
        expected = info.description or "one of " + ", ".join(map(repr, choices))
        if found["type"] == "missing":
            yield source.problem(where, f"missing; expected {expected}")
            continue
        near = nearest(value, choices) if isinstance(value, str) else ""
        if choices and isinstance(value, bool):
            near = " (YAML reads on, off, yes and no as true and false)"
        reason = f": {reason}" if reason else ""
        yield source.problem(where, f"expected {expected}, got {_shown(value)}{near}{reason}")


def _pass_specs(
    entries: Any, source: _Source, known: _Known, problems: list[str]
) -> Iterator[PassSpec]:
    if not isinstance(entries, list | tuple):
        expected = Config.model_fields["passes"].description
        text = f"expected {expected}, got {_shown(entries)}"
        problems.append(source.problem(("passes",), text))
        return
    seen: list[PassSpec] = []
    for index, entry in enumerate(entries):
        spec = _pass_spec(entry, ("passes", index), source, known, problems)
        if spec in seen:
            text = f"{spec.name} stands twice with the same options"
            problems.append(source.problem(("passes", index), text))
        elif spec is not None:
            seen.append(spec)
            yield spec


def _pass_spec(
    entry: Any, at: KeyPath, source: _Source, known: _Known, problems: list[str]
) -> PassSpec | None:
    if isinstance(entry, PassSpec):
        return entry
    body = {} if isinstance(entry, str) else entry
    if isinstance(entry, Mapping) and len(entry) == 1:
        entry, body = next(iter(entry.items()))
        body = {} if body is None else body
    if not isinstance(entry, str):
        hint = ""
        if isinstance(entry, Mapping) and any(value is None for value in entry.values()):
            hint = " (options stand deeper than the pass's name: {name: {option: value}})"
        text = f"expected a name or {{name: {{option: value}}}}, got {_shown(entry)}{hint}"
        problems.append(source.problem(at, text))
        return None
    schema = known.passes.get(entry)
    lossy = [name for name, schema in known.passes.items() if not schema.exact]
    if schema is None:
        problems.append(source.problem(at, f"unknown pass {entry!r}{_choices(entry, lossy)}"))
        return None
    at = (*at, entry)
    if schema.exact:
        text = "is exact and always on; `passes` limits the lossy ones"
        problems.append(source.problem(at, f"{text}: {', '.join(lossy) or 'none'}"))
        return None
    if not isinstance(body, Mapping):
        problems.append(source.problem(at, f"expected {{option: value}}, got {_shown(body)}"))
        return None
    return _scoped(entry, body, schema, at, source, problems)


def _scoped(
    name: str,
    body: Mapping[Any, Any],
    schema: PassSchema,
    at: KeyPath,
    source: _Source,
    problems: list[str],
) -> PassSpec | None:
    """Splits a pass's options into its scope and its own, and checks both."""
    common = [key for key in Scope.model_fields if schema.policies or key != "policy"]
    own = {info.alias or key: key for key, info in schema.options.model_fields.items()}
    allowed = (*common, *own)
    found = [
        source.problem((*at, str(key)), f"unknown option of {name}{_choices(str(key), allowed)}")
        for key in body
        if key not in allowed
    ]
    scope_data = {key: value for key, value in body.items() if key in common}
    scope = _validated(Scope, scope_data, at, source, found)
    own_data = {key: value for key, value in body.items() if key in own}
    options = _validated(schema.options, own_data, at, source, found)
    policy = scope_data.get("policy")
    if isinstance(policy, str) and policy not in schema.policies:
        text = f"unknown policy {policy!r}{_choices(policy, schema.policies)}"
        found.append(source.problem((*at, "policy"), text))
    problems += found
    if found or scope is None or options is None:
        return None
    limits = {key: getattr(scope, key) for key in scope.model_fields_set}
    return PassSpec.model_construct(name=name, options=options, **limits)


def _edit_specs(
    entries: Any, source: _Source, known: _Known, problems: list[str]
) -> Iterator[EditSpec]:
    if not isinstance(entries, list | tuple):
        expected = Config.model_fields["edits"].description
        text = f"expected {expected}, got {_shown(entries)}"
        problems.append(source.problem(("edits",), text))
        return
    for index, entry in enumerate(entries):
        at: KeyPath = ("edits", index)
        if not isinstance(entry, Mapping) or not all(isinstance(key, str) for key in entry):
            text = f"expected {{pass, site, policy, level}}, got {_shown(entry)}"
            problems.append(source.problem(at, text))
            continue
        edit = _validated(EditSpec, dict(entry), at, source, problems)
        if edit is None:
            continue
        schema = known.passes.get(edit.pass_name)
        if schema is None:
            text = f"unknown pass {edit.pass_name!r}{_choices(edit.pass_name, known.passes)}"
            problems.append(source.problem((*at, "pass"), text))
        elif schema.policies and edit.policy not in schema.policies:
            text = f"unknown policy {edit.policy!r}{_choices(edit.policy, schema.policies)}"
            problems.append(source.problem((*at, "policy"), text))
        else:
            yield edit


def _unknown_names(values: Mapping[str, Any], source: _Source, known: _Known) -> Iterator[str]:
    """Names that the caller lists and a source misspells, and profiles whose file is missing."""
    inductor = values.get("inductor", {})
    if isinstance(inductor, str) and known.inductor_modes is not None:
        if inductor not in known.inductor_modes:
            text = f"unknown Inductor mode {inductor!r}{_choices(inductor, known.inductor_modes)}"
            yield source.problem(("inductor",), text)
    elif isinstance(inductor, Mapping) and known.inductor_options is not None:
        for key in inductor:
            if key not in known.inductor_options:
                text = f"unknown option of Inductor{_choices(key, known.inductor_options)}"
                yield source.problem(("inductor", key), text)
    calibration = values.get("calibration")
    if isinstance(calibration, str) and not Path(calibration).is_file():
        yield source.problem(("calibration",), f"file not found: {calibration}")
    profile = values.get("device_profile")
    if profile is None:
        return
    if _is_path(profile):
        if not Path(profile).is_file():
            yield source.problem(("device_profile",), f"file not found: {profile}")
    elif known.device_profiles is not None and profile not in known.device_profiles:
        text = f"unknown device profile {profile!r}{_choices(profile, known.device_profiles)}"
        yield source.problem(("device_profile",), text)


def _is_path(profile: str | None) -> bool:
    if profile is None:
        return False
    return "/" in profile or os.sep in profile or Path(profile).suffix in (".yaml", ".yml")


def _half_plan(data: Mapping[str, Any], source: _Source) -> Iterator[str]:
    """A pinned plan is its edits and the fingerprint of their graph; the rest tells of it."""
    if "edits" in data and data.get("fingerprint") is None:
        text = "need the fingerprint of the graph that they were made for"
        yield source.problem(("edits",), text)
    if "edits" not in data:
        for key in ("fingerprint", "predicted_share", "error"):
            if key in data:
                yield source.problem((key,), "tells of pinned edits, but there are no `edits`")


def _conflicts(
    values: Mapping[str, Any], file_values: Mapping[str, Any], name: str
) -> Iterator[str]:
    """Options that are right by themselves and would be ignored together."""
    if "edits" in file_values:
        for key in _PLANNING:
            if key in values:
                yield f"{key}: has no effect beside the edits that {name} pins; leave one out"
    merged = {**file_values, **values}
    spans = merged.get("spans") or {}
    for spec in merged.get("passes") or ():
        named = getattr(spec.options, "span", None)
        if isinstance(named, str) and named not in spans:
            yield f"{spec.name}: span: `spans` names no {named!r}{_choices(named, spans)}"
    inductor = merged.get("inductor", "default")
    if merged.get("lowering") == "eager" and inductor not in ("default", {}):
        yield "inductor: has no effect with `lowering: eager`; leave one out"


def _report(what: str, problems: list[str]) -> str:
    if len(problems) == 1:
        return problems[0]
    return "\n".join([f"{len(problems)} problems in {what}:", *(f"  {p}" for p in problems)])


def _shown(value: Any) -> str:
    """A value as it was given, cut where it is long."""
    shown = reprlib.Repr()
    shown.maxstring = shown.maxother = 80
    return shown.repr(value)
