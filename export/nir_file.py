"""NIR files: written whole or not at all, and checked before they are trusted.

A NIR file is HDF5 from anywhere. Before a byte of its arrays is read, the file is walked: links that lead outside,
arrays whose declared size the file cannot hold, types that are neither numbers nor text are refused. Then stock
``nir.read`` loads it, ours with its type checks, and `export.network.parse_graph` checks what it means.
"""

from __future__ import annotations

import math
from pathlib import Path

import h5py
import nir
import nir.serialization
import numpy as np

from export.errors import GraphError, NirFileError
from export.network import SHAPED, Network, parse_graph
from spikebert.files import written_whole

MAX_ARRAY_BYTES = 16 << 30
"""No array of a file may be larger, nor all of them together, whatever it says."""
MAX_COMPRESSION_RATIO = 1100
"""Deflate packs at most 1032 to 1; a file that declares more than this many times its size lies."""
MAX_OBJECTS = 200_000
MAX_DEPTH = 16
NODE_TYPES = tuple(name for name in nir.ir.__all__ if isinstance(getattr(nir, name, None), type) and name != "NIRNode")
"""What ``nir.read`` knows; it stops without a word at anything else."""


def write_nir(path: str | Path, graph: nir.NIRGraph) -> Path:
    """Write a graph to `path`, atomically.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    NirFileError
        The folder does not exist or cannot be written to, or NIR refuses the graph. Nothing half-written stays.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise NirFileError(f"{path}: the folder {path.parent} does not exist; make it first")
    try:
        with written_whole(path) as partial:
            nir.write(partial, graph, compression=None)  # trained weights hardly compress, and it costs seconds
    except Exception as error:  # h5py and nir raise whatever they trip over
        raise NirFileError(f"{path}: cannot be written: {type(error).__name__}: {error}") from error
    return path


def read_nir(path: str | Path, dt: float | None = None) -> nir.NIRGraph:
    """Read a NIR file after checking it.

    Parameters
    ----------
    path : str or Path
    dt : float, optional
        Seconds of a time step, for files that do not say.

    Raises
    ------
    NirFileError
        The file is missing, no HDF5, not NIR, or declares what it cannot hold.
    GraphError
        The file is sound but its graph means nothing or has an operator unknown here; the message names the node.
    """
    return read_network(path, dt)[0]


def read_network(path: str | Path, dt: float | None = None) -> tuple[nir.NIRGraph, Network]:
    """Read a NIR file as `read_nir` does, and return the graph with the network it was understood as."""
    path = Path(path)
    if not path.is_file():
        raise NirFileError(f"{path}: no such file" if not path.exists() else f"{path}: not a regular file")
    try:
        with h5py.File(path, "r") as file:
            _check_objects(file, path)
            _check_node_types(file["node"], "graph", path)
            checked_by_nir = _nir_checks_shapes(file["node"])
    except NirFileError:
        raise
    except Exception as error:  # a damaged file makes h5py raise OSError, KeyError, RuntimeError, TypeError, ...
        raise NirFileError(f"{path}: is not a readable HDF5 file: {type(error).__name__}: {error}") from error
    try:
        graph = nir.read(path, type_check=checked_by_nir)
    except Exception as error:  # nir raises whatever its constructors trip over: KeyError, AssertionError, ...
        raise NirFileError(
            f"{path}: NIR cannot read it{_where_nir_fails(path)}: {type(error).__name__}: {error}"
        ) from error
    try:
        return graph, parse_graph(graph, dt)
    except GraphError as error:
        raise type(error)(f"{path}: {error}") from error


def _check_objects(file: h5py.File, path: Path) -> None:
    """Walk a file without reading an array."""
    if not isinstance(file.get("node", getlink=True), h5py.HardLink) or not isinstance(file["node"], h5py.Group):
        raise NirFileError(f"{path}: has no group 'node'; it is HDF5, but not NIR")
    limit = min(MAX_ARRAY_BYTES, MAX_COMPRESSION_RATIO * path.stat().st_size)
    pending, objects, declared = [("node", file["node"], 0)], 0, 0
    while pending:
        where, group, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise NirFileError(f"{path}: {where} is nested deeper than {MAX_DEPTH} levels")
        for key in group:
            objects += 1
            if objects > MAX_OBJECTS:
                raise NirFileError(f"{path}: holds more than {MAX_OBJECTS} objects")
            here = f"{where}/{key}"
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise NirFileError(f"{path}: {here} is a link to elsewhere; only plain objects are read")
            child = group[key]
            if isinstance(child, h5py.Group):
                pending.append((here, child, depth + 1))
                continue
            declared += _declared_bytes(child, here, path)
            if declared > limit:
                raise NirFileError(
                    f"{path}: {here} declares shape {child.shape}, with what stands before it {declared} bytes; a file "
                    f"of its size, {path.stat().st_size} bytes, can hold {limit} at most"
                )


def _declared_bytes(dataset: h5py.Dataset, where: str, path: Path) -> int:
    """Check the kind of a dataset and return the bytes it says it holds."""
    if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
        raise NirFileError(f"{path}: {where} holds no value")
    text = h5py.check_string_dtype(dataset.dtype) is not None
    if not text and dataset.dtype.kind not in "biufS":
        raise NirFileError(f"{path}: {where} holds {dataset.dtype}; expected numbers or text")
    if dataset.is_virtual or dataset.external:
        raise NirFileError(f"{path}: {where} takes its values from another file; only plain arrays are read")
    return math.prod(dataset.shape) * np.dtype(dataset.dtype).itemsize


def _check_node_types(group: h5py.Group, name: str, path: Path) -> None:
    """Check that a node, and every node in it, says a type that ``nir.read`` knows."""
    kind = group.get("type")
    is_text = isinstance(kind, h5py.Dataset) and kind.shape == () and h5py.check_string_dtype(kind.dtype) is not None
    if not is_text:
        raise NirFileError(f"{path}: {name}: has no type")
    said = kind.asstr(errors="replace")[()]
    if said not in NODE_TYPES:
        raise NirFileError(f"{path}: {name}: type {said!r} is no NIR node; known are {', '.join(NODE_TYPES)}")
    if said != nir.NIRGraph.__name__:
        if name == "graph":
            raise NirFileError(f"{path}: holds a single {said} node; expected a graph")
        return
    if not isinstance(group.get("nodes"), h5py.Group) or not isinstance(group.get("edges"), h5py.Dataset):
        raise NirFileError(f"{path}: {name}: is a graph without nodes and edges")
    for key, node in group["nodes"].items():
        inner = key if name == "graph" else f"{name}/{key}"
        if not isinstance(node, h5py.Group):
            raise NirFileError(f"{path}: {inner}: is an array, not a node")
        _check_node_types(node, inner, path)


def _nir_checks_shapes(group: h5py.Group) -> bool:
    """Return whether NIR's own check of shapes is right for a graph; `parse_graph` checks every graph.

    It refuses what other tools leave out and we fill in, and it takes kernels to be square and groups to be one.
    """
    kinds = {node["type"].asstr()[()] for node in group["nodes"].values()}
    return "metadata/format" in group and not kinds & {kind.__name__ for kind in SHAPED}


def _where_nir_fails(path: Path) -> str:
    """Name the first node that NIR cannot make even by itself; empty where it is not a single node's fault."""
    with h5py.File(path, "r") as file:
        for name, node in file["node/nodes"].items():
            try:
                nir.dict2NIRNode(nir.serialization.hdf2dict(node))
            except Exception:  # the caller raises what went wrong
                return f" (node {name})"
    return ""
