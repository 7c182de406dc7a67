"""The pictures of an equivalence report: how differences grow, the neuron where two runs part, and how close it was."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from hardware.equivalence.comparison import Comparison
from hardware.equivalence.evidence import Evidence
from hardware.equivalence.explanation import Explanation
from hardware.reports.pictures import COLOURS, NEUTRAL_COLOUR, draw, safe_label

WIDTH = 10.0
ROW_HEIGHT = 0.2
NOTHING = "#F2F2F4"
MOST_NUMBERED_CELLS = 400
MOST_STEP_LABELS = 32
COLOUR_A, COLOUR_B = COLOURS[0], COLOURS[1]
BEYOND_ROUNDING = "#B00020"

AnyFigure = Figure | SubFigure


def growth_figure(comparison: Comparison) -> Figure:
    """Return a heat map of differing spikes, nodes downwards and time steps across, each node's share beside it."""
    nodes = comparison.per_node
    counts = np.array([node.different_by_step for node in nodes], dtype=float)
    shares = [100 * node.different / max(1, node.compared) for node in nodes]

    def paint(figure: Figure) -> None:
        heat, bars = figure.subplots(1, 2, sharey=True, width_ratios=[3, 1])
        shown = np.ma.masked_equal(counts, 0)
        norm = LogNorm(1, max(2.0, float(counts.max(initial=0))))
        heat.set_facecolor(NOTHING)
        image = heat.imshow(shown, aspect="auto", cmap="plasma_r", norm=norm, interpolation="nearest")
        heat.set_yticks(range(len(nodes)), [safe_label(node.node) for node in nodes])
        heat.set_xlabel("time step")
        heat.tick_params(length=0)
        heat.spines[:].set_visible(False)
        steps = counts.shape[1]
        heat.set_xticks(range(0, steps, max(1, -(-steps // MOST_STEP_LABELS))))
        heat.set_title("differing spikes (light grey: none)", loc="left")
        if counts.size <= MOST_NUMBERED_CELLS and steps <= MOST_STEP_LABELS:
            for (row, column), count in np.ndenumerate(counts):
                if count:
                    colour = "white" if norm(count) > 0.5 else "black"
                    heat.text(column, row, f"{int(count):,}", ha="center", va="center", size=6, color=colour)
        bars.barh(range(len(nodes)), shares, color=COLOUR_A, height=0.7)
        bars.set_xlabel("share of the node's spikes (%)")
        bars.set_title("differing, all steps", loc="left")
        bars.tick_params(axis="y", length=0)
        bars.set_xlim(0, max(max(shares, default=0) * 1.1, 1e-6))
        bars.xaxis.set_major_locator(MaxNLocator(4))
        figure.colorbar(image, ax=heat, pad=0.01, aspect=30)

    return draw(paint, WIDTH, max(2.0, ROW_HEIGHT * len(nodes) + 0.9))


def neuron_figure(evidence: Evidence, name_a: str, name_b: str) -> Figure:
    """Return the potential, where known, of the neuron where two runs part, and a raster of its neighbours in both."""
    divergence = evidence.divergence
    sides = ((evidence.side_a, safe_label(name_a, 24), COLOUR_A), (evidence.side_b, safe_label(name_b, 24), COLOUR_B))
    step, feature = divergence.time_step or 0, divergence.feature

    def paint(figure: Figure) -> None:
        right: AnyFigure = figure
        if evidence.shows_potentials:
            panels: Any = figure.subfigures(1, 2, width_ratios=[1, 1.25])
            left, right = panels
            _paint_potentials(left, evidence)
        axes = right.subplots(1, 3, sharey=True)
        rasters = [np.array(side.raster).T for side, _, _ in sides]
        extent_rows = np.arange(len(rasters[0])) + evidence.first_feature
        spikes = ListedColormap(["white", "black"])
        for panel, raster, (_, name, _) in zip(axes, rasters, sides, strict=False):
            panel.imshow(raster, aspect="auto", cmap=spikes, vmin=0, vmax=1, interpolation="nearest")
            panel.set_title(name)
        differs = rasters[0] != rasters[1]
        red = ListedColormap(["white", BEYOND_ROUNDING])
        axes[2].imshow(differs, aspect="auto", cmap=red, vmin=0, vmax=1, interpolation="nearest")
        axes[2].set_title("differ")
        for panel in axes:
            panel.add_patch(
                Rectangle(
                    (step - 0.5, feature - evidence.first_feature - 0.5),
                    1,
                    1,
                    fill=False,
                    color=COLOURS[4],
                    linewidth=1.5,
                )
            )
            panel.set_xlabel("time step")
            panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            panel.spines[:].set_visible(True)
        ticks = range(0, len(extent_rows), 4)
        axes[0].set_yticks(ticks, [str(extent_rows[tick]) for tick in ticks])
        axes[0].set_ylabel("feature")

    return draw(paint, WIDTH, 3.2)


def _paint_potentials(figure: AnyFigure, evidence: Evidence) -> None:
    axes = figure.subplots()
    steps = np.arange(len(evidence.side_a.spikes))
    handles = []
    for side, colour, marker, label in (
        (evidence.side_a, COLOUR_A, "o", "A"),
        (evidence.side_b, COLOUR_B, "s", "B"),
    ):
        potentials = side.potentials if side.potentials is not None else side.expected
        if potentials is None:
            continue
        fired = np.array(side.spikes, bool)
        values = np.array(potentials)
        axes.plot(steps, values, color=colour, linewidth=1, linestyle="-" if label == "A" else "--")
        axes.scatter(steps[fired], values[fired], color=colour, marker=marker, s=26, zorder=3)
        axes.scatter(
            steps[~fired], values[~fired], facecolors="white", edgecolors=colour, marker=marker, s=26, zorder=3
        )
        handles.append(Line2D([], [], color=colour, marker=marker, markersize=4, label=label))
    threshold = evidence.divergence.threshold
    if threshold is not None:
        axes.axhline(threshold, color="black", linewidth=0.8, linestyle=":")
        handles.append(Line2D([], [], color="black", linestyle=":", linewidth=0.8, label="threshold"))
    axes.axvline(evidence.divergence.time_step or 0, color=COLOURS[4], linewidth=6, alpha=0.25, zorder=0)
    axes.set_xlabel("time step")
    axes.set_ylabel("membrane potential")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("filled: the neuron fires", loc="left")
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)


def margin_figure(comparison: Comparison, explanation: Explanation | None) -> Figure | None:
    """Return, by node, the nearest that any potential came to its threshold, and how far rounding may move one.

    None where no potential was recorded.
    """
    nodes = [node for node in comparison.per_node if node.margin is not None]
    if not nodes:
        return None
    bounds = {} if explanation is None else {node.node: node.largest_bound for node in explanation.per_node}
    positive = [node.margin for node in nodes if node.margin]
    positive += [node.potential_difference for node in nodes if node.potential_difference]
    positive += [bound for bound in bounds.values() if bound]
    floor = min((value for value in positive if value is not None), default=1e-16) / 10

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        rows = np.arange(len(nodes))
        for row, node in zip(rows, nodes, strict=True):
            assert node.margin is not None
            tie = node.margin == 0
            axes.scatter(max(node.margin, floor), row, marker="|" if tie else "o", color=COLOUR_A, s=36 if tie else 18)
            if tie:
                axes.annotate("tie", (floor, row), (4, 0), textcoords="offset points", va="center", size=6)
            moved = node.potential_difference
            if moved:
                axes.scatter(moved, row, marker="x", color=COLOUR_B, s=18)
            if bounds.get(node.node):
                axes.scatter(bounds[node.node], row, marker="d", color=NEUTRAL_COLOUR, s=18)
        axes.set_xscale("log")
        axes.set_yticks(rows, [safe_label(node.node) for node in nodes])
        axes.invert_yaxis()
        axes.grid(axis="x", color="#E4E4E8", linewidth=0.6)
        axes.set_xlabel("membrane potential")
        handles = [
            Line2D([], [], color=COLOUR_A, marker="o", linestyle="", markersize=4, label="nearest to a threshold"),
            Line2D(
                [], [], color=COLOUR_B, marker="x", linestyle="", markersize=4, label="largest difference of the runs"
            ),
        ]
        if any(bounds.values()):
            handles.append(
                Line2D(
                    [], [], color=NEUTRAL_COLOUR, marker="d", linestyle="", markersize=4, label="largest rounding bound"
                )
            )
        figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)

    return draw(paint, WIDTH, max(2.0, ROW_HEIGHT * len(nodes) + 0.9))
