"""Network -> ONNX model: inputs, one value for each node, logits, and what the file says of itself.

    input_ids (B, N), attention_mask (B, N)  ─▶  one value for each node (T, B, N, D)  ─▶  logits (B, C)

Batch and length are free. A graph without token encoding takes values ``(T, B, N, D)`` under the name of its input
node in place of ids, and T is free too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import nir
import numpy as np
import onnx
from onnx import TensorProto, helper

# these register their spellings
import export.onnx_format.delays
import export.onnx_format.neurons
import export.onnx_format.synapses
import export.onnx_format.tokens  # noqa: F401
from export.errors import GraphError, UnsupportedOperatorError
from export.network import COUNTS, INTEGER, Network, Node, check_time_steps
from export.nir_graph.reader import parse_graph
from export.nir_graph.writer import decoding
from export.onnx_format.builder import OPSET, POTENTIAL, TOKEN_MASK, OnnxBuilder, State, Weight
from export.onnx_format.scan import write_scan
from export.onnx_format.spellings import SPELLINGS
from export.operators import Affine, rule_for
from export.operators.affine import narrow_weight
from export.token_encoding import POSITION, WORD, TokenEncoding

if TYPE_CHECKING:
    from torch import nn

FORMAT = "spikebert-onnx"
FORMAT_VERSION = 1
IR_VERSION = 8
"""The one that came with the operator set; older runtimes refuse newer ones."""
PRECISIONS: dict[str, Any] = {"float32": np.float32, "float64": np.float64, INTEGER: np.int64}
INPUT_IDS, ATTENTION_MASK, LOGITS, STEP_LOGITS = "input_ids", "attention_mask", "logits", "step_logits"
ONLY_IN_NIR = ("sums", "non_standard_nodes")
"""What a NIR graph says of itself that means nothing here."""
RESERVED = (INPUT_IDS, ATTENTION_MASK, LOGITS, STEP_LOGITS)


@dataclass(frozen=True, eq=False)
class OnnxDraft:
    """A model whose weights still lie where the graph has them.

    Attributes
    ----------
    model : onnx.ModelProto
        All but the weights.
    weights : list of Weight
    """

    model: onnx.ModelProto
    weights: list[Weight]

    def assemble(self) -> onnx.ModelProto:
        """Return the model with a copy of the weights, once only: the draft's own model has them then."""
        for weight in self.weights:
            tensor = self.model.graph.initializer.add()
            tensor.CopyFrom(weight.head())
            tensor.raw_data = b"".join(weight.pieces())
        self.weights.clear()
        return self.model


def to_onnx(
    model_or_graph: nn.Module | nir.NIRGraph | Network, precision: str | None = None, **options: Any
) -> onnx.ModelProto:
    """Return a model or graph as ONNX, in memory; for a file, a draft does without that copy.

    Parameters
    ----------
    model_or_graph, precision, options
        As in `draft_onnx`.

    Returns
    -------
    onnx.ModelProto
        Holds a copy of the weights, each once whatever the number of steps. Inputs are ``input_ids`` and
        ``attention_mask``, int64 ``(B, N)``; padding has mask 0 and changes nothing.

    Raises
    ------
    UnsupportedOperatorError, GraphError
        As `draft_onnx` does.
    """
    return draft_onnx(model_or_graph, precision, **options).assemble()


def draft_onnx(
    model_or_graph: nn.Module | nir.NIRGraph | Network,
    precision: str | None = None,
    *,
    spikes: bool = False,
    membrane_potentials: bool = False,
    time_steps: int | None = None,
    metadata: dict[str, str] | None = None,
) -> OnnxDraft:
    """Write a model or graph as ONNX, all but the weights: what `write_onnx` takes to a file.

    Parameters
    ----------
    model_or_graph : PreTrainedModel, nir.NIRGraph or Network
        A model of a class that has an exporter, see `export.to_nir`.
    precision : {"float32", "float64", "integer"}, optional
        What everything is computed in; by default the type of the graph's weights. A graph from `quantize` runs in
        integers, int64 throughout with ``MatMulInteger`` on spikes, and only such a graph.
    spikes : bool
        Show every spiking node's spikes ``(T, B, N, D)`` as an output of its name, and ``step_logits``, what each time
        step by itself says, ``(T, B, C)``, beside the logits.
    membrane_potentials : bool
        Show ``NODE.membrane_potential`` too, as it was tested against the threshold.
    time_steps : int, optional
        In place of the graph's own; a graph that takes values reads it from their shape.
    metadata : dict, optional
        What else the file should say about itself.

    Raises
    ------
    UnsupportedOperatorError
        Nodes have no spelling in ONNX; all of them are named. Or the precision is not the graph's.
    GraphError
        The graph means nothing, or a node's name is one the file needs itself.
    """
    network = _network(model_or_graph)
    precision = _precision(network, precision)
    _check_nodes(network)
    encoding = network.token_encoding
    check_time_steps(time_steps)
    time_steps = network.time_steps if time_steps is None else time_steps
    if encoding is not None and time_steps is None:
        raise GraphError("graph: does not say how many time steps a sentence is shown for; give time_steps")
    build = OnnxBuilder(PRECISIONS[precision], membrane_potentials)
    _write_mask(build, network.attend_to_padding)
    for stage in network.stages:
        _write_stage(build, network, stage, time_steps)
    _write_logits(build, network)
    steps: int | str = "time_steps" if encoding is None or time_steps is None else time_steps
    model = helper.make_model(
        helper.make_graph(
            build.nodes,
            str(network.metadata.get("name", "spikebert")),
            _inputs(network, build),
            _outputs(network, build, steps, spikes),
            doc_string="Activations are (time steps, batch, tokens, features); each node's value has the node's name.",
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="spikebert",
        producer_version=str(network.metadata.get("producer", "")).removeprefix("spikebert").strip(),
    )
    about = {**_about(network, precision, time_steps), **(metadata or {})}
    helper.set_model_props(model, {key: _text(value) for key, value in about.items()})
    return OnnxDraft(model, list(build.weights.values()))


def _network(model_or_graph: Any) -> Network:
    if isinstance(model_or_graph, Network):
        return model_or_graph
    if isinstance(model_or_graph, nir.NIRGraph):
        return parse_graph(model_or_graph)
    from export.exporters import to_nir

    return parse_graph(to_nir(model_or_graph, copy=False))


def _precision(network: Network, precision: str | None) -> str:
    own = INTEGER if network.is_integer else str(network.metadata.get("precision", "float32"))
    precision = own if precision is None else precision
    if precision not in PRECISIONS:
        raise UnsupportedOperatorError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    if network.is_integer and precision != INTEGER:
        raise UnsupportedOperatorError(
            f"graph: computes in whole numbers; its precision is {INTEGER!r}, not {precision!r}"
        )
    if precision == INTEGER and not network.is_integer:
        raise UnsupportedOperatorError("graph: computes in floating point; quantize it first (spikebert quantize)")
    return precision


def _check_nodes(network: Network) -> None:
    unknown = [f"{node.name} ({node.operator.name})" for node in network.nodes if type(node.operator) not in SPELLINGS]
    if unknown:
        known = ", ".join(sorted(operator.name for operator in SPELLINGS))
        raise UnsupportedOperatorError(f"{', '.join(unknown)}: not yet spelled in ONNX; known are {known}")
    names = [network.input_name, *(node.name for node in network.nodes)]
    for name in names:
        if name in RESERVED:
            raise GraphError(f"{name}: an ONNX file uses this name for an input or output of its own; rename the node")


def _write_mask(build: OnnxBuilder, attend_to_padding: bool) -> None:
    """Write the mask as operators take it; all ones where padding counts as ordinary tokens."""
    real = build.add("Cast", [ATTENTION_MASK], "/is_token", to=TensorProto.BOOL)
    if attend_to_padding:
        real = build.add("Or", [real, build.add("Not", [real], "/is_padding")], "/is_either")
    build.add("Unsqueeze", [build.cast(real, "/counts"), build.axes(-1)], TOKEN_MASK)


def _write_stage(build: OnnxBuilder, network: Network, stage: tuple[Node, ...], time_steps: int | None) -> None:
    """Write a node, or the nodes of a cycle: all steps at once where nothing is remembered."""
    node, *more = stage
    if network.token_encoding is not None and node.sources == (network.input_name,):
        assert isinstance(node.operator, Affine)
        assert time_steps is not None
        _write_embedding(build, node.name, node.operator, network.token_encoding, time_steps)
        return
    write = rule_for(SPELLINGS, node).at_once
    if more or write is None:
        write_scan(build, stage, _clock(network), _write_step)
    else:
        write(build, node.name, node.operator, *node.sources)


def _write_step(body: OnnxBuilder, node: Node) -> list[State]:
    spelling = rule_for(SPELLINGS, node)
    if spelling.step is not None:
        return spelling.step(body, node.name, node.operator, *node.sources)
    assert spelling.at_once is not None
    spelling.at_once(body, node.name, node.operator, *node.sources)
    return []


def _clock(network: Network) -> str:
    """Return a value ``(T, B, N, ...)`` that needs nothing but the file's inputs."""
    if network.token_encoding is None:
        return network.input_name
    return next(node.name for node in network.nodes if node.sources == (network.input_name,))


def _write_embedding(build: OnnxBuilder, name: str, operator: Affine, encoding: TokenEncoding, time_steps: int) -> None:
    """Write an affine map of the multi-hot input as look-ups, a table for each thing that a token's input says.

    They are not one table, so that a token id beyond the vocabulary is refused.
    """
    is_integer = operator.traits.integer
    table = narrow_weight(operator.weight) if is_integer else operator.weight
    dtype = table.dtype if is_integer else None  # in integers as narrow as they are, widened when looked up
    rows = table.T

    def look_up(table: str, index: str, output: str) -> str:
        found = build.add("Gather", [table, index], output)
        return build.cast(found, f"{output}/wide") if is_integer else found

    def index_of(said: str) -> str:
        if said == WORD:
            return INPUT_IDS
        if said == POSITION:
            tokens = build.add("Shape", [INPUT_IDS], f"{name}/tokens", start=1)
            count = build.add("Squeeze", [tokens], f"{name}/count")
            return build.add("Range", [build.scalar(0), count, build.scalar(1)], f"{name}/index")
        assert encoding.before_first is not None
        earlier = build.add("Slice", [INPUT_IDS, build.shape(0), build.shape(-1), build.shape(1)], f"{name}/earlier")
        sentences = build.add("Shape", [INPUT_IDS], f"{name}/sentences", end=1)
        column = build.add("Concat", [sentences, build.shape(1)], f"{name}/column", axis=0)
        first = build.add("Expand", [build.scalar(encoding.before_first), column], f"{name}/before_first")
        return build.add("Concat", [first, earlier], f"{name}/previous", axis=1)

    value = ""
    for said, columns in encoding.tables.items():
        found = look_up(build.weight(f"{name}/{said}s", rows[columns], dtype), index_of(said), f"{name}/{said}")
        value = build.add("Add", [value, found], f"{name}/with_{said}") if value else found
    if operator.bias is not None:
        value = build.add("Add", [value, build.weight(f"{name}/bias", operator.bias)], f"{name}/biased")
    # the same current at every step
    build.add("Expand", [value, build.shape(time_steps, 1, 1, 1)], name)


def _write_logits(build: OnnxBuilder, network: Network) -> None:
    """Write what each time step says, and their mean; behind a token mean without the token axis."""
    shown, readout = network.output_source, network.readout
    if network.pools_tokens:
        shown = build.add("Squeeze", [shown, build.axes(-2)], "/shown")
    if readout is None:
        build.add("Identity", [shown], STEP_LOGITS)
        build.add("ReduceMean", [shown, build.axes(0)], LOGITS, keepdims=0)
        return
    # see export.network.Readout
    tokens = build.scalar(1)
    if network.sums_tokens:
        tokens = build.add("ReduceSum", [TOKEN_MASK, build.axes(-2)], "/tokens", keepdims=0)
    bias = build.add("Mul", [tokens, build.weight("/readout_bias", readout.bias)], "/bias")
    biased = build.add("Add", [shown, bias], "/biased")
    total = build.add("ReduceSum", [biased, build.axes(0)], "/total", keepdims=0)
    steps = build.add("Squeeze", [build.add("Shape", [shown], "/steps", end=1)], "/step_count")
    unit = build.weight("/readout_unit", readout.unit, np.float64)

    def in_float(value: str, count: str, output: str) -> None:
        numbers, counts = (build.add("Cast", [v], f"{v}/in_float", to=TensorProto.DOUBLE) for v in (value, count))
        build.add("Div", [build.add("Mul", [numbers, unit], f"{value}/in_units"), counts], output)

    in_float(biased, tokens, STEP_LOGITS)
    in_float(total, build.add("Mul", [tokens, steps], "/token_steps"), LOGITS)


def _inputs(network: Network, build: OnnxBuilder) -> list[onnx.ValueInfoProto]:
    rows: list[int | str | None] = ["batch", "tokens"]
    if network.token_encoding is not None:
        first = helper.make_tensor_value_info(INPUT_IDS, TensorProto.INT64, rows)
    else:
        shape: list[int | str | None] = ["time_steps", *rows, network.input_features]
        first = helper.make_tensor_value_info(network.input_name, build.element_type, shape)
    ignored = "; ignored: padding counts as ordinary tokens" if network.attend_to_padding else ""
    mask = helper.make_tensor_value_info(
        ATTENTION_MASK, TensorProto.INT64, rows, doc_string=f"nonzero at tokens, 0 at padding{ignored}"
    )
    return [first, mask]


def _outputs(network: Network, build: OnnxBuilder, steps: int | str, spikes: bool) -> list[onnx.ValueInfoProto]:
    def value(name: str, node: str, features: int) -> onnx.ValueInfoProto:
        tokens: int | str = 1 if node in network.pooled else "tokens"
        shape: list[int | str | None] = [steps, "batch", tokens, features]
        return helper.make_tensor_value_info(name, build.element_type, shape)

    rows = ["batch"] if network.pools_tokens else ["batch", "tokens"]
    shape: list[int | str | None] = [*rows, network.output_features]
    logits_type = TensorProto.DOUBLE if network.is_integer else build.element_type
    found = [helper.make_tensor_value_info(LOGITS, logits_type, shape)]
    for node in network.spiking_nodes:
        if spikes:
            found.append(value(node.name, node.name, node.operator.out_features))
        if build.membrane_potentials:
            found.append(value(POTENTIAL.format(node.name), node.name, node.operator.out_features))
    if spikes:
        found.append(helper.make_tensor_value_info(STEP_LOGITS, logits_type, [steps, *shape]))
    return found


def _about(network: Network, precision: str, time_steps: int | None) -> dict[str, Any]:
    """Return what a reader of the file wants to know, with everything the graph says of itself."""
    encoding = network.token_encoding
    own = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "precision": precision,
        "dt": network.dt,
        "attend_to_padding": network.attend_to_padding,
        "input": network.input_name,
        "input_features": network.input_features,
        "decoding": decoding(network)["decoding"],
        "layout": "activations are (time steps, batch, tokens, features)",
        "spiking_nodes": [node.name for node in network.spiking_nodes],
        "neurons": {node.name: _semantics(node) for node in network.spiking_nodes},
        "operators": {node.name: node.operator.name for node in network.nodes},
    }
    if network.input_shape is not None:
        own["input_shape"] = network.input_shape
    if encoding is not None:
        own.update(encoding.to_metadata())
    counts = {key: getattr(network, key) for key in COUNTS} | {"time_steps": time_steps}
    own.update({key: count for key, count in counts.items() if count is not None})
    kept = {key: value for key, value in network.metadata.items() if key not in ONLY_IN_NIR}
    return {**kept, **own}


def _semantics(node: Node) -> dict[str, Any]:
    neuron: Any = node.operator  # whatever spikes says its equations
    return {"operator": neuron.name, "update": neuron.update, "parameters": _ranges(neuron.parameters())}


def _ranges(parameters: dict[str, Any]) -> dict[str, Any]:
    """Return one number where all neurons have the same, else the smallest and the largest; arrays are initializers."""
    short: dict[str, Any] = {}
    for key, value in parameters.items():
        if isinstance(value, np.ndarray):
            low, high = float(value.min()), float(value.max())
            short[key] = low if low == high else [low, high]
        else:
            short[key] = value
    return short


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, str):
        return value
    return json.dumps(value, default=lambda other: other.tolist() if hasattr(other, "tolist") else str(other))
