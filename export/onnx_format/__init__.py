"""Graphs as ONNX: node by node, so that any network of our operators becomes a file that ONNX Runtime executes."""

from __future__ import annotations

from spikebert.errors import MissingDependencyError


def onnx_is_missing(error: ModuleNotFoundError) -> MissingDependencyError:
    """Return the error that says how to get what ONNX needs."""
    return MissingDependencyError(f"ONNX needs onnx and onnxruntime ({error}); pip install 'spikebert[onnx]'")


try:
    import onnx  # noqa: F401  everything in this package needs it
except ModuleNotFoundError as error:
    raise onnx_is_missing(error) from error
