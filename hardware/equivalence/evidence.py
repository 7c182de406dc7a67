"""What stands around one difference: enough to see on one page what happened, and small enough to keep.

For the neuron where two runs part: its potential in both runs at every step, what the graph makes of each run's own
inputs and how far rounding may move that, a raster of its neighbours, and the inputs that produced it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from export.network import Network
from hardware.equivalence.attribution import Contribution, contributions
from hardware.equivalence.audit import audit_subgraph
from hardware.equivalence.comparison import Divergence, same_unit
from hardware.equivalence.subgraphs import subgraphs_with_inputs
from hardware.traces.trace import Trace

NEIGHBOURS = 12
"""Features shown on either side of the one that differs."""
RANKED_INPUTS = 15


@dataclass(frozen=True)
class NeuronRecording:
    """The neuron in one run.

    Attributes
    ----------
    spikes : list of int
        At each step.
    potentials : list of float or None
        As recorded; None too for the second run where it counts in another unit than the first.
    expected, bounds : list of float, or None
        What the graph makes of this run's inputs and resets, and how far rounding may move it.
    raster : list of list of int
        ``(T, features)``: the neuron and its neighbours.
    """

    spikes: list[int]
    potentials: list[float] | None
    expected: list[float] | None
    bounds: list[float] | None
    raster: list[list[int]]


@dataclass(frozen=True)
class Evidence:
    """What stands around a difference in spikes or potentials.

    Attributes
    ----------
    divergence : Divergence
    side_a, side_b : NeuronRecording
    first_feature : int
        Of the raster.
    cause : str or None
        ``"rounding"``: both spikes lie within rounding of the threshold; ``"propagated"``: what enters differs already;
        ``"a"``, ``"b"`` or ``"both"``: that run does what no rounding gives. None where the graph is not known.
    same_inputs : bool or None
        Whether what enters the neuron's subgraph is the same in both runs up to this step.
    inputs : list of Contribution
        What produced the potential in the first run, largest first.
    inputs_in_all : int
        How many there were before the list was cut.
    tokens : list of str
        The sentence's tokens as text, where known.
    """

    divergence: Divergence
    side_a: NeuronRecording
    side_b: NeuronRecording
    first_feature: int
    cause: str | None = None
    same_inputs: bool | None = None
    inputs: list[Contribution] = field(default_factory=list)
    inputs_in_all: int = 0
    tokens: list[str] = field(default_factory=list)

    def cause_in_words(self, name_a: str, name_b: str) -> str | None:
        """Return why it happened, in one sentence; None where that is not known."""
        return {
            "rounding": "Both spikes lie within rounding of the threshold: either is right.",
            "propagated": "What enters this neuron differs already; both runs do with it what the graph says.",
            "a": f"{name_a} does what no rounding gives; {name_b} does what the graph says.",
            "b": f"{name_b} does what no rounding gives; {name_a} does what the graph says.",
            "both": f"Both {name_a} and {name_b} do what no rounding gives.",
        }.get(self.cause or "")

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)

    @property
    def shows_potentials(self) -> bool:
        """Whether the neuron's potential is known in either run."""
        return any(side.potentials or side.expected for side in (self.side_a, self.side_b))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Evidence:
        """Return what `to_dict` was made from."""
        return cls(
            **{
                **values,
                "divergence": Divergence(**values["divergence"]),
                "side_a": NeuronRecording(**values["side_a"]),
                "side_b": NeuronRecording(**values["side_b"]),
                "inputs": [Contribution(**entry) for entry in values["inputs"]],
            }
        )


def gather_evidence(
    divergence: Divergence, trace_a: Trace, trace_b: Trace, network: Network | None = None
) -> Evidence | None:
    """Gather what stands around a divergence of these two traces; None where it is one of logits.

    Parameters
    ----------
    divergence : Divergence
        Its sample counts within the traces.
    trace_a, trace_b : Trace
    network : Network, optional
        What both are meant to run; without it there are no causes and no inputs.
    """
    if divergence.time_step is None or divergence.token is None:
        return None
    node, step, token, feature = divergence.node, divergence.time_step, divergence.token, divergence.feature
    row = slice(divergence.sample, divergence.sample + 1)
    a, b = (trace.rows(row.start, row.stop) for trace in (trace_a, trace_b))
    width = a.spikes[node].shape[-1]
    first = max(0, min(feature - NEIGHBOURS, width - 2 * NEIGHBOURS - 1))
    expected = [(None, None, None, None), (None, None, None, None)]
    cause, same, inputs = None, None, []
    if network is not None:
        completed = replace(b, spikes={**a.spikes, **b.spikes}, input_ids=a.input_ids)
        expected = [_expected(network, trace, mine, node, token, feature) for trace, mine in ((a, a), (completed, b))]
        same = _same_inputs(expected[0][3], expected[1][3], step)
        cause = _cause(expected, step)
        inputs = contributions(network, a, node, step, token, feature)
    sides = [
        NeuronRecording(
            spikes=trace.spikes[node][:, 0, token, feature].astype(int).tolist(),
            potentials=(
                trace.membrane_potentials[node][:, 0, token, feature].astype(float).tolist()
                if node in trace.membrane_potentials and (trace is a or same_unit(a, b))
                else None
            ),
            expected=series,
            bounds=bounds,
            raster=trace.spikes[node][:, 0, token, first : first + 2 * NEIGHBOURS + 1].astype(int).tolist(),
        )
        for trace, (series, bounds, _, _) in zip((a, b), expected, strict=True)
    ]
    return Evidence(
        divergence,
        side_a=sides[0],
        side_b=sides[1],
        first_feature=first,
        cause=cause,
        same_inputs=same,
        inputs=inputs[:RANKED_INPUTS],
        inputs_in_all=len(inputs),
    )


def _expected(
    network: Network, inputs: Trace, claimed: Trace, node: str, token: int, feature: int
) -> tuple[Any, Any, Any, Any]:
    """Return potentials and bounds at each step, what is wrong at each step, and what entered the subgraph."""
    if claimed.precision not in ("float32", "float64"):
        return None, None, None, None
    for subgraph, entering in subgraphs_with_inputs(inputs, network):
        if subgraph.name == node:
            found = audit_subgraph(network, subgraph, entering, inputs, claimed, claimed.precision)
            at = (slice(None), 0, token, feature)
            wrong = {"impossible": found.impossible[at], "near": found.near[at]}  # type: ignore[index]
            wrong["outside"] = np.zeros(len(wrong["near"]), bool) if found.outside is None else found.outside[at]
            return found.values[at].astype(float).tolist(), found.bounds[at].tolist(), wrong, entering
    return None, None, None, None


def _same_inputs(entering_a: Any, entering_b: Any, step: int) -> bool | None:
    if entering_a is None or entering_b is None:
        return None
    return all(np.array_equal(entering_a[name][: step + 1], entering_b[name][: step + 1]) for name in entering_a)


def _cause(expected: list[tuple[Any, Any, Any, Any]], step: int) -> str | None:
    wrong = [side[2] for side in expected]
    if None in wrong:
        return None
    at_fault = [run for run, w in zip("ab", wrong, strict=True) if w["impossible"][step] or w["outside"][step]]
    if at_fault:
        return "both" if len(at_fault) == 2 else at_fault[0]
    return "rounding" if all(w["near"][step] for w in wrong) else "propagated"
