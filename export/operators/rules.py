"""What a target does with each operator: one row of the target's table, registered beside the target.

A target is whatever has an answer of its own for every operator: a file format, a chip, a runner's fast path, a count,
a bound. It makes one `RuleTable`, registers a row for each operator it knows, and finds rows by `rule_for` alone, so
that an operator nobody registered is refused by name and never answered for by chance::

    WRITERS = RuleTable[Writer]("ONNX")

    @WRITERS.row(Affine, Convolution)
    def write_synapses(node, ...): ...

    WRITERS.refuse(TokenMean, "its rows differ in length")

    rule_for(WRITERS, node)(node, ...)

A row holds for the operators derived from its own too, unless they have one themselves, or the table says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from export.errors import UnsupportedOperatorError
from export.operators.operator import Operator

Rule = TypeVar("Rule")


class Placed(Protocol):
    """An operator with a name in a graph: a `export.network.Node`."""

    @property
    def name(self) -> str:
        """Name of the node."""

    @property
    def operator(self) -> Operator:
        """What it computes."""


@dataclass(frozen=True)
class Refusal:
    """The row of an operator that a target knows and cannot take.

    Attributes
    ----------
    reason : str
        What stands against it, and what to do.
    """

    reason: str


class RuleTable(Generic[Rule]):
    """What one target does with each operator.

    Parameters
    ----------
    target : str
        As a refusal and the table of what runs where name it.
    serves_derived : bool
        Whether a row holds for what is derived from its operator too. Not so where it computes in the operator's place,
        as a fast path does: what is derived may mean something else. A refusal holds in any case.
    """

    def __init__(self, target: str, serves_derived: bool = True) -> None:
        self.target = target
        self.serves_derived = serves_derived
        self._rows: dict[type[Operator], Rule | Refusal] = {}
        TABLES[target] = self

    def row(self, *operators: type[Operator]) -> Callable[[Rule], Rule]:
        """Register what is decorated as the row of these operators."""

        def register(rule: Rule) -> Rule:
            self.set(rule, *operators)
            return rule

        return register

    def set(self, rule: Rule, *operators: type[Operator]) -> None:
        """Register `rule` as the row of these operators."""
        self._rows.update(dict.fromkeys(operators, rule))

    def refuse(self, reason: str, *operators: type[Operator]) -> None:
        """Register that the target cannot take these operators, and why."""
        self._rows.update(dict.fromkeys(operators, Refusal(reason)))

    def find(self, operator: type[Operator]) -> Rule | Refusal | None:
        """Return the row of an operator or of the nearest it is derived from; None where there is none."""
        nearest = next((kind for kind in operator.__mro__ if kind in self._rows), None)
        if nearest is None:
            return None
        row = self._rows[nearest]
        return row if self.serves_derived or nearest is operator or isinstance(row, Refusal) else None

    def __iter__(self) -> Iterator[type[Operator]]:
        """Go through the operators that have a row of their own."""
        return iter(self._rows)

    def __contains__(self, operator: type[Operator]) -> bool:
        """Return whether the target takes an operator."""
        return not isinstance(self.find(operator), Refusal | None)


TABLES: dict[str, RuleTable] = {}
"""Every target's table, by its name; filled as their modules are imported."""


def rule_for(table: RuleTable[Rule], node: Placed) -> Rule:
    """Return the row of a node's operator.

    Raises
    ------
    UnsupportedOperatorError
        The target cannot take the operator, or has never heard of it; the message names node, operator and target.
    """
    rule = table.find(type(node.operator))
    if rule is None:
        raise UnsupportedOperatorError(
            f"{node.name}: {table.target} knows no {node.operator.name}; register a row for "
            f"{type(node.operator).__name__} in its table, see docs/architecture.md"
        )
    if isinstance(rule, Refusal):
        raise UnsupportedOperatorError(f"{node.name}: {table.target} cannot take {node.operator.name}: {rule.reason}")
    return rule
