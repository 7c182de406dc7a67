"""The pass from a float graph to an integer graph: int8 weights, Loihi's neurons, every scale chosen and proven.

Nodes are taken in topological order. Each is given whole numbers for parameters, from its weights, from what its
readers need and from intervals that prove no reachable sum to wrap around. Then the calibration sentences run through
it three times: in float, in integers behind integers, and in integers behind the float graph's spikes, which judges the
node by itself. A layer of neurons that fell silent or saturated is named, and its thresholds are rescaled until it
fires as often as the float layer, before the next layer is looked at.

What a recurrent connection brings is spikes, 0 or 1, so that its sums are bounded as any others are. What it brought in
float is found out first, by running the float graph; the integers of a cycle run step by step.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import nir
import numpy as np

from export.choices import ROUNDINGS, SCALES, SIGN_MODES
from export.errors import ChipLimitError, GraphError, UnsupportedOperatorError
from export.execution import NodeExecution
from export.loihi_numbers import (
    ACTIVATION_MAX,
    ACTIVATION_SHIFT,
    BIAS_EXPONENT_MAX,
    BIAS_MANTISSA_MAX,
    DECAY_MAX,
    DECAY_UNITY,
    THRESHOLD_MAX,
    WEIGHT_LIMITS,
)
from export.network import Network, Node, Readout, with_token_axis
from export.nir_graph.reader import parse_graph
from export.nir_graph.writer import build_graph
from export.operators import (
    Affine,
    Convolution,
    Delay,
    Flatten,
    Heaviside,
    IntegerAffine,
    IntegerConvolution,
    IntegerCurrentNeuron,
    IntegerIntegrator,
    IntegerLayerNorm,
    IntegerLeakyIntegrateAndFire,
    IntegerSpikeAttention,
    LayerNorm,
    LeakyIntegrateAndFire,
    LeakyIntegrator,
    Operator,
    Pooling,
    PreviousStep,
    ResistiveNeuron,
    Scale,
    SpikeAttention,
    TokenMean,
    TokenSum,
    Total,
)
from export.operators.affine import narrow_weight, sign_mode
from export.operators.layer_norm import BIAS_BITS, GAIN_BITS, NORMED_BITS, RADICAND_BITS
from export.passes.intervals import (
    Interval,
    node_interval,
    symmetric,
)
from spikebert.errors import ConfigurationError

CLIPPINGS = tuple(2.0 ** (-step / 4) for step in range(13))
"""Shares of the largest weight that are tried as the largest a matrix can hold: 1, 0.84, …, 0.125."""
SEARCHED_INPUTS = 2048
"""Columns of a matrix that the search looks at: those that the calibration uses most."""
DEFAULT_MAX_TOKENS = 512
NORM_FRACTION_BITS = 14
"""Most fraction bits of a layer norm's output; more would be finer than any threshold needs."""
ATTENTION_FRACTION_BITS = 10
HEAD_LIMIT = 1 << 15
"""Largest output of a layer norm that no neuron reads, so that sums over tokens and the head stay small."""
SILENT_RATE, SATURATED_RATE = 0.5, 2.0
"""A layer whose firing rate falls below half the float layer's is silent, one above twice it saturated."""
FULL_RATE = 0.95
"""Above this rate a layer that did not reach it in float counts as saturated too."""
RESCALING_RANGE = 64.0
RESCALING_STEPS = 16


@dataclass(frozen=True)
class QuantizationOptions:
    """How to quantize.

    Parameters
    ----------
    scale : {"per-tensor", "per-channel"}
        One weight scale for a matrix, or one for each of its rows where neurons follow directly. A norm group has one
        scale in either case.
    power_of_two : bool
        Only powers of two as weight scales.
    rounding : {"nearest", "floor-even"}
        How weights are rounded; ``"floor-even"`` as stock Lava's Dense floors weights of twice the precision.
    sign_mode : {"mixed", "auto"}
        ``"auto"`` gives matrices of one sign all 8 bits of magnitude.
    clip : bool
        Whether outlying weights may be clipped where that makes the matrix more exact on the calibration.
    repair : bool
        Whether thresholds of silent and saturated layers are rescaled.
    max_tokens : int, optional
        Longest sentence; the graph's positions, else 512, by default.
    """

    scale: str = "per-tensor"
    power_of_two: bool = False
    rounding: str = "nearest"
    sign_mode: str = "mixed"
    clip: bool = True
    repair: bool = True
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        """Check every value."""
        for name, allowed in (("scale", SCALES), ("rounding", ROUNDINGS), ("sign_mode", SIGN_MODES)):
            if getattr(self, name) not in allowed:
                raise ConfigurationError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}")
        if self.max_tokens is not None and (not isinstance(self.max_tokens, int) or self.max_tokens < 1):
            raise ConfigurationError(f"max_tokens is {self.max_tokens!r}; it must be a whole number of at least 1")


@dataclass
class LayerReport:
    """What quantization did to one layer of neurons, on the calibration sentences.

    Attributes
    ----------
    node : str
    float_rate, integer_rate : float
        Firing rates, the integer one behind integers all the way and after any repair.
    agreement : float
        Share of spikes equal to the float layer's when both read the float graph's spikes.
    silent_features, saturated_features : int
        Features that fire in float and never in integers; that always fire in integers and not in float.
    found : str or None
        ``"silent"`` or ``"saturated"`` where the layer had fallen so before a repair.
    threshold_factor : float
        What its thresholds were multiplied with; 1 without repair.
    """

    node: str
    float_rate: float
    integer_rate: float
    agreement: float
    silent_features: int
    saturated_features: int
    found: str | None = None
    threshold_factor: float = 1.0


@dataclass
class WeightReport:
    """What quantization did to one matrix.

    Attributes
    ----------
    node : str
    unit : float
        Largest of its scales.
    largest : int
        Largest magnitude of its whole numbers: below 127 where a sum would have wrapped around otherwise.
    relative_error : float
        Root mean square of the weights' error, relative to that of the weights, as the calibration uses them.
    """

    node: str
    unit: float
    largest: int
    relative_error: float


@dataclass
class QuantizationReport:
    """What `quantize` did; the graph's metadata hold it as JSON under ``quantization``."""

    options: dict[str, Any] = field(default_factory=dict)
    layers: list[LayerReport] = field(default_factory=list)
    weights: list[WeightReport] = field(default_factory=list)

    @property
    def repaired(self) -> list[LayerReport]:
        """Layers that had fallen silent or saturated."""
        return [layer for layer in self.layers if layer.found is not None]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Calibration:
    """Inputs that scales and thresholds are chosen on.

    Attributes
    ----------
    inputs : ndarray
        Token ids ``(B, N)``, or input values ``(T, B, N, D)`` for a graph that reads no tokens.
    mask : ndarray
        ``(B, N)`` bool, True at tokens.
    """

    inputs: np.ndarray
    mask: np.ndarray

    @classmethod
    def of(cls, given: Any) -> Calibration:
        """Return a calibration from sentences of token ids, an array of inputs, or a pair of inputs and mask.

        Raises
        ------
        ConfigurationError
            It is none of these, or holds no token.
        """
        if isinstance(given, Calibration):
            return given
        try:
            if isinstance(given, tuple) and len(given) == 2:
                inputs, mask = (np.asarray(part) for part in given)
            elif isinstance(given, np.ndarray):
                inputs, mask = given, np.ones(given.shape[:2] if given.ndim == 2 else given.shape[1:3], bool)
            else:
                rows: Sequence[Sequence[int]] = [list(row) for row in given]
                mask = np.arange(max(map(len, rows), default=0)) < np.array([[len(row)] for row in rows])
                inputs = np.zeros(mask.shape, np.int64)
                inputs[mask] = [token for row in rows for token in row]
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"the calibration cannot be read as sentences of token ids: {error}") from error
        shape = inputs.shape[:2] if inputs.ndim == 2 else inputs.shape[1:3]
        if inputs.ndim not in (2, 4) or mask.shape != shape or not mask.size or not (mask != 0).any(-1).all():
            raise ConfigurationError(
                f"the calibration has inputs of shape {inputs.shape} and a mask of shape {mask.shape}; expected token "
                "ids (sentences, tokens) or values (time steps, sentences, tokens, features), a token in each sentence"
            )
        return cls(inputs, mask != 0)


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
    quantizer = _Quantizer(network, Calibration.of(calibration), QuantizationOptions(**options))
    integer_network, report = quantizer.run()
    integer_graph = build_graph(integer_network)
    parse_graph(integer_graph)  # refuses by name whatever the chip cannot hold
    return integer_graph, report


@dataclass
class _Streams:
    """What one node sends on the calibration: in float, in integers behind the float spikes, and in integers.

    The last are known once the whole cycle is that a node may stand on; they are the second, the same array, where no
    neuron stands before the node.
    """

    floats: np.ndarray
    forced: np.ndarray
    integers: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class _Map:
    """An affine map or a convolution as rows of weights, each of which leads to one number or to a channel's.

    Attributes
    ----------
    node : Node
    rows : ndarray
        ``(channels, weights of a row)`` float64.
    bias : ndarray or None
        ``(channels,)`` float64.
    """

    node: Node
    rows: np.ndarray
    bias: np.ndarray | None

    @classmethod
    def of(cls, node: Node) -> _Map:
        operator = node.operator
        assert isinstance(operator, Affine | Convolution)
        bias = None if operator.bias is None else operator.bias.astype(np.float64)
        return cls(node, operator.weight.reshape(len(operator.weight), -1).astype(np.float64), bias)

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def operator(self) -> Affine | Convolution:
        assert isinstance(self.node.operator, Affine | Convolution)
        return self.node.operator

    @property
    def channels(self) -> int:
        return len(self.rows)

    @property
    def places(self) -> int:
        """How many numbers a row leads to."""
        return self.operator.out_features // self.channels

    def of_weights(self, by_channel: np.ndarray) -> np.ndarray:
        """Return what is said of each channel of the input for the weights that meet it, ``(1 or rows, weights)``."""
        operator = self.operator
        if not isinstance(operator, Convolution):
            return by_channel[None]
        groups, (inputs, *kernel) = operator.groups, operator.weight.shape[1:]
        by_group = np.repeat(by_channel.reshape(groups, inputs), math.prod(kernel), 1)
        return np.repeat(by_group, self.channels // groups, 0)

    def drafted(self, rows: np.ndarray, bias: np.ndarray | None) -> Convolution:
        """Return the convolution with other numbers."""
        assert isinstance(self.operator, Convolution)
        bias = np.zeros(self.channels) if bias is None else bias
        return replace(self.operator, weight=rows.reshape(self.operator.weight.shape), bias=bias)

    def quantized(
        self, rows: np.ndarray, bias: np.ndarray | None, unit: np.ndarray
    ) -> IntegerAffine | IntegerConvolution:
        """Return the operator in whole numbers."""
        if isinstance(self.operator, Affine):
            return IntegerAffine(weight=narrow_weight(rows), bias=bias, unit=unit)
        drafted = vars(self.drafted(narrow_weight(rows), bias))
        return IntegerConvolution(**{**drafted, "bias": drafted["bias"].astype(np.int64)}, unit=unit)


class _Quantizer:
    def __init__(self, network: Network, calibration: Calibration, options: QuantizationOptions) -> None:
        if network.is_integer:
            raise GraphError("graph: is an integer graph already")
        self.network, self.options = network, options
        self.mask, self.token_mask = calibration.mask, calibration.mask[..., None]
        encoding = network.token_encoding
        self.hot = encoding.hot_inputs(calibration.inputs) if encoding is not None else None
        if (calibration.inputs.ndim == 2) != (encoding is not None):
            raise ConfigurationError("the calibration holds token ids and the graph takes values, or the reverse")
        self.time_steps = calibration.inputs.shape[0] if encoding is None else network.time_steps or 1
        self.max_tokens = options.max_tokens or (encoding.positions if encoding is not None else 0)
        self.max_tokens = self.max_tokens or max(DEFAULT_MAX_TOKENS, self.mask.shape[1])
        self.input_limit = None if encoding is not None else max(1, int(np.ceil(np.abs(calibration.inputs).max())))
        self.draft = replace(network, max_tokens=self.max_tokens, input_limit=self.input_limit)
        self.readers: dict[str, list[Node]] = {node.name: [] for node in network.nodes}
        self.readers[network.input_name] = []
        for node in network.nodes:
            for source in node.sources:
                self.readers[source].append(node)
            if isinstance(node.operator, Delay):
                node.operator.check_whole_numbers(node.name)
        self.by_name = {node.name: node for node in network.nodes}
        self.operators: dict[str, Operator] = {}
        self.units: dict[str, np.ndarray] = {}
        self.intervals: dict[str, Interval] = {}
        self.streams: dict[str, _Streams] = {}
        self.taken: set[str] = set()
        self.neuron_biases: dict[str, np.ndarray] = {}
        self.readout_bias: np.ndarray | None = None
        self.report = QuantizationReport({**asdict(options), "max_tokens": self.max_tokens})
        self.pooled = _pooled(network)
        if encoding is None:
            values = calibration.inputs.astype(np.float64)
            if np.any(values != np.rint(values)):
                raise ConfigurationError(
                    "a graph that takes values is quantized for whole numbers only, such as spikes"
                )
            self.units[network.input_name] = np.ones(network.input_features)
            self.intervals[network.input_name] = symmetric(np.full(network.input_features, self.input_limit))
            whole = values.astype(np.int64)
            self.streams[network.input_name] = _Streams(values, whole, whole)
        for name, spikes in self._recurrent_spikes(calibration).items():
            self.taken.add(name)
            self.operators[name] = self.by_name[name].operator
            self.units[name] = np.ones(spikes.shape[-1])
            self.intervals[name] = Interval(np.zeros(spikes.shape[-1]), np.ones(spikes.shape[-1]))
            self.streams[name] = _Streams(spikes, spikes.astype(np.int64))

    def run(self) -> tuple[Network, QuantizationReport]:
        unread = Counter(source for node in self.network.nodes for source in node.sources)
        for stage in self.network.stages:
            for node in stage:
                self._take(node)
            self._calibrate(stage)
            for source in (source for node in stage for source in node.sources):
                unread[source] -= 1
                if not unread[source]:
                    self.streams.pop(source, None)
        nodes = [Node(node.name, self.operators[node.name], node.sources) for node in self.network.nodes]
        metadata = {
            **self.network.metadata,
            "quantized_from": str(self.network.metadata.get("precision", "float64")),
            "quantization": json.dumps(self.report.to_dict()),
        }
        return replace(self.draft, nodes=tuple(nodes), readout=self._readout(), metadata=metadata), self.report

    def _recurrent_spikes(self, calibration: Calibration) -> dict[str, np.ndarray]:
        """Return what each recurrent connection brings in float, ``(T, B, N, D)``: the spikes of the step before."""
        network = self.network
        connections = {node.name: node.sources[0] for node in network.nodes if isinstance(node.operator, PreviousStep)}
        if not connections:
            return {}
        found: dict[str, list[np.ndarray]] = {node.name: [] for node in network.spiking_nodes}
        execution = NodeExecution(network.nodes, np.float32, lambda name, spikes, _: found[name].append(spikes), ())
        for step in range(self.time_steps):
            values = {}
            if self.hot is None:
                values[network.input_name] = calibration.inputs[step].astype(np.float32)
            execution.step(values, None if self.mask.all() else self.token_mask, self.hot)
        sent = {name: np.stack(found[neuron]) for name, neuron in connections.items()}
        return {name: np.concatenate([np.zeros_like(spikes[:1]), spikes[:-1]]) for name, spikes in sent.items()}

    def _take(self, node: Node) -> None:
        """Give a node, and what it reads, its parameters, and run the calibration through it; once."""
        if node.name not in self.taken:
            self.taken.add(node.name)
            for source in node.sources:
                if source in self.by_name:
                    self._take(self.by_name[source])
            self.operators[node.name] = self._quantize(node)
            self._run(node)

    # --- parameters of each operator ---

    def _quantize(self, node: Node) -> Operator:
        operator, (source, *others) = node.operator, node.sources
        found: Operator
        if isinstance(operator, Total):
            if not np.array_equal(self.units[source], self.units[others[0]]):
                raise UnsupportedOperatorError(
                    f"{node.name}: adds {source} to {others[0]}, whose whole numbers stand for different values; only "
                    "spikes, and affine maps that are added to each other, can be added in an integer graph"
                )
            found, unit = operator, self.units[source]
        elif isinstance(operator, Affine | Convolution):
            return self._map(node)
        elif isinstance(operator, LayerNorm):
            found = self._layer_norm(node, operator)
            unit = found.unit
        elif isinstance(operator, SpikeAttention):
            found = self._attention(node, operator)
            unit = found.unit
        elif isinstance(operator, TokenMean):
            found, unit = TokenSum(operator.features), self.units[source]
        elif isinstance(operator, Flatten | Delay):
            found, unit = operator, self.units[source]
        elif isinstance(operator, Pooling):
            found, unit = replace(operator, mean=False), self._pooled_unit(node, operator)
        elif isinstance(operator, Scale):
            found = Scale(np.sign(operator.scale).astype(np.float64))
            unit = self.units[source] * np.where(operator.scale == 0, 1, np.abs(operator.scale).astype(np.float64))
        elif isinstance(operator, LeakyIntegrator):
            found = self._integrator(node, operator)
            unit = found.unit
        elif isinstance(operator, ResistiveNeuron):
            found, unit = self._resistive_neuron(node, operator), np.ones(operator.out_features)
        elif isinstance(operator, LeakyIntegrateAndFire):
            found, unit = self._neuron(node, operator), np.ones(operator.out_features)
        elif isinstance(operator, Heaviside):
            # x unit > threshold, and x is whole: x > floor(threshold / unit), x >= ceil(threshold / unit)
            whole = np.ceil if operator.fire_on_equal else np.floor
            found = Heaviside(whole(operator.threshold / self.units[source]), operator.fire_on_equal)
            unit = np.ones(operator.out_features)
        else:
            raise UnsupportedOperatorError(f"{node.name}: {operator.name} has no meaning in whole numbers here")
        self.units[node.name] = unit
        interval = node_interval(self.draft, Node(node.name, found, node.sources), self.intervals)
        assert interval is not None
        self.intervals[node.name] = interval
        return found

    def _map(self, node: Node) -> Operator:
        """Quantize the weights of an affine map or convolution, and of those it is added to, on one scale.

        A row of weights is what leads to one feature of an affine map, or to all places of a channel.
        """
        if node.name in self.operators:
            return self.operators[node.name]
        family = [_Map.of(member) for member in self._added_to(node)]
        channels, places = family[0].channels, family[0].places
        readers = self._final_readers(node)
        groups = self._scale_groups(channels, readers)
        columns = [self._column_units(member) for member in family]
        scaled = [member.rows * units for member, units in zip(family, columns, strict=True)]
        importance = [self._importance(*pair) for pair in zip(family, columns, strict=True)]
        bias = sum((member.bias for member in family if member.bias is not None), np.zeros(channels))
        least = self._least_unit(readers, np.repeat(bias, places)).reshape(channels, places).max(1)
        unit = np.empty(channels)
        for rows in groups:
            unit[rows] = self._best_scale([w[rows] for w in scaled], importance, float(least[rows].max()))
        for _ in range(64):  # each turn coarsens what is still too large
            whole = [self._whole_weights(w, unit) for w in scaled]
            too_large = self._too_large(family, whole, readers, unit)
            if not too_large.any():
                break
            for rows in groups:
                if too_large[rows].any():
                    unit[rows] *= 2 if self.options.power_of_two else 2**0.25
        for member, weight, exact, weighing in zip(family, whole, scaled, importance, strict=True):
            if np.any(exact) and not np.any(weight):
                raise ChipLimitError(
                    f"{member.name}: every weight would become 0: the largest is {float(np.abs(exact).max()):.3g}, and "
                    "thresholds or sums behind it allow no smaller scale; lower the thresholds or split the layer"
                )
            self._finish_map(member, weight, unit)
            wrong = ((weight * unit[:, None] - exact) ** 2 @ weighing).sum()
            error = float(np.sqrt(wrong / max(((exact**2) @ weighing).sum(), np.finfo(float).tiny)))
            self.report.weights.append(WeightReport(member.name, float(unit.max()), int(np.abs(weight).max()), error))
        return self.operators[node.name]

    def _finish_map(self, member: _Map, rows: np.ndarray, unit: np.ndarray) -> None:
        kept = None
        if member.bias is not None and member.bias.any():
            direct = [reader.operator for reader in self.readers[member.name]]
            everywhere = np.repeat(member.bias, member.places)
            if member.name == self.network.output_source and not direct:
                self.readout_bias = np.rint(everywhere / np.repeat(unit, member.places)).astype(np.int64)
            elif member.name in self.pooled:
                raise UnsupportedOperatorError(
                    f"{member.name}: has a bias behind a sum over tokens, where it would count once for each token; "
                    "only the last affine map may have one"
                )
            elif direct and all(_takes_bias(reader) for reader in direct):
                self.neuron_biases[member.name] = everywhere
            else:
                kept = np.rint(member.bias / unit).astype(np.int64)
        found = member.quantized(rows, kept, unit)
        self.operators[member.name] = found
        self.units[member.name] = np.repeat(unit, member.places)
        interval = node_interval(self.draft, Node(member.name, found, member.node.sources), self.intervals)
        assert interval is not None
        self.intervals[member.name] = interval

    def _added_to(self, node: Node) -> list[Node]:
        """Return the affine maps or convolutions whose outputs are added to that of `node`, itself among them."""
        family, pending = {node.name: node}, [node]
        while pending:
            for reader in self.readers[pending.pop().name]:
                if isinstance(reader.operator, Total) and reader.name not in family:
                    family[reader.name] = reader
                    pending.append(reader)
                    for source in reader.sources:
                        member = self.by_name.get(source)
                        if member is not None and member.name not in family:
                            family[source] = member
                            if isinstance(member.operator, Affine | Convolution | Total):
                                pending.append(member)
        members = [member for member in family.values() if not isinstance(member.operator, Total)]
        odd = [member.name for member in members if not isinstance(member.operator, Affine | Convolution)]
        names = {member.name for member in members}
        odd += [member.name for member in members if names & self._read_by(member)]
        if odd:
            raise UnsupportedOperatorError(
                f"{node.name}: is added to {odd[0]}; in an integer graph only spikes can be added, and affine maps or "
                "convolutions that read nothing from each other"
            )
        for member in members:
            for source in member.sources:
                if source in self.by_name:
                    self._take(self.by_name[source])
        return members

    def _read_by(self, node: Node) -> set[str]:
        """Return all that a node reads in the same step, directly or not."""
        found: set[str] = set()
        pending = [node]
        while pending:
            read = pending.pop()
            if not isinstance(read.operator, PreviousStep):
                pending += [self.by_name[s] for s in read.sources if s in self.by_name and s not in found]
                found.update(read.sources)
        return found

    def _final_readers(self, node: Node) -> list[Node]:
        """Return what reads a node, directly or through sums."""
        found = []
        for reader in self.readers[node.name]:
            found += self._final_readers(reader) if isinstance(reader.operator, Total) else [reader]
        return found

    def _scale_groups(self, rows: int, readers: list[Node]) -> list[slice]:
        """Return the rows of a matrix that share a scale."""
        if self.options.scale == "per-channel" and readers and all(reader.operator.spikes for reader in readers):
            return [slice(row, row + 1) for row in range(rows)]
        norms = [reader.operator.groups for reader in readers if isinstance(reader.operator, LayerNorm)]
        parts = norms[0] if norms and len(set(norms)) == 1 and len(norms) == len(readers) else 1
        return [slice(part * rows // parts, (part + 1) * rows // parts) for part in range(parts)]

    def _importance(self, member: _Map, columns: np.ndarray) -> np.ndarray:
        """Return the mean square of what a row's weights are multiplied with on the calibration, plus a hundredth."""
        node, width = member.node, member.node.operator.in_features
        if self._is_gathered(node):
            assert self.hot is not None
            seen = self.hot[:, self.mask]
            used = np.bincount(seen.reshape(-1), minlength=width) / seen.shape[1]
        else:
            x = self.streams[node.sources[0]].floats
            real = x if x.shape[-2] == 1 and self.mask.shape[1] != 1 else x[:, self.mask]
            used = (real.reshape(-1, width).astype(np.float64) ** 2).mean(0)
        used = member.of_weights(used.reshape(node.operator.in_shape[0], -1).mean(1)).mean(0)
        used = used / (columns.mean(0) / columns.max()) ** 2
        return used + max(used.mean(), 1e-12) * 0.01

    def _column_units(self, member: _Map) -> np.ndarray:
        """Return what a 1 that each weight is multiplied with stands for, ``(1 or rows, weights of a row)``."""
        node = member.node
        if self._is_gathered(node):
            return np.ones((1, 1))
        units = self.units[node.sources[0]]
        by_channel = units.reshape(node.operator.in_shape[0], -1)
        if np.any(by_channel != by_channel[:, :1]):
            raise UnsupportedOperatorError(
                f"{node.name}: what it reads has scales that differ within a channel, where its weights are the same; "
                "scale all places of a channel alike"
            )
        return member.of_weights(by_channel[:, 0])

    def _is_gathered(self, node: Node) -> bool:
        return node.sources[0] == self.network.input_name and self.hot is not None

    def _least_unit(self, readers: list[Node], bias: np.ndarray) -> np.ndarray:
        """Return the smallest units ``(features,)`` in which thresholds and biases of the neurons behind fit."""
        least = np.zeros(len(bias))
        for reader in readers:
            if isinstance(reader.operator, LeakyIntegrateAndFire | ResistiveNeuron):
                largest_bias = BIAS_MANTISSA_MAX << BIAS_EXPONENT_MAX
                least = np.maximum(least, _charged_threshold(reader.operator) / THRESHOLD_MAX)
                least = np.maximum(least, np.abs(bias) * (1 << ACTIVATION_SHIFT) / largest_bias)
        return least

    def _best_scale(self, weights: list[np.ndarray], importance: list[np.ndarray], least: float) -> float:
        """Return the scale of some rows for which their error, as the calibration uses them, is smallest."""
        largest = max(float(np.abs(weight).max(initial=0)) for weight in weights)
        one_sign = self.options.sign_mode == "auto" and all(sign_mode(weight) != "mixed" for weight in weights)
        top = 255 if one_sign else WEIGHT_LIMITS["mixed"][1]
        if largest == 0:
            return max(least, 1.0 / top)
        candidates = [share * largest / top for share in (CLIPPINGS if self.options.clip else CLIPPINGS[:1])]
        if self.options.power_of_two:
            candidates = sorted({2.0 ** np.ceil(np.log2(candidate)) for candidate in candidates})
            least = 2.0 ** np.ceil(np.log2(least)) if least else least
        if max(candidates) <= least:
            return least
        candidates = [max(candidate, least) for candidate in candidates]

        searched = []
        for weight, used in zip(weights, importance, strict=True):
            columns = np.argsort(-used, kind="stable")[:SEARCHED_INPUTS]
            searched.append((weight[:, columns].astype(np.float32), used[columns].astype(np.float32)))

        def error(scale: float) -> float:
            unit = np.full(1, scale, np.float32)
            return sum(float((((self._whole_weights(w, unit) * unit - w) ** 2) @ used).sum()) for w, used in searched)

        return min(candidates, key=error) if len(candidates) > 1 else candidates[0]

    def _whole_weights(self, weight: np.ndarray, unit: np.ndarray) -> np.ndarray:
        scaled = weight / unit[:, None]
        low, high = WEIGHT_LIMITS[sign_mode(weight) if self.options.sign_mode == "auto" else "mixed"]
        rounded = np.floor(np.rint(2 * scaled) / 2) if self.options.rounding == "floor-even" else np.rint(scaled)
        return np.clip(rounded, low, high)

    def _too_large(
        self, family: list[_Map], whole: list[np.ndarray], readers: list[Node], unit: np.ndarray
    ) -> np.ndarray:
        """Return which rows of weights would send more than a reader can take."""
        channels, places = family[0].channels, family[0].places
        low, high = np.zeros(channels * places), np.zeros(channels * places)
        for member, rows in zip(family, whole, strict=True):
            bias = None if member.bias is None else np.rint(member.bias / unit)
            source = member.node.sources[0]
            sent: Interval | None
            drafted = Affine(rows, bias) if isinstance(member.operator, Affine) else member.drafted(rows, bias)
            if self._is_gathered(member.node):
                assert self.network.token_encoding is not None
                assert isinstance(drafted, Affine)
                sent = drafted.gathered_interval(self.network.token_encoding.tables.values())
            else:
                sent = drafted.interval([self.intervals[source]], None)
            assert sent is not None
            low, high = low + sent.low, high + sent.high
        read = Interval(low, high)
        too_large = np.zeros(channels * places, bool)
        for reader in readers:
            if isinstance(reader.operator, LeakyIntegrateAndFire | ResistiveNeuron | LeakyIntegrator):
                too_large |= read.magnitude > self._largest_activation(reader.operator)
            elif isinstance(reader.operator, LayerNorm):
                groups, size = reader.operator.groups, len(unit) // reader.operator.groups
                squares = (read.magnitude**2).reshape(groups, size).sum(-1) * size
                eps = size**2 * reader.operator.eps / unit.reshape(groups, size)[:, 0] ** 2
                over = (squares + eps >= 1 << (RADICAND_BITS - 1)) | (
                    read.magnitude.reshape(groups, size).max(-1) >= 1 << 24
                )
                too_large |= np.repeat(over, size)
        return too_large.reshape(channels, places).any(1)

    def _pooled_unit(self, node: Node, pooling: Pooling) -> np.ndarray:
        """Return the unit of each window: a mean is a sum whose unit is divided by the size of the window."""
        channels = self.units[node.sources[0]].reshape(pooling.shape[0], -1)
        if np.any(channels != channels[:, :1]):
            raise UnsupportedOperatorError(f"{node.name}: adds up features of different scales")
        unit = channels[:, 0] / (math.prod(pooling.kernel) if pooling.mean else 1)
        return np.repeat(unit, pooling.out_features // pooling.shape[0])

    def _layer_norm(self, node: Node, norm: LayerNorm) -> IntegerLayerNorm:
        if node.name in self.pooled:
            raise UnsupportedOperatorError(
                f"{node.name}: a layer norm behind a sum over tokens depends on how many there are; put it before"
            )
        size = norm.in_features // norm.groups
        units = self.units[node.sources[0]].reshape(norm.groups, size)
        if np.any(units != units[:, :1]):
            raise UnsupportedOperatorError(f"{node.name}: reads features of different scales within a group")
        integer_eps = np.maximum(1, np.rint(size**2 * norm.eps / units[:, 0] ** 2))
        weight, bias = norm.weight.astype(np.float64), norm.bias.astype(np.float64)
        largest = float((np.sqrt(size) * np.abs(weight) + np.abs(bias)).max())
        neurons = [r.operator for r in self.readers[node.name] if isinstance(r.operator, LeakyIntegrateAndFire)]
        limit = ACTIVATION_MAX - 2 if neurons else HEAD_LIMIT
        fraction = int(np.floor(np.log2(limit / max(largest, 2.0**-20))))
        for neuron in neurons:
            threshold = max(float(_charged_threshold(neuron).max()), 2.0**-20)
            fraction = min(fraction, int(np.floor(np.log2(THRESHOLD_MAX / threshold))))
        unit = 2.0 ** -min(fraction, NORM_FRACTION_BITS)
        gain = max(float(np.abs(weight).max()), 2.0**-30) / unit
        shift = NORMED_BITS + GAIN_BITS - 1 - int(np.ceil(np.log2(gain)))
        offset = max(float(np.abs(bias).max()), 2.0**-30) / unit
        shift = min(shift, BIAS_BITS - 1 - int(np.ceil(np.log2(offset))), BIAS_BITS)
        if shift < 1:
            raise ChipLimitError(
                f"{node.name}: gains up to {float(np.abs(weight).max()):.3g} and biases up to "
                f"{float(np.abs(bias).max()):.3g} are too large beside the thresholds behind; scale both down"
            )
        found = IntegerLayerNorm(
            weight=np.rint(weight / unit * 2.0 ** (shift - NORMED_BITS)).astype(np.int64),
            bias=np.rint(bias / unit * 2.0**shift).astype(np.int64),
            eps=norm.eps,
            groups=norm.groups,
            integer_eps=integer_eps.astype(np.int64),
            shift=shift,
            unit=np.full(norm.in_features, unit),
        )
        found.check_sums(self.intervals[node.sources[0]], node.name)
        return found

    def _attention(self, node: Node, attention: SpikeAttention) -> IntegerSpikeAttention:
        source = node.sources[0]
        if np.any(self.units[source] != 1):
            raise UnsupportedOperatorError(f"{node.name}: reads {source}, which are no spikes or sums of spikes")
        if attention.scale <= 0:
            raise UnsupportedOperatorError(f"{node.name}: scale is {attention.scale}; only positive ones can be folded")
        shift = ATTENTION_FRACTION_BITS
        thresholds = [
            float(_charged_threshold(reader.operator).max())
            for reader in self.readers[node.name]
            if isinstance(reader.operator, LeakyIntegrateAndFire)
        ]
        while True:
            found = IntegerSpikeAttention(
                num_heads=attention.num_heads, head_size=attention.head_size, scale=attention.scale, shift=shift
            )
            interval = node_interval(self.draft, Node(node.name, found, node.sources), self.intervals)
            assert interval is not None
            mantissa = max(thresholds, default=0.0) / attention.scale * 2**shift
            if interval.largest <= ACTIVATION_MAX and mantissa <= THRESHOLD_MAX:
                return found
            if shift == 0:
                raise ChipLimitError(
                    f"{node.name}: sums over {self.max_tokens} tokens reach {interval.largest}, and the threshold "
                    f"behind is {mantissa:.0f} of them; the chip holds {ACTIVATION_MAX}: quantize for shorter "
                    "sentences (max_tokens) or a lower threshold"
                )
            shift -= 1

    def _neuron(self, node: Node, neuron: LeakyIntegrateAndFire) -> IntegerLeakyIntegrateAndFire:
        source = node.sources[0]
        unit = self.units[source]
        beta = 1 - 1 / neuron.tau if neuron.decay_input else neuron.beta
        mantissa, exponent = self._whole_bias(source, np.zeros(neuron.out_features))
        return IntegerLeakyIntegrateAndFire(
            threshold=self._whole_threshold(node, neuron),
            decay=_whole_decay(node, np.broadcast_to(beta, neuron.out_features)),
            bias_mantissa=mantissa,
            bias_exponent=exponent,
            reset=neuron.reset,
            fire_on_equal=neuron.fire_on_equal,
            unit=unit / neuron.tau if neuron.decay_input else unit,
        )

    def _resistive_neuron(
        self, node: Node, neuron: ResistiveNeuron
    ) -> IntegerLeakyIntegrateAndFire | IntegerCurrentNeuron:
        """Quantize NIR's full neuron: what it multiplies its input with goes to the threshold and the unit.

        Divided by that gain, ``U`` is ``U[t] = (1 - 1 / tau) U[t-1] + J[t] + v_leak / (gain tau)`` and the current
        ``J[t] = (1 - 1 / tau_syn) J[t-1] + x[t]``, which is what the chip computes.
        """
        (source,), gain = node.sources, _positive_gain(node, neuron)
        if np.any(neuron.v_reset):
            worst = int(np.argmax(np.abs(neuron.v_reset)))
            raise ChipLimitError(
                f"{node.name}: neuron {worst} resets to {neuron.v_reset[worst]:.3g}; the chip's neurons reset to 0: "
                "measure potentials from v_reset, by taking it from v_leak and v_threshold"
            )
        keeps = np.ones_like(gain) if neuron.tau is None else 1 - 1 / neuron.tau
        resting = np.zeros_like(gain) if neuron.tau is None else neuron.v_leak / neuron.tau
        mantissa, exponent = self._whole_bias(source, resting / gain)
        shared: dict[str, Any] = {
            "threshold": self._whole_threshold(node, neuron),
            "decay": _whole_decay(node, keeps),
            "bias_mantissa": mantissa,
            "bias_exponent": exponent,
            "unit": self.units[source] * gain,
        }
        if neuron.tau_syn is None:
            return IntegerLeakyIntegrateAndFire(**shared, reset="zero", fire_on_equal=False)
        return IntegerCurrentNeuron(**shared, current_decay=_whole_current_decay(node, neuron.tau_syn))

    def _integrator(self, node: Node, integrator: LeakyIntegrator) -> IntegerIntegrator:
        (source,), gain = node.sources, _positive_gain(node, integrator)
        self._check_activation(node)
        keeps = np.ones_like(gain) if integrator.tau is None else 1 - 1 / integrator.tau
        resting = np.zeros_like(gain) if integrator.tau is None else integrator.v_leak / integrator.tau
        mantissa, exponent = self._whole_bias(source, resting / gain)
        return IntegerIntegrator(
            decay=_whole_decay(node, keeps),
            bias_mantissa=mantissa,
            bias_exponent=exponent,
            unit=self.units[source] * gain / (1 << ACTIVATION_SHIFT),
        )

    def _whole_threshold(self, node: Node, neuron: LeakyIntegrateAndFire | ResistiveNeuron) -> np.ndarray:
        self._check_activation(node)
        (source,) = node.sources
        threshold = np.rint(_charged_threshold(neuron) / self.units[source])
        if threshold.max() > THRESHOLD_MAX:
            raise ChipLimitError(
                f"{node.name}: its threshold would be {int(threshold.max())} of what {source} sends; the chip holds "
                f"{THRESHOLD_MAX}: lower the threshold, or scale up the weights before it"
            )
        if threshold.min() < 0:
            raise ChipLimitError(
                f"{node.name}: a threshold is {float(np.min(neuron.threshold)):.3g}; the chip holds none below 0: "
                "raise it, and the resting potential with it"
            )
        return threshold.astype(np.int64)

    def _whole_bias(self, source: str, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mantissas and exponents of a bias in units of the input, and of what `source` left to its neurons."""
        bias = own + self.neuron_biases.get(source, 0.0)
        return _mantissa_and_exponent(bias / self.units[source] * (1 << ACTIVATION_SHIFT))

    def _check_activation(self, node: Node) -> None:
        """Check that nothing that can arrive at a node wraps its current around.

        Raises
        ------
        ChipLimitError
            Something can.
        """
        (source,) = node.sources
        largest, limit = self.intervals[source].largest, self._largest_activation(node.operator)
        if largest > limit:
            raise ChipLimitError(
                f"{node.name}: {source} sends up to {largest}; beyond {limit} its current wraps around: split the sum "
                "before it, or shorten the synapses' time constant"
            )

    def _largest_activation(self, operator: Operator) -> int:
        """Return the largest activation that does not overflow what reads it: the current, and an integrator's sum."""
        if isinstance(operator, ResistiveNeuron) and operator.tau_syn is not None:
            # a current that loses one part in n a step sums up no more than n activations
            lost = max(1, int(np.rint(DECAY_UNITY / operator.tau_syn).min()))
            return ACTIVATION_MAX * lost // DECAY_UNITY
        if isinstance(operator, LeakyIntegrator):
            steps = float(self.time_steps) if operator.tau is None else min(self.time_steps, float(operator.tau.max()))
            return int(ACTIVATION_MAX / steps)
        return ACTIVATION_MAX

    def _readout(self) -> Readout:
        source = self.network.output_source
        unit = self.units[source]
        if np.any(unit != unit[0]):
            raise UnsupportedOperatorError(f"{source}: is the output, and must have one scale")
        bias = self.readout_bias if self.readout_bias is not None else np.zeros(len(unit), np.int64)
        return Readout(float(unit[0]), bias)

    # --- calibration ---

    def _run(self, node: Node) -> None:
        """Run the calibration through a node in float, and in integers behind the float graph's spikes."""
        operator, integer = node.operator, self.operators[node.name]
        if node.sources[0] == self.network.input_name and self.hot is not None:
            assert isinstance(operator, Affine)
            assert isinstance(integer, IntegerAffine)
            shown = self.time_steps
            floats = np.broadcast_to(
                operator.cast(np.float32).gather(self.hot), (shown, *self.mask.shape, operator.out_features)
            )
            whole = integer.cast(np.int64).gather(self.hot)
            self.streams[node.name] = _Streams(floats, np.broadcast_to(whole, (shown, *whole.shape)))
            return
        read = [self.streams[source] for source in node.sources]
        if isinstance(operator, Total):
            left, right = read
            self.streams[node.name] = _Streams(left.floats + right.floats, left.forced + right.forced)
            return
        self.streams[node.name] = _Streams(self._steps(operator, read[0].floats), self._steps(integer, read[0].forced))

    def _calibrate(self, stage: tuple[Node, ...]) -> None:
        """Run the calibration in integers through a node, or a cycle, whose last node is its neurons.

        Where they fell silent or saturated, they are repaired.
        """
        self._run_integers(stage)
        node = stage[-1]
        if not node.operator.spikes:
            return
        integer, streams = self.operators[node.name], self.streams[node.name]
        floats = streams.floats
        agreement = float((streams.forced == floats)[:, self.mask].mean())
        found, factor = self._verdict(floats, self._integers(node.name)), 1.0
        repairable = isinstance(integer, IntegerLeakyIntegrateAndFire | IntegerCurrentNeuron)
        if found is not None and self.options.repair and repairable:
            assert isinstance(integer, IntegerLeakyIntegrateAndFire | IntegerCurrentNeuron)
            factor = self._rescale(stage, integer)
            agreement = float((streams.forced == floats)[:, self.mask].mean())
        rates = [stream[:, self.mask].mean((0, 1)) for stream in (floats, self._integers(node.name))]
        self.report.layers.append(
            LayerReport(
                node=node.name,
                float_rate=float(rates[0].mean()),
                integer_rate=float(rates[1].mean()),
                agreement=agreement,
                silent_features=int(np.count_nonzero((rates[0] > 0) & (rates[1] == 0))),
                saturated_features=int(np.count_nonzero((rates[0] < 1) & (rates[1] == 1))),
                found=found,
                threshold_factor=factor,
            )
        )
        streams.forced = floats.astype(np.int64)

    def _run_integers(self, stage: tuple[Node, ...]) -> None:
        """Run the calibration through a node, or step by step through a cycle, in integers behind integers."""
        if len(stage) > 1:
            self._run_cycle(stage)
            return
        (node,) = stage
        streams = self.streams[node.name]
        read = [self.streams[source] for source in node.sources if source in self.streams]
        if all(stream.integers is stream.forced for stream in read):
            streams.integers = streams.forced
        elif isinstance(node.operator, Total):
            left, right = (self._integers(source) for source in node.sources)
            streams.integers = left + right
        else:
            streams.integers = self._steps(self.operators[node.name], self._integers(node.sources[0]))

    def _run_cycle(self, stage: tuple[Node, ...]) -> None:
        nodes = [Node(node.name, self.operators[node.name], node.sources) for node in stage]
        inside = [node.name for node in nodes]
        read = {s: self._integers(s) for node in nodes for s in node.sources if s not in inside}
        execution, found = NodeExecution(nodes, np.int64), []
        for step in range(self.time_steps):
            values = {source: stream[step] for source, stream in read.items()}
            # where a cycle reads nothing from outside, the mask says how many sentences and tokens there are
            execution.step(values, None if self.mask.all() else self.token_mask, self.mask[None])
            found.append([values[name] for name in inside])
        for name, steps in zip(inside, zip(*found, strict=True), strict=True):
            self.streams[name].integers = np.stack(steps)

    def _integers(self, name: str) -> np.ndarray:
        integers = self.streams[name].integers
        assert integers is not None
        return integers

    def _steps(self, operator: Operator, x: np.ndarray) -> np.ndarray:
        """Run an operator over ``(T, B, N, D)``; spikes of padding are zeroed."""
        kind = np.int64 if operator.traits.integer or x.dtype == np.int64 else np.float32
        runnable = operator.cast(kind)
        state = runnable.initial_state(x.shape[1:], kind)
        masked = not self.mask.all()
        outputs = [
            runnable.step(step.astype(kind, copy=False), state, self.token_mask if masked else None) for step in x
        ]
        stacked = np.stack(outputs)
        return stacked * self.token_mask if operator.spikes and masked else stacked

    def _verdict(self, floats: np.ndarray, integers: np.ndarray) -> str | None:
        expected, found = (float(stream[:, self.mask].mean()) for stream in (floats, integers))
        if found < SILENT_RATE * expected:
            return "silent"
        if found > SATURATED_RATE * expected or found > FULL_RATE > expected:
            return "saturated"
        return None

    def _rescale(self, stage: tuple[Node, ...], neuron: IntegerLeakyIntegrateAndFire | IntegerCurrentNeuron) -> float:
        """Scale the neuron's thresholds such that it fires as often as in float; return the factor."""
        node, (source,) = stage[-1], stage[-1].sources
        streams = self.streams[node.name]
        wanted = float(streams.floats[:, self.mask].mean())

        def scale(factor: float) -> None:
            threshold = np.clip(np.rint(neuron.threshold * factor), 0, THRESHOLD_MAX).astype(np.int64)
            self.operators[node.name] = scaled = replace(neuron, threshold=threshold)
            streams.forced = self._steps(scaled, self.streams[source].forced)
            self._run_integers(stage)

        low, high, best = 1 / RESCALING_RANGE, RESCALING_RANGE, (np.inf, 1.0)
        for _ in range(RESCALING_STEPS):
            factor = float(np.sqrt(low * high))
            scale(factor)
            rate = float(self._integers(node.name)[:, self.mask].mean())
            best = min(best, (abs(rate - wanted), factor))
            low, high = (factor, high) if rate > wanted else (low, factor)
        scale(best[1])
        return best[1]


def _takes_bias(operator: Operator) -> bool:
    """Return whether a bias of what it reads may be the neuron's own: its current keeps nothing, so both are alike."""
    return isinstance(operator, LeakyIntegrateAndFire) or (
        isinstance(operator, ResistiveNeuron) and operator.tau_syn is None
    )


def _gain(operator: ResistiveNeuron | LeakyIntegrator) -> np.ndarray:
    """Return what an input is multiplied with on its way to the potential, ``(features,)``."""
    gain = np.asarray(operator.r if operator.tau is None else operator.r / operator.tau, np.float64)
    if isinstance(operator, ResistiveNeuron) and operator.tau_syn is not None and operator.w_in is not None:
        gain = gain * operator.w_in / operator.tau_syn
    return gain


def _positive_gain(node: Node, operator: ResistiveNeuron | LeakyIntegrator) -> np.ndarray:
    gain = _gain(operator)
    if gain.min() <= 0:
        raise ChipLimitError(
            f"{node.name}: neuron {int(np.argmin(gain))} multiplies its input with {gain.min():.3g}; in whole numbers "
            "that is left to threshold and scale, which are positive: put the sign into the weights before it"
        )
    return gain


def _whole_decay(node: Node, keeps: np.ndarray) -> np.ndarray:
    """Return the 12-bit decays of potentials that keep a share of themselves from step to step."""
    decay = DECAY_UNITY - np.rint(np.asarray(keeps, np.float64) * DECAY_UNITY).astype(np.int64)
    if decay.max() > DECAY_MAX:
        raise ChipLimitError(
            f"{node.name}: keeps {float(keeps.min()):.3g} of its potential from step to step; the chip's 12-bit "
            f"decay holds nothing between 0 and 1/{DECAY_UNITY}: choose a beta of at least 1/{DECAY_UNITY}"
        )
    return decay


def _whole_current_decay(node: Node, tau_syn: np.ndarray) -> np.ndarray:
    decay = np.rint(DECAY_UNITY / np.asarray(tau_syn, np.float64)).astype(np.int64)
    if decay.min() < 1:
        raise ChipLimitError(
            f"{node.name}: tau_syn is {float(tau_syn.max()):.6g} steps; the chip's 12-bit decay of the current holds "
            f"up to {DECAY_UNITY}: choose a shorter time constant or a longer step"
        )
    return decay


def _charged_threshold(neuron: LeakyIntegrateAndFire | ResistiveNeuron) -> np.ndarray:
    """Return the threshold as what enters has to reach it: tau times higher where the leak takes from the input."""
    threshold = np.asarray(neuron.threshold, np.float64)
    if isinstance(neuron, ResistiveNeuron):
        return threshold / np.abs(_gain(neuron))
    return threshold * neuron.tau if neuron.decay_input else threshold


def _mantissa_and_exponent(bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mantissas and smallest exponents with ``mantissa 2^exponent`` nearest to `bias`."""
    exponent = np.zeros(bias.shape, np.int64)
    for _ in range(BIAS_EXPONENT_MAX):
        exponent += np.abs(np.rint(bias / 2.0**exponent)) > BIAS_MANTISSA_MAX
    return np.rint(bias / 2.0**exponent).astype(np.int64), exponent


def _pooled(network: Network) -> set[str]:
    """Return the nodes that read, directly or not, a mean over tokens."""
    pooled: set[str] = set()
    means = {node.name for node in network.nodes if isinstance(node.operator, TokenMean)}
    for node in network.nodes:
        if any(source in means or source in pooled for source in node.sources):
            pooled.add(node.name)
    return pooled
