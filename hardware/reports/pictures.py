"""What all pictures share: type sizes and colours, labels that are safe to draw, and figures turned into files.

Figures are built without pyplot, so nothing global changes and no window system is needed.
"""

from __future__ import annotations

import base64
import functools
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from hardware.reports.files import ReportError, write_whole

DOTS_PER_INCH = 200
PICTURE_FORMATS = ("png", "pdf", "svg")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette (https://jfly.uni-koeln.de/color/), told apart by colour-blind readers; yellow left out."""
NEUTRAL_COLOUR = "#7F7F7F"
FONT = "DejaVu Sans"  # comes with matplotlib, so a picture is the same everywhere
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "figure.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "font.family": FONT,
    "figure.constrained_layout.w_pad": 0.08,
    "svg.hashsalt": "spikebert",
    "pdf.fonttype": 42,
}

BLOCK_OF_NODE = re.compile(r"block(?P<block>\d{2,})_(?P<role>.+)")
MAX_LABEL = 40


def draw(paint: Callable[[Figure], None], width: float, height: float) -> Figure:
    """Return a figure of `width` x `height` inches painted in the common style."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained")
        paint(figure)
    return figure


def picture_bytes(figure: Figure, file_format: str = "png") -> bytes:
    """Return a figure as the bytes of a file, the same bytes for the same figure."""
    undated = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format=file_format, dpi=DOTS_PER_INCH, facecolor="white", metadata=undated[file_format])
    return buffer.getvalue()


def picture_data_uri(figure: Figure) -> str:
    """Return a figure as a PNG that stands inside an HTML page."""
    return "data:image/png;base64," + base64.b64encode(picture_bytes(figure)).decode("ascii")


def write_picture(figure: Figure, path: str | Path) -> Path:
    """Write a figure; the suffix chooses PNG, PDF or SVG.

    Raises
    ------
    ReportError
        The suffix is another one, or the file cannot be written.
    """
    return write_whole(path, picture_bytes(figure, picture_format(path)))


def picture_format(path: str | Path) -> str:
    """Return the format a picture's file name asks for.

    Raises
    ------
    ReportError
        It is none of `PICTURE_FORMATS`.
    """
    suffix = Path(path).suffix.lower().removeprefix(".")
    if suffix not in PICTURE_FORMATS:
        raise ReportError(f"{path}: a picture ends in .{', .'.join(PICTURE_FORMATS)}")
    return suffix


def split_node_name(node: str) -> tuple[int | None, str]:
    """Return a node's block and what it is within the block: ``block03_qkv_neuron`` -> ``(3, "qkv")``."""
    found = BLOCK_OF_NODE.fullmatch(node)
    role = (found["role"] if found else node).removesuffix("_stream").removesuffix("_neuron")
    return (int(found["block"]) if found else None), role


def safe_label(text: str, longest: int = MAX_LABEL) -> str:
    """Return text that can be drawn as it stands: one line, not too long, no mathematics, boxes for missing glyphs."""
    text = "".join(character if character.isprintable() else " " for character in text)
    text = text if len(text) <= longest else text[: longest - 1] + "…"
    return "".join(character if can_be_drawn(character) else "□" for character in text).replace("$", r"\$")


def can_be_drawn(text: str) -> bool:
    """Whether the font has every character of `text`."""
    return all(ord(character) in _characters() for character in text)


@functools.cache
def _characters() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties(family=FONT))).get_charmap())
