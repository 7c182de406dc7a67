"""Energy models that are a table, picojoules a kind of operation; users write theirs as a JSON or TOML file.

{"name": "my-chip", "source": "datasheet, page 7", "precision": "int8, 32-bit sums",
 "picojoules": {"ac_binary": 0.11, "ac_graded": 0.3, "mac": 0.3, "weight_read": {"value": 5.0, "source": "page 9"}}}
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:  # the standard library has it from 3.11 on
    import tomli as tomllib

from hardware.energy.counts import OPERATION_KINDS, NodeOperations, OperationCounts, Tally
from hardware.energy.errors import EnergyModelError
from hardware.energy.models.arithmetic import ArithmeticModel
from hardware.energy.models.contract import EnergyModel, Price

GRADED = ("additions", "multi_bit")
"""How an accumulate by an integer k is priced: as k additions, or as one multi-bit operation."""


@dataclass(frozen=True)
class PriceTable(ArithmeticModel):
    """A model that is a table: each kind of operation has a price, wherever it happens.

    Attributes
    ----------
    graded : {"additions", "multi_bit"}
        Which of ac_graded_additions and ac_graded is priced; the other reading is a variant.
    """

    graded: str = "additions"

    def __post_init__(self) -> None:
        """Check names and figures."""
        if self.graded not in GRADED:
            raise EnergyModelError(f"{self.name}: graded is {self.graded!r}; choose one of {', '.join(GRADED)}")
        for kind, price in self.prices.items():
            if kind not in OPERATION_KINDS:
                raise EnergyModelError(
                    f"{self.name}: {kind!r} is no kind of operation; known are {', '.join(OPERATION_KINDS)}"
                )
            if not (math.isfinite(price.picojoules) and price.picojoules >= 0):
                raise EnergyModelError(
                    f"{self.name}: {kind} costs {price.picojoules} pJ; it must be finite and not < 0"
                )
        if not self.prices:
            raise EnergyModelError(f"{self.name}: has no price at all")

    def cost(self, node: NodeOperations, operations: Tally, counts: OperationCounts) -> dict[str, float]:
        """Return count times price."""
        return self.picojoules(operations)

    def picojoules(self, operations: Mapping[str, int]) -> dict[str, float]:
        """Return count times price for any operations, of this network or of another, in pJ by kind.

        Examples
        --------
        >>> energy_model("horowitz-int8").picojoules({"mac": 11_170_000_000})
        """
        skipped = "ac_graded" if self.graded == "additions" else "ac_graded_additions"
        return {
            kind: count * self.prices[kind].picojoules
            for kind, count in operations.items()
            if kind in self.prices and kind != skipped
        }

    def priced(self, node: NodeOperations) -> frozenset[str]:
        """Return the kinds in the table; either form of a graded accumulate covers both."""
        chosen = "ac_graded_additions" if self.graded == "additions" else "ac_graded"
        both = {"ac_graded", "ac_graded_additions"}
        return frozenset(self.prices) - both | (both if chosen in self.prices else set())

    def variants(self) -> dict[str, EnergyModel]:
        """Return the other reading of graded accumulates, where the table has a price for it."""
        other = GRADED[1 - GRADED.index(self.graded)]
        needed = "ac_graded" if other == "multi_bit" else "ac_graded_additions"
        return {f"graded_as_{other}": replace(self, graded=other)} if needed in self.prices else {}


def load_energy_model(path: str | Path) -> PriceTable:
    """Read a model from a JSON or TOML file; the head of this module shows one.

    Keys are ``name``, ``source``, ``precision`` and ``picojoules`` (kind -> pJ, or -> {value, source}), and optionally
    ``technology``, ``includes_memory``, ``basis`` and ``graded``.

    Raises
    ------
    EnergyModelError
        The file cannot be read, lacks a key, or has one that means nothing.
    """
    path = Path(path)
    fields = _read_fields(path)
    required = {"name": str, "source": str, "precision": str, "picojoules": dict}
    optional = {"technology": str, "includes_memory": bool, "basis": str, "graded": str}
    for key in required:
        if key not in fields:
            raise EnergyModelError(f"{path}: has no {key!r}; it needs {', '.join(required)}")
    for key, value in fields.items():
        kind = {**required, **optional}.get(key)
        if kind is None:
            raise EnergyModelError(f"{path}: {key!r} means nothing; known are {', '.join({**required, **optional})}")
        if not isinstance(value, kind) or not (value or kind is bool):
            raise EnergyModelError(f"{path}: {key} is {value!r}; expected {kind.__name__}, not empty")
    given = fields.pop("picojoules")
    prices = {kind: _read_price(f"{path}: picojoules.{kind}", value, fields["source"]) for kind, value in given.items()}
    fields.setdefault("basis", f"count times price, from {path.name}; kinds without a price cost nothing")
    try:
        return PriceTable(**fields, prices=prices)
    except EnergyModelError as error:
        raise EnergyModelError(f"{path}: {error}") from error


def _read_fields(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        fields = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError) as error:  # both parsers raise a ValueError
        raise EnergyModelError(f"{path}: cannot be read as an energy model: {error}") from error
    if not isinstance(fields, dict):
        raise EnergyModelError(f"{path}: holds {type(fields).__name__}; expected an object of keys and values")
    return dict(fields)


def _read_price(where: str, given: Any, source: str) -> Price:
    if isinstance(given, dict) and set(given) <= {"value", "source"} and "value" in given:
        given, source = given["value"], given.get("source", source)
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise EnergyModelError(f"{where} is {given!r}; expected a number or {{value, source}}")
    try:
        return Price(float(given), str(source))
    except OverflowError as error:  # JSON's whole numbers have no end
        raise EnergyModelError(f"{where} is beyond what a number can hold") from error
