"""What spiking operators share: their state, and the test against the threshold, which in NIR is strict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from export.errors import GraphError
from export.operators.operator import Array
from export.operators.reading import (
    metadata_value,
    parameter,
)


@dataclass
class NeuronState:
    """State of a population between two steps.

    Attributes
    ----------
    membrane_potential : ndarray
        U behind the reset of the last step.
    spikes : ndarray
        S of the last step, before any masking; bool, or 0 and 1 as numbers.
    tested_potential : ndarray
        U as it was compared with the threshold in the last step; what a trace records.
    """

    membrane_potential: Array
    spikes: Array
    tested_potential: Array


def with_test(equations: str, fire_on_equal: bool) -> str:
    """Return equations that fire above the threshold, or at it too."""
    return equations.replace("> threshold", ">= threshold") if fire_on_equal else equations


def fires(potential: Array, threshold: Array, on_equal: bool) -> Array:
    """Return where a potential is above its threshold, or at it too."""
    return potential >= threshold if on_equal else potential > threshold


def firing_threshold(threshold: Array, fire_on_equal: bool, dtype: DTypeLike) -> Array:
    """Return, as float64, the threshold for a strict test: `threshold`, or the number of `dtype` just below it."""
    if not fire_on_equal:
        return np.asarray(threshold, np.float64)
    with np.errstate(over="ignore"):  # a threshold that `dtype` cannot hold is beyond all its numbers
        below = np.nextafter(np.asarray(threshold, dtype), np.asarray(-np.inf, dtype))
    return below.astype(np.float64)


def meant_threshold(written: Array, metadata: dict[str, Any], where: str) -> tuple[Array, bool]:
    """Return the threshold that a node's strict one was made from, and whether it fires at equality."""
    fire_on_equal = "fire_on_equal" in metadata and metadata_value(metadata, "fire_on_equal", bool, where)
    if not fire_on_equal and "threshold" not in metadata:
        return written, False
    threshold = parameter(metadata.get("threshold"), written.shape, where, "metadata threshold")
    precisions = (np.float64, np.float32) if fire_on_equal else (np.float64,)
    strict = [firing_threshold(threshold, fire_on_equal, precision) for precision in precisions]
    if not any(np.array_equal(written, above) for above in strict):
        index = int(np.argmax(written != strict[-1]))
        relation = ("at", "the number just below") if fire_on_equal else ("above", "that")
        raise GraphError(
            f"{where}: metadata say that neuron {index} fires {relation[0]} {threshold[index]}, but its threshold "
            f"{written[index]!r} is not {relation[1]}"
        )
    return threshold, fire_on_equal
