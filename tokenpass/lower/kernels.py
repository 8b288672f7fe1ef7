"""The generated kernels of tokenpass's own operators, registered once for the process."""

from __future__ import annotations

from functools import cache

import torch

from tokenpass.codegen.dispatch import install_kernels


@cache
def installed_kernels() -> torch.library.Library:
    """Register the kernels; the handle that keeps the registrations alive.

    Nothing is generated, and no kernel compiler imported, until a tensor of their device arrives.
    """
    return install_kernels()
