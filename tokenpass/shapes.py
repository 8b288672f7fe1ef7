"""Shape types for annotations: jaxtyping's when it is installed (tests), inert ones otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
else:
    try:
        from jaxtyping import Bool, Float, Int
    except ModuleNotFoundError:

        class _Inert:
            """Stands in for a jaxtyping dtype: subscripting it gives `object`, which fits."""

            def __class_getitem__(cls, item: object) -> type:
                return object

        Bool = Float = Int = _Inert

__all__ = ["Bool", "Float", "Int"]
