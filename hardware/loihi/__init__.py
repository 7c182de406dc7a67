"""Chips, what they allow, and where a graph goes on them."""

from hardware.loihi.chip import CHIPS, Chip, Limit, find_chip, read_chip
from hardware.loihi.placement import Placement, misfits, place
from hardware.loihi.rules import RULES, Violation

__all__ = ["CHIPS", "RULES", "Chip", "Limit", "Placement", "Violation", "find_chip", "misfits", "place", "read_chip"]
