"""What arithmetic costs: prices by kind of operation, and products with activations of few bits.

Horowitz's figures and what is derived from them, for every model that prices additions and multiplications.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hardware.energy.counts import NodeOperations, OperationCounts, Tally
from hardware.energy.models.contract import EnergyModel, Price

HOROWITZ = "Horowitz 2014, ISSCC, 'Computing's energy problem', 45 nm, 0.9 V"
MULTIPLIER_BITS = {"fp32": 24, "fp16": 11, "int32": 32, "int8": 8}
"""Width of one operand of a precision's multiplier: the whole number, or the significand of a floating-point one."""
DIVISION_PER_MULTIPLICATION = 7.1
"""Energy of a division over that of a multiplication, measured on a Cortex-M4F: PMC8934428 (2022), table 3."""
AND_PER_ADDITION = 1 / 32
"""Assumed: an AND of two bits against an addition of 32: one gate a bit, and an adder has several."""


def arithmetic_prices(addition: float, multiplication: float, source: str) -> dict[str, Price]:
    """Return prices of all arithmetic kinds from those of an addition and a multiplication.

    Parameters
    ----------
    addition, multiplication : float
        In pJ; a multiply-accumulate is both.
    source : str
    """
    add = Price(addition, source)
    both = Price(addition + multiplication, source)
    division = Price(
        DIVISION_PER_MULTIPLICATION * multiplication,
        "assumed: a division or square root is 7.1 multiplications, as measured on a Cortex-M4F (PMC8934428, table 3)",
    )
    return {
        **dict.fromkeys(("ac_binary", "ac_graded_additions", "addition", "residual_addition"), add),
        **dict.fromkeys(("attention_count", "attention_add"), add),
        **dict.fromkeys(("ac_graded", "mac"), both),
        "attention_and": Price(AND_PER_ADDITION * addition, "assumed: one of 32 bits of an addition"),
        "special": division,
        "membrane_update": add,
        "membrane_leak": Price(multiplication, source),
        "comparison": Price(addition, f"{source}; assumed: a comparison is a subtraction"),
        "reset": Price(addition, f"{source}; assumed: a reset is a subtraction"),
    }


@dataclass(frozen=True)
class ArithmeticModel(EnergyModel):
    """A model with a price for each kind of operation, among them perhaps those of multiplications and additions.

    Attributes
    ----------
    prices : dict of str to Price
        By kind of `OPERATION_KINDS`.
    """

    prices: Mapping[str, Price] = field(default_factory=dict)

    def for_dense(self, activation_bits: int | None = None) -> tuple[EnergyModel, str]:
        """Return the model with products as wide as the activations, where its precision says how wide they were."""
        if activation_bits is None or not {"mac", "addition"} <= set(self.prices):
            return super().for_dense(activation_bits)
        multiplier_bits = MULTIPLIER_BITS.get(self.precision.replace(",", " ").split()[0])
        if multiplier_bits is None:
            return self, (
                f"{activation_bits}-bit activations are charged as whole ones: {self.precision} says no width of a "
                "product"
            )
        return NarrowActivations.of(self, activation_bits, multiplier_bits), ""


@dataclass(frozen=True)
class NarrowActivations(EnergyModel):
    """A model whose matrix products multiply weights with few-bit activations.

    Assumed: a multiplier's energy is proportional to the width of each operand, as that of an array of bit products is.
    Horowitz's own figures say nearly the same: 3.1 pJ at 32 x 32 bits are 15.5 times the 0.2 pJ at 8 x 8, and 16 times
    would be proportional.

    Attributes
    ----------
    base : ArithmeticModel
        Prices everything else. An activation moves as a word of its own, however narrow.
    bits, multiplier_bits : int
        Of an activation; of an operand of the multiplier that `base` has a price of.
    """

    base: ArithmeticModel = field(kw_only=True)
    bits: int = field(kw_only=True)
    multiplier_bits: int = field(kw_only=True)

    @classmethod
    def of(cls, base: ArithmeticModel, bits: int, multiplier_bits: int) -> NarrowActivations:
        """Return `base` for activations of `bits` bits."""
        return cls(
            name=base.name,
            source=base.source,
            precision=f"{base.precision}, {bits}-bit activations",
            technology=base.technology,
            includes_memory=base.includes_memory,
            basis=f"{base.basis}; assumed: multiplying by {bits} bits costs {bits}/{multiplier_bits} of it",
            base=base,
            bits=bits,
            multiplier_bits=multiplier_bits,
        )

    def cost(self, node: NodeOperations, operations: Tally, counts: OperationCounts) -> dict[str, float]:
        """Return what `base` says, less what narrow products save."""
        costs = self.base.cost(node, operations, counts)
        products = operations.get("dense_mac", 0)
        if products:
            prices = self.base.prices
            multiplication = prices["mac"].picojoules - prices["addition"].picojoules
            saved = products * multiplication * max(0.0, 1 - self.bits / self.multiplier_bits)
            kind = "mac" if "mac" in costs else "operations"
            costs[kind] -= saved
        return costs

    def priced(self, node: NodeOperations) -> frozenset[str]:
        """Return what `base` has figures for."""
        return self.base.priced(node)
