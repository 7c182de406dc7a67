"""What a chip allows, as a list of small named functions: each says which nodes break it, and what would mend that.

A check runs all of them and reports all violations at once. Rules of how much fits stand in ``placement``, which tries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from export.network import Network, Node
from export.operators.affine import sign_mode
from hardware.loihi.chip import Chip
from hardware.loihi.mapping import HOST_UNSUPPORTED, Mapping
from hardware.loihi.operators import Form, Neurons, PassedOn, Synapses, form_of

GRAPH = "graph"
"""Stands for the whole graph where a violation is no single node's."""


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


FormType = TypeVar("FormType", bound=Form)


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

    def which_are(self, form: type[FormType]) -> Iterator[tuple[Node, FormType]]:
        """Go through those of these nodes that have a form on the chip."""
        for node in self.nodes:
            found = form_of(node)
            if isinstance(found, form):
                yield node, found


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
    for node, synapses in subject.which_are(Synapses):
        if synapses.weights is None:
            continue
        signs = sign_mode(synapses.weights)
        low, high = limits[signs]
        smallest, largest = int(synapses.weights.min()), int(synapses.weights.max())
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
    return _registers(subject, "thresholds", {"threshold": (0, subject.chip["threshold_bits"])}, remedy)


def decays(subject: Subject) -> Iterator[Violation]:
    """A decay fits its bits."""
    remedy = "choose a decay that a multiple of 2^-bits is close to"
    bits = subject.chip["decay_bits"]
    return _registers(subject, "decays", {"decay": (0, bits), "current_decay": (0, bits)}, remedy)


def biases(subject: Subject) -> Iterator[Violation]:
    """A bias is a signed mantissa and an exponent."""
    remedy = "quantize the layer before it with a larger scale"
    bits = subject.chip["bias_mantissa_bits"] - 1
    limits = {"bias_mantissa": (-(1 << bits), bits), "bias_exponent": (0, subject.chip["bias_exponent_bits"])}
    return _registers(subject, "biases", limits, remedy)


def _registers(subject: Subject, rule: str, limits: dict[str, tuple[int, int]], remedy: str) -> Iterator[Violation]:
    """Check registers that neurons have, each by its least value and the bits of its largest."""
    for node, neurons in subject.which_are(Neurons):
        for name, (low, bits) in limits.items():
            if name not in neurons.registers:
                continue
            values, high = neurons.registers[name], (1 << bits) - 1
            smallest, largest = int(values.min()), int(values.max())
            if smallest < low or largest > high:
                yield Violation(rule, node.name, f"{smallest} to {largest}", f"{low} to {high}", remedy)


def reset(subject: Subject) -> Iterator[Violation]:
    """A neuron that runs no program resets to zero."""
    if subject.chip["programmable"]:
        return
    remedy = "train with neurons that reset to zero (preset loihi), or take a chip whose neurons run programs"
    for node, neurons in subject.which_are(Neurons):
        if neurons.reset:
            yield Violation("reset", node.name, neurons.reset, "reset to zero", remedy)


def firing_test(subject: Subject) -> Iterator[Violation]:
    """A neuron that runs no program fires above its threshold, not at it."""
    if subject.chip["programmable"]:
        return
    remedy = "train with neurons that fire above threshold (preset loihi), or take a chip whose neurons run programs"
    for node, neurons in subject.which_are(Neurons):
        if neurons.fires_on_equal:
            yield Violation("firing_test", node.name, "potential >= threshold", "potential > threshold", remedy)


def operators(subject: Subject) -> Iterator[Violation]:
    """What is neither neuron nor synapse needs a neuron that runs a program."""
    for node in subject.network.nodes:
        if subject.mapping.host.get(node.name) == HOST_UNSUPPORTED:
            remedy = form_of(node).remedy
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
    for node in subject.nodes:
        low, high = node.operator.traits.spike_range or (0, 0)
        if high > largest or low < (-largest if bits else 0):
            remedy = "let neurons that send 0 or 1 stand for it, or take a chip with graded spikes"
            yield Violation("graded_values", node.name, f"{low} to {high}", allowed, remedy)
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
    for node, passed_on in subject.which_are(PassedOn):
        if passed_on.delay > limit:
            told.add(passed_on.delay)
            yield Violation("delays", node.name, passed_on.delay, limit, remedy)
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
