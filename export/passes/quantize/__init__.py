"""The pass from a float graph to an integer graph: int8 weights, Loihi's neurons, every scale chosen and proven.

Which weights share a scale, and in which order whole numbers are chosen, is planned first (``families``). Then each
node is given whole numbers by the row of its operator (``rules``; ``weights`` searches the scale of weights), from what
its readers ask (``readers``) and from intervals that prove no reachable sum to wrap around; the ``draft`` holds what is
chosen. The calibration sentences run through it three times: in float (``calibration``), in integers behind the float
graph's spikes, which judges the node by itself, and in integers behind integers (``trial``). A layer of neurons that
fell silent or saturated is named, and its thresholds are rescaled until it fires as often as the float layer, before
the next layer is looked at. ``quantizer`` is the way through all of it.

An operator of your own takes one row in `QUANTIZE`, and can register it from wherever it stands.
"""

from export.passes.quantize.calibration import Calibration
from export.passes.quantize.draft import QUANTIZE, Draft, Quantized, Row
from export.passes.quantize.quantizer import quantize, quantize_with_report
from export.passes.quantize.readers import Reader
from export.passes.quantize.report import LayerReport, QuantizationOptions, QuantizationReport, WeightReport
from export.passes.quantize.weight_rows import WeightRows

__all__ = [
    "QUANTIZE",
    "Calibration",
    "Draft",
    "LayerReport",
    "QuantizationOptions",
    "QuantizationReport",
    "Quantized",
    "Reader",
    "Row",
    "WeightReport",
    "WeightRows",
    "quantize",
    "quantize_with_report",
]
