"""How delays and recurrent connections are spelled in ONNX."""

from __future__ import annotations

import numpy as np

from export.onnx_format.builder import OnnxBuilder, State
from export.onnx_format.scan import zeros
from export.onnx_format.spellings import SPELLINGS, Spelling, writes_steps
from export.operators import (
    Delay,
    PreviousStep,
)

END = (1 << 63) - 1
"""Where a slice ends that leaves nothing out."""


def write_delay(build: OnnxBuilder, name: str, operator: Delay, x: str) -> None:
    """Write a delay outside a cycle: all steps at once, behind the zeros that came before."""
    longest = int(operator.steps.max())
    rows = build.add("Shape", [x], f"{name}/rows", start=1, end=3)
    _write_delayed(build, name, operator, x, zeros(build, f"{name}/earlier", rows, longest, operator.in_features))


def step_delay(build: OnnxBuilder, name: str, operator: Delay, x: str) -> list[State]:
    """Write a delay on a cycle, which remembers what came."""
    longest = int(operator.steps.max())
    earlier = f"{name}/before"
    history = _write_delayed(build, name, operator, x, earlier)
    if not longest:
        return []
    after = build.add("Slice", [history, build.axes(-longest), build.axes(END), build.axes(0)], f"{name}/after")
    return [State(earlier, after, operator.in_features, longest)]


def _write_delayed(build: OnnxBuilder, name: str, operator: Delay, x: str, earlier: str) -> str:
    """Write what is due at each step of `x`, from what came earlier and `x` itself; return all of that."""
    steps = operator.steps
    history = build.add("Concat", [earlier, x], f"{name}/history", axis=0) if steps.any() else x
    parts, order = [], []
    for wait in np.unique(steps).tolist():
        alike = np.flatnonzero(steps == wait)
        features = build.weight(f"{name}/features_{wait}", alike, np.int64)
        of_these = build.add("Gather", [history, features], f"{name}/history_{wait}", axis=-1)
        bounds = [build.axes(int(steps.max()) - wait), build.axes(-wait if wait else END), build.axes(0)]
        parts.append(build.add("Slice", [of_these, *bounds], f"{name}/due_{wait}"))
        order += alike.tolist()
    joined = build.add("Concat", parts, f"{name}/joined", axis=-1)
    build.add("Gather", [joined, build.weight(f"{name}/order", np.argsort(order), np.int64)], name, axis=-1)
    if x in build.bounds:
        build.bounds[name] = build.bounds[x]
    return history


@writes_steps(PreviousStep)
def step_previous(build: OnnxBuilder, name: str, operator: PreviousStep, x: str) -> list[State]:
    """Write nothing: what the neuron sent in the step before is the state that this step begins with."""
    build.bounds[name] = 1
    return [State(name, build.called(x), operator.features)]


SPELLINGS.set(Spelling(write_delay, step_delay), Delay)  # on a cycle it remembers what came
