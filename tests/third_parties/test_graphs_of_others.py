"""The promise of NIR graphs from other tools: run here, they do what they do there.

Each network is made, run and written with the tool itself; what the tool computed is what ours must compute. Where a
tool's file says less than the tool does, the test makes the adjustment that ``docs/others.md`` describes.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from export import build_graph, parse_graph, read_nir, write_nir
from export.network import Network
from export.nir_file import read_network
from hardware import run
from hardware.trace import Trace
from spikebert.cli import main

RUNNERS = ["reference", "onnx", pytest.param("lava", marks=pytest.mark.lava)]
STEPS = 25
SNNTORCH_DT = 1e-4
NORSE_DT = 1e-3
MARGIN = 1e-4
"""No potential may come nearer to its threshold, or float32 sums in another order could decide otherwise."""

pytestmark = pytest.mark.filterwarnings("ignore")


def _run(network: Network, x: torch.Tensor, runner: str) -> Trace:
    options = {"granularity": "network"} if runner == "lava" else {}
    return run(network, x.numpy(), runner=runner, precision="float32", record_membrane_potentials=True, **options)


def _assert_lively_and_clear(trace: Trace) -> None:
    for name, spikes in trace.spikes.items():
        assert 0.02 < spikes.mean() < 0.98, f"{name}: fires {spikes.mean():.1%} of the time, which shows little"
        nearest = np.abs(trace.membrane_potentials[name] - trace.thresholds[name]).min()
        assert nearest > MARGIN, f"{name}: a potential lies {nearest} from its threshold"


def _spikes(shape: tuple[int, ...], seed: int = 0, rate: float = 0.4) -> torch.Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < rate).float()


def _seeded(*modules: torch.nn.Module, scale: float = 1.0) -> torch.nn.Sequential:
    generator = torch.Generator().manual_seed(1)
    net = torch.nn.Sequential(*modules)
    with torch.no_grad():
        for parameter in (p for p in net.parameters() if p.dim()):
            parameter.copy_(scale * (0.1 + 0.5 * torch.randn(parameter.shape, generator=generator)))
    return net


def _outputs(net: torch.nn.Module, x: torch.Tensor) -> np.ndarray:
    """Show the input step by step to a network that holds its state itself."""
    with torch.no_grad():
        shown = [net(step) for step in x]
    return torch.stack([y[0] if isinstance(y, tuple) else y for y in shown]).numpy()


def _leaky(shape: tuple[int, ...], beta: float, threshold: float) -> torch.nn.Module:
    import snntorch

    return snntorch.Leaky(
        beta=torch.full(shape, beta),
        threshold=torch.full(shape, threshold),
        init_hidden=True,
        reset_mechanism="zero",
        reset_delay=False,
    )


def _snntorch_networks() -> dict[str, tuple[torch.nn.Sequential, tuple[int, ...]]]:
    """Return networks by name, with the shape each reads."""
    import snntorch

    recurrent = {"init_hidden": True, "reset_mechanism": "zero", "reset_delay": False}
    six = torch.ones(6)
    return {
        "two layers": (
            _seeded(torch.nn.Linear(4, 6), _leaky((6,), 0.9, 1.0), torch.nn.Linear(6, 3), _leaky((3,), 0.8, 0.5)),
            (4,),
        ),
        "synapses": (
            _seeded(
                torch.nn.Linear(4, 6),
                snntorch.Synaptic(alpha=0.7 * six, beta=0.9 * six, threshold=six, **recurrent),
            ),
            (4,),
        ),
        "a recurrent cell": (
            _seeded(torch.nn.Linear(4, 6), snntorch.RLeaky(beta=0.9, linear_features=6, **recurrent)),
            (4,),
        ),
        "pictures": (
            _seeded(
                torch.nn.Conv2d(1, 3, 3, stride=2, padding=1),
                _leaky((3, 4, 4), 0.9, 0.7),
                torch.nn.AvgPool2d(2),
                torch.nn.Flatten(),
                torch.nn.Linear(12, 5),
                _leaky((5,), 0.8, 0.3),
            ),
            (1, 8, 8),
        ),
    }


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("name", ["two layers", "synapses", "a recurrent cell", "pictures"])
def test_a_file_of_snntorch(name: str, runner: str, tmp_path: Path) -> None:
    pytest.importorskip("snntorch")
    from snntorch.export_nir import export_to_nir

    net, shape = _snntorch_networks()[name]
    pictures = len(shape) > 1
    example = torch.zeros((1, *shape) if pictures else shape)
    nir.write(tmp_path / "theirs.nir", export_to_nir(net, example, ignore_dims=[0] if pictures else []))
    x = _spikes((STEPS, 2, *shape))
    expected = _outputs(net, x)
    _, network = read_network(tmp_path / "theirs.nir", dt=SNNTORCH_DT)
    trace = _run(network, x, runner)
    _assert_lively_and_clear(trace)
    np.testing.assert_array_equal(trace.outputs.reshape(expected.shape), expected)


@pytest.mark.parametrize("name", ["a recurrent cell", "pictures"])
def test_what_was_read_is_written_and_read_again(name: str, tmp_path: Path) -> None:
    pytest.importorskip("snntorch")
    from snntorch.export_nir import export_to_nir

    net, shape = _snntorch_networks()[name]
    pictures = len(shape) > 1
    example = torch.zeros((1, *shape) if pictures else shape)
    network = parse_graph(export_to_nir(net, example, ignore_dims=[0] if pictures else []), SNNTORCH_DT)
    again = parse_graph(read_nir(write_nir(tmp_path / "ours.nir", build_graph(network, np.float32))))
    assert again.input_shape == network.input_shape
    x = _spikes((STEPS, 2, *shape))
    first, second = _run(network, x, "reference"), _run(again, x, "reference")
    for name, spikes in first.spikes.items():
        np.testing.assert_array_equal(second.spikes[name], spikes)


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_convolutional_network_of_sinabs(runner: str) -> None:
    pytest.importorskip("sinabs")
    import sinabs.layers as layers
    from sinabs.activation import MembraneReset, SingleSpike
    from sinabs.nir import to_nir

    once = {"batch_size": 1, "spike_fn": SingleSpike, "reset_fn": MembraneReset()}
    net = _seeded(
        torch.nn.Conv2d(1, 2, 3, bias=False),
        layers.IAFSqueeze(**once),
        layers.SumPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(18, 3),
        layers.IAFSqueeze(**once),
    )
    x = _spikes((STEPS, 1, 1, 8, 8))
    with torch.no_grad():
        expected = net(x[:, 0]).numpy()  # time is its batch axis
    trace = _run(parse_graph(to_nir(net, x[:, 0]), dt=1.0), x, runner)
    _assert_lively_and_clear(trace)
    np.testing.assert_array_equal(trace.outputs.reshape(expected.shape), expected)


def test_leaky_neurons_of_sinabs_once_the_step_is_adjusted() -> None:
    pytest.importorskip("sinabs")
    import sinabs.layers as layers
    from sinabs.activation import MembraneReset, SingleSpike
    from sinabs.nir import to_nir

    tau = 10.0
    once = {"batch_size": 1, "spike_fn": SingleSpike, "reset_fn": MembraneReset(), "norm_input": True}
    net = _seeded(torch.nn.Linear(4, 3), layers.LIFSqueeze(tau_mem=tau, spike_threshold=0.1, **once))
    x = _spikes((STEPS, 1, 4))
    with torch.no_grad():
        expected = net(x[:, 0]).numpy()
    graph = to_nir(net, x[:, 0])
    trace = _run(parse_graph(graph, dt=tau * (1 - np.exp(-1 / tau))), x, "reference")
    _assert_lively_and_clear(trace)
    np.testing.assert_array_equal(trace.outputs.reshape(expected.shape), expected)
    unadjusted = _run(parse_graph(graph, dt=1.0), x, "reference")
    potential = next(iter(unadjusted.membrane_potentials))
    assert np.abs(unadjusted.membrane_potentials[potential] - trace.membrane_potentials[potential]).max() > 1e-3


def _norse_run(net: torch.nn.Module, x: torch.Tensor, state: Any = None) -> tuple[np.ndarray, list[Any]]:
    shown, states = [], []
    with torch.no_grad():
        for step in x:
            y, state = net(step, state)
            shown.append(y)
            states.append(state)
    return torch.stack(shown).numpy(), states


@pytest.mark.parametrize("runner", RUNNERS)
def test_the_step_response_of_a_neuron_of_norse(runner: str) -> None:
    norse = pytest.importorskip("norse.torch")

    parameters = norse.LIFBoxParameters(
        tau_mem_inv=torch.tensor([100.0]), v_th=torch.tensor([0.1]), v_leak=torch.tensor([0.02])
    )
    cell = norse.LIFBoxCell(parameters, dt=NORSE_DT)
    x = torch.zeros(100, 1, 1)
    x[20:80] = 0.2
    at_zero = norse.LIFBoxFeedForwardState(v=torch.zeros(1, 1))  # by itself it starts at v_leak
    spikes, states = _norse_run(cell, x, at_zero)
    # norse writes the neuron alone; a step of 1 keeps its time constant in seconds
    node = norse.to_nir(norse.SequentialState(cell), torch.zeros(1, 1), dt=1.0)
    trace = _run(parse_graph(node, dt=NORSE_DT), x, runner)
    (name,) = trace.spikes
    np.testing.assert_array_equal(trace.spikes[name].reshape(spikes.shape), spikes)
    assert spikes.sum() >= 3
    after = np.where(trace.spikes[name], 0, trace.membrane_potentials[name]).reshape(-1)
    np.testing.assert_allclose(after, [float(state[0]) for state in states], rtol=0, atol=1e-6)


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_network_of_norse(runner: str) -> None:
    norse = pytest.importorskip("norse.torch")

    net = norse.SequentialState(
        torch.nn.Linear(4, 6),
        norse.LIFBoxCell(norse.LIFBoxParameters(tau_mem_inv=torch.tensor(100.0), v_th=torch.tensor(0.05))),
        torch.nn.Linear(6, 3),
        norse.LIBoxCell(norse.LIBoxParameters(tau_mem_inv=torch.tensor(200.0))),
    )
    with torch.no_grad():
        for parameter, seed in zip(net.parameters(), range(9), strict=False):
            parameter.copy_(0.1 + 0.4 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    x = _spikes((STEPS, 1, 4))
    expected, _ = _norse_run(net, x)
    trace = _run(parse_graph(norse.to_nir(net, x[0], dt=1.0), dt=NORSE_DT), x, runner)
    _assert_lively_and_clear(trace)
    np.testing.assert_allclose(trace.outputs.reshape(expected.shape), expected, rtol=0, atol=1e-6)


def test_every_node_without_a_tool_that_writes_it() -> None:
    """Conv1d, Delay, Scale, Threshold, I and a residual, against torch; no tool at hand writes them."""
    rng = np.random.default_rng(3)
    weight, bias, factor = rng.normal(size=(2, 1, 3)), rng.normal(size=2), rng.normal(size=(2, 8))
    nodes = {
        "input": nir.Input({"input": np.array([1, 8])}),
        "conv": nir.Conv1d(None, weight, stride=1, padding="same", dilation=1, groups=1, bias=bias),
        "late": nir.Delay(np.full((2, 8), 2e-3)),
        "scale": nir.Scale(factor),
        "fire": nir.Threshold(np.float64(0.5)),
        "flat": nir.Flatten(None, 0, -1),
        "sum": nir.I(np.float64(100.0)),
        "output": nir.Output({"output": np.array([16])}),
    }
    chain = ["input", "conv", "scale", "fire", "flat", "sum", "output"]
    edges = [*itertools.pairwise(chain), ("conv", "late"), ("late", "scale")]
    graph = nir.NIRGraph(nodes, edges, type_check=False)
    x = _spikes((STEPS, 2, 1, 8)).double()
    y = torch.nn.functional.conv1d(x.flatten(0, 1), torch.from_numpy(weight), torch.from_numpy(bias), padding=1)
    y = y.unflatten(0, (STEPS, 2))
    y = y + torch.cat([torch.zeros(2, 2, 2, 8), y[:-2]])
    fired = (y * torch.from_numpy(factor) > 0.5).double()
    expected = 0.1 * fired.flatten(2).cumsum(0)
    trace = run(parse_graph(graph, dt=1e-3), x.numpy())
    np.testing.assert_array_equal(trace.spikes["fire"].reshape(STEPS, 2, 16), fired.flatten(2))
    np.testing.assert_allclose(trace.outputs.reshape(STEPS, 2, 16), expected, rtol=0, atol=1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# spikebert profile and energy on files of others: the tool's own spikes, counted without our counters

SIDES = ["reference", "onnx", pytest.param("lava:network", marks=pytest.mark.lava)]


def _command(*arguments: Any) -> dict[str, Any]:
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def _layer_by_layer(net: torch.nn.Sequential, x: torch.Tensor) -> list[np.ndarray]:
    """Return what each layer of a network that holds its state sends, ``(T, B, ...)``."""
    shown: list[list[torch.Tensor]] = [[] for _ in net]
    with torch.no_grad():
        for y in x:
            for layer, kept in zip(net, shown, strict=True):
                y = layer(y)
                y = y[0] if isinstance(y, tuple) else y
                kept.append(y)
    return [torch.stack(kept).numpy() for kept in shown]


def _meetings(conv: torch.nn.Module, values: np.ndarray) -> int:
    """Count how many weights of a convolution values other than 0 meet: the same convolution, of ones, over ones."""
    ones = torch.ones_like(conv.weight)
    fired = torch.from_numpy(values != 0).float().reshape(-1, *values.shape[-3:])
    with torch.no_grad():
        met = torch.nn.functional.conv2d(fired, ones, None, conv.stride, conv.padding, conv.dilation, conv.groups)
    return int(met.sum())


def _profiled(tmp_path: Path, source: Any, side: str, x: torch.Tensor, *options: Any) -> dict[str, Any]:
    """Profile a file on a runner; the trace that `simulate` writes, with the same input, must say the same."""
    np.save(tmp_path / "input.npy", x.numpy())
    fed = ("--input", tmp_path / "input.npy", *options)
    found = _command("profile", source, *fed, "--runner", side, "--precision", "float32")
    trace = tmp_path / "trace.npz"
    _command("simulate", source, *fed, "--runner", side, "--precision", "float32", "-o", trace)
    recorded = _command("profile", "--trace", trace, "--graph", source, *fed)
    assert recorded["operations"] == found["operations"]
    assert recorded["nodes"] == found["nodes"]
    assert found["runner"] == side
    assert found["graph_sha256"] == recorded["graph_sha256"]
    return found


def _assert_rates(found: dict[str, Any], spikes: dict[str, np.ndarray]) -> None:
    assert {node["node"] for node in found["nodes"]} == set(spikes), "neurons, and not the input"
    for node in found["nodes"]:
        fired = spikes[node["node"]]
        assert node["spikes"] == fired.sum()
        steps = fired.reshape(len(fired), -1).mean(1, dtype=np.float64)
        assert node["firing_rate_by_step"] == pytest.approx(steps.tolist(), abs=1e-9)


@pytest.mark.parametrize("side", SIDES)
def test_pictures_of_snntorch_are_profiled(side: str, tmp_path: Path) -> None:
    pytest.importorskip("snntorch")
    from snntorch.export_nir import export_to_nir

    net, shape = _snntorch_networks()["pictures"]
    x = _spikes((STEPS, 10, *shape))  # two batches
    nir.write(tmp_path / "theirs.nir", export_to_nir(net, torch.zeros(1, *shape), ignore_dims=[0]))
    sent = _layer_by_layer(net, x)
    found = _profiled(tmp_path, tmp_path / "theirs.nir", side, x, "--dt", SNNTORCH_DT)
    _assert_rates(found, {"1": sent[1], "5": sent[5]})
    conv, first, pool, linear = (found["operations"]["node"][name]["real"] for name in ("0", "1", "2", "4"))
    assert conv["ac_binary"] == _meetings(net[0], x.numpy())
    assert conv["addition"] == x.shape[0] * x.shape[1] * sent[0][0, 0].size, "every channel has a bias"
    assert first["spike"] == sent[1].sum()
    assert pool["addition"] == np.count_nonzero(sent[1]), "windows that do not overlap hold each spike once"
    assert (linear["mac"], "ac_binary" in linear) == (STEPS * 10 * 12 * 5, False), "means are no spikes"


@pytest.mark.parametrize("side", SIDES)
def test_a_recurrent_cell_of_snntorch_is_profiled(side: str, tmp_path: Path) -> None:
    pytest.importorskip("snntorch")
    from snntorch.export_nir import export_to_nir

    net, shape = _snntorch_networks()["a recurrent cell"]
    x = _spikes((STEPS, 2, *shape))
    nir.write(tmp_path / "theirs.nir", export_to_nir(net, torch.zeros(shape), ignore_dims=[]))
    spikes = _layer_by_layer(net, x)[1]
    found = _profiled(tmp_path, tmp_path / "theirs.nir", side, x, "--dt", SNNTORCH_DT)
    _assert_rates(found, {"1.lif": spikes})
    nodes = found["operations"]["node"]
    assert nodes["0"]["real"]["ac_binary"] == 6 * int(x.sum())
    assert nodes["1.w_rec"]["real"]["ac_binary"] == 6 * int(spikes[:-1].sum()), "the last step's arrive nowhere"
    energy = _command("energy", tmp_path / "theirs.nir", "--input", tmp_path / "input.npy", "--dt", SNNTORCH_DT)
    assert energy["operations"]["ac_binary"] == found["operations"]["ac_binary"]
    assert (energy["baseline"]["name"], energy["baseline"]["macs"]) == ("quantized", None)
    assert "T steps cannot become one" in energy["comparisons"][0]["remark"]


@pytest.mark.parametrize("side", SIDES)
def test_a_convolutional_network_of_sinabs_is_profiled(side: str, tmp_path: Path) -> None:
    pytest.importorskip("sinabs")
    import sinabs.layers as layers
    from sinabs.activation import MembraneReset, SingleSpike
    from sinabs.nir import to_nir

    once = {"batch_size": 1, "spike_fn": SingleSpike, "reset_fn": MembraneReset()}
    net = _seeded(
        torch.nn.Conv2d(1, 2, 3, bias=False),
        layers.IAFSqueeze(**once),
        layers.SumPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(18, 3),
        layers.IAFSqueeze(**once),
    )
    x = _spikes((STEPS, 1, 1, 8, 8))
    sent, y = [], x[:, 0]
    with torch.no_grad():
        for layer in net:
            y = layer(y)
            sent.append(y.numpy())
    # sinabs leaves out a shape without which nir.write fails; parse_graph fills it in
    write_nir(tmp_path / "theirs.nir", build_graph(parse_graph(to_nir(net, x[:, 0]), dt=1.0)))
    found = _profiled(tmp_path, tmp_path / "theirs.nir", side, x)
    _assert_rates(found, {"1": sent[1], "5": sent[5]})
    nodes = {name: node["real"] for name, node in found["operations"]["node"].items()}
    assert nodes["0"]["ac_binary"] == _meetings(net[0], x.numpy())
    one, more = (sent[3] == 1).sum(), (sent[3] > 1).sum()
    assert more > 0
    assert (nodes["4"]["ac_binary"], nodes["4"]["ac_graded"]) == (3 * one, 3 * more)
    assert nodes["4"]["ac_graded_additions"] == 3 * sent[3][sent[3] > 1].sum()


@pytest.mark.parametrize("side", SIDES)
def test_the_step_response_of_a_neuron_of_norse_is_profiled(side: str, tmp_path: Path) -> None:
    norse = pytest.importorskip("norse.torch")

    at_rest = torch.zeros(1)
    parameters = norse.LIFBoxParameters(tau_mem_inv=at_rest + 100, v_th=at_rest + 0.1, v_leak=at_rest)
    cell = norse.LIFBoxCell(parameters, dt=NORSE_DT)
    x = torch.zeros(100, 1, 1)
    x[20:80] = 0.2
    spikes, _ = _norse_run(cell, x)
    nir.write(tmp_path / "theirs.nir", norse.to_nir(norse.SequentialState(cell), torch.zeros(1, 1), dt=1.0))
    found = _profiled(tmp_path, tmp_path / "theirs.nir", side, x, "--dt", NORSE_DT)
    assert spikes.sum() >= 3
    _assert_rates(found, {"0": spikes})
    assert found["operations"]["real"]["spike"] == spikes.sum()
    assert found["operations"]["ac_binary"] == 0, "what was fed is no spikes"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "reads values: give --input"),
        (("--text", "a"), "reads values: give --input"),
        (("--input", "INPUT", "--ids", "INPUT"), "only one of them"),
        (("--input", "MISSING"), "is not an .npy array"),
        (("--input", "WIDE"), "this graph takes numbers"),
        (("--input", "INPUT", "--runner", "torch"), "runs models, not the graph of a file"),
        (("--input", "INPUT", "--runner", "trace.npz"), "is a recorded trace"),
        (("--input", "INPUT", "--runner", "chip"), "is not a runner"),
        (("--input", "INPUT", "--precision", "integer"), "quantize it first"),
        (("--trace", "trace.npz"), "stand in place of CHECKPOINT or MODEL.nir"),
    ],
)
@pytest.mark.parametrize("command", ["profile", "energy"])
def test_bad_use_on_a_graph_of_others_ends_with_a_reason(
    command: str, arguments: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    files = {"INPUT": np.ones((3, 2, 4)), "WIDE": np.ones((3, 2, 5))}
    for name, values in files.items():
        np.save(tmp_path / f"{name}.npy", values)
    neurons = {key: np.full(4, value) for key, value in (("tau", 1e-3), ("r", 10.0), ("v_leak", 0), ("v_threshold", 1))}
    nodes = {
        "input": nir.Input({"input": np.array([4])}),
        "fire": nir.LIF(**neurons),
        "output": nir.Output({"output": np.array([4])}),
    }
    nir.write(tmp_path / "theirs.nir", nir.NIRGraph(nodes, [("input", "fire"), ("fire", "output")]))
    given = [str(tmp_path / f"{word}.npy") if word in (*files, "MISSING") else word for word in arguments]
    result = CliRunner().invoke(main, [command, str(tmp_path / "theirs.nir"), "--dt", "1e-4", *given])
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert said in " ".join(result.stderr.split())
    without = CliRunner().invoke(main, [command, str(tmp_path / "theirs.nir"), "--input", str(tmp_path / "INPUT.npy")])
    assert without.exit_code == 2
    assert "says dt, the seconds of a time step" in " ".join(without.stderr.split())


def test_info_and_compare_read_files_that_do_not_say_how_long_a_step_is(tmp_path: Path) -> None:
    pytest.importorskip("snntorch")
    from snntorch.export_nir import export_to_nir

    net, shape = _snntorch_networks()["two layers"]
    path = tmp_path / "theirs.nir"
    nir.write(path, export_to_nir(net, torch.zeros(shape), ignore_dims=[]))
    said = _command("info", path)
    assert said["dt"].startswith("not said: give --dt SECONDS")
    assert said["operators"] == {"Affine": 2, "LIF": 2, "Input": 1, "Output": 1}
    lif = next(node for node in said["nodes"] if node["node"] == "1")
    assert lif["detail"].startswith("tau 0.001, ")  # dt / (1 - beta)
    known = _command("info", path, "--dt", SNNTORCH_DT)
    assert known["dt"] == SNNTORCH_DT
    assert "beta 0.9, threshold 1" in next(node for node in known["nodes"] if node["node"] == "1")["detail"]
    np.save(tmp_path / "input.npy", _spikes((STEPS, 2, *shape)).numpy())
    step = ("--dt", SNNTORCH_DT)
    for name in ("a", "b"):
        _command("simulate", path, "--input", tmp_path / "input.npy", *step, "-o", tmp_path / f"{name}.npz")
    compared = _command("compare", tmp_path / "a.npz", tmp_path / "b.npz", "--graph", path, *step)
    assert compared["equal"]
