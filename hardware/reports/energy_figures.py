"""Pictures of energy: by component, against the firing rate, and how sensitive a ratio is.

Each picture is data (panels of bars or curves) and a function that paints them into a matplotlib figure or a part of
one; ``spikebert energy --html`` and ``benchmarks/energy.py`` choose what to show.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from hardware.energy.comparison import COMPONENTS, break_even_rate, firing_rate, scale_firing
from hardware.energy.counts import OperationCounts
from hardware.energy.estimate import estimate_energy
from hardware.energy.models import EnergyModel
from hardware.reports.energy_report import number
from hardware.reports.pictures import COLOURS, NEUTRAL_COLOUR, safe_label

CURVE_POINTS = 41
HIGHEST_RATE_DRAWN = 0.6
FIRST_POINT_IN_VIEW = 1
"""Where nothing fires a model may charge next to nothing, which a logarithmic axis would show as a cliff."""


@dataclass(frozen=True)
class Bar:
    """A network's energy taken apart.

    Attributes
    ----------
    label : str
    parts : mapping of str to float
        mJ by key of `COMPONENTS`.
    """

    label: str
    parts: Mapping[str, float]

    @property
    def total(self) -> float:
        """All of it, in mJ."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class BreakEvenPanel:
    """How the energy of a spiking network grows with its firing rate, and where it meets its baselines.

    Attributes
    ----------
    title : str
    rates, energies : ndarray
        Spikes per neuron, token and step; mJ.
    measured_rate, measured_mj : float
    baselines : tuple of (str, float, float or None)
        Label, mJ, and break-even rate as `break_even_rate` gives it.
    """

    title: str
    rates: np.ndarray
    energies: np.ndarray
    measured_rate: float
    measured_mj: float
    baselines: tuple[tuple[str, float, float | None], ...]


@dataclass(frozen=True)
class Curve:
    """One line of a sensitivity panel.

    Attributes
    ----------
    label : str
    x, y : sequence of float
    colour : int
        Index into `COLOURS`.
    dashed : bool
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    dashed: bool = False


@dataclass(frozen=True)
class SensitivityPanel:
    """An energy ratio against one thing that decides it.

    Attributes
    ----------
    title, x_label : str
    curves : tuple of Curve
    measured : float or None
        Where the network stands; a vertical line.
    ticks : tuple of str
        Names of x = 0, 1, 2, … where these are no numbers; points are not joined then.
    logarithmic : bool
        Whether x is.
    x_ticks : tuple of float
        Where to put marks on a logarithmic x; at every point of the curves by default.
    """

    title: str
    x_label: str
    curves: tuple[Curve, ...]
    measured: float | None = None
    ticks: tuple[str, ...] = ()
    logarithmic: bool = False
    x_ticks: tuple[float, ...] = ()


def break_even_panel(
    title: str, counts: OperationCounts, model: EnergyModel, baselines: Sequence[tuple[str, float]]
) -> BreakEvenPanel:
    """Return the panel for one energy model and baselines of so many mJ."""
    measured = firing_rate(counts)
    rates = np.linspace(0, max(HIGHEST_RATE_DRAWN, 1.2 * measured), CURVE_POINTS)
    energies = [estimate_energy(scale_firing(counts, rate / measured), model=model).energy_mj for rate in rates]
    return BreakEvenPanel(
        title,
        rates,
        np.array(energies),
        measured,
        estimate_energy(counts, model=model).energy_mj,
        tuple((label, millijoules, break_even_rate(counts, millijoules, model)) for label, millijoules in baselines),
    )


def paint_components(figure: FigureBase, panels: Sequence[tuple[str, Sequence[Bar]]], columns: int = 2) -> None:
    """Paint each network's energy as a bar of shares by component, its total as a number beside it."""
    rows = math.ceil(len(panels) / columns)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, (title, bars) in zip(axes.flat, panels, strict=False):
        for index, bar in enumerate(bars):
            left = 0.0
            for colour, part in zip(COLOURS, COMPONENTS, strict=False):
                share = 100 * bar.parts[part] / bar.total
                axis.barh(index, share, left=left, color=colour, height=0.62, linewidth=0)
                left += share
            axis.text(101.5, index, f"{number(bar.total)} mJ", va="center", fontsize=7)
        axis.set_yticks(range(len(bars)), [safe_label(bar.label, 60) for bar in bars])
        axis.invert_yaxis()
        axis.set_xlim(0, 122)
        axis.set_xticks(range(0, 101, 20))
        axis.set_xlabel("share of the estimated energy of a sentence (%)")
        axis.set_title(_wrapped(title, 54), loc="left")
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    handles = [Patch(color=colour, label=name) for colour, name in zip(COLOURS, COMPONENTS.values(), strict=False)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)


def paint_break_even(figure: FigureBase, panels: Sequence[BreakEvenPanel], columns: int = 3) -> None:
    """Paint energy against firing rate, with a mark where it meets each baseline."""
    rows = math.ceil(len(panels) / columns)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, panel in zip(axes.flat, panels, strict=False):
        percent = 100 * panel.rates
        axis.plot(percent, panel.energies, color=COLOURS[0], label="this spiking network")
        axis.plot(100 * panel.measured_rate, panel.measured_mj, "o", color=COLOURS[0], markersize=4, zorder=4)
        axis.annotate(
            f"measured\n{100 * panel.measured_rate:.1f} %",
            (100 * panel.measured_rate, panel.measured_mj),
            xytext=(-2, 4),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=7,
            color=COLOURS[0],
            bbox={"facecolor": "white", "alpha": 0.85, "linewidth": 0, "pad": 0.5},
        )
        for colour, (label, millijoules, rate) in zip(COLOURS[1:], panel.baselines, strict=False):
            axis.axhline(millijoules, color=colour, linestyle="--", linewidth=1)
            is_crossed = rate is not None and rate <= panel.rates[-1]
            axis.annotate(
                f"{safe_label(label, 60)}: {_meeting(rate)}",
                (percent[-1], millijoules),
                xytext=(0, -2 if is_crossed else 2),
                textcoords="offset points",
                ha="right",
                va="top" if is_crossed else "bottom",
                fontsize=6.5,
                color=colour,
            )
            if rate is not None and is_crossed:
                axis.plot(100 * rate, millijoules, "D", color=colour, markersize=4, zorder=5)
        axis.set_yscale("log")
        heights = [
            panel.energies[FIRST_POINT_IN_VIEW],
            panel.energies[-1],
            *(millijoules for _, millijoules, _ in panel.baselines),
        ]
        axis.set_ylim(0.5 * min(heights), 2.5 * max(heights))
        axis.set_xlim(0, percent[-1])
        axis.set_xlabel("firing rate (% of neurons, tokens and steps)")
        axis.set_title(_wrapped(panel.title, 42), loc="left")
        _plain_logarithm(axis)
    for axis in axes[:, 0]:
        axis.set_ylabel("estimated energy (mJ a sentence)")
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)


def paint_sensitivity(figure: FigureBase, panels: Sequence[SensitivityPanel], columns: int = 4) -> None:
    """Paint energy ratios, equal energy as a line at 1; below it the spiking network wins."""
    rows = math.ceil(len(panels) / columns)
    axes = figure.subplots(rows, min(columns, len(panels)), squeeze=False, sharey=True)
    for axis, panel in zip(axes.flat, panels, strict=False):
        for curve in panel.curves:
            axis.plot(
                curve.x,
                curve.y,
                color=COLOURS[curve.colour],
                linestyle="none" if panel.ticks else "--" if curve.dashed else "-",
                marker="o",
                markersize=4 if panel.ticks else 2,
                markerfacecolor="white" if curve.dashed else None,
                linewidth=1,
                label=curve.label,
            )
        axis.axhline(1, color="black", linewidth=0.8)
        if panel.measured is not None:
            axis.axvline(panel.measured, color=NEUTRAL_COLOUR, linewidth=0.8, linestyle=":")
        axis.set_yscale("log")
        if panel.logarithmic:
            axis.set_xscale("log")
            axis.set_xticks(panel.x_ticks or sorted({x for curve in panel.curves for x in curve.x}))
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.xaxis.set_minor_locator(NullLocator())
        if panel.ticks:
            axis.set_xticks(range(len(panel.ticks)), panel.ticks, rotation=40, ha="right")
        axis.set_xlabel(panel.x_label)
        axis.set_title(_wrapped(panel.title, 42), loc="left")
        _plain_logarithm(axis)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    axes.flat[0].set_ylabel("energy of the spiking network\nover that of the other (estimates)")
    entries: dict[str, Artist] = {}
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=3, frameon=False)


def _meeting(rate: float | None) -> str:
    if rate is None:
        return "loses at any rate"
    return f"meets at {100 * rate:.1f} %" if math.isfinite(rate) else "wins at any rate"


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(safe_label(text, 3 * width), width))


def _plain_logarithm(axis: Axes) -> None:
    axis.yaxis.set_major_locator(LogLocator(numticks=12))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.grid(axis="y", linewidth=0.3, color="#DDDDDD")
    axis.set_axisbelow(True)
