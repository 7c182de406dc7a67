"""The inputs that produced a membrane potential, ranked: weight times spike, and from which neuron.

Going back from the potential of one neuron at one step, every spike since its last reset to zero contributed a share:
through the weight, through the layer norm (with the token's mean and deviation held as they were, so that it is
linear) and through the leak of the steps since. The shares add up to the potential, with those of biases and resets
beside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from export.network import Network, Node
from export.operators import Affine, LayerNorm, LeakyIntegrateAndFire, SpikeAttention, Total
from hardware.equivalence.parts import Part, parts_of
from hardware.trace import Trace

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
    """
    part = next(p for p in parts_of(network, network.input_name in trace.spikes) if p.name == node)
    neuron = part.nodes[-1].operator
    tracer = _Tracer(network, part, trace, sample, token)
    shares: dict[Key, list[float]] = {}

    def add(key: Key, share: float, spikes: int = 1, weight: float | None = None) -> None:
        entry = shares.setdefault(key, [0, 0.0, np.nan])
        entry[0] += spikes
        entry[1] += share
        entry[2] = np.nan if weight is None else weight

    fired = trace.spikes[node][:, sample, token, feature] != 0
    first = time_step
    if isinstance(neuron, LeakyIntegrateAndFire):
        first = 0
        if neuron.reset == "zero":
            earlier = np.flatnonzero(fired[:time_step])
            first = int(earlier[-1]) + 1 if len(earlier) else 0
    for step in range(first, time_step + 1):
        kept, gain = 1.0, 1.0
        if isinstance(neuron, LeakyIntegrateAndFire):
            leak = 1 - 1 / float(neuron.tau[feature]) if neuron.decay_input else float(neuron.beta[feature])
            kept = leak ** (time_step - step)
            gain = 1 / float(neuron.tau[feature]) if neuron.decay_input else 1.0
            if neuron.reset == "subtract" and step and fired[step - 1]:
                add((RESET, None, None), -float(neuron.threshold[feature]) * kept)
        for key, weight, value in tracer.current(step, feature):
            add(key, kept * gain * weight * value, weight=None if key[0] == BIAS else weight)
    found = [
        Contribution(*key, spikes=int(count), weight=None if np.isnan(weight) else float(weight), contribution=share)
        for key, (count, share, weight) in shares.items()
    ]
    return sorted(found, key=lambda entry: -abs(entry.contribution))


Key = tuple[str, int | None, int | None]
Entry = tuple[Key, float, float]
"""Which input, what one spike of it adds, and how many there were."""


class _Tracer:
    """Takes the current of one neuron apart, step by step."""

    def __init__(self, network: Network, part: Part, trace: Trace, sample: int, token: int) -> None:
        self.nodes: dict[str, Node] = {node.name: node for node in network.nodes}
        self.network, self.part, self.trace, self.sample, self.token = network, part, trace, sample, token
        self.real = np.flatnonzero(trace.mask[sample])

    def current(self, step: int, feature: int) -> list[Entry]:
        """Return (which input, what one of it adds, how many of it) for every input that is not zero."""
        target = self.part.nodes[-1]
        (source,) = target.sources
        width = int(self._features(source))
        gradient = np.zeros(width)
        gradient[feature] = 1.0
        return self._back(source, gradient, step)

    def _features(self, name: str) -> int:
        return self.nodes[name].operator.out_features if name in self.nodes else self.network.input_features

    def _back(self, name: str, gradient: np.ndarray, step: int) -> list[Entry]:
        """Follow one token's row of `name`, of which ``gradient @ row`` is asked, back to spikes."""
        if name not in self.nodes:
            return self._input(gradient, step)
        node = self.nodes[name]
        operator = node.operator
        if operator.spikes:
            row = self.trace.spikes[name][step, self.sample, self.token]
            return [
                ((name, self.token, int(i)), float(gradient[i]), float(row[i])) for i in np.flatnonzero(row * gradient)
            ]
        if isinstance(operator, Total):
            return [entry for source in node.sources for entry in self._back(source, gradient, step)]
        (source,) = node.sources
        if isinstance(operator, Affine):
            if source == self.network.input_name and self.network.token_encoding is not None:
                entries = self._words(operator, gradient)
            else:
                entries = self._back(source, gradient @ operator.weight, step)
            return entries if operator.bias is None else [*entries, _bias(gradient @ operator.bias)]
        if isinstance(operator, LayerNorm):
            back, constant = self._norm(operator, self._row(source, step), gradient)
            return [*self._back(source, back, step), _bias(constant)]
        if isinstance(operator, SpikeAttention):
            return self._attention(operator, source, gradient, step)
        raise KeyError(f"{name}: what enters a {operator.name} cannot be taken apart")

    def _row(self, name: str, step: int) -> np.ndarray:
        """Return what `name` sends for the token, in float64."""
        if name not in self.nodes:
            assert self.trace.spikes.get(name) is not None
            return self.trace.spikes[name][step, self.sample, self.token].astype(np.float64)
        node = self.nodes[name]
        operator = node.operator
        if operator.spikes:
            return self.trace.spikes[name][step, self.sample, self.token].astype(np.float64)
        if isinstance(operator, Total):
            return sum(self._row(source, step) for source in node.sources)  # type: ignore[return-value]
        (source,) = node.sources
        if isinstance(operator, Affine) and source == self.network.input_name and self.network.token_encoding:
            row = operator.weight[:, self._hot()].astype(np.float64).sum(-1)
            return row if operator.bias is None else row + operator.bias
        if isinstance(operator, SpikeAttention):
            entries = [self._attention(operator, source, row, step) for row in np.eye(operator.out_features)]
            return np.array([sum(weight * value for _, weight, value in entry) for entry in entries])
        return operator.step(self._row(source, step), None, None)

    def _hot(self) -> np.ndarray:
        assert self.network.token_encoding is not None
        assert self.trace.input_ids is not None
        return self.network.token_encoding.hot_inputs(self.trace.input_ids[self.sample])[:, self.token]

    def _input(self, gradient: np.ndarray, step: int) -> list[Entry]:
        name = self.network.input_name
        row = self.trace.spikes[name][step, self.sample, self.token].astype(np.float64)
        return [((name, self.token, int(i)), float(gradient[i]), float(row[i])) for i in np.flatnonzero(row)]

    def _words(self, table: Affine, gradient: np.ndarray) -> list[Entry]:
        assert self.network.token_encoding is not None
        tables = self.network.token_encoding.tables
        return [
            ((said, self.token, int(hot) - columns.start), float(gradient @ table.weight[:, hot]), 1.0)
            for hot, (said, columns) in zip(self._hot(), tables.items(), strict=True)
        ]

    def _norm(self, norm: LayerNorm, row: np.ndarray, gradient: np.ndarray) -> tuple[np.ndarray, float]:
        """Return the gradient behind a norm whose deviation is held, and what its bias adds."""
        groups = row.reshape(norm.groups, -1)
        deviation = np.sqrt(groups.var(-1, keepdims=True) + norm.eps)
        scaled = (gradient * norm.weight).reshape(norm.groups, -1) / deviation
        return (scaled - scaled.mean(-1, keepdims=True)).reshape(-1), float(gradient @ norm.bias)

    def _attention(self, attention: SpikeAttention, source: str, gradient: np.ndarray, step: int) -> list[Entry]:
        """Return the value neurons of every token that is attended to; query and key are their weight."""
        heads, size, width = attention.num_heads, attention.head_size, attention.out_features
        rows = self.trace.spikes[source][step, self.sample].astype(np.float64)
        query, key, value = (rows[:, part * width : (part + 1) * width] for part in range(3))
        found: list[Entry] = []
        for head in range(heads):
            features = np.arange(head * size, (head + 1) * size)
            if not gradient[features].any():
                continue
            scores = key[self.real][:, features] @ query[self.token, features]
            for position, score in zip(self.real, scores, strict=True):
                fired = features[(value[position, features] * gradient[features]) != 0] if score else ()
                found.extend(
                    (
                        (source, int(position), int(2 * width + i)),
                        float(attention.scale * score * gradient[i]),
                        float(value[position, i]),
                    )
                    for i in fired
                )
        return found


def _bias(share: Any) -> Entry:
    return (BIAS, None, None), float(share), 1.0
