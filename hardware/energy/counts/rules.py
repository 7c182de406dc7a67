"""What is counted of each operator: the rows of `OPERATION_COUNTS`, one for each kind of operator.

A row of a node is a token at a time step; behind a token mean it is a sentence at a time step; in front of the first
neurons, where token ids make the input constant, it is a token once. ``in`` and ``out`` are features, ``F`` both where
they are equal, ``K`` the hot inputs of a token (1, or 2 with positions). What no spikes cause is dense, a table of its
own: `hardware.energy.counts.dense`.

===================== ============================================================================================
node                  operations
===================== ============================================================================================
affine on spikes      for each input that is 1: ``out`` ac_binary; for each input k > 1: ``out`` ac_graded, which are
                      ``k out`` ac_graded_additions; ``out`` weight_read for each input that is not 0; for one below 0
                      as for what it is without its sign
affine on analog      dense, as are its biases always
affine on tokens      a gather of K tables. What the product with a one-hot matrix would cost is in dense_mac
convolution           as an affine whose inputs differ in fan-out: on spikes each reaches the outputs whose window
                      holds it, for each output whose channel has a bias other than 0 one is added
scale                 as an affine with one synapse for each feature
sum, average pooling  on spikes an addition for each value other than 0 and each window that holds it; a mean divides
                      ``out`` times. On analog it is dense
residual sum          a residual_addition for each nonzero value that joins the running sum
layer norm            dense
token mean            dense. A token sum of an integer graph does not divide
attention on spikes   see `ATTENTION_ORDERS`, and ``out`` mac for the scale (a shift where it is a power of two); in an
                      integer graph the scale is wiring
attention on others   two dense products: mac, no sparsity used
leaky neuron          ``F`` membrane_update, membrane_leak (none without leak), comparison, state_read and state_write;
                      a spike and a reset for each spike; ``F`` addition where the input decays too (I - U)
integer neuron        the same; its own bias is an addition and parameter_read where it is not 0
heaviside             ``F`` comparison; a spike for each spike
leaky integrator      ``F`` membrane_update, state_read and state_write; membrane_leak where it leaks; a mac for each
                      input gain other than 1; an addition and parameter_read for each resting potential other than 0
integer integrator    as an integer neuron that never fires, without comparison: its gains are in its unit
resistive neuron      as a leaky integrator, and ``F`` comparison; a spike and reset for each spike. A synaptic current
                      that is kept is a second state: update, leak, read, write, and a mac for each gain other than 1
integer current       as an integer neuron, with a second state for each current that is kept
delay                 a state_write and a state_read for each feature that is delayed: a ring buffer
flatten, cycles       nothing: wiring. What a cycle carries arrives a step later, as spikes do
===================== ============================================================================================

A gain is one number, ``r / tau`` or ``w_in / tau_syn``: what the equations divide and multiply by is constant. In an
integer graph a layer norm's table and Newton steps count as the root and reciprocal they replace.

Padding is counted apart, never silently: what the masked tokens add in a run that computes them as a padded batch does.
Where they are masked their neurons send nothing, so what they add is dense: biases, norms, scales, membrane updates,
gathers, and no accumulate. Accumulates appear under padding only where a trace has spikes there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from export.loihi_numbers import DECAY_UNITY
from export.operators import (
    Affine,
    Convolution,
    Delay,
    Flatten,
    Heaviside,
    IntegerCurrentNeuron,
    IntegerIntegrator,
    IntegerLeakyIntegrateAndFire,
    IntegerSpikeAttention,
    LayerNorm,
    LeakyIntegrateAndFire,
    LeakyIntegrator,
    Operator,
    Pooling,
    PreviousStep,
    ResistiveNeuron,
    Scale,
    SpikeAttention,
    TokenMean,
    TokenSum,
    Total,
)
from export.operators.rules import RuleTable
from hardware.energy.counts import dense
from hardware.energy.counts.activity import Events, NodeActivity
from hardware.energy.counts.attention import attention_products
from hardware.energy.counts.fan_out import convolution_fan_out, fan_out_of_one, pooling_fan_out
from hardware.energy.counts.kinds import Tallies, Tally
from hardware.traces.edges import Edge
from hardware.traces.firing import Firing
from hardware.traces.trace import spike_type

Count = Callable[[Any, NodeActivity], Tallies]
"""Says what an operator did, from what was seen of its node."""
CountType = TypeVar("CountType", bound=Count)


@dataclass(frozen=True, kw_only=True)
class CountingRule:
    """What is counted of an operator, and what has to be seen of a run for that.

    Attributes
    ----------
    count : callable
        Gives the operations of the operator in all rows that were seen.
    name : str
        Under which energy models know it: an integer operator stands for the float one.
    component : str
        The part of a network that its energy belongs to, of `COMPONENTS`.
    parameters : callable
        Gives the number of its weights and biases.
    reads : int or None
        Which of its edges has to be known as a whole, every value alike, whatever feature it belongs to.
    fan_out : callable or None
        Gives how many outputs each input reaches, ``(in,)``, where inputs differ in it and have to be known apart.
    passes_on : callable or None
        Gives what it sends where it only moves or adds up the whole numbers of its first edge, else None.
    products : callable or None
        Counts a batch's products of one spike with another, in each order, from the edges, time steps and firing: what
        no sum over spikes tells.
    heads : callable
        Gives the number of attention heads; 0 elsewhere.
    """

    count: Count
    name: str
    component: str
    parameters: Callable[[Any], int] = lambda operator: 0
    reads: int | None = None
    fan_out: Callable[[Any], np.ndarray] | None = None
    passes_on: Callable[[Any, Edge], Edge | None] | None = None
    products: Callable[[Any, tuple[Edge, ...], int, Firing, tuple[str, ...]], dict[str, Tallies]] | None = None
    heads: Callable[[Any], int] = lambda operator: 0


OPERATION_COUNTS: RuleTable[CountingRule] = RuleTable("operation counts")


def counting_rule(
    *operators: type[Operator], component: str, name: str | None = None, **rest: Any
) -> Callable[[CountType], CountType]:
    """Register what is decorated as the count of `operators`; `rest` are other attributes of `CountingRule`.

    Parameters
    ----------
    *operators : type of Operator
    component : str
        As of `CountingRule`.
    name : str, optional
        As of `CountingRule`; by default each operator's own.
    """

    def register(count: CountType) -> CountType:
        for operator in operators:
            rule = CountingRule(count=count, name=name or operator.name, component=component, **rest)
            OPERATION_COUNTS.set(rule, operator)
        return count

    return register


# ---------------------------------------------------------------------------------------------------------------------
# synapses


def _weights_and_biases(operator: Affine | Convolution | LayerNorm) -> int:
    return operator.weight.size + (0 if operator.bias is None else operator.bias.size)


@counting_rule(Affine, component="synapses", reads=0, parameters=_weights_and_biases)
def count_affine(operator: Affine, activity: NodeActivity) -> Tallies:
    """Count accumulates, products, or what is gathered."""
    width_in, width_out = operator.in_features, operator.out_features
    weights = dense.weights(width_in, width_out, width_in * width_out)
    if activity.kind == "tokens":
        gathered = dense.gather(activity.hot_inputs, width_out)
        counted = activity.rows.times(**gathered, dense_mac=weights["dense_mac"])
    else:
        counted = _count_weights(weights, activity, width_out)
    counted.add(activity.rows.times(**dense.bias(0 if operator.bias is None else width_out)))
    return counted


@counting_rule(Convolution, component="synapses", fan_out=convolution_fan_out, parameters=_weights_and_biases)
def count_convolution(operator: Convolution, activity: NodeActivity) -> Tallies:
    """Count accumulates or products, and biases."""
    counted = _count_weights(dense.convolution_weights(operator), activity)
    counted.add(activity.rows.times(**dense.bias(dense.biased_outputs(operator))))
    return counted


@counting_rule(Scale, component="synapses", fan_out=fan_out_of_one, parameters=lambda operator: operator.scale.size)
def count_scale(operator: Scale, activity: NodeActivity) -> Tallies:
    """Count a synapse for each feature."""
    return _count_weights(dense.weights(*[operator.in_features] * 3), activity)


def _count_weights(weights: Tally, activity: NodeActivity, fan_out: int | None = None) -> Tallies:
    """Count `weights` where they are dense, else what events cause behind `fan_out`; None where inputs differ in it."""
    if not activity.spike_driven:
        return activity.rows.times(**weights)
    counted = activity.rows.times(input_element=activity.node.operator.in_features, dense_mac=weights["dense_mac"])
    for reached, carried in activity.fan_outs if fan_out is None else [(fan_out, activity.read())]:
        counted.add(carried.tallies(partial(Events.accumulates, fan_out=reached)))
    return counted


# ---------------------------------------------------------------------------------------------------------------------
# sums and norms


def _sums_passed_on(operator: Pooling, edge: Edge) -> Edge | None:
    if operator.mean or edge.values is None:
        return None
    summed = operator.step(edge.values.astype(np.int64), None, None)
    narrow = spike_type(int(summed.min(initial=0)), int(summed.max(initial=0)))
    return replace(edge, kind="graded", values=summed.astype(narrow))


@counting_rule(Pooling, component="rest", fan_out=pooling_fan_out, passes_on=_sums_passed_on)
def count_pooling(operator: Pooling, activity: NodeActivity) -> Tallies:
    """Count additions to windows, and the division of a mean."""
    if not activity.spike_driven:
        return activity.rows.times(**dense.pool(operator))
    counted = activity.rows.times(**dense.pool_division(operator))
    for windows, carried in activity.fan_outs:
        counted.add(
            Tallies({"addition": carried.real.nonzero * windows}, {"addition": carried.padding.nonzero * windows})
        )
    return counted


JOINING = 1
"""The edge of a sum whose values are added to those of the other."""


@counting_rule(Total, component="rest", reads=JOINING)
def count_total(operator: Total, activity: NodeActivity) -> Tallies:
    """Count the values that join."""
    if not activity.spike_driven:
        return activity.rows.times(**dense.residual_sum(operator.features))
    return activity.read(JOINING).tallies(lambda events: {"residual_addition": events.nonzero})


@counting_rule(LayerNorm, component="norms", parameters=_weights_and_biases)
def count_layer_norm(operator: LayerNorm, activity: NodeActivity) -> Tallies:
    """Count what a norm always does."""
    return activity.rows.times(**dense.layer_norm(operator.in_features, operator.groups))


# ---------------------------------------------------------------------------------------------------------------------
# tokens


@counting_rule(TokenMean, component="rest")
def count_token_mean(operator: TokenMean, activity: NodeActivity, divides: bool = True) -> Tallies:
    """Count the sum over tokens, and the division by their number."""
    counted = activity.attended.times(**dense.token_sum(operator.features))
    counted.add(activity.each_sentence.times(**dense.token_mean(operator.features, divides)))
    return counted


@counting_rule(TokenSum, name=TokenMean.name, component="rest")
def count_token_sum(operator: TokenSum, activity: NodeActivity) -> Tallies:
    """Count the sum over tokens."""
    return count_token_mean(operator, activity, divides=False)


_attention_rule = partial(
    counting_rule,
    name=SpikeAttention.name,
    component="attention",
    reads=0,
    products=attention_products,
    heads=lambda operator: operator.num_heads,
)


@_attention_rule(SpikeAttention)
def count_attention(operator: SpikeAttention, activity: NodeActivity) -> Tallies:
    """Count what both orders of the products share: the scale, and what flows in."""
    counted = count_integer_attention(operator, activity)
    counted.add(activity.rows.times(mac=operator.out_features))
    return counted


@_attention_rule(IntegerSpikeAttention)
def count_integer_attention(operator: SpikeAttention, activity: NodeActivity) -> Tallies:
    """Count what flows in; whole numbers leave the scale to the threshold behind."""
    if activity.kind != "binary":
        return Tallies()
    counted = activity.rows.times(input_element=operator.in_features)
    counted.add(activity.read().tallies(lambda spikes: dict.fromkeys(("input_event", "input_value"), spikes.nonzero)))
    return counted


# ---------------------------------------------------------------------------------------------------------------------
# neurons and integrators


@counting_rule(LeakyIntegrateAndFire, component="nonlinearities")
def count_neurons(operator: LeakyIntegrateAndFire, activity: NodeActivity) -> Tallies:
    """Count updates at every step, and spikes."""
    features = operator.in_features
    leak = operator.tau if operator.decay_input else operator.beta
    counted = activity.step_rows.times(
        membrane_update=features,
        membrane_leak=int(np.count_nonzero(np.not_equal(leak, 1))) * (features // np.size(leak)),
        comparison=features,
        addition=features if operator.decay_input else 0,
        state_read=features,
        state_write=features,
    )
    counted.add(activity.sent("spike", "reset"))
    return counted


@counting_rule(Heaviside, component="nonlinearities")
def count_heaviside(operator: Heaviside, activity: NodeActivity) -> Tallies:
    """Count comparisons, and spikes."""
    counted = activity.rows.times(comparison=operator.in_features)
    counted.add(activity.sent("spike"))
    return counted


@counting_rule(LeakyIntegrator, component="nonlinearities")
def count_integrator(operator: LeakyIntegrator | ResistiveNeuron, activity: NodeActivity) -> Tallies:
    """Count updates at every step."""
    features, leaks = operator.in_features, operator.tau is not None
    gain = operator.r / operator.tau if operator.tau is not None else operator.r
    resting = int(np.count_nonzero(operator.v_leak)) if leaks else 0
    return activity.step_rows.times(
        membrane_update=features,
        membrane_leak=features if leaks else 0,
        mac=_other_than_one(gain),
        addition=resting,
        parameter_read=resting,
        state_read=features,
        state_write=features,
    )


@counting_rule(ResistiveNeuron, component="nonlinearities")
def count_resistive_neuron(operator: ResistiveNeuron, activity: NodeActivity) -> Tallies:
    """Count updates of potential and current at every step, and spikes."""
    counted = count_integrator(operator, activity)
    counted.add(activity.step_rows.times(comparison=operator.in_features))
    if operator.tau_syn is not None and operator.w_in is not None:
        counted.add(_count_currents(_other_than_one(operator.tau_syn), activity))
        counted.add(activity.step_rows.times(mac=_other_than_one(operator.w_in / operator.tau_syn)))
    counted.add(activity.sent("spike", "reset"))
    return counted


@counting_rule(IntegerIntegrator, component="nonlinearities")
def count_integer_integrator(operator: Any, activity: NodeActivity) -> Tallies:
    """Count updates at every step, of any of the chip's neurons."""
    features, biased = operator.in_features, int(np.count_nonzero(operator.bias_mantissa))
    return activity.step_rows.times(
        membrane_update=features,
        membrane_leak=int(np.count_nonzero(operator.decay)),
        addition=biased,
        parameter_read=biased,
        state_read=features,
        state_write=features,
    )


@counting_rule(IntegerLeakyIntegrateAndFire, name=LeakyIntegrateAndFire.name, component="nonlinearities")
def count_integer_neurons(
    operator: IntegerLeakyIntegrateAndFire | IntegerCurrentNeuron, activity: NodeActivity
) -> Tallies:
    """Count updates at every step, and spikes."""
    counted = count_integer_integrator(operator, activity)
    counted.add(activity.step_rows.times(comparison=operator.in_features))
    counted.add(activity.sent("spike", "reset"))
    return counted


@counting_rule(IntegerCurrentNeuron, component="nonlinearities")
def count_integer_current_neurons(operator: IntegerCurrentNeuron, activity: NodeActivity) -> Tallies:
    """Count the same, and updates of currents."""
    counted = count_integer_neurons(operator, activity)
    counted.add(_count_currents(int(np.count_nonzero(operator.current_decay != DECAY_UNITY)), activity))
    return counted


def _count_currents(kept: int, activity: NodeActivity) -> Tallies:
    """Count the update of `kept` synaptic currents: those that keep something from step to step."""
    return activity.step_rows.times(membrane_update=kept, membrane_leak=kept, state_read=kept, state_write=kept)


def _other_than_one(values: np.ndarray) -> int:
    return int(np.count_nonzero(values != 1))


# ---------------------------------------------------------------------------------------------------------------------
# wiring


@counting_rule(Flatten, component="rest", passes_on=lambda operator, edge: edge)
@counting_rule(PreviousStep, component="rest")
def count_wiring(operator: Flatten | PreviousStep, activity: NodeActivity) -> Tallies:
    """Count nothing."""
    return Tallies()


def _passed_on_late(operator: Delay, edge: Edge) -> Edge:
    values = edge.values
    assert values is not None
    late = np.zeros_like(values)
    for steps in np.unique(operator.steps[operator.steps < len(values)]):
        due = operator.steps == steps
        late[steps:, ..., due] = values[: len(values) - steps, ..., due]
    return replace(edge, values=late)


@counting_rule(Delay, component="rest", passes_on=_passed_on_late)
def count_delay(operator: Delay, activity: NodeActivity) -> Tallies:
    """Count what is written to and read from a ring buffer."""
    delayed = int(np.count_nonzero(operator.steps))
    return activity.step_rows.times(state_read=delayed, state_write=delayed)
