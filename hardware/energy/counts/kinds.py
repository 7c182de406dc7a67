"""What is counted: kinds of operations, the two orders of attention, and a tally of each kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

OPERATION_KINDS: dict[str, str] = {
    "ac_binary": "accumulate of a weight, caused by a spike",
    "ac_graded": "accumulate of a weight times an integer above 1, as one multi-bit operation",
    "ac_graded_additions": "the same as repeated additions: in place of ac_graded, never beside it",
    "mac": "dense multiply-accumulate",
    "addition": "addition of a bias, or into a mean or a pool; centring",
    "special": "square root, reciprocal",
    "attention_and": "AND of two spikes",
    "attention_count": "count of two spikes that coincide: an increment",
    "attention_add": "addition of a whole number, gated by a spike",
    "membrane_update": "update of a membrane potential, or of a synaptic current that is kept",
    "membrane_leak": "multiplication by the leak in such an update",
    "comparison": "comparison with a threshold",
    "reset": "reset of a potential after a spike",
    "spike": "spike sent",
    "residual_addition": "addition of a nonzero value to a running sum",
    "weight_read": "read of a synaptic weight, without any reuse",
    "parameter_read": "read of a bias, or of a weight or bias of a norm",
    "embedding_read": "read of a number of an embedding table",
    "state_read": "read of a membrane potential, a synaptic current that is kept, or a delayed value",
    "state_write": "write of one",
    "activation_read": "read of an analog activation",
    "activation_write": "write of an analog activation",
}
"""What is counted: kind -> what one is."""

STATISTIC_KINDS: dict[str, str] = {
    "input_element": "values at the input of a spike-driven node, zero or not",
    "input_event": "those that are not zero: events that reach the node",
    "input_value": "their sum",
    "dense_mac": "multiply-accumulates if the node were dense: FLOPs(l) of Eq. 18 over all steps",
}
"""What Eq. 18 needs, kept beside the operations: kind -> what one is."""

ATTENTION_ORDERS: dict[str, str] = {
    "qk_first": "(Q K^T) V, the paper's: each query spike meets that feature of every attended token (attention_and); "
    "where the key spikes too an entry of the map counts up (attention_count); each nonzero entry is added where the "
    "value spikes (attention_add)",
    "kv_first": "Q (K^T V), the same result: each key spike meets every value feature of its head and token "
    "(attention_and); where that spikes too an entry of the map counts up (attention_count); each query spike adds the "
    "nonzero entries of its row (attention_add)",
}
"""The two orders of the attention product: name -> what is counted."""

GAMMAS = ("nonzero_fraction", "mean_value")
"""The two readings of γ, the firing rate of Eq. 18, where a layer's input is integers."""

COMPONENTS = {
    "embedding": "embedding",
    "synapses": "affine maps, convolutions (synapses)",
    "attention": "attention products",
    "norms": "layer norms",
    "nonlinearities": "neurons, or softmax, GELU, quantizers",
    "rest": "residual sums, pooling, head",
}
"""Parts of a network that spiking and dense ones share: key -> title."""

Tally = dict[str, int]
"""Kind -> count."""


@dataclass(frozen=True)
class Tallies:
    """Counts at real tokens and at padding, by kind; kinds that did not occur are left out."""

    real: Tally = field(default_factory=dict)
    padding: Tally = field(default_factory=dict)

    def add(self, other: Tallies) -> None:
        """Add another's counts to these, in place."""
        for own, more in ((self.real, other.real), (self.padding, other.padding)):
            for kind, count in more.items():
                if count:
                    own[kind] = own.get(kind, 0) + count


def headline(tally: Mapping[str, int]) -> Tally:
    """Return the three counts everyone asks for.

    ``ac_binary`` are all accumulates one spike causes: of a weight, of one (a coincidence), of an entry of the
    attention map. ``ac_graded`` are those by an integer above 1, ``mac`` what is dense.
    """
    binary = sum(tally.get(kind, 0) for kind in ("ac_binary", "attention_count", "attention_add"))
    return {"ac_binary": binary, "ac_graded": tally.get("ac_graded", 0), "mac": tally.get("mac", 0)}


def sum_tallies(tallies: Iterable[Mapping[str, int]]) -> Tally:
    """Return the sum of each kind, in the order of `OPERATION_KINDS`, without those that are 0."""
    total: Tally = {}
    for tally in tallies:
        for kind, count in tally.items():
            if count:
                total[kind] = total.get(kind, 0) + count
    return {kind: total[kind] for kind in (*OPERATION_KINDS, *STATISTIC_KINDS) if kind in total}
