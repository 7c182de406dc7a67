"""Errors of the graph and its files."""

from __future__ import annotations

from spikebert.errors import SpikeBertError


class GraphError(SpikeBertError):
    """A graph does not mean anything: a wrong edge, width, parameter or piece of metadata. Names the node."""


class UnsupportedOperatorError(GraphError):
    """A graph or model has something this project (or NIR) has no operator for. Names the node and what is known."""


class ChipLimitError(GraphError):
    """A number is outside what the chip holds. Names the node, the limit and what would mend it."""


class NirFileError(SpikeBertError):
    """A NIR file cannot be read or written. Names the file and what is wrong with it."""


class OnnxFileError(SpikeBertError):
    """An ONNX file cannot be read or written, or is not one of ours. Names the file and what is wrong with it."""


class NetxError(SpikeBertError):
    """A netx file cannot be read, or a graph is nothing such a file can hold. Lists nodes or layers and reasons."""
