"""The pictures of a profile: rates by layer, step, position and head, a raster of one sentence, spread of values.

Each `draw_*` paints one picture on a figure or on part of one; `figure_of` and `overview` make whole figures. Node
names that carry a block (``block03_qkv_neuron``) are grouped by what they are within it; others stand by themselves.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullFormatter

from hardware.choices import FIGURES
from hardware.profiler import Profile
from hardware.reports.files import ReportError
from hardware.reports.pictures import (
    COLOURS,
    NEUTRAL_COLOUR,
    can_be_drawn,
    draw,
    safe_label,
    split_node_name,
)
from hardware.trace import Trace

AnyFigure = Figure | SubFigure

WIDTH = 10.0  # inches; halved on a page, type is still 4 points
RASTER_NODES = 3
RASTER_ROWS = 384  # rows a raster panel has pixels for; more neurons share rows
MOST_NUMBERED_CELLS = 300
MOST_NUMBERED_COLUMNS = 26
MOST_COLUMN_LABELS = 8
MOST_KINDS = 12
MOST_NUMBERED_BARS = 24
MOST_NAMED_BLOCKS = 8
MOST_RASTER_STEPS = 6
MOST_TOKEN_LABELS = 112  # over all columns of a raster


@dataclass(frozen=True)
class ReportSubject:
    """What a report is about, for its titles.

    Attributes
    ----------
    model, data : str
        In words: ``"default (2 blocks, D = 384, T = 4)"``, ``"sst2 dev, 200 sentences"``.
    record : dict
        How it was made (seed, versions, command, checkpoint hash); see `spikebert.provenance.run_record`.
    """

    model: str
    data: str
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def caption(self) -> str:
        """Model and data in one line."""
        return f"{self.model} on {self.data}"


@dataclass(frozen=True)
class Sentence:
    """One sentence of a trace, for the raster.

    Attributes
    ----------
    trace : Trace
    index : int
        Which sentence of the batch.
    tokens : sequence of str, optional
        What to write below each of its real tokens; numbers by default.
    nodes : sequence of str, optional
        Which nodes to show; by default three, evenly spaced from first to last.
    """

    trace: Trace
    index: int = 0
    tokens: Sequence[str] | None = None
    nodes: Sequence[str] | None = None

    def __post_init__(self) -> None:
        """Check that trace, sentence, tokens and nodes go together."""
        if not 0 <= self.index < self.trace.mask.shape[0]:
            raise ReportError(f"sentence {self.index} is not one of the {self.trace.mask.shape[0]} in the trace")
        real = int(self.trace.mask[self.index].sum())
        if real == 0:
            raise ReportError(f"sentence {self.index} has no real token; there is nothing to draw")
        if self.tokens is not None and len(self.tokens) != real:
            raise ReportError(f"{len(self.tokens)} labels for the {real} real tokens of sentence {self.index}")
        for node in self.nodes or ():
            if node not in self.trace.spikes or self.trace.spikes[node].shape[2] != self.trace.mask.shape[1]:
                raise ReportError(f"{node}: the trace has no spikes of each token there; choose another node")

    @property
    def shown_nodes(self) -> list[str]:
        """The nodes a raster shows."""
        if self.nodes is not None:
            return list(self.nodes)
        tokens = self.trace.mask.shape[1]
        names = [name for name, spikes in self.trace.spikes.items() if spikes.shape[2] == tokens]
        chosen = np.linspace(0, len(names) - 1, min(RASTER_NODES, len(names))).round().astype(int)
        return [names[index] for index in chosen]

    @property
    def token_labels(self) -> list[str]:
        """A label for each real token: its text where the font can draw it, else its number."""
        tokens = self.tokens or [str(number) for number in range(int(self.trace.mask[self.index].sum()))]
        return [safe_label(token, 14) if can_be_drawn(token) else f"#{number}" for number, token in enumerate(tokens)]


def drawable_figures(profile: Profile, sentence: Sentence | None = None) -> list[str]:
    """Return the `FIGURES` for which there is something to draw."""
    absent = set() if sentence is not None else {"raster"}
    if not _head_panels(profile):
        absent.add("heads")
    return [name for name in FIGURES if name not in absent]


def figure_of(name: str, profile: Profile, subject: ReportSubject, sentence: Sentence | None = None) -> Figure:
    """Return one of `FIGURES` as a figure of its own, titled with model and data.

    Raises
    ------
    ReportError
        There is no such figure, or a raster is asked for without a sentence.
    """
    painted = _panel(name, profile, sentence)

    def paint(figure: Figure) -> None:
        figure.suptitle(f"{painted.title}\n{safe_label(subject.caption, 160)}")
        painted.paint(figure)

    return draw(paint, WIDTH, painted.height + 0.5)


def overview(
    profile: Profile,
    subject: ReportSubject,
    sentence: Sentence | None = None,
    figures: Sequence[str] | None = None,
) -> Figure:
    """Return several figures below one another; by default all that can be drawn.

    Raises
    ------
    ReportError
        As in `figure_of`.
    """
    names = figures or drawable_figures(profile, sentence)
    if len(names) == 1:
        return figure_of(names[0], profile, subject, sentence)
    panels = [_panel(name, profile, sentence) for name in names]
    heights = [panel.height + 0.4 for panel in panels]

    def paint(figure: Figure) -> None:
        figure.suptitle(safe_label(subject.caption, 160))
        parts: Any = figure.subfigures(len(panels), 1, height_ratios=heights)
        for letter, part, panel in zip("abcdef", parts, panels, strict=False):
            part.suptitle(f"({letter})  {panel.title}", x=0.01, ha="left")
            panel.paint(part)

    return draw(paint, WIDTH, sum(heights) + 0.4)


@dataclass(frozen=True)
class _Panel:
    title: str
    height: float
    painter: Any
    arguments: tuple[Any, ...]

    def paint(self, figure: AnyFigure) -> None:
        self.painter(figure, *self.arguments)


@dataclass(frozen=True)
class _GridPanel:
    """One heat map: a title, and a label and values in percent for each row."""

    title: str
    rows: list[tuple[str, np.ndarray]]


def _panel(name: str, profile: Profile, sentence: Sentence | None) -> _Panel:
    if name == "rates":
        return _Panel("Firing rate by layer", 3.0, draw_rates, (profile,))
    if name == "steps":
        return _Panel("Firing rate by layer and time step", _grid_height(_step_panels(profile)), draw_steps, (profile,))
    if name == "positions":
        return _Panel("Firing rate by token position", 2.6, draw_positions, (profile,))
    if name == "heads":
        panels = _head_panels(profile)
        if not panels:
            raise ReportError("the profile has no attention heads; collect 'heads' and give the profiler the graph")
        return _Panel("Firing rate by attention head", _grid_height(panels), draw_heads, (profile,))
    if name == "raster":
        if sentence is None:
            raise ReportError("a raster shows one sentence; give it a trace: sentence=Sentence(trace)")
        tokens = len(sentence.token_labels)
        title = f"Spikes of one sentence of {tokens} token{'s' if tokens != 1 else ''}"
        return _Panel(title, 2.0 * len(sentence.shown_nodes) + 0.6, draw_raster, (sentence,))
    if name == "histogram":
        streams = len(_value_rows(profile))
        shown = "the residual stream" if profile.streams else "graded spikes"
        title = "Firing rates of single neurons" + (f" and values of {shown}" if streams else "")
        return _Panel(title, max(3.0, 0.19 * streams + 1.0), draw_histogram, (profile,))
    raise ReportError(f"figure {name!r} is not known; choose from {', '.join(FIGURES)}")


def draw_rates(figure: AnyFigure, profile: Profile) -> None:
    """Paint one bar a node, grouped by block and coloured by what the node is."""
    axes = figure.subplots()
    groups = _groups(profile)
    colours = _kind_colours(profile)
    lone = sum(block is None for block, _ in groups)
    numbers_only = len(groups) - lone > MOST_NAMED_BLOCKS
    numbered_bars = len(profile.nodes) <= MOST_NUMBERED_BARS
    ticks, labels, place = [], [], 0.0
    for block, members in groups:
        start = place
        for role, node in members:
            rate = 100 * profile.nodes[node].firing_rate
            axes.bar(place, rate, width=0.9, color=colours.get(role, COLOURS[0]))
            if numbered_bars and not np.isnan(rate):
                above = (place, rate)
                axes.annotate(f"{rate:.1f}", above, (0, 1), textcoords="offset points", ha="center", size=6)
            place += 1
        ticks.append((start + place - 1) / 2)
        if block is None:
            labels.append("" if numbers_only else safe_label(members[0][0], 24))  # the legend names it
        else:
            labels.append(str(block) if numbers_only else f"block {block}")
        place += 0.8
    axes.set_xticks(ticks, labels, rotation=90 if lone > MOST_NAMED_BLOCKS else 0)
    if numbers_only:
        axes.set_xlabel("block")
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-1, place - 0.8)
    axes.set_ylim(0, max(axes.get_ylim()[1], 1))
    axes.set_ylabel("firing rate\n(% of neurons per token and step)")
    mean_rate = 100 * profile.firing_rate
    mean = axes.axhline(
        mean_rate, color="black", linewidth=0.7, linestyle=":", zorder=0, label=f"all neurons: {mean_rate:.1f} %"
    )
    patches = [Patch(color=colour, label=safe_label(kind)) for kind, colour in colours.items()]
    handles = [*(patches if lone < len(groups) else []), mean]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 8), frameon=False)


def draw_steps(figure: AnyFigure, profile: Profile) -> None:
    """Paint rates as a heat map, one panel for each kind of node: blocks downwards, time steps across."""
    _draw_grid(figure, _step_panels(profile), "time step")


def draw_heads(figure: AnyFigure, profile: Profile) -> None:
    """Paint rates as a heat map, one panel for each part of attention: blocks downwards, heads across."""
    _draw_grid(figure, _head_panels(profile), "attention head")


def _draw_grid(figure: AnyFigure, panels: list[_GridPanel], across: str) -> None:
    """Paint heat maps side by side on one colour scale; shorter ones end earlier, equal row labels stand once."""
    columns = max(len(values) for panel in panels for _, values in panel.rows)
    rows = max(len(panel.rows) for panel in panels)
    known = [value for panel in panels for _, values in panel.rows for value in values if not np.isnan(value)]
    norm = Normalize(0, max(known, default=0.0) or 1.0)
    numbered = len(known) <= MOST_NUMBERED_CELLS and columns * len(panels) <= MOST_NUMBERED_COLUMNS
    row_labels: list[str] = []
    image = None
    every = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, panel in zip(every, panels, strict=True):
        filled = np.full((rows, columns), np.nan)
        for row, (_, values) in enumerate(panel.rows):
            filled[row, : len(values)] = values
        image = axes.imshow(filled, aspect="auto", cmap="viridis", norm=norm, interpolation="nearest")
        axes.set_title(safe_label(panel.title, 22))
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        labels = [label for label, _ in panel.rows]
        shown = labels if labels not in (row_labels, [panel.title]) else []
        axes.set_yticks(range(len(shown)), [safe_label(label, 30) for label in shown])
        row_labels = labels
        axes.set_xticks([])
        for column in range(0, columns, -(-columns // MOST_COLUMN_LABELS)):  # below the panel's own last row
            below = (column, len(labels) - 0.5)
            axes.annotate(str(column), below, (0, -3), textcoords="offset points", ha="center", va="top", size=7)
        if numbered:
            for (row, column), value in np.ndenumerate(filled[: len(labels)]):
                if not np.isnan(value):
                    colour = "white" if norm(value) < 0.6 else "black"
                    axes.text(column, row, f"{value:.1f}", ha="center", va="center", size=6, color=colour)
    figure.supxlabel(across, size=8)
    assert image is not None
    figure.colorbar(image, ax=list(every), label="firing rate (%)", pad=0.01, aspect=25)


def draw_positions(figure: AnyFigure, profile: Profile) -> None:
    """Paint the rate at each token position, a line for each kind of node, above the number of tokens there."""
    axes = figure.subplots()
    positions = np.arange(len(profile.tokens_by_position))
    colours = _kind_colours(profile)
    for kind, members in _kinds(profile).items():
        every = [profile.nodes[node].firing_rate_by_position for node in members]
        along_tokens = [rates for rates in every if len(rates) == len(positions)]  # not those behind a token mean
        if not along_tokens:
            continue
        rates = 100 * np.mean(along_tokens, axis=0)
        axes.plot(positions, rates, color=colours[kind], linewidth=1, marker=".", markersize=3, label=safe_label(kind))
    axes.set_xlabel("token position")
    axes.set_ylabel("firing rate (%)")
    axes.set_ylim(0, max(axes.get_ylim()[1], 1))
    axes.set_xlim(-0.5, len(positions) - 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    tokens = axes.twinx()
    tokens.bar(positions, profile.tokens_by_position, width=1, color="#E8E8E8")
    tokens.set_ylabel("tokens (grey)")
    tokens.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    tokens.spines["right"].set_visible(True)
    axes.set_zorder(tokens.get_zorder() + 1)
    axes.patch.set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=7, frameon=False)


def draw_raster(figure: AnyFigure, sentence: Sentence) -> None:
    """Paint the spikes of one sentence: a row of panels for each node, a column for each of up to six time steps."""
    trace, nodes, labels = sentence.trace, sentence.shown_nodes, sentence.token_labels
    real = np.flatnonzero(trace.mask[sentence.index])
    steps = trace.spikes[nodes[0]].shape[0]
    shown_steps = np.unique(np.linspace(0, steps - 1, min(steps, MOST_RASTER_STEPS)).round().astype(int))
    every = figure.subplots(len(nodes), len(shown_steps), squeeze=False, sharex=True, sharey="row")
    for row, node in zip(every, nodes, strict=True):
        spikes = trace.spikes[node][:, sentence.index, real] != 0  # (T, N, D)
        neurons = spikes.shape[-1]
        together = -(-neurons // RASTER_ROWS)
        for step, axes in zip(shown_steps, row, strict=True):
            axes.imshow(
                _share_rows(spikes[step].T, together),
                aspect="auto",
                cmap="Greys",
                norm=Normalize(0, 1),
                interpolation="nearest",
                extent=(-0.5, len(real) - 0.5, neurons - 0.5, -0.5),
            )
            axes.spines[:].set_visible(True)
            axes.yaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
            axes.set_title(f"{100 * spikes[step].mean():.1f} % fire", size=7)
        shared = f", grey: mean of {together}" if together > 1 else ""
        row[0].set_ylabel(f"{safe_label(node, 32)}\nneuron{shared}", size=7)
    named = len(labels) * len(shown_steps) <= MOST_TOKEN_LABELS
    for step, axes in zip(shown_steps, every[-1], strict=True):
        if named:
            axes.set_xticks(range(len(labels)), labels, rotation=90, size=6)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        axes.set_xlabel(f"token, step {step}" if named else f"token position, step {step}")


def draw_histogram(figure: AnyFigure, profile: Profile) -> None:
    """Paint how firing rates spread over neurons and, where collected, which values the residual stream takes."""
    values = _value_rows(profile)
    every = figure.subplots(1, 2 if values else 1, squeeze=False)[0]
    _draw_neuron_rates(every[0], profile)
    if values:
        _draw_stream_values(figure, every[1], values)


def _draw_neuron_rates(axes: Axes, profile: Profile) -> None:
    edges = np.linspace(0, 100, 51)
    colours = _kind_colours(profile)
    for kind, members in _kinds(profile).items():
        rates = 100 * np.concatenate([profile.nodes[node].firing_rate_by_neuron for node in members])
        shares = 100 * np.histogram(rates, edges)[0] / len(rates)
        shown = np.where(shares > 0, shares, np.nan)
        axes.stairs(shown, edges, color=colours[kind], linewidth=1, label=safe_label(kind))
    axes.set_yscale("log")
    axes.set_xlim(0, 100)
    axes.set_xlabel("firing rate of a neuron (%)")
    axes.set_ylabel("share of neurons (%), bins of 2 %")
    silent = sum(len(found.silent_neurons) for found in profile.nodes.values())
    saturated = sum(len(found.saturated_neurons) for found in profile.nodes.values())
    neurons = sum(found.neurons for found in profile.nodes.values())
    axes.set_title(f"{neurons:,} neurons: {silent:,} never fired, {saturated:,} always fired", loc="left")
    axes.set_ylim(None, 10 * axes.get_ylim()[1])  # room for the legend
    axes.yaxis.set_major_formatter(_plain)
    axes.legend(frameon=False, ncols=3, loc="upper center")


def _plain(value: float, position: float | None) -> str:
    return f"{value:g}" if value <= 100 else ""  # a share ends at 100 %


def _draw_stream_values(figure: AnyFigure, axes: Axes, rows: list[tuple[str, np.ndarray, float]]) -> None:
    width = max(int(np.flatnonzero(shares)[-1]) if shares.any() else 0 for _, shares, _ in rows) + 1
    table = np.full((len(rows), width), np.nan)
    for row, (_, shares, _) in enumerate(rows):
        kept = shares[:width]
        table[row, : len(kept)] = np.where(kept > 0, 100 * kept, np.nan)
    norm = LogNorm(max(float(np.nanmin(table)), 1e-4), 100)
    image = axes.imshow(table, aspect="auto", cmap="viridis", norm=norm, interpolation="nearest")
    means = [mean for _, _, mean in rows]
    axes.plot(means, range(len(rows)), ".", color="white", markeredgecolor="black", markersize=6, label="mean value")
    axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("value")
    axes.spines[:].set_visible(False)
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)
    bar = figure.colorbar(image, ax=axes, label="share of values (%)", pad=0.01, format=_plain)
    bar.ax.yaxis.set_minor_formatter(NullFormatter())


def _groups(profile: Profile) -> list[tuple[int | None, list[tuple[str, str]]]]:
    """Return ``(block, [(role, node)])`` in topological order; nodes without a block stand alone."""
    groups: list[tuple[int | None, list[tuple[str, str]]]] = []
    for node in profile.nodes:
        block, role = split_node_name(node)
        if block is None or not groups or groups[-1][0] != block:
            groups.append((block, []))
        groups[-1][1].append((role, node))
    return groups


def _kinds(profile: Profile) -> dict[str, list[str]]:
    """Return the nodes of each kind: what they are within their block, or themselves; one kind if there were many."""
    kinds: dict[str, list[str]] = {}
    for node in profile.nodes:
        kinds.setdefault(split_node_name(node)[1], []).append(node)
    return kinds if len(kinds) <= MOST_KINDS else {"all nodes": list(profile.nodes)}


def _kind_colours(profile: Profile) -> dict[str, str]:
    """Return a colour for each kind; nodes without a block are grey where there are blocks."""
    has_blocks = any(split_node_name(node)[0] is not None for node in profile.nodes)
    colours: dict[str, str] = {}
    palette = itertools.cycle(COLOURS)
    for kind, members in _kinds(profile).items():
        lone = has_blocks and all(split_node_name(node)[0] is None for node in members)
        colours[kind] = NEUTRAL_COLOUR if lone else next(palette)
    return colours


def _step_panels(profile: Profile) -> list[_GridPanel]:
    """Return a panel for each kind of node; a graph without blocks is one panel."""
    rates = {node: 100 * found.firing_rate_by_step for node, found in profile.nodes.items()}
    names = {node: split_node_name(node) for node in profile.nodes}
    if all(block is None for block, _ in names.values()):
        return [_GridPanel("", [(role, rates[node]) for node, (_, role) in names.items()])]
    panels: dict[tuple[bool, str], _GridPanel] = {}
    for node, (block, role) in names.items():
        label = role if block is None else f"block {block}"
        panels.setdefault((block is None, role), _GridPanel(role, [])).rows.append((label, rates[node]))
    return list(panels.values())


def _head_panels(profile: Profile) -> list[_GridPanel]:
    """Return a panel for each part of attention; none where heads were not collected."""
    panels: dict[str, _GridPanel] = {}
    for node, found in profile.nodes.items():
        block, role = split_node_name(node)
        for part, rates in found.firing_rate_by_head.items():
            label = role if block is None else f"block {block}"
            panels.setdefault(part, _GridPanel(part, [])).rows.append((label, 100 * rates))
    return list(panels.values())


def _grid_height(panels: list[_GridPanel]) -> float:
    return 0.9 + 0.24 * max(3, *(len(panel.rows) for panel in panels))


def _share_rows(fired: np.ndarray, together: int) -> np.ndarray:
    """Return ``(D, N)`` as the mean of every `together` rows; the last row may have fewer."""
    starts = np.arange(0, len(fired), together)
    sums = np.add.reduceat(fired.astype(np.float64), starts, axis=0)
    return sums / np.diff(np.append(starts, len(fired)))[:, None]


def _value_rows(profile: Profile) -> list[tuple[str, np.ndarray, float]]:
    """Return label, share of each value and mean of graded nodes and of residual streams."""
    graded = [found.histogram for found in profile.nodes.values() if found.graded and found.histogram is not None]
    rows = []
    for histogram in [*graded, *profile.streams.values()]:
        block, role = split_node_name(histogram.node)
        label = role if block is None else f"block {block} {role}"
        if histogram.node in profile.streams:
            label = f"stream behind {label}"
        rows.append((safe_label(label), histogram.shares, histogram.mean_value))
    return rows
