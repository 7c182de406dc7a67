"""What must be computed step by step, in ONNX: neurons, integrators, and whatever a recurrent connection leads through.

Such nodes become a ``Scan`` over time whose state is what they remember, zeros before the first step: each neuron one
of its own, the nodes of a cycle one together. Inside it a value is ``(1, B, N, D)``, so that every operator is spelled
there as it is outside, and is called ``NODE/now``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import helper

from export.loihi_numbers import ACTIVATION_SHIFT, DECAY_BITS, DECAY_UNITY, POTENTIAL_MAX, STATE_LIMIT
from export.network import Node
from export.onnx_format.builder import TOKEN_MASK, OnnxBuilder
from export.operators import (
    Delay,
    Heaviside,
    IntegerCurrentNeuron,
    IntegerIntegrator,
    IntegerLeakyIntegrateAndFire,
    LeakyIntegrateAndFire,
    LeakyIntegrator,
    Operator,
    PreviousStep,
    ResistiveNeuron,
)

POTENTIAL = "{}.membrane_potential"
"""Name of the value that holds a neuron's potential as it was tested against the threshold."""

END = (1 << 63) - 1
"""Where a slice ends that leaves nothing out."""


@dataclass(frozen=True)
class State:
    """What is carried from one step to the next: ``(depth, B, N, features)``, zeros before the first step.

    Attributes
    ----------
    before, after : str
        Values at the beginning and at the end of a step.
    features, depth : int
    """

    before: str
    after: str
    features: int
    depth: int = 1


StepWriter = Callable[[OnnxBuilder, str, Any, str], list[State]]
"""Called as a `Writer`; writes one step and returns what the node remembers."""


def write_scan(
    build: OnnxBuilder, nodes: Sequence[Node], clock: str, write: Callable[[OnnxBuilder, Node], list[State]]
) -> None:
    """Write nodes as one ``Scan``; outside it their values have their names, as everywhere.

    Parameters
    ----------
    build : OnnxBuilder
    nodes : sequence of Node
        In topological order.
    clock : str
        A value that is there at every step, for nodes that read nothing else.
    write : callable
        Writes one of the nodes into the body it is given; returns its states.
    """
    inside = [node.name for node in nodes]
    reads = list(dict.fromkeys(name for node in nodes for name in node.sources if name not in inside)) or [clock]
    shown = {node.name: node.operator.out_features for node in nodes}
    if build.membrane_potentials:
        shown |= {POTENTIAL.format(node.name): node.operator.out_features for node in nodes if node.operator.spikes}
    scan = inside[-1]
    body = build.subgraph({name: f"{name}/now" for name in [*shown, *reads]})
    for name in reads:
        body.add("Unsqueeze", [f"{name}/step", body.axes(0)], name)
    states = [state for node in nodes for state in write(body, node)]
    sent = [body.add("Squeeze", [name, body.axes(0)], f"{name}/sent") for name in shown]

    def value(name: str, *shape: int | None) -> Any:
        return helper.make_tensor_value_info(name, build.element_type, shape)

    graph = helper.make_graph(
        body.nodes,
        f"{scan}/step",
        [
            *(value(body.called(state.before), state.depth, None, None, state.features) for state in states),
            *(value(f"{name}/step", None, None, None) for name in reads),
        ],
        [
            *(value(state.after, state.depth, None, None, state.features) for state in states),
            *(value(name, None, None, features) for name, features in zip(sent, shown.values(), strict=True)),
        ],
    )
    rows = build.add("Shape", [reads[0]], f"{scan}/rows", start=1, end=3)
    sizes = dict.fromkeys((state.depth, state.features) for state in states)
    at_rest = {size: _zeros(build, f"{scan}/at_rest_{'_'.join(map(str, size))}", rows, *size) for size in sizes}
    build.add_node(
        "Scan",
        [*(at_rest[state.depth, state.features] for state in states), *reads],
        [*(f"{state.after}/last" for state in states), *shown],
        body=graph,
        num_scan_inputs=len(reads),
    )


def _zeros(build: OnnxBuilder, name: str, rows: str, depth: int, features: int) -> str:
    shape = build.add("Concat", [build.axes(depth), rows, build.axes(features)], f"{name}/shape", axis=0)
    zero = helper.make_tensor("zero", build.element_type, [1], [0])
    return build.add("ConstantOfShape", [shape], name, value=zero)


def write_delay(build: OnnxBuilder, name: str, operator: Delay, x: str) -> None:
    """Write a delay outside a cycle: all steps at once, behind the zeros that came before."""
    longest = int(operator.steps.max())
    rows = build.add("Shape", [x], f"{name}/rows", start=1, end=3)
    _write_delayed(build, name, operator, x, _zeros(build, f"{name}/earlier", rows, longest, operator.in_features))


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


def step_previous(build: OnnxBuilder, name: str, operator: PreviousStep, x: str) -> list[State]:
    """Write nothing: what the neuron sent in the step before is the state that this step begins with."""
    build.bounds[name] = 1
    return [State(name, build.called(x), operator.features)]


def step_neuron(build: OnnxBuilder, name: str, operator: LeakyIntegrateAndFire, x: str) -> list[State]:
    """Write a step of a population with the equations of its docstring in their order."""
    before = f"{name}/U_before"
    if operator.decay_input:
        gap = build.add("Sub", [x, before], f"{name}/gap")
        change = build.add("Div", [gap, build.weight(f"{name}/tau", operator.tau)], f"{name}/change")
        charged = build.add("Add", [before, change], f"{name}/charged")
    else:
        kept = build.add("Mul", [build.weight(f"{name}/beta", operator.beta), before], f"{name}/kept")
        charged = build.add("Add", [kept, x], f"{name}/charged")
    threshold = build.weight(f"{name}/threshold", operator.threshold)
    return _fire_and_reset(build, name, operator, threshold, before, charged)


def step_integer_neuron(build: OnnxBuilder, name: str, operator: IntegerLeakyIntegrateAndFire, x: str) -> list[State]:
    """Write a step of Loihi's neuron with the equations of its docstring in their order."""
    before = f"{name}/U_before"
    charged = _charge_loihi(build, name, operator, before, _wrapped_current(build, name, x))
    threshold = build.weight(f"{name}/threshold", operator.tested_threshold)
    return _fire_and_reset(build, name, operator, threshold, before, charged, saturates=True)


def step_integer_integrator(build: OnnxBuilder, name: str, operator: IntegerIntegrator, x: str) -> list[State]:
    """Write a step of the same neuron where it never fires."""
    before = f"{name}/U_before"
    charged = _charge_loihi(build, name, operator, before, _wrapped_current(build, name, x))
    held = build.add("Clip", [charged, *_range(build)], f"{name}/held")
    build.add("Identity", [held], name)
    return [State(before, held, operator.in_features)]


def _wrapped_current(build: OnnxBuilder, name: str, x: str) -> str:
    wide = build.add("Mul", [x, build.scalar(1 << ACTIVATION_SHIFT)], f"{name}/wide")
    # modulo 2^32 into -2^31 to 2^31 - 1, in numbers that a Cast to int32 leaves undefined
    lifted = build.add("Add", [wide, build.scalar(1 << 31)], f"{name}/lifted")
    arrived = build.add("Mod", [lifted, build.scalar(1 << 32)], f"{name}/modulo")
    return _brought_back(build, name, build.add("Sub", [arrived, build.scalar(1 << 31)], f"{name}/in_32_bits"))


def step_integer_current_neuron(build: OnnxBuilder, name: str, operator: IntegerCurrentNeuron, x: str) -> list[State]:
    """Write a step of Loihi's neuron with a current that decays, likewise."""
    before, current_before = f"{name}/U_before", f"{name}/I_before"
    wide = build.add("Mul", [x, build.scalar(1 << ACTIVATION_SHIFT)], f"{name}/wide")
    kept = _kept(build, f"{name}/current", current_before, operator.current_decay)
    arrived = build.add("Add", [kept, wide], f"{name}/arrived")
    current = _brought_back(build, name, arrived)
    held = build.add("Clip", [_charge_loihi(build, name, operator, before, current), *_range(build)], f"{name}/held")
    threshold = build.weight(f"{name}/threshold", operator.tested_threshold)
    fired = build.add("Greater", [held, threshold], f"{name}/fired")
    _send(build, name, build.cast(fired, f"{name}/spikes"), held)
    after = build.add("Where", [fired, build.scalar(0), held], f"{name}/U_after")
    features = operator.in_features
    return [State(before, after, features), State(current_before, current, features)]


def _charge_loihi(
    build: OnnxBuilder,
    name: str,
    operator: IntegerLeakyIntegrateAndFire | IntegerCurrentNeuron | IntegerIntegrator,
    before: str,
    current: str,
) -> str:
    kept = _kept(build, name, before, operator.decay)
    charged = build.add("Add", [kept, current], f"{name}/charged")
    return build.add("Add", [charged, build.weight(f"{name}/bias", operator.bias)], f"{name}/biased")


def _kept(build: OnnxBuilder, name: str, before: str, decay: Any) -> str:
    """Write what a decay in 4096ths leaves of a register, cut off towards zero."""
    share = build.weight(f"{name}/kept_share", DECAY_UNITY - decay)
    product = build.add("Mul", [before, share], f"{name}/product")
    # towards zero is down, but up for negative numbers; ONNX Runtime's Sign says -1 for an int64 of 2^31
    negative = build.cast(build.add("Less", [product, build.scalar(0)], f"{name}/below_zero"), f"{name}/negative")
    lift = build.add("Mul", [negative, build.scalar(DECAY_UNITY - 1)], f"{name}/lift")
    return build.shift_right(build.add("Add", [product, lift], f"{name}/to_shift"), DECAY_BITS, f"{name}/kept")


def _brought_back(build: OnnxBuilder, name: str, arrived: str) -> str:
    """Write a current as its register of 24 bits holds it: moved by 2^24 once where it left them."""
    above = build.add("Greater", [arrived, build.scalar(STATE_LIMIT)], f"{name}/above")
    below = build.add("LessOrEqual", [arrived, build.scalar(-STATE_LIMIT)], f"{name}/below")
    turns = build.add("Sub", [build.cast(below, f"{name}/up"), build.cast(above, f"{name}/down")], f"{name}/turns")
    turned = build.add("Mul", [turns, build.scalar(2 * STATE_LIMIT)], f"{name}/turned")
    return build.add("Add", [arrived, turned], f"{name}/I_after")


def _range(build: OnnxBuilder) -> list[str]:
    return [build.scalar(-POTENTIAL_MAX), build.scalar(POTENTIAL_MAX)]


def _fire_and_reset(
    build: OnnxBuilder,
    name: str,
    operator: LeakyIntegrateAndFire | IntegerLeakyIntegrateAndFire,
    threshold: str,
    before: str,
    charged: str,
    saturates: bool = False,
) -> list[State]:
    """Write what follows the charge: subtractive reset, saturation, test, reset to zero."""
    potential, spikes_before = charged, f"{name}/S_before"
    if operator.reset == "subtract":
        taken = build.add("Mul", [spikes_before, threshold], f"{name}/taken")
        potential = build.add("Sub", [charged, taken], f"{name}/reset")
    if saturates:
        potential = build.add("Clip", [potential, *_range(build)], f"{name}/held")
    fired = build.add(fires_when(operator), [potential, threshold], f"{name}/fired")
    spikes = build.cast(fired, f"{name}/spikes")
    _send(build, name, spikes, potential)
    features = operator.in_features
    if operator.reset == "subtract":
        kept = build.add("Identity", [potential], f"{name}/U_after")
        return [State(before, kept, features), State(spikes_before, spikes, features)]
    # U is multiplied by 0 where the neuron fired, else by 1: exact for every finite U
    silent = build.cast(build.add("Not", [fired], f"{name}/quiet"), f"{name}/silent")
    return [State(before, build.add("Mul", [potential, silent], f"{name}/U_after"), features)]


def step_resistive_neuron(build: OnnxBuilder, name: str, operator: ResistiveNeuron, x: str) -> list[State]:
    """Write a step of NIR's full neurons with the equations of its docstring in their order."""
    before, current_before = f"{name}/U_before", f"{name}/I_before"
    features = operator.in_features
    states, current = [], x
    if operator.tau_syn is not None:
        entering = build.add("Mul", [build.weight(f"{name}/w_in", operator.w_in), x], f"{name}/entering")
        gap = build.add("Sub", [entering, current_before], f"{name}/current_gap")
        change = build.add("Div", [gap, build.weight(f"{name}/tau_syn", operator.tau_syn)], f"{name}/current_change")
        current = build.add("Add", [current_before, change], f"{name}/I_after")
        states.append(State(current_before, current, features))
    potential = _write_charged(build, name, operator, before, current)
    fired = build.add("Greater", [potential, build.weight(f"{name}/threshold", operator.threshold)], f"{name}/fired")
    _send(build, name, build.cast(fired, f"{name}/spikes"), potential)
    reset = build.weight(f"{name}/v_reset", operator.v_reset)
    states.append(State(before, build.add("Where", [fired, reset, potential], f"{name}/U_after"), features))
    return states


def step_leaky_integrator(build: OnnxBuilder, name: str, operator: LeakyIntegrator, x: str) -> list[State]:
    """Write a step of an integrator, likewise."""
    before = f"{name}/U_before"
    potential = _write_charged(build, name, operator, before, x)
    build.add("Identity", [potential], name)
    return [State(before, potential, operator.in_features)]


def _write_charged(
    build: OnnxBuilder, name: str, operator: ResistiveNeuron | LeakyIntegrator, before: str, current: str
) -> str:
    """Write a potential behind a current, in the order of `export.operators.leaky_integrator.charge`."""
    change = build.add("Mul", [build.weight(f"{name}/r", operator.r), current], f"{name}/driven")
    if operator.tau is not None:
        gap = build.add("Sub", [build.weight(f"{name}/v_leak", operator.v_leak), before], f"{name}/gap")
        pull = build.add("Add", [gap, change], f"{name}/pull")
        change = build.add("Div", [pull, build.weight(f"{name}/tau", operator.tau)], f"{name}/change")
    return build.add("Add", [before, change], f"{name}/charged")


def _send(build: OnnxBuilder, name: str, spikes: str, potential: str) -> None:
    if build.membrane_potentials:
        build.add("Identity", [potential], POTENTIAL.format(name))
    mask_spikes(build, name, spikes)


def mask_spikes(build: OnnxBuilder, name: str, spikes: str) -> None:
    """Write the node's own value: spikes, silent at padding."""
    build.add("Mul", [spikes, TOKEN_MASK], name)
    build.bounds[name] = 1


def fires_when(operator: LeakyIntegrateAndFire | IntegerLeakyIntegrateAndFire | Heaviside) -> str:
    """Return the comparison of a potential with its threshold."""
    return "GreaterOrEqual" if operator.fire_on_equal else "Greater"


STEP_WRITERS: dict[type[Operator], StepWriter] = {
    LeakyIntegrateAndFire: step_neuron,
    IntegerLeakyIntegrateAndFire: step_integer_neuron,
    IntegerCurrentNeuron: step_integer_current_neuron,
    IntegerIntegrator: step_integer_integrator,
    ResistiveNeuron: step_resistive_neuron,
    LeakyIntegrator: step_leaky_integrator,
    PreviousStep: step_previous,
    Delay: step_delay,
}
"""Operator -> how one step of it is written."""
