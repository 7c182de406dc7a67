"""The promises of graphs from elsewhere: what is left out follows from the graph or is refused, and cycles take a step.

Expected values are written out by hand or computed in plain Python.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import click.testing
import nir
import numpy as np
import pytest

from export import GraphError, UnsupportedOperatorError, build_graph, parse_graph, quantize
from export.operators import LeakyIntegrateAndFire, PreviousStep, ResistiveNeuron
from hardware import open_runner, run
from hardware.errors import RunnerError
from hardware.traces.edges import edges_by_node
from spikebert.cli import main

DT = 1e-3


def _graph(nodes: dict[str, nir.NIRNode], edges: list[tuple[str, str]], shape: Any = (3,)) -> nir.NIRGraph:
    ends = {"input": nir.Input({"input": np.array(shape)}), "output": nir.Output({"output": np.array([1])})}
    return nir.NIRGraph({**ends, **nodes}, edges, type_check=False)


def _chain(*nodes: nir.NIRNode, shape: Any = (3,)) -> nir.NIRGraph:
    names = [f"node{index}" for index in range(len(nodes))]
    path = ["input", *names, "output"]
    return _graph(dict(zip(names, nodes, strict=True)), list(itertools.pairwise(path)), shape)


def _lif(shape: tuple[int, ...] = (), **changes: Any) -> nir.LIF:
    values = {"tau": 10 * DT, "r": 10.0, "v_leak": 0.0, "v_threshold": 1.0, "v_reset": 0.0, **changes}
    return nir.LIF(**{key: np.full(shape, value) for key, value in values.items()})


def _recurrent(weight: np.ndarray, bias: np.ndarray) -> nir.NIRGraph:
    nodes = {"fire": _lif((2,)), "again": nir.Affine(weight, bias)}
    return _graph(nodes, [("input", "fire"), ("fire", "again"), ("again", "fire"), ("fire", "output")], (2,))


WEIGHT, BIAS = np.array([[0.25, -0.5], [0.75, 0.125]]), np.array([0.0625, -0.125])


def _by_hand(x: np.ndarray) -> list[list[int]]:
    """Run the recurrent cell in plain Python: spikes of the step before go through the weight, from zero on."""
    potential, before, found = [0.0, 0.0], [0, 0], []
    for step in x.tolist():
        fed = [sum(w * s for w, s in zip(row, before, strict=True)) + b for row, b in zip(WEIGHT, BIAS, strict=True)]
        potential = [0.9 * u + f + i for u, f, i in zip(potential, fed, step, strict=True)]
        before = [int(u > 1) for u in potential]
        potential = [0.0 if s else u for u, s in zip(potential, before, strict=True)]
        found.append(before)
    return found


def _input(steps: int = 40) -> np.ndarray:
    return np.random.default_rng(0).normal(0.2, 0.5, (steps, 1, 1, 2))


@pytest.mark.parametrize("runner", ["reference", "onnx", pytest.param("lava", marks=pytest.mark.lava)])
def test_a_recurrent_cell_feeds_back_what_it_sent_a_step_before(runner: str) -> None:
    network = parse_graph(_recurrent(WEIGHT, BIAS), DT)
    x = _input()
    options = {"granularity": "network"} if runner == "lava" else {}
    spikes = run(network, x, runner=runner, **options).spikes["fire"][:, 0, 0]
    assert 0.1 < spikes.mean() < 0.9
    np.testing.assert_array_equal(spikes, _by_hand(x[:, 0, 0]))
    silent = parse_graph(_recurrent(0 * WEIGHT, 0 * BIAS), DT)
    assert (run(silent, x).spikes["fire"][:, 0, 0] != spikes).any(), "the connection changes nothing"


def test_a_recurrent_cell_is_written_as_the_cycle_it_was() -> None:
    network = parse_graph(_recurrent(WEIGHT, BIAS), DT)
    assert any(isinstance(node.operator, PreviousStep) for node in network.nodes)
    graph = build_graph(network, np.float64)
    assert {("fire", "again"), ("again", "fire")} <= set(graph.edges)
    x = _input()
    np.testing.assert_array_equal(run(parse_graph(graph), x).spikes["fire"], run(network, x).spikes["fire"])


def test_batches_and_runs_do_not_leak_into_each_other() -> None:
    x = np.concatenate([_input(), -_input()], axis=1)
    with open_runner(parse_graph(_recurrent(WEIGHT, BIAS), DT), "reference") as opened:
        both, again = opened.run(x), opened.run(x[:, :1])
    np.testing.assert_array_equal(both.spikes["fire"][:, :1], again.spikes["fire"])


def test_edges_show_what_a_recurrent_connection_carries() -> None:
    network = parse_graph(_recurrent(WEIGHT, BIAS), DT)
    trace = run(network, _input())
    (carried,) = [edge for node, edges in edges_by_node(trace, network) if node.name == "again" for edge in edges]
    assert carried.kind == "binary"
    assert not carried.values[0].any()
    np.testing.assert_array_equal(carried.values[1:], trace.spikes["fire"][:-1])


@pytest.mark.lava
def test_lava_refuses_to_draw_a_cycle_between_processes() -> None:
    with pytest.raises(RunnerError, match=r"fire: has a recurrent connection.*only granularity 'network'"):
        open_runner(parse_graph(_recurrent(WEIGHT, BIAS), DT), "lava", granularity="operator")


def test_cycles_nobody_can_time_are_refused() -> None:
    two = {"one": _lif((2,)), "two": _lif((2,))}
    ring = [("input", "one"), ("one", "two"), ("two", "one"), ("two", "output")]
    with pytest.raises(UnsupportedOperatorError, match="one: a cycle leads through it and two"):
        parse_graph(_graph(two, ring, (2,)), DT)
    no_neuron = {"a": nir.Linear(WEIGHT), "b": nir.Linear(WEIGHT)}
    with pytest.raises(GraphError, match="a cycle leads through"):
        parse_graph(_graph(no_neuron, [("input", "a"), ("a", "b"), ("b", "a"), ("b", "output")], (2,)), DT)


def test_what_is_left_out_is_filled_in() -> None:
    weight = np.ones((2, 1, 3, 2), np.float32)
    conv = nir.Conv2d(None, weight, (2, 1), (1, 0), 1, 1, np.zeros(2, np.float32))
    pool = nir.SumPool2d(np.array([2, 1]), np.array([2, 1]), np.array([0, 0]))
    network = parse_graph(_chain(conv, _lif(), pool, nir.Flatten(None, 0, -1), shape=(1, 1, 8, 5)), DT)
    assert network.input_shape == (1, 8, 5)  # a batch axis of 1 is no feature
    conv_node, neuron, pool_node, flat = (node.operator for node in network.nodes)
    assert conv_node.out_shape == (2, 4, 4)
    assert isinstance(neuron, LeakyIntegrateAndFire)
    assert neuron.threshold.shape == (32,)
    assert pool_node.out_shape == (2, 2, 4)
    assert flat.out_shape == (16,)
    assert run(network, np.ones((1, 1, 1, 8, 5))).outputs.shape == (1, 1, 1, 16)


@pytest.mark.parametrize("node", [_lif((2, 3)), nir.Delay(np.full((2, 3), DT)), nir.Scale(np.full((2, 3), 0.5))])
def test_a_shape_without_any_picture_is_written_and_read_again(node: nir.NIRNode) -> None:
    network = parse_graph(_chain(node, shape=(2, 3)), DT)
    again = parse_graph(build_graph(network, np.float64))
    assert again.input_shape == (2, 3)
    x = np.random.default_rng(0).random((5, 2, 2, 3))
    np.testing.assert_array_equal(run(again, x).outputs, run(network, x).outputs)


def test_a_subgraph_is_opened() -> None:
    inner = _graph({"fire": _lif((2,)), "again": nir.Linear(WEIGHT)}, [], (2,))
    inner.edges = [("input", "fire"), ("fire", "again"), ("again", "fire"), ("fire", "output")]
    outer = _graph({"cell": inner}, [("input", "cell"), ("cell", "output")], (2,))
    network = parse_graph(outer, DT)
    assert {node.name for node in network.spiking_nodes} == {"cell.fire"}


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, LeakyIntegrateAndFire),
        ({"r": 1.0}, LeakyIntegrateAndFire),
        ({"r": 3.0}, ResistiveNeuron),
        ({"v_leak": 0.5}, ResistiveNeuron),
        ({"v_reset": -0.5}, ResistiveNeuron),
    ],
)
def test_neurons_are_read_as_simple_as_they_are(changes: dict[str, float], kind: type) -> None:
    (node,) = parse_graph(_chain(_lif((3,), **changes)), DT).nodes
    assert type(node.operator) is kind


WRONG: dict[str, tuple[nir.NIRGraph, str]] = {
    "pictures into a linear node": (
        _chain(nir.Linear(np.ones((2, 16))), shape=(4, 4)),
        r"node0: reads a shape \(4, 4\); an affine or linear node reads a row",
    ),
    "channels that do not fit": (
        _chain(nir.Conv1d(None, np.ones((2, 3, 3)), 1, 0, 1, 1, np.zeros(2)), shape=(2, 9)),
        r"node0: takes 3 channels, but reads a shape \(2, 9\)",
    ),
    "a kernel larger than its input": (
        _chain(nir.Conv1d(None, np.ones((2, 3, 5)), 1, 0, 1, 1, np.zeros(2)), shape=(3, 4)),
        "node0: a kernel of .* is larger than its input",
    ),
    "same padding with a stride": (
        _chain(nir.Conv1d(None, np.ones((2, 3, 3)), 2, "same", 1, 1, np.zeros(2)), shape=(3, 4)),
        "node0: padding 'same' at stride",
    ),
    "parameters for another shape": (
        _chain(_lif((4,)), shape=(2, 2)),
        r"node0: tau has shape \(4,\), but the node reads a shape \(2, 2\)",
    ),
    "a delay of half a step": (_chain(nir.Delay(np.full(3, 1.5 * DT))), "node0: delay.0. is 0.0015 s, 1.5 steps"),
    "a negative delay": (_chain(nir.Delay(np.full(3, -DT))), "node0: delays of -0.001"),
    "a time constant below a step": (_chain(_lif((3,), tau=DT / 2, r=7.0)), "node0: tau of 0.0005 s is shorter"),
    "a node without operator": (
        _chain(nir.CubaLI(*(np.ones(3) for _ in range(4)))),
        "node0: CubaLI has no operator here",
    ),
    "pooling of rows": (
        _chain(nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0]))),
        r"node0: reads a shape \(3,\); expected \(channels, height, width\)",
    ),
    "flattening an axis too many": (_chain(nir.Flatten(None, 0, 2), shape=(2, 2)), "node0: flattens axes 0 to 2"),
    "a sum of two shapes": (
        _graph(
            {"flat": nir.Flatten(None, 0, -1), "fire": _lif()},
            [("input", "flat"), ("input", "fire"), ("flat", "fire"), ("fire", "output")],
            (2, 2),
        ),
        r"fire: adds input of shape \(2, 2\) to flat of shape \(4,\)",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_follow_is_refused(what: str) -> None:
    graph, said = WRONG[what]
    with pytest.raises(GraphError, match=said):
        parse_graph(graph, DT)


def test_inputs_come_in_the_shape_of_the_file() -> None:
    network = parse_graph(_chain(_lif(), shape=(2, 3)), DT)
    x = np.random.default_rng(0).random((5, 2, 2, 3))
    np.testing.assert_array_equal(run(network, x).spikes["node0"], run(network, x.reshape(5, 2, 1, 6)).spikes["node0"])
    with pytest.raises(RunnerError, match=r"this graph takes numbers .*\(time steps, sentences, 2, 3\)"):
        run(network, x.reshape(5, 2, 3, 2))


def _invoke(*arguments: Any) -> click.testing.Result:
    return click.testing.CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_command_runs_a_file_of_another_tool(tmp_path: Path) -> None:
    path, spikes = tmp_path / "theirs.nir", tmp_path / "input.npy"
    nir.write(path, nir.NIRGraph.from_list(nir.Linear(np.eye(2)), _lif((2,))))
    x = _input()[:, 0]
    np.save(spikes, x)
    result = _invoke("simulate", path, "--dt", DT, "--input", spikes, "-o", tmp_path / "trace.npz", "--json")
    assert result.exit_code == 0, result.output
    expected = run(parse_graph(nir.read(path), DT), x[:, None])
    assert json.loads(result.stdout)["firing_rates"]["lif"] == pytest.approx(expected.firing_rate("lif"))
    with np.load(tmp_path / "trace.npz") as trace:
        np.testing.assert_array_equal(trace["lif"], expected.spikes["lif"])
    for arguments, said in (
        (["--input", spikes], "neither the node nor the graph says dt"),
        (["--dt", DT, "--text", "hello"], "reads values: give --input"),
        (["--dt", DT, "--input", spikes, "--text", "hello"], "only one of them"),
        (["--dt", DT, "--input", path], "is not an .npy array"),
    ):
        result = _invoke("simulate", path, *arguments)
        assert result.exit_code == 2
        assert said in " ".join(result.stderr.split())


def test_what_fits_is_quantized() -> None:
    weight = np.random.default_rng(2).normal(0.3, 0.5, (4, 3))
    network = parse_graph(_chain(nir.Affine(weight, np.zeros(4)), _lif((4,))), DT)
    x = (np.random.default_rng(3).random((30, 1, 1, 3)) < 0.5).astype(np.int64)
    integers = run(quantize(network, x), x, precision="integer").spikes["node1"]
    floats = run(network, x).spikes["node1"]
    assert 0.05 < floats.mean() < 0.95
    assert np.mean(integers == floats) > 0.95
