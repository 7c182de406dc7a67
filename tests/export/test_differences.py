"""The promise of `graph_differences`: every way in which two graphs differ, by node, and nothing where they do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from export import Network, parse_graph, to_nir
from export.differences import graph_differences
from export.network import NetworkBuilder, Node
from export.operators import Affine, Heaviside, LayerNorm, LeakyIntegrateAndFire, SpikeAttention, TokenMean
from export.token_encoding import TokenEncoding

NEURON = LeakyIntegrateAndFire(np.full(8, 0.5), np.full(8, 2.0), np.ones(8))


def _network() -> Network:
    rng = np.random.default_rng(0)
    builder = NetworkBuilder("input", 4)
    builder.add("qkv", Affine(rng.normal(size=(24, 4)), rng.normal(size=24)), "input")
    builder.add("attention", SpikeAttention(2, 4, 0.125), "qkv")
    builder.add("neuron", NEURON, "attention")
    builder.add("norm", LayerNorm(np.ones(8), np.zeros(8)), ("neuron", "attention"))
    builder.add("mean", TokenMean(8), "norm")
    return builder.network("output", "mean", time_steps=4)


def _changed(node: str, **changes: Any) -> Network:
    """Return the network with some of a node's parameters, or its operator, changed."""
    network = _network()

    def change(old: Node) -> Node:
        if old.name != node:
            return old
        operator = changes.get("operator") or replace(old.operator, **changes)
        return Node(old.name, operator, old.sources)

    return replace(network, nodes=tuple(map(change, network.nodes)))


def _one_wrong(array: np.ndarray, index: tuple[int, ...], value: float) -> np.ndarray:
    array = array.copy()
    array[index] = value
    return array


WEIGHT = _network().nodes[0].operator.weight


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_graph_does_not_differ_from_itself(precision: str, make_model: Callable) -> None:
    model = make_model(num_hidden_layers=2)
    assert graph_differences(parse_graph(to_nir(model)), parse_graph(to_nir(model, precision))) == []
    assert graph_differences(_network(), _network()) == []


@pytest.mark.parametrize(
    ("node", "changes", "detail"),
    [
        (
            "qkv",
            {"weight": _one_wrong(WEIGHT, (3, 1), 2.5)},
            f"1 of 96 values differ, the first at [3, 1]: 2.5, expected {float(WEIGHT[3, 1])!r}",
        ),
        (
            "qkv",
            {"weight": _one_wrong(WEIGHT, (23, 3), np.nextafter(WEIGHT[23, 3], 9))},
            f"1 of 96 values differ, the first at [23, 3]: {float(np.nextafter(WEIGHT[23, 3], 9))!r}, expected "
            f"{float(WEIGHT[23, 3])!r}",
        ),
        ("qkv", {"bias": None}, "None, expected an array of shape (24,)"),
        ("attention", {"scale": 0.25}, "0.25, expected 0.125"),
        ("norm", {"eps": 1e-6}, "1e-06, expected 1e-05"),
        ("norm", {"groups": 2}, "2, expected 1"),
        ("neuron", {"beta": np.full(8, 0.9)}, "8 of 8 values differ, the first at [0]: 0.9, expected 0.5"),
        ("neuron", {"reset": "zero"}, "'zero', expected 'subtract'"),
        ("neuron", {"fire_on_equal": True}, "True, expected False"),
        ("neuron", {"threshold": np.ones(7)}, "shape (7,), expected (8,)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_changed_parameter_is_named_with_both_values(node: str, changes: dict[str, Any], detail: str) -> None:
    (found,) = graph_differences(_network(), _changed(node, **changes))
    assert (found.node, found.what, found.detail) == (node, next(iter(changes)), detail)
    assert str(found) == f"{node}: {found.what}: {detail}"


def test_a_bias_that_was_not_expected_is_named() -> None:
    (found,) = graph_differences(_changed("qkv", bias=None), _network())
    assert (found.what, found.detail) == ("bias", "an array of shape (24,), expected None")


def test_a_leak_that_the_neuron_does_not_use_makes_no_difference() -> None:
    assert graph_differences(_network(), _changed("neuron", tau=np.full(8, 7.0))) == []
    decaying = replace(NEURON, decay_input=True)
    other = replace(decaying, beta=np.full(8, 0.1))
    assert graph_differences(_changed("neuron", operator=decaying), _changed("neuron", operator=other)) == []
    (found,) = graph_differences(
        _changed("neuron", operator=decaying), _changed("neuron", operator=replace(decaying, tau=np.full(8, 7.0)))
    )
    assert found.what == "tau"


def test_another_operator_is_named_and_its_parameters_are_not_compared() -> None:
    (found,) = graph_differences(_network(), _changed("neuron", operator=Heaviside(np.ones(8))))
    assert (found.node, found.what) == ("neuron", "operator")
    assert found.detail == "heaviside, expected leaky_integrate_and_fire"


def test_missing_and_added_nodes_are_named() -> None:
    whole = _network()
    less = replace(whole, nodes=whole.nodes[:-1])
    assert [(d.node, d.what) for d in graph_differences(whole, less)] == [("mean", "missing")]
    assert [(d.node, d.what) for d in graph_differences(less, whole)] == [("mean", "added")]


def test_other_edges_are_named() -> None:
    whole = _network()
    rewired = tuple(Node(n.name, n.operator, ("attention",)) if n.name == "norm" else n for n in whole.nodes)
    (found,) = graph_differences(whole, replace(whole, nodes=rewired))
    assert (found.node, found.what) == ("norm", "edges")
    assert found.detail == "reads attention, expected attention_stream"


@pytest.mark.parametrize(
    "changes",
    [{"time_steps": 5}, {"attend_to_padding": True}, {"token_encoding": TokenEncoding(3, 1)}],
    ids=lambda changes: next(iter(changes)),
)
def test_what_holds_for_the_whole_graph_is_compared_too(changes: dict[str, Any]) -> None:
    (found,) = graph_differences(_network(), replace(_network(), **changes))
    assert (found.node, found.what) == ("graph", next(iter(changes)))


def test_all_differences_are_listed_in_topological_order() -> None:
    both = _changed("norm", eps=1e-6)
    both = replace(
        both,
        nodes=tuple(
            Node(n.name, replace(n.operator, scale=1.0), n.sources) if n.name == "attention" else n for n in both.nodes
        ),
    )
    assert [found.node for found in graph_differences(_network(), both)] == ["attention", "norm"]


def test_an_output_that_shows_another_node_is_named() -> None:
    (found,) = graph_differences(_network(), replace(_network(), output_source="norm"))
    assert str(found) == "graph: output_source: mean expected, norm found"
