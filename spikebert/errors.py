"""The typed errors of the whole project: every mistake a user can make ends in one of these, never in a traceback."""

from __future__ import annotations


class SpikeBertError(Exception):
    """Base of every error this project raises on purpose; the commands print it and exit with code 2."""


class ConfigurationError(SpikeBertError):
    """A setting of a model, neuron or command is outside what is allowed."""


class CheckpointError(SpikeBertError):
    """A checkpoint directory or its files cannot be read."""


class DataError(SpikeBertError):
    """A data file is missing, or a line of it does not say what its task needs."""


class MissingDependencyError(SpikeBertError):
    """An optional package is needed and not installed; the message says how to get it."""
