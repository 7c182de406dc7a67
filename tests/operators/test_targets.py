"""The promise of every target: it answers for each operator, or refuses it by name. None answers for one unheard of."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from export import UnsupportedOperatorError
from export.network import Node
from export.operators import Delay, Flatten, Operator, Traits, all_operators, rule_for, rules
from export.operators.rules import Refusal, RuleTable
from hardware.targets import TARGET_MODULES, targets, what_runs_where

PAGE = Path(__file__).parents[2] / "docs" / "operators.md"
OPERATORS = [operator for operator in all_operators() if operator.__module__.startswith("export.")]


@dataclass(frozen=True, eq=False)
class Unheard(Operator):
    """An operator that no target knows."""

    name: ClassVar[str] = "unheard_of"
    traits: ClassVar[Traits] = replace(Flatten.traits, passes_values=False)

    @property
    def in_features(self) -> int:
        return 2

    @property
    def out_features(self) -> int:
        return 2

    def step(self, x: np.ndarray, state: Any, token_mask: Any) -> np.ndarray:
        return np.abs(x)

    def interval(self, read: Any, tokens: Any) -> None:
        return None

    def to_nir(self, dtype: Any, dt: float) -> Any:
        raise AssertionError("it is not written")


def _node(operator: type[Operator]) -> Node:
    """Return a node of an operator whose parameters no table looks at."""
    return Node("somewhere", object.__new__(operator), ("input",))


@pytest.mark.parametrize("table", targets(), ids=lambda table: table.target)
@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.name)
def test_every_target_answers_or_refuses_by_name(operator: type[Operator], table: RuleTable) -> None:
    found = table.find(operator)
    if found is not None and not isinstance(found, Refusal):
        assert rule_for(table, _node(operator)) is found
        return
    with pytest.raises(UnsupportedOperatorError) as refused:
        rule_for(table, _node(operator))
    for said in ("somewhere", operator.name, table.target, *([found.reason] if found else [])):
        assert said in str(refused.value)


@pytest.mark.parametrize("table", targets(), ids=lambda table: table.target)
def test_no_target_answers_for_an_operator_it_never_heard_of(table: RuleTable) -> None:
    with pytest.raises(UnsupportedOperatorError, match=f"somewhere: {re.escape(table.target)} knows no unheard_of"):
        rule_for(table, _node(Unheard))


def test_a_row_serves_what_is_derived_unless_that_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "TABLES", {})  # the table is no target
    table = RuleTable[str]("a test's target")
    table.set("operator", Flatten)
    derived = type("Derived", (Flatten,), {"name": "derived"})
    assert rule_for(table, _node(derived)) == "operator"
    table.refuse("for the test", derived)
    with pytest.raises(UnsupportedOperatorError, match="a test's target cannot take derived: for the test"):
        rule_for(table, _node(derived))
    assert (Flatten in table, derived in table, Unheard in table) == (True, False, False)


def test_what_computes_in_an_operators_place_serves_that_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "TABLES", {})
    table = RuleTable[str]("a fast path", serves_derived=False)
    table.set("operator", Flatten)
    table.refuse("it waits", Delay)
    kept, waiting = (type("Derived", (kind,), {"name": "derived"}) for kind in (Flatten, Delay))
    assert rule_for(table, _node(Flatten)) == "operator"
    with pytest.raises(UnsupportedOperatorError, match="a fast path knows no derived"):
        rule_for(table, _node(kept))
    with pytest.raises(UnsupportedOperatorError, match="a fast path cannot take derived: it waits"):
        rule_for(table, _node(waiting))


def test_every_target_has_operators_and_every_module_a_target() -> None:
    assert len(targets()) >= len(TARGET_MODULES)
    assert all(list(table) for table in targets())


def test_the_page_says_what_runs_where() -> None:
    shown = PAGE.read_text(encoding="utf-8").split("<!-- python -m hardware.targets -->\n")[1]
    assert shown.strip() == what_runs_where().strip(), "run python -m hardware.targets and put its table into the page"
