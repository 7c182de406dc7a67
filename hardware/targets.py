"""What runs where: every operator and what each target says of it, out of the targets' own tables.

``python -m hardware.targets`` prints the table that stands in ``docs/operators.md``; a test holds both together.
"""

from __future__ import annotations

from importlib import import_module

import numpy as np

from export.operators import (
    DEFAULT_DT,
    MARKED_OPERATORS,
    TABLES,
    Operator,
    RuleTable,
    all_cases,
    all_integer_cases,
    all_operators,
)
from export.operators.rules import Refusal

TARGET_MODULES = (
    "export.passes.quantize.rules",
    "export.onnx_format.graph",
    "export.netx",
    "hardware.runners.integer.fast_paths",
    "hardware.runners.lava.stock",
    "hardware.loihi.operators",
    "hardware.energy.counts.rules",
    "hardware.energy.baselines.twin",
    "hardware.equivalence.replay",
    "hardware.equivalence.attribution",
    "hardware.traces.profiler",
)
"""Modules that make a target's table, or import those that do; a new target stands here too."""
YES, NO, UNKNOWN = "yes", "no", "–"
"""A target's answer: it takes an operator, it refuses it for a reason of its own, it knows of no such operator."""


def targets() -> tuple[RuleTable, ...]:
    """Return the tables of all targets, in the order of their modules, whichever of them were imported before."""
    shown = [found for module in TARGET_MODULES for found in vars(import_module(module)).values()]
    ordered = {found.target: found for found in shown if isinstance(found, RuleTable)}
    return tuple({**ordered, **TABLES}.values())


def answer(table: RuleTable, operator: type[Operator]) -> str:
    """Return what a target says of an operator: `YES`, `NO` or `UNKNOWN`."""
    found = table.find(operator)
    if found is None:
        return UNKNOWN
    return NO if isinstance(found, Refusal) else YES


def in_nir(operator: type[Operator]) -> str:
    """Return how NIR holds an operator: as what its cases are written, or by edges alone."""
    if operator.traits.edges:
        return "edges"
    if operator.name in MARKED_OPERATORS:
        return "marked"
    cases = [case.operator for case in (*all_cases(), *all_integer_cases()) if type(case.operator) is operator]
    kinds = {type(found.to_nir(np.float64, DEFAULT_DT)).__name__ for found in cases}
    return ", ".join(sorted("nested graph" if kind == "NIRGraph" else f"`{kind}`" for kind in kinds))


def what_runs_where() -> str:
    """Return the table of operators and targets, and every reason for a refusal, in Markdown."""
    tables = targets()
    operators = [operator for operator in all_operators() if operator.__module__.startswith("export.")]
    lines = [
        f"| operator | in NIR | {' | '.join(table.target for table in tables)} |",
        f"| --- | --- | {' | '.join(':---:' for _ in tables)} |",
    ]
    reasons: dict[tuple[str, str], list[str]] = {}
    for operator in sorted(operators, key=lambda operator: (bool(operator.traits.integer), operator.name)):
        answers = [answer(table, operator) for table in tables]
        lines.append(f"| `{operator.name}` | {in_nir(operator)} | {' | '.join(answers)} |")
        for table in tables:
            found = table.find(operator)
            if isinstance(found, Refusal):
                reasons.setdefault((table.target, found.reason), []).append(f"`{operator.name}`")
    refused = [f"* {target}, {', '.join(names)}: {reason}." for (target, reason), names in sorted(reasons.items())]
    return "\n".join([*lines, "", *refused])


if __name__ == "__main__":
    print(what_runs_where())
