"""Builds and loads the C kernel of the integer runner, where there is a C compiler; without one torch does the same.

It is compiled for the processor at hand, in about a second, and kept in the cache folder (``SPIKEBERT_CACHE``, else
``~/.cache/spikebert``) under a name that says which source, flags and processor it was made from.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

from spikebert.files import written_whole

SOURCE = Path(__file__).with_name("integer_kernel.c")
FLAGS: tuple[str, ...] = (
    "-O3",
    "-march=native",
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


@lru_cache(maxsize=1)
def load_kernel() -> ctypes.CDLL | None:
    """Return the kernel, built where it is not there yet; None where it cannot be."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return None
    made_from = "\n".join([SOURCE.read_text(encoding="utf-8"), compiler, *FLAGS, _processor()])
    folder = Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "spikebert")
    library = folder / f"integer_kernel-{hashlib.sha256(made_from.encode()).hexdigest()[:16]}.so"
    try:
        if not library.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            with written_whole(library) as partial:
                command = [compiler, str(SOURCE), "-o", str(partial), *FLAGS]
                subprocess.run(command, check=True, capture_output=True, timeout=BUILD_SECONDS)
        kernel = ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError):  # no place to write, or a compiler that does not know the flags
        return None
    kernel.norm_and_fire.restype = ctypes.c_int64
    kernel.group_sums.restype = None
    return kernel


def _processor() -> str:
    """Return what tells processors apart that take different instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
