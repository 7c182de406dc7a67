"""Network -> NIR graph: standard nodes where NIR has them, marked and poisoned composites where not."""

from __future__ import annotations

import json
from typing import Any

import nir
import numpy as np
from numpy.typing import DTypeLike

from export.errors import UnsupportedOperatorError
from export.network import COUNTS, FORMAT, FORMAT_VERSION, INTEGER, MULTI_HOT, Network, feature_shapes
from export.nir_graph.completion import shaped


def build_graph(network: Network, dtype: DTypeLike = np.float32) -> nir.NIRGraph:
    """Write a network as a NIR graph.

    Parameters
    ----------
    network : Network
    dtype : dtype
        Type of the weights, float32 or float64. Parameters of neurons are float64 always. An integer network is written
        in integers whatever this says.

    Returns
    -------
    nir.NIRGraph
        Standard nodes where NIR has them; marked, poisoned composites where not (see ``docs/nir.md``).

    Raises
    ------
    UnsupportedOperatorError
        NIR cannot hold a node's parameters exactly.
    """
    dtype = np.dtype(np.float64 if network.is_integer else dtype)
    nodes: dict[str, nir.NIRNode] = {}
    encoding = network.token_encoding
    nodes[network.input_name] = nir.Input(
        {"input": np.array(network.input_shape or (network.input_features,))},
        metadata=({"encoding": MULTI_HOT, **encoding.to_metadata()} if encoding else {"encoding": "values"}),
    )
    wires = {node.name: node.sources for node in network.nodes if node.operator.traits.edges}
    shapes = feature_shapes(network)
    edges: list[tuple[str, str]] = []

    def summands(name: str) -> list[str]:
        return [part for source in wires[name] for part in summands(source)] if name in wires else [name]

    for node in network.nodes:
        if node.name in wires:
            continue
        try:
            written = node.operator.to_nir(dtype, network.dt)
            nodes[node.name] = shaped(written, shapes[node.name]) if node.operator.traits.keeps_shape else written
        except UnsupportedOperatorError as error:
            raise UnsupportedOperatorError(f"{node.name}: {error}") from error
        read = [source for ordered in node.sources for source in summands(ordered)]
        if len(node.sources) > 1:
            if len(read) != len(node.sources):
                raise UnsupportedOperatorError(f"{node.name}: reads a sum beside other nodes; NIR has no such edges")
            nodes[node.name].metadata["sources"] = json.dumps(read)
        edges.extend((source, node.name) for source in read)
    nodes[network.output_name] = nir.Output(
        {"output": np.array(shapes[network.output_source])}, metadata=decoding(network)
    )
    edges.extend((source, network.output_name) for source in summands(network.output_source))
    non_standard = [name for name, node in nodes.items() if node.metadata.get("standard") is False]
    metadata: dict[str, Any] = {
        **network.metadata,
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "precision": INTEGER if network.is_integer else dtype.name,
        "dt": network.dt,
        "attend_to_padding": network.attend_to_padding,
        "layout": "shapes are per token; time, sentence and token are implicit leading axes; standard nodes act on "
        "each token by itself",
        "sums": "several edges into one node are summed, in the order of the edges",
        "non_standard_nodes": json.dumps(non_standard),
    }
    for key in COUNTS:
        if getattr(network, key) is not None:
            metadata[key] = getattr(network, key)
    # NIR's own type check takes kernels to be square and groups to be one
    has_kernels = any(
        isinstance(node, nir.Conv1d | nir.Conv2d | nir.SumPool2d | nir.AvgPool2d) for node in nodes.values()
    )
    return nir.NIRGraph(nodes, edges, metadata=metadata, type_check=not has_kernels)


def decoding(network: Network) -> dict[str, Any]:
    """Return what the metadata of an output node say of how to read it."""
    readout = network.readout
    if readout is None:
        return {"decoding": "mean over time steps"}
    tokens = "N the sentence's tokens" if network.sums_tokens else "N = 1"
    return {
        "decoding": f"logits = (sum over T steps + N T bias) unit / (N T), {tokens}",
        "unit": float(readout.unit),
        "bias": np.asarray(readout.bias, np.int64),
    }
