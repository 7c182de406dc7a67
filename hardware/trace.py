"""The record of a run: what every runner fills and every analysis reads."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hardware.errors import TraceError

RESERVED_ARRAYS = ("logits", "outputs", "mask", "input_ids", "metadata")
POTENTIAL_SUFFIX = ".membrane_potential"
THRESHOLD_SUFFIX = ".threshold"
MAX_TRACE_BYTES = 64 << 30


@dataclass
class Trace:
    """What happened in one run over a batch of sentences.

    Attributes
    ----------
    spikes : dict of str to ndarray
        For each spiking node, in topological order, ``(T, B, N, D)`` uint8. Padding never spikes.
    logits : ndarray
        ``(B, C)``, mean of `outputs` over time; ``(B, N, C)`` for a graph that keeps its tokens.
    mask : ndarray
        ``(B, N)`` bool, True at tokens and False at padding.
    outputs : ndarray or None
        ``(T, B, C)`` or ``(T, B, N, C)``, what the graph's output shows at each step.
    membrane_potentials : dict of str to ndarray
        ``(T, B, N, D)`` for the nodes that were recorded: U as it was compared with the threshold.
    thresholds : dict of str to ndarray
        ``(D,)`` for the nodes whose threshold the runner knows.
    input_ids : ndarray or None
        ``(B, N)`` token ids, where the run had any.
    metadata : dict
        Runner, precision, versions, and what else it wants to say. JSON values only.
    """

    spikes: dict[str, np.ndarray]
    logits: np.ndarray
    mask: np.ndarray
    outputs: np.ndarray | None = None
    membrane_potentials: dict[str, np.ndarray] = field(default_factory=dict)
    thresholds: dict[str, np.ndarray] = field(default_factory=dict)
    input_ids: np.ndarray | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def precision(self) -> str | None:
        """``"float64"``, ``"float32"`` or ``"integer"``, where the runner said."""
        return self.metadata.get("precision")

    @property
    def real_tokens(self) -> int:
        """Number of tokens that are not padding."""
        return int(self.mask.sum())

    def firing_rate(self, node: str) -> float:
        """Return the mean of a node's spikes over steps, real tokens and features."""
        spikes = self.spikes[node]
        return float(spikes.sum() / (spikes.shape[0] * self.real_tokens * spikes.shape[-1]))

    def save(self, path: str | Path) -> Path:
        """Write the trace as .npz: one array per node, ``logits``, ``mask`` and a JSON ``metadata`` string.

        Optional arrays are ``outputs``, ``input_ids``, ``NODE.membrane_potential`` and ``NODE.threshold``.

        Raises
        ------
        TraceError
            The file cannot be written; nothing half-written stays.
        """
        path = Path(path)
        taken = [name for name in self.spikes if name in RESERVED_ARRAYS]
        if taken:
            raise TraceError(f"{path}: a node may not be called {taken[0]!r}; the file uses that name itself")
        arrays: dict[str, np.ndarray] = dict(self.spikes)
        arrays.update({f"{name}{POTENTIAL_SUFFIX}": value for name, value in self.membrane_potentials.items()})
        arrays.update({f"{name}{THRESHOLD_SUFFIX}": value for name, value in self.thresholds.items()})
        arrays.update(logits=self.logits, mask=self.mask)
        for key, value in (("outputs", self.outputs), ("input_ids", self.input_ids)):
            if value is not None:
                arrays[key] = value
        arrays["metadata"] = np.array(json.dumps({**self.metadata, "nodes": list(self.spikes)}))
        if not path.parent.is_dir():
            raise TraceError(f"{path}: the folder {path.parent} does not exist; make it first")
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        partial = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
            partial.chmod(0o644)
            partial.replace(path)
        except OSError as error:
            raise TraceError(f"{path}: cannot be written: {error}") from error
        finally:
            partial.unlink(missing_ok=True)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read a trace written by `save`, or by anyone in the same layout.

        Raises
        ------
        TraceError
            The file is missing, no .npz, too large, or an array has a shape or type a trace cannot have.
        """
        path = Path(path)
        if not path.is_file():
            raise TraceError(f"{path}: no such file")
        try:
            with zipfile.ZipFile(path) as archive:
                declared = sum(member.file_size for member in archive.infolist())
            if declared > MAX_TRACE_BYTES:
                raise TraceError(f"{path}: unpacks to {declared} bytes; at most {MAX_TRACE_BYTES} are read")
            with np.load(path, allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise TraceError(f"{path}: is not a trace (.npz without pickled objects): {error}") from error
        return cls._from_arrays(arrays, path)

    @classmethod
    def _from_arrays(cls, arrays: dict[str, np.ndarray], path: Path) -> Trace:
        for key in ("logits", "mask"):
            if key not in arrays:
                raise TraceError(f"{path}: has no array {key!r}")
        try:
            metadata = json.loads(str(arrays["metadata"])) if "metadata" in arrays else {}
        except json.JSONDecodeError as error:
            raise TraceError(f"{path}: its metadata is not JSON: {error}") from error
        if not isinstance(metadata, dict):
            raise TraceError(f"{path}: its metadata is not a JSON object")
        mask = arrays["mask"].astype(bool)
        if mask.ndim != 2:
            raise TraceError(f"{path}: mask has shape {mask.shape}; expected (sentences, tokens)")
        named = [key for key in arrays if key not in RESERVED_ARRAYS]
        potentials = {key: arrays[key] for key in named if key.endswith(POTENTIAL_SUFFIX)}
        thresholds = {key: arrays[key] for key in named if key.endswith(THRESHOLD_SUFFIX)}
        spikes = {key: arrays[key] for key in named if key not in potentials and key not in thresholds}
        order = [str(name) for name in metadata.pop("nodes", [])]
        if order and set(order) != set(spikes):
            odd = sorted(set(order) ^ set(spikes))[0]
            raise TraceError(f"{path}: node {odd!r} is in the arrays or in metadata 'nodes', but not in both")
        for name, value in (*spikes.items(), *potentials.items()):
            if value.ndim != 4 or value.shape[1:3] != mask.shape:
                raise TraceError(
                    f"{path}: {name} has shape {value.shape}; expected (time steps, {mask.shape[0]} sentences, "
                    f"{mask.shape[1]} tokens, features)"
                )
        for name, value in spikes.items():
            if value.dtype.kind not in "bui":
                raise TraceError(f"{path}: {name} holds {value.dtype}; spikes are whole numbers")
        return cls(
            spikes={name: spikes[name] for name in (order or spikes)},
            logits=arrays["logits"],
            mask=mask,
            outputs=arrays.get("outputs"),
            membrane_potentials={key.removesuffix(POTENTIAL_SUFFIX): value for key, value in potentials.items()},
            thresholds={key.removesuffix(THRESHOLD_SUFFIX): value for key, value in thresholds.items()},
            input_ids=arrays.get("input_ids"),
            metadata=metadata,
        )
