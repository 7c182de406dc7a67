"""Rows of a target's table that stand for one meaning alone: a fast path, a stock process."""

from __future__ import annotations

from typing import TypeVar

from export.operators import Operator, RuleTable
from export.operators.rules import Refusal

Rule = TypeVar("Rule")


def row_of(table: RuleTable[Rule], operator: Operator) -> Rule | Refusal | None:
    """Return the row of exactly this operator; a refusal holds for what is derived from it too.

    What is derived from an operator may mean something else, for which a row that computes in its place would answer
    without a word; it has such a row only if it was registered itself.
    """
    found = table.find(type(operator))
    return found if isinstance(found, Refusal) or type(operator) in set(table) else None
