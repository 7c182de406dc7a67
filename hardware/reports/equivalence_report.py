"""What two runs have to say about each other, as one self-contained HTML page."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hardware.equivalence.streaming import Finding
from hardware.reports.equivalence_figures import growth_figure, margin_figure, neuron_figure
from hardware.reports.files import write_whole
from hardware.reports.page import render_page
from hardware.reports.pictures import picture_data_uri

MOST_STEP_COLUMNS = 12
"""With more time steps the table shows sums only; the heat map has them all."""


@dataclass(frozen=True)
class EquivalenceSubject:
    """What a report is about.

    Attributes
    ----------
    name_a, name_b : str
        The two sides.
    precision : str
    model, data : str
        In words.
    texts : list of str
        The sentences, where known.
    graph_differences : list of str
        Where a graph file is not the model's own.
    record : dict
        How it was made: seed, versions, command, checkpoint hash.
    """

    name_a: str
    name_b: str
    precision: str
    model: str = ""
    data: str = ""
    texts: list[str] = field(default_factory=list)
    graph_differences: list[str] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)


def write_equivalence_page(found: Finding, path: str | Path, subject: EquivalenceSubject) -> Path:
    """Write verdict, first divergence, growth, tables and how it was made as one HTML file without network.

    Raises
    ------
    ReportError
        The file cannot be written.
    """
    return write_whole(path, equivalence_page(found, subject))


def equivalence_page(found: Finding, subject: EquivalenceSubject) -> str:
    """Return the page that `write_equivalence_page` writes."""
    comparison, explanation, evidence = found.comparison, found.explanation, found.evidence
    first = comparison.first_divergence
    explained = {} if explanation is None else {node.node: node for node in explanation.per_node}
    by_node = {} if found.node_by_node is None else {node.node: node for node in found.node_by_node.per_node}
    by_node_explained = (
        {}
        if found.node_by_node_explanation is None
        else {node.node: node for node in found.node_by_node_explanation.per_node}
    )
    steps = max((len(node.different_by_step) for node in comparison.per_node), default=0)
    margins = margin_figure(comparison, explanation or found.node_by_node_explanation)
    return render_page(
        "equivalence.html",
        found=found,
        comparison=comparison,
        explanation=explanation,
        evidence=evidence,
        first=first,
        subject=subject,
        record=subject.record,
        outcome=_outcome(found, subject),
        sentence=subject.texts[first.sample] if first is not None and first.sample < len(subject.texts) else None,
        explained=explained,
        by_node=by_node,
        by_node_explained=by_node_explained,
        steps=range(steps) if 0 < steps <= MOST_STEP_COLUMNS else [],
        growth=picture_data_uri(growth_figure(comparison)) if comparison.spikes_different else None,
        neuron=None if evidence is None else picture_data_uri(neuron_figure(evidence, subject.name_a, subject.name_b)),
        margins=None if margins is None else picture_data_uri(margins),
        cause=None if evidence is None else evidence.cause_in_words(subject.name_a, subject.name_b),
    )


def _outcome(found: Finding, subject: EquivalenceSubject) -> str:
    """Return ``"equal"``, ``"explained"`` or ``"different"``."""
    if subject.graph_differences:
        return "different"
    if found.comparison.equal:
        return "equal"
    return "explained" if found.explanation is not None and found.explanation.explained else "different"
