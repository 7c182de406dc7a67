"""A trained model -> NIR: what every family's graph says about itself, and which function knows a family's modules.

A family is one row of `_EXPORTERS`; others add theirs with `register_exporter`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import nir
from transformers import PreTrainedModel

from export.errors import UnsupportedOperatorError
from export.from_modules import ArrayReader, copy_weight, view_weight
from export.from_spikebert import spikebert_network
from export.network import Network
from export.nir_graph.writer import build_graph
from export.operators import DEFAULT_DT
from spikebert.modeling import SpikeBertForSequenceClassification

PRECISIONS = ("float32", "float64")
Exporter = Callable[[Any, ArrayReader], Network]
"""Returns a model's network: nodes named as its spikes are, token encoding, time steps, and whether padding counts."""

_EXPORTERS: dict[type[PreTrainedModel], Exporter] = {SpikeBertForSequenceClassification: spikebert_network}


def register_exporter(model_class: type[PreTrainedModel], exporter: Exporter) -> None:
    """Let `to_nir` write the models of a class, and of classes derived from it, in place of any function it had."""
    _EXPORTERS[model_class] = exporter


def to_nir(
    model: PreTrainedModel,
    precision: str | None = None,
    dt: float = DEFAULT_DT,
    metadata: dict[str, Any] | None = None,
    copy: bool = True,
) -> nir.NIRGraph:
    """Write a model as a NIR graph.

    Parameters
    ----------
    model : PreTrainedModel
        A classifier of a class that has an exporter.
    precision : {"float32", "float64"}, optional
        Type of the weights in the graph; the model's own by default.
    dt : float
        Seconds a time step stands for; it changes no spike.
    metadata : dict, optional
        What else the graph should say about itself (str, number or bool values), such as a checkpoint's hash.
    copy : bool
        Whether the graph has weights of its own. Without, those that need no conversion are the model's memory: enough
        for a graph that is written and let go of, but whoever trains the model on changes the graph too.

    Returns
    -------
    nir.NIRGraph
        Its nodes have the names of ``model(..., output_spikes=True).spikes``; shapes are per token.

    Raises
    ------
    UnsupportedOperatorError
        The model's class has no exporter, or the model has something NIR has no place for.
    """
    exporter = next((_EXPORTERS[each] for each in type(model).__mro__ if each in _EXPORTERS), None)
    if exporter is None:
        known = " or ".join(each.__name__ for each in _EXPORTERS)
        raise UnsupportedOperatorError(f"{type(model).__name__} cannot be written as NIR; expected {known}")
    own = {"torch.float32": "float32", "torch.float64": "float64"}.get(str(model.dtype), "float32")
    precision = own if precision is None else precision
    if precision not in PRECISIONS:
        raise UnsupportedOperatorError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    config = model.config
    padded_length = getattr(config, "padded_length", None)
    about = {
        "producer": f"spikebert {version('spikebert')}",
        "nir_version": version("nir"),
        "model_config": json.dumps(config.to_diff_dict(), default=str),
        "labels": json.dumps({str(index): str(label) for index, label in (config.id2label or {}).items()}),
        **({} if padded_length is None else {"padded_length": padded_length}),
        **(metadata or {}),
    }
    network = exporter(model, copy_weight if copy else view_weight)
    return build_graph(replace(network, dt=dt, metadata={**network.metadata, **about}), precision)
