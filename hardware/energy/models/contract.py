"""What an energy model is: what it says of itself, and what the operations of one node cost under it.

A subclass of `EnergyModel` has to say two things, `cost` and `priced`. All else has an answer that suits a model
without time, placement or other readings.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from export.network import Network
from hardware.energy.counts import NodeOperations, OperationCounts, Tally
from hardware.energy.errors import EnergyModelError

PICOJOULES_PER_MILLIJOULE = 1e9


@dataclass(frozen=True)
class Price:
    """Energy of one operation.

    Attributes
    ----------
    picojoules : float
    source : str
        Where the figure is from; it begins with "assumed" where nobody measured it.
    """

    picojoules: float
    source: str


@dataclass(frozen=True)
class Timing:
    """How long a sentence takes on a model that has time. An estimate as the energy is.

    Attributes
    ----------
    steps : float
        Time steps from the first spike in to the last one out.
    seconds_per_step, seconds : float
        Of a step; of a sentence.
    sentences_per_second, pipelined_sentences_per_second : float
        Throughput one sentence at a time, and with a new one as soon as the first layer is done with the last.
    static_mj : float
        Static power over `seconds`, in mJ; it is part of the estimate's total.
    energy_delay_product : float
        Energy of a sentence times `seconds`, in J s.
    basis : str
    cores, chips : int or None
        What the network takes of the hardware, where the model says.
    placement : str
        Where cores and chips are from: ``placed: …``, or ``best case: …, because …``.
    """

    steps: float
    seconds_per_step: float
    seconds: float
    sentences_per_second: float
    pipelined_sentences_per_second: float
    static_mj: float
    energy_delay_product: float
    basis: str
    cores: int | None = None
    chips: int | None = None
    placement: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return dict(vars(self))


@dataclass(frozen=True)
class EnergyModel(ABC):
    """What operations cost. Subclasses say it for one node at a time.

    Attributes
    ----------
    name : str
    source : str
        Where the figures are from.
    precision : str
        Of weights, sums and states.
    technology : str
        Process the figures hold for.
    includes_memory : bool
        Whether reading and writing memory costs something.
    basis : str
        What costs something and what does not, in a sentence.
    """

    name: str
    source: str
    precision: str
    technology: str = ""
    includes_memory: bool = False
    basis: str = ""

    @abstractmethod
    def cost(self, node: NodeOperations, operations: Tally, counts: OperationCounts) -> dict[str, float]:
        """Return what a node's operations cost, in pJ by kind; the kinds are the model's own.

        Parameters
        ----------
        node : NodeOperations
            Which node, and its shapes.
        operations : dict of str to int
            Its counts at real tokens, or at padding.
        counts : OperationCounts
            The whole run, for sizes of memories.
        """

    @abstractmethod
    def priced(self, node: NodeOperations) -> frozenset[str]:
        """Return the kinds of operation this model has a figure for at a node; the estimate lists the others."""

    def for_network(self, network: Network, tokens: int) -> EnergyModel:
        """Return the model as it prices one network, for sentences of up to so many tokens.

        A model of a chip places the network on it; most models price every network alike and return themselves.
        """
        return self

    def for_dense(self, activation_bits: int | None = None) -> tuple[EnergyModel, str]:
        """Return the model as it prices a network in which nothing spikes, and a remark on that or "".

        Parameters
        ----------
        activation_bits : int, optional
            Width of what weights are multiplied with; by default that of the model's own precision.

        Raises
        ------
        EnergyModelError
            The model does not say what a product of that width costs: most do not.
        """
        if activation_bits is not None:
            raise EnergyModelError(f"{self.name} does not say what a product with {activation_bits} bits costs")
        return self, ""

    def timing(self, counts: OperationCounts, dynamic_mj: float) -> Timing | None:
        """Return how long a sentence takes, where the model has time; `dynamic_mj` is its energy without static."""
        return None

    def variants(self) -> dict[str, EnergyModel]:
        """Return the same model under its other readings, for the estimate to show beside this one."""
        return {}
