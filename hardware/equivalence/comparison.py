"""Are two runs the same? Counts every spike that differs and names the first, with both membrane potentials.

"The same" means that every spike is equal and, up to the first node where one is not, every membrane potential within
rounding, so that a changed weight is found even where it flips no spike. Integer states are the same or not. In
floating point how much rounding is depends on precision (`POTENTIAL_TOLERANCE`, `FLOAT32_TOLERANCE`); these two serve
where there are only traces, and `hardware.equivalence.rounding` derives what a graph allows. In float32 spikes may flip
near a threshold and the difference grows with depth; they are counted and the answer is no. What is not a number is
never the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from hardware.errors import TraceMismatchError
from hardware.traces.trace import Trace

POTENTIAL_TOLERANCE = 1e-9
"""Largest relative difference between two float64 runs that is rounding.

Summing K products in another order moves a sum by at most K 2^-53 of the sum of their magnitudes: below 1e-12 for the
3,072 inputs of SpikeBERT-base, and layer norm and T steps of decay multiply that by less than a thousand.
"""
LOGIT_TOLERANCE = 1e-9
FLOAT32_TOLERANCE = 1e-3
"""Largest relative difference between two float32 runs that is rounding, of potentials and logits.

Up to the first flipped spike both runs compute from the same spikes, so that only the sums of one node differ: by
K 2^-24, below 2e-4 for the 3,072 inputs of SpikeBERT-base.
"""
NODE_OF_LOGITS = "output"

Thresholds = tuple[np.ndarray | None, np.ndarray | None]
"""``(D,)`` in each run; None in the second where it counts in another unit than the first."""


@dataclass(frozen=True)
class Divergence:
    """The first place where two runs differ: first in topological order, then by step, sample, token and feature.

    Attributes
    ----------
    quantity : str
        ``"spike"``, or ``"membrane_potential"`` or ``"logits"`` where no spike of the node differs.
    node : str
    time_step, sample, token, feature : int or None
        None where the quantity has no such axis.
    value_a, value_b : float
        The two spikes, potentials or logits.
    membrane_potential_a, membrane_potential_b : float or None
        U as it was tested against the threshold, where recorded.
    threshold : float or None
        Of the first run, where it is known; of the second, in the same unit, where only that says it.
    distance : float or None
        Distance of the nearer of the two potentials from the threshold; of the first run's where the second counts in
        another unit.
    token_text : str or None
        The token as the tokenizer writes it, where a caller knows.
    """

    quantity: str
    node: str
    time_step: int | None
    sample: int
    token: int | None
    feature: int
    value_a: float
    value_b: float
    membrane_potential_a: float | None = None
    membrane_potential_b: float | None = None
    threshold: float | None = None
    distance: float | None = None
    token_text: str | None = None

    def __str__(self) -> str:
        """Say it in one sentence."""
        axes = {"step": self.time_step, "sample": self.sample, "token": self.token, "feature": self.feature}
        places = {axis: f"{axis} {index}" for axis, index in axes.items() if index is not None}
        if self.token_text is not None and "token" in places:
            places["token"] += f" “{self.token_text}”"
        where = ", ".join(places.values())
        text = f"{self.node}, {where}: {self.quantity.replace('_', ' ')} {self.value_a!r} against {self.value_b!r}"
        if self.quantity == "spike" and self.membrane_potential_a is not None and self.membrane_potential_b is not None:
            text += f", membrane potential {self.membrane_potential_a!r} against {self.membrane_potential_b!r}"
        text = text if self.threshold is None else f"{text}, threshold {self.threshold!r}"
        return text if self.distance is None else f"{text}, nearest {self.distance:.2g} from it"


@dataclass(frozen=True)
class NodeComparison:
    """Two runs at one spiking node, real tokens only.

    Attributes
    ----------
    compared, different : int
        Spikes.
    rate_a, rate_b : float
        Firing rates.
    margin : float or None
        Smallest distance of a potential from its threshold in either run: how close equality was to luck. In the first
        run alone where the second counts in another unit.
    potential_difference : float or None
        Largest difference between the potentials of the two runs.
    different_by_step : list of int
        Differing spikes at each time step.
    states_different : int or None
        Potentials that are not the same number in both.
    """

    node: str
    compared: int
    different: int
    rate_a: float
    rate_b: float
    margin: float | None = None
    potential_difference: float | None = None
    different_by_step: list[int] = field(default_factory=list)
    states_different: int | None = None

    def rate(self, run: str) -> float:
        """Return the firing rate in run ``"a"`` or ``"b"``."""
        return self.rate_a if run == "a" else self.rate_b

    @property
    def agreement(self) -> float:
        """Share of spikes that are equal."""
        return 1 - self.different / max(1, self.compared)

    @property
    def agreement_by_step(self) -> list[float]:
        """The same at each time step; every step holds as many spikes."""
        at_a_step = max(1, self.compared // max(1, len(self.different_by_step)))
        return [1 - different / at_a_step for different in self.different_by_step]


@dataclass(frozen=True)
class Comparison:
    """The answer of `compare`.

    Attributes
    ----------
    equal : bool
        No spike differs, and potentials and logits agree: within rounding where both runs say a float precision,
        wholly where both are integer. Where a run says no precision, or one is integer, spikes alone decide.
    spikes_compared, spikes_different : int
    states_compared, states_different : int
        Membrane potentials that both traces hold, and how many of them are not the same number; 0 must differ between
        integer runs.
    first_divergence : Divergence or None
    per_node : list of NodeComparison
        In topological order.
    logit_difference : float
        Largest difference between logits.
    samples, tokens : int
        Sentences and real tokens compared.
    predictions_different : int
        Sentences (tokens, for a graph that keeps them) whose largest logit is another one.
    """

    equal: bool
    spikes_compared: int
    spikes_different: int
    first_divergence: Divergence | None
    per_node: list[NodeComparison] = field(default_factory=list)
    logit_difference: float = 0.0
    samples: int = 0
    tokens: int = 0
    states_compared: int = 0
    states_different: int = 0
    predictions_different: int = 0

    @property
    def silent_nodes(self) -> dict[str, list[str]]:
        """Nodes where nothing fired, in run ``"a"`` and in run ``"b"``."""
        return {run: [node.node for node in self.per_node if node.rate(run) == 0] for run in "ab"}

    @property
    def saturated_nodes(self) -> dict[str, list[str]]:
        """Nodes where everything always fired, likewise."""
        return {run: [node.node for node in self.per_node if node.rate(run) == 1] for run in "ab"}

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as JSON values; the keys are promised to users."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Comparison:
        """Return what `to_dict` was made from."""
        first = values["first_divergence"]
        nodes = [NodeComparison(**node) for node in values["per_node"]]
        return cls(**{**values, "first_divergence": first and Divergence(**first), "per_node": nodes})


def compare(trace_a: Trace, trace_b: Trace) -> Comparison:
    """Compare two traces of the same inputs.

    Parameters
    ----------
    trace_a, trace_b : Trace
        Nodes may stand in any order; `trace_a` gives the topological one. Logits are compared where both have any.

    Raises
    ------
    TraceMismatchError
        They have other nodes, shapes, masks or token ids.
    """
    _check_fit(trace_a, trace_b)
    potential_tolerance, logit_tolerance = _tolerances(trace_a, trace_b)
    mask = trace_a.mask
    per_node: list[NodeComparison] = []
    first: Divergence | None = None
    for name, spikes_a in trace_a.spikes.items():
        spikes_b = trace_b.spikes[name]
        differs = spikes_a != spikes_b
        potential_a, potential_b = trace_a.membrane_potentials.get(name), trace_b.membrane_potentials.get(name)
        thresholds = _thresholds(name, trace_a, trace_b)
        moved = None
        if potential_a is not None and potential_b is not None and same_unit(trace_a, trace_b):
            moved = np.where(mask[None, :, :, None], _distance(potential_a, potential_b), 0)
        if first is None:
            if differs.any():
                first = _first_spike(name, differs, trace_a, trace_b, thresholds)
            elif moved is not None and potential_a is not None and potential_b is not None:
                too_far = ~(moved <= potential_tolerance * _scale(potential_a[:, mask]))
                if too_far.any():
                    first = _first_potential(name, too_far, potential_a, potential_b, thresholds)
        count = spikes_a.shape[0] * trace_a.real_tokens * spikes_a.shape[-1]
        per_node.append(
            NodeComparison(
                node=name,
                compared=count,
                different=int(np.count_nonzero(differs)),
                rate_a=trace_a.firing_rate(name),
                rate_b=trace_b.firing_rate(name),
                margin=_margin((potential_a, potential_b), thresholds, mask),
                potential_difference=None if moved is None else float(moved.max()),
                different_by_step=np.count_nonzero(differs, axis=(1, 2, 3)).tolist(),
                states_different=None if moved is None else int(np.count_nonzero(moved)),
            )
        )
    without_logits = 0 in (trace_a.logits.shape[-1], trace_b.logits.shape[-1])
    logit_difference = np.zeros((0, 0)) if without_logits else _distance(trace_a.logits, trace_b.logits)
    if logit_difference.ndim == 3:  # a graph that keeps its tokens shows something at padding too
        logit_difference = np.where(mask[..., None], logit_difference, 0)
    if first is None:
        too_far = ~(logit_difference <= logit_tolerance * _scale(trace_a.logits))
        if too_far.any():
            first = _first_logit(too_far, trace_a, trace_b)
    different = sum(node.different for node in per_node)
    return Comparison(
        equal=different == 0 and first is None,
        spikes_compared=sum(node.compared for node in per_node),
        spikes_different=different,
        first_divergence=first,
        per_node=per_node,
        logit_difference=float(logit_difference.max(initial=0)),
        samples=mask.shape[0],
        tokens=int(mask.sum()),
        states_compared=sum(node.compared for node in per_node if node.states_different is not None),
        states_different=sum(node.states_different or 0 for node in per_node),
        predictions_different=0 if without_logits else _predictions_different(trace_a, trace_b),
    )


def merge_comparisons(parts: Iterable[Comparison]) -> Comparison:
    """Join the comparisons of consecutive batches of one data set into one.

    Samples are counted on; the first divergence is the first in topological order over all batches, then by step.

    Raises
    ------
    TraceMismatchError
        There is nothing to join.
    """
    parts = list(parts)
    if not parts:
        raise TraceMismatchError("nothing was compared: there are no batches")
    order = {node.node: index for index, node in enumerate(parts[0].per_node)}
    for part in parts:
        if [node.node for node in part.per_node] != list(order):
            raise TraceMismatchError("the batches were not run through the same graph: their nodes differ")
    first: Divergence | None = None
    samples = 0
    for part in parts:
        found = part.first_divergence
        if found is not None:
            shifted = Divergence(**{**asdict(found), "sample": found.sample + samples})
            if first is None or _rank(shifted, order) < _rank(first, order):
                first = shifted
        samples += part.samples
    return Comparison(
        equal=all(part.equal for part in parts),
        spikes_compared=sum(part.spikes_compared for part in parts),
        spikes_different=sum(part.spikes_different for part in parts),
        first_divergence=first,
        per_node=[_merge_nodes([part.per_node[index] for part in parts]) for index in range(len(order))],
        logit_difference=max(part.logit_difference for part in parts),
        samples=samples,
        tokens=sum(part.tokens for part in parts),
        states_compared=sum(part.states_compared for part in parts),
        states_different=sum(part.states_different for part in parts),
        predictions_different=sum(part.predictions_different for part in parts),
    )


def _rank(divergence: Divergence, order: dict[str, int]) -> tuple[int, bool, int]:
    return order.get(divergence.node, len(order)), divergence.quantity != "spike", divergence.time_step or 0


def _merge_nodes(nodes: list[NodeComparison]) -> NodeComparison:
    compared = sum(node.compared for node in nodes)

    def mean_rate(rates: Iterable[float]) -> float:
        return sum(rate * node.compared for rate, node in zip(rates, nodes, strict=True)) / max(1, compared)

    margins = [node.margin for node in nodes if node.margin is not None]
    moved = [node.potential_difference for node in nodes if node.potential_difference is not None]
    states = [node.states_different for node in nodes if node.states_different is not None]
    return NodeComparison(
        node=nodes[0].node,
        compared=compared,
        different=sum(node.different for node in nodes),
        rate_a=mean_rate(node.rate_a for node in nodes),
        rate_b=mean_rate(node.rate_b for node in nodes),
        margin=min(margins) if margins else None,
        potential_difference=max(moved) if moved else None,
        different_by_step=[sum(steps) for steps in zip(*(node.different_by_step for node in nodes), strict=True)],
        states_different=sum(states) if states else None,
    )


def _check_fit(trace_a: Trace, trace_b: Trace) -> None:
    for name in trace_a.spikes:
        if name not in trace_b.spikes:
            raise TraceMismatchError(f"{name}: is in the first trace, but not in the second")
    for name, spikes in trace_b.spikes.items():
        if name not in trace_a.spikes:
            raise TraceMismatchError(f"{name}: is in the second trace, but not in the first")
        if spikes.shape != trace_a.spikes[name].shape:
            raise TraceMismatchError(
                f"{name}: has shape {trace_a.spikes[name].shape} in the first trace and {spikes.shape} in the second"
            )
    if trace_a.mask.shape != trace_b.mask.shape or not np.array_equal(trace_a.mask, trace_b.mask):
        raise TraceMismatchError("mask: the traces do not agree on which tokens are padding")
    if 0 not in (trace_a.logits.shape[-1], trace_b.logits.shape[-1]) and trace_a.logits.shape != trace_b.logits.shape:
        raise TraceMismatchError(
            f"logits: have shape {trace_a.logits.shape} in the first trace and {trace_b.logits.shape} in the second"
        )
    ids_a, ids_b = trace_a.input_ids, trace_b.input_ids
    if ids_a is not None and ids_b is not None and not np.array_equal(ids_a * trace_a.mask, ids_b * trace_b.mask):
        raise TraceMismatchError("input_ids: the traces were made from different token ids")
    if not trace_a.mask.any():
        raise TraceMismatchError("mask: the traces hold no token, so there is nothing to compare")
    for which, trace in (("first", trace_a), ("second", trace_b)):
        for name, spikes in trace.spikes.items():
            potential, threshold = trace.membrane_potentials.get(name), trace.thresholds.get(name)
            if potential is not None and potential.shape != spikes.shape:
                raise TraceMismatchError(
                    f"{name}: the {which} trace has membrane potentials of shape {potential.shape}, spikes of "
                    f"{spikes.shape}"
                )
            if threshold is not None and threshold.shape != spikes.shape[-1:]:
                raise TraceMismatchError(
                    f"{name}: the {which} trace has thresholds of shape {threshold.shape}, spikes of "
                    f"{spikes.shape[-1]} features"
                )


def _tolerances(trace_a: Trace, trace_b: Trace) -> tuple[float, float]:
    """Return the relative tolerances of potentials and logits; without limit where they are not comparable."""
    if trace_a.precision == trace_b.precision == "float64":
        return POTENTIAL_TOLERANCE, LOGIT_TOLERANCE
    if {trace_a.precision, trace_b.precision} <= {"float64", "float32"}:
        return FLOAT32_TOLERANCE, FLOAT32_TOLERANCE
    if trace_a.precision == trace_b.precision == "integer":
        return 0.0, 0.0
    return np.inf, np.inf


def _predictions_different(trace_a: Trace, trace_b: Trace) -> int:
    other = trace_a.logits.argmax(-1) != trace_b.logits.argmax(-1)
    return int(np.count_nonzero(other & trace_a.mask if other.ndim == 2 else other))


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return how far apart two arrays are, in float64; equal infinities are, as everything infinite, not a number."""
    with np.errstate(invalid="ignore"):
        return np.abs(a.astype(np.float64) - b)


def _scale(values: np.ndarray) -> float:
    """Return the largest finite magnitude, at least 1: what rounding is relative to."""
    finite = np.abs(values[np.isfinite(values)], dtype=np.float64)
    return max(1.0, float(finite.max())) if finite.size else 1.0


def _thresholds(name: str, trace_a: Trace, trace_b: Trace) -> Thresholds:
    """Return the threshold in each run; one that only the other knows is taken from there, in the same unit."""
    first, second = (trace.thresholds.get(name) for trace in (trace_a, trace_b))
    if not same_unit(trace_a, trace_b):
        return first, None
    return second if first is None else first, first if second is None else second


def same_unit(trace_a: Trace, trace_b: Trace) -> bool:
    """Return whether potentials can be compared: whole numbers have a unit of their own."""
    return (trace_a.precision == "integer") == (trace_b.precision == "integer")


def _margin(
    potentials: tuple[np.ndarray | None, np.ndarray | None], thresholds: Thresholds, mask: np.ndarray
) -> float | None:
    distances = [
        float(np.abs(potential[:, mask].astype(np.float64) - threshold).min())
        for potential, threshold in zip(potentials, thresholds, strict=True)
        if potential is not None and threshold is not None
    ]
    return min(distances) if distances else None


def _first_index(where: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(where)), where.shape))


def _first_spike(name: str, differs: np.ndarray, trace_a: Trace, trace_b: Trace, thresholds: Thresholds) -> Divergence:
    index = _first_index(differs)
    potentials = [
        None if name not in trace.membrane_potentials else float(trace.membrane_potentials[name][index])
        for trace in (trace_a, trace_b)
    ]
    return Divergence(
        "spike",
        name,
        time_step=index[0],
        sample=index[1],
        token=index[2],
        feature=index[3],
        value_a=float(trace_a.spikes[name][index]),
        value_b=float(trace_b.spikes[name][index]),
        membrane_potential_a=potentials[0],
        membrane_potential_b=potentials[1],
        **_threshold_at(thresholds, index[-1], potentials),
    )


def _first_potential(
    name: str, differs: np.ndarray, potential_a: np.ndarray, potential_b: np.ndarray, thresholds: Thresholds
) -> Divergence:
    index = _first_index(differs)
    value_a, value_b = float(potential_a[index]), float(potential_b[index])
    return Divergence(
        "membrane_potential",
        name,
        time_step=index[0],
        sample=index[1],
        token=index[2],
        feature=index[3],
        value_a=value_a,
        value_b=value_b,
        membrane_potential_a=value_a,
        membrane_potential_b=value_b,
        **_threshold_at(thresholds, index[-1], [value_a, value_b]),
    )


def _threshold_at(thresholds: Thresholds, feature: int, potentials: Iterable[float | None]) -> dict[str, Any]:
    at = [None if threshold is None else float(threshold[feature]) for threshold in thresholds]
    distances = [abs(u - t) for u, t in zip(potentials, at, strict=True) if u is not None and t is not None]
    return {"threshold": at[0], "distance": min(distances) if distances else None}


def _first_logit(differs: np.ndarray, trace_a: Trace, trace_b: Trace) -> Divergence:
    index = _first_index(differs)
    token = index[1] if len(index) == 3 else None
    return Divergence(
        "logits",
        NODE_OF_LOGITS,
        None,
        index[0],
        token,
        index[-1],
        value_a=float(trace_a.logits[index]),
        value_b=float(trace_b.logits[index]),
    )
