"""Is every difference between two traces rounding, or the consequence of one that is?

Both traces are audited (`hardware.equivalence.audit`), each on its own inputs. A spike that differs is then one of:

rounding     the two runs disagree on a potential that lies, in both, within its bound of the threshold
propagated   what enters the neuron differs already; each run does with it what the graph says
unexplained  one of the runs does what no rounding gives, and `Explanation` says which
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from export.network import Network
from hardware.equivalence.audit import SubgraphAudit, audit
from hardware.equivalence.comparison import NODE_OF_LOGITS
from hardware.traces.trace import Trace


@dataclass(frozen=True)
class NodeExplanation:
    """Why two runs differ at one node.

    Attributes
    ----------
    node : str
    different, rounding, propagated, unexplained : int
        Spikes; the last three add up to the first.
    impossible_a, impossible_b : int
        Spikes of each run that no rounding gives, whether or not the other run has them too.
    outside_a, outside_b : int
        Recorded potentials, or outputs of the graph and logits, further from what the graph makes than the bound.
    largest_bound : float
        How far two implementations may lie apart here, at most over neurons and steps.
    tightness_a, tightness_b : float or None
        Largest share of its bound that a recorded value used; None where none were recorded.
    unbounded : int
        Values, of both runs, that no bound holds: a layer norm of a token whose features are nearly all the same.
    """

    node: str
    different: int
    rounding: int
    propagated: int
    unexplained: int
    impossible_a: int
    impossible_b: int
    outside_a: int
    outside_b: int
    largest_bound: float
    tightness_a: float | None = None
    tightness_b: float | None = None
    unbounded: int = 0


@dataclass(frozen=True)
class Unexplained:
    """The first thing in a run that no rounding gives.

    Attributes
    ----------
    run : str
        ``"a"`` or ``"b"``.
    quantity : str
        ``"spike"``, ``"membrane_potential"``, ``"output"`` or ``"logits"``.
    node : str
    time_step, sample, token, feature : int
        Token is 0 at an output that is one for the whole sentence, the step 0 of logits, which are means over all.
    found : float
        The run's spike or value.
    expected : float
        The potential, or value, that the graph gives on the run's own inputs.
    bound : float
        How far the run's may lie from it.
    threshold : float or None
    """

    run: str
    quantity: str
    node: str
    time_step: int
    sample: int
    token: int
    feature: int
    found: float
    expected: float
    bound: float
    threshold: float | None = None

    def __str__(self) -> str:
        """Say it in one sentence."""
        where = f"{self.node}, step {self.time_step}, sample {self.sample}, token {self.token}, feature {self.feature}"
        if self.quantity == "spike":
            fired = "fired" if self.found else "was silent"
            return (
                f"{where}: {fired} where the graph gives a membrane potential of {self.expected!r}, threshold "
                f"{self.threshold!r}, and rounding explains {self.bound:.2g}"
            )
        what = self.quantity.replace("_", " ")
        return f"{where}: {what} {self.found!r} where the graph gives {self.expected!r} within {self.bound:.2g}"


@dataclass(frozen=True)
class Explanation:
    """The answer of `explain`.

    Attributes
    ----------
    explained : bool
        Nothing in either run is beyond rounding: no impossible spike, no recorded value outside its bound.
    per_node : list of NodeExplanation
        In topological order, the output last.
    first_unexplained : Unexplained or None
        First in topological order, then by run, step, sample, token and feature; spikes before potentials.
    """

    explained: bool
    per_node: list[NodeExplanation] = field(default_factory=list)
    first_unexplained: Unexplained | None = None

    @property
    def different(self) -> int:
        """Spikes that differ."""
        return sum(node.different for node in self.per_node)

    @property
    def rounding(self) -> int:
        """Of these, spikes whose potential lies within its bound of the threshold in both runs."""
        return sum(node.rounding for node in self.per_node)

    @property
    def propagated(self) -> int:
        """Of these, spikes that follow from inputs that differ."""
        return sum(node.propagated for node in self.per_node)

    @property
    def unexplained(self) -> int:
        """Of these, spikes that no rounding gives in one of the runs."""
        return sum(node.unexplained for node in self.per_node)

    @property
    def at_fault(self) -> list[str]:
        """The runs that do what the graph does not say: ``"a"``, ``"b"``, both or none."""
        wrong_a = any(node.impossible_a or node.outside_a for node in self.per_node)
        wrong_b = any(node.impossible_b or node.outside_b for node in self.per_node)
        return [run for run, wrong in (("a", wrong_a), ("b", wrong_b)) if wrong]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        sums = {name: getattr(self, name) for name in ("different", "rounding", "propagated", "unexplained")}
        return {**sums, "at_fault": self.at_fault, **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Explanation:
        """Return what `to_dict` was made from."""
        first = values["first_unexplained"]
        return cls(
            values["explained"],
            [NodeExplanation(**node) for node in values["per_node"]],
            first and Unexplained(**first),
        )


def explain(network: Network, trace_a: Trace, trace_b: Trace, inputs_b: Trace | None = None) -> Explanation:
    """Audit two traces of the same sentences, and sort their differences.

    Parameters
    ----------
    network : Network
        What both are meant to run.
    trace_a : Trace
        Of every node.
    trace_b : Trace
        Nodes it lacks take their spikes from `trace_a`, and are not judged.
    inputs_b : Trace, optional
        What entered the subgraphs in the second run, where that is not its own spikes: `trace_a`, when it was run node
        by node on the reference's inputs.

    Raises
    ------
    TraceMismatchError, RunnerError, UnsupportedOperatorError
        As `audit`.
    """
    if inputs_b is None:
        inputs_b = replace(trace_b, spikes={**trace_a.spikes, **trace_b.spikes}, input_ids=trace_a.input_ids)
    audits_a, audits_b = audit(network, trace_a), audit(network, inputs_b, trace_b)
    per_node: list[NodeExplanation] = []
    first: Unexplained | None = None
    found_b: SubgraphAudit | None = next(audits_b, None)
    for found_a in audits_a:
        if found_b is None or found_b.name != found_a.name:
            continue
        explained = _explain_subgraph(found_a, found_b, trace_a, trace_b)
        if found_a.of_logits:  # they belong to the output
            explained = _join(per_node.pop(), explained)
        per_node.append(explained)
        if first is None:
            for run, found, trace in (("a", found_a, trace_a), ("b", found_b, trace_b)):
                first = first or _first_unexplained(run, found, trace, network)
        found_b = next(audits_b, None)
    return Explanation(first is None, per_node, first)


def merge_explanations(parts: Iterable[tuple[Explanation, int]]) -> Explanation:
    """Join the explanations of batches; each comes with the number of its first sample in the whole."""
    per_node: dict[str, NodeExplanation] = {}
    first: Unexplained | None = None
    rank: dict[str, int] = {}
    for part, offset in parts:
        for node in part.per_node:
            rank.setdefault(node.node, len(rank))
            known = per_node.get(node.node)
            per_node[node.node] = node if known is None else _join(known, node)
        candidate = part.first_unexplained
        if candidate is not None and (first is None or rank[candidate.node] < rank[first.node]):
            first = replace(candidate, sample=candidate.sample + offset)
    return Explanation(first is None, list(per_node.values()), first)


def _join(a: NodeExplanation, b: NodeExplanation) -> NodeExplanation:
    def larger(x: float | None, y: float | None) -> float | None:
        known = [value for value in (x, y) if value is not None]
        return max(known) if known else None

    counts = ("different", "rounding", "propagated", "unexplained")
    counts += ("impossible_a", "impossible_b", "outside_a", "outside_b", "unbounded")  # type: ignore[assignment]
    return NodeExplanation(
        a.node,
        **{name: getattr(a, name) + getattr(b, name) for name in counts},
        largest_bound=max(a.largest_bound, b.largest_bound),
        tightness_a=larger(a.tightness_a, b.tightness_a),
        tightness_b=larger(a.tightness_b, b.tightness_b),
    )


def _explain_subgraph(a: SubgraphAudit, b: SubgraphAudit, trace_a: Trace, trace_b: Trace) -> NodeExplanation:
    rounding = propagated = unexplained = different = 0
    if a.impossible is not None and b.impossible is not None and a.near is not None and b.near is not None:
        differs = trace_a.spikes[a.name] != trace_b.spikes[a.name]
        different = int(np.count_nonzero(differs))
        wrong = differs & (a.impossible | b.impossible)
        near = differs & a.near & b.near & ~wrong
        unexplained, rounding = int(np.count_nonzero(wrong)), int(np.count_nonzero(near))
        propagated = different - unexplained - rounding
    finite = np.concatenate([bounds[np.isfinite(bounds)] for bounds in (a.bounds, b.bounds)])
    return NodeExplanation(
        node=a.name,
        different=different,
        rounding=rounding,
        propagated=propagated,
        unexplained=unexplained,
        impossible_a=_count(a.impossible),
        impossible_b=_count(b.impossible),
        outside_a=_count(a.outside),
        outside_b=_count(b.outside),
        largest_bound=float(finite.max(initial=0)),
        tightness_a=a.tightness,
        tightness_b=b.tightness,
        unbounded=_unbounded(a, trace_a) + _unbounded(b, trace_b),
    )


def _unbounded(found: SubgraphAudit, trace: Trace) -> int:
    infinite = np.isinf(found.bounds)
    if infinite.shape[2] == trace.mask.shape[1]:
        infinite = infinite & trace.mask[None, :, :, None]
    return int(np.count_nonzero(infinite))


def _count(where: np.ndarray | None) -> int:
    return 0 if where is None else int(np.count_nonzero(where))


def _first_unexplained(run: str, found: SubgraphAudit, trace: Trace, network: Network) -> Unexplained | None:
    is_output = found.impossible is None
    for quantity, where in (("spike", found.impossible), ("membrane_potential", found.outside)):
        if where is None or not where.any():
            continue
        index = tuple(int(i) for i in np.unravel_index(int(np.argmax(where)), where.shape))
        threshold = None
        if not is_output:
            threshold = float(network.by_name[found.name].operator.threshold[index[-1]])  # type: ignore[attr-defined]
        if is_output:
            recorded = trace.logits[None] if found.of_logits else trace.outputs
            assert recorded is not None
            recorded = recorded if recorded.ndim == 4 else recorded[..., None, :]
            quantity, value = "logits" if found.of_logits else "output", float(recorded[index])
        elif quantity == "spike":
            value = float(trace.spikes[found.name][index])
        else:
            value = float(trace.membrane_potentials[found.name][index])
        return Unexplained(
            run,
            quantity,
            NODE_OF_LOGITS if is_output else found.name,
            time_step=index[0],
            sample=index[1],
            token=index[2],
            feature=index[3],
            found=value,
            expected=float(found.values[index]),
            bound=float(found.bounds[index]),
            threshold=threshold,
        )
    return None
