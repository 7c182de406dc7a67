"""The record of a run: what every runner fills and every analysis reads."""

from __future__ import annotations

import io
import json
import math
import os
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from hardware.errors import TraceError
from spikebert.files import written_whole

RESERVED_ARRAYS = ("logits", "outputs", "mask", "input_ids", "metadata")
POTENTIAL_SUFFIX = ".membrane_potential"
THRESHOLD_SUFFIX = ".threshold"
MAX_HEADER_BYTES = 1 << 16
"""Of an array in the file; NumPy itself reads no more than 10,000 of text."""
MAX_TRACE_BYTES = 64 << 30
"""A trace is read into memory whole; where the machine has less than this, what it has is the limit."""


def _are_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def _are_faults(value: Any) -> bool:
    kinds = {"samples": list, "attempt": int, "message": str}
    return isinstance(value, list) and all(
        isinstance(fault, dict)
        and all(isinstance(fault.get(key), kind) for key, kind in kinds.items())
        and fault["samples"]
        and all(isinstance(sample, int) for sample in fault["samples"])
        for fault in value
    )


KNOWN_METADATA: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "precision": ("text", lambda value: isinstance(value, str)),
    "stock_nodes": ("a list of names", _are_words),
    "own_nodes": ("an object of reasons", lambda value: isinstance(value, dict) and _are_words(list(value.values()))),
    "faults": ("a list of objects with samples, attempt and message", _are_faults),
}
"""What of a trace's metadata is computed with: what it must be, in words and as a test. The rest is only shown."""


@dataclass
class Trace:
    """What happened in one run over a batch of sentences.

    Attributes
    ----------
    spikes : dict of str to ndarray
        For each spiking node, in topological order, ``(T, B, N, D)`` whole numbers, 0 where it is silent, in the type
        that `spike_type` gives its neurons: uint8 for spikes 0 and 1. Padding never spikes.
    logits : ndarray
        ``(B, C)``, mean of `outputs` over time; ``(B, N, C)`` for a graph that keeps its tokens; ``(B, 0)`` where none
        were recorded.
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
        """Return the share of a node's neurons that fired, whatever they sent, over steps, real tokens and features."""
        spikes = self.spikes[node]
        return float(np.count_nonzero(spikes)) / max(1, spikes.shape[0] * self.real_tokens * spikes.shape[-1])

    def select(self, nodes: Iterable[str], logits: bool = True) -> Trace:
        """Return the trace of some nodes, in the order they stand here, with or without logits."""
        chosen = set(nodes)
        return replace(
            self,
            spikes={name: value for name, value in self.spikes.items() if name in chosen},
            membrane_potentials={name: value for name, value in self.membrane_potentials.items() if name in chosen},
            thresholds={name: value for name, value in self.thresholds.items() if name in chosen},
            logits=self.logits if logits else np.zeros((self.mask.shape[0], 0)),
            outputs=self.outputs if logits else None,
        )

    def rows(self, start: int, stop: int, tokens: int | None = None) -> Trace:
        """Return the trace of sentences `start` to `stop`, cut to their first `tokens` tokens."""
        rows, cut = slice(start, stop), slice(tokens)
        keeps_tokens = self.logits.ndim == 3

        def shown(values: np.ndarray) -> np.ndarray:
            return values[..., rows, cut, :] if keeps_tokens else values[..., rows, :]

        return replace(
            self,
            spikes={name: value[:, rows, cut] for name, value in self.spikes.items()},
            membrane_potentials={name: value[:, rows, cut] for name, value in self.membrane_potentials.items()},
            logits=shown(self.logits),
            outputs=None if self.outputs is None else shown(self.outputs),
            mask=self.mask[rows, cut],
            input_ids=None if self.input_ids is None else self.input_ids[rows, cut],
        )

    def save(self, path: str | Path) -> Path:
        """Write the trace as .npz: one array per node, ``logits``, ``mask`` and a JSON ``metadata`` string.

        Optional arrays are ``outputs``, ``input_ids``, ``NODE.membrane_potential`` and ``NODE.threshold``.

        Raises
        ------
        TraceError
            The file cannot be written; nothing half-written stays.
        """
        path = Path(path)
        self._check_names(path)
        arrays: dict[str, np.ndarray] = dict(self.spikes)
        arrays.update({f"{name}{POTENTIAL_SUFFIX}": value for name, value in self.membrane_potentials.items()})
        arrays.update({f"{name}{THRESHOLD_SUFFIX}": value for name, value in self.thresholds.items()})
        arrays.update(logits=self.logits, mask=self.mask)
        for key, value in (("outputs", self.outputs), ("input_ids", self.input_ids)):
            if value is not None:
                arrays[key] = value
        try:
            arrays["metadata"] = np.array(json.dumps({**self.metadata, "nodes": list(self.spikes)}))
        except (TypeError, ValueError) as error:
            raise TraceError(f"{path}: its metadata cannot be written as JSON: {error}") from error
        return write_arrays(path, arrays)

    def _check_names(self, path: Path) -> None:
        for name in self.spikes:
            if name in RESERVED_ARRAYS or name.endswith((POTENTIAL_SUFFIX, THRESHOLD_SUFFIX)):
                raise TraceError(f"{path}: a node may not be called {name!r}; the file uses that name itself")
        for name in (*self.membrane_potentials, *self.thresholds):
            if name not in self.spikes:
                raise TraceError(f"{path}: {name} has a membrane potential or threshold, but no spikes")

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read a trace written by `save`, or by anyone in the same layout.

        Raises
        ------
        TraceError
            The file is missing, no .npz, too large, or an array has a shape or type a trace cannot have.
        """
        path = Path(path)
        return cls.from_arrays(read_arrays(path), path)

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray], path: Path) -> Trace:
        """Return the trace that the arrays of a file make, after checking them; `path` is for messages.

        Raises
        ------
        TraceError
            An array is missing, or has a shape or type a trace cannot have.
        """
        for key in ("logits", "mask"):
            if key not in arrays:
                raise TraceError(f"{path}: has no array {key!r}")
        metadata = _read_metadata(arrays.get("metadata"), path)
        mask = arrays["mask"]
        if mask.ndim != 2 or mask.dtype.kind not in "bui" or not mask.any(-1).all() or not mask.size:
            raise TraceError(
                f"{path}: mask has shape {mask.shape} and type {mask.dtype}; expected (sentences, tokens), with at "
                "least one token true in each sentence"
            )
        mask = mask.astype(bool)
        named = [key for key in arrays if key not in RESERVED_ARRAYS]
        potentials = {k.removesuffix(POTENTIAL_SUFFIX): arrays[k] for k in named if k.endswith(POTENTIAL_SUFFIX)}
        thresholds = {k.removesuffix(THRESHOLD_SUFFIX): arrays[k] for k in named if k.endswith(THRESHOLD_SUFFIX)}
        spikes = {k: arrays[k] for k in named if not k.endswith((POTENTIAL_SUFFIX, THRESHOLD_SUFFIX))}
        order = metadata.pop("nodes", list(spikes))
        if not isinstance(order, list) or not all(isinstance(name, str) for name in order):
            raise TraceError(f"{path}: metadata 'nodes' is not a list of names")
        if set(order) != set(spikes):
            odd = sorted(set(order) ^ set(spikes))[0]
            raise TraceError(f"{path}: node {odd!r} is in the arrays or in metadata 'nodes', but not in both")
        trace = cls(
            spikes={name: spikes[name] for name in order},
            logits=arrays["logits"],
            mask=mask,
            outputs=arrays.get("outputs"),
            membrane_potentials=potentials,
            thresholds=thresholds,
            input_ids=arrays.get("input_ids"),
            metadata=metadata,
        )
        trace._check_arrays(path)
        return trace

    def _check_arrays(self, path: Path) -> None:
        """Check types and shapes of what a file gave."""
        sentences, tokens = self.mask.shape
        steps: int | None = None
        for name, value in self.spikes.items():
            if value.ndim != 4 or value.shape[1:3] != self.mask.shape or 0 in value.shape:
                raise TraceError(
                    f"{path}: {name} has shape {value.shape}; expected (time steps, {sentences} sentences, {tokens} "
                    "tokens, features)"
                )
            steps = value.shape[0] if steps is None else steps
            if value.shape[0] != steps:
                raise TraceError(f"{path}: {name} has {value.shape[0]} time steps, nodes before it {steps}")
            if value.dtype.kind not in "bui":
                raise TraceError(f"{path}: {name} holds {value.dtype}; spikes are whole numbers")
            if value[:, ~self.mask].any():
                raise TraceError(f"{path}: {name} fires at padding, which a trace cannot have; see its mask")
        for suffix, values in ((POTENTIAL_SUFFIX, self.membrane_potentials), (THRESHOLD_SUFFIX, self.thresholds)):
            for name, value in values.items():
                if name not in self.spikes:
                    raise TraceError(f"{path}: there is {name}{suffix}, but no spikes of {name}")
                expected = self.spikes[name].shape if suffix == POTENTIAL_SUFFIX else self.spikes[name].shape[-1:]
                _check_array(value, f"{path}: {name}{suffix}", expected)
        # a graph that keeps its tokens has an axis for them
        classes = self.logits.shape[-1:]
        kept = (sentences, tokens) if self.logits.ndim == 3 else (sentences,)
        _check_array(self.logits, f"{path}: logits", (*kept, *classes))
        if self.outputs is not None:
            _check_array(self.outputs, f"{path}: outputs", (*self.outputs.shape[:1], *kept, *classes))
        if self.input_ids is not None:
            _check_array(self.input_ids, f"{path}: input_ids", self.mask.shape, "ui")


def spike_type(low: int, high: int) -> np.dtype:
    """Return the narrowest type that holds whole numbers from `low` to `high`, unsigned where none is negative."""
    return np.dtype(np.min_scalar_type(min(low, -high - 1) if low < 0 else high))


def whole_spikes(values: np.ndarray, where: str) -> np.ndarray:
    """Return spikes that came as numbers of any kind in the narrowest type that holds them; `where` is for messages.

    Raises
    ------
    TraceError
        One is no whole number.
    """
    if values.dtype.kind not in "fbui":
        raise TraceError(f"{where}: spikes are {values.dtype}; they must be whole numbers")
    if values.dtype.kind == "f":
        broken = ~np.isfinite(values) | (values != np.rint(values))
        if broken.any():
            raise TraceError(f"{where}: a spike of {values[broken][0]}; spikes are whole numbers")
    return values.astype(spike_type(int(values.min(initial=0)), int(values.max(initial=0))))


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """Write arrays as an .npz file.

    Raises
    ------
    TraceError
        The file cannot be written; nothing half-written stays.
    """
    if not path.parent.is_dir():
        raise TraceError(f"{path}: the folder {path.parent} does not exist; make it first")
    try:
        with written_whole(path) as partial, partial.open("wb") as file:
            _write_arrays(file, arrays)
    except (OSError, ValueError) as error:
        raise TraceError(f"{path}: cannot be written: {error}") from error
    return path


def read_arrays(path: Path, what: str = "a trace", names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Read arrays of an .npz file, if they fit into memory.

    Parameters
    ----------
    path : Path
    what : str
        What the file should have been, for messages.
    names : collection of str, optional
        Of those to read, see `array_names`; all by default.

    Raises
    ------
    TraceError
        The file is missing, no .npz, holds pickled objects, or unpacks to more than there is memory.
    """
    limit = largest_trace()
    with _opened(path, what) as archive:
        members = [member for member in archive.infolist() if names is None or _array_name(member) in names]
        declared = sum(_declared_bytes(archive, member) for member in members)
        if declared > limit:
            raise TraceError(f"{path}: unpacks to {declared} bytes; at most {limit} are read")
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files if names is None or key in names}


def array_names(path: Path, what: str = "a trace") -> list[str]:
    """Return the names of the arrays in an .npz file; `what` and errors as of `read_arrays`."""
    with _opened(path, what) as archive:
        return [_array_name(member) for member in archive.infolist()]


@contextmanager
def _opened(path: Path, what: str) -> Iterator[zipfile.ZipFile]:
    """Open an .npz file, and turn what goes wrong while it is read into a `TraceError`."""
    if not path.is_file():
        raise TraceError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except TraceError:
        raise
    except Exception as error:  # a damaged file makes zipfile, zlib and NumPy raise whatever they trip over
        raise TraceError(
            f"{path}: is not {what} (.npz without pickled objects): {type(error).__name__}: {error}"
        ) from error


def _array_name(member: zipfile.ZipInfo) -> str:
    return member.filename.removesuffix(".npy")


def _check_array(value: np.ndarray, what: str, shape: tuple[int, ...], kinds: str = "fui") -> None:
    if value.shape != shape or value.dtype.kind not in kinds:
        raise TraceError(f"{what} has shape {value.shape} and type {value.dtype}; expected numbers of shape {shape}")


def _read_metadata(array: np.ndarray | None, path: Path) -> dict[str, Any]:
    if array is None:
        return {}
    try:
        metadata = json.loads(str(array))
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{path}: its metadata is not JSON: {error}") from error
    if not isinstance(metadata, dict):
        raise TraceError(f"{path}: its metadata is not a JSON object")
    for key, (expected, fits) in KNOWN_METADATA.items():
        if metadata.get(key) is not None and not fits(metadata[key]):
            raise TraceError(f"{path}: metadata {key!r} is {str(metadata[key])[:80]}; expected {expected}")
    return metadata


def _write_arrays(file: IO[bytes], arrays: dict[str, np.ndarray]) -> None:
    """Write what ``numpy.savez_compressed`` writes; that takes names as keywords, so no node could be called "file"."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(value), allow_pickle=False)


def largest_trace() -> int:
    """Return how many bytes a trace may take in memory here."""
    if not hasattr(os, "sysconf"):
        return MAX_TRACE_BYTES
    return min(MAX_TRACE_BYTES, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _declared_bytes(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> int:
    """Return the larger of the sizes that archive and array header declare; NumPy allocates what the header says."""
    with archive.open(member) as packed:
        file = io.BytesIO(packed.read(MAX_HEADER_BYTES))  # the header says how long it is itself
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
    return max(member.file_size, math.prod(shape) * dtype.itemsize)
