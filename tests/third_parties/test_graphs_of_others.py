"""The promise of NIR graphs from other tools: run here, they do what they do there.

Each network is made, run and written with the tool itself; what the tool computed is what ours must compute. Where a
tool's file says less than the tool does, the test makes the adjustment that ``docs/others.md`` describes.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch

from export import build_graph, parse_graph, read_nir, write_nir
from export.network import Network
from export.nir_file import read_network
from hardware import run
from hardware.trace import Trace

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
