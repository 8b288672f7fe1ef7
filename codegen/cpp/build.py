"""Compiles generated C++ into the private cache folder and loads it, with torch's own OpenMP.

Objects are compiled with `-fopenmp` and linked without it: the calls into OpenMP find the library
that torch has loaded, so that there is one pool of threads. No flag here changes the process's
floating-point state (`-ffast-math` would, at load) or what NaN and infinities do.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from tokenpass.codegen.cache import cache_folder, source_hash, store, write_atomically
from tokenpass.codegen.cpp.isa import ISAS
from tokenpass.errors import TokenpassError

FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fopenmp",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fno-strict-aliasing",
    "-fvisibility=hidden",
)
SEARCHED = ("g++", "clang++")
SECONDS = 300
DIGEST_BYTES = hashlib.sha256().digest_size


class BuildError(TokenpassError):
    """A kernel could not be compiled or loaded; says what was tried and what was answered."""


@cache
def compiler(chosen: str | None) -> tuple[tuple[str, ...], str]:
    """The command that compiles, and what it calls itself.

    `chosen` is `$CXX`, which may hold arguments; without it the first of `SEARCHED` that exists.
    Raises BuildError where there is none, or it does not say what it is.
    """
    command = shlex.split(chosen) if chosen else []
    if not command:
        found = next((path for name in SEARCHED if (path := shutil.which(name))), None)
        if found is None:
            raise BuildError(f"no C++ compiler: {' and '.join(SEARCHED)} not found; set CXX")
        command = [found]
    version = _run([*command, "--version"], Path("/")).splitlines()
    if not version:
        raise BuildError(f"{command[0]} --version says nothing")
    return tuple(command), version[0]


def load(operator: str, source: str, isa: str) -> ctypes.CDLL:
    """The library that `source` gives for the instruction set `isa`, compiled unless it is cached.

    Source and library lie beside each other in the cache folder, named by the hash of the source,
    the flags and the compiler's version. The library's last bytes are the SHA-256 of those before:
    one file, so that no other process sees it half made. A library that does not fit its hash is
    never loaded: it is removed, and BuildError raised.
    """
    command, version = compiler(os.environ.get("CXX"))
    flags = (*FLAGS, *ISAS[isa].flags)
    source = f"// {version}\n" + "".join(f"// {flag}\n" for flag in flags) + source
    folder = cache_folder()
    path = folder / f"{operator}_{source_hash(source)}.so"
    if path.is_symlink() or not path.exists():
        _compile((*command, *flags), command, store(operator, source, ".cpp"), path)
    _require_unchanged(path)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(f"{path.name} cannot be loaded: {error}") from error


def _compile(compiling: tuple[str, ...], linking: tuple[str, ...], file: Path, path: Path) -> None:
    """Compile `file`, link it without OpenMP's library, and put it at `path` with its hash."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as temporary:
        compiled, linked = Path(temporary) / "kernel.o", Path(temporary) / "kernel.so"
        _run([*compiling, "-c", str(file), "-o", str(compiled)], Path(temporary))
        _run([*linking, "-shared", str(compiled), "-o", str(linked)], Path(temporary))
        content = linked.read_bytes()
    write_atomically(path, content + hashlib.sha256(content).digest())


def _require_unchanged(path: Path) -> None:
    content = path.read_bytes()
    if hashlib.sha256(content[:-DIGEST_BYTES]).digest() == content[-DIGEST_BYTES:]:
        return
    path.unlink()
    raise BuildError(
        f"{path} was changed since it was compiled; it has been removed, and the next process "
        "compiles it anew"
    )


def _run(command: list[str], folder: Path) -> str:
    """What `command` says; raises BuildError with its last words where it fails."""
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=False, timeout=SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]} cannot be run: {error}") from error
    if done.returncode != 0:
        raise BuildError(f"{shlex.join(command)} failed: {done.stderr.strip()[-2000:]}")
    return done.stdout
