"""A profile as people read it: table, CSV, JSON, picture and page; operation counts of the same run stand with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from hardware.choices import CSV_AXES
from hardware.energy.counts import OPERATION_KINDS, OperationCounts
from hardware.profiler import NodeProfile, Profile, ValueHistogram
from hardware.reports.energy_report import operations_table
from hardware.reports.files import ReportError, write_csv_rows, write_json_object, write_whole
from hardware.reports.page import render_page
from hardware.reports.pictures import picture_data_uri, picture_format, write_picture
from hardware.reports.profile_figures import ReportSubject, Sentence, drawable_figures, figure_of, overview

MOST_STEP_COLUMNS = 8  # with more time steps a table shows the mean only; CSV and JSON have them all

CAPTIONS = {
    "rates": "Firing rate of each spiking node over all steps and real tokens.",
    "steps": "Firing rate of each spiking node at each time step.",
    "positions": "Firing rate at each token position, by kind of node; grey: how many real tokens stood there.",
    "heads": "Firing rate by attention head: of query, key and value, and of the neurons behind the attention product.",
    "raster": "Spikes of one sentence in nodes from first to last, at up to six time steps; black fires.",
    "histogram": "How firing rates spread over neurons, and how often each value occurs in sums of spikes.",
}


def profile_tables(profile: Profile, operations: OperationCounts | None = None) -> list[RenderableType]:
    """Return tables for a terminal of 80 columns.

    Rates; where collected values and sparsity, and persistence; and where they were counted operations.
    """
    tables: list[RenderableType | None] = [_rate_table(profile), _value_table(profile), _persistence_table(profile)]
    tables.append(None if operations is None else operations_table(operations).to_rich())
    return [table for table in tables if table is not None]


def _rate_table(profile: Profile) -> Table:
    show_steps = profile.time_steps <= MOST_STEP_COLUMNS
    table = _table("neurons", "rate\n%", *(["by step\n%"] if show_steps else []), "silent\n%", "saturated\n%")
    for name, node in profile.nodes.items():
        steps = [" ".join(f"{100 * rate:4.1f}" for rate in node.firing_rate_by_step)] if show_steps else []
        shares = [f"{100 * share:.1f}" for share in (node.silent_share, node.saturated_share)]
        table.add_row(escape(name), f"{node.neurons:,}", f"{100 * node.firing_rate:.2f}", *steps, *shares)
    return table


def _value_table(profile: Profile) -> Table | None:
    table = _table("mean", "largest", "bits", "values 0\n%", "bits 0\n%")
    for histogram in _histograms(profile):
        sparsities = [f"{100 * share:.2f}" for share in (histogram.sparsity_in_values, histogram.sparsity_in_bits)]
        numbers = [f"{histogram.mean_value:.3f}", str(histogram.largest_value), str(histogram.bits)]
        table.add_row(escape(histogram.node), *numbers, *sparsities)
    return table if table.row_count else None


def _persistence_table(profile: Profile) -> Table | None:
    table = _table("fires again\n%", "by chance\n%")
    for name, node in profile.nodes.items():
        if node.persistence is not None:
            shares = (node.persistence.share, node.persistence.chance)
            table.add_row(escape(name), *(f"{100 * share:.2f}" for share in shares))
    return table if table.row_count else None


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, collapse_padding=True, header_style="bold")
    table.add_column("node", overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=heading.startswith("by step"))
    return table


def csv_rows(profile: Profile, by: str = "node", operations: OperationCounts | None = None) -> list[dict[str, Any]]:
    """Return the rows of the CSV file.

    Parameters
    ----------
    profile : Profile
    by : {"node", "step", "position", "head", "neuron", "value", "operation"}
        One row a node with everything known of it, or one row for each node and step, position, head, neuron or value
        (the last has the residual stream too), or one for each node of the graph and kind of operation.
    operations : OperationCounts, optional
        Of the same run.

    Raises
    ------
    ReportError
        `by` is something else, or heads, values or operations were not collected.
    """
    if by not in CSV_AXES:
        raise ReportError(f"CSV by {by!r} is not known; choose from {', '.join(CSV_AXES)}")
    if by == "node":
        return [_node_row(node) for node in profile.nodes.values()]
    if by == "operation":
        if operations is None:
            raise ReportError("no operations were counted; give the counts of the same run")
        return _operation_rows(operations)
    if by == "head":
        rows = [
            {"node": name, "part": part, "head": head, "firing_rate": _cell(rate)}
            for name, node in profile.nodes.items()
            for part, rates in node.firing_rate_by_head.items()
            for head, rate in enumerate(rates)
        ]
        if not rows:
            raise ReportError("the profile has no attention heads; collect 'heads' and give the profiler the graph")
        return rows
    if by == "value":
        rows = [
            {"node": histogram.node, "value": value, "count": int(count), "share": _cell(share)}
            for histogram in _histograms(profile)
            for value, (count, share) in enumerate(zip(histogram.counts.sum(0), histogram.shares, strict=True))
        ]
        if not rows:
            raise ReportError("the profile has no values; collect 'histogram'")
        return rows
    return [
        {"node": name, by: index, "firing_rate": _cell(rate)}
        for name, node in profile.nodes.items()
        for index, rate in enumerate(_rates_along(node, by))
    ]


def _operation_rows(operations: OperationCounts) -> list[dict[str, Any]]:
    return [
        {
            "node": name,
            "operator": node.operator,
            "reads": node.edge,
            "operation": kind,
            "at_real_tokens": node.real.get(kind, 0),
            "at_padding": node.padding.get(kind, 0),
        }
        for name, node in operations.nodes.items()
        for kind in OPERATION_KINDS
        if kind in node.real or kind in node.padding
    ]


def write_profile_csv(
    profile: Profile, path: str | Path, by: str = "node", operations: OperationCounts | None = None
) -> Path:
    """Write `csv_rows` to a file.

    Raises
    ------
    ReportError
        As in `csv_rows`, or the file cannot be written.
    """
    return write_csv_rows(path, csv_rows(profile, by, operations))


def write_profile_json(
    profile: Profile,
    path: str | Path,
    subject: ReportSubject | None = None,
    detailed: bool = False,
    operations: OperationCounts | None = None,
) -> Path:
    """Write `profile_object` as JSON.

    Raises
    ------
    ReportError
        The file cannot be written.
    """
    return write_json_object(path, profile_object(profile, subject, detailed, operations))


def profile_object(
    profile: Profile,
    subject: ReportSubject | None = None,
    detailed: bool = False,
    operations: OperationCounts | None = None,
) -> dict[str, Any]:
    """Return JSON values: what the profile is about, `Profile.to_dict`, and under ``operations`` what was counted."""
    about = {} if subject is None else {"model": subject.model, "data": subject.data, **subject.record}
    counted = {} if operations is None else {"operations": operations.to_dict()}
    return {**about, **profile.to_dict(detailed), **counted}


def write_profile_picture(
    profile: Profile,
    path: str | Path,
    subject: ReportSubject,
    sentence: Sentence | None = None,
    figures: Sequence[str] | None = None,
) -> Path:
    """Write one or several pictures into one file; its suffix chooses PNG, PDF or SVG.

    Parameters
    ----------
    profile, path, subject
        What is drawn, where to, and its title.
    sentence : Sentence, optional
        For the raster.
    figures : sequence of str, optional
        Some of `FIGURES`; by default all that can be drawn.

    Raises
    ------
    ReportError
        A figure is not known or lacks what it needs, or the file cannot be written.
    """
    picture_format(path)  # refused before the work, not after it
    return write_picture(overview(profile, subject, sentence, figures), path)


def write_profile_page(
    profile: Profile,
    path: str | Path,
    subject: ReportSubject,
    sentence: Sentence | None = None,
    detailed: bool = False,
    operations: OperationCounts | None = None,
) -> Path:
    """Write one self-contained HTML page with pictures, tables, definitions and how it was made.

    Raises
    ------
    ReportError
        The file cannot be written.
    """
    return write_whole(path, profile_page(profile, subject, sentence, detailed, operations))


def profile_page(
    profile: Profile,
    subject: ReportSubject,
    sentence: Sentence | None = None,
    detailed: bool = False,
    operations: OperationCounts | None = None,
) -> str:
    """Return the page that `write_profile_page` writes."""
    nodes = list(profile.nodes.values())
    pictures = [
        {"source": picture_data_uri(figure_of(name, profile, subject, sentence)), "caption": CAPTIONS[name]}
        for name in drawable_figures(profile, sentence)
    ]
    return render_page(
        "profile.html",
        profile=profile,
        subject=subject,
        record=subject.record,
        pictures=pictures,
        histograms=_histograms(profile),
        graded=any(node.graded for node in nodes),
        padding_fired=sum(node.fired_at_padding for node in nodes),
        most_steps=MOST_STEP_COLUMNS,
        detailed=detailed,
        operations=None if operations is None else operations_table(operations),
    )


def _histograms(profile: Profile) -> list[ValueHistogram]:
    own = [node.histogram for node in profile.nodes.values() if node.histogram is not None]
    return [*own, *profile.streams.values()]


def _node_row(node: NodeProfile) -> dict[str, Any]:
    row: dict[str, Any] = {
        "node": node.node,
        "neurons": node.neurons,
        "spikes": node.spikes,
        "opportunities": node.opportunities,
        "firing_rate": _cell(node.firing_rate),
        **{f"firing_rate_step{step}": _cell(rate) for step, rate in enumerate(node.firing_rate_by_step)},
        "silent_neurons": len(node.silent_neurons),
        "silent_share": node.silent_share,
        "saturated_neurons": len(node.saturated_neurons),
        "saturated_share": node.saturated_share,
        "mean_value": _cell(node.mean_value),
        "largest_value": node.largest_value,
        "spikes_at_padding": node.fired_at_padding,
    }
    if node.persistence is not None:
        row |= {"persistence": _cell(node.persistence.share), "persistence_by_chance": _cell(node.persistence.chance)}
    if node.histogram is not None:
        row |= {
            "bits": node.histogram.bits,
            "sparsity_in_values": _cell(node.histogram.sparsity_in_values),
            "sparsity_in_bits": _cell(node.histogram.sparsity_in_bits),
        }
    return row


def _rates_along(node: NodeProfile, by: str) -> np.ndarray:
    if by == "step":
        return node.firing_rate_by_step
    return node.firing_rate_by_position if by == "position" else node.firing_rate_by_neuron


def _cell(value: float) -> float | None:
    """Return a number, or None for an empty cell where there is none."""
    return None if np.isnan(value) else float(value)
