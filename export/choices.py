"""The words that options of exporting and quantizing are chosen from, for those who must know them without torch."""

from __future__ import annotations

SCALES = ("per-tensor", "per-channel")
ROUNDINGS = ("nearest", "floor-even")
SIGN_MODES = ("mixed", "auto")
