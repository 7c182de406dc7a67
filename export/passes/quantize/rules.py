"""What becomes of each operator in whole numbers: one row of `QUANTIZE` each.

A row is asked once all is chosen that the node reads. It looks at the draft, for the units of what comes and for what
the node's readers ask, and returns the operator in whole numbers and the unit of what it sends.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from export.errors import ChipLimitError, UnsupportedOperatorError
from export.loihi_numbers import (
    ACTIVATION_MAX,
    ACTIVATION_SHIFT,
    BIAS_EXPONENT_MAX,
    BIAS_MANTISSA_MAX,
    DECAY_MAX,
    DECAY_UNITY,
    THRESHOLD_MAX,
)
from export.network import Node
from export.operators import (
    Affine,
    Convolution,
    Delay,
    Flatten,
    Heaviside,
    IntegerAffine,
    IntegerConvolution,
    IntegerCurrentNeuron,
    IntegerIntegrator,
    IntegerLayerNorm,
    IntegerLeakyIntegrateAndFire,
    IntegerSpikeAttention,
    LayerNorm,
    LeakyIntegrateAndFire,
    LeakyIntegrator,
    Operator,
    Pooling,
    PreviousStep,
    ResistiveNeuron,
    Scale,
    SpikeAttention,
    TokenMean,
    TokenSum,
    Total,
)
from export.operators.layer_norm import BIAS_BITS, GAIN_BITS, NORMED_BITS
from export.passes.quantize import readers
from export.passes.quantize.draft import QUANTIZE, Draft, Quantized, Row
from export.passes.quantize.readers import Asks, integrator_gain, resistive_gain
from export.passes.quantize.weight_rows import AffineRows, ConvolutionRows, WeightRows
from export.passes.quantize.weights import quantize_family

NORM_FRACTION_BITS = 14
"""Most fraction bits of a layer norm's output; more would be finer than any threshold needs."""
ATTENTION_FRACTION_BITS = 10
HEAD_LIMIT = 1 << 15
"""Largest output of a layer norm that no neuron reads, so that sums over tokens and the head stay small."""
NORM_MARGIN = 2
"""How far below the largest that its readers take a layer norm's output stays, for its rounding."""

Becomes = TypeVar("Becomes", bound=Callable[[Node, Any, Draft], Quantized])


def row(
    *operators: type[Operator], asks: Asks, weights: type[WeightRows] | None = None
) -> Callable[[Becomes], Becomes]:
    """Register a function as what becomes of these operators; see `Row`."""

    def register(becomes: Becomes) -> Becomes:
        QUANTIZE.set(Row(becomes=becomes, asks=asks, weights=weights), *operators)
        return becomes

    return register


QUANTIZE.refuse(
    "it computes in whole numbers already",
    IntegerAffine,
    IntegerConvolution,
    IntegerCurrentNeuron,
    IntegerIntegrator,
    IntegerLayerNorm,
    IntegerLeakyIntegrateAndFire,
    IntegerSpikeAttention,
    TokenSum,
)


@row(Affine, asks=readers.nothing, weights=AffineRows)
@row(Convolution, asks=readers.nothing, weights=ConvolutionRows)
def weighted(node: Node, operator: Affine | Convolution, draft: Draft) -> Quantized:
    """Choose one scale for all that is added to it, when the first of them is asked for."""
    if node.name not in draft.weighted:
        draft.weighted |= quantize_family(draft.families[node.name], draft)
    return draft.weighted.pop(node.name)


@row(Total, asks=readers.nothing)
def _total(node: Node, operator: Total, draft: Draft) -> Quantized:
    left, right = node.sources
    if not np.array_equal(draft.units[left], draft.units[right]):
        raise UnsupportedOperatorError(
            f"{node.name}: adds {left} to {right}, whose whole numbers stand for different values; only "
            "spikes, and affine maps that are added to each other, can be added in an integer graph"
        )
    return Quantized(operator, draft.units[left])


@row(PreviousStep, asks=readers.nothing)
def _previous_step(node: Node, operator: PreviousStep, draft: Draft) -> Quantized:
    """Spikes, which stand for themselves; `Draft.add` holds the neuron further on to it."""
    return Quantized(operator, np.ones(operator.features))


@row(Flatten, Delay, asks=readers.nothing)
def _as_it_is(node: Node, operator: Flatten | Delay, draft: Draft) -> Quantized:
    return Quantized(operator, draft.units[node.sources[0]])


@row(Scale, asks=readers.nothing)
def _scale(node: Node, scale: Scale, draft: Draft) -> Quantized:
    """Signs and 0 stay; magnitudes go into the unit."""
    magnitude = np.where(scale.scale == 0, 1, np.abs(scale.scale).astype(np.float64))
    return Quantized(Scale(np.sign(scale.scale).astype(np.float64)), draft.units[node.sources[0]] * magnitude)


@row(Pooling, asks=readers.nothing)
def _pooling(node: Node, pooling: Pooling, draft: Draft) -> Quantized:
    """A mean is a sum whose unit is divided by the size of the window."""
    channels = draft.units[node.sources[0]].reshape(pooling.shape[0], -1)
    if np.any(channels != channels[:, :1]):
        raise UnsupportedOperatorError(f"{node.name}: adds up features of different scales")
    unit = channels[:, 0] / (math.prod(pooling.kernel) if pooling.mean else 1)
    return Quantized(replace(pooling, mean=False), np.repeat(unit, pooling.out_features // pooling.shape[0]))


@row(TokenMean, asks=readers.nothing)
def _token_mean(node: Node, mean: TokenMean, draft: Draft) -> Quantized:
    """A sum over tokens, which whoever reads the output divides."""
    return Quantized(TokenSum(mean.features), draft.units[node.sources[0]])


@row(LayerNorm, asks=readers.layer_norm)
def _layer_norm(node: Node, norm: LayerNorm, draft: Draft) -> Quantized:
    """As many fraction bits for what it sends, a power of two, as its readers and its own products have room for."""
    if node.name in draft.averaged:
        raise UnsupportedOperatorError(
            f"{node.name}: a layer norm behind a sum over tokens depends on how many there are; put it before"
        )
    size = norm.in_features // norm.groups
    units = draft.units[node.sources[0]].reshape(norm.groups, size)
    if np.any(units != units[:, :1]):
        raise UnsupportedOperatorError(f"{node.name}: reads features of different scales within a group")
    integer_eps = np.maximum(1, np.rint(size**2 * norm.eps / units[:, 0] ** 2))
    weight, bias = norm.weight.astype(np.float64), norm.bias.astype(np.float64)
    unit = 2.0 ** -_norm_fraction_bits(node, float((np.sqrt(size) * np.abs(weight) + np.abs(bias)).max()), draft)
    gain = max(float(np.abs(weight).max()), 2.0**-30) / unit
    shift = NORMED_BITS + GAIN_BITS - 1 - int(np.ceil(np.log2(gain)))
    offset = max(float(np.abs(bias).max()), 2.0**-30) / unit
    shift = min(shift, BIAS_BITS - 1 - int(np.ceil(np.log2(offset))), BIAS_BITS)
    if shift < 1:
        raise ChipLimitError(
            f"{node.name}: gains up to {float(np.abs(weight).max()):.3g} and biases up to "
            f"{float(np.abs(bias).max()):.3g} are too large beside the thresholds behind; scale both down"
        )
    found = IntegerLayerNorm(
        weight=np.rint(weight / unit * 2.0 ** (shift - NORMED_BITS)).astype(np.int64),
        bias=np.rint(bias / unit * 2.0**shift).astype(np.int64),
        eps=norm.eps,
        groups=norm.groups,
        integer_eps=integer_eps.astype(np.int64),
        shift=shift,
        unit=np.full(norm.in_features, unit),
    )
    found.check_sums(draft.intervals[node.sources[0]], node.name)
    return Quantized(found, found.unit)


def _norm_fraction_bits(node: Node, largest: float, draft: Draft) -> int:
    """Return the fraction bits of a layer norm that sends up to `largest`."""
    behind = draft.readers(node.name)
    thresholds = [reader.threshold for reader in behind if reader.threshold is not None]
    limits = [reader.largest - NORM_MARGIN for reader in behind] + ([] if thresholds else [HEAD_LIMIT])
    bits = int(np.floor(np.log2(min(limits) / max(largest, 2.0**-20))))
    for threshold in thresholds:
        bits = min(bits, int(np.floor(np.log2(THRESHOLD_MAX / max(float(threshold.max()), 2.0**-20)))))
    return min(bits, NORM_FRACTION_BITS)


@row(SpikeAttention, asks=readers.nothing)
def _attention(node: Node, attention: SpikeAttention, draft: Draft) -> Quantized:
    """As many fraction bits for what it sends as the longest sentence and the thresholds behind leave room for."""
    (source,) = node.sources
    if np.any(draft.units[source] != 1):
        raise UnsupportedOperatorError(f"{node.name}: reads {source}, which are no spikes or sums of spikes")
    if attention.scale <= 0:
        raise UnsupportedOperatorError(f"{node.name}: scale is {attention.scale}; only positive ones can be folded")
    behind = draft.readers(node.name)
    threshold = max((float(reader.threshold.max()) for reader in behind if reader.threshold is not None), default=0.0)
    limit = min([ACTIVATION_MAX, *(reader.largest for reader in behind)])
    for shift in range(ATTENTION_FRACTION_BITS, -1, -1):
        found = IntegerSpikeAttention(
            num_heads=attention.num_heads, head_size=attention.head_size, scale=attention.scale, shift=shift
        )
        largest, mantissa = draft.interval(node, found).largest, threshold / attention.scale * 2**shift
        if largest <= limit and mantissa <= THRESHOLD_MAX:
            return Quantized(found, found.unit)
    raise ChipLimitError(
        f"{node.name}: sums over {draft.network.max_tokens} tokens reach {largest}, and the threshold behind is "
        f"{mantissa:.0f} of them; the chip holds {limit}: quantize for shorter sentences (max_tokens) or a lower "
        "threshold"
    )


@row(Heaviside, asks=readers.heaviside)
def _heaviside(node: Node, operator: Heaviside, draft: Draft) -> Quantized:
    """``x unit > threshold``, and x is whole: ``x > floor(threshold / unit)``, ``x >= ceil(threshold / unit)``."""
    whole = np.ceil if operator.fire_on_equal else np.floor
    found = Heaviside(whole(operator.threshold / draft.units[node.sources[0]]), operator.fire_on_equal)
    return Quantized(found, np.ones(operator.out_features))


@row(LeakyIntegrateAndFire, asks=readers.neuron)
def _neuron(node: Node, neuron: LeakyIntegrateAndFire, draft: Draft) -> Quantized:
    """Where the leak takes from the input, that goes to the threshold, tau times higher, and to the unit."""
    unit = draft.units[node.sources[0]]
    threshold = _whole_threshold(node, neuron.threshold, draft)
    beta = 1 - 1 / neuron.tau if neuron.decay_input else neuron.beta
    mantissa, exponent = _whole_bias(node, np.zeros(neuron.out_features), draft)
    found = IntegerLeakyIntegrateAndFire(
        threshold=threshold,
        decay=_whole_decay(node, np.broadcast_to(beta, neuron.out_features)),
        bias_mantissa=mantissa,
        bias_exponent=exponent,
        reset=neuron.reset,
        fire_on_equal=neuron.fire_on_equal,
        unit=unit / neuron.tau if neuron.decay_input else unit,
    )
    return _firing(found)


@row(ResistiveNeuron, asks=readers.resistive_neuron)
def _resistive_neuron(node: Node, neuron: ResistiveNeuron, draft: Draft) -> Quantized:
    """Quantize NIR's full neuron: what it multiplies its input with goes to the threshold and the unit.

    Divided by that gain, ``U`` is ``U[t] = (1 - 1 / tau) U[t-1] + J[t] + v_leak / (gain tau)`` and the current
    ``J[t] = (1 - 1 / tau_syn) J[t-1] + x[t]``, which is what the chip computes.
    """
    gain = resistive_gain(node, neuron)
    if np.any(neuron.v_reset):
        worst = int(np.argmax(np.abs(neuron.v_reset)))
        raise ChipLimitError(
            f"{node.name}: neuron {worst} resets to {neuron.v_reset[worst]:.3g}; the chip's neurons reset to 0: "
            "measure potentials from v_reset, by taking it from v_leak and v_threshold"
        )
    keeps, resting = _leak(neuron, gain)
    mantissa, exponent = _whole_bias(node, resting / gain, draft)
    shared: dict[str, Any] = {
        "threshold": _whole_threshold(node, neuron.threshold, draft),
        "decay": _whole_decay(node, keeps),
        "bias_mantissa": mantissa,
        "bias_exponent": exponent,
        "unit": draft.units[node.sources[0]] * gain,
    }
    if neuron.tau_syn is None:
        return _firing(IntegerLeakyIntegrateAndFire(**shared, reset="zero", fire_on_equal=False))
    return _firing(IntegerCurrentNeuron(**shared, current_decay=_whole_current_decay(node, neuron.tau_syn)))


@row(LeakyIntegrator, asks=readers.integrator)
def _integrator(node: Node, integrator: LeakyIntegrator, draft: Draft) -> Quantized:
    gain = integrator_gain(node, integrator)
    keeps, resting = _leak(integrator, gain)
    mantissa, exponent = _whole_bias(node, resting / gain, draft)
    found = IntegerIntegrator(
        decay=_whole_decay(node, keeps),
        bias_mantissa=mantissa,
        bias_exponent=exponent,
        unit=draft.units[node.sources[0]] * gain / (1 << ACTIVATION_SHIFT),
    )
    return Quantized(found, found.unit)


Neuron = TypeVar("Neuron", IntegerLeakyIntegrateAndFire, IntegerCurrentNeuron)


def _firing(neuron: Neuron) -> Quantized:
    """Return neurons whose spikes stand for themselves, and whose thresholds a repair may scale."""

    def rescaled(factor: float) -> Neuron:
        threshold = np.clip(np.rint(neuron.threshold * factor), 0, THRESHOLD_MAX)
        return replace(neuron, threshold=threshold.astype(np.int64))

    return Quantized(neuron, np.ones(neuron.out_features), rescaled=rescaled)


def _leak(neuron: ResistiveNeuron | LeakyIntegrator, gain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which share of its potential is kept from step to step, and by what it moves without any input."""
    if neuron.tau is None:
        return np.ones_like(gain), np.zeros_like(gain)
    return 1 - 1 / neuron.tau, neuron.v_leak / neuron.tau


def _whole_threshold(node: Node, threshold: np.ndarray, draft: Draft) -> np.ndarray:
    """Return thresholds ``(features,)`` in units of what comes."""
    (source,) = node.sources
    charged = draft.reader(node).threshold
    assert charged is not None
    whole = np.rint(charged / draft.units[source])
    if whole.max() > THRESHOLD_MAX:
        raise ChipLimitError(
            f"{node.name}: its threshold would be {int(whole.max())} of what {source} sends; the chip holds "
            f"{THRESHOLD_MAX}: lower the threshold, or scale up the weights before it"
        )
    if whole.min() < 0:
        raise ChipLimitError(
            f"{node.name}: a threshold is {float(np.min(threshold)):.3g}; the chip holds none below 0: "
            "raise it, and the resting potential with it"
        )
    return whole.astype(np.int64)


def _whole_bias(node: Node, own: np.ndarray, draft: Draft) -> tuple[np.ndarray, np.ndarray]:
    """Return mantissas and exponents of a bias in units of the input, and of what the source left to its neurons."""
    (source,) = node.sources
    left = draft.left_bias(source)
    bias = (own if left is None else own + left) / draft.units[source] * (1 << ACTIVATION_SHIFT)
    exponent = np.zeros(bias.shape, np.int64)
    for _ in range(BIAS_EXPONENT_MAX):
        exponent += np.abs(np.rint(bias / 2.0**exponent)) > BIAS_MANTISSA_MAX
    return np.rint(bias / 2.0**exponent).astype(np.int64), exponent


def _whole_decay(node: Node, keeps: np.ndarray) -> np.ndarray:
    """Return the 12-bit decays of potentials that keep a share of themselves from step to step."""
    decay = DECAY_UNITY - np.rint(np.asarray(keeps, np.float64) * DECAY_UNITY).astype(np.int64)
    if decay.max() > DECAY_MAX:
        raise ChipLimitError(
            f"{node.name}: keeps {float(keeps.min()):.3g} of its potential from step to step; the chip's 12-bit "
            f"decay holds nothing between 0 and 1/{DECAY_UNITY}: choose a beta of at least 1/{DECAY_UNITY}"
        )
    return decay


def _whole_current_decay(node: Node, tau_syn: np.ndarray) -> np.ndarray:
    decay = np.rint(DECAY_UNITY / np.asarray(tau_syn, np.float64)).astype(np.int64)
    if decay.min() < 1:
        raise ChipLimitError(
            f"{node.name}: tau_syn is {float(tau_syn.max()):.6g} steps; the chip's 12-bit decay of the current holds "
            f"up to {DECAY_UNITY}: choose a shorter time constant or a longer step"
        )
    return decay
