"""Errors of energy models."""

from __future__ import annotations

from spikebert.errors import SpikeBertError


class EnergyModelError(SpikeBertError):
    """An energy model is not known, or a file does not describe one. Names the model or file and what is wrong."""
