"""What the tests of options share: two passes with options, and ways to read and to refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from tokenpass.config import Config, PassOptions, PassSchema, TokenOptions, resolve
from tokenpass.config_schema import SparsityOptions
from tokenpass.errors import ConfigError, OptionError, UserError


class DensityOptions(PassOptions):
    density: float = Field(0.5, gt=0, le=1, description="a share of pairs above 0 and at most 1")
    block: int = Field(description="a block size")


PASSES = {
    "token_merge": PassSchema(TokenOptions, ("tome", "pitome")),
    "token_prune": PassSchema(TokenOptions, ("fastv", "key_norm")),
    "sparse_attention": PassSchema(DensityOptions),
    "activation_sparsity": PassSchema(SparsityOptions, ("teal", "wina")),
    "dead_tokens": PassSchema(exact=True),
}
NAN = float("nan")
INF = float("inf")


def config(**options: Any) -> Config:
    return resolve(options, PASSES)


def refuse(error: type[UserError] = OptionError, /, **options: Any) -> str:
    with pytest.raises(error) as caught:
        config(**options)
    assert type(caught.value) is error
    return str(caught.value)


def refuse_file(path: Path, **options: Any) -> str:
    return refuse(ConfigError, config=path, **options).replace(f"{path}:", "plan.yaml:")
