"""Compiling on trial: what Dynamo remembers of one backend's work is taken back.

Dynamo keeps compiled entries per code object, and the sizes it has seen per frame (a second size
makes a dimension dynamic). Both would change how the user's own `torch.compile` goes afterwards.
`torch._dynamo.reset()` would forget the user's entries as well.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch._C._dynamo.eval_frame import _debug_get_cache_entry_list, reset_code
from torch._dynamo import convert_frame, eval_frame, pgo
from torch._dynamo.guards import DeletedGuardManagerWrapper


@contextmanager
def forgotten(backend: Any) -> Iterator[None]:
    """Whatever `backend` compiles inside is dropped at the end; sizes seen are as before."""
    sizes = copy.deepcopy(pgo._CODE_STATE)
    try:
        yield
    finally:
        pgo._CODE_STATE = sizes
        drop_entries(backend)


def drop_entries(backend: Any) -> None:
    """Remove the cache entries that were compiled with a backend.

    Where other backends have entries of the same code, ours can only be made invalid.
    """
    for weak in [*convert_frame.input_codes.seen, *convert_frame.output_codes.seen]:
        code = weak()
        entries = _debug_get_cache_entry_list(code) if code is not None else []
        ours = [entry for entry in entries if unwrapped(entry.backend) is backend]
        if code is not None and ours and len(ours) == len(entries):
            reset_code(code)
        else:
            for entry in ours:
                dropped = DeletedGuardManagerWrapper("compiled on trial")
                state = entry.guard_manager.extra_state
                if state is not None:
                    state.invalidate(entry, dropped)
    for key, known in list(eval_frame.cached_backends.items()):
        if unwrapped(known) is backend:
            del eval_frame.cached_backends[key]


def unwrapped(backend: Any) -> Any:
    """The backend itself, without what `torch.compile` and Dynamo put around it."""
    for name in ("_torchdynamo_orig_backend", "compiler_fn"):
        while hasattr(backend, name):
            backend = getattr(backend, name)
    return backend


@contextmanager
def as_uncompiled(model: Any) -> Iterator[Any]:
    """The model without a `torch.compile` around it, or put into it by `model.compile()`."""
    model = getattr(model, "_orig_mod", model)
    compiled = getattr(model, "_compiled_call_impl", None)
    if compiled is None:
        yield model
        return
    model._compiled_call_impl = None
    try:
        yield model
    finally:
        model._compiled_call_impl = compiled
