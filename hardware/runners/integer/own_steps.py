"""Nodes of the integer runner that no fast path is exact for: computed step by step on their operators' own meaning.

Whatever an operator does, it sees what the reference interpreter shows it, in int64. One that mixes or pools tokens
sees whole sentences, ``(B, N, D)``, with their mask; as everywhere, what it sends may not depend on what stands at
padding, which is 0 here. One behind a pooling sees one vector a sentence, ``(B, 1, D)``. All others act on each token
by itself, and see the real tokens of all sentences in a row, ``(1, P, D)``.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from torch import Tensor

from export.execution import NodeExecution
from export.network import Network, Node
from hardware.runners.integer.layer import INT8_MAX, Run
from hardware.runners.integer.packed_batch import PackedBatch
from hardware.runners.reference import overflows


def own_steps(nodes: tuple[Node, ...], network: Network) -> Run:
    """Return what computes a node, or those of a cycle together.

    Parameters
    ----------
    nodes : tuple of Node
        In topological order.
    network : Network
    """
    inside = [node.name for node in nodes]
    outside = list(dict.fromkeys(name for node in nodes for name in node.sources if name not in inside))
    gathers = network.token_encoding is not None and network.input_name in outside
    read = [name for name in outside if not (gathers and name == network.input_name)]
    sees_sentences = any(node.operator.traits.mixes_tokens or node.operator.traits.pools_tokens for node in nodes)

    def run(packed: PackedBatch) -> None:
        def shown(name: str) -> np.ndarray:
            x = packed.values[name].to(torch.int64)
            if name in network.pooled:
                x = x[:, :, None]
            elif sees_sentences:
                x = packed.padded(x)
            else:
                x = x[:, None]
            return x.expand(packed.steps, *x.shape[1:]).cpu().numpy()

        def gathered(name: str, steps: list[np.ndarray]) -> Tensor:
            y = torch.from_numpy(np.stack(steps)).to(packed.device)
            if name in network.pooled:
                return y[:, :, 0]
            return packed.packed(y) if sees_sentences else y[:, 0]

        potentials: dict[str, list[np.ndarray]] = {node.name: [] for node in nodes if node.operator.spikes}

        def keep(name: str, _: np.ndarray, potential: np.ndarray) -> None:
            potentials[name].append(potential)

        execution = NodeExecution(nodes, np.int64, keep, pooled=network.pooled)
        mask = packed.mask[..., None] if sees_sentences and not packed.mask.all() else None
        hot_inputs = _hot_inputs(packed, sees_sentences) if gathers else _no_hot_inputs(packed, sees_sentences)
        values_read = {name: shown(name) for name in read}
        sent: dict[str, list[np.ndarray]] = {name: [] for name in inside}
        for step in range(packed.steps):
            values = {name: x[step] for name, x in values_read.items()}
            execution.step(values, mask, hot_inputs)
            for name in inside:
                sent[name].append(values[name])
        for node in nodes:
            y = gathered(node.name, sent[node.name])
            spike_range = node.operator.traits.spike_range
            if spike_range is not None:
                y = y.to(torch.int8 if -spike_range[0] <= INT8_MAX >= spike_range[1] else torch.int32)
                keeps = packed.record_membrane_potentials
                packed.record(node.name, y, gathered(node.name, potentials[node.name]) if keeps else None)
            packed.values[node.name] = y
        for name, counts in overflows(execution.states).items():
            packed.overflows[name] = Counter(counts)

    return run


def _hot_inputs(packed: PackedBatch, sees_sentences: bool) -> np.ndarray:
    """Return the words that are read, ``(K, B, N)`` or ``(K, 1, P)``."""
    assert packed.hot is not None
    assert packed.hot_inputs is not None
    return packed.hot_inputs if sees_sentences else packed.hot[:, None].cpu().numpy()


def _no_hot_inputs(packed: PackedBatch, sees_sentences: bool) -> np.ndarray:
    """Return what says how many sentences and tokens there are, for a cycle that reads nothing from outside."""
    return packed.mask[None] if sees_sentences else packed.places[None, None].cpu().numpy()
