"""lava-dl's network exchange files (``.net``, HDF5): integer graph -> file, and file -> integer graph.

netx knows chains of dense layers whose neurons reset to zero, and nothing else of ours: no residual stream, no norm, no
attention. What of a graph is such a chain is written, the rest refused with every node and reason at once. The whole
numbers in a file are those of the graph; ``lava.lib.dl.netx`` fires the same spikes, each layer one step later than the
one before it, as stock Lava's synapses take a step. In those steps biases charge neurons that wait for their first
input; ``hdf5.Network(..., reset_interval=T, reset_offset=1)`` sets each layer back to zero when it arrives.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast

import h5py
import nir
import numpy as np

from export.errors import GraphError, NetxError
from export.loihi_numbers import ACTIVATION_SHIFT, BIAS_MANTISSA_MAX, BIAS_MANTISSA_MIN, DECAY_UNITY, THRESHOLD_MAX
from export.network import Network, NetworkBuilder, Node, Readout
from export.nir_graph.reader import parse_graph
from export.nir_graph.writer import build_graph
from export.operators import IntegerAffine, IntegerCurrentNeuron, IntegerLeakyIntegrateAndFire, Operator, Total
from export.operators.affine import narrow_weight
from export.operators.rules import Refusal, RuleTable
from spikebert.files import written_whole

MAX_FILE_BYTES = 4 << 30
MAX_WEIGHTS = 1 << 28
"""Of a layer, whatever the file says; far more than a chip holds."""
SLAYER_WEIGHTS = (-256, 254)
"""Even weights that SLAYER quantizes to; those beyond int8 are read as two matrices that add up."""
LATER = "lava-dl reads it, this reader does not"


Part = Literal["synapses", "neurons"]
PARTS = RuleTable[Part]("netx")
"""What of a layer an operator is."""
PARTS.set("synapses", IntegerAffine)
PARTS.set("neurons", IntegerLeakyIntegrateAndFire)
PARTS.refuse("a residual sum; netx knows none", Total)


@dataclass(frozen=True)
class NetxLayer:
    """A dense layer of a file: synapses and the neurons they lead to."""

    affine: Node
    neuron: Node

    @property
    def synapses(self) -> IntegerAffine:
        """What `affine` computes."""
        return cast(IntegerAffine, self.affine.operator)

    @property
    def neurons(self) -> IntegerLeakyIntegrateAndFire:
        """What `neuron` computes."""
        return cast(IntegerLeakyIntegrateAndFire, self.neuron.operator)


def write_netx(
    path: str | Path,
    graph: nir.NIRGraph | Network,
    first: str | None = None,
    last: str | None = None,
    round_biases: bool = False,
) -> Network:
    """Write an integer graph, or a chain in it, as a netx file.

    Parameters
    ----------
    path : str or Path
    graph : nir.NIRGraph or Network
        Of whole numbers, see `export.quantize`.
    first, last : str, optional
        Nodes the chain begins and ends with; the whole graph by default.
    round_biases : bool
        netx holds biases in units of the activation, 64 of the potential. Round those that are none, in place of
        refusing them; the returned network has the rounded ones.

    Returns
    -------
    Network
        The chain as it was written: what the file means.

    Raises
    ------
    NetxError
        The file cannot be written, or something is no chain of dense layers with hard-reset neurons; lists every such
        node with the reason.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise NetxError(f"{path}: the folder {path.parent} does not exist; make it first")
    network = graph if isinstance(graph, Network) else parse_graph(graph)
    layers = find_chain(network, first, last)
    if round_biases:
        layers = [replace(layer, neuron=_with_rounded_bias(layer)) for layer in layers]
    reasons = [reason for layer in layers for reason in _reasons_against(layer)]
    if reasons:
        raise NetxError("\n".join(["netx cannot hold:", *reasons]))
    limit = _largest_value(network, layers[0].affine.sources[0])
    try:
        with written_whole(path) as partial, h5py.File(partial, "w") as file:
            file.attrs["input_limit"] = limit
            for index, layer in enumerate(layers):
                _write_layer(file.create_group(f"layer/{index}"), layer)
    except OSError as error:
        raise NetxError(f"{path}: cannot be written: {error}") from error
    return _network(layers, limit)


def _largest_value(network: Network, source: str) -> int:
    """Return the largest whole number that a node, a sum of spikes or the input sends."""
    if source == network.input_name:
        return network.input_limit or 1
    node = network.by_name[source]
    return sum(_largest_value(network, part) for part in node.sources) if node.is_sum else 1


def find_chain(network: Network, first: str | None = None, last: str | None = None) -> list[NetxLayer]:
    """Return the layers from node `first` to node `last`.

    Raises
    ------
    NetxError
        They are no chain of affine and neuron; lists every node that is in the way.
    """
    names = [node.name for node in network.nodes]
    for name in (first, last):
        if name is not None and name not in names:
            raise NetxError(f"{name}: the graph has no such node; its nodes are {', '.join(names)}")
    start, stop = (0 if first is None else names.index(first)), (len(names) if last is None else names.index(last) + 1)
    nodes = network.nodes[start:stop]
    reasons = []
    for before, node in zip((None, *nodes), nodes, strict=False):
        part = _part(node)
        if part is None:
            reasons.append(f"  {node.name}: {_why_not(node.operator)}")
        elif before is None:
            if part != "synapses":
                reasons.append(f"  {node.name}: a chain begins with an affine node; this is {node.operator.name}")
        elif _part(before) is None:
            continue  # what stands before it is in the way already
        elif node.sources != (before.name,):
            reasons.append(f"  {node.name}: reads {' and '.join(node.sources)}, not {before.name} before it")
        elif part == _part(before):
            reasons.append(f"  {node.name}: a layer is an affine node and then a neuron; so is {before.name} before it")
    if nodes and _part(nodes[-1]) == "synapses":
        reasons.append(f"  {nodes[-1].name}: the chain ends without neurons; end it at a neuron (last node)")
    if not nodes:
        reasons.append(f"  {first} comes behind {last}")
    if reasons:
        said = ["netx knows only chains of dense layers whose neurons reset to zero; in the way are:", *reasons]
        if runs := _runs(network):
            chains = "; ".join(f"{begin} to {end}" for begin, end in runs)
            said.append(f"chains of layers in the graph, to be written with --first and --last: {chains}")
        raise NetxError("\n".join(said))
    return [NetxLayer(*nodes[index : index + 2]) for index in range(0, len(nodes), 2)]


def _runs(network: Network) -> list[tuple[str, str]]:
    """Return first and last node of every run of layers, each as long as it can be."""
    runs: list[tuple[str, str]] = []
    for affine, neuron in pairwise(network.nodes):
        is_layer = (_part(affine), _part(neuron)) == ("synapses", "neurons")
        if not is_layer or neuron.sources != (affine.name,):
            continue
        if runs and affine.sources == (runs[-1][1],):
            runs[-1] = (runs[-1][0], neuron.name)
        else:
            runs.append((affine.name, neuron.name))
    return runs


def _part(node: Node) -> Part | None:
    found = PARTS.find(type(node.operator))
    return None if isinstance(found, Refusal) else found


def _why_not(operator: Operator) -> str:
    if operator.traits.integer is False:
        return f"{operator.name} of floating point; quantize the graph first"
    found = PARTS.find(type(operator))
    return found.reason if isinstance(found, Refusal) else f"{operator.name}; netx knows none"


def _reasons_against(layer: NetxLayer) -> list[str]:
    """Return what of a layer a netx file, or netx when it reads the file, would change."""
    affine, neuron = layer.synapses, layer.neurons
    found = []
    if affine.bias is not None and np.any(affine.bias):
        found.append(f"  {layer.affine.name}: has a bias of its own; netx knows that of neurons only")
    low, high = int(affine.weight.min(initial=0)), int(affine.weight.max(initial=0))
    if low == high == 0:
        found.append(f"  {layer.affine.name}: all weights are 0, on which netx fails")
    if low < -128 and high >= 0:
        found.append(f"  {layer.affine.name}: weights below -128 beside 0, which netx would floor to even numbers")
    if not neuron.is_stock_lif:
        found.append(
            f"  {layer.neuron.name}: stock LIF resets to zero, fires above one threshold for all, leaks alike; it "
            f"has reset {neuron.reset}, {'>=' if neuron.fire_on_equal else '>'}, {np.unique(neuron.threshold).size} "
            f"thresholds and {np.unique(neuron.decay).size} decays"
        )
    odd = np.flatnonzero(neuron.bias % (1 << ACTIVATION_SHIFT))
    if odd.size:
        found.append(
            f"  {layer.neuron.name}: {odd.size} biases are no multiples of {1 << ACTIVATION_SHIFT}, the first that of "
            f"neuron {odd[0]}, {neuron.bias[odd[0]]}; round them (--round-biases), which makes another network"
        )
    mantissas = neuron.bias >> ACTIVATION_SHIFT
    if mantissas.min() < BIAS_MANTISSA_MIN or mantissas.max() > BIAS_MANTISSA_MAX:
        found.append(f"  {layer.neuron.name}: biases of {mantissas.min()} to {mantissas.max()}; 13 bits hold them")
    return found


def _with_rounded_bias(layer: NetxLayer) -> Node:
    neuron = layer.neurons
    mantissa = (neuron.bias + (1 << ACTIVATION_SHIFT - 1)) >> ACTIVATION_SHIFT
    rounded = replace(neuron, bias_mantissa=mantissa, bias_exponent=np.full_like(mantissa, ACTIVATION_SHIFT))
    return Node(layer.neuron.name, rounded, layer.neuron.sources)


def _write_layer(group: h5py.Group, layer: NetxLayer) -> None:
    """Write what ``lava.lib.dl.slayer.block.cuba.Dense.export_hdf5`` writes."""
    affine, neuron = layer.synapses, layer.neurons
    group.attrs["affine"], group.attrs["neuron"] = layer.affine.name, layer.neuron.name
    group.create_dataset("type", (1,), "S10", [b"dense"])
    group["shape"] = np.array([neuron.out_features])
    group["inFeatures"], group["outFeatures"] = affine.in_features, affine.out_features
    group["weight"] = affine.weight.astype(np.float32)
    if np.any(neuron.bias):
        group["bias"] = (neuron.bias >> ACTIVATION_SHIFT).astype(np.float32)
    group["neuron/type"] = "CUBA"
    group["neuron/iDecay"] = DECAY_UNITY  # the current keeps nothing from step to step
    group["neuron/vDecay"] = int(neuron.decay[0])
    group["neuron/vThMant"] = int(neuron.threshold[0])
    group["neuron/refDelay"] = 1
    group["neuron/gradedSpike"] = False


def _network(layers: list[NetxLayer], input_limit: int) -> Network:
    affine = layers[0].affine.operator
    builder = NetworkBuilder("input", affine.in_features)
    last = "input"
    for layer in layers:
        last = builder.add(layer.affine.name, layer.affine.operator, last)
        last = builder.add(layer.neuron.name, layer.neuron.operator, last)
    return _finished(builder, last, input_limit)


def _finished(builder: NetworkBuilder, last: str, input_limit: int) -> Network:
    readout = Readout(1.0, np.zeros(builder.widths[last], np.int64))
    return builder.network("output", last, readout=readout, input_limit=input_limit)


def read_netx(path: str | Path) -> nir.NIRGraph:
    """Read a file of dense layers, by us or by SLAYER, as an integer graph of spikes in and spikes out.

    Raises
    ------
    NetxError
        The file is missing or no netx file, or has something else than dense layers with current-based neurons; lists
        every layer and reason.
    """
    path = Path(path)
    if not path.is_file():
        raise NetxError(f"{path}: no such file")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise NetxError(f"{path}: larger than {MAX_FILE_BYTES} bytes")
    try:
        with h5py.File(path, "r") as file:
            groups, limit = file["layer"], int(file.attrs.get("input_limit", 1))
            order = [str(index) for index in range(len(groups))]
            if not order or set(groups) != set(order):
                raise NetxError(f"{path}: layer holds {', '.join(groups) or 'nothing'}; expected 0, 1, 2, …")
            layers = [(groups[index].attrs.get("affine"), groups[index].attrs.get("neuron")) for index in order]
            read = [_read_layer(groups[index], f"layer {index}") for index in order]
    except NetxError:
        raise
    except Exception as error:  # a damaged file makes h5py raise OSError, KeyError, RuntimeError, TypeError, ...
        raise NetxError(f"{path}: is not a readable netx file: {type(error).__name__}: {error}") from error
    reasons = [f"  {reason}" for layer in read if isinstance(layer, list) for reason in layer]
    if reasons:
        raise NetxError("\n".join([f"{path}: only dense layers with current-based neurons are read; found:", *reasons]))
    return build_graph(_network_of_file([layer for layer in read if not isinstance(layer, list)], layers, limit, path))


def _network_of_file(
    read: list[tuple[np.ndarray, Operator]], names: list[tuple[Any, Any]], limit: int, path: Path
) -> Network:
    builder = NetworkBuilder("input", read[0][0].shape[1])
    last = "input"
    try:
        for index, ((weight, neuron), (affine_name, neuron_name)) in enumerate(zip(read, names, strict=True)):
            own = f"layer{index:02d}"
            affine_name, neuron_name = str(affine_name or f"{own}_affine"), str(neuron_name or f"{own}_neuron")
            parts = _in_int8(weight)
            sources = [
                builder.add(
                    affine_name if number == 0 else f"{affine_name}_rest",
                    IntegerAffine(weight=part, unit=np.ones(len(part))),
                    last,
                )
                for number, part in enumerate(parts)
            ]
            last = builder.add(neuron_name, neuron, sources)
        return _finished(builder, last, limit)
    except GraphError as error:
        raise NetxError(f"{path}: {error}") from error


def _in_int8(weight: np.ndarray) -> list[np.ndarray]:
    """Return matrices that add up to a weight, each within what synapses of mixed sign hold."""
    if weight.min() >= 0 or (weight.min() >= -128 and weight.max() <= 127):
        return [narrow_weight(weight)]
    half = weight // 2
    return [narrow_weight(half), narrow_weight(weight - half)]


def _read_layer(group: h5py.Group, where: str) -> tuple[np.ndarray, Operator] | list[str]:
    """Return weight and neuron of a layer, or what is in the way."""
    kind = _text(group["type"])
    if kind != "dense":
        return [f"{where}: is of type {kind}; {LATER}"]
    reasons = [f"{where}: has {key}; {LATER}" for key in ("delay", "weight_rec", "weight/imag") if key in group]
    if "neuron" not in group:
        return [*reasons, f"{where}: has no neuron"]
    neuron = group["neuron"]
    if _text(neuron["type"]) not in ("CUBA", "LOIHI"):
        return [*reasons, f"{where}: its neuron is {_text(neuron['type'])}; known are CUBA and LOIHI"]
    if "gradedSpike" in neuron and bool(np.any(neuron["gradedSpike"][()])):
        reasons.append(f"{where}: sends graded spikes; {LATER}")
    if "refDelay" in neuron and np.any(neuron["refDelay"][()] != 1):
        reasons.append(f"{where}: has a refractory delay of {neuron['refDelay'][()]}, which stock Lava ignores")
    if reasons:
        return reasons
    if group["weight"].size > MAX_WEIGHTS:
        return [f"{where}: declares {group['weight'].size} weights; at most {MAX_WEIGHTS} are read"]
    features = int(np.prod(group["shape"][()]))
    raw = group["weight"][()].reshape(features, -1)
    weight = raw.astype(np.int64)  # as netx does
    low, high = int(weight.min()), int(weight.max())
    mixed = low < 0 <= high
    if not np.isfinite(raw).all() or (not mixed and not -256 <= low <= high <= 255) or low == high == 0:
        return [f"{where}: weights of {low} to {high}; 8 bits hold them, and not all are 0"]
    if (
        mixed
        and not (low >= -128 and high <= 127)
        and (np.any(weight % 2) or low < SLAYER_WEIGHTS[0] or high > SLAYER_WEIGHTS[1])
    ):
        return [f"{where}: weights of {low} to {high}, odd ones among them, which netx would floor"]
    bias = np.zeros(features, np.int64)
    if "bias" in group:
        bias = np.broadcast_to(group["bias"][()].astype(np.int64), (features,))
    current_decay, decay, threshold = (
        np.broadcast_to(np.asarray(neuron[key][()]).astype(np.int64), (features,))
        for key in ("iDecay", "vDecay", "vThMant")
    )
    ranges = {
        "iDecay": (current_decay, 1, DECAY_UNITY),
        "vDecay": (decay, 0, DECAY_UNITY - 1),
        "vThMant": (threshold, 0, THRESHOLD_MAX),
        "bias": (bias, BIAS_MANTISSA_MIN, BIAS_MANTISSA_MAX),
    }
    reasons = [
        f"{where}: {key} spans {values.min()} to {values.max()}; allowed are {least} to {most}"
        for key, (values, least, most) in ranges.items()
        if values.min() < least or values.max() > most
    ]
    if reasons:
        return reasons
    shared = {
        "threshold": threshold,
        "decay": decay,
        "bias_mantissa": bias,
        "bias_exponent": np.full(features, ACTIVATION_SHIFT),
        "unit": np.ones(features),
    }
    if np.all(current_decay == DECAY_UNITY):
        return weight, IntegerLeakyIntegrateAndFire(**shared, reset="zero", fire_on_equal=False)
    return weight, IntegerCurrentNeuron(**shared, current_decay=current_decay)


def _text(dataset: h5py.Dataset) -> str:
    value = np.asarray(dataset[()]).reshape(-1)[0]
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
