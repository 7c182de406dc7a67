"""The promise of other tools' graphs in whole numbers: written by the tool itself, quantized here, they run everywhere.

Each network is made, run and written with the tool. Its integers are held against the equations in torch int64
(``tests/conftest.py``), their spikes against what the tool itself computed, counts against torch, and a chip's account
against the graph's own shapes. Step responses of a neuron, pictures, recurrent cells, and residuals.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click.testing
import nir
import numpy as np
import pytest
import torch
from integer_equations import simulate
from torch import Tensor, nn

from export import parse_graph, quantize_with_report, read_nir, write_nir
from export.network import Network
from hardware import count_operations, estimate_energy, open_runner, place, profile, run
from hardware.energy.baselines import QuantizedTwin
from hardware.traces.trace import Trace
from spikebert.cli import main

STEPS, SAMPLES = 30, 3
SNNTORCH_DT, NORSE_DT = 1e-4, 1e-3

pytestmark = pytest.mark.filterwarnings("ignore")


@dataclass(frozen=True)
class Theirs:
    """A network of another tool.

    Attributes
    ----------
    graph : nir.NIRGraph
        As the tool wrote it.
    dt : float
        Seconds of a step.
    inputs : ndarray
        ``(T, B, *shape)``, 0 or 1.
    outputs : ndarray or None
        What the tool computed, ``(T, B, ...)``; None where it cannot run what it writes.
    agreement : float
        Least share of the outputs' spikes, or for potentials least correlation, that whole numbers have to keep.
    on_loihi1 : tuple of str
        Nodes that send whole numbers, which a chip whose spikes are one bit must refuse.
    """

    graph: nir.NIRGraph
    dt: float
    inputs: np.ndarray
    outputs: np.ndarray | None
    agreement: float = 0.97
    on_loihi1: tuple[str, ...] = ()


def _spikes(*shape: int, seed: int = 0, samples: int = SAMPLES) -> Tensor:
    return (torch.rand((STEPS, samples, *shape), generator=torch.Generator().manual_seed(seed)) < 0.4).float()


def _seeded(net: nn.Module, scale: float = 0.5, seed: int = 1) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (p for p in net.parameters() if p.dim()):
            parameter.copy_(0.1 + scale * torch.randn(parameter.shape, generator=generator))
    return net


def _shown(net: nn.Module, x: Tensor) -> np.ndarray:
    """Show the input step by step to a network that holds its state itself."""
    with torch.no_grad():
        shown = [net(step) for step in x]
    return torch.stack([y[0] if isinstance(y, tuple) else y for y in shown]).numpy()


# --- snnTorch ---


def _of_snntorch(net: nn.Sequential, *shape: int, runs: bool = True, **rest: Any) -> Theirs:
    from snntorch.export_nir import export_to_nir

    pictures = len(shape) > 1
    example = torch.zeros((1, *shape) if pictures else shape)
    x = _spikes(*shape)
    outputs = _shown(_seeded(net), x) if runs else None
    if not runs:
        _seeded(net)
    graph = export_to_nir(net, example, ignore_dims=[0] if pictures else [])
    return Theirs(graph, SNNTORCH_DT, x.numpy(), outputs, **rest)


def _leaky(*shape: int, beta: float = 0.9, threshold: float = 1.0) -> nn.Module:
    import snntorch

    return snntorch.Leaky(
        beta=torch.full(shape, beta),
        threshold=torch.full(shape, threshold),
        init_hidden=True,
        reset_mechanism="zero",
        reset_delay=False,
    )


def _snntorch_step_response() -> Theirs:
    return _of_snntorch(nn.Sequential(nn.Linear(1, 1), _leaky(1, beta=0.95)), 1)


def _snntorch_synapses() -> Theirs:
    import snntorch

    six = torch.ones(6)
    settings = {"init_hidden": True, "reset_mechanism": "zero", "reset_delay": False}
    neuron = snntorch.Synaptic(alpha=0.7 * six, beta=0.9 * six, threshold=2 * six, **settings)
    return _of_snntorch(nn.Sequential(nn.Linear(4, 6), neuron), 4)


def _snntorch_pictures() -> Theirs:
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2, padding=1),
        _leaky(3, 4, 4, threshold=0.7),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(12, 5),
        _leaky(5, beta=0.8, threshold=0.3),
    )
    return _of_snntorch(net, 1, 8, 8, agreement=0.95, on_loihi1=("3",))


def _snntorch_cell(**changes: Any) -> Theirs:
    import snntorch

    settings = {"beta": 0.9, "init_hidden": True, "reset_mechanism": "zero", "reset_delay": False, **changes}
    return _of_snntorch(nn.Sequential(nn.Linear(4, 6), snntorch.RLeaky(**settings), nn.Linear(6, 3), _leaky(3)), 4)


def _snntorch_all_to_all() -> Theirs:
    return _snntorch_cell(linear_features=6)


def _snntorch_one_to_one() -> Theirs:
    return _snntorch_cell(V=torch.ones(6), all_to_all=False)


def _snntorch_cell_with_synapses() -> Theirs:
    """What snnTorch 1.0 writes and cannot run itself with the reset that its file means."""
    import snntorch

    cell = snntorch.RSynaptic(alpha=0.7, beta=0.9, threshold=4.0, linear_features=6, reset_mechanism="zero")
    return _of_snntorch(nn.Sequential(nn.Linear(4, 6), cell), 4, runs=False)


# --- norse ---


def _of_norse(net: nn.Module, *shape: int, **rest: Any) -> Theirs:
    import norse.torch as norse

    x, state, shown = _spikes(*shape), None, []
    with torch.no_grad():
        for step in x:
            y, state = net(step, state)
            shown.append(y)
    # a step of 1 keeps its time constants in seconds
    graph = norse.to_nir(net, x[0, :1], dt=1.0)
    return Theirs(graph, NORSE_DT, x.numpy(), torch.stack(shown).numpy(), **rest)


def _norse_box(threshold: float, tau_mem_inv: float = 100.0) -> nn.Module:
    import norse.torch as norse

    return norse.LIFBoxCell(
        norse.LIFBoxParameters(tau_mem_inv=torch.tensor(tau_mem_inv), v_th=torch.tensor(threshold)), dt=NORSE_DT
    )


def _norse_step_response() -> Theirs:
    import norse.torch as norse

    return _of_norse(_seeded(norse.SequentialState(nn.Linear(1, 1), _norse_box(0.05))), 1)


def _norse_pictures() -> Theirs:
    import norse.torch as norse

    net = norse.SequentialState(
        nn.Conv2d(1, 3, 3, padding=1), _norse_box(0.08), nn.Conv2d(3, 2, 2, stride=2), _norse_box(0.08)
    )
    return _of_norse(_seeded(net), 1, 6, 6, agreement=0.95)


def _norse_readout() -> Theirs:
    import norse.torch as norse

    integrator = norse.LIBoxCell(norse.LIBoxParameters(tau_mem_inv=torch.tensor(200.0)), dt=NORSE_DT)
    return _of_norse(_seeded(norse.SequentialState(nn.Linear(4, 6), _norse_box(0.05), nn.Linear(6, 3), integrator)), 4)


# --- sinabs ---


def _of_sinabs(net: nn.Module, dt: float, *shape: int, **rest: Any) -> Theirs:
    from sinabs.nir import to_nir

    x = _spikes(*shape, samples=1)
    with torch.no_grad():
        outputs = net(x[:, 0]).numpy()[:, None]  # time is its batch axis
    return Theirs(to_nir(net, x[:, 0]), dt, x.numpy(), outputs, **rest)


def _once() -> dict[str, Any]:
    from sinabs.activation import MembraneReset, SingleSpike

    return {"batch_size": 1, "spike_fn": SingleSpike, "reset_fn": MembraneReset()}


def _sinabs_step_response() -> Theirs:
    import sinabs.layers as layers

    tau = 10.0
    neuron = layers.LIFSqueeze(tau_mem=tau, spike_threshold=0.1, norm_input=True, **_once())
    dt = tau * (1 - math.exp(-1 / tau))  # its decay is exp(-1 / tau): docs/others.md
    return _of_sinabs(_seeded(nn.Sequential(nn.Linear(1, 1), neuron)), dt, 1)


def _sinabs_pictures() -> Theirs:
    import sinabs.layers as layers

    net = nn.Sequential(
        nn.Conv2d(1, 2, 3, bias=False),
        layers.IAFSqueeze(**_once()),
        layers.SumPool2d(2),
        nn.Conv2d(2, 4, 2, padding=1),
        layers.IAFSqueeze(**_once()),
        nn.Flatten(),
        nn.Linear(64, 3),
        layers.IAFSqueeze(spike_threshold=torch.tensor(10.0), **_once()),
    )
    # neurons that do not leak: a spike more or less shifts all that follow
    return _of_sinabs(_seeded(net, 0.4), 1.0, 1, 8, 8, agreement=0.8, on_loihi1=("2",))


# --- nirtorch ---


class _Neurons(nn.Module):
    """What nirtorch asks its map for; it holds its potential itself."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape, self.potential = shape, torch.zeros(SAMPLES, *shape)

    def forward(self, x: Tensor) -> Tensor:
        self.potential = 0.9 * self.potential + x
        fired = (self.potential > 1).float()
        self.potential = self.potential * (1 - fired)
        return fired


class _Residual(nn.Module):
    """A block whose stream is the sum of what two maps, one behind the other's neurons, make of their inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.skip, self.down = nn.Linear(4, 6), nn.Linear(4, 5), nn.Linear(6, 5)
        self.hidden, self.fire = _Neurons(6), _Neurons(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fire(self.down(self.hidden(self.up(x))) + self.skip(x))


class _ResidualOfPictures(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.beside = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(2, 3, 1)
        self.again, self.past = nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.Conv2d(2, 3, 1)
        self.one, self.two = _Neurons(3, 5, 5), _Neurons(3, 5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.again(self.one(self.first(x) + self.beside(x))) + self.past(x))


def _of_nirtorch(net: nn.Module, *shape: int, **rest: Any) -> Theirs:
    import nirtorch

    def neurons(module: _Neurons) -> nir.LIF:
        values = {"tau": 10.0, "r": 10.0, "v_leak": 0.0, "v_threshold": 1.0, "v_reset": 0.0}
        return nir.LIF(**{key: np.full(module.shape, value) for key, value in values.items()})

    def convolution(module: nn.Conv2d) -> nir.Conv2d:
        weight, bias = (part.detach().numpy() for part in (module.weight, module.bias))
        return nir.Conv2d(None, weight, module.stride, module.padding, module.dilation, module.groups, bias)

    graph = nirtorch.torch_to_nir(_seeded(net, 0.4), {_Neurons: neurons, nn.Conv2d: convolution}, type_check=False)
    x = _spikes(*shape)
    (name,) = (name for name, node in graph.nodes.items() if isinstance(node, nir.Input))
    graph.nodes[name] = nir.Input({"input": np.array(shape)})  # it traces without an example, and knows no shape
    return Theirs(graph, 1.0, x.numpy(), _shown(net, x), **rest)


def _nirtorch_residual() -> Theirs:
    return _of_nirtorch(_Residual(), 4, agreement=0.95)


def _nirtorch_residual_of_pictures() -> Theirs:
    return _of_nirtorch(_ResidualOfPictures(), 2, 5, 5, agreement=0.95)


MADE = {
    "snntorch step response": _snntorch_step_response,
    "snntorch synapses": _snntorch_synapses,
    "snntorch pictures": _snntorch_pictures,
    "snntorch cell, all to all": _snntorch_all_to_all,
    "snntorch cell, one to one": _snntorch_one_to_one,
    "snntorch cell with synapses": _snntorch_cell_with_synapses,
    "norse step response": _norse_step_response,
    "norse pictures": _norse_pictures,
    "norse readout": _norse_readout,
    "sinabs step response": _sinabs_step_response,
    "sinabs pictures": _sinabs_pictures,
    "nirtorch residual": _nirtorch_residual,
    "nirtorch residual of pictures": _nirtorch_residual_of_pictures,
}


@dataclass(frozen=True)
class Quantized:
    """What was made of it: the float network, the graph of integers as its file has it, and that as a network."""

    theirs: Theirs
    floats: Network
    graph: nir.NIRGraph
    integers: Network

    def run(self, runner: str = "integer", **options: Any) -> Trace:
        return run(self.graph, self.theirs.inputs, runner=runner, precision="integer", **options)


@pytest.fixture(scope="module", params=list(MADE))
def quantized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    """Return each network of another tool in whole numbers, its scales chosen on its first sample."""
    pytest.importorskip(request.param.split()[0])
    theirs = MADE[request.param]()
    floats = parse_graph(theirs.graph, theirs.dt)
    graph, report = quantize_with_report(floats, theirs.inputs[:, :1])
    assert all(layer.found is None and layer.agreement > 0.97 for layer in report.layers), report.layers
    read = read_nir(write_nir(tmp_path_factory.mktemp("theirs") / "integer.nir", graph))
    return Quantized(theirs, floats, read, parse_graph(read))


@pytest.mark.parametrize("runner", ["reference", "integer", "onnx", pytest.param("lava", marks=pytest.mark.lava)])
def test_every_runner_computes_the_equations(quantized: Quantized, runner: str) -> None:
    expected = simulate(quantized.graph, quantized.theirs.inputs)
    options = {"granularity": "network"} if runner == "lava" else {}
    trace = quantized.run(runner, record_membrane_potentials=True, **options)
    assert set(trace.spikes) == {node.name for node in quantized.floats.spiking_nodes}
    for name, spikes in trace.spikes.items():
        assert 0.02 < spikes.mean() < 0.98, f"{name}: fires {spikes.mean():.1%} of the time, which shows little"
        np.testing.assert_array_equal(spikes, expected.spikes[name], err_msg=name)
        np.testing.assert_array_equal(trace.membrane_potentials[name], expected.potentials[name], err_msg=name)
    readout = quantized.integers.readout
    assert readout is not None
    shown = expected.sent[quantized.integers.output_name].numpy() + readout.bias
    np.testing.assert_array_equal(trace.outputs, shown * readout.unit)


def test_it_does_nearly_what_the_tool_computed(quantized: Quantized) -> None:
    outputs, inputs = quantized.theirs.outputs, quantized.theirs.inputs
    floats = run(quantized.floats, inputs, precision="float32").outputs
    if outputs is None:  # ours stand for what the tool cannot run
        outputs = floats
    outputs = outputs.reshape(floats.shape)
    np.testing.assert_allclose(floats, outputs, rtol=0, atol=1e-6)
    found = quantized.run().outputs
    fires = set(np.unique(outputs)) == {0, 1}
    alike = np.mean(found == outputs) if fires else np.corrcoef(found.ravel(), outputs.ravel())[0, 1]
    assert alike > quantized.theirs.agreement


def _connections(node: nir.NIRNode, x: Tensor) -> int:
    """Return how many synapses of a map the places of `x` that are not 0 reach, in torch."""
    if isinstance(node, nir.Affine | nir.Linear):
        return int(torch.count_nonzero(x)) * node.weight.shape[0]
    size = np.atleast_1d(node.input_shape).tolist()
    hot = (x != 0).double().reshape(-1, node.weight.shape[1] * int(node.groups), *size)
    sides = {key: tuple(np.atleast_1d(getattr(node, key)).tolist()) for key in ("stride", "padding", "dilation")}
    ones = torch.ones(node.weight.shape, dtype=torch.float64)
    return int(nn.functional.conv2d(hot, ones, **sides, groups=int(node.groups)).sum())


def _maps(graph: nir.NIRGraph) -> dict[str, nir.NIRNode]:
    kinds = (nir.Affine, nir.Linear, nir.Conv2d)
    return {str(name): node for name, node in graph.nodes.items() if isinstance(node, kinds)}


def test_it_is_profiled_and_its_operations_are_those_its_spikes_cause(quantized: Quantized) -> None:
    inputs = quantized.theirs.inputs
    expected = simulate(quantized.graph, inputs)
    trace = quantized.run()
    rates = profile(trace, quantized.integers).nodes
    assert {name: node.firing_rate for name, node in rates.items()} == pytest.approx(
        {node.name: expected.spikes[node.name].double().mean().item() for node in quantized.floats.spiking_nodes}
    )
    trace.spikes[quantized.integers.input_name] = inputs.reshape(*inputs.shape[:2], 1, -1).astype(np.uint8)
    counts = count_operations(trace, quantized.integers)
    maps = _maps(quantized.graph)
    assert maps
    for name, node in maps.items():
        counted = counts.nodes[name].real
        assert "mac" not in counted, f"{name}: what it reads is spikes and sums of them"
        events = counted["ac_binary"] + counted.get("ac_graded", 0)
        assert events == _connections(node, expected.read[name])
    fired = sum(int(expected.spikes[node.name].sum()) for node in quantized.floats.spiking_nodes)
    assert counts.totals["spike"] == fired
    twin = QuantizedTwin(quantized.integers, STEPS)
    assert (twin.obstacle is not None) == any(node.operator.name == "previous_step" for node in quantized.floats.nodes)
    if twin.obstacle is None:
        dense = (_connections(node, torch.ones_like(expected.read[name][0, :1])) for name, node in maps.items())
        assert twin.macs(1) == sum(dense)
    for model in ("paper", "loihi1"):
        assert 0 < estimate_energy(trace, quantized.integers, model).total_energy_mj < math.inf


def test_it_is_placed(quantized: Quantized) -> None:
    shown = simulate(quantized.graph, quantized.theirs.inputs)
    found = place(quantized.integers, "loihi2")
    assert found.fits, found.violations
    rows = {row["node"]: row for row in found.node_rows()}
    for node in quantized.floats.spiking_nodes:
        assert rows[node.name]["neurons"] == shown.spikes[node.name].shape[-1]
    everywhere = {
        name: _connections(node, torch.ones_like(shown.read[name][0, :1]))
        for name, node in _maps(quantized.graph).items()
    }
    in_populations = {
        projection.weights: 0
        for population in found.mapping.populations.values()
        for projection in population.projections
    }
    assert everywhere.keys() <= in_populations.keys(), "every map is synapses"
    relays = [name for name, population in found.mapping.populations.items() if population.kind == "relay"]
    synapses = sum(row["synapses"] for name, row in rows.items() if name not in relays)
    assert synapses == sum(everywhere.values())
    on_loihi1 = place(quantized.integers, "loihi1")
    assert [(violation.rule, violation.node) for violation in on_loihi1.violations] == [
        ("graded_values", name) for name in quantized.theirs.on_loihi1
    ]
    assert all("take a chip with graded spikes" in violation.remedy for violation in on_loihi1.violations)


@pytest.mark.parametrize("name", ["snntorch pictures", "snntorch cell, all to all"])
def test_the_commands_take_their_file_from_end_to_end(name: str, tmp_path: Path) -> None:
    pytest.importorskip("snntorch")
    theirs = MADE[name]()
    nir.write(tmp_path / "theirs.nir", theirs.graph)
    np.save(tmp_path / "spikes.npy", theirs.inputs)

    def says(*arguments: str, exits: int = 0) -> dict[str, Any]:
        paths = [str(tmp_path / part) if part.endswith((".nir", ".npy", ".npz")) else part for part in arguments]
        result = click.testing.CliRunner().invoke(main, [*paths, "--json"])
        assert result.exit_code == exits, result.output
        return json.loads(result.stdout)

    dt = str(theirs.dt)
    says("quantize", "theirs.nir", "-o", "integer.nir", "--dt", dt, "--calibration", "spikes.npy")
    simulated = says("simulate", "integer.nir", "--runner", "integer", "--input", "spikes.npy", "-o", "trace.npz")
    with open_runner(read_nir(tmp_path / "integer.nir"), "reference", "integer") as opened:
        trace = opened.run(theirs.inputs)
    rates = {name: trace.firing_rate(name) for name in trace.spikes}
    assert simulated["firing_rates"] == pytest.approx(rates)
    profiled = says("profile", "--trace", "trace.npz", "--graph", "integer.nir")
    assert {node["node"]: node["firing_rate"] for node in profiled["nodes"]} == pytest.approx(rates)
    assert says("energy", "integer.nir", "--input", "spikes.npy", "--runner", "integer")["energy_mj"]["paper"] > 0
    assert says("place", "integer.nir", "--chip", "loihi2")["fits"] is True
    exits = 1 if theirs.on_loihi1 else 0
    assert says("place", "integer.nir", "--chip", "loihi1", exits=exits)["fits"] is not bool(exits)
