"""YAML files read strictly, with the line of every key kept, so that an error can name its place.

Plain data only: no tags, no aliases (a few lines of them can stand for gigabytes), no key twice.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError

from tokenpass.errors import ConfigError, nearest

KeyPath = tuple[str | int, ...]

NO_ALIASES = "aliases (*name) are not allowed: write the value out"


@dataclass(frozen=True)
class YamlFile:
    """What a file says, and where: `lines` maps the path of each key or item to its line."""

    path: Path
    data: dict[str, Any]
    lines: dict[KeyPath, int]
    problems: tuple[str, ...] = field(default=())

    def place(self, key: KeyPath) -> str:
        """`file:line` of a key, or of the nearest enclosing one that the file has."""
        while key and key not in self.lines:
            key = key[:-1]
        return f"{self.path}:{self.lines.get(key, 1)}"


class _Loader(yaml.SafeLoader):
    """Plain data, with YAML 1.2's floats: `1e-3` is a number, not a string."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.events.AliasEvent):
            raise ComposerError(
                None, None, "aliases (*name) are not allowed: write the value out", event.start_mark
            )
        return super().compose_node(parent, index)


_LargeLoader: Any = type("_LargeLoader", (getattr(yaml, "CSafeLoader", _Loader),), {})
"""The same for files of many MB, by libyaml where PyYAML has it; `_Reader` refuses its aliases."""


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would read as a number: a fingerprint may look like `31e8`."""


for _side in (_Loader, _LargeLoader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
        list("-+0123456789"),
    )


def write_yaml(data: Mapping[str, Any], *, on_one_line: bool = False) -> str:
    """The text of a mapping, keys in their order, such that `read_yaml` gives it back."""
    width = math.inf if on_one_line else 80
    return yaml.dump(
        dict(data),
        Dumper=_Dumper,
        default_flow_style=on_one_line,
        sort_keys=False,
        allow_unicode=True,
        width=width,
    )


def read_yaml(path: str | os.PathLike[str], *, large: bool = False) -> YamlFile:
    """Reads a file that must hold one mapping with string keys; `large`: of many MB.

    Keys that stand twice and keys that are no strings are collected in `problems`, so that a caller
    can report them beside its own findings.

    Raises:
        ConfigError: the file is missing, unreadable, no YAML, or no mapping.
    """
    path = Path(path)
    reader = _Reader(path)
    try:
        loader = (_LargeLoader if large else _Loader)(_read_text(path))
        try:
            root = loader.get_single_node()
            if not isinstance(root, yaml.MappingNode):
                got = "nothing" if root is None else _kind(root)
                raise ConfigError(f"{path}:1: expected a mapping (`key: value` lines), got {got}")
            data = reader.value(loader, root, ())
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise ConfigError(f"{path}:{line}: not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}:1: not valid YAML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}:1: nested too deeply") from error
    return YamlFile(path, data, reader.lines, tuple(reader.problems))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        folder = path.parent
        siblings = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        hint = nearest(path.name, siblings) if folder.is_dir() else f" (no folder {folder})"
        raise ConfigError(f"{path}: file not found{hint}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: expected UTF-8 text: {error}") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error


class _Reader:
    """Turns nodes into plain data and notes the line of each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[str] = []
        self.seen: set[int] = set()

    def value(self, loader: Any, node: yaml.Node, at: KeyPath) -> Any:
        if id(node) in self.seen:
            raise yaml.MarkedYAMLError(problem=NO_ALIASES, problem_mark=node.start_mark)
        self.seen.add(id(node))
        self.lines.setdefault(at, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            _plain(node, "tag:yaml.org,2002:map")
            return self._mapping(loader, node, at)
        if isinstance(node, yaml.SequenceNode):
            _plain(node, "tag:yaml.org,2002:seq")
            return [self.value(loader, item, (*at, i)) for i, item in enumerate(node.value)]
        try:
            return loader.construct_object(node)
        except ValueError as error:  # e.g. the timestamp 2024-99-99
            raise yaml.MarkedYAMLError(problem=str(error), problem_mark=node.start_mark) from error

    def _mapping(self, loader: Any, node: yaml.MappingNode, at: KeyPath) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = key_node.value
            if key_node.tag == "tag:yaml.org,2002:merge":
                self._problem(line, at, "merge keys (<<) are not allowed: write the keys out")
            elif key_node.tag != "tag:yaml.org,2002:str":
                shown = key if isinstance(key_node, yaml.ScalarNode) else _kind(key_node)
                self._problem(line, at, f"expected a word as key, got {shown} (quote it?)")
            elif key in data:
                first = self.lines[(*at, key)]
                self._problem(line, (*at, key), f"this key stands twice, first on line {first}")
            else:
                self.lines[(*at, key)] = line
                data[key] = self.value(loader, value_node, (*at, key))
        return data

    def _problem(self, line: int, at: KeyPath, text: str) -> None:
        key = show_key(at)
        self.problems.append(f"{self.path}:{line}: {key + ': ' if key else ''}{text}")


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    return "a list" if isinstance(node, yaml.SequenceNode) else repr(node.value)


def _plain(node: yaml.Node, tag: str) -> None:
    if node.tag != tag:
        raise yaml.MarkedYAMLError(
            problem=f"the tag {node.tag} is not allowed", problem_mark=node.start_mark
        )


def show_key(key: KeyPath) -> str:
    """A key path as people write it: `passes[0].token_merge.policy`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key)
    return text.removeprefix(".")
