"""The words that options of runners and reports are chosen from, for those who must know them without torch."""

from __future__ import annotations

TORCH, REFERENCE, INTEGER, LAVA, ONNX = "torch", "reference", "integer", "lava", "onnx"
RUNNERS = (TORCH, REFERENCE, INTEGER, LAVA, ONNX)
GRAPH_RUNNERS = (REFERENCE, INTEGER, LAVA, ONNX)
"""Those that run a graph of a file; torch runs models."""
FLOAT64, FLOAT32 = "float64", "float32"
PRECISIONS = (FLOAT64, FLOAT32, INTEGER)
GRANULARITIES = ("operator", "block", "network")
ZERO_LATENCY, HARDWARE = "zero-latency", "hardware"
TIMINGS = (ZERO_LATENCY, HARDWARE)
COLLECTIONS = ("heads", "histogram", "persistence")
"""What a profiler collects only when asked: rates by attention head, how often each value occurs (and in the residual
stream), how often a neuron that fired fires again."""
FIGURES = ("rates", "steps", "positions", "heads", "raster", "histogram")
CSV_AXES = ("node", "step", "position", "head", "neuron", "value", "operation")
