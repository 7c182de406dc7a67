"""From trained models to graphs and files: operators, NIR, and (later) passes and other formats.

Names load when first used, so that what needs no torch does not wait for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export.errors import (
        ChipLimitError,
        GraphError,
        NetxError,
        NirFileError,
        OnnxFileError,
        UnsupportedOperatorError,
    )
    from export.exporters import register_exporter, to_nir
    from export.network import Network
    from export.netx import read_netx, write_netx
    from export.nir_file import read_nir, write_nir
    from export.nir_graph.reader import parse_graph
    from export.nir_graph.writer import build_graph
    from export.onnx_format.file import write_onnx
    from export.onnx_format.graph import draft_onnx, to_onnx
    from export.passes.quantize import quantize, quantize_with_report

_HOMES = {
    "ChipLimitError": "export.errors",
    "GraphError": "export.errors",
    "NetxError": "export.errors",
    "NirFileError": "export.errors",
    "OnnxFileError": "export.errors",
    "UnsupportedOperatorError": "export.errors",
    "register_exporter": "export.exporters",
    "to_nir": "export.exporters",
    "Network": "export.network",
    "build_graph": "export.nir_graph.writer",
    "parse_graph": "export.nir_graph.reader",
    "quantize": "export.passes.quantize",
    "quantize_with_report": "export.passes.quantize",
    "read_netx": "export.netx",
    "write_netx": "export.netx",
    "read_nir": "export.nir_file",
    "write_nir": "export.nir_file",
    "write_onnx": "export.onnx_format.file",
    "draft_onnx": "export.onnx_format.graph",
    "to_onnx": "export.onnx_format.graph",
}

__all__ = [
    "ChipLimitError",
    "GraphError",
    "Network",
    "NetxError",
    "NirFileError",
    "OnnxFileError",
    "UnsupportedOperatorError",
    "build_graph",
    "draft_onnx",
    "parse_graph",
    "quantize",
    "quantize_with_report",
    "read_netx",
    "read_nir",
    "register_exporter",
    "to_nir",
    "to_onnx",
    "write_netx",
    "write_nir",
    "write_onnx",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its home."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})
