"""Is every spike of a trace what the graph makes of the trace's own inputs, but for rounding?

Each part of the graph (`hardware.equivalence.parts`) is computed again on what entered it in the run, and with the
run's own spikes behind every reset, in the precision of the run. Along goes a bound on how far another implementation
may lie from this one (`hardware.equivalence.rounding`). A spike is *possible* if it is the one we compute, or if our
potential lies within that bound of the threshold. So a trace is judged without its first difference spreading, and
without running anything again: a recorded trace can be audited, or one from a chip.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from export.network import Network, Node
from export.operators import Affine, Heaviside, LeakyIntegrateAndFire
from hardware.equivalence.parts import Part, parts_with_inputs
from hardware.equivalence.rounding import EVALUATION_SLACK, Precision, bound_gather, bound_node, bound_potential
from hardware.errors import TraceMismatchError
from hardware.runners.runner import float_type
from hardware.trace import Trace


@dataclass(frozen=True, eq=False)
class PartAudit:
    """One part computed again on the inputs of a run.

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
) -> Iterator[PartAudit]:
    """Yield every part of a network computed again, in topological order, the logits behind the output.

    Parameters
    ----------
    network : Network
    inputs : Trace
        Whose spikes enter the parts.
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
    float_type(precision)  # refused before the first part
    for part, entering in parts_with_inputs(inputs, network):
        if part.spikes and part.name not in claimed.spikes:
            continue
        if network.input_name in part.sources and network.token_encoding is not None and inputs.input_ids is None:
            continue
        found = audit_part(network, part, entering, inputs, claimed, precision)
        yield found
        if not part.spikes:
            yield _audit_logits(found, inputs, claimed, Precision.of(float_type(precision)))


def audit_part(
    network: Network,
    part: Part,
    entering: dict[str, np.ndarray],
    inputs: Trace,
    claimed: Trace,
    precision: str,
) -> PartAudit:
    """Compute one part again; see `audit`. What enters is ``(T, B, N, D)`` by source."""
    arithmetic = Precision.of(float_type(precision))
    steps = next(iter(inputs.spikes.values())).shape[0]
    spikes = claimed.spikes[part.name] if part.spikes else None
    execution = PartExecution(network, part, inputs, arithmetic)
    values, bounds = [], []
    for step in range(steps):
        entered = {name: value[step] for name, value in entering.items()}
        value, bound = execution.step(entered, None if spikes is None else spikes[step])
        values.append(value)
        bounds.append(bound)
    value, bound = np.stack(values), np.stack(bounds) * EVALUATION_SLACK
    if not part.spikes:
        return _audit_output(part.name, value, bound, claimed.outputs, inputs.mask)
    operator = part.nodes[-1].operator
    assert isinstance(operator, LeakyIntegrateAndFire | Heaviside)
    real = inputs.mask[None, :, :, None]
    threshold = operator.threshold.astype(arithmetic.dtype)
    fires = value >= threshold if operator.fire_on_equal else value > threshold
    near = real & (bound > 0) & (np.abs(value.astype(np.float64) - threshold) <= bound)
    impossible = real & (fires != (spikes != 0)) & ~near
    recorded = claimed.membrane_potentials.get(part.name)
    return PartAudit(part.name, value, bound, impossible, near, **_against_recorded(value, bound, recorded, real))


def _audit_output(
    name: str, value: np.ndarray, bound: np.ndarray, recorded: np.ndarray | None, mask: np.ndarray, **rest: Any
) -> PartAudit:
    if recorded is not None and recorded.ndim == value.ndim - 1:
        recorded = recorded[..., None, :]
    real = mask[None, :, :, None] if value.shape[2] == mask.shape[1] else np.True_
    return PartAudit(name, value, bound, **_against_recorded(value, bound, recorded, real), **rest)


def _audit_logits(shown: PartAudit, inputs: Trace, claimed: Trace, arithmetic: Precision) -> PartAudit:
    """Judge the mean over time of what the output shows, in whatever order it was summed."""
    steps = len(shown.values)
    reach = np.abs(shown.values, dtype=np.float64) + shown.bounds
    bound = (shown.bounds + 2 * arithmetic.gamma(steps + 1) * reach).mean(0, keepdims=True) * EVALUATION_SLACK
    recorded = claimed.logits[None] if claimed.logits.shape[-1] else None
    value = shown.values.mean(0, dtype=np.float64, keepdims=True)
    return _audit_output(shown.name, value, bound, recorded, inputs.mask, of_logits=True)


class PartExecution:
    """Computes one part step by step, in a precision, with the bound of each value.

    Parameters
    ----------
    network : Network
    part : Part
    trace : Trace
        Gives mask and token ids.
    arithmetic : Precision
    """

    def __init__(self, network: Network, part: Part, trace: Trace, arithmetic: Precision) -> None:
        self.arithmetic = arithmetic
        self.nodes = [Node(n.name, n.operator.cast(arithmetic.dtype), n.sources) for n in part.nodes]
        self.token_mask = None if trace.mask.all() else trace.mask[..., None]
        self.hot = None
        if network.token_encoding is not None and trace.input_ids is not None:
            self.hot = network.token_encoding.hot_inputs(trace.input_ids)
        self.input_name = network.input_name
        self._states: dict[str, Any] = {}
        self._distances: dict[str, np.ndarray] = {}

    def step(self, entering: dict[str, np.ndarray], fired: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Return the value behind one step and its bound.

        Parameters
        ----------
        entering : dict of str to ndarray
            ``(B, N, D)`` by source.
        fired : ndarray or None
            What the part's neurons fired in this step; the reset goes by it.
        """
        values = {name: value.astype(self.arithmetic.dtype) for name, value in entering.items()}
        distances = {name: np.zeros(value.shape) for name, value in values.items()}
        for node in self.nodes:
            operator = node.operator
            if isinstance(operator, LeakyIntegrateAndFire):
                (source,) = node.sources
                return self._neurons(node.name, operator, values[source], distances[source], fired)
            if isinstance(operator, Affine) and node.sources[0] not in values and self.hot is not None:
                values[node.name] = operator.gather(self.hot)
                distances[node.name] = bound_gather(operator, self.hot, self.arithmetic)
                continue
            inputs = [values[source] for source in node.sources]
            from_inputs = [distances[source] for source in node.sources]
            distances[node.name] = bound_node(node, inputs, from_inputs, self.token_mask, self.arithmetic)
            if len(inputs) == 2:
                values[node.name] = inputs[0] + inputs[1]
            elif isinstance(operator, Heaviside):
                values[node.name] = inputs[0]  # what is tested
            else:
                values[node.name] = operator.step(inputs[0], None, self.token_mask)
        last = self.nodes[-1].name
        return values[last], distances[last]

    def _neurons(
        self, name: str, neuron: LeakyIntegrateAndFire, x: np.ndarray, distance: np.ndarray, fired: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        if name not in self._states:
            self._states[name] = neuron.initial_state(x.shape, x.dtype)
            self._distances[name] = np.zeros(x.shape)
        state = self._states[name]
        bound = bound_potential(
            neuron, x, distance, state.membrane_potential, self._distances[name], state.spikes, self.arithmetic
        )
        neuron.step(x, state, self.token_mask)
        tested = state.tested_potential
        assert fired is not None
        state.spikes = fired.astype(x.dtype)
        state.membrane_potential, self._distances[name] = tested, bound
        if neuron.reset == "zero":
            state.membrane_potential = np.where(fired, x.dtype.type(0), tested)
            self._distances[name] = np.where(fired, 0.0, bound)
        return tested, bound


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
