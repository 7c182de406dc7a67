"""The runners: one graph, the same spikes from torch, NumPy, the integer simulator, Lava and ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nir

from export.network import Network
from export.nir_graph.reader import parse_graph
from hardware.choices import RUNNERS
from hardware.errors import RunnerError
from hardware.runners.runner import Runner
from hardware.trace import Trace


def open_runner(model: Any, runner: str = "reference", precision: str = "float64", **options: Any) -> Runner:
    """Build a runner, to be used as a context manager for as many batches as there are.

    Parameters
    ----------
    model : nir.NIRGraph, Network, Path or nn.Module
        A graph; for ``runner="torch"`` the model itself; for ``runner="onnx"`` also the path of an ONNX file of ours.
    runner : {"torch", "reference", "integer", "lava", "onnx"}
    precision : {"float64", "float32", "integer"}
        ``"integer"`` for integer graphs, and for them only.
    options
        ``record_membrane_potentials`` for all; ``time_steps`` for graphs; ``record_spikes``, ``device`` and
        ``compiled`` for the integer runner; ``granularity``, ``tokens``, ``timeout``, ``jobs`` and ``timing`` for Lava.

    Raises
    ------
    RunnerError
        The runner is not known, or cannot run what it was given.
    GraphError
        The graph means nothing.
    """
    if runner not in RUNNERS and runner not in _openers:
        raise RunnerError(f"runner {runner!r} is not one of {', '.join(dict.fromkeys((*RUNNERS, *_openers)))}")
    is_graph = isinstance(model, nir.NIRGraph | Network)
    if runner == "torch":
        if is_graph:
            raise RunnerError("runner 'torch' runs a model, not a graph; give the model, or choose another runner")
        from hardware.runners.torch_runner import TorchRunner

        return TorchRunner(model, precision, **options)
    if runner == "onnx" and isinstance(model, Path):
        return _open_onnx(model, precision, **options)
    if not is_graph:
        raise RunnerError(
            f"runner {runner!r} runs a NIR graph, not {type(model).__name__}; export it with to_nir first"
        )
    network = model if isinstance(model, Network) else parse_graph(model)
    return _openers[runner](network, precision, **options)


def register_runner(name: str, opener: Callable[..., Runner]) -> None:
    """Make a runner of graphs known by a name, to `open_runner` and all that calls it.

    Parameters
    ----------
    name : str
        Not one of the package's own.
    opener : callable
        Called with a `Network`, a precision and options; returns the runner, or raises `RunnerError`.

    Raises
    ------
    RunnerError
        The name is taken by one of the package.
    """
    if name in RUNNERS:
        raise RunnerError(f"runner {name!r} is one of the package's own; choose another name")
    _openers[name] = opener


def _open_reference(network: Network, precision: str, **options: Any) -> Runner:
    from hardware.runners.reference import ReferenceRunner

    return ReferenceRunner(network, precision, **options)


def _open_integer(network: Network, precision: str, **options: Any) -> Runner:
    from hardware.runners.integer import IntegerRunner

    return IntegerRunner(network, precision, **options)


def _open_lava(network: Network, precision: str, **options: Any) -> Runner:
    from hardware.runners.lava.lava_runner import LavaRunner

    return LavaRunner(network, precision, **options)


def _open_onnx(network: Network | Path, precision: str, **options: Any) -> Runner:
    from hardware.runners.onnx_runner import OnnxRunner

    return OnnxRunner(network, precision, **options)


_openers: dict[str, Callable[..., Runner]] = {
    "reference": _open_reference,
    "integer": _open_integer,
    "lava": _open_lava,
    "onnx": _open_onnx,
}
"""Runners of graphs, by name; each is imported when it is opened."""


def run(
    model: Any,
    inputs: Any,
    token_mask: Any = None,
    *,
    runner: str = "reference",
    precision: str = "float64",
    **options: Any,
) -> Trace:
    """Run one batch and return its trace.

    Parameters
    ----------
    model, runner, precision, options
        As in `open_runner`.
    inputs : array
        Token ids ``(B, N)``, or for a graph without token encoding input values ``(T, B, N, D)``.
    token_mask : array, optional
        ``(B, N)``, nonzero at tokens and 0 at padding.

    Returns
    -------
    Trace
    """
    with open_runner(model, runner, precision, **options) as opened:
        return opened.run(inputs, token_mask)
