"""The inputs that produced a membrane potential, ranked: weight times spike, and from which neuron.

Going back from the potential of one neuron at one step, every spike since its last reset to zero contributed a share:
through the weight, through the layer norm (with the token's mean and deviation held as they were, so that it is
linear) and through the leak of the steps since. The shares add up to the potential, with those of biases and resets
beside them.

How an operator is gone back through is its row of `ATTRIBUTION`; a potential behind one without is not attributed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from export.errors import UnsupportedOperatorError
from export.network import Network, Node
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
    Pooling,
    PreviousStep,
    ResistiveNeuron,
    RuleTable,
    Scale,
    SpikeAttention,
    TokenMean,
    TokenSum,
    Total,
    rule_for,
)
from hardware.traces.trace import Trace

BIAS = "(bias)"
RESET = "(reset)"


@dataclass(frozen=True)
class Contribution:
    """What one input gave to a membrane potential, over all steps.

    Attributes
    ----------
    source : str
        Spiking node, input node, ``"(bias)"`` or ``"(reset)"``.
    token, feature : int or None
        Which neuron of the source; of an input the feature is the id of the word, or the position.
    spikes : int
        How often it fired on the way; for the others, in how many steps it counted.
    weight : float or None
        What a spike of it adds to the current in the last of these steps, behind the norm.
    contribution : float
        Its share of the potential.
    """

    source: str
    token: int | None
    feature: int | None
    spikes: int
    weight: float | None
    contribution: float


def contributions(
    network: Network, trace: Trace, node: str, time_step: int, token: int, feature: int, sample: int = 0
) -> list[Contribution]:
    """Return the shares of every input in one neuron's potential, largest magnitude first; they add up to it.

    Parameters
    ----------
    network : Network
    trace : Trace
        Whose spikes entered, and reset.
    node : str
        A spiking node.
    time_step, token, feature, sample : int
        Which neuron, and when it was tested.

    Raises
    ------
    KeyError
        The graph has no such spiking node, or the trace not what enters it.
    UnsupportedOperatorError
        An operator between the neuron and the spikes that enter cannot be gone back through.
    """
    neuron = network.by_name[node]
    if not neuron.operator.spikes:
        raise KeyError(f"{node}: is no spiking node")
    gradient = np.zeros(neuron.operator.out_features)
    gradient[feature] = 1.0
    back = rule_for(ATTRIBUTION, neuron)
    totals: dict[Key, list[float]] = {}
    for share in back(Tracer(network, trace, sample, token), neuron, gradient, time_step):
        entry = totals.setdefault(share.key, [0, 0.0, np.nan])
        entry[0] += 1
        entry[1] += share.factor * share.weight * share.value
        entry[2] = np.nan if share.key[0] in (BIAS, RESET) else share.weight
    found = [
        Contribution(*key, spikes=int(count), weight=None if np.isnan(weight) else float(weight), contribution=total)
        for key, (count, total, weight) in totals.items()
    ]
    return sorted(found, key=lambda entry: -abs(entry.contribution))


Key = tuple[str, int | None, int | None]
"""Which input: source, token, feature."""


class Share(NamedTuple):
    """What one input gave in one step: ``factor weight value``.

    Attributes
    ----------
    key : tuple
        Which input.
    weight : float
        What one spike of it adds to what is asked for.
    value : float
        What it sent.
    factor : float
        What is left of that where it is remembered.
    """

    key: Key
    weight: float
    value: float
    factor: float = 1.0


Back = Callable[["Tracer", Node, np.ndarray, int], list[Share]]
"""Goes back from a node to the spikes that entered. Takes what traces, the node, a gradient, and the step at which
``gradient @ row`` is asked for: of the row that the node sends for the token, or of the potentials that it tests."""

ATTRIBUTION: RuleTable[Back] = RuleTable("attribution")
"""How each operator is gone back through."""


class Tracer:
    """Goes back from one token of one sample to the spikes of a run.

    Parameters
    ----------
    network : Network
    trace : Trace
    sample, token : int
    """

    def __init__(self, network: Network, trace: Trace, sample: int, token: int) -> None:
        self.network, self.trace, self.sample, self.token = network, trace, sample, token

    def back(self, name: str, gradient: np.ndarray, step: int) -> list[Share]:
        """Return what made ``gradient @ row`` of the row that `name` sends at a step."""
        if name == self.network.input_name or self.network.by_name[name].operator.spikes:
            return self.spikes(name, gradient, step)
        node = self.network.by_name[name]
        return rule_for(ATTRIBUTION, node)(self, node, gradient, step)

    def spikes(self, name: str, gradient: np.ndarray, step: int) -> list[Share]:
        """Return the spikes of a neuron, or the input, that met a gradient."""
        row = self.trace.spikes[name][step, self.sample, self.token]
        met = np.flatnonzero(row) if name == self.network.input_name else np.flatnonzero(row * gradient)
        return [Share((name, self.token, int(i)), float(gradient[i]), float(row[i])) for i in met]

    def row(self, name: str, step: int, token: int | None = None) -> np.ndarray:
        """Return what `name` sent for a token at a step, by default the one that is traced, in float64."""
        token = self.token if token is None else token
        if name == self.network.input_name or self.network.by_name[name].operator.spikes:
            return self.trace.spikes[name][step, self.sample, token].astype(np.float64)
        node = self.network.by_name[name]
        rule_for(
            ATTRIBUTION, node
        )  # what cannot be gone back through, as all that remembers, cannot be computed either
        if node.is_previous_step:
            (neuron,) = node.sources
            return self.row(neuron, step - 1, token) if step else np.zeros(node.operator.out_features)
        if self.reads_words(node):
            return self._row_of_words(node, token)
        if not node.operator.traits.mixes_tokens:
            return _step(node, [self.row(source, step, token) for source in node.sources], None)
        mask = self.trace.mask[self.sample]
        rows = [np.stack([self.row(source, step, other) for other in range(len(mask))]) for source in node.sources]
        return _step(node, rows, mask[:, None])[token]

    def reads_words(self, node: Node) -> bool:
        """Whether a node reads the words of a sentence."""
        return self.network.token_encoding is not None and node.sources == (self.network.input_name,)

    def hot(self, token: int) -> np.ndarray:
        """Return which inputs are hot for a token."""
        assert self.network.token_encoding is not None
        assert self.trace.input_ids is not None
        return self.network.token_encoding.hot_inputs(self.trace.input_ids[self.sample])[:, token]

    def _row_of_words(self, node: Node, token: int) -> np.ndarray:
        table = node.operator
        assert isinstance(table, Affine)  # no other operator that reads words is gone back through
        row = table.weight[:, self.hot(token)].astype(np.float64).sum(-1)
        return row if table.bias is None else row + table.bias


@ATTRIBUTION.row(LeakyIntegrateAndFire)
def _back_from_neuron(tracer: Tracer, node: Node, gradient: np.ndarray, time_step: int) -> list[Share]:
    """Go back through all steps since the last reset to zero; `gradient` asks for one neuron."""
    neuron: Any = node.operator
    (source,), feature = node.sources, int(np.argmax(gradient))
    sent = tracer.trace.spikes[node.name][:, tracer.sample, tracer.token, feature]
    first = 0
    if neuron.reset == "zero":
        earlier = np.flatnonzero(sent[:time_step])
        first = int(earlier[-1]) + 1 if len(earlier) else 0
    leak = 1 - 1 / float(neuron.tau[feature]) if neuron.decay_input else float(neuron.beta[feature])
    gain = 1 / float(neuron.tau[feature]) if neuron.decay_input else 1.0
    found: list[Share] = []
    for step in range(first, time_step + 1):
        kept = leak ** (time_step - step)
        if neuron.reset == "subtract" and step and sent[step - 1]:
            found.append(Share((RESET, None, None), -float(neuron.threshold[feature]), float(sent[step - 1]), kept))
        found += [share._replace(factor=kept * gain * share.factor) for share in tracer.back(source, gradient, step)]
    return found


@ATTRIBUTION.row(Heaviside)
def _back_from_step(tracer: Tracer, node: Node, gradient: np.ndarray, step: int) -> list[Share]:
    return tracer.back(node.sources[0], gradient, step)


@ATTRIBUTION.row(Total)
def _back_through_sum(tracer: Tracer, node: Node, gradient: np.ndarray, step: int) -> list[Share]:
    return [share for source in node.sources for share in tracer.back(source, gradient, step)]


@ATTRIBUTION.row(PreviousStep)
def _back_through_cycle(tracer: Tracer, node: Node, gradient: np.ndarray, step: int) -> list[Share]:
    return tracer.spikes(node.sources[0], gradient, step - 1) if step else []


@ATTRIBUTION.row(Affine)
def _back_through_affine(tracer: Tracer, node: Node, gradient: np.ndarray, step: int) -> list[Share]:
    affine: Any = node.operator
    if tracer.reads_words(node):
        encoding = tracer.network.token_encoding
        assert encoding is not None
        found = [
            Share((said, tracer.token, int(hot) - columns.start), float(gradient @ affine.weight[:, hot]), 1.0)
            for hot, (said, columns) in zip(tracer.hot(tracer.token), encoding.tables.items(), strict=True)
        ]
    else:
        found = tracer.back(node.sources[0], gradient @ affine.weight, step)
    return found if affine.bias is None else [*found, _bias(gradient @ affine.bias)]


@ATTRIBUTION.row(LayerNorm)
def _back_through_norm(tracer: Tracer, node: Node, gradient: np.ndarray, step: int) -> list[Share]:
    """Hold the deviation as it was, so that the norm is linear."""
    norm: Any = node.operator
    (source,) = node.sources
    groups = tracer.row(source, step).reshape(norm.groups, -1)
    deviation = np.sqrt(groups.var(-1, keepdims=True) + norm.eps)
    scaled = (gradient * norm.weight).reshape(norm.groups, -1) / deviation
    behind = (scaled - scaled.mean(-1, keepdims=True)).reshape(-1)
    return [*tracer.back(source, behind, step), _bias(gradient @ norm.bias)]


@ATTRIBUTION.row(SpikeAttention)
def _back_through_attention(tracer: Tracer, node: Node, gradient: np.ndarray, step: int) -> list[Share]:
    """Return the value neurons of every token that is attended to; query and key are their weight."""
    attention: Any = node.operator
    (source,) = node.sources
    if source not in tracer.trace.spikes:
        raise UnsupportedOperatorError(
            f"{node.name}: attribution takes attention apart where it reads neurons; {source} is none"
        )
    heads, size, width = attention.num_heads, attention.head_size, attention.out_features
    rows = tracer.trace.spikes[source][step, tracer.sample].astype(np.float64)
    real = np.flatnonzero(tracer.trace.mask[tracer.sample])
    query, key, value = (rows[:, part * width : (part + 1) * width] for part in range(3))
    found: list[Share] = []
    for head in range(heads):
        features = np.arange(head * size, (head + 1) * size)
        if not gradient[features].any():
            continue
        scores = key[real][:, features] @ query[tracer.token, features]
        for position, score in zip(real, scores, strict=True):
            fired = features[(value[position, features] * gradient[features]) != 0] if score else ()
            found.extend(
                Share(
                    (source, int(position), int(2 * width + i)),
                    float(attention.scale * score * gradient[i]),
                    float(value[position, i]),
                )
                for i in fired
            )
    return found


def _step(node: Node, inputs: list[np.ndarray], token_mask: np.ndarray | None) -> np.ndarray:
    return node.operator.step(inputs[0] if len(inputs) == 1 else tuple(inputs), None, token_mask)


def _bias(share: Any) -> Share:
    return Share((BIAS, None, None), float(share), 1.0)


ATTRIBUTION.refuse(
    "nobody has derived yet how it is gone back through",
    Convolution,
    Delay,
    Flatten,
    LeakyIntegrator,
    Pooling,
    ResistiveNeuron,
    Scale,
    TokenMean,
)
ATTRIBUTION.refuse(
    "it takes floating-point potentials apart; ask the graph it was quantized from",
    IntegerAffine,
    IntegerConvolution,
    IntegerCurrentNeuron,
    IntegerIntegrator,
    IntegerLayerNorm,
    IntegerLeakyIntegrateAndFire,
    IntegerSpikeAttention,
    TokenSum,
)
