"""The options of one compilation, read strictly with what the passes and Inductor allow."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any

import torch

from tokenpass.config import Config, PassSchema, resolve
from tokenpass.cost.device import DEVICES
from tokenpass.errors import OptionError
from tokenpass.passes import PASSES, AnyPass, LossyPass, LossyRegionPass
from tokenpass.statistics import find_calibration

GROUP = "tokenpass.passes"


@cache
def all_passes() -> tuple[AnyPass, ...]:
    """Our passes, then those that other packages name in the entry-point group."""
    return (*PASSES, *(point.load()() for point in entry_points(group=GROUP)))


def lossy_passes() -> frozenset[str]:
    """Names of the passes that can lose something."""
    return frozenset(p.name for p in all_passes() if isinstance(p, LossyPass | LossyRegionPass))


def pass_schemas() -> dict[str, PassSchema]:
    """What the option reader needs of each pass."""
    schemas = {}
    for item in all_passes():
        if isinstance(item, LossyPass | LossyRegionPass):
            schemas[item.name] = PassSchema(item.options, policies=item.policies)
        else:
            schemas[item.name] = PassSchema(exact=True, policies=())
    return schemas


def read_options(options: Mapping[str, Any] | None, mode: str | None = None) -> Config:
    """All options resolved; raises `OptionError` or `ConfigError` that list every problem."""
    modes = torch._inductor.list_mode_options()
    known = [name.replace("-", "_") for name in torch._inductor.list_options()]
    given = dict(options or {})
    if mode is not None:
        if "inductor" in given:
            raise OptionError("mode: give either mode or the option inductor, not both")
        given["inductor"] = mode
    config = resolve(
        given,
        pass_schemas(),
        inductor_modes=["default", *modes],
        inductor_options=known,
        device_profiles=DEVICES,
    )
    find_calibration(config)  # a file that cannot be read is told before anything is compiled
    return config
