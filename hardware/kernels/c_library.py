"""Builds and loads the few loops written in C, where there is a C compiler; without one NumPy or torch does the same.

The compiler is ``cc``, or what ``CC`` names; where there is none, the one in the package ``ziglang`` (the extra
``compiler``), which is had with pip alone. A source is compiled for the processor at hand, in seconds, and kept in the
cache folder (``SPIKEBERT_CACHE``, else ``~/.cache/spikebert``) under a name that says which source, compiler, flags and
processor it was made from.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from spikebert.files import written_whole

FLAGS: tuple[str, ...] = (
    "-std=gnu11",
    "-O3",
    "-march=native",
    "-fopenmp-simd",
    "-ffinite-math-only",
    "-fno-signed-zeros",
    "-fno-trapping-math",
    "-fno-math-errno",
    "-shared",
    "-fPIC",
    "-lm",
)
if platform.machine() == "x86_64":
    FLAGS = (*FLAGS, "-mprefer-vector-width=512")
CACHE_VARIABLE = "SPIKEBERT_CACHE"
BUILD_SECONDS = 120


def load_library(source: Path, numbers: Mapping[str, int | str]) -> ctypes.CDLL | None:
    """Return a C source as a library, built where it is not there yet; None where it cannot be.

    Parameters
    ----------
    source : Path
    numbers : mapping of str to int or str
        What the source calls by name: each is a macro.
    """
    compiler = find_compiler()
    if compiler is None:
        return None
    flags = (*FLAGS, *(f"-D{name}={number}" for name, number in numbers.items()))
    made_from = "\n".join([source.read_text(encoding="utf-8"), *compiler, *flags, _processor()])
    folder = Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "spikebert")
    library = folder / f"{source.stem}-{hashlib.sha256(made_from.encode()).hexdigest()[:16]}.so"
    try:
        if not library.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            with written_whole(library) as partial:
                command = [*compiler, str(source), "-o", str(partial), *flags]
                subprocess.run(command, check=True, capture_output=True, timeout=BUILD_SECONDS)
        return ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError):  # no place to write, or a compiler that does not know the flags
        return None


def find_compiler() -> list[str] | None:
    """Return the words that call a C compiler; None where there is none."""
    named = shutil.which(os.environ.get("CC", "cc"))
    if named is not None:
        return [named]
    return [sys.executable, "-m", "ziglang", "cc"] if importlib.util.find_spec("ziglang") else None


def _processor() -> str:
    """Return what tells processors apart that take different instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
