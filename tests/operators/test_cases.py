"""The promise of every operator: each runner computes what its docstring says.

Every case of ``export.operators`` goes as a graph of one operator through a NIR file to every runner that executes
graphs, and is compared with a meaning written here in torch or plain Python, which shares no code with the operator:
spikes to the last one, numbers within 1e-12.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from export import build_graph, read_nir, write_nir
from export.cases import network_of_case
from export.network import NetworkBuilder
from export.operators import (
    Affine,
    Case,
    Convolution,
    Delay,
    Flatten,
    Heaviside,
    LayerNorm,
    LeakyIntegrateAndFire,
    LeakyIntegrator,
    Pooling,
    PreviousStep,
    ResistiveNeuron,
    Scale,
    SpikeAttention,
    TokenMean,
    Total,
    all_cases,
    all_integer_cases,
    all_operators,
)
from hardware import open_runner

TOLERANCE = 1e-12
CASES = all_cases()
RUNNERS = ["reference", "onnx", pytest.param("lava", marks=pytest.mark.lava)]


def _expected(case: Case) -> tuple[np.ndarray, np.ndarray | None]:
    """Return outputs (T, B, N, C), (T, B, 1, C) behind a token mean, and for neurons their potentials."""
    operator, x = case.operator, torch.from_numpy(case.inputs)
    mask = torch.ones(x.shape[1:3], dtype=torch.bool) if case.token_mask is None else torch.from_numpy(case.token_mask)
    if isinstance(operator, Affine):
        bias = None if operator.bias is None else torch.from_numpy(operator.bias)
        return F.linear(x, torch.from_numpy(operator.weight), bias).numpy(), None
    if isinstance(operator, LayerNorm):
        size = operator.weight.shape[0] // operator.groups
        weight, bias = (torch.from_numpy(part).split(size) for part in (operator.weight, operator.bias))
        normed = [
            F.layer_norm(part, (size,), weight[i], bias[i], operator.eps) for i, part in enumerate(x.split(size, -1))
        ]
        return torch.cat(normed, -1).numpy(), None
    if isinstance(operator, SpikeAttention):
        width = operator.num_heads * operator.head_size
        query, key, value = (
            part.unflatten(-1, (operator.num_heads, operator.head_size)) for part in x.split(width, -1)
        )
        score = torch.einsum("tbnhd,tbmhd->tbhnm", query, key).masked_fill(~mask[None, :, None, None, :], 0)
        return (operator.scale * torch.einsum("tbhnm,tbmhd->tbnhd", score, value)).flatten(-2).numpy(), None
    if isinstance(operator, TokenMean):
        means = [torch.stack([x[:, b, mask[b]].mean(1)], 1) for b in range(x.shape[1])]
        return torch.stack(means, 1).numpy(), None
    if isinstance(operator, Heaviside):
        above = case.inputs >= 0 if operator.fire_on_equal else case.inputs > 0
        return above * mask.numpy()[None, :, :, None], case.inputs
    if isinstance(operator, Convolution):
        picture = F.pad(
            x.flatten(0, 2).reshape(-1, *operator.in_shape), [n for pads in reversed(operator.padding) for n in pads]
        )
        convolve = F.conv1d if len(operator.size) == 1 else F.conv2d
        weight, bias = torch.from_numpy(operator.weight), torch.from_numpy(operator.bias)
        y = convolve(picture, weight, bias, operator.stride, 0, operator.dilation, operator.groups)
        return y.reshape(*x.shape[:3], -1).numpy(), None
    if isinstance(operator, Pooling):
        picture = x.flatten(0, 2).reshape(-1, *operator.shape)
        divisor = None if operator.mean else 1
        y = F.avg_pool2d(picture, operator.kernel, operator.stride, operator.padding, divisor_override=divisor)
        return y.reshape(*x.shape[:3], -1).numpy(), None
    if isinstance(operator, Flatten):
        return case.inputs, None
    if isinstance(operator, Scale):
        return (x * torch.from_numpy(operator.scale)).numpy(), None
    if isinstance(operator, Delay):
        late = np.zeros(case.inputs.shape)
        for feature, steps in enumerate(operator.steps.tolist()):
            for t in range(steps, len(late)):
                late[t, ..., feature] = case.inputs[t - steps, ..., feature]
        return late, None
    one_neuron = {LeakyIntegrateAndFire: _one_neuron, ResistiveNeuron: _one_resistive, LeakyIntegrator: _one_integrator}
    assert type(operator) in one_neuron, f"{operator.name}: write its meaning here"
    spikes, potentials = np.zeros(case.inputs.shape), np.zeros(case.inputs.shape)
    for index in np.ndindex(case.inputs.shape[1:]):
        every_step = (slice(None), *index)
        run_one = one_neuron[type(operator)]
        spikes[every_step], potentials[every_step] = run_one(operator, index[-1], case.inputs[every_step])
    if isinstance(operator, LeakyIntegrator):
        return potentials, None
    return spikes * mask.numpy()[None, :, :, None], potentials


def _one_neuron(neuron: LeakyIntegrateAndFire, feature: int, current: np.ndarray) -> tuple[list[float], list[float]]:
    """Run one neuron in plain Python, as snntorch.Leaky and SpikingJelly's LIFNode are written."""
    beta, tau, threshold = (float(p[feature]) for p in (neuron.beta, neuron.tau, neuron.threshold))
    membrane, fired, spikes, tested = 0.0, False, [], []
    for drive in map(float, current):
        membrane = membrane + (drive - membrane) / tau if neuron.decay_input else beta * membrane + drive
        if neuron.reset == "subtract" and fired:
            membrane = membrane - threshold
        tested.append(membrane)
        fired = membrane > threshold or (neuron.fire_on_equal and membrane == threshold)
        spikes.append(float(fired))
        if neuron.reset == "zero" and fired:
            membrane = 0.0
    return spikes, tested


def _one_resistive(neuron: ResistiveNeuron, feature: int, drive: np.ndarray) -> tuple[list[float], list[float]]:
    """Run one neuron in plain Python, as NIR's differential equations say for Euler steps."""
    given = {key: None if value is None else float(value[feature]) for key, value in vars(neuron).items()}
    current, membrane, spikes, tested = 0.0, 0.0, [], []
    for x in map(float, drive):
        if given["tau_syn"] is None:
            current = x
        else:
            current += (1 / given["tau_syn"]) * (-current + given["w_in"] * x)
        if given["tau"] is None:
            membrane += given["r"] * current
        else:
            membrane += (1 / given["tau"]) * ((given["v_leak"] - membrane) + given["r"] * current)
        tested.append(membrane)
        spikes.append(float(membrane > given["threshold"]))
        if spikes[-1]:
            membrane = given["v_reset"]
    return spikes, tested


def _one_integrator(node: LeakyIntegrator, feature: int, drive: np.ndarray) -> tuple[list[float], list[float]]:
    """Run one integrator likewise."""
    tau = None if node.tau is None else float(node.tau[feature])
    r, leak = float(node.r[feature]), float(node.v_leak[feature])
    membrane, sent = 0.0, []
    for x in map(float, drive):
        membrane += r * x if tau is None else (1 / tau) * ((leak - membrane) + r * x)
        sent.append(membrane)
    return [0.0] * len(sent), sent


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_every_runner_computes_the_meaning(case: Case, runner: str, tmp_path: Path) -> None:
    graph = read_nir(write_nir(tmp_path / "case.nir", build_graph(network_of_case(case), np.float64)))
    options = {"granularity": "network"} if runner == "lava" else {}
    with open_runner(graph, runner, record_membrane_potentials=True, **options) as opened:
        trace = opened.run(case.inputs, case.token_mask)
    outputs, potentials = _expected(case)
    real = np.ones(outputs.shape[1:3], bool)
    if case.token_mask is not None and not isinstance(case.operator, TokenMean):
        real = case.token_mask  # what is not a neuron may show anything at padding
    found = trace.outputs.reshape(outputs.shape)
    if case.operator.spikes:
        np.testing.assert_array_equal(trace.spikes["node"], outputs)
        np.testing.assert_array_equal(found, outputs)
        assert potentials is not None
        np.testing.assert_allclose(
            trace.membrane_potentials["node"][:, real], potentials[:, real], rtol=0, atol=TOLERANCE
        )
    else:
        assert trace.spikes == {}
        np.testing.assert_allclose(found[:, real], outputs[:, real], rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(
            trace.logits.reshape(outputs.shape[1:])[real], outputs.mean(0)[real], rtol=0, atol=TOLERANCE
        )


@pytest.mark.parametrize("runner", RUNNERS)
def test_every_runner_adds_what_several_edges_bring(runner: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    weights = [rng.normal(size=(3, 4)) for _ in range(3)]
    builder = NetworkBuilder("input", 4)
    parts = [builder.add(f"part{index}", Affine(weight), "input") for index, weight in enumerate(weights)]
    builder.add("sum", Affine(np.eye(3)), parts)
    graph = read_nir(write_nir(tmp_path / "sum.nir", build_graph(builder.network("output", "sum"), np.float64)))
    x = rng.normal(size=(2, 2, 3, 4))
    options = {"granularity": "operator"} if runner == "lava" else {}
    with open_runner(graph, runner, **options) as opened:
        found = opened.run(x).outputs
    np.testing.assert_allclose(found, np.einsum("tbni,oi->tbno", x, sum(weights)), rtol=0, atol=TOLERANCE)


def test_every_operator_has_a_case() -> None:
    kinds = {kind for kind in all_operators() if kind.__module__.startswith("export.")}
    cases = {type(case.operator) for case in (*CASES, *all_integer_cases())}
    assert cases == kinds - {Total, PreviousStep}  # edges: see above, and tests/export/test_foreign_graph.py
    assert len({case.title for case in CASES}) == len(CASES)


def test_the_cases_tell_at_equality_from_above() -> None:
    for case in CASES:
        if isinstance(case.operator, LeakyIntegrateAndFire | Heaviside | ResistiveNeuron):
            _, potentials = _expected(case)
            assert (potentials == case.operator.threshold).any(), f"{case.title}: no potential equals its threshold"
