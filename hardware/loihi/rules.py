"""What a chip allows, as a list of small named functions: each says which nodes break it, and what would mend that.

A check runs all of them and reports all violations at once. Rules of how much fits stand in ``placement``, which tries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from export.network import Network, Node
from export.operators import (
    Affine,
    Convolution,
    Delay,
    Heaviside,
    IntegerCurrentNeuron,
    IntegerIntegrator,
    IntegerLeakyIntegrateAndFire,
    LeakyIntegrateAndFire,
    ResistiveNeuron,
)
from export.operators.affine import sign_mode
from hardware.loihi.chip import Chip
from hardware.loihi.mapping import HOST_UNSUPPORTED, PROGRAMMED, Mapping

GRAPH = "graph"
"""Stands for the whole graph where a violation is no single node's."""
INTEGER_NEURONS = (IntegerLeakyIntegrateAndFire, IntegerCurrentNeuron)
WITH_POTENTIAL = (*INTEGER_NEURONS, IntegerIntegrator)


@dataclass(frozen=True)
class Violation:
    """One reason why a graph does not run on a chip.

    Attributes
    ----------
    rule : str
        Name of the rule.
    node : str
        The node, or ``"graph"``.
    value, limit : int or str
        What was found, and what is allowed.
    remedy : str
        What would mend it.
    """

    rule: str
    node: str
    value: int | str
    limit: int | str
    remedy: str

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Subject:
    """What rules judge: a network, as a chip would have it, for sentences of so many tokens."""

    network: Network
    chip: Chip
    tokens: int
    mapping: Mapping

    @property
    def nodes(self) -> Iterator[Node]:
        """The nodes that are not left to the host."""
        return (node for node in self.network.nodes if node.name not in self.mapping.host)


Rule = Callable[[Subject], Iterable[Violation]]


def precision(subject: Subject) -> Iterator[Violation]:
    """A chip computes in whole numbers."""
    if not subject.network.is_integer:
        remedy = "spikebert quantize MODEL.nir -o INTEGER.nir --calibration TASK, then place that"
        yield Violation("precision", GRAPH, "floating point", "whole numbers", remedy)


def sentence_length(subject: Subject) -> Iterator[Violation]:
    """A sentence has no more tokens than positions, and than the sums of an integer graph are proven for."""
    encoding, proven = subject.network.token_encoding, subject.network.max_tokens
    if encoding is not None and 0 < encoding.positions < subject.tokens:
        remedy = "place for shorter sentences, or train with a larger max_position_embeddings"
        yield Violation("sentence_length", GRAPH, subject.tokens, encoding.positions, remedy)
    if proven is not None and proven < subject.tokens:
        remedy = f"quantize with --max-tokens {subject.tokens}, for which sums are proven to fit"
        yield Violation("sentence_length", GRAPH, subject.tokens, proven, remedy)


def weights(subject: Subject) -> Iterator[Violation]:
    """A weight fits its bits, one of which is the sign where a matrix has both."""
    if not subject.network.is_integer:
        return
    bits = subject.chip["weight_bits"]
    limits = {
        "mixed": (-(1 << bits - 1), (1 << bits - 1) - 1),
        "excitatory": (0, (1 << bits) - 1),
        "inhibitory": (-((1 << bits) - 1), 0),
    }
    for node in subject.nodes:
        if not isinstance(node.operator, Affine | Convolution):
            continue
        signs = sign_mode(node.operator.weight)
        low, high = limits[signs]
        smallest, largest = int(node.operator.weight.min()), int(node.operator.weight.max())
        if smallest < low or largest > high:
            remedy = "quantize with a larger weight scale"
            yield Violation(
                "weights",
                node.name,
                f"{smallest} to {largest}",
                f"{low} to {high} ({signs} signs, {bits} bits)",
                remedy,
            )


def thresholds(subject: Subject) -> Iterator[Violation]:
    """A threshold's mantissa fits its bits."""
    remedy = "quantize the layer before it with a larger scale"
    for node in subject.nodes:
        if isinstance(node.operator, INTEGER_NEURONS):
            yield from _range(node, "thresholds", node.operator.threshold, 0, subject.chip["threshold_bits"], remedy)


def decays(subject: Subject) -> Iterator[Violation]:
    """A decay fits its bits."""
    remedy = "choose a decay that a multiple of 2^-bits is close to"
    bits = subject.chip["decay_bits"]
    for node in subject.nodes:
        if isinstance(node.operator, WITH_POTENTIAL):
            yield from _range(node, "decays", node.operator.decay, 0, bits, remedy)
        if isinstance(node.operator, IntegerCurrentNeuron):
            # stored less 1, so that 4096 leaves nothing
            yield from _range(node, "decays", node.operator.current_decay - 1, 0, bits, remedy)


def biases(subject: Subject) -> Iterator[Violation]:
    """A bias is a signed mantissa and an exponent."""
    remedy = "quantize the layer before it with a larger scale"
    bits = subject.chip["bias_mantissa_bits"] - 1
    for node in subject.nodes:
        if isinstance(node.operator, WITH_POTENTIAL):
            yield from _range(node, "biases", node.operator.bias_mantissa, -(1 << bits), bits, remedy)
            exponents = subject.chip["bias_exponent_bits"]
            yield from _range(node, "biases", node.operator.bias_exponent, 0, exponents, remedy)


def _range(node: Node, rule: str, values: np.ndarray, low: int, bits: int, remedy: str) -> Iterator[Violation]:
    smallest, largest, high = int(values.min()), int(values.max()), (1 << bits) - 1
    if smallest < low or largest > high:
        yield Violation(rule, node.name, f"{smallest} to {largest}", f"{low} to {high}", remedy)


def reset(subject: Subject) -> Iterator[Violation]:
    """A neuron that runs no program resets to zero."""
    if subject.chip["programmable"]:
        return
    remedy = "train with neurons that reset to zero (preset loihi), or take a chip whose neurons run programs"
    for node in subject.nodes:
        operator = node.operator
        if isinstance(operator, LeakyIntegrateAndFire | IntegerLeakyIntegrateAndFire) and operator.reset != "zero":
            yield Violation("reset", node.name, f"reset by {operator.reset}ion", "reset to zero", remedy)
        if isinstance(operator, ResistiveNeuron) and np.any(operator.v_reset):
            extreme = operator.v_reset[np.argmax(np.abs(operator.v_reset))]
            yield Violation("reset", node.name, f"reset to {extreme}", "reset to zero", remedy)


def firing_test(subject: Subject) -> Iterator[Violation]:
    """A neuron that runs no program fires above its threshold, not at it."""
    if subject.chip["programmable"]:
        return
    remedy = "train with neurons that fire above threshold (preset loihi), or take a chip whose neurons run programs"
    for node in subject.nodes:
        operator = node.operator
        if isinstance(operator, LeakyIntegrateAndFire | IntegerLeakyIntegrateAndFire | Heaviside) and (
            operator.fire_on_equal
        ):
            yield Violation("firing_test", node.name, "potential >= threshold", "potential > threshold", remedy)


def operators(subject: Subject) -> Iterator[Violation]:
    """What is neither neuron nor synapse needs a neuron that runs a program."""
    remedies = {
        "layer_norm": "train with --norm batch and fold (spikebert fold), or take a chip whose neurons run programs",
        "spike_attention": "take a chip whose neurons run programs; on the host it is a round trip each step",
    }
    for node in subject.network.nodes:
        if subject.mapping.host.get(node.name) == HOST_UNSUPPORTED and isinstance(node.operator, PROGRAMMED):
            remedy = remedies[node.operator.name.removeprefix("integer_")]
            yield Violation("operators", node.name, node.operator.name, "neurons and synapses", remedy)


def graded_values(subject: Subject) -> Iterator[Violation]:
    """A spike carries no more than its payload: where it has none, 0 or 1."""
    network, mapping, bits = subject.network, subject.mapping, subject.chip["payload_bits"]
    largest = (1 << bits - 1) - 1 if bits else 1
    allowed = f"-{largest} to {largest}" if bits else "0 or 1"
    read = {
        source
        for population in mapping.populations.values()
        for projection in population.projections
        for source in projection.sources
    }
    if network.input_name in read and network.input_limit is not None and network.input_limit > largest:
        remedy = "send an input of k as k spikes, or take a chip with graded spikes"
        yield Violation("graded_values", network.input_name, network.input_limit, allowed, remedy)
    if bits:
        return
    remedies = {
        "relay": "put neurons behind it, make one map of it and the next, or take a chip with graded spikes",
        "integrators": "let neurons that spike read it, or take a chip with graded spikes",
    }
    for name, population in mapping.populations.items():
        if name in read and population.kind in remedies:
            yield Violation("graded_values", name, "whole numbers", allowed, remedies[population.kind])


def delays(subject: Subject) -> Iterator[Violation]:
    """A spike is delayed by no more steps than the chip remembers, one after another taken together."""
    limit = subject.chip["largest_delay"]
    remedy = "shorten it, or put neurons in between that pass spikes on"
    told = set()
    for node in subject.nodes:
        if isinstance(node.operator, Delay) and node.operator.steps.max() > limit:
            told.add(int(node.operator.steps.max()))
            yield Violation("delays", node.name, int(node.operator.steps.max()), limit, remedy)
    for name, population in subject.mapping.populations.items():
        longest = max((projection.delay for projection in population.projections), default=0)
        if longest > limit and longest not in told:
            yield Violation("delays", name, longest, limit, remedy)


RULES: tuple[Rule, ...] = (
    precision,
    sentence_length,
    weights,
    thresholds,
    decays,
    biases,
    reset,
    firing_test,
    operators,
    graded_values,
    delays,
)


def check(subject: Subject, rules: Iterable[Rule] = RULES) -> list[Violation]:
    """Return what every rule has to say, in the order of the rules and then of the nodes."""
    return [violation for rule in rules for violation in rule(subject)]
