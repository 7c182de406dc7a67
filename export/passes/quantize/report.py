"""What `quantize` is asked for, and what it says it did."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from export.choices import ROUNDINGS, SCALES, SIGN_MODES
from spikebert.errors import ConfigurationError


@dataclass(frozen=True)
class QuantizationOptions:
    """How to quantize.

    Parameters
    ----------
    scale : {"per-tensor", "per-channel"}
        One weight scale for a matrix, or one for each of its rows where neurons follow directly. A norm group has one
        scale in either case.
    power_of_two : bool
        Only powers of two as weight scales.
    rounding : {"nearest", "floor-even"}
        How weights are rounded; ``"floor-even"`` as stock Lava's Dense floors weights of twice the precision.
    sign_mode : {"mixed", "auto"}
        ``"auto"`` gives matrices of one sign all 8 bits of magnitude.
    clip : bool
        Whether outlying weights may be clipped where that makes the matrix more exact on the calibration.
    repair : bool
        Whether thresholds of silent and saturated layers are rescaled.
    max_tokens : int, optional
        Longest sentence; the graph's positions, else 512, by default.
    """

    scale: str = "per-tensor"
    power_of_two: bool = False
    rounding: str = "nearest"
    sign_mode: str = "mixed"
    clip: bool = True
    repair: bool = True
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        """Check every value."""
        for name, allowed in (("scale", SCALES), ("rounding", ROUNDINGS), ("sign_mode", SIGN_MODES)):
            if getattr(self, name) not in allowed:
                raise ConfigurationError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}")
        if self.max_tokens is not None and (not isinstance(self.max_tokens, int) or self.max_tokens < 1):
            raise ConfigurationError(f"max_tokens is {self.max_tokens!r}; it must be a whole number of at least 1")


@dataclass
class LayerReport:
    """What quantization did to one layer of neurons, on the calibration sentences.

    Attributes
    ----------
    node : str
    float_rate, integer_rate : float
        Firing rates, the integer one behind integers all the way and after any repair.
    agreement : float
        Share of spikes equal to the float layer's when both read the float graph's spikes.
    silent_features, saturated_features : int
        Features that fire in float and never in integers; that always fire in integers and not in float.
    found : str or None
        ``"silent"`` or ``"saturated"`` where the layer had fallen so before a repair.
    threshold_factor : float
        What its thresholds were multiplied with; 1 without repair.
    """

    node: str
    float_rate: float
    integer_rate: float
    agreement: float
    silent_features: int
    saturated_features: int
    found: str | None = None
    threshold_factor: float = 1.0


@dataclass
class WeightReport:
    """What quantization did to one matrix.

    Attributes
    ----------
    node : str
    unit : float
        Largest of its scales.
    largest : int
        Largest magnitude of its whole numbers: below 127 where a sum would have wrapped around otherwise.
    relative_error : float
        Root mean square of the weights' error, relative to that of the weights, as the calibration uses them.
    """

    node: str
    unit: float
    largest: int
    relative_error: float


@dataclass
class QuantizationReport:
    """What `quantize` did; the graph's metadata hold it as JSON under ``quantization``."""

    options: dict[str, Any] = field(default_factory=dict)
    layers: list[LayerReport] = field(default_factory=list)
    weights: list[WeightReport] = field(default_factory=list)

    @property
    def repaired(self) -> list[LayerReport]:
        """Layers that had fallen silent or saturated."""
        return [layer for layer in self.layers if layer.found is not None]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)
