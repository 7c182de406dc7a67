"""The picture of ``energy.py``: where the energy goes, break-even firing rates, and how sensitive the ratio is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from energy_counts import Measurement, Variation
from matplotlib.figure import Figure

from hardware.energy import EnergyModel, energy_model, energy_models, estimate_energy
from hardware.energy.comparison import dense_pricing, energy_by_component, firing_rate, scale_firing
from hardware.energy.models.memory import MemoryModel
from hardware.errors import TraceMismatchError
from hardware.reports.energy_figures import (
    Bar,
    BreakEvenPanel,
    Curve,
    SensitivityPanel,
    break_even_panel,
    paint_break_even,
    paint_components,
    paint_sensitivity,
)
from hardware.reports.pictures import draw, safe_label

DRAWN_MODELS = ("horowitz-fp32", "memory-int8")
BREAK_EVEN_MODELS = ("horowitz-fp32", "horowitz-int8-int32", "memory-int8")
RATES_DRAWN = np.geomspace(0.01, 0.6, 13)
SIDES = {"bert": (1, "BERT-base"), "twin": (2, "the quantized twin")}
"""The two that curves are drawn against: key -> colour and title."""
RATE_TICKS = (1.0, 3.0, 10.0, 30.0, 60.0)


def results_picture(
    checkpoint: Measurement, base: Measurement | None, sensitivity: Sequence[SensitivityPanel]
) -> Figure:
    """Return one picture: components, break-even, sensitivity."""

    def paint(figure: Figure) -> None:
        rows = figure.subfigures(3, 1, height_ratios=(1.15 if base else 0.75, 1, 1.15), hspace=0.03)
        subject = f"{checkpoint.title} on {checkpoint.data}"
        titles = (
            "Where the energy goes (estimates)",
            f"Break-even firing rate: {subject} (estimates)",
            f"Sensitivity of the ratio: {subject}; below 1 the spiking network wins (estimates)",
        )
        for row, title in zip(rows, titles, strict=True):
            row.suptitle(safe_label(title, 120), x=0.01, ha="left", fontweight="bold")
        paint_components(rows[0], component_panels([checkpoint, base] if base else [checkpoint]))
        paint_break_even(rows[1], break_even_panels(checkpoint))
        paint_sensitivity(rows[2], sensitivity)

    return draw(paint, 11, 11.5 if base else 10)


def component_panels(measured: Sequence[Measurement]) -> list[tuple[str, list[Bar]]]:
    """Return bars of each measurement and its baselines, a panel an energy model."""
    panels = []
    for measurement in measured:
        for model in map(energy_model, DRAWN_MODELS):
            estimate = estimate_energy(measurement.counts, model=model)
            name = "SpikeBERT-base, random" if measurement.is_paper_size else "SpikeBERT, our checkpoint"
            bars = [Bar(name, energy_by_component(estimate, measurement.counts))]
            for baseline in reversed(measurement.baselines):
                counts = baseline.count(measurement.lengths)
                pricing, _ = dense_pricing(model, baseline, measurement.lengths)
                assert pricing is not None
                parts = energy_by_component(estimate_energy(counts, model=pricing), counts)
                bars.append(Bar(baseline.title, parts))
            title = f"{measurement.data}, {measurement.mean_tokens:.0f} tokens; {model_title(model)}"
            panels.append((title, bars))
    return panels


def break_even_panels(measurement: Measurement) -> list[BreakEvenPanel]:
    """Return energy against firing rate, a panel an energy model."""
    panels = []
    for model in map(energy_model, BREAK_EVEN_MODELS):
        lines = [
            (c.baseline, c.baseline_estimate.energy_mj)
            for c in measurement.comparisons
            if c.network.model == model.name and c.baseline_estimate is not None
        ]
        panels.append(break_even_panel(model_title(model), measurement.counts, model, lines))
    return panels


def sensitivity_panels(measurement: Measurement, variations: Sequence[Variation]) -> list[SensitivityPanel]:
    """Return the energy ratio against firing rate, time steps, sentence length and energy model."""
    measured = firing_rate(measurement.counts)
    if not measured:
        raise TraceMismatchError(f"{measurement.title}: nothing fires on {measurement.data}; there is nothing to scale")
    scaled = [
        Variation("firing rate", 100 * rate, scale_firing(measurement.counts, rate / measured), measurement.lengths)
        for rate in RATES_DRAWN
    ]
    steps = [variation for variation in variations if variation.kind == "time steps"]
    tokens = [variation for variation in variations if variation.kind == "tokens"]
    models = {name: model for name, model in energy_models().items() if _ratio(measurement, "twin", model) is not None}
    reused = max(measurement.lengths)
    for name in [name for name, model in models.items() if isinstance(model, MemoryModel)]:
        models[f"{name}, weights kept"] = replace(models[name], weight_reuse=reused)
    precision = tuple(
        Curve(f"against {label}", range(len(models)), [_ratio(measurement, side, m) for m in models.values()], colour)
        for side, (colour, label) in SIDES.items()
    )
    time_steps, length = measurement.counts.time_steps, measurement.mean_tokens
    return [
        SensitivityPanel(
            "firing rate, scaled",
            "% of neurons",
            _curves(measurement, scaled),
            100 * measured,
            logarithmic=True,
            x_ticks=RATE_TICKS,
        ),
        SensitivityPanel("time steps, run", "T", _curves(measurement, steps), time_steps, logarithmic=True),
        SensitivityPanel("sentence length, run", "tokens", _curves(measurement, tokens), length, logarithmic=True),
        SensitivityPanel("precision and memory", "", precision, ticks=tuple(models)),
    ]


def model_title(model: EnergyModel) -> str:
    """Return a model's name with its precision and whether memory is in it."""
    return f"{model.name}: {model.precision}, memory {'in' if model.includes_memory else 'out'}"


def _curves(measurement: Measurement, variations: Sequence[Variation]) -> tuple[Curve, ...]:
    curves = []
    for dashed, model in enumerate(map(energy_model, DRAWN_MODELS)):
        for side, (colour, label) in SIDES.items():
            changed = [replace(measurement, counts=v.counts, lengths=v.lengths) for v in variations]
            ratios = [_ratio(each, side, model) for each in changed]
            title = f"against {label}, {model_title(model)}"
            curves.append(Curve(title, [v.value for v in variations], ratios, colour, bool(dashed)))
    return tuple(curves)


def _ratio(measurement: Measurement, side: str, model: EnergyModel) -> float | None:
    baseline = measurement.twin if side == "twin" else measurement.baselines[0]
    pricing, _ = dense_pricing(model, baseline, measurement.lengths)
    if pricing is None:
        return None
    other = estimate_energy(baseline.count(measurement.lengths), model=pricing)
    return estimate_energy(measurement.counts, model=model).energy_mj / other.energy_mj
