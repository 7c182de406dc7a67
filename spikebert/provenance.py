"""What a result must say about how it was made: seed, versions, command and checkpoint."""

from __future__ import annotations

import hashlib
import platform
import random
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

RECORDED_PACKAGES = ("spikebert", "torch", "transformers", "numpy", "nir", "lava-nc")
HASH_CHUNK_BYTES = 1 << 20


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch, so that the same command gives the same spikes."""
    import torch

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  libraries below us draw from the global generator
    torch.manual_seed(seed)


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide a result; absent ones are left out."""
    versions = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def run_record(seed: int | None, checkpoint_sha256: str | None = None) -> dict[str, Any]:
    """Return the record every result carries.

    Returns
    -------
    dict
        ``seed``, ``versions``, ``command`` (as typed) and ``checkpoint_sha256``.
    """
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return {
        "seed": seed,
        "versions": installed_versions(),
        "command": command,
        "checkpoint_sha256": checkpoint_sha256,
    }
