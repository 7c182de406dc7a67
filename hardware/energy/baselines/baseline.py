"""What a baseline is: a dense network, counted with the kinds of operations that the spiking side has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hardware.energy.baselines.nodes import DenseNode
from hardware.energy.counts import OperationCounts, Tallies
from hardware.energy.counts.result import NodeOperations
from spikebert.errors import ConfigurationError, MissingDependencyError

FLOPS_PER_MAC = 2
"""What torch's FlopCounterMode counts for one multiply-accumulate; fvcore counts one."""


class Baseline(ABC):
    """A dense network to compare with.

    Attributes
    ----------
    name, title : str
        On the command line, and in tables.
    activation_bits : int or None
        Width of what it multiplies weights with; None for the precision of the energy model.
    obstacle : str or None
        Why there is no such network, so that nothing can be counted.
    """

    name: str
    title: str
    activation_bits: int | None = None
    obstacle: str | None = None

    @abstractmethod
    def nodes(self, tokens: int) -> Iterator[DenseNode]:
        """Yield every node with what it does for one sentence of so many tokens."""

    @abstractmethod
    def dense_model(self, tokens: int) -> tuple[nn.Module, Tensor]:
        """Return the network in torch on the meta device, and token ids ``(1, N)`` or inputs ``(1, N, D)`` for it."""

    def count(self, lengths: Iterable[int]) -> OperationCounts:
        """Count what the network does for sentences of these lengths, padding none of them.

        Parameters
        ----------
        lengths : iterable of int
            Tokens of each sentence.

        Returns
        -------
        OperationCounts
            Sums over all sentences, as `count_operations` gives them, of one step a sentence.

        Raises
        ------
        ConfigurationError
            There is no sentence, or one has no token.
        """
        sentences = Counter(lengths)
        if not sentences or min(sentences) < 1:
            raise ConfigurationError("a baseline is counted for sentences of at least one token")
        nodes: dict[str, NodeOperations] = {}
        for tokens, repeated in sorted(sentences.items(), reverse=True):  # nodes have the longest sentence's widths
            for node, tally in self.nodes(tokens):
                counts = nodes.setdefault(node.name, replace(node, counts=Tallies())).counts
                counts.add(Tallies({kind: repeated * count for kind, count in tally.items()}))
        return OperationCounts(
            nodes=nodes,
            sentences=sentences.total(),
            sentence_steps=sentences.total(),
            real_tokens=sum(tokens * repeated for tokens, repeated in sentences.items()),
            padding_tokens=0,
            longest_sentence=max(sentences),
            depth=0,
        )

    def macs(self, tokens: int) -> int:
        """Return the MACs of all matrix products for one sentence, by the closed formula."""
        return sum(tally.get("dense_mac", 0) for _, tally in self.nodes(tokens))

    def library_macs(self, tokens: int) -> int:
        """Return the same, counted by torch's FlopCounterMode.

        Attention is eager, since the counter misses fused attention on the CPU.

        Raises
        ------
        MissingDependencyError
            The architecture cannot be built.
        """
        model, inputs = self.dense_model(tokens)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(inputs)
        return counter.get_total_flops() // FLOPS_PER_MAC

    def fvcore_macs(self, tokens: int) -> int:
        """Return the same, counted by fvcore.

        Its five operations an element of each layer norm are left out: they are no matrix product. It cannot trace
        convolutions without weights.

        Raises
        ------
        MissingDependencyError
            fvcore is not installed, or the architecture cannot be built.
        """
        try:
            from fvcore.nn import FlopCountAnalysis
        except ImportError as error:
            raise MissingDependencyError("the second opinion on FLOPs needs fvcore (pip install fvcore)") from error
        analysis = FlopCountAnalysis(*self.dense_model(tokens))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return int(sum(count for kind, count in analysis.by_operator().items() if kind != "layer_norm"))
