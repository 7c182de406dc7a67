"""The promise of the rows: an operator is quantized by its own, one without is refused, and families are planned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest

from export import ChipLimitError, GraphError, UnsupportedOperatorError, parse_graph, quantize, quantize_with_report
from export.network import Network, NetworkBuilder, Node
from export.operators import (
    MARKED_OPERATORS,
    Affine,
    Convolution,
    Heaviside,
    Interval,
    LayerNorm,
    LeakyIntegrateAndFire,
    LeakyIntegrator,
    Operator,
    ResistiveNeuron,
    SpikingOperator,
)
from export.operators.reading import opaque_node
from export.passes.intervals import node_interval, reachable_wraps, value_intervals
from export.passes.quantize import QUANTIZE, Draft, Quantized, Reader, Row
from export.passes.quantize import readers as asks
from hardware import run

ENDS = 200
"""Largest number that has an entry in a table."""


@dataclass(frozen=True, eq=False)
class Gelu(Operator):
    """``y = x Phi(x)``: no file of ours knows it."""

    name: ClassVar[str] = "gelu"
    traits: ClassVar = replace(LayerNorm.traits, keeps_shape=True)
    features: int

    @property
    def in_features(self) -> int:
        return self.features

    @property
    def out_features(self) -> int:
        return self.features

    def step(self, x: np.ndarray, state: Any, token_mask: Any) -> np.ndarray:
        return (x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))).astype(x.dtype)

    def interval(self, read: Sequence[Interval | None], tokens: int | None) -> Interval | None:
        return None

    def to_nir(self, dtype: Any, dt: float) -> Any:
        return opaque_node(self, {"features": self.features})


@dataclass(frozen=True, eq=False)
class TableGelu(Gelu):
    """The same in whole numbers, one of 2 `ENDS` + 1 entries for each that it reads."""

    name: ClassVar[str] = "table_gelu"
    traits: ClassVar = replace(Gelu.traits, integer=True)
    entries: np.ndarray

    def step(self, x: np.ndarray, state: Any, token_mask: Any) -> np.ndarray:
        assert np.abs(x).max() <= ENDS
        return self.entries[x + ENDS]

    def interval(self, read: Sequence[Interval | None], tokens: int | None) -> Interval | None:
        ends = np.ones(self.features)
        return Interval(self.entries.min() * ends, self.entries.max() * ends)

    def to_nir(self, dtype: Any, dt: float) -> Any:
        return opaque_node(self, {"features": self.features, "entries": self.entries})


def _becomes_table(node: Node, gelu: Gelu, draft: Draft) -> Quantized:
    unit = draft.units[node.sources[0]][0]
    values = Gelu(1).step(np.arange(-ENDS, ENDS + 1) * unit, None, None)
    sent = values.max() / 127
    return Quantized(TableGelu(gelu.features, np.rint(values / sent).astype(np.int64)), np.full(gelu.features, sent))


@pytest.fixture
def _own_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let go of rows that a test registers."""
    monkeypatch.setattr(QUANTIZE, "_rows", dict(QUANTIZE._rows))


@pytest.fixture
def _gelu(_own_rows: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Register a GELU: all that another module has to do."""
    QUANTIZE.set(Row(becomes=_becomes_table, asks=lambda *_: Reader(largest=ENDS, beyond="the table ends")), Gelu)
    monkeypatch.setitem(
        MARKED_OPERATORS,
        "table_gelu",
        (TableGelu, lambda found, where: TableGelu(int(found["features"]), np.asarray(found["entries"]))),
    )


def _neuron(features: int, threshold: float = 0.5, **changes: Any) -> LeakyIntegrateAndFire:
    one = np.ones(features)
    return LeakyIntegrateAndFire(0.9 * one, 2 * one, threshold * one, reset="zero", **changes)


def _spikes(features: int, steps: int = 12) -> np.ndarray:
    return (np.random.default_rng(1).random((steps, 6, 1, features)) < 0.4).astype(np.int64)


def _weights(*shape: int, seed: int = 0, centre: float = 0.2) -> np.ndarray:
    return np.random.default_rng(seed).normal(centre, 0.5, shape)


def _with(operator: Operator, behind: Operator | None = None) -> Network:
    """Return spikes -> affine -> the operator -> affine -> neurons."""
    builder = NetworkBuilder("input", 5)
    builder.add("up", Affine(_weights(4, 5)), "input")
    builder.add("middle", operator, "up")
    builder.add("down", Affine(_weights(3, 4, seed=2)), "middle")
    builder.add("fire", behind or _neuron(3), "down")
    return builder.network("output", "fire", time_steps=12)


def _by_name(graph: Any) -> dict[str, Any]:
    return {node.name: node.operator for node in parse_graph(graph).nodes}


def test_an_operator_without_a_row_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedOperatorError, match=r"middle: quantize knows no gelu; register a row for Gelu"):
        quantize(_with(Gelu(4)), _spikes(5))


@pytest.mark.usefixtures("_gelu")
def test_an_operator_of_another_module_is_quantized_by_its_row() -> None:
    x, network = _spikes(5), _with(Gelu(4))
    graph, report = quantize_with_report(network, x)
    found = _by_name(graph)
    assert np.abs(found["up"].weight.astype(int)).sum(1).max() <= ENDS, "what it reads may grow beyond its table"
    assert np.abs(found["up"].weight.astype(int)).sum(1).max() > ENDS / 2, "its table is hardly used"
    trace = run(graph, x, precision="integer")
    read = x.astype(int) @ found["up"].weight.T.astype(int)
    sent = np.array([[found["middle"].entries[value + ENDS] for value in row] for row in read.reshape(-1, 4)])
    current = (sent @ found["down"].weight.T.astype(int)).reshape(12, 6, 1, 3)
    potential = np.zeros(current.shape[1:], int)
    for step, spikes in enumerate(trace.spikes["fire"]):
        kept = np.sign(potential) * (np.abs(potential) * (4096 - found["fire"].decay) >> 12)
        potential = kept + (current[step] << 6) + found["fire"].bias
        np.testing.assert_array_equal(spikes, potential > found["fire"].threshold << 6)
        potential = np.where(spikes, 0, potential)
    floats = run(network, x)
    (layer,) = report.layers
    assert layer.float_rate == pytest.approx(floats.firing_rate("fire"))
    assert layer.float_rate > 0.05
    assert layer.integer_rate == pytest.approx(trace.firing_rate("fire"))
    assert layer.agreement == pytest.approx(np.mean(trace.spikes["fire"] == floats.spikes["fire"]))
    assert layer.agreement > 0.95
    assert [weight.node for weight in report.weights] == ["up", "down"]


@pytest.mark.usefixtures("_gelu")
def test_what_can_arrive_is_held_against_what_a_row_asks() -> None:
    integrator = LeakyIntegrator(None, np.ones(4), np.zeros(4))
    builder = NetworkBuilder("input", 4)
    builder.add("gelu", Gelu(4), builder.add("sum", integrator, "input"))
    with pytest.raises(ChipLimitError, match="gelu: sum sends up to 8388607; beyond 200 the table ends"):
        quantize(builder.network("output", "gelu", time_steps=3), _spikes(4))


@pytest.mark.usefixtures("_own_rows")
def test_what_nothing_bounds_is_refused_by_name() -> None:
    QUANTIZE.set(Row(becomes=lambda node, gelu, draft: Quantized(gelu, np.ones(4)), asks=asks.nothing), Gelu)
    with pytest.raises(UnsupportedOperatorError, match="middle: nothing bounds what gelu sends"):
        quantize(_with(Gelu(4)), _spikes(5))


class Untouched(Heaviside):
    """A bare step that is not to be run."""

    def step(self, x: np.ndarray, state: Any, token_mask: Any) -> np.ndarray:
        raise AssertionError("it is run")


@pytest.mark.usefixtures("_own_rows")
def test_what_cannot_stand_in_an_integer_graph_is_refused_before_it_is_run() -> None:
    row = Row(becomes=lambda node, operator, draft: Quantized(operator, np.ones(4)), asks=asks.nothing)
    QUANTIZE.set(row, Untouched)
    with pytest.raises(GraphError, match="middle: a threshold of an integer graph is no whole number"):
        quantize(_with(Untouched(np.full(4, 0.5))), _spikes(5))


@pytest.mark.usefixtures("_own_rows")
def test_what_comes_back_must_stand_for_itself() -> None:
    def graded(node: Node, neuron: LeakyIntegrateAndFire, draft: Draft) -> Quantized:
        return replace(ours.becomes(node, neuron, draft), unit=np.full(4, 0.25))

    ours = QUANTIZE.find(LeakyIntegrateAndFire)
    assert isinstance(ours, Row)
    QUANTIZE.set(replace(ours, becomes=graded), LeakyIntegrateAndFire)
    builder = NetworkBuilder("input", 4)
    builder.add("again", Affine(_weights(4, 4)), builder.previous_step("fire", 4))
    builder.add("fire", _neuron(4), [builder.add("up", Affine(_weights(4, 4, seed=1)), "input"), "again"])
    with pytest.raises(UnsupportedOperatorError, match=r"fire: .* comes back to it, and a 1 of it stands for 0\.25"):
        quantize(builder.network("output", "fire", time_steps=3), _spikes(4))


def test_a_repair_scales_the_thresholds_that_a_row_says() -> None:
    """Half of the weights round to nothing; a bare step has no threshold to scale, a neuron has."""
    step = 2.0 / 127
    weight = np.where(np.arange(400) < 300, 0.44, 1.0) * step * np.ones((3, 1))
    weight[:, 0] = 2.0
    x = _spikes(400)
    x[..., 0] = 0
    threshold = np.full(3, 90 * step)
    neuron = LeakyIntegrateAndFire(np.full(3, 0.5), np.full(3, 2.0), threshold, reset="zero")
    for behind, repaired in ((Heaviside(threshold), False), (neuron, True)):
        builder = NetworkBuilder("input", 400)
        builder.add("fire", behind, builder.add("up", Affine(weight), "input"))
        (layer,) = quantize_with_report(builder.network("output", "fire", time_steps=12), x, clip=False)[1].layers
        assert (layer.found, layer.threshold_factor != 1) == ("silent", repaired)


def test_a_sum_has_one_scale_whichever_of_its_weights_comes_first() -> None:
    """``(late + later) + first``: the last summand is the first in the graph, and alone in the last sum."""
    builder = NetworkBuilder("input", 5)
    builder.add("first", Affine(_weights(4, 5)), "input")
    builder.add("hidden", _neuron(6), builder.add("up", Affine(_weights(6, 5, seed=1)), "input"))
    builder.add("late", Affine(_weights(4, 6, seed=2) * 3), "hidden")
    builder.add("later", Affine(_weights(4, 6, seed=3) / 3), "hidden")
    builder.add("fire", _neuron(4, 1.5), ["late", "later", "first"])
    network = builder.network("output", "fire", time_steps=12)
    graph, report = quantize_with_report(network, _spikes(5))
    found = _by_name(graph)
    for summand in ("late", "later"):
        np.testing.assert_array_equal(found[summand].unit, found["first"].unit)
    assert [weight.node for weight in report.weights] == ["up", "first", "late", "later"]
    assert all(layer.agreement > 0.97 for layer in report.layers)
    assert reachable_wraps(parse_graph(graph), value_intervals(parse_graph(graph))) == []


def test_a_scale_heeds_whatever_reads_any_of_its_family() -> None:
    """`one` is read by the sum, whose neurons would take any scale, and by neurons of a threshold far above."""
    high = 2.0e4
    for names in (("one", "two"), ("two", "one")):
        builder = NetworkBuilder("input", 5)
        for name in names:
            builder.add(name, Affine(_weights(4, 5)), "input")
        builder.add("low", _neuron(4), ["one", "two"])
        builder.add("high", _neuron(4, high), "one")
        graph = quantize(builder.network("output", ["low", "high"], time_steps=12), _spikes(5))
        found = _by_name(graph)
        np.testing.assert_allclose(found["high"].threshold * found["one"].unit, high, rtol=1e-5)


def test_families_that_wait_for_each_other_are_refused_by_name() -> None:
    """``a + b`` and ``c + d``, where b reads c and d reads a."""
    builder = NetworkBuilder("input", 4)
    for name, source in (("a", "input"), ("c", "input"), ("b", "c"), ("d", "a")):
        builder.add(name, Affine(_weights(4, 4)), source)
    builder.add("one", _neuron(4), ["a", "b"])
    builder.add("two", _neuron(4), ["c", "d"])
    network = builder.network("output", ["one", "two"], time_steps=3)
    with pytest.raises(UnsupportedOperatorError, match="a: has the scale of all that it is added to, and so has c"):
        quantize(network, _spikes(4))


def test_channels_that_differ_in_a_sum_are_refused_by_name() -> None:
    """A matrix of eight rows, and two kernels that lead to four places each."""
    builder = NetworkBuilder("input", 8)
    builder.add("map", Affine(_weights(8, 8)), "input")
    kernel = _weights(2, 2, 1, 1)
    plain = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1), "groups": 1}
    builder.add("kernels", Convolution((2, 2), kernel, np.zeros(2), **plain), "input")
    builder.add("fire", _neuron(8), ["map", "kernels"])
    with pytest.raises(UnsupportedOperatorError, match=r"map: has one scale for each of 8 channels .* and kernels"):
        quantize(builder.network("output", "fire", time_steps=3), _spikes(8))


def test_a_layer_is_judged_behind_the_spikes_of_the_float_graph() -> None:
    """Also where it is chosen before its turn, as all that a sum waits for is."""
    builder = NetworkBuilder("input", 5)
    builder.add("skip", Affine(_weights(4, 5)), "input")  # its family waits for both layers
    builder.add("one", _neuron(60, 1.5), builder.add("up", Affine(_weights(60, 5, seed=1)), "input"))
    builder.add("two", _neuron(4, 2.5), builder.add("map", Affine(_weights(4, 60, seed=2, centre=0.1)), "one"))
    builder.add("last", _neuron(4), ["skip", builder.add("again", Affine(_weights(4, 4, seed=3)), "two")])
    network, x = builder.network("output", "last", time_steps=30), _spikes(5, steps=30)
    graph, report = quantize_with_report(network, x)
    expected, found = run(network, x, precision="float32"), _by_name(graph)
    assert np.any(run(graph, x, precision="integer").spikes["one"] != expected.spikes["one"])
    tail = NetworkBuilder("input", 60)
    tail.add("two", found["two"], tail.add("map", found["map"], "input"))
    behind_float = tail.network("output", "two", time_steps=30, readout=parse_graph(graph).readout)
    spikes = run(behind_float, expected.spikes["one"].astype(np.int64), precision="integer").spikes["two"]
    (layer,) = (layer for layer in report.layers if layer.node == "two")
    assert layer.agreement == pytest.approx(np.mean(spikes == expected.spikes["two"]))


def test_an_output_that_neurons_read_too_shows_its_bias() -> None:
    builder, weight, bias = NetworkBuilder("input", 3), _weights(3, 3), np.array([0.5, -0.25, 0.125])
    builder.add("map", Affine(weight, bias), ["input", builder.previous_step("fire", 3)])
    builder.add("fire", _neuron(3), "map")
    network, x = builder.network("output", "map", time_steps=12), _spikes(3)
    graph = quantize(network, x)
    found = run(graph, x, precision="integer")
    came_back = np.concatenate([np.zeros_like(x[:1]), found.spikes["fire"][:-1]])
    np.testing.assert_allclose(found.outputs, (x + came_back) @ weight.T + bias, atol=0.02)
    assert _by_name(graph)["map"].bias is None, "the neurons add it"


@pytest.mark.parametrize("tau_syn", [None, 4.0])
def test_a_layer_norm_sends_what_the_neurons_behind_it_take(tau_syn: float | None) -> None:
    """A current that decays sums up four times what comes, and a threshold of 100 leaves no room for all fractions."""
    ones = np.ones(6)
    neuron = ResistiveNeuron(
        4 * ones, 4 * ones, 0 * ones, 100 * ones, 0 * ones, *((tau_syn * ones, 4 * ones) if tau_syn else (None, None))
    )
    builder = NetworkBuilder("input", 5)
    builder.add("norm", LayerNorm(200 * ones, 50 * ones), builder.add("map", Affine(_weights(6, 5)), "input"))
    builder.add("fire", neuron, "norm")
    graph, report = quantize_with_report(builder.network("output", "fire", time_steps=12), _spikes(5))
    network = parse_graph(graph)
    assert reachable_wraps(network, value_intervals(network)) == []
    assert report.layers[0].agreement > 0.98
    assert value_intervals(network)["norm"].largest > 131071 / (4 if tau_syn else 1) / 3, "bits are left unused"


@dataclass(frozen=True, eq=False)
class Ternary(SpikingOperator):
    """Neurons that fire -1, 0 or 1."""

    name: ClassVar[str] = "ternary"
    traits: ClassVar = replace(Heaviside.traits, spike_range=(-1, 1))
    threshold: np.ndarray

    def step(self, x: np.ndarray, state: Any, token_mask: Any) -> np.ndarray:
        raise AssertionError("it is not run")

    def to_nir(self, dtype: Any, dt: float) -> Any:
        raise AssertionError("it is not written")


def test_spikes_that_come_back_lie_where_their_neuron_sends_them() -> None:
    builder = NetworkBuilder("input", 2)
    before = builder.previous_step("fire", 2)
    builder.add("fire", Ternary(np.ones(2)), [builder.add("again", Affine(np.eye(2)), before), "input"])
    network = builder.network("output", "fire")
    found = node_interval(network, network.by_name[before], {})
    assert found is not None
    np.testing.assert_array_equal((found.low, found.high), ([-1, -1], [1, 1]))
