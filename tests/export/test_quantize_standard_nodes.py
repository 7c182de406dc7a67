"""The promise of graphs of other tools in whole numbers: quantized, they run alike everywhere and nearly as in float.

What the integer graph's file says is computed once more in torch int64, in ``tests/conftest.py``: no operator, no
network and no runner of ours takes part.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click.testing
import nir
import numpy as np
import pytest
from integer_equations import simulate

from export import GraphError, build_graph, parse_graph, quantize, quantize_with_report, read_nir, write_nir
from export.errors import ChipLimitError, UnsupportedOperatorError
from export.network import Network
from export.operators import Total
from export.passes.intervals import reachable_wraps, value_intervals
from hardware import count_operations, open_runner, profile, run
from spikebert.cli import main
from spikebert.errors import ConfigurationError

DT = 1e-3
STEPS = 20


def _chain(shape: tuple[int, ...], *nodes: nir.NIRNode, out: int) -> Network:
    named = {f"node{index}": node for index, node in enumerate(nodes)}
    named = {
        "input": nir.Input({"input": np.array(shape)}),
        **named,
        "output": nir.Output({"output": np.array([out])}),
    }
    return parse_graph(nir.NIRGraph(named, list(itertools.pairwise(named)), type_check=False), DT)


def _graph(shape: tuple[int, ...], nodes: dict[str, nir.NIRNode], *edges: str) -> Network:
    """Return a network with edges as `"a b c"`, a path; it leads from input to output."""
    ends = {"input": nir.Input({"input": np.array(shape)}), "output": nir.Output({"output": np.array([1])})}
    paths = [itertools.pairwise(path.split()) for path in edges]
    return parse_graph(nir.NIRGraph({**ends, **nodes}, list(itertools.chain(*paths)), type_check=False), DT)


def _cuba(width: int, **changes: Any) -> nir.CubaLIF:
    given = {
        "tau_syn": 4e-3,
        "tau_mem": 8e-3,
        "r": 2.0,
        "v_leak": 0.02,
        "v_threshold": 0.3,
        "v_reset": 0.0,
        "w_in": 3.0,
    }
    return nir.CubaLIF(**{key: np.full(width, value) for key, value in {**given, **changes}.items()})


def _lif(width: tuple[int, ...], **changes: Any) -> nir.LIF:
    given = {"tau": 10e-3, "r": 3.0, "v_leak": 0.05, "v_threshold": 0.4, "v_reset": 0.0}
    return nir.LIF(**{key: np.full(width, value) for key, value in {**given, **changes}.items()})


def _step_response() -> tuple[Network, tuple[int, ...]]:
    return _chain((1,), nir.Affine(np.array([[1.0]]), np.array([0.1])), _lif((1,)), out=1), (1,)


def _pictures() -> tuple[Network, tuple[int, ...]]:
    rng = np.random.default_rng(1)
    first = nir.Conv2d(
        None, rng.normal(0.2, 0.6, (4, 1, 3, 3)), (2, 1), (1, 0), (1, 2), groups=2, bias=rng.normal(0, 0.2, 4)
    )
    network = _chain(
        (2, 8, 8),
        first,
        nir.IF(r=np.full((4, 4, 4), 1 / DT), v_threshold=np.full((4, 4, 4), 1.5), v_reset=np.zeros((4, 4, 4))),
        nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([1, 1])),
        nir.Flatten(None, 0, -1),
        nir.Affine(rng.normal(0.1, 0.6, (5, 36)), rng.normal(0, 0.1, 5)),
        _lif((5,)),
        out=5,
    )
    return network, (2, 8, 8)


def _currents() -> tuple[Network, tuple[int, ...]]:
    rng = np.random.default_rng(2)
    network = _chain(
        (6,),
        nir.Linear(rng.normal(0.1, 0.5, (5, 6))),
        _cuba(5),
        nir.Delay(np.array([0.0, 1, 2, 3, 2]) * DT),
        nir.Scale(np.array([0.5, -0.5, 0.5, 0.5, -0.5])),
        nir.Linear(rng.normal(0.2, 0.5, (3, 5))),
        nir.LI(tau=np.full(3, 6e-3), r=np.full(3, 2.0), v_leak=np.full(3, 0.1)),
        out=3,
    )
    return network, (6,)


def _over_time() -> tuple[Network, tuple[int, ...]]:
    rng = np.random.default_rng(3)
    network = _chain(
        (1, 9),
        nir.Conv1d(None, rng.normal(0.2, 0.5, (3, 1, 3)), 1, "same", 1, groups=1, bias=np.full(3, 0.05)),
        _cuba((3, 9)),
        nir.Flatten(None, 0, -1),
        nir.I(r=np.full(27, 0.5 / DT)),
        nir.Threshold(np.full(27, 2.5)),
        out=27,
    )
    return network, (1, 9)


def _cell() -> tuple[Network, tuple[int, ...]]:
    """Neurons with a current that read their own spikes; their synapses inhibit, with a bias."""
    rng = np.random.default_rng(4)
    nodes = {
        "in": nir.Linear(rng.normal(0.3, 0.5, (6, 4))),
        "fire": _cuba(6, v_threshold=0.9),
        "again": nir.Affine(rng.normal(-0.3, 0.5, (6, 6)), rng.normal(0.1, 0.1, 6)),
        "out": nir.Linear(rng.normal(0, 0.5, (2, 6))),
    }
    return _graph((4,), nodes, "input in fire out output", "fire again fire"), (4,)


def _two_cells() -> tuple[Network, tuple[int, ...]]:
    """One reads itself up to three steps later still; the other the input too, and itself by way of two maps."""
    rng = np.random.default_rng(5)
    nodes = {
        "in": nir.Linear(rng.normal(0.3, 0.5, (5, 4))),
        "one": _lif((5,)),
        "late": nir.Delay(np.array([0.0, 1, 2, 3, 1]) * DT),
        "one_again": nir.Linear(rng.normal(-0.3, 0.5, (5, 5))),
        "skip": nir.Linear(rng.normal(0.1, 0.3, (3, 4))),
        "up": nir.Linear(rng.normal(0.2, 0.4, (3, 5))),
        "two": _lif((3,), v_leak=0.0),
        "two_down": nir.Linear(rng.normal(-0.2, 0.5, (2, 3))),
        "two_again": nir.Linear(rng.normal(0.4, 0.5, (3, 2))),
    }
    paths = ["input in one up two output", "one late one_again one", "input skip two", "two two_down two_again two"]
    return _graph((4,), nodes, *paths), (4,)


def _residuals() -> tuple[Network, tuple[int, ...]]:
    """Convolutions that are added, one in groups, of scaled channels; then maps that are, one behind neurons."""
    rng = np.random.default_rng(10)
    pictures, row = (2, 4, 4), (5,)
    channels = np.array([0.5, -1.5])[:, None, None] * np.ones(pictures)
    nodes = {
        "scale": nir.Scale(channels),
        "one": nir.Conv2d(None, rng.normal(-0.2, 0.6, (4, 2, 3, 3)), 1, 1, 1, groups=1, bias=rng.normal(0, 0.1, 4)),
        "two": nir.Conv2d(None, rng.normal(0.3, 0.6, (4, 1, 1, 1)), 1, 0, 1, groups=2, bias=rng.normal(0, 0.1, 4)),
        "fire": _lif((4, 4, 4)),
        "flat": nir.Flatten(None, 0, -1),
        "weigh": nir.Scale(np.linspace(0.25, 1, 64)),
        "map": nir.Affine(rng.normal(0.02, 0.2, (5, 64)), rng.normal(0, 0.1, 5)),
        "skip": nir.Linear(rng.normal(0.02, 0.2, (5, 64))),
        "skipped": _lif(row),
        "up": nir.Linear(rng.normal(0.1, 0.5, (5, 5))),
        "last": _lif(row, v_leak=0.0),
    }
    paths = ["input scale one fire flat weigh map last output", "scale two fire", "flat skip skipped up last"]
    return _graph(pictures, nodes, *paths), pictures


NETWORKS = {
    "step response": _step_response,
    "pictures": _pictures,
    "currents": _currents,
    "over time": _over_time,
    "cell": _cell,
    "two cells": _two_cells,
    "residuals": _residuals,
}


def _inputs(shape: tuple[int, ...], seed: int = 3) -> np.ndarray:
    return (np.random.default_rng(seed).random((STEPS, 4, *shape)) < 0.4).astype(np.int64)


@pytest.mark.parametrize("runner", ["reference", "integer", "onnx", pytest.param("lava", marks=pytest.mark.lava)])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("scale", ["per-tensor", "per-channel"])
def test_a_quantized_graph_runs_as_the_equations_say(name: str, scale: str, runner: str, tmp_path: Path) -> None:
    network, shape = NETWORKS[name]()
    graph = read_nir(write_nir(tmp_path / "integer.nir", quantize(network, _inputs(shape), scale=scale)))
    x = _inputs(shape, seed=4)
    expected = simulate(graph, x)
    options = {"granularity": "network"} if runner == "lava" else {}
    with open_runner(graph, runner, "integer", record_membrane_potentials=True, **options) as opened:
        trace = opened.run(x)
    assert set(trace.spikes) == {node.name for node in network.spiking_nodes}
    for spiking in trace.spikes:
        np.testing.assert_array_equal(trace.spikes[spiking], expected.spikes[spiking], err_msg=spiking)
        potentials = expected.potentials[spiking]
        np.testing.assert_array_equal(trace.membrane_potentials[spiking], potentials, err_msg=spiking)
    said = graph.nodes["output"].metadata
    totals = (expected.sent["output"].numpy() + said["bias"]) * float(said["unit"])
    np.testing.assert_array_equal(trace.outputs, totals)


@pytest.mark.parametrize("name", NETWORKS)
def test_whole_numbers_do_nearly_what_the_float_graph_does(name: str) -> None:
    network, shape = NETWORKS[name]()
    x = _inputs(shape, seed=5)
    graph, report = quantize_with_report(network, _inputs(shape))
    assert all(layer.agreement > 0.94 and layer.found is None for layer in report.layers), report.layers
    floats, integers = run(network, x), run(graph, x, runner="integer", precision="integer")
    for spiking, spikes in floats.spikes.items():
        assert 0.02 < spikes.mean() < 0.98, spiking
        assert np.mean(integers.spikes[spiking] == spikes) > 0.93, spiking


def test_a_readout_in_whole_numbers_shows_what_its_spikes_say_in_float() -> None:
    """The same spikes through the float graph's delay, scale, weights and integrator: only rounding is between them."""
    network, shape = _currents()
    shown = run(quantize(network, _inputs(shape)), _inputs(shape, seed=5), runner="integer", precision="integer")
    names = [node.name for node in network.nodes]
    behind = network.nodes[names.index("node1") + 1 :]
    first = replace(behind[0], sources=("input",))
    tail = replace(network, nodes=(first, *behind[1:]), input_features=5)
    expected = run(tail, shown.spikes["node1"].astype(np.float64)).outputs
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(shown.outputs, expected, rtol=0, atol=0.01)


@pytest.mark.parametrize("name", NETWORKS)
def test_quantized_graphs_are_profiled_and_counted(name: str) -> None:
    network, shape = NETWORKS[name]()
    graph = quantize(network, _inputs(shape))
    trace = run(graph, _inputs(shape), runner="integer", precision="integer")
    assert set(profile(trace, graph).nodes) == set(trace.spikes)
    counts = count_operations(trace, graph)
    assert counts.totals["spike"] == sum(int(spikes.sum()) for spikes in trace.spikes.values())
    remembers = [node for node in parse_graph(graph).nodes if node.operator.name in ("integer_integrator",)]
    for node in remembers:
        updates = STEPS * 4 * node.operator.out_features
        assert counts.nodes[node.name].real["membrane_update"] == updates
        assert "comparison" not in counts.nodes[node.name].real


def test_no_spikes_that_come_back_can_wrap_a_current_around() -> None:
    """The interval that `quantize` proves is what all inputs and all spikes there can be reach, no less and no more."""
    network, shape = _cell()
    integers = parse_graph(quantize(network, _inputs(shape)))
    (total,) = (node.name for node in integers.nodes if isinstance(node.operator, Total))
    by_name = {node.name: node.operator for node in integers.nodes}
    assert integers.input_limit == 1
    shown = np.array(list(itertools.product((-1, 0, 1), repeat=4)))
    fired = np.array(list(itertools.product((0, 1), repeat=6)))
    there = (shown @ by_name["in"].weight.T.astype(int))[:, None] + fired @ by_name["again"].weight.T.astype(int)
    there = there.reshape(-1, 6) + by_name["again"].bias
    interval = value_intervals(integers)[total]
    np.testing.assert_array_equal(interval.low, there.min(0))
    np.testing.assert_array_equal(interval.high, there.max(0))
    assert reachable_wraps(integers, value_intervals(integers)) == []


def test_the_scale_of_a_cell_grows_until_no_current_wraps_around() -> None:
    """2,000 inputs up to 9 and 400 spikes that come back: in 8 bits a weight they would be 2.3 million."""
    up, back = np.full((400, 2000), 0.5), np.full((400, 400), 0.5)
    nodes = {"in": nir.Linear(up), "fire": _cuba(400, v_threshold=30.0), "again": nir.Linear(back)}
    network = _graph((2000,), nodes, "input in fire output", "fire again fire")
    x = np.zeros((3, 1, 2000), np.int64)
    x[:, :, 0] = 9
    integers = parse_graph(quantize(network, x, clip=False))
    assert reachable_wraps(integers, value_intervals(integers)) == []
    trace = run(integers, np.full((3, 1, 2000), 9), runner="integer", precision="integer")
    assert trace.spikes["fire"][1:].all(), "everything that can come back does"
    assert trace.metadata["overflows"].get("fire", {}).get("wrapped_currents", 0) == 0


def test_a_cell_that_rounding_silences_is_repaired_in_its_cycle() -> None:
    """A weight that is never used takes the scale, most others vanish, and what comes back inhibits what is left."""
    step, rng = 2.0 / 127, np.random.default_rng(3)
    up = np.where(np.arange(400) < 360, 0.44, 2.0) * step + rng.normal(size=(20, 400)) * step / 99
    up[:, 0] = 2.0
    nodes = {"in": nir.Linear(up), "fire": _lif((20,)), "again": nir.Linear(-3 * step * np.ones((20, 20)))}
    network = _graph((400,), nodes, "input in fire output", "fire again fire")
    x = (rng.random((STEPS, 4, 400)) < 0.3).astype(np.int64)
    x[:, :, 0] = 0
    broken = quantize_with_report(network, x, clip=False, repair=False)[1].layers[0]
    graph, report = quantize_with_report(network, x, clip=False)
    (layer,) = report.repaired
    assert (broken.found, layer.found, layer.node) == ("silent", "silent", "fire")
    assert layer.threshold_factor < 1
    assert abs(layer.integer_rate - layer.float_rate) < abs(broken.integer_rate - broken.float_rate) / 2
    for found, quantized in ((layer, graph), (broken, quantize(network, x, clip=False, repair=False))):
        fires = run(quantized, x, runner="integer", precision="integer").firing_rate("fire")
        assert fires == pytest.approx(found.integer_rate), "the report tells of another run"
    assert run(network, x).firing_rate("fire") == pytest.approx(layer.float_rate, abs=1e-3)


def test_neurons_that_read_nothing_but_themselves() -> None:
    """A pacemaker beside what reads the input: nothing from outside says how many samples there are."""
    nodes = {
        "map": nir.Linear(np.eye(2)),
        "fire": _lif((2,)),
        "beat": _lif((2,), v_leak=0.0),
        "again": nir.Affine(-np.eye(2), np.array([0.3, 0.7])),
    }
    network = _graph((2,), nodes, "input map fire output", "again beat again", "beat output")
    x = _inputs((2,))
    graph = quantize(network, x)
    expected = simulate(graph, x).spikes["beat"]
    assert 0 < expected.double().mean() < 1
    for runner in ("reference", "integer", "onnx"):
        found = run(graph, x, runner=runner, precision="integer").spikes["beat"]
        np.testing.assert_array_equal(found, expected)


def test_padding_changes_nothing_in_a_cycle() -> None:
    network, _ = _cell()
    x = (np.random.default_rng(6).random((STEPS, 3, 4, 4)) < 0.4).astype(np.int64)
    mask = np.arange(4) < np.array([[4], [1], [2]])
    graph = quantize(network, (x, mask))
    whole, simulated = (
        run(graph, x, mask, runner=runner, precision="integer", record_membrane_potentials=True)
        for runner in ("reference", "integer")
    )
    np.testing.assert_array_equal(simulated.spikes["fire"], whole.spikes["fire"])
    real = np.broadcast_to(mask[None, :, :, None], simulated.membrane_potentials["fire"].shape)
    found, expected = (trace.membrane_potentials["fire"][real] for trace in (simulated, whole))
    np.testing.assert_array_equal(found, expected)
    alone = run(graph, x[:, 1:2, :1], runner="integer", precision="integer")
    np.testing.assert_array_equal(alone.spikes["fire"], simulated.spikes["fire"][:, 1:2, :1])


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([_cuba(2, v_reset=0.1)], "node1: neuron 0 resets to 0.1; the chip's neurons reset to 0"),
        ([_cuba(2, w_in=-1.0)], "node1: neuron 0 multiplies its input with -0.0625.*put the sign into the weights"),
        ([_cuba(2, v_threshold=-0.1)], "node1: a threshold is -0.1; the chip holds none below 0"),
        ([_cuba(2, tau_syn=10.0)], "node1: tau_syn is 10000 steps; the chip's 12-bit decay .* up to 4096"),
        ([_lif((2,), tau=DT, r=2.0)], "node1: keeps 0 of its potential"),
        ([nir.Delay(np.full(2, 63 * DT)), _lif((2,))], r"node1: delay\[0\] is 63 steps; it must lie between 0 and 62"),
    ],
)
def test_what_the_chip_does_not_hold_is_refused_by_name(nodes: list[nir.NIRNode], said: str) -> None:
    network = _chain((2,), nir.Linear(np.eye(2)), *nodes, out=2)
    with pytest.raises(ChipLimitError, match=said):
        quantize(network, _inputs((2,)))


def _conv(weight: np.ndarray) -> nir.Conv2d:
    return nir.Conv2d(None, weight, 1, 0, 1, groups=1, bias=np.zeros(len(weight)))


def _refused() -> dict[str, tuple[Network, tuple[int, ...], type[Exception], str]]:
    """Return networks by what is wrong with them, with the shape they read, and what they are refused with."""
    row, picture = (2,), (2, 4, 4)
    eye, ones = nir.Linear(np.eye(2)), np.ones((2, 2, 1, 1))
    no_sum = "in an integer graph only spikes"
    return {
        "spikes beside an affine map": (
            _graph(row, {"up": _lif(row), "map": eye, "fire": _lif(row)}, "input up map fire output", "up fire"),
            row,
            UnsupportedOperatorError,
            f"map: is added to up; {no_sum}",
        ),
        "spikes beside scaled spikes": (
            _graph(
                row,
                {"up": _lif(row), "half": nir.Scale(np.full(2, 0.5)), "fire": _lif(row)},
                "input up half fire output",
                "up fire",
            ),
            row,
            UnsupportedOperatorError,
            "adds half to up, whose whole numbers stand for different values",
        ),
        "a convolution beside a pool": (
            _graph(
                picture,
                {
                    "map": nir.Conv2d(None, ones, 2, 0, 1, groups=1, bias=np.zeros(2)),
                    "sum": nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])),
                    "fire": _lif((2, 2, 2)),
                },
                "input map fire output",
                "input sum fire",
            ),
            picture,
            UnsupportedOperatorError,
            f"map: is added to sum; {no_sum}",
        ),
        "an integrator beside a map": (
            _graph(
                row,
                {"map": eye, "sum": nir.I(np.full(2, 1 / DT)), "fire": _lif(row)},
                "input map fire output",
                "input sum fire",
            ),
            row,
            UnsupportedOperatorError,
            f"map: is added to sum; {no_sum}",
        ),
        "a map beside one that reads it": (
            _graph(
                row,
                {"one": eye, "two": eye, "fire": _lif(row)},
                "input one two fire output",
                "one fire",
            ),
            row,
            UnsupportedOperatorError,
            f"one: is added to two; {no_sum}.*that read nothing from each other",
        ),
        "scales that differ within a channel": (
            _chain(picture, nir.Scale(np.arange(1, 33).reshape(picture) / 32), _conv(ones), _lif(picture), out=32),
            picture,
            UnsupportedOperatorError,
            "node1: what it reads has scales that differ within a channel",
        ),
        "scales that differ into a pool": (
            _chain(
                picture,
                nir.Scale(np.arange(1, 33).reshape(picture) / 32),
                nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])),
                _lif((2, 2, 2)),
                out=8,
            ),
            picture,
            UnsupportedOperatorError,
            "node1: adds up features of different scales",
        ),
        "scales that differ in the output": (
            _chain(row, _lif(row), nir.Scale(np.array([0.5, 0.25])), out=2),
            row,
            UnsupportedOperatorError,
            "node1: is the output, and must have one scale",
        ),
        "an integrator into neurons of so low a threshold": (
            _chain(row, nir.I(np.full(2, 1 / DT)), eye, _lif(row), out=2),
            row,
            ChipLimitError,
            "node1: every weight would become 0.*split the layer",
        ),
        "an integrator straight into neurons": (
            _chain(row, nir.I(np.full(2, 1 / DT)), _lif(row), out=2),
            row,
            ChipLimitError,
            "node1: node0 sends up to 8388607; beyond 131071 its current wraps around",
        ),
        "kernels far below the threshold": (
            _chain(picture, _conv(1e-9 * ones), _lif(picture, v_threshold=1e3), out=32),
            picture,
            ChipLimitError,
            "node0: every weight would become 0: the largest is 1e-09",
        ),
        "a threshold far above what comes": (
            _chain(row, _lif(row, v_threshold=1e6), out=2),
            row,
            ChipLimitError,
            "node0: its threshold would be .* of what input sends; the chip holds 131071",
        ),
    }


REFUSED = _refused()


@pytest.mark.parametrize("what", REFUSED)
def test_what_has_no_whole_numbers_is_refused_by_name(what: str) -> None:
    network, shape, kind, said = REFUSED[what]
    with pytest.raises(kind, match=said):
        quantize(network, _inputs(shape))


def test_inputs_that_are_no_whole_numbers_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="quantized for whole numbers only, such as spikes"):
        quantize(_chain((2,), _lif((2,)), out=2), 0.5 * _inputs((2,)))


@pytest.mark.parametrize(
    ("node", "said"),
    [
        (nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])), "node0: a mean divides"),
        (nir.Scale(np.full((2, 4, 4), 0.5)), "node0: a factor of an integer graph is 1, 0 or -1"),
        (nir.Delay(np.full((2, 4, 4), 63 * DT)), r"node0: delay\[0\] is 63 steps"),
        (_conv(np.ones((2, 2, 1, 1))), "node0: convolution is a float operator in an integer graph"),
        (_lif((2, 4, 4)), "node0: .* is a float operator in an integer graph"),
    ],
)
def test_a_file_that_calls_itself_integer_is_checked_node_by_node(node: nir.NIRNode, said: str) -> None:
    graph = build_graph(_chain((2, 4, 4), node, out=32))
    graph.metadata["precision"] = "integer"
    with pytest.raises(GraphError, match=said):
        parse_graph(graph)


def test_the_command_quantizes_a_file_of_another_tool(tmp_path: Path) -> None:
    theirs, spikes, integer = tmp_path / "theirs.nir", tmp_path / "spikes.npy", tmp_path / "integer.nir"
    nir.write(theirs, nir.NIRGraph.from_list(nir.Linear(np.random.default_rng(0).normal(0.3, 0.5, (3, 4))), _cuba(3)))
    np.save(spikes, _inputs((4,)))

    def invoke(*arguments: Any) -> click.testing.Result:
        return click.testing.CliRunner().invoke(main, [str(argument) for argument in arguments])

    result = invoke("quantize", theirs, "-o", integer, "--dt", DT, "--calibration", spikes, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["calibration_sentences"] == 4
    assert parse_graph(read_nir(integer)).is_integer
    result = invoke("simulate", integer, "--runner", "integer", "--input", spikes, "--json")
    assert result.exit_code == 0, result.output
    result = invoke("quantize", theirs, "-o", integer, "--force", "--dt", DT, "--calibration", "sst2")
    assert result.exit_code == 2
    assert "reads values; give --calibration FILE.npy" in " ".join(result.stderr.split())
