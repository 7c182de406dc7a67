"""The promise of graphs of other tools in whole numbers: quantized, they run alike everywhere and nearly as in float.

What the integer graph's file says is computed once more in torch int64 here, from ``docs/integers.md``: no operator, no
network and no runner of ours takes part.
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
import torch
from torch import Tensor

from export import GraphError, build_graph, parse_graph, quantize, read_nir, write_nir
from export.errors import ChipLimitError, UnsupportedOperatorError
from export.network import Network
from hardware import count_operations, open_runner, profile, run
from spikebert.cli import main
from spikebert.errors import ConfigurationError

DT = 1e-3
STEPS = 20
RNG = np.random.default_rng(8)


def _chain(shape: tuple[int, ...], *nodes: nir.NIRNode, out: int) -> Network:
    named = {f"node{index}": node for index, node in enumerate(nodes)}
    named = {
        "input": nir.Input({"input": np.array(shape)}),
        **named,
        "output": nir.Output({"output": np.array([out])}),
    }
    return parse_graph(nir.NIRGraph(named, list(itertools.pairwise(named)), type_check=False), DT)


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
    first = nir.Conv2d(
        None, RNG.normal(0.2, 0.6, (4, 1, 3, 3)), (2, 1), (1, 0), (1, 2), groups=2, bias=RNG.normal(0, 0.2, 4)
    )
    network = _chain(
        (2, 8, 8),
        first,
        nir.IF(r=np.full((4, 4, 4), 1 / DT), v_threshold=np.full((4, 4, 4), 1.5), v_reset=np.zeros((4, 4, 4))),
        nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([1, 1])),
        nir.Flatten(None, 0, -1),
        nir.Affine(RNG.normal(0.1, 0.6, (5, 36)), RNG.normal(0, 0.1, 5)),
        _lif((5,)),
        out=5,
    )
    return network, (2, 8, 8)


def _currents() -> tuple[Network, tuple[int, ...]]:
    network = _chain(
        (6,),
        nir.Linear(RNG.normal(0.1, 0.5, (5, 6))),
        _cuba(5),
        nir.Delay(np.array([0.0, 1, 2, 3, 2]) * DT),
        nir.Scale(np.array([0.5, -0.5, 0.5, 0.5, -0.5])),
        nir.Linear(RNG.normal(0.2, 0.5, (3, 5))),
        nir.LI(tau=np.full(3, 6e-3), r=np.full(3, 2.0), v_leak=np.full(3, 0.1)),
        out=3,
    )
    return network, (6,)


def _over_time() -> tuple[Network, tuple[int, ...]]:
    network = _chain(
        (1, 9),
        nir.Conv1d(None, RNG.normal(0.2, 0.5, (3, 1, 3)), 1, "same", 1, groups=1, bias=np.full(3, 0.05)),
        _cuba((3, 9)),
        nir.Flatten(None, 0, -1),
        nir.I(r=np.full(27, 0.5 / DT)),
        nir.Threshold(np.full(27, 2.5)),
        out=27,
    )
    return network, (1, 9)


NETWORKS = {"step response": _step_response, "pictures": _pictures, "currents": _currents, "over time": _over_time}


def _inputs(shape: tuple[int, ...], seed: int = 3) -> np.ndarray:
    return (np.random.default_rng(seed).random((STEPS, 4, *shape)) < 0.4).astype(np.int64)


# --- the equations, once more ---


def _truncated(x: Tensor, keeps: Tensor) -> Tensor:
    return torch.div(x * keeps, 4096, rounding_mode="trunc")


def _wrapped(u: Tensor) -> Tensor:
    return torch.where(u > 2**23, u - 2**24, torch.where(u <= -(2**23), u + 2**24, u))


def _remembers(x: Tensor, said: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return potentials as they were tested, and what a neuron or integrator sends, (T, B, D) each."""

    def whole(key: str) -> Tensor:
        return torch.as_tensor(np.asarray(said[key])).long()

    current, potential = torch.zeros_like(x[0]), torch.zeros_like(x[0])
    bias, sent, tested = whole("bias_mantissa") * 2 ** whole("bias_exponent"), [], []
    fires = "threshold" in said
    for activation in x:
        kept = _truncated(current, 4096 - whole("current_decay")) if "current_decay" in said else 0
        current = _wrapped(kept + activation * 64)
        potential = (_truncated(potential, 4096 - whole("decay")) + current + bias).clamp(1 - 2**23, 2**23 - 1)
        tested.append(potential)
        spikes = (potential > whole("threshold") * 64).long() if fires else potential
        sent.append(spikes)
        potential = potential * (1 - spikes) if fires else potential
    return torch.stack(tested), torch.stack(sent)


def _convolution(node: nir.NIRNode, x: Tensor) -> Tensor:
    """float64 holds every number of these networks."""
    two = isinstance(node, nir.Conv2d)
    convolve = torch.nn.functional.conv2d if two else torch.nn.functional.conv1d
    padding = node.padding if isinstance(node.padding, str) else tuple(np.atleast_1d(node.padding).tolist())
    y = convolve(
        x.double(),
        torch.as_tensor(node.weight).double(),
        torch.as_tensor(node.bias).double(),
        stride=tuple(np.atleast_1d(node.stride).tolist()),
        padding=padding,
        dilation=tuple(np.atleast_1d(node.dilation).tolist()),
        groups=int(node.groups),
    )
    return y.round().long()


def simulate(graph: nir.NIRGraph, inputs: np.ndarray) -> dict[str, Tensor]:
    """Return potentials and spikes of what fires, and the output, (T, B, D), of a chain."""
    after = {str(a): str(b) for a, b in graph.edges}
    x, name, found = torch.as_tensor(inputs), after["input"], {}
    while name != "output":
        node = graph.nodes[name]
        if isinstance(node, nir.Affine | nir.Linear):
            x = x @ torch.as_tensor(node.weight.astype(np.int64)).T
            x = x + torch.as_tensor(node.bias) if isinstance(node, nir.Affine) else x
        elif isinstance(node, nir.Conv1d | nir.Conv2d):
            x = _convolution(node, x.flatten(0, 1)).unflatten(0, x.shape[:2])
        elif isinstance(node, nir.SumPool2d):
            sides = [tuple(np.asarray(part).tolist()) for part in (node.kernel_size, node.stride, node.padding)]
            y = torch.nn.functional.avg_pool2d(x.flatten(0, 1).double(), *sides, divisor_override=1)
            x = y.round().long().unflatten(0, x.shape[:2])
        elif isinstance(node, nir.Flatten):
            x = x.flatten(2)
        elif isinstance(node, nir.Scale):
            x = x * torch.as_tensor(node.scale).long()
        elif isinstance(node, nir.Delay):
            late = torch.zeros_like(x)
            for feature, steps in enumerate(np.rint(np.asarray(node.delay) / DT).astype(int)):
                late[steps:, :, feature] = x[: len(x) - steps, :, feature]
            x = late
        elif isinstance(node, nir.Threshold):
            found[f"{name} tested"] = x
            x = found[name] = (x > torch.as_tensor(node.threshold)).long()
        else:
            shape = x.shape
            tested, sent = _remembers(x.flatten(2), node.metadata)
            if "threshold" in node.metadata:
                found[f"{name} tested"], found[name] = tested, sent
            x = sent.reshape(shape)
        name = after[name]
    found["output"] = x.flatten(2)
    return found


@pytest.mark.parametrize("runner", ["reference", "integer", "onnx", pytest.param("lava", marks=pytest.mark.lava)])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("scale", ["per-tensor", "per-channel"])
def test_a_quantized_graph_runs_as_the_equations_say(name: str, scale: str, runner: str, tmp_path: Path) -> None:
    network, shape = NETWORKS[name]()
    graph = read_nir(write_nir(tmp_path / "integer.nir", quantize(network, _inputs(shape), scale=scale)))
    x = _inputs(shape, seed=4)
    expected = simulate(graph, x)
    with open_runner(graph, runner, "integer", record_membrane_potentials=True) as opened:
        trace = opened.run(x)
    for spiking in trace.spikes:
        np.testing.assert_array_equal(trace.spikes[spiking][:, :, 0], expected[spiking].flatten(2), err_msg=spiking)
        np.testing.assert_array_equal(
            trace.membrane_potentials[spiking][:, :, 0], expected[f"{spiking} tested"].flatten(2), err_msg=spiking
        )
    said = graph.nodes["output"].metadata
    totals = (expected["output"] + torch.as_tensor(said["bias"])).numpy() * float(said["unit"])
    np.testing.assert_array_equal(trace.outputs[:, :, 0], totals)


@pytest.mark.parametrize("name", NETWORKS)
def test_whole_numbers_do_nearly_what_the_float_graph_does(name: str) -> None:
    network, shape = NETWORKS[name]()
    x = _inputs(shape, seed=5)
    graph = quantize(network, _inputs(shape))
    floats, integers = run(network, x), run(graph, x, runner="integer", precision="integer")
    for spiking, spikes in floats.spikes.items():
        assert 0.02 < spikes.mean() < 0.98, spiking
        assert np.mean(integers.spikes[spiking] == spikes) > 0.93, spiking
    if name == "currents":
        assert np.abs(floats.outputs).max() > 0.1
        np.testing.assert_allclose(integers.outputs, floats.outputs, atol=0.1 * np.abs(floats.outputs).max())


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


def _graph(shape: tuple[int, ...], nodes: dict[str, nir.NIRNode], *edges: str) -> Network:
    """Return a network with edges as `"a b c"`, a path; it leads from input to output."""
    ends = {"input": nir.Input({"input": np.array(shape)}), "output": nir.Output({"output": np.array([1])})}
    paths = [itertools.pairwise(path.split()) for path in edges]
    return parse_graph(nir.NIRGraph({**ends, **nodes}, list(itertools.chain(*paths)), type_check=False), DT)


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
        "a convolution beside another": (
            _graph(
                picture,
                {"one": _conv(ones), "two": _conv(ones), "fire": _lif(picture)},
                "input one fire output",
                "input two fire",
            ),
            picture,
            UnsupportedOperatorError,
            "(one|two): a convolution is added to another node",
        ),
        "scales that differ into an affine map": (
            _chain(row, nir.Scale(np.array([0.5, 0.25])), eye, _lif(row), out=2),
            row,
            UnsupportedOperatorError,
            "node1: what it reads has a scale for each feature",
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


def test_cycles_have_no_whole_numbers_yet() -> None:
    nodes = {
        "input": nir.Input({"input": np.array([2])}),
        "in": nir.Linear(np.eye(2)),
        "fire": _lif((2,)),
        "back": nir.Linear(np.eye(2)),
        "output": nir.Output({"output": np.array([2])}),
    }
    edges = [("input", "in"), ("in", "fire"), ("fire", "output"), ("fire", "back"), ("back", "fire")]
    with pytest.raises(UnsupportedOperatorError, match="previous_step has no meaning in whole numbers"):
        quantize(parse_graph(nir.NIRGraph(nodes, edges, type_check=False), DT), _inputs((2,)))


def test_the_command_quantizes_a_file_of_another_tool(tmp_path: Path) -> None:
    theirs, spikes, integer = tmp_path / "theirs.nir", tmp_path / "spikes.npy", tmp_path / "integer.nir"
    nir.write(theirs, nir.NIRGraph.from_list(nir.Linear(RNG.normal(0.3, 0.5, (3, 4))), _cuba(3)))
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
