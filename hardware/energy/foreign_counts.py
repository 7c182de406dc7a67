"""What the operators of graphs that other tools write are charged, for each row; `operation_counts` says what a row is.

``F`` are features, ``in`` and ``out`` those of a node that changes them. Synapses beyond the border of a picture, onto
padding, are none: a spike at a border reaches fewer outputs than one within.

===================== ============================================================================================
node                  operations
===================== ============================================================================================
convolution           as an affine whose inputs differ in fan-out: on spikes each reaches the outputs whose window
                      holds it; on analog a mac and weight_read for each such pair. An addition and parameter_read for
                      each output whose channel has a bias other than 0
scale                 as an affine with one synapse for each feature
sum, average pooling  an addition for each value and each window that holds it: on spikes, values other than 0; on
                      analog all, with ``in`` activation_read and ``out`` activation_write. A mean: ``out`` mac
flatten, cycles       nothing: wiring. What a cycle carries arrives a step later, as spikes do
delay                 a state_write and a state_read for each feature that is delayed: a ring buffer
leaky integrator      ``F`` membrane_update, state_read and state_write; membrane_leak where it leaks; a mac for each
                      input gain other than 1; an addition and parameter_read for each resting potential other than 0
resistive neuron      as a leaky integrator, and ``F`` comparison; a spike and reset for each spike. A synaptic current
                      that is kept is a second state: update, leak, read, write, and a mac for each gain other than 1
integer integrator    as an integer neuron that never fires, without comparison: its gains are in its unit
integer current       as an integer neuron, with a second state for each current that is kept
===================== ============================================================================================

A gain is one number, ``r / tau`` or ``w_in / tau_syn``: what the equations divide and multiply by is constant.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from export.loihi_numbers import DECAY_UNITY
from export.operators import (
    Convolution,
    Delay,
    Flatten,
    IntegerCurrentNeuron,
    IntegerIntegrator,
    LeakyIntegrator,
    Operator,
    Pooling,
    PreviousStep,
    ResistiveNeuron,
    Scale,
)
from export.operators.convolution import windows_of
from hardware.edges import Edge

if TYPE_CHECKING:
    from hardware.energy.operation_counts import Split, Task


PASSING = (Flatten, Delay, Pooling)
"""Operators that can send the whole numbers they read, see `passed_on`."""


def window_fan_out(
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    dilation: tuple[int, ...],
) -> np.ndarray:
    """Return how many windows hold each place of a line or picture, ``(*size,)``."""
    places = np.arange(1, math.prod(size) + 1).reshape(1, 1, *size)  # padding is 0
    held = windows_of(places, kernel, stride, padding, dilation)
    return np.bincount(held.ravel(), minlength=places.size + 1)[1:].reshape(size)


def passed_on(node: str, operator: Operator, edge: Edge) -> Edge | None:
    """Return what a node sends where it only moves or adds up the whole numbers it reads, else None."""
    values = edge.values
    if values is None:
        return None
    if isinstance(operator, Flatten):
        return Edge(node, "", edge.kind, values)
    if isinstance(operator, Delay):
        late = np.zeros_like(values)
        for steps in np.unique(operator.steps[operator.steps < len(values)]):
            due = operator.steps == steps
            late[steps:, ..., due] = values[: len(values) - steps, ..., due]
        return Edge(node, "", edge.kind, late)
    if isinstance(operator, Pooling) and not operator.mean:
        summed = operator.step(values.astype(np.int64), None, None)
        return Edge(node, "", "graded", summed.astype(np.min_scalar_type(int(summed.max(initial=0)))))
    return None


def convolution_fan_out(operator: Convolution) -> np.ndarray:
    """Return how many outputs each input of a convolution reaches, ``(in,)``."""
    places = window_fan_out(
        operator.size, operator.weight.shape[2:], operator.stride, operator.padding, operator.dilation
    )
    return np.tile(places.ravel() * (operator.weight.shape[0] // operator.groups), operator.in_shape[0])


def biased_outputs(operator: Convolution) -> int:
    """Return how many outputs of a convolution belong to a channel with a bias other than 0."""
    return int(np.count_nonzero(operator.bias)) * math.prod(operator.out_shape[1:])


def pooling_fan_out(operator: Pooling) -> np.ndarray:
    """Return how many windows of a pool hold each input, ``(in,)``."""
    around = tuple((pad, pad) for pad in operator.padding)
    places = window_fan_out(operator.shape[1:], operator.kernel, operator.stride, around, (1, 1))
    return np.tile(places.ravel(), operator.shape[0])


def fan_out_of(operator: Operator) -> np.ndarray | None:
    """Return what each input of an operator reaches, ``(in,)``, where some may reach more than others, else None."""
    if isinstance(operator, Convolution):
        return convolution_fan_out(operator)
    if isinstance(operator, Pooling):
        return pooling_fan_out(operator)
    return np.ones(operator.in_features, np.int64) if isinstance(operator, Scale) else None


def count_convolution(operator: Convolution, task: Task) -> Split:
    """See the head of this module."""
    counted = task.synapses(convolution_fan_out(operator), operator.out_features)
    biased = biased_outputs(operator)
    counted.add(task.rows.times(addition=biased, parameter_read=biased))
    return counted


def count_scale(operator: Scale, task: Task) -> Split:
    """See the head of this module."""
    return task.synapses(np.ones(operator.in_features, np.int64), operator.out_features)


def count_pooling(operator: Pooling, task: Task) -> Split:
    """See the head of this module."""
    fan_out = pooling_fan_out(operator)
    if not task.spike_driven:
        counted = task.rows.times(
            addition=int(fan_out.sum()),
            activation_read=operator.in_features,
            activation_write=operator.out_features,
        )
    else:
        counted = task.additions()
    counted.add(task.rows.times(mac=operator.out_features if operator.mean else 0))
    return counted


def count_wiring(operator: Flatten | PreviousStep, task: Task) -> Split:
    """Count nothing."""
    return task.rows.times()


def count_delay(operator: Delay, task: Task) -> Split:
    """See the head of this module."""
    delayed = int(np.count_nonzero(operator.steps))
    return task.step_rows.times(state_read=delayed, state_write=delayed)


def count_integrator(operator: LeakyIntegrator | ResistiveNeuron, task: Task) -> Split:
    """See the head of this module."""
    features, leaks = operator.in_features, operator.tau is not None
    gain = operator.r / operator.tau if operator.tau is not None else operator.r
    resting = int(np.count_nonzero(operator.v_leak)) if leaks else 0
    return task.step_rows.times(
        membrane_update=features,
        membrane_leak=features if leaks else 0,
        mac=_other_than_one(gain),
        addition=resting,
        parameter_read=resting,
        state_read=features,
        state_write=features,
    )


def count_resistive_neuron(operator: ResistiveNeuron, task: Task) -> Split:
    """See the head of this module."""
    counted = count_integrator(operator, task)
    counted.add(task.step_rows.times(comparison=operator.in_features))
    if operator.tau_syn is not None and operator.w_in is not None:
        counted.add(_current(_other_than_one(operator.tau_syn), task))
        counted.add(task.step_rows.times(mac=_other_than_one(operator.w_in / operator.tau_syn)))
    counted.add(task.sent("spike", "reset"))
    return counted


def count_integer_integrator(operator: IntegerIntegrator | IntegerCurrentNeuron, task: Task) -> Split:
    """See the head of this module."""
    features, biased = operator.in_features, int(np.count_nonzero(operator.bias_mantissa))
    return task.step_rows.times(
        membrane_update=features,
        membrane_leak=int(np.count_nonzero(operator.decay)),
        addition=biased,
        parameter_read=biased,
        state_read=features,
        state_write=features,
    )


def count_integer_current_neuron(operator: IntegerCurrentNeuron, task: Task) -> Split:
    """See the head of this module."""
    counted = count_integer_integrator(operator, task)
    counted.add(task.step_rows.times(comparison=operator.in_features))
    counted.add(_current(int(np.count_nonzero(operator.current_decay != DECAY_UNITY)), task))
    counted.add(task.sent("spike", "reset"))
    return counted


def _current(kept: int, task: Task) -> Split:
    """Count the update of `kept` synaptic currents: those that keep something from step to step."""
    return task.step_rows.times(membrane_update=kept, membrane_leak=kept, state_read=kept, state_write=kept)


def _other_than_one(values: np.ndarray) -> int:
    return int(np.count_nonzero(values != 1))
