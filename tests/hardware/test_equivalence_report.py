"""The promise of the page: everything the finding says stands on it, it needs no network, and words cannot break it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from export.network import Network, Node
from export.operators import Affine
from hardware.equivalence.node_by_node import NodeByNode
from hardware.equivalence.streaming import Fault, Finding, Pair
from hardware.reports.equivalence_figures import neuron_figure
from hardware.reports.equivalence_report import EquivalenceSubject, equivalence_page, write_equivalence_page
from hardware.reports.files import ReportError
from hardware.runners import open_runner
from hardware.runners.runner import Runner

NetworkMaker = Callable[..., Network]
SUBJECT = EquivalenceSubject(
    "torch",
    "lava",
    "float64",
    model="tiny <b>",
    data="given text",
    texts=["a <script>alert(1)</script> film", "dull"],
    record={"seed": 7, "command": "spikebert verify", "checkpoint_sha256": "c0ffee", "versions": {"numpy": "1.26"}},
)


def _open(network: Network) -> Runner:
    return open_runner(network, "reference", "float64", record_membrane_potentials=True)


@pytest.fixture(scope="module")
def findings(make_network: NetworkMaker) -> dict[str, Finding]:
    network = make_network(5)

    def change(node: Node) -> Node:
        if node.name != "block00_output_affine":
            return node
        assert isinstance(node.operator, Affine)
        return Node(node.name, replace(node.operator, weight=-node.operator.weight), node.sources)

    faulty = replace(network, nodes=tuple(change(node) for node in network.nodes))
    ids = np.random.default_rng(0).integers(1, 20, (2, 5))
    mask = np.ones((2, 5), bool)
    found = {}
    for name, other in (("equal", network), ("different", faulty)):
        by_node = NodeByNode(other, _open)
        with Pair(_open(network), _open(other), network, explain_all=True, node_by_node=by_node) as pair:
            found[name] = pair.run(0, ids, mask)
    return found


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "action")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.mark.parametrize("name", ["equal", "different"])
def test_a_page_needs_no_network(name: str, findings: dict[str, Finding]) -> None:
    page = _Page(equivalence_page(findings[name], SUBJECT))
    assert page.addresses
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert "script" not in page.tags
    assert "link" not in page.tags


def test_a_page_says_equal(findings: dict[str, Finding]) -> None:
    page = _Page(equivalence_page(findings["equal"], SUBJECT))
    assert "EQUAL" in page.text
    assert "NOT EQUAL" not in page.text
    assert "First divergence" not in page.text
    for said in ("c0ffee", "spikebert verify", "numpy 1.26", "tiny <b>"):
        assert said in page.text


def test_a_page_says_where_and_why(findings: dict[str, Finding]) -> None:
    found = findings["different"]
    first = found.comparison.first_divergence
    assert first is not None
    assert found.explanation is not None
    assert found.evidence is not None
    page = _Page(equivalence_page(replace(found, faults=[Fault(0, 2, 1, "killed by signal 9")]), SUBJECT))
    for said in (
        "NOT EQUAL",
        "lava does what no rounding gives; torch does what the graph says.",
        str(first.membrane_potential_a),
        str(first.membrane_potential_b),
        "the same in both",
        f"{found.explanation.unexplained} are unexplained",
        f"{found.comparison.spikes_different:,}",
        "attempt 1 failed: killed by signal 9",
        "How differences grow",
    ):
        assert said in page.text
    for node in found.comparison.per_node:
        assert node.node in page.text
    for entry in found.evidence.inputs:
        assert f"{entry.contribution:+.6g}" in page.text


def test_potentials_that_nobody_recorded_are_not_drawn(findings: dict[str, Finding]) -> None:
    found = findings["different"]
    assert found.evidence is not None
    sides = (replace(side, potentials=None, expected=None) for side in (found.evidence.side_a, found.evidence.side_b))
    without = replace(found.evidence, **dict(zip(("side_a", "side_b"), sides, strict=True)))
    for evidence, panels in ((found.evidence, 4), (without, 3)):
        assert len(neuron_figure(evidence, "torch", "lava").get_axes()) == panels
        page = _Page(equivalence_page(replace(found, evidence=evidence), SUBJECT))
        assert ("Left: its membrane potential" in page.text) == (panels == 4)


def test_a_graph_that_is_not_the_models_own_is_not_equal(findings: dict[str, Finding]) -> None:
    page = _Page(equivalence_page(findings["equal"], replace(SUBJECT, graph_differences=["embedding: weight: 1 of 9"])))
    assert "NOT EQUAL" in page.text
    assert "embedding: weight: 1 of 9" in page.text


def test_rounding_alone_is_not_equal_but_explained(findings: dict[str, Finding]) -> None:
    found, equal = findings["different"], findings["equal"]
    page = _Page(equivalence_page(replace(found, explanation=equal.explanation), SUBJECT))
    assert "NOT EQUAL, every difference explained" in page.text


def test_words_are_words(findings: dict[str, Finding]) -> None:
    found = findings["different"]
    assert found.evidence is not None
    tokens = ["<img src=x>", "$x$", "中", "&", "\n"]
    text = equivalence_page(replace(found, evidence=replace(found.evidence, tokens=tokens)), SUBJECT)
    assert "<img src=x>" not in text
    assert "<script>" not in text
    assert "<img src=x>" in _Page(text).text


def test_a_page_is_written_whole_or_not(findings: dict[str, Finding], tmp_path: Path) -> None:
    path = write_equivalence_page(findings["equal"], tmp_path / "page.html", SUBJECT)
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
    with pytest.raises(ReportError, match="does not exist"):
        write_equivalence_page(findings["equal"], tmp_path / "missing" / "page.html", SUBJECT)
