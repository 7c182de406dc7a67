"""From a float graph to an integer graph: the plan, then step by step what is chosen and how it does."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import nir
import numpy as np

from export.errors import GraphError, UnsupportedOperatorError
from export.network import Network, Readout, with_token_axis
from export.nir_graph.reader import parse_graph
from export.nir_graph.writer import build_graph
from export.operators import rule_for
from export.passes.quantize.calibration import Calibration, CalibrationRun
from export.passes.quantize.draft import Draft
from export.passes.quantize.families import plan
from export.passes.quantize.report import QuantizationOptions, QuantizationReport
from export.passes.quantize.rules import QUANTIZE
from export.passes.quantize.trial import Trial

DEFAULT_MAX_TOKENS = 512


def quantize(graph: nir.NIRGraph | Network, calibration: Any, **options: Any) -> nir.NIRGraph:
    """Return the integer graph of a float graph.

    Parameters
    ----------
    graph : nir.NIRGraph or Network
        In floating point; norms that can be folded into affines are folded already, layer norms stay.
    calibration : sequence of sequences of int, ndarray or pair of ndarray
        Real sentences as token ids, see `Calibration.of`; a few dozen are enough.
    options
        See `QuantizationOptions`.

    Returns
    -------
    nir.NIRGraph
        Of the same nodes and edges; its metadata hold a `QuantizationReport` as JSON under ``quantization``.

    Raises
    ------
    ChipLimitError
        A parameter is outside what the chip holds; the message names node, limit and remedy.
    UnsupportedOperatorError
        Something has no meaning in whole numbers here.
    """
    return quantize_with_report(graph, calibration, **options)[0]


def quantize_with_report(
    graph: nir.NIRGraph | Network, calibration: Any, **options: Any
) -> tuple[nir.NIRGraph, QuantizationReport]:
    """Return what `quantize` does, and what was done to each layer."""
    network = graph if isinstance(graph, Network) else parse_graph(graph)
    if isinstance(calibration, np.ndarray) and network.token_encoding is None:
        calibration = with_token_axis(network, calibration)
    integer_network, report = _quantize(network, Calibration.of(calibration), QuantizationOptions(**options))
    integer_graph = build_graph(integer_network)
    parse_graph(integer_graph)  # refuses by name whatever the chip cannot hold
    return integer_graph, report


def _quantize(
    network: Network, calibration: Calibration, options: QuantizationOptions
) -> tuple[Network, QuantizationReport]:
    """Choose whole numbers for every node of a network, and try them on the calibration."""
    if network.is_integer:
        raise GraphError("graph: is an integer graph already")
    planned, run = plan(network), CalibrationRun(network, calibration)
    draft = Draft(_proven_for(network, calibration, options), options, run, planned.families)
    trial = Trial(draft)
    for step in planned.steps:
        for node in step.chosen:
            draft.check_reads(node)
            draft.add(node, rule_for(QUANTIZE, node).becomes(node, node.operator, draft))
            run.run(node)
        trial.run_stage(step.tried)
        run.release(step.tried)
    metadata = {
        **network.metadata,
        "quantized_from": str(network.metadata.get("precision", "float64")),
        "quantization": json.dumps(draft.report.to_dict()),
    }
    nodes = tuple(replace(node, operator=draft.quantized[node.name].operator) for node in network.nodes)
    return replace(draft.network, nodes=nodes, readout=_readout(draft), metadata=metadata), draft.report


def _proven_for(network: Network, calibration: Calibration, options: QuantizationOptions) -> Network:
    """Return the network for the longest sentence and the largest input that its sums are to be proven for."""
    encoding = network.token_encoding
    positions = encoding.positions if encoding is not None else 0
    max_tokens = options.max_tokens or positions or max(DEFAULT_MAX_TOKENS, calibration.mask.shape[1])
    return replace(network, max_tokens=max_tokens, input_limit=calibration.largest_input if encoding is None else None)


def _readout(draft: Draft) -> Readout:
    source = draft.network.output_source
    unit, bias = draft.units[source], draft.left_bias(source)
    if np.any(unit != unit[0]):
        raise UnsupportedOperatorError(f"{source}: is the output, and must have one scale")
    whole = np.zeros(len(unit), np.int64) if bias is None else np.rint(bias / unit).astype(np.int64)
    return Readout(float(unit[0]), whole)
