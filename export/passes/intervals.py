"""Between which whole numbers the values of an integer graph lie, whatever sentence comes: proof, not measurement.

`quantize` chooses scales with it so that no reachable sum wraps around, and the integer runner chooses by it where
float32 is exact. Where nothing is known about an input, nothing is claimed.
"""

from __future__ import annotations

import numpy as np

from export.loihi_numbers import ACTIVATION_MAX
from export.network import Network, Node
from export.operators import Interval, LoihiNeuron
from export.operators.interval import symmetric
from export.operators.operator import FLOAT64_EXACT


def value_intervals(network: Network) -> dict[str, Interval]:
    """Return the interval of every node of an integer network, and of its input, about which anything can be said."""
    intervals: dict[str, Interval] = {}
    if network.token_encoding is None and network.input_limit is not None:
        intervals[network.input_name] = symmetric(np.full(network.input_features, network.input_limit))
    for node in network.nodes:
        found = node_interval(network, node, intervals)
        if found is not None and max(np.abs(found.low).max(), np.abs(found.high).max()) < FLOAT64_EXACT:
            intervals[node.name] = found
    return intervals


def node_interval(network: Network, node: Node, intervals: dict[str, Interval]) -> Interval | None:
    """Return the interval of one node from those of what it reads; None where that is not known."""
    if reads_words(network, node):
        assert network.token_encoding is not None
        return node.operator.gathered_interval(network.token_encoding.tables.values())
    if node.is_previous_step:
        sent = network.by_name[node.sources[0]].operator.interval([None], network.max_tokens)
        return None if sent is None else Interval(np.minimum(sent.low, 0), np.maximum(sent.high, 0))
    return node.operator.interval([intervals.get(source) for source in node.sources], network.max_tokens)


def reads_words(network: Network, node: Node) -> bool:
    """Return whether a node reads the words of a sentence, by `Operator.gather`, and not what another node sends."""
    return network.token_encoding is not None and node.sources[0] == network.input_name


def reachable_wraps(network: Network, intervals: dict[str, Interval]) -> list[str]:
    """Return the nodes whose current some sentence might wrap around, or for which that is not known."""
    found = []
    for node in network.nodes:
        if isinstance(node.operator, LoihiNeuron):
            read = intervals.get(node.sources[0])
            if read is None or (read.magnitude / node.operator.lost_current).max() > ACTIVATION_MAX:
                found.append(node.name)
    return found
