"""Device profiles: measured rates of one device, the cost model's only knowledge of hardware."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import re
import tempfile
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tokenpass.cost.rates import Positive, RateTable
from tokenpass.errors import ConfigError, nearest
from tokenpass.ops.cost_record import Work

log = logging.getLogger(__name__)

# Shipped under `devices/`; a new device is one YAML file and one line here.
DEVICES: tuple[str, ...] = (
    "generic-cpu",
    "a100",
    "a100-40gb",
    "h100-sxm",
    "h100-pcie",
    "h200",
    "l4",
    "a10",
    "rtx-4090",
)

GENERIC = {"cpu": "generic-cpu", "cuda": "a100"}

SHAPED_TABLES = (
    "gemm_gflop_per_s",
    "bmm_gflop_per_s",
    "conv_gflop_per_s",
    "attention_gflop_per_s",
    "masked_attention_gflop_per_s",
)

WEIGHT_WORK: tuple[Work, ...] = ("few_rows", "listed_rows")
"""Work of our own kernels whose time is that of reading a weight."""

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Waves(BaseModel):
    """How GEMM tiles fill a GPU: blocks run in waves of `processors`, and a part wave costs one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    processors: Annotated[int, Field(gt=0)]
    tile_m: Annotated[int, Field(gt=0)]
    tile_n: Annotated[int, Field(gt=0)]


class DeviceProfile(BaseModel):
    """Rates of one device; every number is measured on it or carries its source.

    Tables are per dtype (`float32`, `bfloat16`, ...), a missing dtype reads `float32`'s:
    `gemm_gflop_per_s` over (m, n, k), for `linear` with weights that come from memory;
    `bmm_gflop_per_s` over (m, n, k) of one product of many; `attention_gflop_per_s` and
    `masked_attention_gflop_per_s` over (queries, keys, head_dim).
    `bandwidth_gb_per_s` over the bytes that a kernel moves (small ones stay in a cache).
    `weight_gb_per_s` are the bytes of a weight that our own kernels read per second, by their work
    and dtype, over rows; `kernel_launch_us` is what starting one of them costs. A kernel that is
    not known there is priced like a library call, and not used for its speed alone.
    `element_g_per_s` is 1e9 elements per second of a kind of work (see `OpCost`).
    `sources` says where each number is from; `default` speaks for those it does not name.
    `cards` are the names by which CUDA reports the devices that it speaks for, `instruction_set`
    is the processor's, for sources that are to be the same on every machine.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    name: str
    kind: Literal["cpu", "cuda"]
    threads: Annotated[int, Field(gt=0)] = 1
    fingerprint: str = ""
    cards: tuple[str, ...] = ()
    instruction_set: str | None = None
    sources: dict[str, str] = Field(default_factory=dict)
    gemm_gflop_per_s: dict[str, RateTable]
    bmm_gflop_per_s: dict[str, RateTable] = Field(default_factory=dict)
    conv_gflop_per_s: dict[str, RateTable] = Field(default_factory=dict)
    attention_gflop_per_s: dict[str, RateTable]
    masked_attention_gflop_per_s: dict[str, RateTable] = Field(default_factory=dict)
    bandwidth_gb_per_s: RateTable
    weight_gb_per_s: dict[Work, dict[str, RateTable]] = Field(default_factory=dict)
    element_g_per_s: dict[Work, Positive]
    waves: Waves | None = None
    launch_us: NotNegative
    call_us: NotNegative
    kernel_launch_us: NotNegative | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if "pointwise" not in self.element_g_per_s:
            raise ValueError("element_g_per_s needs a rate for 'pointwise', the default")
        for name in SHAPED_TABLES:
            tables: dict[str, RateTable] = getattr(self, name)
            required = name in ("gemm_gflop_per_s", "attention_gflop_per_s")
            if "float32" not in tables and (tables or required):
                raise ValueError(f"{name} needs a table for 'float32', the default dtype")
            for dtype, table in tables.items():
                if len(table.axes) != 3:
                    raise ValueError(f"{name}.{dtype} needs 3 axes, got {list(table.axes)}")
        for work, tables in self.weight_gb_per_s.items():
            if work not in WEIGHT_WORK:
                raise ValueError(f"weight_gb_per_s: expected {WEIGHT_WORK}, got {work!r}")
            for dtype, table in tables.items():
                if tuple(table.axes) != ("rows",):
                    raise ValueError(f"weight_gb_per_s.{work}.{dtype} needs the one axis `rows`")
        if len(self.bandwidth_gb_per_s.axes) != 1:
            raise ValueError("bandwidth_gb_per_s needs the one axis `bytes`")
        return self

    def save(self, path: Path) -> None:
        """Write as YAML, in the order of the fields, in one step; folders are made private."""
        make_private(path.parent)
        data = self.model_dump(mode="json", exclude_defaults=True)
        text = yaml.safe_dump(
            {"version": 1, **data}, sort_keys=False, width=100, default_flow_style=None
        )
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".yaml")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def make_private(folder: Path) -> None:
    """Make a folder and those above it that are missing, for this user alone.

    The kernels' cache lies in the same folder, and is refused where others may write.
    """
    if not folder.is_dir():
        make_private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def load_profile(path: Path) -> DeviceProfile:
    """Read a profile. Raises ConfigError that lists each wrong key with what was expected."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"device profile {path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # e.g. no UTF-8, no such date
        raise ConfigError(f"device profile {path}: not YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"device profile {path}: expected a mapping, got {type(data).__name__}")
    try:
        return DeviceProfile.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"device profile {path}:\n" + _problems(error)) from error


def _problems(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        hint = ""
        if problem["type"] == "extra_forbidden":
            hint = nearest(str(problem["loc"][-1]), DeviceProfile.model_fields)
        lines.append(f"  {key or '(file)'}: {problem['msg']}, got {problem['input']!r:.60}{hint}")
    return "\n".join(lines)


def shipped_profile(name: str) -> DeviceProfile:
    """One of `DEVICES` by name."""
    path = Path(str(files("tokenpass.cost"))) / "devices" / f"{name}.yaml"
    return load_profile(path)


def cache_folder() -> Path:
    """Where measured profiles live: `TOKENPASS_CACHE_DIR`, else the user's cache directory."""
    chosen = os.environ.get("TOKENPASS_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tokenpass"


def device_fingerprint(device: torch.device) -> str:
    """What makes measured rates hold: the processor's model, its threads, torch's version."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} torch {torch.__version__}"
    return f"{cpu_model()} {torch.get_num_threads()} threads torch {torch.__version__}"


def cpu_model() -> str:
    """The processor's name, family and model, as far as the system tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    wanted = ("model name", "cpu family", "model\t")
    found = {line.split(":", 1)[1].strip() for line in lines if line.startswith(wanted)}
    return " ".join(sorted(found)) or platform.processor() or platform.machine()


def cached_profile_path(device: torch.device | str) -> Path:
    """Where the measured profile of this device is kept, whether or not it exists."""
    device = torch.device(device)
    digest = hashlib.sha256(device_fingerprint(device).encode()).hexdigest()[:16]
    return cache_folder() / "devices" / f"{device.type}-{digest}.yaml"


def find_profile(
    device: torch.device | str, name_or_path: str | None = None, measured: bool = True
) -> DeviceProfile:
    """The profile for a device: the named one, else the measured one, else a shipped one.

    `name_or_path` is one of `DEVICES` or a YAML file; `measured` False leaves out what stands on
    this machine alone. Raises ConfigError when it is neither.
    Nothing is measured here. Which profile was taken is logged; call once per compiled graph.
    """
    device = torch.device(device)
    if name_or_path is not None:
        if name_or_path in DEVICES:
            return shipped_profile(name_or_path)
        path = Path(name_or_path).expanduser()
        if path.suffix in (".yaml", ".yml") or path.exists():
            return load_profile(path)
        raise ConfigError(
            f"device_profile: expected a YAML file or one of {', '.join(DEVICES)}, "
            f"got {name_or_path!r}{nearest(name_or_path, DEVICES)}"
        )
    own = measured_profile(device) if measured else None
    if own is not None:
        return own
    profile = shipped_profile(_shipped_name(device))
    log.info(
        "no measured profile of this %s: predictions use the shipped one, %s; "
        "run `tokenpass device` once to measure",
        device.type,
        profile.name,
    )
    return profile


def measured_profile(device: torch.device) -> DeviceProfile | None:
    """What `tokenpass device` measured; None without it, or where its file is damaged (logged)."""
    path = cached_profile_path(device)
    if not os.path.lexists(path):
        return None
    try:
        profile = load_profile(path)
        if profile.fingerprint not in ("", device_fingerprint(device)):
            raise ConfigError(f"device profile {path}: measured on {profile.fingerprint}")
    except ConfigError as error:
        log.warning("%s; run `tokenpass device` to measure anew", error)
        return None
    return profile


def _shipped_name(device: torch.device) -> str:
    """The shipped profile of this device, else its kind's generic one."""
    if device.type == "cuda":
        return profile_of_card(torch.cuda.get_device_name(device))
    return GENERIC.get(device.type, GENERIC["cpu"])


def profile_of_card(card: str) -> str:
    """The shipped profile that names this card, else one whose name is a word of the card's.

    Words, not parts of words: an A100 is no A10, and an L40S no L4.
    """
    words = re.findall(r"[a-z0-9]+", card.lower())
    near = next((name for name in DEVICES if name in words), GENERIC["cuda"])
    return _profiles_by_card().get(card, near)


@cache
def _profiles_by_card() -> dict[str, str]:
    return {card: name for name in DEVICES for card in shipped_profile(name).cards}
