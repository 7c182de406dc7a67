"""Graphs that other tools write, for `benchmarks/unchanged_jobs.py`: seeded, small, with every node that is read here.

The first are made with `nir` alone, the last by the tools themselves where they are installed. Nothing here knows this
project, so that the same graphs reach every version of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np

DT = 1e-3
STEPS, SAMPLES = 12, 3
RATE = 0.4
"""Share of the inputs that are 1."""


@dataclass(frozen=True)
class ForeignGraph:
    """A graph and what is fed to it.

    Attributes
    ----------
    graph : nir.NIRGraph
    shape : tuple of int
        Of an input.
    dt : float
        Seconds of a time step, which the graph does not say.
    complete : bool
        Whether everything is there that `nir.write` wants to see.
    """

    graph: nir.NIRGraph
    shape: tuple[int, ...]
    dt: float = DT
    complete: bool = True

    def inputs(self, seed: int = 0) -> np.ndarray:
        """Return spikes ``(T, B, *shape)``."""
        return (np.random.default_rng(seed).random((STEPS, SAMPLES, *self.shape)) < RATE).astype(np.int64)


def chain(shape: tuple[int, ...], *nodes: nir.NIRNode, out: int) -> ForeignGraph:
    """Return nodes one behind the other."""
    named = {f"node{index}": node for index, node in enumerate(nodes)}
    return paths(shape, named, f"input {' '.join(named)} output", out=out)


def paths(shape: tuple[int, ...], nodes: dict[str, nir.NIRNode], *edges: str, out: int) -> ForeignGraph:
    """Return nodes with edges as ``"a b c"``, a path, each; they lead from ``input`` to ``output``."""
    ends = {"input": nir.Input({"input": np.array(shape)}), "output": nir.Output({"output": np.array([out])})}
    pairs = itertools.chain.from_iterable(itertools.pairwise(path.split()) for path in edges)
    return ForeignGraph(nir.NIRGraph({**ends, **nodes}, list(pairs), type_check=False), shape)


def full(shape: Any, **values: float) -> dict[str, np.ndarray]:
    """Return parameters that are the same for all neurons."""
    return {name: np.full(shape, value) for name, value in values.items()}


def leaky(shape: Any, **changes: float) -> nir.LIF:
    """Return neurons whose input enters by a resistance of their own and whose leak is not towards 0."""
    return nir.LIF(
        **full(shape, **{"tau": 10 * DT, "r": 3.0, "v_leak": 0.05, "v_threshold": 0.4, "v_reset": 0, **changes})
    )


def plain(shape: Any, **changes: float) -> nir.LIF:
    """Return neurons whose input enters whole."""
    return leaky(shape, **{"r": 10.0, "v_leak": 0.0, "v_threshold": 1.0, **changes})


def with_current(shape: Any, **changes: float) -> nir.CubaLIF:
    """Return neurons with synaptic currents."""
    values = {
        "tau_syn": 4 * DT,
        "tau_mem": 8 * DT,
        "r": 2.0,
        "v_leak": 0.02,
        "v_threshold": 0.3,
        "v_reset": 0,
        "w_in": 3.0,
    }
    return nir.CubaLIF(**full(shape, **{**values, **changes}))


def subtractive(width: int, threshold: float) -> nir.NIRGraph:
    """Return neurons that lose their threshold where they fire: a nested graph, as NIR has no node for them."""
    nodes = {
        "input": nir.Input({"input": np.array([width])}),
        "membrane": nir.LI(**full(width, tau=8 * DT, r=8.0, v_leak=0)),
        "spike": nir.Threshold(np.full(width, threshold)),
        "reset": nir.Scale(np.full(width, -threshold)),
        "output": nir.Output({"output": np.array([width])}),
    }
    edges = ("input", "membrane"), ("membrane", "spike"), ("spike", "reset"), ("reset", "membrane"), ("spike", "output")
    return nir.NIRGraph(nodes, list(edges), type_check=False)


def step_response() -> ForeignGraph:
    """One neuron."""
    return chain((1,), nir.Affine(np.array([[1.0]]), np.array([0.1])), leaky(1), out=1)


def pictures() -> ForeignGraph:
    """A convolution in groups with stride, dilation and padding, a pool of means, and two kinds of neurons."""
    rng = np.random.default_rng(1)
    weight, bias = rng.normal(0.2, 0.6, (4, 1, 3, 3)), rng.normal(0, 0.2, 4)
    return chain(
        (2, 8, 8),
        nir.Conv2d((8, 8), weight, (2, 1), (1, 0), (1, 2), 2, bias),
        nir.IF(**full((4, 4, 4), r=1 / DT, v_threshold=1.5, v_reset=0)),
        nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([1, 1])),
        nir.Flatten({"input": np.array([4, 3, 3])}, 0, -1),
        nir.Affine(rng.normal(0.1, 0.6, (5, 36)), rng.normal(0, 0.1, 5)),
        leaky(5),
        out=5,
    )


def summed_pictures() -> ForeignGraph:
    """A pool of sums, between neurons that come to rest elsewhere than at 0 after a spike."""
    rng = np.random.default_rng(2)
    return chain(
        (1, 6, 6),
        nir.Conv2d((6, 6), rng.normal(0.2, 0.5, (3, 1, 3, 3)), 1, 1, 1, 1, np.zeros(3)),
        nir.IF(**full((3, 6, 6), r=1 / DT, v_threshold=1.2, v_reset=0.25)),
        nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])),
        nir.Flatten({"input": np.array([3, 3, 3])}, 0, -1),
        nir.Linear(rng.normal(0.02, 0.2, (4, 27))),
        leaky(4, v_reset=-0.2),
        out=4,
    )


def currents() -> ForeignGraph:
    """Synaptic currents, delays of several steps, a scale, and a leaky integrator as read-out."""
    rng = np.random.default_rng(3)
    return chain(
        (6,),
        nir.Linear(rng.normal(0.1, 0.5, (5, 6))),
        with_current(5),
        nir.Delay(np.array([0.0, 1, 2, 3, 2]) * DT),
        nir.Scale(np.array([0.5, -0.5, 0.5, 0.5, -0.5])),
        nir.Linear(rng.normal(0.2, 0.5, (3, 5))),
        nir.LI(**full(3, tau=6 * DT, r=2.0, v_leak=0.1)),
        out=3,
    )


def integrated() -> ForeignGraph:
    """A read-out that integrates and forgets nothing."""
    rng = np.random.default_rng(4)
    return chain(
        (5,),
        nir.Affine(rng.normal(0.2, 0.5, (6, 5)), rng.normal(0.1, 0.1, 6)),
        plain(6),
        nir.Linear(rng.normal(0.1, 0.5, (3, 6))),
        nir.I(np.full(3, 0.5 / DT)),
        out=3,
    )


def over_time() -> ForeignGraph:
    """A convolution along one axis that keeps its length, and neurons with a current."""
    rng = np.random.default_rng(5)
    return chain(
        (1, 9),
        nir.Conv1d(9, rng.normal(0.2, 0.5, (3, 1, 3)), 1, "same", 1, 1, np.full(3, 0.05)),
        with_current((3, 9)),
        nir.Flatten({"input": np.array([3, 9])}, 0, -1),
        nir.I(np.full(27, 0.5 / DT)),
        nir.Threshold(np.full(27, 2.5)),
        out=27,
    )


def without_neurons() -> ForeignGraph:
    """A residual of a convolution and its own past, a threshold in place of neurons, and an integrator."""
    rng = np.random.default_rng(6)
    nodes = {
        "conv": nir.Conv1d(8, rng.normal(size=(2, 1, 3)), 1, "same", 1, 1, rng.normal(size=2)),
        "late": nir.Delay(np.full((2, 8), 2 * DT)),
        "scale": nir.Scale(rng.normal(size=(2, 8))),
        "fire": nir.Threshold(np.full((2, 8), 0.5)),
        "flat": nir.Flatten({"input": np.array([2, 8])}, 0, -1),
        "sum": nir.I(np.full(16, 0.1 / DT)),
    }
    return paths((1, 8), nodes, "input conv scale fire flat sum output", "conv late scale", out=16)


def cell() -> ForeignGraph:
    """Neurons with a current that read their own spikes through synapses with a bias."""
    rng = np.random.default_rng(7)
    nodes = {
        "in": nir.Linear(rng.normal(0.3, 0.5, (6, 4))),
        "fire": with_current(6, v_threshold=0.9),
        "again": nir.Affine(rng.normal(-0.3, 0.5, (6, 6)), rng.normal(0.1, 0.1, 6)),
        "out": nir.Linear(rng.normal(0, 0.5, (2, 6))),
    }
    return paths((4,), nodes, "input in fire out output", "fire again fire", out=2)


def two_cells() -> ForeignGraph:
    """One reads itself up to three steps later still; the other the input too, and itself by way of two maps."""
    rng = np.random.default_rng(8)
    nodes = {
        "in": nir.Linear(rng.normal(0.3, 0.5, (5, 4))),
        "one": leaky(5),
        "late": nir.Delay(np.array([0.0, 1, 2, 3, 1]) * DT),
        "one_again": nir.Linear(rng.normal(-0.3, 0.5, (5, 5))),
        "skip": nir.Linear(rng.normal(0.1, 0.3, (3, 4))),
        "up": nir.Linear(rng.normal(0.2, 0.4, (3, 5))),
        "two": leaky(3, v_leak=0.0),
        "two_down": nir.Linear(rng.normal(-0.2, 0.5, (2, 3))),
        "two_again": nir.Linear(rng.normal(0.4, 0.5, (3, 2))),
    }
    edges = "input in one up two output", "one late one_again one", "input skip two", "two two_down two_again two"
    return paths((4,), nodes, *edges, out=3)


def nested_cell() -> ForeignGraph:
    """A recurrent cell in a graph of its own, as snnTorch writes it."""
    rng = np.random.default_rng(9)
    inside = paths(
        (5,),
        {"lif": plain(5), "w_rec": nir.Affine(rng.normal(-0.1, 0.4, (5, 5)), rng.normal(0, 0.1, 5))},
        "input lif w_rec lif",
        "lif output",
        out=5,
    )
    return chain(
        (4,), nir.Linear(rng.normal(0.3, 0.5, (5, 4))), inside.graph, nir.Linear(rng.normal(0, 1, (2, 5))), out=2
    )


def residuals() -> ForeignGraph:
    """Convolutions that are added, one in groups, of scaled channels; then maps that are, one behind neurons."""
    rng = np.random.default_rng(10)
    shape = (2, 4, 4)
    nodes = {
        "scale": nir.Scale(np.array([0.5, -1.5])[:, None, None] * np.ones(shape)),
        "one": nir.Conv2d((4, 4), rng.normal(-0.2, 0.6, (4, 2, 3, 3)), 1, 1, 1, 1, rng.normal(0, 0.1, 4)),
        "two": nir.Conv2d((4, 4), rng.normal(0.3, 0.6, (4, 1, 1, 1)), 1, 0, 1, 2, rng.normal(0, 0.1, 4)),
        "fire": leaky((4, 4, 4)),
        "flat": nir.Flatten({"input": np.array([4, 4, 4])}, 0, -1),
        "weigh": nir.Scale(np.linspace(0.25, 1, 64)),
        "map": nir.Affine(rng.normal(0.02, 0.2, (5, 64)), rng.normal(0, 0.1, 5)),
        "skip": nir.Linear(rng.normal(0.02, 0.2, (5, 64))),
        "skipped": leaky(5),
        "up": nir.Linear(rng.normal(0.1, 0.5, (5, 5))),
        "last": leaky(5, v_leak=0.0),
    }
    edges = "input scale one fire flat weigh map last output", "scale two fire", "flat skip skipped up last"
    return paths(shape, nodes, *edges, out=5)


def subtractive_layers() -> ForeignGraph:
    """Two layers of neurons with subtractive reset, and one that it passes by."""
    rng = np.random.default_rng(11)
    nodes = {
        "in": nir.Affine(rng.normal(0.3, 0.5, (6, 4)), rng.normal(0, 0.1, 6)),
        "one": subtractive(6, 1.0),
        "up": nir.Linear(rng.normal(0.2, 0.5, (6, 6))),
        "two": subtractive(6, 0.75),
        "out": nir.Linear(rng.normal(0, 0.5, (2, 6))),
    }
    return paths((4,), nodes, "input in one up two out output", "one out", out=2)


def of_snntorch_pictures() -> ForeignGraph:
    """A convolutional network of snnTorch."""
    from torch import nn

    layers = (
        nn.Conv2d(1, 3, 3, stride=2, padding=1),
        _snntorch_leaky((3, 4, 4), 0.9, 0.7),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(12, 5),
        _snntorch_leaky((5,), 0.8, 0.3),
    )
    return _of_snntorch((1, 8, 8), *layers)


def of_snntorch_cell() -> ForeignGraph:
    """A recurrent cell of snnTorch."""
    import snntorch
    from torch import nn

    fires = {"init_hidden": True, "reset_mechanism": "zero", "reset_delay": False}
    return _of_snntorch((4,), nn.Linear(4, 6), snntorch.RLeaky(beta=0.9, linear_features=6, **fires), nn.Linear(6, 3))


def of_norse() -> ForeignGraph:
    """A network of norse that ends in a leaky integrator."""
    import norse.torch as norse
    import torch

    fires = norse.LIFBoxParameters(tau_mem_inv=torch.tensor(100.0), v_th=torch.tensor(0.05))
    forgets = norse.LIBoxParameters(tau_mem_inv=torch.tensor(200.0))
    layers = (
        torch.nn.Linear(4, 6),
        norse.LIFBoxCell(fires, dt=DT),
        torch.nn.Linear(6, 3),
        norse.LIBoxCell(forgets, dt=DT),
    )
    net = _seeded(norse.SequentialState(*layers))
    # a step of 1 keeps its time constants in seconds
    return ForeignGraph(norse.to_nir(net, torch.zeros(1, 4), dt=1.0), (4,), complete=False)


def of_sinabs() -> ForeignGraph:
    """A convolutional network of sinabs, of neurons that do not leak."""
    import sinabs.layers as layers
    import torch
    from sinabs.activation import MembraneReset, SingleSpike
    from sinabs.nir import to_nir
    from torch import nn

    once = {"batch_size": 1, "spike_fn": SingleSpike, "reset_fn": MembraneReset()}
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3, bias=False),
        layers.IAFSqueeze(**once),
        layers.SumPool2d(2),
        nn.Flatten(),
        nn.Linear(18, 3),
        layers.IAFSqueeze(**once),
    )
    graph = to_nir(_seeded(net), torch.zeros(STEPS, 1, 8, 8))
    return ForeignGraph(graph, (1, 8, 8), dt=1.0, complete=False)


GRAPHS: dict[str, tuple[Callable[[], ForeignGraph], str | None]] = {
    "step response": (step_response, None),
    "pictures": (pictures, None),
    "summed pictures": (summed_pictures, None),
    "currents": (currents, None),
    "integrated": (integrated, None),
    "over time": (over_time, None),
    "without neurons": (without_neurons, None),
    "cell": (cell, None),
    "two cells": (two_cells, None),
    "nested cell": (nested_cell, None),
    "residuals": (residuals, None),
    "subtractive": (subtractive_layers, None),
    "snnTorch pictures": (of_snntorch_pictures, "snntorch"),
    "snnTorch cell": (of_snntorch_cell, "snntorch"),
    "norse": (of_norse, "norse"),
    "sinabs": (of_sinabs, "sinabs"),
}
"""Graphs by name: what makes them, and the tool that has to be installed for it."""


def _snntorch_leaky(shape: tuple[int, ...], beta: float, threshold: float) -> Any:
    import snntorch
    import torch

    fires = {"init_hidden": True, "reset_mechanism": "zero", "reset_delay": False}
    return snntorch.Leaky(beta=torch.full(shape, beta), threshold=torch.full(shape, threshold), **fires)


def _of_snntorch(shape: tuple[int, ...], *layers: Any) -> ForeignGraph:
    import torch
    from snntorch.export_nir import export_to_nir

    pictures = len(shape) > 1
    net = _seeded(torch.nn.Sequential(*layers))
    graph = export_to_nir(net, torch.zeros((1, *shape) if pictures else shape), ignore_dims=[0] if pictures else [])
    return ForeignGraph(graph, shape, dt=1e-4)


def _seeded(net: Any) -> Any:
    import torch

    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (p for p in net.parameters() if p.dim()):
            parameter.copy_(0.1 + 0.5 * torch.randn(parameter.shape, generator=generator))
    return net
