"""The table of how operators are spelled in ONNX: the same operations, in the same order, as their NumPy meaning.

Activations are ``(T, B, N, D)``: all time steps at once, so that every affine node is one ``MatMul`` over all of them
and no weight is stored twice. Time passes only where something is remembered, see `export.onnx_format.scan`; an
unrolled loop would fix T and repeat every node T times, and a ``Loop`` around the whole network would hide the nodes'
values from whoever wants to see them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from export.onnx_format.builder import State
from export.operators import Operator, RuleTable

Writer = Callable[..., None]
"""Called with builder, node name, operator, and the names of what it reads; writes a value called as the node."""
StepWriter = Callable[..., list[State]]
"""Called as a `Writer`; writes one step and returns what the node remembers."""
AnyWriter = TypeVar("AnyWriter", bound=Callable[..., object])


@dataclass(frozen=True)
class Spelling:
    """How an operator is written.

    Attributes
    ----------
    at_once : callable or None
        Writes all steps at once; None where each needs the one before.
    step : callable or None
        Writes one step, within a scan; None where `at_once` writes it there too and nothing is remembered.
    """

    at_once: Writer | None = None
    step: StepWriter | None = None


SPELLINGS = RuleTable[Spelling]("ONNX")


def writes(*operators: type[Operator]) -> Callable[[AnyWriter], AnyWriter]:
    """Register a `Writer` as the spelling of operators that remember nothing."""

    def register(writer: AnyWriter) -> AnyWriter:
        SPELLINGS.set(Spelling(at_once=writer), *operators)  # type: ignore[arg-type]
        return writer

    return register


def writes_steps(*operators: type[Operator]) -> Callable[[AnyWriter], AnyWriter]:
    """Register a `StepWriter` as the spelling of operators that remember."""

    def register(writer: AnyWriter) -> AnyWriter:
        SPELLINGS.set(Spelling(step=writer), *operators)  # type: ignore[arg-type]
        return writer

    return register
