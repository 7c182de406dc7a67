"""How neurons and integrators are spelled in ONNX; what they remember stands in a scan."""

from __future__ import annotations

from typing import Any

from export.loihi_numbers import ACTIVATION_SHIFT, DECAY_BITS, DECAY_UNITY, POTENTIAL_MAX, STATE_LIMIT
from export.onnx_format.builder import POTENTIAL, TOKEN_MASK, OnnxBuilder, State
from export.onnx_format.spellings import writes, writes_steps
from export.operators import (
    Heaviside,
    IntegerCurrentNeuron,
    IntegerIntegrator,
    IntegerLeakyIntegrateAndFire,
    LeakyIntegrateAndFire,
    LeakyIntegrator,
    ResistiveNeuron,
)


@writes(Heaviside)
def write_heaviside(build: OnnxBuilder, name: str, operator: Heaviside, x: str) -> None:
    """Write the bare comparison."""
    if build.membrane_potentials:
        build.add("Identity", [x], POTENTIAL.format(name))
    fired = build.add(fires_when(operator), [x, build.weight(f"{name}/threshold", operator.threshold)], f"{name}/fired")
    mask_spikes(build, name, build.cast(fired, f"{name}/S"))


@writes_steps(LeakyIntegrateAndFire)
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


@writes_steps(IntegerLeakyIntegrateAndFire)
def step_integer_neuron(build: OnnxBuilder, name: str, operator: IntegerLeakyIntegrateAndFire, x: str) -> list[State]:
    """Write a step of Loihi's neuron with the equations of its docstring in their order."""
    before = f"{name}/U_before"
    charged = _charge_loihi(build, name, operator, before, _wrapped_current(build, name, x))
    threshold = build.weight(f"{name}/threshold", operator.tested_threshold)
    return _fire_and_reset(build, name, operator, threshold, before, charged, saturates=True)


@writes_steps(IntegerIntegrator)
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


@writes_steps(IntegerCurrentNeuron)
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


@writes_steps(ResistiveNeuron)
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


@writes_steps(LeakyIntegrator)
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
