"""Weights in whole numbers: the scale of a family, outliers clipped or not, and rounding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from export.errors import ChipLimitError, UnsupportedOperatorError
from export.loihi_numbers import WEIGHT_LIMITS
from export.network import Node
from export.operators import Interval, rule_for
from export.operators.affine import sign_mode
from export.passes.intervals import reads_words
from export.passes.quantize.draft import QUANTIZE, Draft, Quantized
from export.passes.quantize.readers import Reader
from export.passes.quantize.report import QuantizationOptions, WeightReport
from export.passes.quantize.weight_rows import WeightRows

CLIPPINGS = tuple(2.0 ** (-step / 4) for step in range(13))
"""Shares of the largest weight that are tried as the largest a matrix can hold: 1, 0.84, …, 0.125."""
SEARCHED_INPUTS = 2048
"""Columns of a matrix that the search looks at: those that the calibration uses most."""
COARSENINGS = 64
"""How often a scale is coarsened that lets a sum grow larger than its readers take: 2^16 times in all, or 2^64."""


@dataclass(frozen=True, eq=False)
class _Member:
    """A node of a family, and what the search for its scale looks at.

    Attributes
    ----------
    weights : WeightRows
    exact : ndarray
        The rows times what a 1 that each weight is multiplied with stands for.
    importance : ndarray
        ``(weights of a row,)``: by how much an error of each counts.
    """

    weights: WeightRows
    exact: np.ndarray
    importance: np.ndarray

    @classmethod
    def of(cls, node: Node, draft: Draft) -> _Member:
        rows = rule_for(QUANTIZE, node).weights
        assert rows is not None  # `plan` puts nothing else into a family
        weights = rows.of(node)
        columns = _column_units(weights, draft)
        return cls(weights, weights.rows * columns, _importance(weights, columns, draft))

    @property
    def name(self) -> str:
        return self.weights.node.name


def quantize_family(family: Sequence[Node], draft: Draft) -> dict[str, Quantized]:
    """Quantize the weights of nodes that are added to each other, on one scale; return what becomes of each.

    Raises
    ------
    ChipLimitError
        What reads them allows no scale in which any weight would be left.
    UnsupportedOperatorError
        Their rows do not lead to the same places, what they read has no scale that a row could share, or a bias cannot
        be kept.
    """
    members = [_Member.of(node, draft) for node in family]
    first = members[0].weights
    channels, places = len(first.rows), first.places
    odd = [member.name for member in members if (len(member.weights.rows), member.weights.places) != (channels, places)]
    if odd:
        raise UnsupportedOperatorError(
            f"{first.node.name}: has one scale for each of {channels} channels of {places} places, and {odd[0]}, which "
            "it is added to, has others; flatten both, or give both the same channels"
        )
    readers = [draft.reader(node) for node in _read_through_sums(family, draft)]
    groups = _rows_of_a_scale(channels, readers, draft.options)
    bias = sum((member.weights.bias for member in members if member.weights.bias is not None), np.zeros(channels))
    least = np.zeros(channels * places)
    for reader in readers:
        least = np.maximum(least, reader.least_unit(np.repeat(bias, places)))
    least = least.reshape(channels, places).max(1)
    unit = np.empty(channels)
    for rows in groups:
        unit[rows] = _best_scale(members, rows, float(least[rows].max()), draft.options)
    for _ in range(COARSENINGS):
        whole = [_whole_weights(member.exact, unit, draft.options) for member in members]
        too_large = _too_large(members, whole, readers, unit, draft)
        if not too_large.any():
            break
        for rows in groups:
            if too_large[rows].any():
                unit[rows] *= 2 if draft.options.power_of_two else 2**0.25
    found = {}
    for member, weight in zip(members, whole, strict=True):
        if np.any(member.exact) and not np.any(weight):
            raise ChipLimitError(
                f"{member.name}: every weight would become 0: the largest is {float(np.abs(member.exact).max()):.3g}, "
                "and thresholds or sums behind it allow no smaller scale; lower the thresholds or split the layer"
            )
        kept, left = _biases(member.weights, unit, draft)
        operator = member.weights.quantized(weight, kept, unit)
        found[member.name] = Quantized(operator, np.repeat(unit, places), left_bias=left)
        draft.report.weights.append(
            WeightReport(
                member.name, float(unit.max()), int(np.abs(weight).max()), _relative_error(member, weight, unit)
            )
        )
    return found


def _read_through_sums(family: Sequence[Node], draft: Draft) -> list[Node]:
    """Return what reads a family, directly or through sums."""
    found: dict[str, Node] = {}
    pending = list(family)
    while pending:
        for reader in draft.network.readers[pending.pop(0).name]:
            if reader.name not in found:
                found[reader.name] = reader
                if reader.is_sum:
                    pending.append(reader)
    return [reader for reader in found.values() if not reader.is_sum]


def _rows_of_a_scale(channels: int, readers: list[Reader], options: QuantizationOptions) -> list[slice]:
    """Return the rows of a matrix that share a scale."""
    if options.scale == "per-channel" and readers and all(reader.by_feature for reader in readers):
        return [slice(row, row + 1) for row in range(channels)]
    groups = {reader.groups for reader in readers}
    parts = groups.pop() if len(groups) == 1 else 1
    return [slice(part * channels // parts, (part + 1) * channels // parts) for part in range(parts)]


def _importance(weights: WeightRows, columns: np.ndarray, draft: Draft) -> np.ndarray:
    """Return the mean square of what a row's weights are multiplied with on the calibration, plus a hundredth."""
    channels = weights.node.operator.in_shape[0]
    used = draft.calibration.mean_squares(weights.node).reshape(channels, -1).mean(1)
    used = weights.meeting(used).mean(0) / (columns.mean(0) / columns.max()) ** 2
    return used + max(used.mean(), 1e-12) * 0.01


def _column_units(weights: WeightRows, draft: Draft) -> np.ndarray:
    """Return what a 1 that each weight is multiplied with stands for, ``(1 or rows, weights of a row)``."""
    node = weights.node
    if reads_words(draft.network, node):
        return np.ones((1, 1))
    by_channel = draft.units[node.sources[0]].reshape(node.operator.in_shape[0], -1)
    if np.any(by_channel != by_channel[:, :1]):
        raise UnsupportedOperatorError(
            f"{node.name}: what it reads has scales that differ within a channel, where its weights are the same; "
            "scale all places of a channel alike"
        )
    return weights.meeting(by_channel[:, 0])


def _best_scale(members: list[_Member], rows: slice, least: float, options: QuantizationOptions) -> float:
    """Return the scale of some rows for which their error, as the calibration uses them, is smallest."""
    weights = [member.exact[rows] for member in members]
    largest = max(float(np.abs(weight).max(initial=0)) for weight in weights)
    one_sign = options.sign_mode == "auto" and all(sign_mode(weight) != "mixed" for weight in weights)
    top = 255 if one_sign else WEIGHT_LIMITS["mixed"][1]
    if largest == 0:
        return max(least, 1.0 / top)
    candidates = [share * largest / top for share in (CLIPPINGS if options.clip else CLIPPINGS[:1])]
    if options.power_of_two:
        candidates = sorted({2.0 ** np.ceil(np.log2(candidate)) for candidate in candidates})
        least = 2.0 ** np.ceil(np.log2(least)) if least else least
    if max(candidates) <= least:
        return least
    candidates = [max(candidate, least) for candidate in candidates]

    searched = []
    for member, weight in zip(members, weights, strict=True):
        columns = np.argsort(-member.importance, kind="stable")[:SEARCHED_INPUTS]
        searched.append((weight[:, columns].astype(np.float32), member.importance[columns].astype(np.float32)))

    def error(scale: float) -> float:
        unit = np.full(1, scale, np.float32)
        return sum(float((((_whole_weights(w, unit, options) * unit - w) ** 2) @ used).sum()) for w, used in searched)

    return min(candidates, key=error) if len(candidates) > 1 else candidates[0]


def _whole_weights(weight: np.ndarray, unit: np.ndarray, options: QuantizationOptions) -> np.ndarray:
    scaled = weight / unit[:, None]
    low, high = WEIGHT_LIMITS[sign_mode(weight) if options.sign_mode == "auto" else "mixed"]
    rounded = np.floor(np.rint(2 * scaled) / 2) if options.rounding == "floor-even" else np.rint(scaled)
    return np.clip(rounded, low, high)


def _too_large(
    members: list[_Member], whole: list[np.ndarray], readers: list[Reader], unit: np.ndarray, draft: Draft
) -> np.ndarray:
    """Return which rows of weights would send more than a reader takes, ``(channels,)``."""
    places = members[0].weights.places
    low, high = np.zeros(len(unit) * places), np.zeros(len(unit) * places)
    for member, rows in zip(members, whole, strict=True):
        bias = None if member.weights.bias is None else np.rint(member.weights.bias / unit)
        sent = draft.interval(member.weights.node, member.weights.drafted(rows, bias))
        low, high = low + sent.low, high + sent.high
    magnitude, units = Interval(low, high).magnitude, np.repeat(unit, places)
    too_large = np.zeros(len(magnitude), bool)
    for reader in readers:
        too_large |= ~reader.takes(magnitude, units)
    return too_large.reshape(len(unit), places).any(1)


def _biases(weights: WeightRows, unit: np.ndarray, draft: Draft) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return the bias that the operator keeps, ``(channels,)`` in units, and what it leaves, see `Quantized`."""
    if weights.bias is None or not weights.bias.any():
        return None, None
    name, left = weights.node.name, np.repeat(weights.bias, weights.places)
    readers = draft.readers(name)
    if name == draft.network.output_source and not readers:
        return None, left
    if name in draft.averaged:
        raise UnsupportedOperatorError(
            f"{name}: has a bias behind a sum over tokens, where it would count once for each token; only the last "
            "affine map may have one"
        )
    if readers and all(reader.takes_bias for reader in readers):
        return None, left
    return np.rint(weights.bias / unit).astype(np.int64), None


def _relative_error(member: _Member, weight: np.ndarray, unit: np.ndarray) -> float:
    """Return the root mean square of the error of weights relative to theirs, as the calibration uses them."""
    wrong = ((weight * unit[:, None] - member.exact) ** 2 @ member.importance).sum()
    return float(np.sqrt(wrong / max(((member.exact**2) @ member.importance).sum(), np.finfo(float).tiny)))
