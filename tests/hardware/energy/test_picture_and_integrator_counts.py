"""Counts of convolutions, pools, delays and integrators: in plain loops over every spike and weight, and by hand."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import nir
import numpy as np
import pytest

from export import parse_graph
from export.errors import UnsupportedOperatorError
from export.network import Network, NetworkBuilder
from export.operators import (
    Affine,
    Convolution,
    Delay,
    Flatten,
    IntegerCurrentNeuron,
    LeakyIntegrateAndFire,
    LeakyIntegrator,
    Operator,
    Pooling,
    ResistiveNeuron,
    Scale,
    all_cases,
)
from export.token_encoding import TokenEncoding
from hardware import count_operations, estimate_energy, profile, run
from hardware.energy import OperationCounts
from hardware.energy.baselines import QuantizedTwin
from hardware.energy.comparison import compare_energy, energy_by_component
from hardware.traces.trace import Trace

pytestmark = pytest.mark.usefixtures("counted_in")

DT = 1e-3


def _neurons(features: int) -> LeakyIntegrateAndFire:
    return LeakyIntegrateAndFire(np.full(features, 0.9), np.full(features, 2.0), np.ones(features), "zero")


def _behind(*operators: Operator) -> Network:
    """Return a chain of operators that ends in neurons; its nodes are ``node0``, ``node1``, …, ``fire``."""
    builder = NetworkBuilder("input", operators[0].in_features)
    last = "input"
    for index, operator in enumerate(operators):
        last = builder.add(f"node{index}", operator, last)
    if not operators[-1].spikes:
        last = builder.add("fire", _neurons(operators[-1].out_features), last)
    return builder.network("output", last)


def _counted(network: Network, values: np.ndarray, shown: bool = True) -> OperationCounts:
    """Count made-up neurons that never fire, on input `values` ``(T, B, N, D)`` that the trace holds or does not."""
    spikes = {
        node.name: np.zeros((*values.shape[:3], node.operator.out_features), np.uint8) for node in network.spiking_nodes
    }
    if shown:
        spikes = {"input": values, **spikes}
    return count_operations(Trace(spikes, np.zeros((values.shape[1], 1)), np.ones(values.shape[1:3], bool)), network)


def _convolution(size: tuple[int, ...], weight: tuple[int, ...], **changes: Any) -> Convolution:
    axes = len(size)
    rest = {"stride": (1,) * axes, "padding": ((0, 0),) * axes, "dilation": (1,) * axes, "groups": 1, **changes}
    bias = rest.pop("bias", np.zeros(weight[0]))
    return Convolution(size, np.ones(weight), bias, **rest)


CONVOLUTIONS = {
    "line": _convolution((7,), (4, 2, 3)),
    "line, strided and padded": _convolution((9,), (4, 2, 3), stride=(2,), padding=((1, 1),)),
    "line, dilated": _convolution((8,), (3, 1, 3), dilation=(3,), padding=((2, 2),)),
    "stride beyond the kernel": _convolution((9,), (2, 1, 2), stride=(4,)),
    "picture": _convolution((5, 4), (3, 2, 3, 2)),
    "picture, same padding": _convolution((4, 5), (2, 1, 2, 3), padding=((0, 1), (1, 1))),
    "depthwise": _convolution((4, 4), (6, 1, 3, 3), groups=3, padding=((1, 1), (1, 1))),
    "everything": _convolution(
        (7, 6), (4, 2, 3, 2), stride=(2, 1), padding=((1, 1), (2, 2)), dilation=(2, 3), groups=2
    ),
}


def _weights_met(conv: Convolution, values: np.ndarray) -> Counter[str]:
    """Visit every output and every weight of it, and count those that meet a value within the input."""
    found: Counter[str] = Counter()
    outputs, per_group = conv.weight.shape[:2]
    spans = [
        (length + before + behind - gap * (taps - 1) - 1) // hop + 1
        for length, (before, behind), gap, taps, hop in zip(
            conv.size, conv.padding, conv.dilation, conv.weight.shape[2:], conv.stride, strict=True
        )
    ]
    for row in values.reshape(-1, conv.weight.shape[1] * conv.groups, *conv.size):
        for o, place in itertools.product(range(outputs), itertools.product(*map(range, spans))):
            first = o // (outputs // conv.groups) * per_group
            for c, tap in itertools.product(range(per_group), itertools.product(*map(range, conv.weight.shape[2:]))):
                at = [
                    hop * p + gap * k - before
                    for hop, p, gap, k, (before, _) in zip(
                        conv.stride, place, conv.dilation, tap, conv.padding, strict=True
                    )
                ]
                if not all(0 <= a < length for a, length in zip(at, conv.size, strict=True)):
                    continue
                found["dense_mac"] += 1
                value = int(row[(first + c, *at)])
                if value:
                    found["weight_read"] += 1
                    found["ac_binary" if value == 1 else "ac_graded"] += 1
                    found["ac_graded_additions"] += value if value > 1 else 0
    return found


@pytest.mark.parametrize("highest", [1, 3], ids=["spikes", "counts"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_every_spike_meets_every_weight_whose_window_holds_it(name: str, highest: int) -> None:
    conv = CONVOLUTIONS[name]
    rng = np.random.default_rng(0)
    shape = (2, 2, 1, conv.in_features)
    values = (rng.integers(1, highest + 1, shape) * (rng.random(shape) < 0.4)).astype(np.uint8)
    found = _counted(_behind(conv), values).nodes["node0"].real
    expected = dict(_weights_met(conv, values))
    expected |= {
        "input_element": values.size,
        "input_event": int(np.count_nonzero(values)),
        "input_value": int(values.sum(dtype=int)),
    }
    assert found == {kind: count for kind, count in expected.items() if count}


def test_a_convolution_by_hand() -> None:
    """Four places, kernel 3, padding 1: windows are [. 0 1] [0 1 2] [1 2 3] [2 3 .], for 2 channels out, one biased."""
    conv = _convolution((4,), (2, 1, 3), padding=((1, 1),), bias=np.array([0.5, 0.0]))
    # place 0 lies in 2 windows, 1 and 2 in 3, 3 in 2; times 2 channels. Spikes at 0 and 2: (2 + 3) 2 = 10 accumulates.
    # All places: (2 + 3 + 3 + 2) 2 = 20. The biased channel has 4 outputs.
    values = np.array([1, 0, 1, 0], np.uint8).reshape(1, 1, 1, 4)
    assert _counted(_behind(conv), values).nodes["node0"].real == {
        "ac_binary": 10,
        "weight_read": 10,
        "addition": 4,
        "parameter_read": 4,
        "input_element": 4,
        "input_event": 2,
        "input_value": 2,
        "dense_mac": 20,
    }
    dense = _counted(_behind(conv), values, shown=False).nodes["node0"]
    assert dense.real == {
        "mac": 20,
        "addition": 4,
        "weight_read": 20,
        "parameter_read": 4,
        "activation_read": 4,
        "activation_write": 8,
        "dense_mac": 20,
    }
    assert dense.parameters == 2 * 3 + 2


def test_pools_by_hand() -> None:
    """A picture of 3 x 3, windows of 2 x 2 at stride 1: a corner lies in 1 window, an edge in 2, the middle in 4."""
    values = np.array([[1, 1, 0], [0, 3, 0], [0, 0, 0]], np.uint8).reshape(1, 1, 1, 9)
    for mean in (False, True):
        network = _behind(Pooling((1, 3, 3), (2, 2), (1, 1), (0, 0), mean))
        division = {"mac": 4} if mean else {}  # one for each of 4 windows
        # corner 1 + edge 2 + middle 4, whatever the value; dense: 4 windows of 4 places
        assert _counted(network, values).nodes["node0"].real == {**division, "addition": 7}
        assert _counted(network, values, shown=False).nodes["node0"].real == {
            **division,
            "addition": 16,
            "activation_read": 9,
            "activation_write": 4,
        }


def test_padding_of_a_pool_is_never_added() -> None:
    """2 x 2, windows of 2 x 2 at stride 2 with a padding of 1: each of 4 windows holds one place of the picture."""
    network = _behind(Pooling((1, 2, 2), (2, 2), (2, 2), (1, 1), False))
    assert _counted(network, np.ones((3, 1, 1, 4), np.uint8)).nodes["node0"].real == {"addition": 12}  # 4, 3 steps


def test_what_passes_spikes_on_keeps_them_sparse() -> None:
    """Spikes through a pool, a delay and a flatten into two outputs."""
    pool, delay = Pooling((1, 2, 4), (2, 2), (2, 2), (0, 0), False), Delay(np.array([1, 0]))
    network = _behind(pool, delay, Flatten((1, 1, 2)), Affine(np.ones((2, 2))))
    values = np.zeros((2, 1, 1, 8), np.uint8)
    values[0, 0, 0, [0, 1, 7]] = 1  # step 0: the pool sends 2 and 1; the 2 arrives at step 1, the 1 at once
    values[1, 0, 0, 4] = 1  # step 1: the pool sends 1 and 0; the 1 would arrive at step 2, which does not come
    counts = _counted(network, values)
    assert counts.nodes["node0"].real == {"addition": 4}
    assert counts.nodes["node1"].real == {"state_read": 2, "state_write": 2}  # one delayed feature, two steps
    assert counts.nodes["node2"].real == {}
    assert counts.nodes["node3"].real == {
        "ac_binary": 2,
        "ac_graded": 2,
        "ac_graded_additions": 4,
        "weight_read": 4,
        "input_element": 4,
        "input_event": 2,
        "input_value": 3,
        "dense_mac": 8,
    }


def test_neurons_with_a_current_have_two_states() -> None:
    """Three features, two steps, two samples: 12 updates of each state."""
    three = np.ones(3)
    simple = ResistiveNeuron(2 * three, 3 * three, np.array([0.0, 0.5, 0.0]), three, 0 * three)
    cuba = ResistiveNeuron(2 * three, 2 * three, 0 * three, three, 0 * three, np.array([1.0, 2.0, 4.0]), three)
    values = np.zeros((2, 2, 1, 3), np.uint8)
    # gains of 3 / 2; one of three features rests elsewhere than at 0: 4 additions
    assert _counted(_behind(simple), values).nodes["node0"].real == {
        "mac": 12,
        "addition": 4,
        "membrane_update": 12,
        "membrane_leak": 12,
        "comparison": 12,
        "parameter_read": 4,
        "state_read": 12,
        "state_write": 12,
    }
    # the potential's gain is 2 / 2; the current's 1, 1/2, 1/4, and one with tau_syn = 1 keeps nothing: 2 x 4 = 8
    assert _counted(_behind(cuba), values).nodes["node0"].real == {
        "mac": 8,
        "membrane_update": 12 + 8,
        "membrane_leak": 12 + 8,
        "comparison": 12,
        "state_read": 12 + 8,
        "state_write": 12 + 8,
    }


def test_neurons_of_whole_numbers_with_a_current() -> None:
    """Of two features one keeps its current (4096 keeps nothing), one leaks, one has a bias; a step, one spike."""
    neuron = IntegerCurrentNeuron(
        threshold=np.array([5, 5]),
        current_decay=np.array([4096, 1024]),
        decay=np.array([0, 100]),
        bias_mantissa=np.array([3, 0]),
        bias_exponent=np.array([0, 0]),
        unit=np.ones(2),
    )
    trace = Trace({"node0": np.array([1, 0], np.uint8).reshape(1, 1, 1, 2)}, np.zeros((1, 2)), np.ones((1, 1), bool))
    assert count_operations(trace, _behind(neuron)).nodes["node0"].real == {
        "addition": 1,
        "membrane_update": 3,
        "membrane_leak": 2,
        "comparison": 2,
        "reset": 1,
        "spike": 1,
        "parameter_read": 1,
        "state_read": 3,
        "state_write": 3,
    }


def test_integrators_and_factors() -> None:
    """Two features, three steps."""
    values = np.array([1, 0, 2, 1, 0, 0], np.uint8).reshape(3, 1, 1, 2)
    leaky = LeakyIntegrator(np.array([4.0, 2.0]), np.array([4.0, 1.0]), np.zeros(2))  # gains 1 and 1/2
    each = {"membrane_update": 6, "state_read": 6, "state_write": 6}
    assert _counted(_behind(leaky), values).nodes["node0"].real == {**each, "mac": 3, "membrane_leak": 6}
    assert _counted(_behind(LeakyIntegrator(None, np.ones(2), np.zeros(2))), values).nodes["node0"].real == each
    scaled = _counted(_behind(Scale(np.array([2.0, 3.0]))), values).nodes["node0"].real
    assert (scaled["ac_binary"], scaled["ac_graded"], scaled["ac_graded_additions"]) == (2, 1, 2)
    assert _counted(_behind(Scale(np.ones(2))), values, shown=False).nodes["node0"].real["mac"] == 6


def _recurrent_graph_of_pictures() -> nir.NIRGraph:
    """Return pictures, a pool, a flatten, and a recurrent layer with synaptic currents, with what files leave out."""
    rng = np.random.default_rng(1)

    def lif() -> nir.LIF:
        values = {"tau": 10 * DT, "r": 10.0, "v_leak": 0.0, "v_threshold": 0.5, "v_reset": 0.0}
        return nir.LIF(**{key: np.full((), value) for key, value in values.items()})

    two = np.ones(2)
    nodes = {
        "input": nir.Input({"input": np.array([1, 4, 4])}),
        "conv": nir.Conv2d(None, rng.random((2, 1, 3, 3)), (1, 1), (1, 1), 1, 1, np.zeros(2)),
        "first": lif(),
        "pool": nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])),
        "flat": nir.Flatten(None, 0, -1),
        "linear": nir.Linear(0.1 * rng.random((2, 8))),
        "second": nir.CubaLIF(5 * DT * two, 10 * DT * two, 10 * two, 0 * two, 0.5 * two, 0 * two, 5 * two),
        "again": nir.Linear(-np.ones((2, 2))),
        "output": nir.Output({"output": np.array([2])}),
    }
    path = ["input", "conv", "first", "pool", "flat", "linear", "second", "output"]
    return nir.NIRGraph(nodes, [*itertools.pairwise(path), ("second", "again"), ("again", "second")], type_check=False)


def test_a_recurrent_graph_of_pictures_is_profiled_and_counted() -> None:
    network = parse_graph(_recurrent_graph_of_pictures(), DT)
    trace = run(network, (np.random.default_rng(2).random((20, 2, 1, 4, 4)) < 0.3).astype(np.float64))
    first, second = trace.spikes["first"], trace.spikes["second"]
    assert 0 < first.mean() < 1
    assert 0 < second.mean() < 1
    rates = profile(trace, network).nodes
    assert rates["first"].firing_rate == pytest.approx(first.mean())
    assert rates["second"].firing_rate == pytest.approx(second.mean())
    counts = count_operations(trace, network)
    # windows of 2 x 2 at stride 2 hold each spike once; what a window sums up meets two weights
    sums = first.reshape(20, 2, 2, 2, 2, 2, 2).sum((4, 6))
    assert counts.nodes["pool"].real == {"addition": int(first.sum())}
    assert counts.nodes["linear"].real["weight_read"] == 2 * np.count_nonzero(sums)
    assert counts.nodes["linear"].real["input_value"] == first.sum()
    assert counts.nodes["again"].real["ac_binary"] == 2 * second[:-1].sum()  # those of the last step arrive nowhere
    assert counts.nodes["second"].real["membrane_update"] == 2 * 20 * 2 * 2
    assert counts.depth == 2
    assert estimate_energy(counts, model="horowitz-int8").energy_mj > 0


# ---------------------------------------------------------------------------------------------------------------------
# the dense twin, and what energy models make of such graphs


def _picture_network(padding: int) -> Network:
    around = ((padding, padding),) * 2
    conv = _convolution((5, 5), (3, 2, 3, 3), padding=around, bias=np.array([1.0, 0.0, 2.0]))
    pool = Pooling(conv.out_shape, (2, 2), (1, 1), (0, 0), True)
    flat = Flatten(pool.out_shape)
    builder = NetworkBuilder("input", conv.in_features)
    fired = builder.add("fire", _neurons(conv.out_features), builder.add("conv", conv, "input"))
    last = builder.add("flat", flat, builder.add("pool", pool, fired))
    integrator = LeakyIntegrator(np.full(4, 2.0), np.ones(4), np.zeros(4))
    last = builder.add("linear", Affine(np.ones((4, flat.out_features))), last)
    return builder.network("output", builder.add("read_out", integrator, last))


def test_the_twin_of_pictures_is_what_torch_counts() -> None:
    twin = QuantizedTwin(_picture_network(0), 4)
    # 3 x 3 outputs of 3 channels read 2 x 3 x 3 numbers; 2 x 2 windows at stride 1 make 3 x 2 x 2 of them
    assert twin.macs(1) == 9 * 3 * 18 + 12 * 4 == twin.library_macs(1)


def test_the_twin_of_pictures_by_hand() -> None:
    """With a padding of 1: a corner lies in 4 windows, an edge in 6, the 9 within in 9, for 3 channels each of 2."""
    twin = QuantizedTwin(_picture_network(1), 4).count([1]).nodes
    products = 2 * 3 * (4 * 4 + 4 * 3 * 6 + 9 * 9)
    assert twin["conv"].real == {
        "mac": products,
        "dense_mac": products,
        "weight_read": products,
        "activation_read": 50,
        "activation_write": 75,
        "addition": 2 * 25,  # of 3 channels 2 have a bias
        "parameter_read": 2 * 25,
    }
    # 4 x 4 windows of 4 places in 3 channels, each divided once
    assert twin["pool"].real == {"addition": 192, "mac": 48, "activation_read": 75, "activation_write": 48}
    assert "flat" not in twin
    assert (twin["fire"].operator, twin["fire"].real["mac"]) == ("quantizer", 75)
    assert twin["read_out"].real == {"mac": 4, "activation_read": 4, "activation_write": 4}


@pytest.mark.parametrize("model", ["paper", "horowitz-int8", "loihi1"])
def test_what_needs_its_steps_has_no_twin(model: str) -> None:
    network = parse_graph(_recurrent_graph_of_pictures(), DT)
    trace = run(network, np.ones((4, 2, 1, 4, 4)))
    twin = QuantizedTwin(network, 4)
    with pytest.raises(UnsupportedOperatorError, match=r"second_before.*cannot become one"):
        twin.macs(1)
    found = compare_energy(count_operations(trace, network), twin, [1, 1], model)
    assert (found.baseline_estimate, found.ratio) == (None, None)
    assert "T steps cannot become one" in found.remark


def test_synapses_on_spikes_that_were_fed_are_on_the_chip() -> None:
    """Without them in the trace the host computes the first layer; with them each meeting costs 23.6 pJ."""
    network = _picture_network(1)
    values = (np.random.default_rng(0).random((6, 2, 1, 50)) < 0.3).astype(np.uint8)
    blind = estimate_energy(_counted(network, values, shown=False), model="loihi1")
    assert "synaptic operations" not in blind.by_kind
    counts = _counted(network, values)
    met = _weights_met(network.nodes[0].operator, values)["weight_read"]  # type: ignore[arg-type]
    assert estimate_energy(counts, model="loihi1").by_kind["synaptic operations"] == pytest.approx(
        23.6e-9 * met / counts.sentences
    )
    assert estimate_energy(counts, model="paper").energy_mj > 0
    assert energy_by_component(estimate_energy(counts, model="horowitz-fp32"), counts)["embedding"] == 0


@pytest.mark.parametrize(
    "case", [case for case in all_cases() if case.operator.name != "token_mean"], ids=lambda case: case.title
)
def test_every_operator_has_its_counts(case: Any) -> None:
    network = _behind(case.operator)
    count_operations(run(network, np.ones((2, 1, 1, case.operator.in_features))), network)


@pytest.mark.parametrize("remembers", [True, False])
def test_words_never_change_but_what_remembers_sends_something_new_at_every_step(remembers: bool) -> None:
    """An embedding of 3 words, something between, and a map of 2 x 4 in front of the neurons; 5 steps, 2 tokens."""
    builder = NetworkBuilder("input", 3)
    last = builder.add("embedding", Affine(np.ones((2, 3))), "input")
    between = LeakyIntegrator(np.full(2, 2.0), np.ones(2), np.zeros(2)) if remembers else Flatten((2,))
    last = builder.add("map", Affine(np.ones((4, 2))), builder.add("between", between, last))
    network = builder.network("output", builder.add("fire", _neurons(4), last), token_encoding=TokenEncoding(3, 0))
    trace = Trace({"fire": np.zeros((5, 1, 2, 4), np.uint8)}, np.zeros((1, 1)), np.ones((1, 2), bool))
    found = count_operations(trace, network).nodes
    assert found["embedding"].real["embedding_read"] == 2 * 2
    assert found["map"].real["mac"] == (5 if remembers else 1) * 2 * 8
