"""Operators that this project has never heard of are answered right, or refused by name: never answered by chance.

Made here: neurons that send -1, 0 and 1 or 0 to 4, a nonlinearity, and an attention with three sources. Their traits
are all that the project knows of them.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from export.errors import UnsupportedOperatorError
from export.execution import NodeExecution
from export.network import Network, NetworkBuilder, Readout
from export.operators import (
    Affine,
    Heaviside,
    LeakyIntegrateAndFire,
    NeuronState,
    Operator,
    Pooling,
    SpikingOperator,
    TokenMean,
)
from hardware import compare, count_operations, place, profile
from hardware.equivalence.attribution import contributions
from hardware.equivalence.audit import audit
from hardware.equivalence.subgraphs import subgraphs_of, subgraphs_with_inputs
from hardware.errors import TraceError, TraceMismatchError
from hardware.loihi import CHIPS
from hardware.loihi.connectivity import Dense
from hardware.loihi.mapping import map_network
from hardware.loihi.operators import PLACEMENT, Programs
from hardware.traces.edges import RunningSums, check_trace, edge_kinds, edges_by_node, running_sums, sums_of_spikes
from hardware.traces.firing import Firing
from hardware.traces.profiler import COLLECTIONS, HEADS, Heads, Profiler
from hardware.traces.recorded import load_trace, trace_from_nir_data, trace_to_nir_data
from hardware.traces.trace import Trace, spike_type


@dataclass(frozen=True, eq=False)
class Ternary(SpikingOperator):
    """Send the sign of an input that is farther from 0 than the threshold."""

    name: ClassVar[str] = "ternary"
    traits = replace(Heaviside.traits, spike_range=(-1, 1))
    threshold: np.ndarray

    def initial_state(self, shape: tuple[int, ...], dtype: Any) -> NeuronState:
        return NeuronState(np.zeros(0), np.zeros(0), np.zeros(shape, dtype))

    def step(self, x: Any, state: Any, token_mask: Any) -> np.ndarray:
        state.tested_potential = x
        return np.where(np.abs(x) > self.threshold, np.sign(x), 0)

    def to_nir(self, dtype: Any, dt: float) -> Any:
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class UpToFour(Ternary):
    """Send how many thresholds an input holds, 4 at most."""

    name: ClassVar[str] = "up_to_four"
    traits = replace(Heaviside.traits, spike_range=(0, 4))

    def step(self, x: Any, state: Any, token_mask: Any) -> np.ndarray:
        state.tested_potential = x
        return np.clip(np.floor(x / self.threshold), 0, 4)


@dataclass(frozen=True, eq=False)
class Squashed(Operator):
    """``x / (1 + |x|)``."""

    name: ClassVar[str] = "squashed"
    traits = replace(Affine.traits, integer=None, is_synaptic=False, reads_tokens=False, latency=0)
    features: int

    in_features = property(lambda self: self.features)
    out_features = property(lambda self: self.features)

    def step(self, x: Any, state: Any, token_mask: Any) -> np.ndarray:
        return x / (1 + np.abs(x))

    def interval(self, read: Any, tokens: int | None) -> None:
        return None

    def to_nir(self, dtype: Any, dt: float) -> Any:
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Mixture(Squashed):
    """Attention with three sources: query, key and value of two heads."""

    name: ClassVar[str] = "mixture"
    traits = replace(Squashed.traits, sources=3, mixes_tokens=True, needs_program=True, reads_sentences=False)

    def step(self, x: Any, state: Any, token_mask: Any) -> np.ndarray:
        query, key, value = x
        return (query @ np.swapaxes(key, -1, -2)) @ value


class TernaryLeaky(LeakyIntegrateAndFire):
    """A neuron of ours that another made to send -1 too, without a row of its own anywhere."""

    name: ClassVar[str] = "ternary_leaky"
    traits = replace(LeakyIntegrateAndFire.traits, spike_range=(-1, 1))


class CountingLeaky(LeakyIntegrateAndFire):
    """Likewise, one that sends up to 4."""

    name: ClassVar[str] = "counting_leaky"
    traits = replace(LeakyIntegrateAndFire.traits, spike_range=(0, 4))


def run_by_hand(network: Network, inputs: np.ndarray, mask: np.ndarray) -> Trace:
    """Run the operators themselves, and keep every spike as it is."""
    sent: dict[str, list[np.ndarray]] = {node.name: [] for node in network.spiking_nodes}
    tested: dict[str, list[np.ndarray]] = {node.name: [] for node in network.spiking_nodes}

    def record(name: str, spikes: np.ndarray, potentials: np.ndarray) -> None:
        sent[name].append(spikes.astype(spike_type(*network.by_name[name].operator.traits.spike_range)))
        tested[name].append(potentials)

    execution = NodeExecution(network.nodes, np.float64, record)
    for values in inputs:
        execution.step({network.input_name: values.astype(np.float64)}, None if mask.all() else mask[..., None])
    return Trace(
        spikes={name: np.stack(steps) for name, steps in sent.items()},
        logits=np.zeros((len(mask), 0)),
        mask=mask,
        membrane_potentials={name: np.stack(steps) for name, steps in tested.items()},
        metadata={"precision": "float64"},
    )


@pytest.fixture(scope="module")
def network() -> Network:
    """Neurons of three kinds beside each other, sums of what they send, and a recurrent connection from each."""
    rng = np.random.default_rng(0)
    builder = NetworkBuilder("input", 5)
    builder.add("binary_affine", Affine(rng.normal(size=(4, 5))), "input")
    builder.add("ternary_affine", Affine(rng.normal(size=(4, 5))), "input")
    builder.add("counts_affine", Affine(rng.normal(size=(4, 5))), "input")
    for name, operator in (
        ("binary", Heaviside(np.full(4, 0.2))),
        ("ternary", Ternary(np.full(4, 0.6))),
        ("counts", UpToFour(np.full(4, 0.4))),
    ):
        again = builder.add(f"{name}_again", Affine(0.1 * rng.normal(size=(4, 4))), builder.previous_step(name, 4))
        builder.add(name, operator, [f"{name}_affine", again])
    sources = ["binary", "ternary", "counts"]
    builder.add("last_affine", Affine(rng.normal(size=(2, 4))), sources)
    builder.add("last", Heaviside(np.zeros(2)), "last_affine")
    return builder.network("output", "last")


@pytest.fixture(scope="module")
def trace(network: Network) -> Trace:
    rng = np.random.default_rng(1)
    mask = np.arange(6) < np.array([[6], [3], [1]])
    found = run_by_hand(network, rng.normal(size=(5, 3, 6, 5)), mask)
    assert set(np.unique(found.spikes["ternary"])) == {-1, 0, 1}
    assert set(np.unique(found.spikes["counts"])) == {0, 1, 2, 3, 4}
    return found


class TestNeuronsThatSendMore:
    """What flows on edges, is checked, profiled, compared and kept follows from the range of a neuron's spikes."""

    def test_edges_carry_what_was_sent(self, network, trace):
        kinds = edge_kinds(network)
        assert [kinds[name] for name in ("binary", "ternary", "counts")] == ["binary", "graded", "graded"]
        assert [kinds[f"{name}_before"] for name in ("binary", "ternary")] == ["binary", "graded"]
        edges = {(edge.source, edge.reader): edge for _, found in edges_by_node(trace, network) for edge in found}
        assert edges["ternary", "ternary_before"].kind == "graded"
        before = edges["ternary_before", "ternary_again"]
        np.testing.assert_array_equal(before.values[1:], trace.spikes["ternary"][:-1])
        assert not before.values[0].any()
        two = trace.spikes["binary"].astype(int) + trace.spikes["ternary"]
        sums = dict(sums_of_spikes(trace, network))
        np.testing.assert_array_equal(sums["ternary_stream"], two)
        np.testing.assert_array_equal(sums["counts_stream"], two + trace.spikes["counts"])
        assert sums["ternary_stream"].min() == -1
        assert sums["counts_stream"].dtype == np.int8

    def test_sums_are_as_wide_as_their_range(self):
        builder = NetworkBuilder("input", 1)
        names = [builder.add(f"n{index}", UpToFour(np.ones(1)), "input") for index in range(64)]
        network = builder.network("output", builder.add("affine", Affine(np.ones((1, 1))), names))
        trace = Trace(
            {name: np.full((1, 1, 1, 1), 4, np.uint8) for name in names}, np.zeros((1, 0)), np.ones((1, 1), bool)
        )
        found = dict(sums_of_spikes(trace, network))
        assert found["n62_stream"].tolist() == [[[[252]]]]
        assert found["n63_stream"].tolist() == [[[[256]]]]
        assert (found["n62_stream"].dtype, found["n63_stream"].dtype) == (np.uint8, np.uint16)

    def test_only_sums_of_zeros_and_ones_are_handed_to_the_counting_kernel(self, network):
        """It adds up bytes of up to 255 addends."""
        assert running_sums(network) == []
        builder = NetworkBuilder("input", 2)
        for name, operator in (("a", Heaviside), ("b", Heaviside), ("c", UpToFour)):
            builder.add(name, operator(np.ones(2)), "input")
        builder.add("affine", Affine(np.ones((1, 2))), ["a", "b", "c"])
        assert running_sums(builder.network("output", "affine")) == [RunningSums(["b_stream"], ["a", "b"])]

    @pytest.mark.parametrize(
        ("node", "value", "complaint"),
        [
            (
                "ternary",
                -2,
                "ternary: its spikes span -2 to 1; a neuron of this graph sends whole numbers from -1 to 1",
            ),
            ("ternary", 2, "ternary: its spikes span -1 to 2; .*from -1 to 1"),
            ("counts", 5, "counts: its spikes span 0 to 5; .*from 0 to 4"),
            ("counts", -1, "counts: its spikes span -1 to 4"),
            ("binary", -1, "binary: its spikes span -1 to 1; a neuron of this graph sends 0 or 1"),
        ],
    )
    def test_what_a_neuron_never_sends_is_refused(self, network, trace, node, value, complaint, counted_in):
        check_trace(trace, network)
        spikes = {name: found.copy() for name, found in trace.spikes.items()}
        spikes[node] = spikes[node].astype(np.int8)
        spikes[node][0, 0, 0, 0] = value
        wrong = replace(trace, spikes=spikes)
        with pytest.raises(TraceMismatchError, match=complaint):
            check_trace(wrong, network)
        with pytest.raises(TraceMismatchError, match=complaint):
            Firing(wrong, network)

    def test_a_byte_that_wrapped_around_is_refused(self, network, trace):
        assert trace.spikes["ternary"].dtype == np.int8
        wrapped = replace(trace, spikes={name: found.view(np.uint8) for name, found in trace.spikes.items()})
        with pytest.raises(TraceMismatchError, match="ternary: its spikes span 0 to 255"):
            check_trace(wrapped, network)

    @pytest.mark.parametrize("batches", [1, 3])
    def test_a_profile_is_what_numpy_counts(self, network, trace, batches, counted_in):
        profiler = Profiler(network, COLLECTIONS)
        for row in range(batches):
            profiler.update(trace if batches == 1 else trace.rows(row, row + 1))
        found = profiler.result()
        for name in ("binary", "ternary", "counts"):
            values, node = trace.spikes[name][:, trace.mask].astype(int), found.nodes[name]
            assert node.firing_rate == pytest.approx((values != 0).mean())
            assert node.mean_value == pytest.approx(values.mean())
            assert (node.smallest_value, node.largest_value) == (values.min(), values.max())
            assert node.graded == (name != "binary")
            assert _seen(node.histogram) == Counter(values.ravel().tolist())
            again = [np.count_nonzero((now != 0) & (after != 0)) for now, after in itertools.pairwise(values)]
            assert node.persistence.fired_again.tolist() == again
            assert node.fired_by_neuron.tolist() == (values != 0).sum(1).tolist()
        stream = found.streams["counts_stream"]
        added = sum(trace.spikes[name][:, trace.mask].astype(int) for name in ("binary", "ternary", "counts"))
        assert _seen(stream) == Counter(added.ravel().tolist())
        assert stream.mean_value == pytest.approx(added.mean())
        assert json.loads(json.dumps(found.to_dict(detailed=True), allow_nan=False))

    def test_the_histogram_of_a_ternary_neuron_by_hand(self, network, trace):
        """-1, -1, 0, 1 in words of two bits: 11 11 00 01."""
        builder = NetworkBuilder("input", 1)
        builder.add("ternary", Ternary(np.ones(1)), "input")
        spikes = np.array([-1, -1, 0, 1], np.int8).reshape(1, 1, 4, 1)
        trace = Trace({"ternary": spikes}, np.zeros((1, 0)), np.ones((1, 4), bool))
        node = profile(trace, builder.network("output", "ternary"), ("histogram",)).nodes["ternary"]
        said = node.to_dict()
        assert (said["smallest_value"], said["largest_value"], said["mean_value"]) == (-1, 1, -0.25)
        assert said["histogram"]["lowest_value"] == -1
        assert said["histogram"]["counts"] == [2, 1, 1]
        assert (said["histogram"]["bits"], said["histogram"]["sparsity_in_values"]) == (2, 0.25)
        assert said["histogram"]["sparsity_in_bits"] == pytest.approx(3 / 8)

    @pytest.mark.parametrize("order", [(0, 1), (1, 0)])
    def test_batches_with_and_without_negative_spikes_add_up(self, order):
        builder = NetworkBuilder("input", 1)
        builder.add("ternary", Ternary(np.ones(1)), "input")
        batches = [np.array(spikes, np.int8).reshape(1, 1, 4, 1) for spikes in ([-1, -1, 0, 1], [1, 0, 1, 1])]
        profiler = Profiler(builder.network("output", "ternary"), ("histogram",))
        for index in order:
            profiler.update(Trace({"ternary": batches[index]}, np.zeros((1, 0)), np.ones((1, 4), bool)))
        node = profiler.result().nodes["ternary"]
        assert _seen(node.histogram) == {-1: 2, 0: 2, 1: 4}
        assert (node.smallest_value, node.largest_value, node.mean_value) == (-1, 1, 0.25)

    def test_two_runs_are_compared_value_by_value(self, network, trace):
        assert compare(trace, trace).equal
        spikes = {**trace.spikes, "ternary": trace.spikes["ternary"].copy()}
        place = tuple(np.argwhere(spikes["ternary"] == -1)[0])
        spikes["ternary"][place] = 1
        other = replace(trace, spikes=spikes)
        found = compare(trace, other)
        assert (found.equal, found.spikes_different) == (False, 1)
        first = found.first_divergence
        assert (first.node, first.value_a, first.value_b) == ("ternary", -1.0, 1.0)
        (node,) = [node for node in found.per_node if node.node == "ternary"]
        assert node.rate_a == pytest.approx((trace.spikes["ternary"][:, trace.mask] != 0).mean())

    def test_neurons_whose_spikes_cancel_are_not_silent(self):
        spikes = np.array([-1, 1], np.int8).reshape(1, 1, 2, 1)
        trace = Trace({"ternary": spikes}, np.zeros((1, 0)), np.ones((1, 2), bool))
        assert trace.firing_rate("ternary") == 1
        assert compare(trace, trace).silent_nodes == {"a": [], "b": []}

    def test_files_keep_them(self, network, trace, tmp_path: Path):
        trace.save(tmp_path / "run.npz")
        for loaded in (Trace.load(tmp_path / "run.npz"), load_trace(tmp_path / "run.npz")):
            for name, spikes in trace.spikes.items():
                assert loaded.spikes[name].dtype == spikes.dtype
                np.testing.assert_array_equal(loaded.spikes[name], spikes)
            check_trace(loaded, network)

    def test_data_of_nir_keep_them(self, network, trace):
        data = trace_to_nir_data(trace, 1e-3)
        assert data.nodes["last"].observables["spikes"].data.dtype == bool
        again = trace_from_nir_data(data, trace.mask)
        for name, spikes in trace.spikes.items():
            np.testing.assert_array_equal(again.spikes[name], spikes)
        assert (again.spikes["ternary"].dtype, again.spikes["counts"].dtype) == (np.int8, np.uint8)
        observed = data.nodes["counts"].observables["spikes"]
        observed.data = observed.data * 0.5
        with pytest.raises(TraceError, match=r"counts: spikes: a spike of 0\.5; spikes are whole numbers"):
            trace_from_nir_data(data, trace.mask)

    def test_subgraphs_are_given_what_was_sent(self, network, trace):
        entering = {subgraph.name: values for subgraph, values in subgraphs_with_inputs(trace, network)}
        added = sum(trace.spikes[name].astype(int) for name in ("binary", "ternary", "counts"))
        np.testing.assert_array_equal(entering["last"]["counts_stream"], added)
        whole = replace(network, readout=Readout(1.0, np.zeros(2, np.int64)), input_limit=9)
        last = next(subgraph for subgraph in subgraphs_of(whole) if subgraph.name == "last")
        assert last.network(whole).input_limit == 1 + 1 + 4


def _seen(histogram: Any) -> Counter[int]:
    counts = dict(zip(histogram.values.tolist(), histogram.counts.sum(0).tolist(), strict=True))
    return Counter({value: count for value, count in counts.items() if count})


def chain(*operators: Operator) -> Network:
    """Return operators one behind the other, named by what they are."""
    builder = NetworkBuilder("input", operators[0].in_features)
    last: str = "input"
    for index, operator in enumerate(operators):
        sources = [last] * operator.traits.sources
        last = builder.add(f"{operator.name}{index}", operator, sources)
    return builder.network("output", last)


def affine(features: int = 4) -> Affine:
    return Affine(np.eye(features))


def neuron(kind: type[LeakyIntegrateAndFire] = LeakyIntegrateAndFire, features: int = 4) -> LeakyIntegrateAndFire:
    return kind(np.full(features, 0.5), np.full(features, 2.0), np.full(features, 0.5), "zero")


STRANGE = {
    "a nonlinearity": (Squashed(4), "squashed1"),
    "a ternary neuron": (Ternary(np.ones(4)), "ternary1"),
    "a neuron that counts": (UpToFour(np.ones(4)), "up_to_four1"),
    "an attention": (Mixture(4), "mixture1"),
}


class TestTargets:
    """Chips, rounding bounds and attribution refuse by name; edges and profiles need no more than traits."""

    @pytest.mark.parametrize("chip", CHIPS)
    @pytest.mark.parametrize(("operator", "node"), STRANGE.values(), ids=list(STRANGE))
    def test_no_chip_takes_it(self, operator, node, chip):
        network = chain(affine(), operator, affine(), neuron())
        said = f"{node}: placement knows no {operator.name}; register a row for {type(operator).__name__}"
        for ask in (map_network, place):
            with pytest.raises(UnsupportedOperatorError, match=said):
                ask(network, CHIPS[chip])

    @pytest.mark.parametrize("chip", CHIPS)
    def test_nor_does_its_host(self, chip):
        network = chain(affine(), neuron(), TokenMean(4), Squashed(4), affine())
        with pytest.raises(UnsupportedOperatorError, match="squashed3: placement knows no squashed"):
            place(network, chip)

    @pytest.mark.parametrize(("operator", "node"), STRANGE.values(), ids=list(STRANGE))
    def test_nothing_bounds_it(self, operator, node):
        network = chain(affine(), operator, affine(), neuron())
        trace = _random_trace(network)
        with pytest.raises(UnsupportedOperatorError, match=f"{node}: rounding bound knows no {operator.name}"):
            list(audit(network, trace))

    @pytest.mark.parametrize("name", ["a nonlinearity", "an attention"])
    def test_nothing_is_attributed_through_it(self, name):
        operator, node = STRANGE[name]
        network = chain(affine(), operator, affine(), neuron())
        with pytest.raises(UnsupportedOperatorError, match=f"{node}: attribution knows no {operator.name}"):
            contributions(network, _random_trace(network), network.output_source, 1, 0, 0)

    @pytest.mark.parametrize("name", ["a ternary neuron", "a neuron that counts"])
    def test_nor_is_its_potential(self, name):
        operator, node = STRANGE[name]
        network = chain(affine(), operator)
        with pytest.raises(UnsupportedOperatorError, match=f"{node}: attribution knows no {operator.name}"):
            contributions(network, _random_trace(network), node, 1, 0, 0)

    def test_its_spikes_are_attributed_with_their_sign(self):
        """Of neurons behind it, of which every row is known."""
        network = chain(affine(), Ternary(np.ones(4)), Affine(np.arange(1.0, 17).reshape(4, 4)), neuron())
        trace = _random_trace(network)
        step = int(np.flatnonzero((trace.spikes["ternary1"] == -1).any((1, 2, 3)))[0])
        trace.spikes["leaky_integrate_and_fire3"][:] = 0  # never reset
        found = contributions(network, trace, "leaky_integrate_and_fire3", step, 0, 2)
        weights = 0.5 ** np.arange(step, -1, -1)[:, None] * np.arange(9, 13)
        expected = (trace.spikes["ternary1"][: step + 1, 0, 0] * weights).sum()
        assert sum(share.contribution for share in found) == pytest.approx(expected)

    @pytest.mark.parametrize(("operator", "node"), STRANGE.values(), ids=list(STRANGE))
    def test_its_values_are_in_no_trace_unless_they_are_spikes(self, operator, node, counted_in):
        network = chain(affine(), operator, affine(), neuron())
        trace = _random_trace(network)
        assert edge_kinds(network)[node] == ("graded" if operator.spikes else "analog")
        found = profile(trace, network, ("histogram", "persistence"))
        assert list(found.nodes) == [node.name for node in network.spiking_nodes]

    def test_heads_of_an_unknown_attention_are_not_guessed(self):
        network = chain(neuron(), Mixture(4), neuron())
        with pytest.raises(UnsupportedOperatorError, match="mixture1: rates by head knows no mixture"):
            Profiler(network, ("heads",))
        assert profile(_random_trace(network), network).nodes

    @pytest.mark.parametrize(("chip", "broken"), [("loihi1", ["graded_values"]), ("loihi2", [])])
    def test_a_neuron_made_of_ours_does_not_fit_where_spikes_have_no_sign(self, chip, broken):
        """It has the row of what it was derived from; the range of its spikes is its own."""
        network = chain(affine(), neuron(TernaryLeaky), affine(), neuron())
        found = [said for said in place(network, chip).violations if said.rule != "precision"]
        assert [said.rule for said in found] == broken
        assert all((said.node, said.value) == ("ternary_leaky1", "-1 to 1") for said in found)

    def test_a_spike_is_one_message_whatever_it_is_worth(self):
        network = chain(affine(), neuron(TernaryLeaky), affine(), neuron())
        trace = _random_trace(network)
        traffic = place(network, "loihi2", trace.mask.shape[1], trace).traffic
        assert traffic.sent == np.count_nonzero(trace.spikes["ternary_leaky1"]) / len(trace.mask)

    @pytest.mark.parametrize("between", [(), (Pooling((1, 2, 2), (1, 1), (1, 1), (0, 0), mean=False),)])
    @pytest.mark.parametrize("kind", [TernaryLeaky, CountingLeaky])
    def test_what_it_sends_is_counted_by_how_much_it_is_worth(self, kind, between, counted_in):
        """Behind a pool of single numbers, which passes them on, as behind the neuron itself."""
        first = neuron(kind)
        network = chain(affine(), first, *between, Affine(np.ones((3, 4))), neuron(features=3))
        mask = np.arange(3) < np.array([[3], [2]])
        trace = _random_trace(network, mask)
        (sent,) = [values[:, mask].astype(int) for name, values in trace.spikes.items() if name.startswith(first.name)]
        size = np.abs(sent)
        assert (sent < 0).any() == (kind is TernaryLeaky)
        name = f"affine{2 + len(between)}"
        for where in (trace, replace(trace, spikes={k: v.astype(np.int64) for k, v in trace.spikes.items()})):
            counted = count_operations(where, network).nodes[name].real
            assert counted["ac_binary"] == 3 * (size == 1).sum()
            assert counted.get("ac_graded", 0) == 3 * (size > 1).sum()
            assert counted.get("ac_graded_additions", 0) == 3 * size[size > 1].sum()
            assert counted["weight_read"] == 3 * (size > 0).sum()

    def test_nor_is_it_judged_by_the_bounds_of_zeros_and_ones(self):
        network = chain(affine(), neuron(TernaryLeaky), affine(), neuron())
        with pytest.raises(UnsupportedOperatorError, match=r"ternary_leaky1: .*other spikes than 0 and 1"):
            list(audit(network, _random_trace(network)))


class TestOneRow:
    """A row is all that a target asks for."""

    @pytest.fixture
    def rows(self, monkeypatch) -> None:
        mixture = Programs(reads=(Dense(4), Dense(4), Dense(4)), indivisible=2, remedy="mix on the host")
        monkeypatch.setitem(PLACEMENT._rows, Mixture, lambda operator: mixture)
        monkeypatch.setitem(HEADS._rows, Mixture, lambda operator: Heads(2, (("q",), ("k",), ("v",)), ("attended",)))

    @pytest.fixture
    def mixed(self) -> Network:
        builder = NetworkBuilder("input", 4)
        for name in "qkv":
            builder.add(f"{name}_affine", affine(), "input")
            builder.add(name, neuron(), f"{name}_affine")
        builder.add("mixture", Mixture(4), ["q", "k", "v"])
        return builder.network("output", builder.add("attended", neuron(), "mixture"))

    def test_an_attention_of_three_sources_is_placed(self, rows, mixed):
        mapping = map_network(mixed, CHIPS["loihi2"])
        population = mapping.populations["mixture"]
        assert [projection.sources for projection in population.projections] == [("q",), ("k",), ("v",)]
        assert (population.kind, population.indivisible) == ("microcode", 2)
        assert [said.rule for said in place(mixed, "loihi2").violations] == ["precision"]
        (said,) = [said for said in place(mixed, "loihi1").violations if said.rule == "operators"]
        assert (said.node, said.value, said.remedy) == ("mixture", "mixture", "mix on the host")

    def test_its_heads_are_known(self, rows, mixed):
        trace = _random_trace(mixed)
        found = profile(trace, mixed, ("heads",))
        assert {name: list(node.fired_by_head) for name, node in found.nodes.items()} == {
            "q": ["q"],
            "k": ["k"],
            "v": ["v"],
            "attended": ["attended"],
        }
        rates = found.nodes["k"].firing_rate_by_head["k"]
        assert rates == pytest.approx([trace.spikes["k"][..., part].mean() for part in (slice(0, 2), slice(2, 4))])


def _random_trace(network: Network, mask: np.ndarray | None = None) -> Trace:
    """Return random spikes of every neuron, each within its range, of two sentences of three tokens."""
    rng, mask = np.random.default_rng(3), np.ones((2, 3), bool) if mask is None else mask
    spikes = {network.input_name: rng.integers(0, 2, (4, 2, 3, network.input_features)).astype(np.uint8)}
    for node in network.spiking_nodes:
        low, high = node.operator.traits.spike_range
        drawn = rng.integers(low, high + 1, (4, 2, 3, node.operator.out_features))
        spikes[node.name] = (drawn * mask[..., None]).astype(spike_type(low, high))
    return Trace(spikes, np.zeros((2, 0)), mask, metadata={"precision": "float64"})
