"""The promise of ``docs/nir-extension.md``: it says what the files hold, all of it, and nothing they do not hold.

The page is read as another team would read it: a heading for each operator with its version, a table of its metadata
keys. The code is asked what it writes.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest

from export import build_graph, quantize, to_nir
from export.network import NetworkBuilder
from export.nir_graph.reader import parse_graph
from export.operators import MARKED_OPERATORS, LayerNorm, Operator, all_cases, all_integer_cases

PAGE = Path(__file__).parents[2] / "docs" / "nir-extension.md"
MARKS = {"standard", "op", "op_version"}
MARKED_KEYS = {*MARKS, "axes", "formula"}


@cache
def _sections() -> dict[str, str]:
    """Return the text below each heading, by heading."""
    parts = re.split(r"^##+ (.*)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _table_keys(section: str) -> set[str]:
    """Return what stands in backticks in the first column of the section's table."""
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    return {key for row in rows for key in re.findall(r"`([^`]+)`", row.split("|")[1])}


def _operators() -> dict[str, tuple[int, list[nir.NIRNode]]]:
    """Return each operator that marks its nodes: version, and every form of node that its cases are written as."""
    found: dict[str, tuple[int, list[nir.NIRNode]]] = {}
    for case in (*all_cases(), *all_integer_cases()):
        operator: Operator = case.operator
        node = operator.to_nir(np.float64, 1e-4)
        if "op" in node.metadata:
            found.setdefault(operator.name, (operator.version, []))[1].append(node)
    return found


@pytest.mark.parametrize("name", _operators())
def test_every_operator_stands_there_with_its_version_and_its_keys(name: str) -> None:
    version, nodes = _operators()[name]
    section = _sections()[f"{name}, version {version}"]
    written: set[str] = set()
    for node in nodes:
        assert node.metadata["op"] == name
        assert node.metadata["op_version"] == version
        written |= set(node.metadata) - (MARKED_KEYS if node.metadata["standard"] is False else MARKS)
        assert ("Standard:" in section) == node.metadata["standard"]
    assert written == _table_keys(section)


def test_nothing_stands_there_that_is_not_written() -> None:
    described = {heading.split(",")[0] for heading in _sections() if ", version " in heading}
    assert described == set(_operators())
    assert set(MARKED_OPERATORS) <= described
    assert _table_keys(_sections()["How a node is marked"]) == MARKED_KEYS


def test_the_keys_of_graph_input_and_output_stand_there(tiny_model: Any, padded_batch: Any) -> None:
    page = _sections()["The graph"]
    builder = NetworkBuilder("input", 4)
    builder.add("norm", LayerNorm(np.ones(4), np.zeros(4)), "input")
    values = build_graph(builder.network("output", "norm"))
    tokens = to_nir(tiny_model)
    integers = quantize(tokens, calibration=padded_batch)
    of_the_format = _table_keys(page) - {"input_limit"}  # only where an integer graph takes values
    assert of_the_format <= set(integers.metadata)
    assert set(values.metadata) <= of_the_format
    for graph in (values, tokens, integers):
        for end in ("input", "output"):
            for key in graph.nodes[end].metadata:
                assert f"`{key}`" in page, key


def test_the_body_of_a_marked_node_is_the_poison_described() -> None:
    for name in MARKED_OPERATORS:
        for node in _operators()[name][1]:
            assert isinstance(node, nir.NIRGraph)
            weights = [inner for inner in node.nodes.values() if isinstance(inner, nir.Linear)]
            assert [type(inner) for inner in node.nodes.values()] == [nir.Input, nir.Linear, nir.Linear, nir.Output]
            assert all(np.isnan(linear.weight).all() for linear in weights)
            assert weights[0].weight.shape[0] == weights[1].weight.shape[1] == 1


def test_the_table_of_the_inverse_root_is_the_one_described() -> None:
    from decimal import Decimal, getcontext

    from export.operators.layer_norm import inverse_square_root_table

    getcontext().prec = 60
    described = [int(Decimal(2**67 // (2 * part + 1)).sqrt()) for part in range(64, 256)]
    assert inverse_square_root_table().tolist() == described


def test_a_graph_that_follows_the_page_is_read() -> None:
    """Write a layer norm by hand, from the page alone."""
    poison = np.full((1, 3), np.nan)
    ends = {"input": nir.Input({"input": np.array([3])}), "output": nir.Output({"output": np.array([3])})}
    norm = nir.NIRGraph(
        {**ends, "a": nir.Linear(poison), "b": nir.Linear(poison.T)},
        [("input", "a"), ("a", "b"), ("b", "output")],
        metadata={
            "standard": False,
            "op": "layer_norm",
            "op_version": 1,
            "weight": np.arange(3.0),
            "bias": np.ones(3),
            "eps": 1e-5,
            "groups": 1,
        },
    )
    graph = nir.NIRGraph({**ends, "norm": norm}, [("input", "norm"), ("norm", "output")])
    (node,) = parse_graph(graph).nodes
    assert isinstance(node.operator, LayerNorm)
    assert node.operator.weight.tolist() == [0, 1, 2]
