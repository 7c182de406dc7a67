"""The promise of our NIR files to others: what is standard in them fires the same spikes in other people's tools.

The tools' own NIR readers read parts of exported models. Where a tool's neuron is not NIR's, the test makes the
adjustment that ``docs/others.md`` describes, and nothing else.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import nir
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from export import parse_graph, to_nir
from export.operators import DEFAULT_DT
from hardware import run
from hardware.traces.trace import Trace

STEPS = 20
WIDTH = 8
MARGIN = 1e-5
"""No potential may come nearer to its threshold, or float32 sums in another order could decide otherwise."""

pytestmark = pytest.mark.filterwarnings("ignore")


def _part(graph: nir.NIRGraph, nodes: list[str], edges: list[tuple[str, str]]) -> nir.NIRGraph:
    """Return standard nodes of an exported graph as a graph of their own."""
    shown = graph.nodes[nodes[-1]].output_type["output"]
    ends = {"input": nir.Input({"input": np.array([WIDTH])}), "output": nir.Output({"output": shown})}
    return nir.NIRGraph({**ends, **{name: graph.nodes[name] for name in nodes}}, edges, metadata={"dt": DEFAULT_DT})


def _mlp(graph: nir.NIRGraph) -> nir.NIRGraph:
    """Return the MLP sub-block of the first block, its norms left out."""
    chain = [f"block00_{part}_{kind}" for part in ("intermediate", "output") for kind in ("affine", "neuron")]
    path = ["input", *chain, "output"]
    return _part(graph, chain, list(itertools.pairwise(path)))


def _block(graph: nir.NIRGraph) -> nir.NIRGraph:
    """Return the first block behind its attention, up to whom the residual stream is for; norms are left out."""
    parts = ("block00_projection", "block00_intermediate", "block00_output", "block01_qkv")
    names = [f"{part}_{kind}" for part in parts for kind in ("affine", "neuron")]
    projection, projected, up, hidden, down, written, reader, last = names
    edges = [("input", projection), (projection, projected), ("input", up), (projected, up), (up, hidden)]
    edges += [(hidden, down), (down, written), ("input", reader), (projected, reader), (written, reader)]
    return _part(graph, names, [*edges, (reader, last), (last, "output")])


PARTS = {"mlp": _mlp, "block": _block}


@pytest.fixture(scope="module")
def spikes_in() -> np.ndarray:
    """Return input spikes (T, WIDTH)."""
    return (np.random.default_rng(5).random((STEPS, WIDTH)) < 0.4).astype(np.float32)


def _expected(part: nir.NIRGraph, x: np.ndarray) -> Trace:
    trace = run(parse_graph(part), x[:, None], precision="float32", record_membrane_potentials=True)
    for name, spikes in trace.spikes.items():
        assert 0.02 < spikes.mean() < 0.98, f"{name}: fires {spikes.mean():.1%} of the time, which shows little"
        assert np.abs(trace.membrane_potentials[name] - trace.thresholds[name]).min() > MARGIN, name
    return trace


def _change_neurons(part: nir.NIRGraph, change: Callable[[nir.LIF], nir.LIF]) -> nir.NIRGraph:
    nodes = {name: change(node) if isinstance(node, nir.LIF) else node for name, node in part.nodes.items()}
    return nir.NIRGraph(nodes, part.edges)


def _in_snntorch(part: nir.NIRGraph, x: np.ndarray) -> np.ndarray:
    """snnTorch's neuron is ours; it wants the step our files have, 1e-4 s."""
    from snntorch.import_nir import import_from_nir

    module, state, shown = import_from_nir(part), None, []
    for step in torch.from_numpy(x):
        y, state = module(step[None], state)
        shown.append(y[0])
    return torch.stack(shown).detach().numpy()


def _in_norse(part: nir.NIRGraph, x: np.ndarray) -> np.ndarray:
    """norse takes r to be 1: a potential smaller by r at a threshold smaller by r fires the same spikes."""
    from norse.torch import from_nir

    def without_resistance(node: nir.LIF) -> nir.LIF:
        return replace(node, r=np.ones_like(node.r), v_threshold=node.v_threshold / node.r)

    module = from_nir(_change_neurons(part, without_resistance), dt=DEFAULT_DT)
    state, shown = None, []
    for step in torch.from_numpy(x):
        y, state = module(step[None], state)
        shown.append(y[0])
    return torch.stack(shown).detach().numpy()


def _in_sinabs(part: nir.NIRGraph, x: np.ndarray) -> np.ndarray:
    """sinabs decays by exp(-1 / tau), fires at equality, as often as fits, and subtracts the threshold."""
    import sinabs.layers
    from sinabs.activation import MembraneReset, SingleSpike
    from sinabs.nir import from_nir

    def in_steps(node: nir.LIF) -> nir.LIF:
        above = np.nextafter(np.float32(node.v_threshold), np.float32(np.inf))
        tau = -1 / np.log(1 - DEFAULT_DT / node.tau)
        values = {"tau": tau, "r": node.r, "v_leak": node.v_leak, "v_threshold": above, "v_reset": node.v_reset}
        return nir.LIF(**{key: torch.from_numpy(np.float32(value)) for key, value in values.items()})

    module = from_nir(_change_neurons(part, in_steps), batch_size=1)
    for layer in module.modules():
        if isinstance(layer, sinabs.layers.LIFSqueeze):
            layer.spike_fn, layer.reset_fn = SingleSpike, MembraneReset()
    y = module(torch.from_numpy(x))  # time is its batch axis
    return (y[0] if isinstance(y, tuple) else y).detach().numpy()


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    ("tool", "reader"), [("snntorch", _in_snntorch), ("norse", _in_norse), ("sinabs", _in_sinabs)], ids=lambda v: v
)
def test_standard_parts_fire_the_same_spikes(
    tool: str, reader: Callable, part: str, make_model: Callable, spikes_in: np.ndarray
) -> None:
    pytest.importorskip(tool)
    graph = PARTS[part](to_nir(make_model(neuron="loihi", threshold=0.8, num_hidden_layers=2), "float32"))
    expected = _expected(graph, spikes_in)
    np.testing.assert_array_equal(reader(graph, spikes_in), expected.outputs[:, 0, 0])


# ---------------------------------------------------------------------------------------------------------------------
# A whole SpikeBERT in nirtorch's executor, our operators registered.


@dataclass(eq=False)
class Marked(nir.NIRNode):
    """A marked operator as one node, so that nirtorch asks its map for a module in place of running the poison."""

    kind: str
    parameters: dict[str, Any]

    @classmethod
    def of(cls, node: nir.NIRGraph) -> Marked:
        made = cls(node.metadata["op"], node.metadata)
        made.input_type, made.output_type = node.input_type, node.output_type
        return made


class _Operator(torch.nn.Module):
    """Layer norm, spike attention and token mean in torch, from their metadata alone."""

    def __init__(self, node: Marked) -> None:
        super().__init__()
        self.kind, self.parameters_of_node = node.kind, node.parameters

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        given = self.parameters_of_node
        if self.kind == "layer_norm":
            size = x.shape[-1] // given["groups"]
            normed = torch.cat([F.layer_norm(part, (size,), eps=given["eps"]) for part in x.split(size, -1)], -1)
            return normed * torch.as_tensor(given["weight"]) + torch.as_tensor(given["bias"])
        if self.kind == "spike_attention":
            query, key, value = (
                part.unflatten(-1, (given["num_heads"], given["head_size"])).transpose(1, 2)
                for part in x.chunk(3, dim=-1)
            )
            return given["scale"] * (query @ key.transpose(-1, -2) @ value).transpose(1, 2).flatten(2)
        assert self.kind == "token_mean"
        return x.mean(1, keepdim=True)


class _Leaky(torch.nn.Module):
    """NIR's LI, I, LIF and IF in steps of forward Euler."""

    def __init__(self, node: nir.LI | nir.I | nir.LIF | nir.IF) -> None:
        super().__init__()
        self.decay = torch.as_tensor(DEFAULT_DT / node.tau if hasattr(node, "tau") else np.zeros(1))
        self.gain = torch.as_tensor(node.r) * (self.decay if hasattr(node, "tau") else DEFAULT_DT)
        self.threshold = torch.as_tensor(node.v_threshold) if hasattr(node, "v_threshold") else None

    def forward(self, x: torch.Tensor, state: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        voltage = (1 - self.decay) * (torch.zeros_like(x) if state is None else state) + self.gain * x
        if self.threshold is None:
            return voltage, voltage
        fired = (voltage > self.threshold).to(x.dtype)
        return fired, voltage * (1 - fired)


class _Step(torch.nn.Module):
    def __init__(self, node: nir.Threshold) -> None:
        super().__init__()
        self.threshold = torch.as_tensor(node.threshold)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x > self.threshold).to(x.dtype)


class _Gain(torch.nn.Module):
    def __init__(self, node: nir.Scale) -> None:
        super().__init__()
        self.gain = torch.as_tensor(node.scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gain


def _linear(node: nir.Affine | nir.Linear) -> torch.nn.Linear:
    """Return the module that nirtorch 2.6 means to make; its own loses the bias."""
    made = torch.nn.Linear(*reversed(node.weight.shape), bias=isinstance(node, nir.Affine))
    made.weight.data = torch.as_tensor(node.weight)
    if isinstance(node, nir.Affine):
        made.bias.data = torch.as_tensor(node.bias)
    return made


@pytest.mark.parametrize("neuron", ["paper", "loihi", "published"])
def test_a_whole_model_in_the_executor_of_nirtorch(neuron: str, make_model: Callable) -> None:
    nirtorch = pytest.importorskip("nirtorch")

    model = make_model(neuron=neuron, threshold=0.4, num_hidden_layers=2).double()
    graph = to_nir(model)
    ids = np.random.default_rng(3).integers(1, 20, (3, 5))
    expected = run(model, ids, runner="torch", precision="float64")
    encoding = parse_graph(graph).token_encoding
    assert encoding is not None
    hot = np.zeros((*ids.shape, encoding.width))
    for columns in encoding.hot_inputs(ids):
        np.put_along_axis(hot, columns[..., None], 1, -1)

    leaky = dict.fromkeys((nir.LI, nir.I, nir.LIF, nir.IF), _Leaky)
    known = {nir.Affine: _linear, nir.Linear: _linear, nir.Threshold: _Step, nir.Scale: _Gain, Marked: _Operator}
    nodes = {
        name: Marked.of(node) if node.metadata.get("standard") is False else node for name, node in graph.nodes.items()
    }
    whole = nir.NIRGraph(nodes, graph.edges, metadata=graph.metadata)
    module = nirtorch.nir_to_torch(whole, {**known, **leaky}, dtype=torch.float64)
    found: dict[str, list[np.ndarray]] = {name: [] for name in expected.spikes}
    for name, part in module.named_modules():
        if name.removesuffix(".spike") in found and isinstance(part, _Step | _Leaky):
            steps = found[name.removesuffix(".spike")]
            part.register_forward_hook(
                lambda _, __, y, steps=steps: steps.append((y[0] if isinstance(y, tuple) else y).numpy())
            )
    state, shown = None, []
    with torch.no_grad():
        for _ in range(model.config.time_steps):
            y, state = module(torch.from_numpy(hot), state)
            shown.append(y.numpy()[:, 0])
    for name, spikes in expected.spikes.items():
        np.testing.assert_array_equal(np.stack(found[name]), spikes, err_msg=name)
        assert 0 < spikes.mean() < 1
    np.testing.assert_allclose(np.mean(shown, 0), expected.logits, rtol=0, atol=1e-12)
