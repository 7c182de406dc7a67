"""NIR files: written whole or not at all, and checked before they are trusted.

A NIR file is HDF5 from anywhere. Before a byte of its arrays is read, the file is walked: links that lead outside,
arrays whose declared size the file cannot hold, types that are neither numbers nor text are refused. Then NIR makes its
nodes, ours with NIR's own type checks, and `export.network.parse_graph` checks what they mean.
"""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py
import nir
import nir.serialization
import numpy as np

from export.errors import GraphError, NirFileError
from export.network import Network
from export.nir_graph.reader import SHAPED, parse_graph
from spikebert.files import written_whole

Entries = dict[str, "Entries | h5py.Dataset"]

MAX_ARRAY_BYTES = 16 << 30
"""No array of a file may be larger, nor all of them together, whatever it says."""
MAX_COMPRESSION_RATIO = 1100
"""Deflate packs at most 1032 to 1; a file that declares more than this many times its size lies."""
MAX_OBJECTS = 200_000
MAX_DEPTH = 16
NODE_TYPES = tuple(name for name in nir.ir.__all__ if isinstance(getattr(nir, name, None), type) and name != "NIRNode")
"""What NIR can make; at anything else it stops without a word."""
GRAPH_ENTRIES = frozenset({"type", "nodes", "edges", "metadata"})


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
        with written_whole(path) as partial, h5py.File(partial, "w") as file:
            file.create_dataset("version", data=nir.version, dtype=h5py.string_dtype())
            _write_value(file, "node", graph)
    except Exception as error:  # h5py and nir raise whatever they trip over
        raise NirFileError(f"{path}: cannot be written: {type(error).__name__}: {error}") from error
    return path


def _write_value(group: h5py.Group, key: str, value: Any) -> None:
    """Write a node, or what is in one, in the layout of ``nir.write``.

    Nothing is compressed: trained weights hardly shrink, and it costs seconds.
    """
    if isinstance(value, nir.NIRNode):
        value = _node_fields(value)
    if isinstance(value, dict):
        inner = group.create_group(key)
        for name, entry in value.items():
            if not (name == "metadata" and entry == {}):
                _write_value(inner, str(name), entry)
    elif isinstance(value, str):
        group.create_dataset(key, data=value, dtype=h5py.string_dtype())
    else:
        group.create_dataset(key, data=value)


def _node_fields(node: nir.NIRNode) -> dict[str, Any]:
    """Return what ``node.to_dict()`` does, without its copies: of a graph it makes two of every weight."""
    own_form = type(node).to_dict is not nir.NIRNode.to_dict and not isinstance(node, nir.NIRGraph)
    if own_form:  # ports and the like, which hold no weights
        return node.to_dict()
    kept = [entry.name for entry in fields(node) if entry.name not in ("input_type", "output_type")]
    return {**{name: getattr(node, name) for name in kept}, "type": type(node).__name__}


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
    graph = read_nodes(path)
    try:
        return graph, parse_graph(graph, dt)
    except GraphError as error:
        raise type(error)(f"{path}: {error}") from error


def read_nodes(path: str | Path) -> nir.NIRGraph:
    """Read a NIR file after checking the file, but not what its graph means.

    Raises
    ------
    NirFileError
        As `read_nir` does.
    """
    path = Path(path)
    if not path.is_file():
        raise NirFileError(f"{path}: no such file" if not path.exists() else f"{path}: not a regular file")
    try:
        with h5py.File(path, "r") as file:
            values = _read_values(_checked_entries(file, path))
    except NirFileError:
        raise
    except Exception as error:  # a damaged file makes h5py raise OSError, KeyError, RuntimeError, TypeError, ...
        raise NirFileError(f"{path}: is not a readable HDF5 file: {type(error).__name__}: {error}") from error
    _check_node_types(values, "graph", path)
    try:
        return nir.dict2NIRNode({**values, "type_check": _nir_checks_shapes(values)})
    except Exception as error:  # nir raises whatever its constructors trip over: KeyError, AssertionError, ...
        raise NirFileError(
            f"{path}: NIR cannot read it{_where_nir_fails(path)}: {type(error).__name__}: {error}"
        ) from error


def _checked_entries(file: h5py.File, path: Path) -> Entries:
    """Walk a file without reading an array; return its datasets as they are nested."""
    if not isinstance(file.get("node", getlink=True), h5py.HardLink) or not isinstance(file["node"], h5py.Group):
        raise NirFileError(f"{path}: has no group 'node'; it is HDF5, but not NIR")
    limit = min(MAX_ARRAY_BYTES, MAX_COMPRESSION_RATIO * path.stat().st_size)
    entries: Entries = {}
    pending, objects, declared = [("node", file["node"], entries, 0)], 0, 0
    while pending:
        where, group, inside, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise NirFileError(f"{path}: {where} is nested deeper than {MAX_DEPTH} levels")
        for name in group.id:  # the low-level names, links and objects: thousands of them, at half the time
            key = name.decode("utf-8", "replace")
            objects += 1
            if objects > MAX_OBJECTS:
                raise NirFileError(f"{path}: holds more than {MAX_OBJECTS} objects")
            here = f"{where}/{key}"
            if group.id.links.get_info(name).type != h5py.h5l.TYPE_HARD:
                raise NirFileError(f"{path}: {here} is a link to elsewhere; only plain objects are read")
            child = h5py.h5o.open(group.id, name)
            if isinstance(child, h5py.h5g.GroupID):
                inner: Entries = {}
                inside[key] = inner
                pending.append((here, h5py.Group(child), inner, depth + 1))
                continue
            if not isinstance(child, h5py.h5d.DatasetID):
                raise NirFileError(f"{path}: {here} is neither a group nor an array")
            dataset = h5py.Dataset(child)
            inside[key] = dataset
            declared += _declared_bytes(dataset, here, path)
            if declared > limit:
                raise NirFileError(
                    f"{path}: {here} declares shape {dataset.shape}, with what stands before it {declared} bytes; a "
                    f"file of its size, {path.stat().st_size} bytes, can hold {limit} at most"
                )
    return entries


def _declared_bytes(dataset: h5py.Dataset, where: str, path: Path) -> int:
    """Check the kind of a dataset and return the bytes it says it holds."""
    if dataset.shape is None:
        raise NirFileError(f"{path}: {where} holds no value")
    dtype = dataset.dtype
    if dtype.kind not in "biufS" and h5py.check_string_dtype(dtype) is None:
        raise NirFileError(f"{path}: {where} holds {dtype}; expected numbers or text")
    if dataset.is_virtual or dataset.external:
        raise NirFileError(f"{path}: {where} takes its values from another file; only plain arrays are read")
    declared, stored = math.prod(dataset.shape) * dtype.itemsize, dataset.id.get_storage_size()
    if declared > MAX_COMPRESSION_RATIO * stored:
        raise NirFileError(
            f"{path}: {where} declares shape {dataset.shape}, {declared} bytes, of which {stored} are in the file"
        )
    return declared


def _read_values(entries: Entries) -> dict[str, Any]:
    """Read the datasets, as ``nir.read`` does, and close each: HDF5 buffers what is open."""
    values: dict[str, Any] = {}
    for key in list(entries):
        entry = entries.pop(key)
        value = _read_values(entry) if isinstance(entry, dict) else entry[()]
        values[key] = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return values


def _check_node_types(node: dict[str, Any], name: str, path: Path) -> None:
    """Check that a node, and every node in it, says a type that NIR knows."""
    said = node.get("type")
    if not isinstance(said, str):
        raise NirFileError(f"{path}: {name}: has no type")
    if said not in NODE_TYPES:
        raise NirFileError(f"{path}: {name}: type {said!r} is no NIR node; known are {', '.join(NODE_TYPES)}")
    if said != nir.NIRGraph.__name__:
        if name == "graph":
            raise NirFileError(f"{path}: holds a single {said} node; expected a graph")
        return
    strange = sorted(set(node) - GRAPH_ENTRIES)
    if strange:  # "type_check", for one, would switch NIR's own checks off
        raise NirFileError(
            f"{path}: {name}: has an entry {strange[0]!r}; a graph has {', '.join(sorted(GRAPH_ENTRIES))}"
        )
    if not isinstance(node.get("nodes"), dict) or not isinstance(node.get("edges"), np.ndarray):
        raise NirFileError(f"{path}: {name}: is a graph without nodes and edges")
    for key, inside in node["nodes"].items():
        inner = key if name == "graph" else f"{name}/{key}"
        if not isinstance(inside, dict):
            raise NirFileError(f"{path}: {inner}: is an array, not a node")
        _check_node_types(inside, inner, path)


def _nir_checks_shapes(graph: dict[str, Any]) -> bool:
    """Return whether NIR's own check of shapes is right for a graph; `parse_graph` checks every graph.

    It refuses what other tools leave out and we fill in, and it takes kernels to be square and groups to be one.
    """
    kinds = {node["type"] for node in graph["nodes"].values()}
    metadata = graph.get("metadata")
    return isinstance(metadata, dict) and "format" in metadata and not kinds & {kind.__name__ for kind in SHAPED}


def _where_nir_fails(path: Path) -> str:
    """Name the first node that NIR cannot make even by itself; empty where it is not a single node's fault."""
    with h5py.File(path, "r") as file:
        for name, node in file["node/nodes"].items():
            try:
                nir.dict2NIRNode(nir.serialization.hdf2dict(node))
            except Exception:  # the caller raises what went wrong
                return f" (node {name})"
    return ""
