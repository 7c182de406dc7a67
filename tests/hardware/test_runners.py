"""The promise of the runners: one graph, the same spikes from torch, the reference interpreter and Lava.

torch shares no code with the other two. In float64 not one spike may differ, potentials agree within 1e-9 and logits
within 1e-12, whatever the batch, the padding, the order of sentences and the number of Lava processes.
"""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import nir
import numpy as np
import pytest
import torch
from numpy.typing import DTypeLike

from export import GraphError, parse_graph, to_nir
from export.network import Network, NetworkBuilder
from export.operators import Affine, Flatten, Heaviside, LayerNorm, LeakyIntegrateAndFire, Operator, Traits
from export.token_encoding import TokenEncoding
from hardware import Trace, open_runner, run
from hardware.errors import RunnerError
from hardware.runners.lava.compiler import partition
from hardware.runners.lava.stock_share import StockShare, stock_share
from hardware.runners.torch_runner import ByteMemory
from spikebert.errors import ConfigurationError
from spikebert.neuron import NEURON_PRESETS

POTENTIAL_TOLERANCE = 1e-9
LOGIT_TOLERANCE = 1e-12
GRANULARITIES = ("operator", "block", "network")
REPOSITORY = Path(__file__).parents[2]

lava = pytest.mark.lava
Batch = tuple[np.ndarray, np.ndarray]


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


def _sentences(lengths: list[int], seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    return np.where(mask, rng.integers(1, 20, mask.shape), 0), mask


def _assert_same(found: Trace, expected: Trace, potentials_of: set[str] | None = None) -> None:
    """Compare two runs without the code under test; `potentials_of` names the nodes that must show potentials."""
    assert list(found.spikes) == list(expected.spikes)
    for name, spikes in expected.spikes.items():
        assert found.spikes[name].dtype == np.uint8
        np.testing.assert_array_equal(found.spikes[name], spikes, err_msg=name)
    shown = set(expected.spikes) if potentials_of is None else potentials_of
    assert set(found.membrane_potentials) == shown
    for name in shown:
        np.testing.assert_allclose(
            found.membrane_potentials[name][:, found.mask],
            expected.membrane_potentials[name][:, found.mask],
            rtol=0,
            atol=POTENTIAL_TOLERANCE,
            err_msg=name,
        )
    np.testing.assert_allclose(found.logits, expected.logits, rtol=0, atol=LOGIT_TOLERANCE)
    np.testing.assert_allclose(found.outputs, expected.outputs, rtol=0, atol=LOGIT_TOLERANCE)
    np.testing.assert_array_equal(found.mask, expected.mask)
    np.testing.assert_array_equal(found.input_ids, expected.input_ids)


# ---------------------------------------------------------------------------------------------------------------------
# torch, reference and Lava agree.

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    **{preset: {"neuron": preset, "num_hidden_layers": 2} for preset in NEURON_PRESETS},
    "neuron and norm behind the embedding": {"embedding_neuron": "lif", "embedding_norm": True},
    "no positions": {"position_embedding_type": "none"},
    "previous words": {"previous_word": "table"},
    "padding as tokens": {"attend_to_padding": True},
    "one time step": {"time_steps": 1, "neuron": "loihi"},
    "more tokens than features of a head": {"num_attention_heads": 4},
}


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_reference_fires_what_torch_fires(configuration: str, make_model: Callable, padded_batch: Batch) -> None:
    model = make_model(**CONFIGURATIONS[configuration])
    expected = run(model, *padded_batch, runner="torch", record_membrane_potentials=True)
    rates = [expected.firing_rate(name) for name in expected.spikes]
    assert sum(0.02 < rate < 0.98 for rate in rates) > len(rates) / 2, "too quiet to show anything"
    found = run(to_nir(model), *padded_batch, runner="reference", record_membrane_potentials=True)
    _assert_same(found, expected)
    assert found.metadata["time_steps"] == model.config.time_steps


@lava
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("preset", NEURON_PRESETS)
def test_lava_fires_what_torch_fires(preset: str, granularity: str, make_model: Callable) -> None:
    """Three batches go through one build: the first is padded, the second shorter, the third longer than a shard."""
    model = make_model(neuron=preset, num_hidden_layers=1 if granularity == "operator" else 2)
    batches = [_sentences([6, 4, 1], 1), _sentences([2, 3], 2), _sentences([5, 6, 1, 2, 6], 3)]
    with (
        open_runner(model, "torch", record_membrane_potentials=True) as torch_runner,
        open_runner(to_nir(model), "lava", granularity=granularity, record_membrane_potentials=True) as lava_runner,
    ):
        stock = set(lava_runner.stock_nodes)
        for batch in batches:
            expected = torch_runner.run(*batch)
            _assert_same(lava_runner.run(*batch), expected)
        assert lava_runner.builds == 1
    soft = preset == "loihi" and granularity == "operator"
    assert stock == (set(expected.spikes) - {"embedding_neuron"} if soft else set())


@lava
@pytest.mark.parametrize("configuration", list(CONFIGURATIONS)[len(NEURON_PRESETS) :])
def test_lava_fires_what_torch_fires_in_every_configuration(
    configuration: str, make_model: Callable, padded_batch: Batch
) -> None:
    model = make_model(**CONFIGURATIONS[configuration])
    expected = run(model, *padded_batch, runner="torch", record_membrane_potentials=True)
    found = run(to_nir(model), *padded_batch, runner="lava", granularity="network", record_membrane_potentials=True)
    _assert_same(found, expected)


@lava
def test_a_longer_sentence_rebuilds_and_a_shorter_one_does_not(tiny_model: Any) -> None:
    graph = to_nir(tiny_model)
    with open_runner(graph, "lava") as runner, open_runner(tiny_model, "torch") as expected:
        for lengths, builds in (([3], 1), ([2, 1], 1), ([5], 2), ([4, 5, 3], 2)):
            batch = _sentences(lengths)
            _assert_same(runner.run(*batch), expected.run(*batch), set())
            assert runner.builds == builds
    with open_runner(graph, "lava", tokens=6) as runner:
        for lengths in ([3], [6, 1], [5]):
            runner.run(*_sentences(lengths))
        assert runner.builds == 1


@lava
@pytest.mark.parametrize(("preset", "granularity"), [("paper", "block"), ("loihi", "operator")])
def test_no_sentence_remembers_the_one_before(
    preset: str, granularity: str, make_model: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(neuron=preset)
    ids, mask = _sentences([4, 6, 2, 5])
    alone = [run(model, ids[[i], : mask[i].sum()], runner="torch") for i in range(4)]
    # longer than the shared arrays, so that the order crosses from one part to the next
    monkeypatch.setattr("hardware.runners.lava.worker.SHARED_BYTES", 2500)
    with open_runner(to_nir(model), "lava", granularity=granularity, tokens=6) as runner:
        for order in ([0, 1, 0, 2, 3], [3, 0], [1, 1, 1], [0]):
            trace = runner.run(ids[order], mask[order])
            for row, sentence in enumerate(order):
                tokens = mask[sentence].sum()
                for name, spikes in alone[sentence].spikes.items():
                    np.testing.assert_array_equal(trace.spikes[name][:, [row], :tokens], spikes, err_msg=name)
                    assert not trace.spikes[name][:, row, tokens:].any()
                np.testing.assert_allclose(trace.logits[row], alone[sentence].logits[0], rtol=0, atol=LOGIT_TOLERANCE)
        assert runner._workers[0].shared.samples < 3


@lava
@pytest.mark.parametrize("fitting", [1, 2, 5])
def test_more_sentences_than_are_shared_at_a_time(
    fitting: int, tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = _sentences([6, 1, 4, 3, 6])
    neurons = 8 + (24 + 8 + 8 + 16 + 8)  # embedding and block
    bytes_of_a_sentence = 4 * 6 * neurons * (1 + 8)  # steps, tokens; a spike and a float64
    monkeypatch.setattr("hardware.runners.lava.worker.SHARED_BYTES", fitting * bytes_of_a_sentence)
    expected = run(tiny_model, *batch, runner="torch", record_membrane_potentials=True)
    with open_runner(to_nir(tiny_model), "lava", granularity="network", record_membrane_potentials=True) as runner:
        _assert_same(runner.run(*batch), expected)
        assert runner._workers[0].shared.samples == fitting
        assert runner.builds == 1


# ---------------------------------------------------------------------------------------------------------------------
# What runs in stock Lava processes.


@lava
def test_the_share_of_stock_processes_is_counted(make_model: Callable, padded_batch: Batch) -> None:
    model = make_model(neuron="loihi")
    graph = to_nir(model)
    trace = run(graph, *padded_batch, runner="lava", granularity="operator")
    neurons = ["qkv", "attention", "projection", "intermediate", "output"]
    assert trace.metadata["stock_nodes"] == [f"block00_{name}_neuron" for name in neurons]
    # embedding 2, five neurons, four affines and four norms of a block, attention, two residuals, three at the end
    assert trace.metadata["processes"] == 2 + 5 + 4 + 4 + 1 + 2 + 3
    expected = run(model, *padded_batch, runner="torch")
    fired = {name: int(spikes.sum()) for name, spikes in expected.spikes.items()}
    share = stock_share(parse_graph(graph), trace)
    assert share == StockShare(
        neurons_stock=24 + 8 + 8 + 16 + 8,
        neurons=8 + 24 + 8 + 8 + 16 + 8,
        synapses_stock=0,
        synapses=8 * (20 + 12) + 8 * 24 + 8 * 8 + 8 * 16 + 16 * 8 + 8 * 3,
        spikes_stock=sum(fired.values()) - fired["embedding_neuron"],
        spikes=sum(fired.values()),
        own_nodes=trace.metadata["own_nodes"],
    )
    assert set(share.own_nodes) == {node.name for node in parse_graph(graph).nodes} - set(trace.metadata["stock_nodes"])
    reasons = {
        "block00_attention": "multiplies spikes with spikes",
        "block00_qkv_norm": "divides by the root",
        "block00_qkv_affine": "stock synapses send a step late",
        "token_mean": "stock processes know no mask",
        "embedding_neuron": "compares without memory",
    }
    for node, why in reasons.items():
        assert share.own_nodes[node].startswith(why), node
    assert "embedding_neuron: compares without memory; a stock LIF keeps a 4096th of its potential at least" in (
        share.reasons()
    )
    assert sum("block00_qkv_norm, block00_projection_norm" in line for line in share.reasons()) == 1
    twice = share + share
    assert (twice.neurons, twice.synapses) == (share.neurons, share.synapses)
    assert (twice.spikes, twice.spikes_stock) == (2 * share.spikes, 2 * share.spikes_stock)
    assert str(share).endswith("; the rest in ours")
    assert str(share).startswith("in stock Lava processes: 88.9 % of 72 neurons, 0.0 % of 792 synapses, ")


def test_nothing_is_stock_where_the_trace_names_nothing(tiny_model: Any, padded_batch: Batch) -> None:
    graph = to_nir(tiny_model)
    share = stock_share(parse_graph(graph), run(graph, *padded_batch))
    assert (share.neurons_stock, share.synapses_stock, share.spikes_stock) == (0, 0, 0)
    assert share.spikes > 0


def _hard(features: int, threshold: float, fire_on_equal: bool = False, beta: float = 0.9) -> LeakyIntegrateAndFire:
    ones = np.ones(features)
    return LeakyIntegrateAndFire(beta * ones, 2 * ones, threshold * ones, "zero", False, fire_on_equal)


def _fire(neuron: LeakyIntegrateAndFire, currents: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Return the spikes of a hard-reset neuron for `currents` (T, B, N, D), written out."""
    u, spikes = np.zeros(currents.shape[1:]), np.zeros(currents.shape)
    for step, current in enumerate(currents):
        u = neuron.beta * u + current
        fired = u >= neuron.threshold if neuron.fire_on_equal else u > neuron.threshold
        spikes[step], u = fired, np.where(fired, 0, u)
    return spikes if mask is None else spikes * mask[None, :, :, None]


@lava
@pytest.mark.parametrize("fire_on_equal", [False, True])
@pytest.mark.parametrize("threshold", [1.0, 0.25, 0.0])
def test_stock_neurons_at_both_ends_of_a_graph_of_values(threshold: float, fire_on_equal: bool) -> None:
    """Currents come straight in and spikes go straight out; padding stays silent even where rest is a tie."""
    rng = np.random.default_rng(0)
    first, last = (_hard(5, threshold, fire_on_equal, 0.5) for _ in range(2))
    weight = rng.integers(-4, 5, (5, 5)) / 4  # so that potentials meet thresholds
    builder = NetworkBuilder("input", 5)
    builder.add("first", first, "input")
    builder.add("mix", Affine(weight), "first")
    builder.add("last", last, "mix")
    network = builder.network("output", "last")
    x = rng.integers(-2, 7, (6, 3, 4, 5)) / 4
    mask = np.arange(4) < np.array([[4], [2], [3]])
    expected = {"first": _fire(first, x, mask)}
    expected["last"] = _fire(last, expected["first"] @ weight.T, mask)
    assert 0.05 < expected["last"].mean() < 0.95
    for granularity in ("operator", "network"):
        with open_runner(network, "lava", granularity=granularity, time_steps=6) as runner:
            for batch in (slice(0, 3), slice(2, 3), slice(0, 2)):  # in turn, so that a state that stays would show
                trace = runner.run(x[:, batch], mask[batch])
                for name, spikes in expected.items():
                    np.testing.assert_array_equal(trace.spikes[name], spikes[:, batch], err_msg=name)
                np.testing.assert_array_equal(trace.outputs, expected["last"][:, batch])
                np.testing.assert_allclose(trace.logits, expected["last"][:, batch].mean(0), rtol=0, atol=1e-15)
            # the first reads the input, which no stock process can
            assert runner.stock_nodes == (["last"] if granularity == "operator" else [])


def test_neurons_that_stock_processes_cannot_be_stay_ours() -> None:
    two = np.array([1.0, 1.0])
    table = {
        "stock": LeakyIntegrateAndFire(0.5 * two, 2 * two, two, "zero"),
        "subtract": LeakyIntegrateAndFire(0.5 * two, 2 * two, two, "subtract"),
        "decay_input": LeakyIntegrateAndFire(0.5 * two, 2 * two, two, "zero", decay_input=True),
        "betas": LeakyIntegrateAndFire(np.array([0.5, 0.9]), 2 * two, two, "zero"),
        "thresholds": LeakyIntegrateAndFire(0.5 * two, 2 * two, np.array([1.0, 0.5]), "zero"),
        "decay": LeakyIntegrateAndFire(0.1 * two, 2 * two, two, "zero"),  # 1 - (1 - 0.1) is not 0.1
        "rest": LeakyIntegrateAndFire(0.5 * two, 2 * two, -two, "zero"),
        "step": Heaviside(two),
    }
    builder = NetworkBuilder("input", 2)
    last = "input"
    for name, operator in {"affine": Affine(np.eye(2)), **table}.items():
        last = builder.add(name, operator, last)
    network = builder.network("output", last)
    assert [plan.name for plan in partition(network, "operator", "float64") if plan.stock] == ["stock", "rest"]
    assert not any(plan.stock for plan in partition(network, "operator", "float32"))


# ---------------------------------------------------------------------------------------------------------------------
# Other precisions, other graphs.


@lava
def test_float32_on_lava_is_float32_in_the_reference(make_model: Callable, padded_batch: Batch) -> None:
    graph = to_nir(make_model(num_hidden_layers=2))
    expected = run(graph, *padded_batch, precision="float32", record_membrane_potentials=True)
    found = run(graph, *padded_batch, runner="lava", precision="float32", record_membrane_potentials=True)
    _assert_same(found, expected)
    for trace in (expected, found):
        kinds = {array.dtype for array in (trace.logits, trace.outputs, *trace.membrane_potentials.values())}
        assert kinds == {np.dtype(np.float32)}


@pytest.mark.parametrize("preset", NEURON_PRESETS)
def test_float32_leaves_float64_only_near_a_threshold(preset: str, make_model: Callable, padded_batch: Batch) -> None:
    """What float32 may do: until a spike flips everything agrees, and the first that flips lies near its threshold."""
    model = make_model(neuron=preset, num_hidden_layers=2)
    exact = run(to_nir(model), *padded_batch, record_membrane_potentials=True)
    for found in (
        run(to_nir(model), *padded_batch, precision="float32", record_membrane_potentials=True),
        run(model, *padded_batch, runner="torch", precision="float32", record_membrane_potentials=True),
    ):
        for name, spikes in exact.spikes.items():
            flipped = found.spikes[name] != spikes
            distance = np.abs(exact.membrane_potentials[name] - exact.thresholds[name])
            assert (distance[flipped] < 1e-5).all(), name
            if flipped.any():
                break
            np.testing.assert_allclose(
                found.membrane_potentials[name][:, found.mask],
                exact.membrane_potentials[name][:, found.mask],
                rtol=0,
                atol=1e-4,
            )


def test_time_steps_can_be_others_than_the_graphs(tiny_model: Any, padded_batch: Batch) -> None:
    graph = to_nir(tiny_model)
    assert run(graph, *padded_batch, time_steps=7).spikes["block00_output_neuron"].shape[0] == 7
    usual, longer = run(graph, *padded_batch), run(graph, *padded_batch, time_steps=7)
    for name, spikes in usual.spikes.items():
        np.testing.assert_array_equal(longer.spikes[name][:4], spikes)


@lava
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_branches_that_meet_again(granularity: str) -> None:
    """Names of blocks that alternate, a node read by many and a residual over several: processes keep them apart."""
    rng = np.random.default_rng(3)
    builder = NetworkBuilder("input", 4)
    builder.add("block00_a", Affine(rng.normal(size=(4, 4))), "input")
    builder.add("block01_a", Affine(rng.normal(size=(4, 4))), "block00_a")
    builder.add("block00_b", _hard(4, 0.3), "block01_a")
    builder.add("block01_b", LayerNorm(np.ones(4), np.zeros(4)), ("block00_a", "block00_b"))
    builder.add("between", Affine(rng.normal(size=(4, 4))), ("block00_a", "block01_b"))
    builder.add("block00_c", _hard(4, 0.3), ("between", "block00_b", "block01_a"))
    network = builder.network("output", ("block00_c", "between"))
    x = rng.normal(size=(5, 2, 3, 4))
    weights = {node.name: node.operator.weight for node in network.nodes if isinstance(node.operator, Affine)}
    a0 = x @ weights["block00_a"].T
    a1 = a0 @ weights["block01_a"].T
    b0 = _fire(_hard(4, 0.3), a1)
    b1 = torch.nn.functional.layer_norm(torch.from_numpy(a0 + b0), (4,)).numpy()
    middle = (a0 + b1) @ weights["between"].T
    c0 = _fire(_hard(4, 0.3), middle + b0 + a1)
    for runner, options in (("reference", {}), ("lava", {"granularity": granularity})):
        trace = run(network, x, runner=runner, **options)
        np.testing.assert_array_equal(trace.spikes["block00_b"], b0)
        np.testing.assert_array_equal(trace.spikes["block00_c"], c0)
        np.testing.assert_allclose(trace.outputs, c0 + middle, rtol=0, atol=1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# What goes wrong ends in an error that says what and where.


@dataclass(frozen=True, eq=False)
class _Fragile(Operator):
    """Passes on what comes, and breaks at 13."""

    name: ClassVar[str] = "fragile"
    traits: ClassVar[Traits] = replace(Flatten.traits, integer=False)

    @property
    def in_features(self) -> int:
        return 3

    @property
    def out_features(self) -> int:
        return 3

    def interval(self, read: Any, tokens: int | None) -> None:
        return None

    def step(self, x: np.ndarray, state: Any, token_mask: np.ndarray | None) -> np.ndarray:
        if (x == 13).any():
            raise ArithmeticError("thirteen came in")
        return x

    def to_nir(self, dtype: DTypeLike, dt: float) -> nir.NIRNode:
        raise NotImplementedError


def _fragile_network() -> Network:
    builder = NetworkBuilder("input", 3)
    builder.add("before", Affine(np.eye(3)), "input")
    builder.add("block07_fragile", _Fragile(), "before")
    builder.add("after", _hard(3, 1.0), "block07_fragile")
    return builder.network("output", "after")


@lava
@pytest.mark.parametrize(
    ("granularity", "culprit"), [("operator", "block07_fragile"), ("block", "block07"), ("network", "network")]
)
def test_a_process_that_fails_is_named_and_the_runner_goes_on(granularity: str, culprit: str) -> None:
    from hardware.runners.lava.guard import LavaRunError

    good, bad = np.full((4, 2, 1, 3), 2.0), np.full((4, 2, 1, 3), 2.0)
    bad[2, 1] = 13
    with open_runner(_fragile_network(), "lava", granularity=granularity) as runner:
        assert runner.run(good).outputs.all()
        with pytest.raises(LavaRunError) as caught:
            runner.run(bad)
        assert caught.value.process_name == culprit
        for said in (f"process '{culprit}'", "ArithmeticError: thirteen came in", "in time step 7"):
            assert said in str(caught.value)
        assert multiprocessing.active_children() == []
        assert runner.run(good).outputs.all()
        assert runner.builds == 3  # what failed was tried twice
        assert ["in time step 15" in fault.message for fault in runner.faults] == [True, False]


@lava
def test_a_process_that_cannot_be_built_is_named_and_the_runner_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from hardware.runners.lava.guard import LavaRunError

    x = np.full((2, 1, 1, 3), 2.0)

    def no_cast(*_: Any) -> None:
        raise MemoryError("no room for the weights")

    with open_runner(_fragile_network(), "lava", granularity="operator") as runner:
        with monkeypatch.context() as broken:
            broken.setattr(_Fragile, "cast", no_cast)
            with pytest.raises(
                LavaRunError, match=r"process 'block07_fragile'.*no room for the weights.*while its model"
            ):
                runner.run(x)
        assert multiprocessing.active_children() == []
        assert runner.run(x).outputs.all()


@lava
def test_values_over_other_time_steps_rebuild() -> None:
    with open_runner(_fragile_network(), "lava", granularity="network") as runner:
        for steps, builds in ((2, 1), (2, 1), (5, 2), (2, 3)):
            assert runner.run(np.full((steps, 1, 1, 3), 2.0)).outputs.shape[0] == steps
            assert runner.builds == builds


@lava
def test_a_process_that_does_not_end_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    from hardware.runners.lava.guard import LavaRunError

    monkeypatch.setattr(_Fragile, "step", lambda *_: time.sleep(1000))
    stuck = pytest.raises(LavaRunError, match=r"no progress for 2 s: process 'block07_fragile'")
    with open_runner(_fragile_network(), "lava", granularity="operator", timeout=2.0) as runner, stuck:
        runner.run(np.ones((4, 1, 1, 3)))


@lava
def test_closing_is_final_only_until_the_next_run(tiny_model: Any, padded_batch: Batch) -> None:
    runner = open_runner(to_nir(tiny_model), "lava", granularity="network")
    runner.close()
    first = runner.run(*padded_batch)
    runner.close()
    runner.close()
    assert multiprocessing.active_children() == []
    _assert_same(runner.run(*padded_batch), first, set())
    assert runner.builds == 2
    runner.close()


IDS = np.array([[1, 2, 3], [4, 5, 6]])
BAD_INPUTS: dict[str, tuple[Any, Any]] = {
    "a row": (IDS[0], None),
    "nothing": (np.zeros((0, 3), int), None),
    "no tokens": (np.zeros((2, 0), int), None),
    "fractions": (IDS + 0.5, None),
    "whole numbers as floats": (IDS.astype(float), None),
    "words": (IDS.astype(str), None),
    "None": (None, None),
    "rows of unequal length": ([[1, 2, 3], [4]], None),
    "a word outside the vocabulary": (IDS + 15, None),
    "a negative word": (IDS - 2, None),
    "more tokens than positions": (np.ones((1, 13), int), None),
    "a mask of other shape": (IDS, np.ones((2, 2))),
    "a mask of words": (IDS, np.full((2, 3), "yes")),
    "a mask of unequal rows": (IDS, [[1, 1, 1], [1]]),
    "a sentence without tokens": (IDS, np.array([[1, 1, 1], [0, 0, 0]])),
}


@pytest.mark.parametrize("runner", ["torch", "reference", pytest.param("lava", marks=lava)])
@pytest.mark.parametrize("what", BAD_INPUTS)
def test_bad_inputs_are_refused_with_a_reason(what: str, runner: str, tiny_model: Any) -> None:
    with (
        open_runner(tiny_model if runner == "torch" else to_nir(tiny_model), runner) as opened,
        pytest.raises((RunnerError, GraphError, ConfigurationError), match=r".{15}"),
    ):
        opened.run(*BAD_INPUTS[what])
    if runner == "lava":
        assert opened.builds == 0


VALUES = np.ones((2, 1, 1, 3))
BAD_VALUES: dict[str, Any] = {
    "other features": VALUES[..., :2],
    "no time": VALUES[0, 0],  # three axes would be time steps, samples and features, without tokens
    "no steps": VALUES[:0],
    "no sentences": VALUES[:, :0],
    "words": VALUES.astype(str),
    "complex numbers": VALUES + 1j,
    "what is not a number": np.where(np.arange(3) == 1, np.nan, VALUES),
    "what is not finite": VALUES * np.inf,
}


@pytest.mark.parametrize("runner", ["reference", pytest.param("lava", marks=lava)])
@pytest.mark.parametrize("what", BAD_VALUES)
def test_bad_values_are_refused_with_a_reason(what: str, runner: str) -> None:
    with open_runner(_fragile_network(), runner) as opened, pytest.raises(RunnerError, match="inputs"):
        opened.run(BAD_VALUES[what])


@pytest.mark.parametrize(
    ("runner", "options", "said"),
    [
        ("loihi", {}, "runner 'loihi' is not one of"),
        ("torch", {}, "runs a model, not a graph"),
        ("reference", {"precision": "float16"}, "precision 'float16'"),
        ("reference", {"time_steps": 0}, "time_steps is 0"),
        ("reference", {"time_steps": -1}, "time_steps is -1"),
        ("reference", {"time_steps": 2.5}, r"time_steps is 2\.5"),
        pytest.param("lava", {"precision": "integer"}, "float graph; quantize it first", marks=lava),
        pytest.param("lava", {"timing": "chip"}, "timing 'chip'", marks=lava),
        pytest.param("lava", {"timing": "hardware"}, "not float64 with granularity", marks=lava),
        pytest.param("lava", {"granularity": "chip"}, "granularity 'chip'", marks=lava),
        pytest.param("lava", {"time_steps": 0}, "time_steps is 0", marks=lava),
        pytest.param("lava", {"tokens": 0}, "tokens is 0", marks=lava),
        pytest.param("lava", {"tokens": 13}, "tokens is 13; the graph has only 12 positions", marks=lava),
    ],
)
def test_bad_options_are_refused(runner: str, options: dict[str, Any], said: str, tiny_model: Any) -> None:
    with pytest.raises(RunnerError, match=said):
        open_runner(to_nir(tiny_model), runner, **options)


@pytest.mark.parametrize("runner", ["reference", pytest.param("lava", marks=lava)])
def test_a_model_is_not_a_graph(runner: str, tiny_model: Any) -> None:
    with pytest.raises(RunnerError, match="runs a NIR graph, not SpikeBertForSequenceClassification"):
        open_runner(tiny_model, runner)


def test_a_graph_must_say_its_time_steps_or_be_told() -> None:
    builder = NetworkBuilder("input", 3)
    builder.add("embedding", Affine(np.eye(3)), "input")
    network = builder.network("output", "embedding", token_encoding=TokenEncoding(3, 0))
    with pytest.raises(RunnerError, match="does not say how many time steps"):
        run(network, [[0, 1]])
    assert run(network, [[0, 1]], time_steps=2).outputs.shape == (2, 1, 2, 3)
    with pytest.raises(RunnerError, match="inputs have 2 time steps, but time_steps is 3"):
        run(_fragile_network(), np.ones((2, 1, 1, 3)), time_steps=3)


def test_a_module_that_records_nothing_is_refused() -> None:
    class Silent(torch.nn.Module):
        def forward(self, *_: Any, **__: Any) -> Any:
            return None

    with pytest.raises(RunnerError, match="Silent returned no spikes"):
        run(Silent(), IDS, runner="torch")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0.5, "first: its spikes are not all whole numbers up to 127"),
        (128.0, "first: its spikes are not all whole numbers up to 127"),
        (-1.0, "first: a spike is -1; spikes are 0 or positive"),
    ],
)
def test_spikes_that_fit_in_no_byte_are_refused(value: float, message: str) -> None:
    class Recorder(torch.nn.Module):
        """A module of somebody else, which may send anything."""

        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

        def forward(
            self, ids: Any, mask: Any, output_spikes: bool, output_membrane_potentials: bool, keep_spikes: Any = None
        ) -> Any:
            spikes = torch.zeros(2, *ids.shape, 3)
            spikes[1, 0, 0, 2] = self.value
            kept = keep_spikes(spikes) if keep_spikes else spikes
            return SimpleNamespace(spikes={"first": kept}, logits=torch.zeros(len(ids), 2))

    assert run(Recorder(127.0), IDS, runner="torch").spikes["first"].max() == 127
    with pytest.raises(RunnerError, match=message):
        run(Recorder(value), IDS, runner="torch")


def test_spikes_are_the_same_in_a_byte_as_in_a_float(tiny_model: Any, padded_batch: Any) -> None:
    ids, mask = padded_batch
    trace = run(tiny_model, ids, mask, runner="torch", precision="float32")
    with torch.no_grad():
        kept = tiny_model(torch.from_numpy(ids), torch.from_numpy(mask), output_spikes=True).spikes
    for name, spikes in kept.items():
        assert (spikes.dtype, trace.spikes[name].dtype) == (torch.float32, np.uint8)
        assert np.array_equal(trace.spikes[name], spikes.numpy()), name


def test_a_run_leaves_the_spikes_of_runs_before_alone(tiny_model: Any) -> None:
    rng = np.random.default_rng(0)
    batches = [rng.integers(1, 20, (2, length)) for length in (5, 7, 3, 7, 5)]
    with open_runner(tiny_model, "torch", "float32") as runner:
        kept = [runner.run(ids).spikes for ids in batches]
        last_step = {name: spikes[-1] for name, spikes in runner.run(batches[0]).spikes.items()}  # a part is held
        runner.run(batches[1])
    for ids, spikes in [*zip(batches, kept, strict=True), (batches[0], kept[0])]:
        alone = run(tiny_model, ids, runner="torch", precision="float32").spikes
        for name in alone:
            assert np.array_equal(spikes[name], alone[name]), name
    for name, part in last_step.items():
        assert np.array_equal(part, kept[0][name][-1]), name


def test_spikes_that_nobody_holds_leave_their_memory_to_the_next() -> None:
    memory = ByteMemory()
    first, second = memory.keep(torch.ones(2, 3)), memory.keep(torch.zeros(4))
    held, address = first.numpy()[1:], second.data_ptr()
    assert held.base is not None
    del first, second
    smaller = memory.keep(torch.ones(3))
    assert smaller.data_ptr() == address  # of the second; a part of the first is still held
    assert held.tolist() == [[1, 1, 1]]
    for length in range(5, 50):  # ever longer sentences
        memory.keep(torch.ones(length))
    assert len(memory._blocks) == 3
    assert smaller.tolist() == [1, 1, 1]
    assert memory.keep(torch.zeros(0, 3)).shape == (0, 3)


@lava
def test_too_many_values_between_two_processes_are_refused() -> None:
    builder = NetworkBuilder("input", 2)
    names = [builder.add(f"part{index}", Affine(np.eye(2)), "input") for index in range(6)]
    outs = [builder.add(f"block00_{index}", Affine(np.eye(2)), name) for index, name in enumerate(names)]
    network = builder.network("output", outs)
    x = np.ones((1, 1, 1, 2))
    with open_runner(network, "lava", granularity="block") as runner, pytest.raises(RunnerError, match="4 ports"):
        runner.run(x)
    np.testing.assert_array_equal(run(network, x, runner="lava", granularity="network").outputs, 6 * x)


def test_the_model_given_to_torch_stays_as_it_is(tiny_model: Any) -> None:
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    run(tiny_model, IDS, runner="torch", precision="float64")
    for name, value in tiny_model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name])


def test_everything_but_lava_works_without_lava(tmp_path: Path) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(REPOSITORY)!r})

class NoLava:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "lava":
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, NoLava())
import numpy as np
from spikebert import SpikeBertConfig, SpikeBertForSequenceClassification
from export import read_nir, to_nir, write_nir
from hardware import Trace, compare, open_runner, run
from spikebert.cli import main
from spikebert.errors import MissingDependencyError

config = SpikeBertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)
model = SpikeBertForSequenceClassification(config).eval()
graph = read_nir(write_nir({str(tmp_path / "model.nir")!r}, to_nir(model)))
trace = run(graph, np.array([[1, 2]]), record_membrane_potentials=True)
trace = Trace.load(trace.save({str(tmp_path / "trace.npz")!r}))
assert compare(run(model, np.array([[1, 2]]), runner="torch", record_membrane_potentials=True), trace).equal
try:
    open_runner(graph, "lava")
except MissingDependencyError as error:
    assert "uv sync --extra lava" in str(error) and "pip install" in str(error), error
else:
    raise AssertionError("the Lava runner opened without Lava")
try:
    np.save({str(tmp_path / "ids.npy")!r}, np.array([[1, 2]]))
    main(["simulate", {str(tmp_path / "model.nir")!r}, "--runner", "lava", "--ids", {str(tmp_path / "ids.npy")!r}])
except SystemExit as error:
    assert error.code == 2, error.code
assert not any(name.split(".")[0] == "lava" for name in sys.modules)
print("all of it")
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.endswith("all of it\n")
    assert "uv sync --extra lava" in finished.stderr
    assert "Traceback" not in finished.stderr
