"""The promise of the audit: what rounding can do is possible, what it cannot is impossible, and both are told apart.

Traces of random graphs in float32 and float64, from runners and from hypothesis; faults of a size that is known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from export.errors import UnsupportedOperatorError
from export.network import Network, NetworkBuilder, Node
from export.operators import Affine, IntegerAffine, LeakyIntegrateAndFire, Operator, Scale
from hardware import Trace, run
from hardware.equivalence.attribution import BIAS, RESET, contributions
from hardware.equivalence.audit import audit
from hardware.equivalence.explanation import Explanation, explain, merge_explanations
from hardware.equivalence.subgraphs import subgraphs_of, subgraphs_with_inputs
from hardware.errors import RunnerError, TraceMismatchError

NetworkMaker = Callable[..., Network]
LENGTHS = (9, 5, 1)
fixtures = {"suppress_health_check": [HealthCheck.function_scoped_fixture]}


def _sentences(seed: int = 0, lengths: tuple[int, ...] = LENGTHS) -> tuple[np.ndarray, np.ndarray]:
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    ids = np.random.default_rng(seed).integers(1, 20, mask.shape)
    return np.where(mask, ids, 0), mask


def _run(network: Network, precision: str = "float64", seed: int = 0) -> Trace:
    ids, mask = _sentences(seed)
    return run(network, ids, mask, precision=precision, record_membrane_potentials=True)


def _shuffled(network: Network, seed: int) -> tuple[Network, Callable[[Trace], Trace]]:
    """Return a network whose hidden features stand in another order, and how to put its trace back.

    It means the same to the last spike in exact numbers, and adds in another order in rounded ones.
    """
    rng = np.random.default_rng(seed)
    order = {node.name: rng.permutation(node.operator.out_features) for node in network.nodes}
    hidden = [n.name for n in network.nodes if n.name.endswith("intermediate_neuron")]
    nodes = {node.name: node for node in network.nodes}
    changed = dict(nodes)
    for name in hidden:
        affine_name, norm_name = name.replace("_neuron", "_affine"), name.replace("_neuron", "_norm")
        output_name = name.replace("intermediate_neuron", "output_affine")
        by = order[name]
        affine, norm, out = (nodes[n].operator for n in (affine_name, norm_name, output_name))
        changed[affine_name] = replace_operator(nodes[affine_name], Affine(affine.weight[by], affine.bias[by]))
        changed[norm_name] = replace_operator(
            nodes[norm_name], replace(norm, weight=norm.weight[by], bias=norm.bias[by])
        )
        changed[output_name] = replace_operator(nodes[output_name], Affine(out.weight[:, by], out.bias))

    def back(trace: Trace) -> Trace:
        def sort(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {n: v[..., np.argsort(order[n])] if n in hidden else v for n, v in values.items()}

        return replace(trace, spikes=sort(trace.spikes), membrane_potentials=sort(trace.membrane_potentials))

    return replace(network, nodes=tuple(changed[node.name] for node in network.nodes)), back


def replace_operator(node: Node, operator: object) -> Node:
    return Node(node.name, operator, node.sources)  # type: ignore[arg-type]


@settings(max_examples=25, deadline=None, **fixtures)
@given(seed=st.integers(0, 10_000), precision=st.sampled_from(["float32", "float64"]))
def test_what_another_order_of_additions_does_is_always_explained(
    make_network: NetworkMaker, seed: int, precision: str
) -> None:
    network = make_network(seed, blocks=2, hidden=48)
    other, back = _shuffled(network, seed)
    a, b = _run(network, precision, seed), back(_run(other, precision, seed))
    found = explain(network, a, b)
    assert found.explained, found.first_unexplained
    assert found.unexplained == 0
    assert found.different == sum(int((a.spikes[n] != b.spikes[n]).sum()) for n in a.spikes)
    assert found.rounding + found.propagated == found.different


def test_another_order_does_move_potentials(make_network: NetworkMaker) -> None:
    """Without this the test above would hold for two equal runs."""
    network = make_network(1, blocks=2, hidden=48)
    other, back = _shuffled(network, 1)
    a, b = _run(network, "float32"), back(_run(other, "float32"))
    assert any((a.membrane_potentials[n] != b.membrane_potentials[n]).any() for n in a.spikes)


@settings(max_examples=25, deadline=None, **fixtures)
@given(seed=st.integers(0, 10_000), precision=st.sampled_from(["float32", "float64"]), data=st.data())
def test_a_potential_moved_beyond_its_bound_is_never_explained(
    make_network: NetworkMaker, seed: int, precision: str, data: st.DataObject
) -> None:
    network = make_network(seed)
    trace = _run(network, precision, seed)
    parts = [p for p in audit(network, trace) if p.impossible is not None]
    part = data.draw(st.sampled_from(parts))
    places = np.argwhere(trace.mask)
    sample, token = places[data.draw(st.integers(0, len(places) - 1))]
    step = data.draw(st.integers(0, part.values.shape[0] - 1))
    place = (step, int(sample), int(token), data.draw(st.integers(0, part.values.shape[-1] - 1)))
    by = 1.5 * part.bounds[place] + 4 * np.finfo(precision).eps * max(1.0, abs(float(part.values[place])))
    if not np.isfinite(by):
        return
    moved = dict(trace.membrane_potentials)
    moved[part.name] = moved[part.name].copy()
    moved[part.name][place] += data.draw(st.sampled_from([-1, 1])) * by
    found = explain(network, trace, replace(trace, membrane_potentials=moved))
    first = found.first_unexplained
    assert not found.explained
    assert first is not None
    assert (first.run, first.node, first.quantity) == ("b", part.name, "membrane_potential")
    assert (first.time_step, first.sample, first.token, first.feature) == place


@settings(max_examples=25, deadline=None, **fixtures)
@given(seed=st.integers(0, 10_000), data=st.data())
def test_a_spike_flipped_far_from_its_threshold_is_impossible(
    make_network: NetworkMaker, seed: int, data: st.DataObject
) -> None:
    network = make_network(seed)
    trace = _run(network, "float32", seed)
    name = data.draw(st.sampled_from(list(trace.spikes)))
    part = next(p for p in audit(network, trace) if p.name == name)
    far = np.abs(trace.membrane_potentials[name] - trace.thresholds[name]) > part.bounds
    places = np.argwhere(far & trace.mask[None, :, :, None])
    if not len(places):
        return
    place = tuple(int(i) for i in places[data.draw(st.integers(0, len(places) - 1))])
    spikes = {n: v.copy() for n, v in trace.spikes.items()}
    spikes[name][place] ^= 1
    broken = replace(trace, spikes=spikes, membrane_potentials={})
    first = explain(network, trace, broken).first_unexplained
    assert first is not None
    assert (first.run, first.quantity, first.node) == ("b", "spike", name)
    assert (first.time_step, first.sample, first.token, first.feature) == place
    assert (first.expected > first.threshold) != bool(first.found)  # type: ignore[operator]


def _near_threshold(name: str = "n") -> tuple[Network, Trace]:
    """A sum of three equal weights that any order puts within rounding of the threshold, and its run."""
    weight = np.array([[0.1, 0.2, 0.7]], np.float32)  # 1 in exact numbers, not in every order in float32
    builder = NetworkBuilder("in", 3)
    last = builder.add("affine", Affine(weight), "in")
    ones = np.ones(1)
    builder.add(name, LeakyIntegrateAndFire(ones, ones, ones, "subtract", fire_on_equal=True), last)
    network = builder.network("out", name)
    inputs = np.ones((1, 1, 1, 3))
    trace = run(network, inputs, precision="float32", record_membrane_potentials=True)
    return network, replace(trace, spikes={"in": inputs.astype(np.uint8), **trace.spikes})


def test_a_flip_within_rounding_of_the_threshold_is_explained_and_called_rounding() -> None:
    network, trace = _near_threshold()
    flipped = replace(trace, spikes={**trace.spikes, "n": 1 - trace.spikes["n"]}, membrane_potentials={})
    found = explain(network, trace, flipped)
    assert found.explained
    assert (found.different, found.rounding, found.propagated) == (1, 1, 0)
    assert found.at_fault == []


def test_a_tie_leaves_no_freedom(make_network: NetworkMaker) -> None:
    """Attention on spikes is exact, so >= in place of > is found, however near the threshold."""
    for seed in range(20):
        network = make_network(seed)
        name = "block00_attention_neuron"
        neuron = next(n.operator for n in network.nodes if n.name == name)
        other = replace(neuron, fire_on_equal=not neuron.fire_on_equal)  # type: ignore[type-var]
        faulty = replace(
            network, nodes=tuple(replace_operator(n, other) if n.name == name else n for n in network.nodes)
        )
        a, b = _run(network, "float32"), _run(faulty, "float32")
        if (a.spikes[name] != b.spikes[name]).any():
            found = explain(network, a, b)
            assert found.first_unexplained is not None
            assert (found.first_unexplained.node, found.first_unexplained.run) == (name, "b")
            return
    pytest.fail("no seed gave a tie")


def test_both_runs_may_be_wrong_alike(make_network: NetworkMaker) -> None:
    network = make_network(0)
    affine = next(n for n in network.nodes if n.name == "block00_output_affine")
    wrong = Affine(affine.operator.weight + 0.1, affine.operator.bias)  # type: ignore[attr-defined]
    faulty = replace(network, nodes=tuple(replace_operator(n, wrong) if n is affine else n for n in network.nodes))
    a, b = _run(faulty), _run(faulty)
    found = explain(network, a, b)
    assert (found.different, found.explained, found.at_fault) == (0, False, ["a", "b"])
    assert found.first_unexplained is not None
    assert found.first_unexplained.node == "block00_output_neuron"


def test_outputs_are_held_against_their_bound(make_network: NetworkMaker) -> None:
    network = make_network(0)
    trace = _run(network, "float32")
    assert trace.outputs is not None
    moved = trace.outputs.copy()
    moved[2, 1, 0] += 0.5
    first = explain(network, trace, replace(trace, outputs=moved)).first_unexplained
    assert first is not None
    assert (first.quantity, first.node, first.time_step, first.sample, first.feature) == ("output", "output", 2, 1, 0)


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("by", [1e-3, np.nan, np.inf])
@pytest.mark.parametrize("with_outputs", [True, False])
def test_logits_are_held_against_their_bound(
    by: float, precision: str, with_outputs: bool, make_network: NetworkMaker
) -> None:
    """Whether or not each step's output was recorded: a chip may say no more than its answer."""
    network = make_network(0)
    trace = _run(network, precision)
    moved = trace.logits.copy()
    moved[1, 0] += by
    outputs = trace.outputs if with_outputs else None
    assert explain(network, trace, replace(trace, outputs=outputs)).explained
    found = explain(network, trace, replace(trace, logits=moved, outputs=outputs))
    assert (found.explained, found.at_fault) == (False, ["b"])
    assert found.per_node[-1].node == "output"
    assert found.per_node[-1].outside_b == 1
    first = found.first_unexplained
    assert first is not None
    assert (first.quantity, first.node, first.sample, first.feature) == ("logits", "output", 1, 0)


def test_nodes_that_were_not_recorded_take_their_spikes_from_the_reference(make_network: NetworkMaker) -> None:
    network = make_network(4)
    trace = _run(network)
    names = ["block00_qkv_neuron", "block00_output_neuron"]
    partial = trace.select(names, logits=False)
    found = explain(network, trace, partial)
    assert [node.node for node in found.per_node if node.node != "output"] == names
    assert found.explained
    spikes = {**partial.spikes, names[1]: 1 - partial.spikes[names[1]]}
    broken = replace(partial, spikes={n: v * trace.mask[None, :, :, None] for n, v in spikes.items()})
    assert explain(network, trace, broken).first_unexplained.node == names[1]  # type: ignore[union-attr]


def test_explanations_of_batches_join(make_network: NetworkMaker) -> None:
    network = make_network(2)
    trace = _run(network)
    spikes = {n: v.copy() for n, v in trace.spikes.items()}
    spikes["block00_output_neuron"][0, 2, 0, 0] ^= 1
    spikes["embedding_neuron"][1, 1, 0, 0] ^= 1
    broken = replace(trace, spikes=spikes, membrane_potentials={})
    whole = explain(network, trace, broken)
    parts = [(explain(network, trace.rows(i, i + 1), broken.rows(i, i + 1)), i) for i in range(3)]
    joined = merge_explanations(parts)
    assert joined.first_unexplained == whole.first_unexplained
    for mine, other in zip(joined.per_node, whole.per_node, strict=True):
        assert (mine.different, mine.unexplained, mine.impossible_b) == (
            other.different,
            other.unexplained,
            other.impossible_b,
        )
    assert Explanation.from_dict(whole.to_dict()) == whole


@pytest.mark.parametrize("seed", range(6))
def test_contributions_add_up_to_the_potential(make_network: NetworkMaker, seed: int) -> None:
    network = make_network(seed, blocks=2)
    trace = _run(network, seed=seed)
    rng = np.random.default_rng(seed)
    for name, potentials in trace.membrane_potentials.items():
        for _ in range(6):
            step, sample = int(rng.integers(potentials.shape[0])), int(rng.integers(len(LENGTHS)))
            token, feature = int(rng.integers(LENGTHS[sample])), int(rng.integers(potentials.shape[-1]))
            found = contributions(network, trace, name, step, token, feature, sample)
            assert sum(entry.contribution for entry in found) == pytest.approx(
                potentials[step, sample, token, feature], abs=1e-12
            )
            sizes = [abs(entry.contribution) for entry in found]
            assert sizes == sorted(sizes, reverse=True)


def test_a_contribution_is_weight_times_spikes_from_a_neuron_that_fired() -> None:
    weight = np.array([[0.5, -0.25]])
    builder = NetworkBuilder("in", 2)
    last = builder.add("affine", Affine(weight, np.array([0.1])), "in")
    neuron = LeakyIntegrateAndFire(np.array([0.5]), np.ones(1), np.array([0.4]), "subtract")
    builder.add("n", neuron, last)
    network = builder.network("out", "n")
    inputs = np.array([[1, 0], [1, 1]], float).reshape(2, 1, 1, 2)
    trace = run(network, inputs)
    trace = replace(trace, spikes={"in": inputs.astype(np.uint8), **trace.spikes})
    found = {(c.source, c.feature): c for c in contributions(network, trace, "n", 1, 0, 0)}
    assert found["in", 0].contribution == pytest.approx(0.5 * 0.5 + 0.5)  # once leaked, once whole
    assert (found["in", 0].spikes, found["in", 0].weight) == (2, 0.5)
    assert found["in", 1].contribution == pytest.approx(-0.25)
    assert found[BIAS, None].contribution == pytest.approx(0.1 * 1.5)
    assert found[RESET, None].contribution == pytest.approx(-0.4)


def test_subgraphs_are_what_lies_between_spikes(make_network: NetworkMaker) -> None:
    network = make_network(0, blocks=1)
    parts = {part.name: part for part in subgraphs_of(network)}
    assert list(parts) == [node.name for node in network.spiking_nodes] + ["output"]
    assert [n.name for n in parts["block00_qkv_neuron"].nodes] == [
        "block00_qkv_affine",
        "block00_qkv_norm",
        "block00_qkv_neuron",
    ]
    assert [n.name for n in parts["output"].nodes] == ["final_norm", "token_mean", "classifier"]
    trace = _run(network)
    entering = {part.name: values for part, values in subgraphs_with_inputs(trace, network)}
    (stream,) = entering["block00_intermediate_neuron"].values()
    expected = trace.spikes["embedding_neuron"].astype(int) + trace.spikes["block00_projection_neuron"]
    np.testing.assert_array_equal(stream, expected)


def test_what_cannot_be_audited_says_why(make_network: NetworkMaker) -> None:
    network = make_network(0)
    trace = _run(network)
    with pytest.raises(TraceMismatchError, match="does not say its precision"):
        list(audit(network, replace(trace, metadata={})))
    with pytest.raises(RunnerError, match="precision 'integer'"):
        list(audit(network, trace, precision="integer"))
    with pytest.raises(TraceMismatchError, match="no spikes in the trace"):
        list(audit(network, trace.select(["embedding_neuron"])))


def test_contributions_through_a_recurrent_connection_add_up_too() -> None:
    """What a neuron sent in the step before enters it again."""
    rng = np.random.default_rng(7)
    builder = NetworkBuilder("in", 4)
    last = builder.add("affine", Affine(rng.normal(size=(3, 4))), "in")
    again = builder.add("again", Affine(rng.normal(size=(3, 3))), builder.previous_step("n", 3))
    neuron = LeakyIntegrateAndFire(np.full(3, 0.8), np.ones(3), np.full(3, 0.5), "subtract")
    builder.add("n", neuron, [last, again])
    network = builder.network("out", "n")
    inputs = (rng.random((10, 3, 1, 4)) < 0.7).astype(np.uint8)
    trace = run(network, inputs, record_membrane_potentials=True)
    trace = replace(trace, spikes={"in": inputs, **trace.spikes})
    assert all(found.impossible is None or not found.impossible.any() for found in audit(network, trace))
    recurrent = 0
    for step, sample, feature in np.ndindex(10, 3, 3):
        found = contributions(network, trace, "n", step, 0, feature, sample)
        expected = trace.membrane_potentials["n"][step, sample, 0, feature]
        assert sum(entry.contribution for entry in found) == pytest.approx(expected, abs=1e-12)
        recurrent += sum(entry.spikes for entry in found if entry.source == "n")
    assert recurrent > 20


@pytest.mark.parametrize(
    ("operator", "known"),
    [
        (Scale(np.ones(8)), "nobody has derived one yet"),
        (IntegerAffine(weight=np.eye(8, dtype=np.int8), unit=np.ones(8)), "whole numbers are not rounded"),
    ],
)
def test_operators_without_a_bound_are_refused_and_the_reason_said(
    make_network: NetworkMaker, operator: Operator, known: str
) -> None:
    network = make_network(0)
    name = "block00_output_norm"
    nodes = tuple(replace_operator(n, operator) if n.name == name else n for n in network.nodes)
    refusal = f"{name}: rounding bound cannot take {operator.name}: {known}"
    with pytest.raises(UnsupportedOperatorError, match=refusal):
        list(audit(replace(network, nodes=nodes), _run(network)))
    refusal = f"{name}: attribution cannot take {operator.name}: "
    with pytest.raises(UnsupportedOperatorError, match=refusal):
        contributions(replace(network, nodes=nodes), _run(network), "block00_output_neuron", 1, 0, 0)


def test_only_neurons_have_contributions(make_network: NetworkMaker) -> None:
    network = make_network(0)
    for node in ("block00_output_norm", "nothing"):
        with pytest.raises(KeyError, match=node):
            contributions(network, _run(network), node, 0, 0, 0)
