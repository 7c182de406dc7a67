"""Errors of running and comparing."""

from __future__ import annotations

from spikebert.errors import SpikeBertError


class RunnerError(SpikeBertError):
    """A runner was asked for something it cannot do, or was given inputs that do not fit its graph."""


class TraceError(SpikeBertError):
    """A trace file cannot be read or written, or does not hold what a trace must."""


class TraceMismatchError(SpikeBertError):
    """Two traces, or a trace and a graph, do not belong together. Names the first node that does not fit."""


class PlacementError(SpikeBertError):
    """A chip's description or a placement's argument makes no sense. Names the file or argument and what is allowed."""
