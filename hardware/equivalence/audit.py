"""Is every spike of a trace what the graph makes of the trace's own inputs, but for rounding?

Each subgraph (`hardware.equivalence.subgraphs`) is computed again on what entered it in the run, and with the run's own
spikes behind every reset, in the precision of the run (`hardware.equivalence.replay`). Along goes a bound on how far
another implementation may lie from this one (`hardware.equivalence.rounding`). A spike is *possible* if it is the one
we compute, or if our potential lies within that bound of the threshold. So a trace is judged without its first
difference spreading, and without running anything again: a recorded trace can be audited, or one from a chip.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from export.network import Network
from hardware.equivalence.replay import NeuronReplay, SubgraphReplay
from hardware.equivalence.rounding import EVALUATION_SLACK, Precision
from hardware.equivalence.subgraphs import Subgraph, subgraphs_with_inputs
from hardware.errors import TraceMismatchError
from hardware.runners.runner import float_type
from hardware.traces.trace import Trace


@dataclass(frozen=True, eq=False)
class SubgraphAudit:
    """One subgraph computed again on the inputs of a run.

    Attributes
    ----------
    name : str
        The spiking node, or ``"output"``.
    values : ndarray
        ``(T, B, N, D)``: the potentials we compute, as they are tested; what the output shows, ``(T, B, 1 or N, C)``.
    bounds : ndarray
        How far those of another implementation may lie from them; float64.
    impossible : ndarray or None
        ``(T, B, N, D)`` bool: spikes of the run that no rounding gives; padding left out. None for the output.
    near : ndarray or None
        Where either spike is possible: our potential lies within its bound of the threshold.
    outside : ndarray or None
        Recorded potentials (or outputs) of the run further from ours than the bound; None where none were recorded.
    tightness : float or None
        Largest share of its bound that a recorded value's distance from ours reaches.
    of_logits : bool
        Whether this is the mean over time of what the output shows, ``(1, B, 1 or N, C)``.
    """

    name: str
    values: np.ndarray
    bounds: np.ndarray
    impossible: np.ndarray | None = None
    near: np.ndarray | None = None
    outside: np.ndarray | None = None
    tightness: float | None = None
    of_logits: bool = False


def audit(
    network: Network, inputs: Trace, claimed: Trace | None = None, precision: str | None = None
) -> Iterator[SubgraphAudit]:
    """Yield every subgraph of a network computed again, in topological order, the logits behind the output.

    Parameters
    ----------
    network : Network
    inputs : Trace
        Whose spikes enter.
    claimed : Trace, optional
        Whose spikes and potentials are judged; those of `inputs` by default. Give another one to judge what a runner
        made, node by node, of the reference's inputs. Nodes it does not have are left out.
    precision : {"float64", "float32"}, optional
        That of the claimed run by default.

    Raises
    ------
    TraceMismatchError
        A trace is not of this graph, or does not say its precision.
    RunnerError
        The precision is not a floating one.
    UnsupportedOperatorError
        A node's operator has no bound.
    """
    claimed = inputs if claimed is None else claimed
    precision = claimed.precision if precision is None else precision
    if precision is None:
        raise TraceMismatchError("the trace does not say its precision; say which one it was computed in")
    float_type(precision)  # refused before anything is computed
    for subgraph, entering in subgraphs_with_inputs(inputs, network):
        if subgraph.spikes and subgraph.name not in claimed.spikes:
            continue
        if network.input_name in subgraph.sources and network.token_encoding is not None and inputs.input_ids is None:
            continue
        found = audit_subgraph(network, subgraph, entering, inputs, claimed, precision)
        yield found
        if not subgraph.spikes:
            yield _audit_logits(found, inputs, claimed, Precision.of(float_type(precision)))


def audit_subgraph(
    network: Network,
    subgraph: Subgraph,
    entering: dict[str, np.ndarray],
    inputs: Trace,
    claimed: Trace,
    precision: str,
) -> SubgraphAudit:
    """Compute one subgraph again; see `audit`. What enters is ``(T, B, N, D)`` by source."""
    arithmetic = Precision.of(float_type(precision))
    steps = next(iter(inputs.spikes.values())).shape[0]
    spikes = claimed.spikes[subgraph.name] if subgraph.spikes else None
    replay = SubgraphReplay(network, subgraph, inputs, arithmetic)
    values, bounds = [], []
    for step in range(steps):
        entered = {name: value[step] for name, value in entering.items()}
        value, bound = replay.step(entered, None if spikes is None else spikes[step])
        values.append(value)
        bounds.append(bound)
    value, bound = np.stack(values), np.stack(bounds) * EVALUATION_SLACK
    if not subgraph.spikes:
        return _audit_output(subgraph.name, value, bound, claimed.outputs, inputs.mask)
    assert isinstance(replay.last, NeuronReplay)
    assert spikes is not None
    real = inputs.mask[None, :, :, None]
    impossible, near = replay.last.judge(value, bound, spikes)
    recorded = claimed.membrane_potentials.get(subgraph.name)
    return SubgraphAudit(
        subgraph.name, value, bound, real & impossible, real & near, **_against_recorded(value, bound, recorded, real)
    )


def _audit_output(
    name: str, value: np.ndarray, bound: np.ndarray, recorded: np.ndarray | None, mask: np.ndarray, **rest: Any
) -> SubgraphAudit:
    if recorded is not None and recorded.ndim == value.ndim - 1:
        recorded = recorded[..., None, :]
    real = mask[None, :, :, None] if value.shape[2] == mask.shape[1] else np.True_
    return SubgraphAudit(name, value, bound, **_against_recorded(value, bound, recorded, real), **rest)


def _audit_logits(shown: SubgraphAudit, inputs: Trace, claimed: Trace, arithmetic: Precision) -> SubgraphAudit:
    """Judge the mean over time of what the output shows, in whatever order it was summed."""
    steps = len(shown.values)
    reach = np.abs(shown.values, dtype=np.float64) + shown.bounds
    bound = (shown.bounds + 2 * arithmetic.gamma(steps + 1) * reach).mean(0, keepdims=True) * EVALUATION_SLACK
    recorded = claimed.logits[None] if claimed.logits.shape[-1] else None
    value = shown.values.mean(0, dtype=np.float64, keepdims=True)
    return _audit_output(shown.name, value, bound, recorded, inputs.mask, of_logits=True)


def _against_recorded(
    value: np.ndarray, bound: np.ndarray, recorded: np.ndarray | None, real: np.ndarray | np.bool_
) -> dict[str, Any]:
    """Return where recorded values lie outside their bound, and how much of it they use."""
    if recorded is None:
        return {}
    distance = np.abs(recorded.astype(np.float64) - value)
    outside = real & ~(distance <= bound)  # what is not a number is outside
    used = np.divide(distance, bound, out=np.zeros_like(bound), where=real & (bound > 0) & np.isfinite(bound))
    return {"outside": outside, "tightness": float(np.nan_to_num(used, nan=np.inf).max(initial=0))}
