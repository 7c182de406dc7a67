"""The promises of the NIR file: it holds the model to the last bit, and what is not standard in it is poison.

What is read back is compared field by field; what standard nodes mean is computed here by an interpreter that knows
only NIR's own primitives; numbers just below a threshold come from the bits of a float.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from export import (
    GraphError,
    NirFileError,
    UnsupportedOperatorError,
    build_graph,
    parse_graph,
    read_nir,
    to_nir,
    write_nir,
)
from export.network import Network, NetworkBuilder
from export.operators import Affine, Heaviside, LeakyIntegrateAndFire, SpikeAttention, TokenMean
from spikebert.neuron import NEURON_PRESETS

VARIANTS: dict[str, dict[str, Any]] = {
    **{preset: {"neuron": preset} for preset in NEURON_PRESETS},
    "embedding behind a norm and a neuron": {"embedding_neuron": "lif", "embedding_norm": True},
    "no positions": {"position_embedding_type": "none"},
    "previous words": {"previous_word": "table"},
    "previous words, no positions": {"previous_word": "table", "position_embedding_type": "none"},
    "padding as tokens": {"attend_to_padding": True},
    "two blocks": {"num_hidden_layers": 2},
    "no leak": {"beta": 1.0},
    "a step is all that is remembered": {"neuron": "published", "tau": 1.0},
}
STANDARD = (nir.Input, nir.Output, nir.Affine, nir.Linear, nir.Threshold, nir.Scale, nir.LI, nir.I, nir.LIF, nir.IF)


def _assert_same_values(found: Any, expected: Any, where: str) -> None:
    if isinstance(expected, dict):
        assert isinstance(found, dict), where
        assert set(found) == set(expected), where
        for key in expected:
            _assert_same_values(found[key], expected[key], f"{where}/{key}")
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype, where
        np.testing.assert_array_equal(found, expected, err_msg=where)  # the poison is equal to itself
    else:
        assert found == expected, where
        assert np.asarray(found).dtype.kind == np.asarray(expected).dtype.kind, where


def _assert_same_graph(found: nir.NIRGraph, expected: nir.NIRGraph, where: str = "graph") -> None:
    assert set(found.nodes) == set(expected.nodes), where
    assert list(found.edges) == list(expected.edges), f"{where}: edges and their order"
    _assert_same_values(found.metadata, expected.metadata, f"{where}: metadata")
    for name, node in expected.nodes.items():
        other = found.nodes[name]
        assert type(other) is type(node), name
        if isinstance(node, nir.NIRGraph):
            _assert_same_graph(other, node, name)
        else:
            _assert_same_values(vars(other), vars(node), name)


def _assert_same_network(found: Network, expected: Network) -> None:
    for entry in fields(Network):
        if entry.name not in ("nodes", "metadata"):
            assert getattr(found, entry.name) == getattr(expected, entry.name), entry.name
    assert {node.name: node.sources for node in found.nodes} == {node.name: node.sources for node in expected.nodes}
    others = {node.name: node.operator for node in found.nodes}
    for node in expected.nodes:
        assert type(others[node.name]) is type(node.operator)
        _assert_same_values(vars(others[node.name]), vars(node.operator), node.name)


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_read_is_what_was_written(variant: str, precision: str, make_model: Callable, tmp_path: Path) -> None:
    graph = to_nir(make_model(**VARIANTS[variant]), precision, metadata={"checkpoint_sha256": "ab", "answer": 42})
    path = write_nir(tmp_path / "model.nir", graph)
    stock = nir.read(path, type_check=True)
    _assert_same_graph(stock, graph)
    _assert_same_graph(read_nir(path), graph)
    _assert_same_network(parse_graph(stock), parse_graph(graph))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_network_read_holds_the_models_parameters(variant: str, make_model: Callable, tmp_path: Path) -> None:
    model = make_model(**VARIANTS[variant])
    config = model.config
    network = parse_graph(read_nir(write_nir(tmp_path / "model.nir", to_nir(model))))
    operators = {node.name: node.operator for node in network.nodes}
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    tables = [state["spikebert.embeddings.word_embeddings.weight"]]
    if config.previous_word == "table":
        tables.append(state["spikebert.embeddings.previous_word_embeddings.weight"])
    if config.position_embedding_type == "absolute":
        tables.append(state["spikebert.embeddings.position_embeddings.weight"])
    np.testing.assert_array_equal(operators["embedding"].weight, np.concatenate(tables).T)
    np.testing.assert_array_equal(operators["classifier"].weight, state["classifier.weight"])
    np.testing.assert_array_equal(operators["classifier"].bias, state["classifier.bias"])
    for block in range(config.num_hidden_layers):
        for node, module in (
            ("qkv", "attention.qkv"),
            ("projection", "attention.projection"),
            ("intermediate", "intermediate"),
            ("output", "output"),
        ):
            prefix = f"spikebert.blocks.{block}.{module}"
            for part in ("affine", "norm"):
                operator = operators[f"block{block:02d}_{node}_{part}"]
                np.testing.assert_array_equal(operator.weight, state[f"{prefix}.{part}.weight"])
                np.testing.assert_array_equal(operator.bias, state[f"{prefix}.{part}.bias"])
            assert operators[f"block{block:02d}_{node}_norm"].groups == (3 if node == "qkv" else 1)
            assert operators[f"block{block:02d}_{node}_norm"].eps == config.layer_norm_eps
        attention = operators[f"block{block:02d}_attention"]
        assert (attention.num_heads, attention.head_size, attention.scale) == (2, 4, config.attention_scale)
    wanted = config.neuron_parameters()
    for name, operator in operators.items():
        if isinstance(operator, LeakyIntegrateAndFire):
            threshold = config.attention_threshold if name.endswith("attention_neuron") else wanted.threshold
            assert set(operator.threshold) == {threshold}, name
            for knob in ("reset", "decay_input", "fire_on_equal"):
                assert getattr(operator, knob) == getattr(wanted, knob), name
            leak = "tau" if wanted.decay_input else "beta"
            assert set(getattr(operator, leak)) == {getattr(wanted, leak)}, name
    assert (network.time_steps, network.attend_to_padding) == (config.time_steps, config.attend_to_padding)


@pytest.mark.parametrize("variant", VARIANTS)
def test_spiking_nodes_have_the_names_the_model_records(
    variant: str, make_model: Callable, padded_batch: tuple[np.ndarray, np.ndarray]
) -> None:
    model = make_model(**VARIANTS[variant])
    ids, mask = map(torch.as_tensor, padded_batch)
    recorded = model(ids, mask.long(), output_spikes=True).spikes
    spiking = parse_graph(to_nir(model)).spiking_nodes
    assert [node.name for node in spiking] == list(recorded)  # both in the order they run
    assert [node.operator.out_features for node in spiking] == [value.shape[-1] for value in recorded.values()]


@pytest.mark.parametrize("variant", VARIANTS)
def test_metadata_tell_what_the_graph_is(variant: str, make_model: Callable) -> None:
    model = make_model(**VARIANTS[variant])
    graph = to_nir(model, dt=1e-3, metadata={"checkpoint_sha256": "ab"})
    assert graph.metadata["time_steps"] == model.config.time_steps
    assert graph.metadata["dt"] == 1e-3
    assert graph.metadata["attend_to_padding"] is model.config.attend_to_padding
    assert graph.metadata["producer"] == f"spikebert {version('spikebert')}"
    assert graph.metadata["checkpoint_sha256"] == "ab"
    assert "token" in graph.metadata["layout"]
    not_standard = {
        name
        for name, node in graph.nodes.items()
        if isinstance(node, nir.NIRGraph)
        and not all(
            isinstance(inner, nir.LI | nir.I | nir.Threshold | nir.Scale | nir.Input | nir.Output)
            for inner in node.nodes.values()
        )
    }
    assert set(json.loads(graph.metadata["non_standard_nodes"])) == not_standard
    assert not_standard == {
        *(["embedding_norm"] if model.config.embedding_norm else []),
        *(
            f"block{block:02d}_{name}"
            for block in range(model.config.num_hidden_layers)
            for name in ("qkv_norm", "attention", "projection_norm", "intermediate_norm", "output_norm")
        ),
        "final_norm",
        "token_mean",
    }
    for name in not_standard:
        marks = graph.nodes[name].metadata
        assert marks["standard"] is False
        assert {"op", "op_version", "axes", "formula"} <= set(marks), name


# ---------------------------------------------------------------------------------------------------------------------
# Parameters of neurons: exact, or refused.


def _neuron(**changes: Any) -> LeakyIntegrateAndFire:
    one = np.ones(1)
    return LeakyIntegrateAndFire(**{"beta": 0.5 * one, "tau": 2 * one, "threshold": one, **changes})


def _read_back(neuron: LeakyIntegrateAndFire, dtype: str, dt: float) -> LeakyIntegrateAndFire:
    builder = NetworkBuilder("input", neuron.in_features)
    builder.add("neuron", neuron, "input")
    network = parse_graph(build_graph(builder.network("output", "neuron", dt=dt), dtype))
    operator = network.nodes[0].operator
    assert isinstance(operator, LeakyIntegrateAndFire)
    return operator


@settings(max_examples=300, deadline=None)
@given(
    beta=st.floats(0, 1, exclude_min=True),
    reset=st.sampled_from(["subtract", "zero"]),
    dt=st.sampled_from([1e-4, 1e-3, 2.0**-10, 0.3]),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_beta_comes_back_to_the_last_bit(beta: float, reset: str, dt: float, dtype: str) -> None:
    found = _read_back(_neuron(beta=np.array([beta]), reset=reset), dtype, dt)
    assert found.beta[0] == beta
    assert not found.decay_input


@settings(max_examples=300, deadline=None)
@given(
    tau=st.floats(1, 1e9),
    threshold=st.floats(1e-30, 1e30),
    reset=st.sampled_from(["subtract", "zero"]),
    dt=st.sampled_from([1e-4, 1e-3, 2.0**-10, 0.3]),
    fire_on_equal=st.booleans(),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_tau_and_threshold_come_back_to_the_last_bit(
    tau: float, threshold: float, reset: str, dt: float, fire_on_equal: bool, dtype: str
) -> None:
    neuron = _neuron(
        tau=np.array([tau]),
        threshold=np.array([threshold]),
        reset=reset,
        decay_input=True,
        fire_on_equal=fire_on_equal,
    )
    found = _read_back(neuron, dtype, dt)
    assert (found.tau[0], found.threshold[0]) == (tau, threshold)
    assert (found.reset, found.decay_input, found.fire_on_equal) == (reset, True, fire_on_equal)


def test_every_decay_of_the_chip_comes_back() -> None:
    betas = np.arange(1, 4096) / 4096
    assert np.array_equal(_read_back(_neuron(beta=betas, threshold=np.ones_like(betas)), "float64", 1e-4).beta, betas)


@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_a_reader_of_the_time_constant_alone_is_off_by_rounding_at_most(reset: str) -> None:
    rng = np.random.default_rng(0)
    betas = np.concatenate([np.arange(1, 4096) / 4096, rng.random(1000), [1e-20, 1 - 2.0**-53]])
    for dt in (1e-4, 0.3):
        node = _neuron(beta=betas, threshold=np.ones_like(betas), reset=reset).to_nir("float64", dt)
        membrane = node.nodes["membrane"] if reset == "subtract" else node
        np.testing.assert_allclose(1 - dt / membrane.tau, betas, rtol=0, atol=2.0**-51)
        np.testing.assert_allclose(membrane.r * dt / membrane.tau, 1, rtol=0, atol=2.0**-51)


@pytest.mark.parametrize("wrong", [0.3 + 2.0**-50, -(2.0**-60), 1.5])
def test_a_beta_in_metadata_that_the_time_constant_does_not_say_is_refused(wrong: float) -> None:
    builder = NetworkBuilder("input", 1)
    builder.add("neuron", _neuron(beta=np.array([0.3])), "input")
    graph = build_graph(builder.network("output", "neuron"), "float64")
    graph.nodes["neuron"].metadata["beta"] = np.array([wrong])
    with pytest.raises(GraphError, match="neuron: metadata say that beta of neuron 0 is"):
        parse_graph(graph)


def _number_below(value: float, dtype: str) -> float:
    """Return the next smaller positive number, from the bits of `value`."""
    kind, bits = (np.float32, np.int32) if dtype == "float32" else (np.float64, np.int64)
    return float((np.array([value], kind).view(bits) - 1).view(kind)[0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("preset", NEURON_PRESETS)
def test_a_neuron_that_fires_at_equality_is_written_with_the_number_below(
    preset: str, dtype: str, make_model: Callable
) -> None:
    model = make_model(neuron=preset)
    graph = to_nir(model, dtype)
    at_equality = NEURON_PRESETS[preset].fire_on_equal
    seen = set()
    for name in model(torch.ones(1, 2, dtype=torch.long), output_spikes=True).spikes:
        node = graph.nodes[name]
        if isinstance(node, nir.NIRGraph):
            node = node.nodes["spike"]
        written = set((node.v_threshold if hasattr(node, "v_threshold") else node.threshold).tolist())
        if name == "embedding_neuron":
            tiniest = float(np.finfo(dtype).smallest_subnormal)
            assert written == ({-tiniest} if at_equality else {0.0})
            continue
        wanted = 0.25 if name.endswith("attention_neuron") else 1.0
        assert written == {_number_below(wanted, dtype) if at_equality else wanted}
        seen.add(wanted)
    assert seen == {0.25, 1.0}


# ---------------------------------------------------------------------------------------------------------------------
# What a reader gets who knows NIR's own nodes and nothing of ours.


class StandardReader:
    """Executes NIR's primitives as NIR defines them, one Euler step of dt at a time, and ignores every metadata.

    Edges that close a cycle carry what was sent in the step before; strict ``>`` everywhere.
    """

    def __init__(self, graph: nir.NIRGraph, dt: float) -> None:
        self.graph, self.dt = graph, dt
        self.inner = {n: StandardReader(node, dt) for n, node in graph.nodes.items() if isinstance(node, nir.NIRGraph)}
        self.state: dict[str, Any] = {}
        self.sent: dict[str, np.ndarray] = {}
        self.order: list[str] = []
        self._visit(next(name for name, node in graph.nodes.items() if isinstance(node, nir.Output)), ())

    def _visit(self, name: str, above: tuple[str, ...]) -> None:
        """Put a node behind its sources; one that is visited already closes a cycle and is left for the next step."""
        for source, target in self.graph.edges:
            if target == name and source not in above and source not in self.order:
                self._visit(source, (*above, name))
        if name not in self.order:
            self.order.append(name)

    def step(self, x: np.ndarray) -> np.ndarray:
        for name in self.order:
            node = self.graph.nodes[name]
            sources = [source for source, target in self.graph.edges if target == name]
            total = x if isinstance(node, nir.Input) else sum(self.sent.get(source, 0.0) for source in sources)
            self.sent[name] = self.inner[name].step(total) if name in self.inner else self._primitive(name, node, total)
        return self.sent[self.order[-1]]

    def _primitive(self, name: str, node: nir.NIRNode, x: np.ndarray) -> np.ndarray:
        assert isinstance(node, STANDARD)
        if isinstance(node, nir.Input | nir.Output):
            return x
        if isinstance(node, nir.Linear | nir.Affine):
            return x @ node.weight.T + (node.bias if isinstance(node, nir.Affine) else 0)
        if isinstance(node, nir.Threshold):
            return (x > node.threshold).astype(float)
        if isinstance(node, nir.Scale):
            return x * node.scale
        before = self.state.get(name, np.zeros_like(x))
        if isinstance(node, nir.LI | nir.LIF):
            gain = self.dt / node.tau * node.r
            voltage = (1 - self.dt / node.tau) * before + gain * x  # tau v' = -v + r x
        else:
            voltage = before + self.dt * node.r * x  # v' = r x
        if isinstance(node, nir.LI | nir.I):
            self.state[name] = voltage
            return voltage
        fired = voltage > node.v_threshold
        self.state[name] = np.where(fired, node.v_reset, voltage)
        return fired.astype(float)


def _fire_in_plain_python(neuron: LeakyIntegrateAndFire, currents: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the spikes of `currents` (T, D) as the docstring defines them, and how near to a threshold they came."""
    spikes, nearest = np.zeros(currents.shape), np.inf
    for feature in range(currents.shape[1]):
        beta, tau, threshold = (float(p[feature]) for p in (neuron.beta, neuron.tau, neuron.threshold))
        u, fired = 0.0, False
        for step, drive in enumerate(map(float, currents[:, feature])):
            u = u + (drive - u) / tau if neuron.decay_input else beta * u + drive
            u = u - threshold if fired and neuron.reset == "subtract" else u
            fired = u >= threshold if neuron.fire_on_equal else u > threshold
            nearest = min(nearest, abs(u - threshold))
            spikes[step, feature] = fired
            u = 0.0 if fired and neuron.reset == "zero" else u
    return spikes, nearest


FORMS = [
    pytest.param(reset, decay_input, fire_on_equal, id=f"{reset}{' decay_input' * decay_input}{' >=' * fire_on_equal}")
    for reset in ("subtract", "zero")
    for decay_input in (False, True)
    for fire_on_equal in (False, True)
]


@pytest.mark.parametrize(("reset", "decay_input", "fire_on_equal"), FORMS)
def test_standard_nodes_alone_fire_the_same_spikes(reset: str, decay_input: bool, fire_on_equal: bool) -> None:
    rng = np.random.default_rng(1)
    features = 40
    neuron = LeakyIntegrateAndFire(
        beta=rng.choice([0.9, 0.5, 3686 / 4096, 0.97], features),
        tau=rng.choice([2.0, 4.0, 1.5, 10.0], features),
        threshold=rng.choice([0.25, 1.0, 0.6], features),
        reset=reset,
        decay_input=decay_input,
        fire_on_equal=fire_on_equal,
    )
    currents = rng.normal(0.4, 0.8, (100, features))
    expected, nearest = _fire_in_plain_python(neuron, currents)
    assert nearest > 1e-9, "a tie, where another order of operations may decide otherwise"
    assert 0.1 < expected.mean() < 0.9
    reader = StandardReader(nir.NIRGraph(*_alone(neuron.to_nir(np.float64, 1e-4), features)), 1e-4)
    assert np.array_equal(np.stack([reader.step(x) for x in currents]), expected)


@pytest.mark.parametrize(("reset", "decay_input", "fire_on_equal"), FORMS)
def test_standard_nodes_alone_decide_ties_the_same_way(reset: str, decay_input: bool, fire_on_equal: bool) -> None:
    rng = np.random.default_rng(2)
    features, dt = 40, 2.0**-13
    neuron = LeakyIntegrateAndFire(  # sums of few binary fractions, so that nothing is rounded anywhere
        beta=np.full(features, 0.5),
        tau=np.full(features, 2.0),
        threshold=rng.choice([0.25, 1.0, 0.5], features),
        reset=reset,
        decay_input=decay_input,
        fire_on_equal=fire_on_equal,
    )
    currents = rng.integers(-2, 9, (20, features)) / 8
    expected, nearest = _fire_in_plain_python(neuron, currents)
    assert nearest == 0, "no tie, so nothing is shown"
    reader = StandardReader(nir.NIRGraph(*_alone(neuron.to_nir(np.float64, dt), features)), dt)
    assert np.array_equal(np.stack([reader.step(x) for x in currents]), expected)


def _alone(node: nir.NIRNode, features: int) -> tuple[dict[str, nir.NIRNode], list[tuple[str, str]]]:
    width = np.array([features])
    nodes = {"input": nir.Input({"input": width}), "neuron": node, "output": nir.Output({"output": width})}
    return nodes, [("input", "neuron"), ("neuron", "output")]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_reader_that_ignores_the_marks_ends_in_nan(variant: str, make_model: Callable, tmp_path: Path) -> None:
    model = make_model(**VARIANTS[variant])
    graph = nir.read(write_nir(tmp_path / "model.nir", to_nir(model)))
    reader = StandardReader(graph, graph.metadata["dt"])
    for _ in range(model.config.time_steps):
        logits = reader.step(_hot_input(graph))
        assert np.isnan(logits).all()
    if not model.config.embedding_norm and model.config.embedding_neuron == "heaviside":
        # up to the first marked node it understood everything, so the marks are what stopped it
        recorded = model(torch.tensor([[3]]), output_spikes=True).spikes["embedding_neuron"]
        assert np.array_equal(reader.sent["embedding_neuron"], recorded[-1, 0, 0].numpy())


def _hot_input(graph: nir.NIRGraph) -> np.ndarray:
    """Return word 3 at the first position."""
    said = graph.nodes["input"].metadata
    hot = np.zeros(int(graph.nodes["input"].input_type["input"][0]))
    hot[3] = 1
    if "before_first" in said:
        hot[said["vocabulary"] + said["before_first"]] = 1
    if said["positions"]:
        hot[len(hot) - said["positions"]] = 1
    return hot


def test_every_marked_node_is_poisoned_whatever_it_is_fed(make_model: Callable) -> None:
    graph = to_nir(make_model(embedding_norm=True))
    for name in json.loads(graph.metadata["non_standard_nodes"]):
        width = int(next(iter(graph.nodes[name].input_type.values()))[0])
        for fed in (np.zeros(width), np.ones(width)):
            assert np.isnan(StandardReader(graph.nodes[name], 1e-4).step(fed)).all(), name


def test_nothing_but_affine_stands_between_the_last_poison_and_the_logits(make_model: Callable) -> None:
    # a spiking neuron in between would turn NaN into silence
    graph = to_nir(make_model())
    marked = set(json.loads(graph.metadata["non_standard_nodes"]))
    node, passed = "output", []
    while node not in marked:
        (node,) = [source for source, target in graph.edges if target == node]
        passed.append(type(graph.nodes[node]))
    assert node == "token_mean"
    assert passed[:-1] == [nir.Affine]


class _Step(torch.nn.Module):
    def __init__(self, node: nir.NIRNode) -> None:
        super().__init__()
        self.threshold = torch.as_tensor(node.threshold if isinstance(node, nir.Threshold) else node.v_threshold)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x > self.threshold).float()


class _Gain(torch.nn.Module):
    def __init__(self, node: nir.NIRNode) -> None:
        super().__init__()
        self.gain = torch.as_tensor(node.scale if isinstance(node, nir.Scale) else np.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gain.to(x.dtype)


def _snntorch_reader(graph: nir.NIRGraph) -> torch.nn.Module:
    from snntorch.import_nir import import_from_nir

    return import_from_nir(graph)


def _spikingjelly_reader(graph: nir.NIRGraph) -> torch.nn.Module:
    from spikingjelly.activation_based.nir_exchange import import_from_nir

    return import_from_nir(graph, dt=1e-4)


def _nirtorch_reader(graph: nir.NIRGraph) -> torch.nn.Module:
    """nirtorch, taught every neuron of NIR in the plainest way, so that it runs to the end."""
    import nirtorch

    return nirtorch.nir_to_torch(graph, {nir.Threshold: _Step, nir.LIF: _Step, nir.Scale: _Gain, nir.LI: _Gain})


@pytest.mark.skipif(importlib.util.find_spec("nirtorch") is None, reason="nirtorch is not installed")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("embedding_neuron", ["heaviside", "lif"])
@pytest.mark.parametrize("preset", NEURON_PRESETS)
@pytest.mark.parametrize("reader", [_snntorch_reader, _spikingjelly_reader, _nirtorch_reader])
def test_third_party_readers_raise_or_end_in_nan(
    reader: Callable, preset: str, embedding_neuron: str, make_model: Callable, tmp_path: Path
) -> None:
    written = to_nir(make_model(neuron=preset, embedding_neuron=embedding_neuron))
    answers = []
    for graph in (written, nir.read(write_nir(tmp_path / "model.nir", written))):
        try:
            module = reader(graph)
        except Exception:  # any will do: it did not answer
            continue
        answer = module(torch.tensor(_hot_input(graph)[None], dtype=torch.float32))
        answers.append(answer[0] if isinstance(answer, tuple) else answer)
    assert all(torch.isnan(logits).all() for logits in answers)
    if reader is _nirtorch_reader:
        assert answers, "nirtorch no longer runs these graphs to the end, so that nothing was shown"


# ---------------------------------------------------------------------------------------------------------------------
# Files: whole or not at all.


def _layout(path: Path) -> dict[str, Any]:
    """Return every dataset of a file: its type, its chunks, its values."""
    found: dict[str, Any] = {}

    def visit(name: str, entry: Any) -> None:
        if isinstance(entry, h5py.Dataset):
            found[name] = (entry.dtype, entry.shape, entry.chunks, np.asarray(entry[()]).tobytes())

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


def test_files_are_laid_out_as_stock_nir_does(tmp_path: Path, tiny_model: Any) -> None:
    ones = np.ones(4, np.float32)
    foreign = nir.NIRGraph.from_list(
        nir.Input({"input": np.array([2, 4])}),
        nir.Flatten(start_dim=0, end_dim=-1, input_type={"input": np.array([2, 4])}),
        nir.Linear(np.arange(32, dtype=np.float32).reshape(4, 8)),
        nir.Delay(ones),
        nir.CubaLIF(ones, ones, ones, ones * 0, ones, ones * 0, metadata={"why": "a test", "at": 3}),
    )
    for name, graph in (("ours", to_nir(tiny_model)), ("foreign", foreign)):
        nir.write(tmp_path / "stock.nir", graph, compression=None)
        write_nir(tmp_path / f"{name}.nir", graph)
        expected, found = _layout(tmp_path / "stock.nir"), _layout(tmp_path / f"{name}.nir")
        for references in (key for key in expected if h5py.check_string_dtype(expected[key][0])):
            expected[references], found[references] = expected[references][:3], found[references][:3]
        assert found == expected, name


def test_a_graph_does_not_change_with_the_model(make_model: Callable) -> None:
    model = make_model()
    graph = to_nir(model)
    before = graph.nodes["classifier"].weight.copy()
    with torch.no_grad():
        model.classifier.weight += 1
    np.testing.assert_array_equal(graph.nodes["classifier"].weight, before)


@pytest.fixture
def folder_with_file(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "model.nir").write_bytes(b"what was there before")
    yield tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["model.nir"], "something half-written stayed"
    assert (tmp_path / "model.nir").read_bytes() == b"what was there before"


def test_a_failure_while_writing_leaves_nothing(
    folder_with_file: Path, tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = to_nir(tiny_model)

    create_dataset = h5py.Group.create_dataset

    def until_the_disk_is_full(group: h5py.Group, name: str, *rest: Any, **options: Any) -> h5py.Dataset:
        if "classifier" in group.name:
            raise OSError("the disk is full")
        return create_dataset(group, name, *rest, **options)

    monkeypatch.setattr(h5py.Group, "create_dataset", until_the_disk_is_full)
    for name in ("model.nir", "new.nir"):
        with pytest.raises(NirFileError, match=f"{name}: cannot be written.*the disk is full"):
            write_nir(folder_with_file / name, graph)


def test_what_nir_cannot_write_leaves_nothing(folder_with_file: Path, tiny_model: Any) -> None:
    graph = to_nir(tiny_model)
    graph.metadata["an object"] = object()
    with pytest.raises(NirFileError, match=r"model\.nir: cannot be written"):
        write_nir(folder_with_file / "model.nir", graph)


def test_who_reads_the_old_file_meanwhile_never_sees_half_of_the_new(tmp_path: Path, tiny_model: Any) -> None:
    path = tmp_path / "model.nir"
    path.write_bytes(b"what was there before")
    with path.open("rb") as reader:
        write_nir(path, to_nir(tiny_model))
        assert reader.read() == b"what was there before"
    read_nir(path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.nir"]


@pytest.mark.parametrize("target", ["missing/model.nir", "model.nir/inner.nir"])
def test_a_folder_that_is_none_is_refused(folder_with_file: Path, tiny_model: Any, target: str) -> None:
    with pytest.raises(NirFileError, match="does not exist"):
        write_nir(folder_with_file / target, to_nir(tiny_model))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_a_folder_that_takes_no_files_is_refused(tiny_model: Any) -> None:
    with pytest.raises(NirFileError, match="cannot be written"):
        write_nir("/proc/model.nir", to_nir(tiny_model))  # where not even root may write


def test_a_folder_is_not_written_over(tmp_path: Path, tiny_model: Any) -> None:
    (tmp_path / "model.nir").mkdir()
    with pytest.raises(NirFileError, match="cannot be written"):
        write_nir(tmp_path / "model.nir", to_nir(tiny_model))
    assert [path.name for path in tmp_path.iterdir()] == ["model.nir"]


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be said in NIR is refused, by name.


def test_a_potential_to_start_from_is_refused(make_model: Callable) -> None:
    with pytest.raises(UnsupportedOperatorError, match=r"block00_qkv_neuron: starts at a membrane potential of 0\.5"):
        to_nir(make_model(initial_membrane_potential=0.5))


def test_neurons_that_leak_beside_some_that_do_not_are_refused() -> None:
    builder = NetworkBuilder("input", 2)
    neuron = _neuron(beta=np.array([0.5, 1.0]), threshold=np.ones(2))
    builder.add("mixed", neuron, "input")
    with pytest.raises(UnsupportedOperatorError, match=r"mixed: .* only some neurons leak"):
        build_graph(builder.network("output", "mixed"))


@pytest.mark.parametrize("precision", ["float16", "integer", ""])
def test_another_precision_is_refused(precision: str, tiny_model: Any) -> None:
    with pytest.raises(UnsupportedOperatorError, match="precision"):
        to_nir(tiny_model, precision)


def test_another_model_is_refused() -> None:
    with pytest.raises(UnsupportedOperatorError, match="Linear cannot be written"):
        to_nir(torch.nn.Linear(2, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "operator", [Heaviside(np.zeros(6)), SpikeAttention(1, 2, 1.0), TokenMean(6)], ids=lambda operator: operator.name
)
def test_what_needs_tokens_is_refused_behind_a_token_mean(operator: Any) -> None:
    builder = NetworkBuilder("input", 6)
    builder.add("mean", TokenMean(6), "input")
    with pytest.raises(UnsupportedOperatorError, match=r"node: .* reads mean"):
        builder.add("node", operator, "mean")


@pytest.mark.parametrize("name", ["", ".", "a/b", "/"])
def test_a_name_that_a_file_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(GraphError, match="cannot be a node's name"):
        NetworkBuilder("input", 2).add(name, Affine(np.eye(2)), "input")


def test_a_sentence_is_not_added_to_tokens() -> None:
    builder = NetworkBuilder("input", 2)
    builder.add("tokens", Affine(np.eye(2)), "input")
    builder.add("mean", TokenMean(2), "tokens")
    with pytest.raises(GraphError, match="sum: adds tokens to mean"):
        builder.add("sum", Affine(np.eye(2)), ("tokens", "mean"))
