"""The picture of a placement: every core of every chip, and how full it is."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from hardware.loihi.placement import Placement
from hardware.loihi.tiling import RESOURCES, core_limit
from hardware.reports.pictures import COLOURS, NEUTRAL_COLOUR, draw, safe_label

WIDTH = 10.0
CORES_ACROSS = 128
LABELS = {"neurons": "neurons", "in_axons": "in-axons", "out_axons": "out-axons", "memory_bits": "memory"}
MOST_BARS = 48
"""Populations beyond this many, the smallest, are left out of the bars; the tables have them."""


def placement_figure(placement: Placement) -> Figure:
    """Return maps of what each core uses of its limits, a chip a row, and how many cores each population takes."""
    limited = [name for name in RESOURCES if core_limit(placement.chip, name) is not None]
    rows = sorted(placement.node_rows(), key=lambda row: -row["cores"])[:MOST_BARS]
    shown = [row for row in placement.node_rows() if row in rows]
    per_chip = placement.chip["cores_per_chip"]
    across = min(per_chip, CORES_ACROSS, max(1, len(placement.cores)))
    lines = (
        max(1, placement.chips * -(-per_chip // across)) if placement.chips > 1 else -(-len(placement.cores) // across)
    )
    map_height = min(6.0, 0.85 + 0.12 * max(1, lines))
    bars_height = 0.7 + 0.17 * max(1, len(shown))

    def paint(figure: Figure) -> None:
        halves: Any = figure.subfigures(2, 1, height_ratios=[map_height * len(limited), bars_height])
        top, bottom = halves
        axes = np.atleast_1d(top.subplots(len(limited), 1, sharex=True))
        for panel, name in zip(axes, limited, strict=True):
            image = panel.imshow(
                _core_map(placement, name, across),
                aspect="auto",
                cmap="viridis",
                vmin=0,
                vmax=100,
                interpolation="nearest",
            )
            limit = core_limit(placement.chip, name)
            panel.set_title(f"{LABELS[name]} of a core, % of {limit:,}", loc="left")
            panel.set_ylabel("chip" if placement.chips > 1 else "")
            panel.tick_params(length=0)
            height = -(-per_chip // across)
            labelled = range(0, placement.chips, -(-placement.chips // 8)) if placement.chips > 1 else ()
            panel.set_yticks([chip * height + (height - 1) / 2 for chip in labelled], [str(chip) for chip in labelled])
            panel.spines[:].set_visible(False)
        axes[-1].set_xlabel(
            "core" if len(placement.cores) <= across or per_chip <= across else f"core, {across} in a row"
        )
        axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        top.colorbar(image, ax=axes, pad=0.01, aspect=40)
        _paint_bars(bottom, shown)

    return draw(paint, WIDTH, map_height * len(limited) + bars_height)


def _core_map(placement: Placement, resource: str, across: int) -> np.ndarray:
    """Return ``(rows, across)`` percentages, NaN where there is no core in use."""
    per_chip = placement.chip["cores_per_chip"]
    height = -(-per_chip // across)
    limit = core_limit(placement.chip, resource)
    assert limit is not None
    found = np.full((max(1, placement.chips), height * across), np.nan)
    for core in placement.cores:
        found[core.chip, core.index % per_chip] = 100 * getattr(core.resources, resource) / limit
    found = found.reshape(-1, across)
    return found if placement.chips > 1 else found[: max(1, -(-len(placement.cores) // across))]


def _paint_bars(figure: SubFigure, rows: list[dict[str, Any]]) -> None:
    kinds = ("neurons", "integrators", "readout", "relay", "microcode")
    colours = dict(zip(kinds, (COLOURS[0], COLOURS[2], COLOURS[4], COLOURS[5], COLOURS[1]), strict=True))
    axes = figure.subplots()
    places = range(len(rows))
    axes.barh(
        places,
        [row["cores"] for row in rows],
        color=[colours.get(str(row["kind"]), NEUTRAL_COLOUR) for row in rows],
        height=0.7,
    )
    axes.set_yticks(places, [safe_label(str(row["node"])) for row in rows])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("cores")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    present = [kind for kind in kinds if any(row["kind"] == kind for row in rows)]
    handles = [Patch(color=colours[kind], label=kind) for kind in present]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(kinds), frameon=False)
