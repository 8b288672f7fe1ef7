"""What calibration found out about a model, and its file: readable, strict, never half written."""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NoReturn, Self

import torch
from torch import Tensor

from tokenpass.errors import ConfigError
from tokenpass.statistics.histogram import Histogram
from tokenpass.statistics.kept import STATISTICS
from tokenpass.yaml_file import KeyPath, YamlFile, read_yaml, show_key, write_yaml

VERSION = 1

SAMPLES = 256
"""Values of a weight that stand for it."""

HEADER = """\
# A tokenpass calibration: options={"calibration": "<this file>"}. Not to be changed by hand.
# A row of counts holds a bin's channels, -n for n zeros; bins are four to an octave of |x|,
# bin 1 from 2^-24, bin 0 what is below. quantiles: of all channels together, for people to read.
"""

_HEAD = ("version", "model", "batches", "tokens", "complete", "sites", "checksum")


@dataclass(frozen=True, eq=False)
class SiteStatistics:
    """What is known of one projection's input.

    `weight`: the fingerprint of its weight. `magnitude`: of what it multiplies. `gate` and `up`: of
    the factors of that, where it is a product with another projection's result. `core`: how often
    each neuron is in its token's core, int64 `[entries]`, for inputs that an activation gave.
    `sensitivity`: the error of the graph's output over the projection's own, both relative in the
    L2 norm, with the smaller half of its input's non-zero entries dropped; None where not measured.
    """

    weight: str
    magnitude: Histogram
    gate: Histogram | None = None
    up: Histogram | None = None
    core: Tensor | None = None
    sensitivity: float | None = None

    def zero_share(self, *, by_gate: bool) -> float:
        """The share of entries that are zero by themselves: of the gate's where it is listed."""
        listed = self.gate if by_gate and self.gate is not None else self.magnitude
        return float(listed.share_below(0.0).mean())

    @property
    def rows(self) -> int:
        """How many rows went through the projection."""
        return self.magnitude.rows

    def merged(self, other: Self, sums: dict[tuple[int, int], Any] | None = None) -> Self:
        """Of both's rows; `sensitivity` stays as it is where it is known.

        `sums`: one dictionary for several sites, so that values which they share are added once and
        stay shared. It keeps what was added, since an object's id is its own while it lives.
        """
        sums = {} if sums is None else sums
        values: dict[str, Any] = {}
        for one in STATISTICS:
            mine, more = getattr(self, one.name), getattr(other, one.name)
            key = id(mine), id(more)
            if key not in sums:
                total = mine if more is None else more if mine is None else mine + more
                sums[key] = total, mine, more
            values[one.name] = sums[key][0]
        known = self.sensitivity if self.sensitivity is not None else other.sensitivity
        return replace(self, **values, sensitivity=known)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Statistics of a model's projections by name (`graph.projections`).

    Where Dynamo compiles a layer's forward by itself (graph breaks around it), all layers' names
    are the same: the first has the plain name, the others `name@weight`. `find` knows.

    `batches`, `tokens`: how many are in. `complete`: whether calibration came to its end.
    """

    sites: Mapping[str, SiteStatistics] = field(default_factory=dict)
    batches: int = 0
    tokens: int = 0
    complete: bool = True

    @property
    def fingerprint(self) -> str:
        """What tells one model from another: its projections' names and weights."""
        text = "\n".join(f"{name} {self.sites[name].weight}" for name in sorted(self.sites))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def find(self, name: str, weight: str) -> SiteStatistics | None:
        """What is known of a projection, by its name and its weight's fingerprint.

        Under another name (other graph breaks than while calibrating) it is found by its weight, if
        that is the only one of its kind. None for an unknown one.
        """
        for key in (name, f"{name}@{weight}"):
            site = self.sites.get(key)
            if site is not None and site.weight == weight:
                return site
        alike = [site for site in self.sites.values() if site.weight == weight]
        return alike[0] if len(alike) == 1 else None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as YAML, in one step: a reader finds this file or the one before, never a part."""
        path = Path(path)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".yaml")
        try:
            digest = hashlib.sha256()
            with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
                for text in texts(self):
                    digest.update(text.encode())
                    file.write(text)
                file.write(f"checksum: '{digest.hexdigest()}'\n")
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file that `save` wrote.

        Raises `ConfigError` with file and line for everything else: another version, a file that
        was cut off or changed after it was written.
        """
        file = read_yaml(path, large=True)
        wrong = Place(file, ())
        if file.problems:
            raise ConfigError(file.problems[0])
        check_head(file, wrong)
        sites: dict[str, SiteStatistics] = {}
        for name, data in file.data["sites"].items():
            sites[name] = read_site(data, sites, Place(file, ("sites", name)))
        head = {key: file.data[key] for key in ("batches", "tokens", "complete")}
        found = cls(sites, **head)
        if found.fingerprint != file.data["model"]:
            wrong(f"expected {found.fingerprint}, of the sites below", "model")
        check_text(file.path, file.data["checksum"])
        return found


@dataclass(frozen=True)
class Place:
    """A place in a file; calling it raises an error there."""

    file: YamlFile
    at: KeyPath

    def __call__(self, text: str, *keys: str | int) -> NoReturn:
        key = (*self.at, *keys)
        shown = f"{show_key(key)}: " if key else ""
        raise ConfigError(f"{self.file.place(key)}: {shown}{text}")

    def below(self, *keys: str | int) -> Place:
        """A place further in."""
        return Place(self.file, (*self.at, *keys))


def check_head(file: YamlFile, wrong: Place) -> None:
    """The keys beside the sites, the version first: of another one nothing else is known."""
    data = file.data
    version = data.get("version")
    if type(version) is int and version > VERSION:
        wrong(
            f"the file is of version {version}, this tokenpass reads {VERSION}: "
            "upgrade tokenpass or calibrate again",
            "version",
        )
    if type(version) is not int or version != VERSION:
        wrong(f"expected {VERSION}, got {version!r}: this is no calibration file", "version")
    for key in data:
        if key not in _HEAD:
            wrong(f"unknown key; expected {', '.join(_HEAD)}", key)
    missing = [key for key in _HEAD if key not in data]
    if missing:
        wrong(f"{', '.join(missing)}: missing; the file was cut off: calibrate again")
    for key, kind in (("batches", int), ("tokens", int), ("complete", bool), ("model", str)):
        if type(data[key]) is not kind or (kind is int and data[key] < 0):
            wrong(f"expected {'a count' if kind is int else kind.__name__}, got {data[key]!r}", key)
    if not isinstance(data["sites"], dict):
        wrong("expected projections by name", "sites")


def check_text(path: Path, checksum: Any) -> None:
    """Refuse a file that is not what was written: counts that are a little wrong look like any."""
    text = path.read_text(encoding="utf-8")
    body, _, _ = text.rpartition("checksum:")
    if hashlib.sha256(body.encode()).hexdigest() != checksum:
        line = body.count("\n") + 1
        raise ConfigError(
            f"{path}:{line}: checksum: the file was changed after it was written: calibrate again"
        )


def read_site(data: Any, before: Mapping[str, SiteStatistics], wrong: Place) -> SiteStatistics:
    """One projection's statistics; `before`: the sites above it, whose values it may share."""
    if not isinstance(data, dict):
        wrong("expected a projection's statistics")
    names = [one.name for one in STATISTICS]
    for key in data:
        if key not in ("weight", "sensitivity", *names):
            wrong(f"unknown key; expected weight, sensitivity, {', '.join(names)}", key)
    weight, sensitivity = data.get("weight"), data.get("sensitivity")
    if not isinstance(weight, str):
        wrong(f"expected a fingerprint, got {weight!r:.40}", "weight")
    if sensitivity is not None and not is_error(sensitivity):
        wrong(f"expected a number from 0, got {sensitivity!r:.40}", "sensitivity")
    if "magnitude" not in data:
        wrong("magnitude: missing")
    values: dict[str, Any] = {}
    for one in STATISTICS:
        if one.name not in data:
            continue
        place, value = wrong.below(one.name), data[one.name]
        if not isinstance(value, dict):
            place(f"expected a mapping, got {value!r:.40}")
        if set(value) == {"same_as"}:
            shared = getattr(before.get(value["same_as"]), one.name, None)
            if shared is None:
                place(f"no site above this one is {value['same_as']!r}", "same_as")
            values[one.name] = shared
        else:
            values[one.name] = one.form.read(value, place)
    return SiteStatistics(weight, **values, sensitivity=sensitivity)


def is_error(value: Any) -> bool:
    """Whether a value is a finite number from 0."""
    return type(value) is float and math.isfinite(value) and value >= 0


def texts(calibration: Calibration) -> Iterator[str]:
    """The text of a file in pieces, without its checksum."""
    yield HEADER
    yield write_yaml(
        {
            "version": VERSION,
            "model": calibration.fingerprint,
            "batches": calibration.batches,
            "tokens": calibration.tokens,
            "complete": calibration.complete,
        }
    )
    yield "sites:\n" if calibration.sites else "sites: {}\n"
    shared: dict[int, str] = {}
    for name in sorted(calibration.sites):
        yield f"  {word(name)}:\n"
        yield from site_texts(name, calibration.sites[name], shared)


def site_texts(name: str, site: SiteStatistics, shared: dict[int, str]) -> Iterator[str]:
    """One site's lines; projections of one value share what is known of it."""
    yield f"    weight: {word(site.weight)}\n"
    if site.sensitivity is not None:
        yield f"    sensitivity: {word(float(site.sensitivity))}\n"
    for one in STATISTICS:
        value = getattr(site, one.name)
        if value is None:
            continue
        yield f"    {one.name}:\n"
        if id(value) in shared:
            yield f"      same_as: {word(shared[id(value)])}\n"
            continue
        shared[id(value)] = name
        for line in one.form.lines(value):
            yield f"      {line}\n"


def word(value: str | float) -> str:
    """A value as YAML writes it on one line."""
    return write_yaml({"": value}, on_one_line=True).strip()[1:-1].partition(": ")[2]


def weight_fingerprint(weight: Tensor) -> str:
    """A weight's shape and a hash of 256 of its values, spread evenly, in bfloat16.

    A copy in another dtype has the same one, as far as its values round alike: bfloat16 and float32
    do; between float16 and float32 halves may round apart.
    """
    shape = "x".join(map(str, weight.shape))
    count = min(SAMPLES, weight.numel())
    if not count:
        return f"{shape}-empty"
    at = torch.arange(count) * (weight.numel() - 1) // max(1, count - 1)
    places = torch.unravel_index(at.to(weight.device), weight.shape)
    values = weight.detach()[places].to(torch.bfloat16).cpu().view(torch.int16)
    text = " ".join(map(str, values.tolist()))
    return f"{shape}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


_UNKNOWN = {one.name for one in STATISTICS} - {one.name for one in fields(SiteStatistics)}
if _UNKNOWN:
    raise TypeError(f"statistics without a field of SiteStatistics: {_UNKNOWN}")
