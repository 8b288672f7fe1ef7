"""At least one example call for every overload in `AXIS_RULES`: a new rule needs a line.

The lines stand beside one another as the rules do, in `examples_<family>.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .examples_apart import APART
from .examples_layout import LAYOUT
from .examples_mixing import MIXING
from .examples_position import POSITION
from .examples_ranks import RANKS
from .rule_language import Example

EXAMPLES: Mapping[Any, list[Example]] = {**APART, **LAYOUT, **MIXING, **POSITION, **RANKS}
