"""Each rule speaks when its limit is broken, and only then; all that is wrong is told at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from export.network import Network, NetworkBuilder, Node, Readout
from export.operators import (
    Affine,
    Delay,
    Flatten,
    IntegerAffine,
    IntegerConvolution,
    IntegerCurrentNeuron,
    IntegerIntegrator,
    IntegerLeakyIntegrateAndFire,
    LayerNorm,
    LeakyIntegrateAndFire,
    LeakyIntegrator,
    ResistiveNeuron,
    SpikeAttention,
    TokenMean,
    TokenSum,
    all_cases,
    all_integer_cases,
)
from export.token_encoding import TokenEncoding
from hardware import place
from hardware.loihi import Chip
from hardware.loihi.chip import LOIHI1, LOIHI2
from hardware.loihi.mapping import map_network
from hardware.loihi.operators import Neurons, OnHost, PassedOn, Programs, Synapses, form_of


def integer_chain(weight: int = 3, reset: str = "zero", fire_on_equal: bool = False, **changes: int) -> Network:
    """Return two integer neurons behind two inputs, with one parameter changed."""
    values = {"threshold": 64, "decay": 1000, "bias_mantissa": 0, "bias_exponent": 0, **changes}
    builder = NetworkBuilder("input", 2)
    weights = np.array([[weight, -1], [1, 1]])
    last = builder.add("affine", IntegerAffine(weight=weights, unit=np.ones(2)), "input")
    arrays = {name: np.full(2, value) for name, value in values.items()}
    neuron = IntegerLeakyIntegrateAndFire(reset=reset, fire_on_equal=fire_on_equal, unit=np.ones(2), **arrays)
    last = builder.add("neuron", neuron, last)
    return builder.network("output", last, readout=Readout(1.0, np.zeros(2, np.int64)), input_limit=1)


def rules(network: Network, chip: str | Chip = LOIHI1, tokens: int = 1) -> list[tuple[str, str]]:
    return [(violation.rule, violation.node) for violation in place(network, chip, tokens).violations]


def test_what_stock_neurons_compute_fits_both():
    for chip in ("loihi1", "loihi2"):
        found = place(integer_chain(), chip)
        assert found.fits
        assert found.violations == ()
        assert (found.tokens, len(found.cores), found.chips) == (1, 1, 1)


@pytest.mark.parametrize(
    ("change", "rule", "node"),
    [
        ({"weight": 128}, "weights", "affine"),
        ({"threshold": 1 << 17}, "thresholds", "neuron"),
        ({"threshold": -1}, "thresholds", "neuron"),
        ({"decay": 4096}, "decays", "neuron"),
        ({"bias_mantissa": 4096}, "biases", "neuron"),
        ({"bias_mantissa": -4097}, "biases", "neuron"),
        ({"bias_exponent": 8}, "biases", "neuron"),
        ({"reset": "subtract"}, "reset", "neuron"),
        ({"fire_on_equal": True}, "firing_test", "neuron"),
    ],
)
def test_one_thing_wrong(change, rule, node):
    assert rules(integer_chain(**change)) == [(rule, node)]


@pytest.mark.parametrize(
    "change",
    [
        {"weight": 127},
        {"threshold": (1 << 17) - 1},
        {"decay": 4095},
        {"bias_mantissa": 4095},
        {"bias_mantissa": -4096},
        {"bias_exponent": 7},
    ],
)
def test_the_last_value_that_is_allowed(change):
    assert rules(integer_chain(**change)) == []


def integer_pictures(weight: int = 3, **changes: int) -> Network:
    """Return an integrator of two channels behind a convolution of two inputs, with one parameter changed."""
    values = {"decay": 1000, "bias_mantissa": 0, "bias_exponent": 0, **changes}
    kernels = np.array([weight, -1, 1, 1]).reshape(2, 1, 2)
    rest = {"stride": (1,), "padding": ((0, 0),), "dilation": (1,), "groups": 1, "bias": np.zeros(2, np.int64)}
    builder = NetworkBuilder("input", 2)
    last = builder.add("conv", IntegerConvolution(size=(2,), weight=kernels, unit=np.ones(2), **rest), "input")
    arrays = {name: np.full(2, value) for name, value in values.items()}
    last = builder.add("sums", IntegerIntegrator(unit=np.ones(2), **arrays), last)
    readout = Readout(1.0, np.zeros(2, np.int64))
    return builder.network("output", last, readout=readout, input_limit=1, input_shape=(1, 2))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, []),
        ({"weight": 127, "decay": 4095, "bias_mantissa": -4096, "bias_exponent": 7}, []),
        ({"weight": 128}, [("weights", "conv")]),
        ({"decay": 4096}, [("decays", "sums")]),
        ({"bias_mantissa": 4096}, [("biases", "sums")]),
        ({"bias_exponent": 8}, [("biases", "sums")]),
    ],
)
def test_convolutions_and_integrators_hold_what_maps_and_neurons_hold(change, found):
    for chip in ("loihi1", "loihi2"):
        assert rules(integer_pictures(**change), chip) == found


@pytest.mark.parametrize(("first", "second", "found"), [(40, 22, []), (40, 23, [("delays", "neuron", 63)])])
def test_delays_one_behind_the_other_add_up(first, second, found):
    builder = NetworkBuilder("input", 2)
    last = builder.add("again", Delay(np.full(2, second)), builder.add("late", Delay(np.full(2, first)), "input"))
    ones = np.ones(2, np.int64)
    neuron = IntegerLeakyIntegrateAndFire(
        threshold=ones, decay=ones, bias_mantissa=ones, bias_exponent=ones, reset="zero", fire_on_equal=False, unit=ones
    )
    last = builder.add("neuron", neuron, last)
    network = builder.network("output", last, readout=Readout(1.0, 0 * ones), input_limit=1)
    placed = place(network, "loihi1").violations
    assert [(violation.rule, violation.node, violation.value) for violation in placed] == found


def test_programs_reset_and_compare_as_they_like():
    assert rules(integer_chain(reset="subtract", fire_on_equal=True), "loihi2") == []


def test_everything_at_once():
    """A float graph with a reset by subtraction, too long a delay, whole numbers sent on, and too large for a core."""
    builder = NetworkBuilder("input", 5000)
    subtract = LeakyIntegrateAndFire(np.full(3, 0.5), np.full(3, 2.0), np.ones(3), "subtract", fire_on_equal=True)
    last = builder.add("wide", subtract, builder.add("affine0", Affine(np.ones((3, 5000))), "input"))
    last = builder.add("late", Delay(np.array([1, 63, 2])), last)
    integrator = LeakyIntegrator(np.full(3, 2.0), np.ones(3), np.zeros(3))
    last = builder.add("integrator", integrator, builder.add("affine1", Affine(np.ones((3, 3))), last))
    zeros, ones = np.zeros(3), np.ones(3)
    high = ResistiveNeuron(np.full(3, 2.0), ones, zeros, ones, np.array([0, 0.25, -0.5]))
    last = builder.add("high", high, builder.add("affine2", Affine(np.ones((3, 3))), last))
    network = builder.network("output", last)
    found = place(network, "loihi1")
    assert [(violation.rule, violation.node, violation.value, violation.limit) for violation in found.violations] == [
        ("precision", "graph", "floating point", "whole numbers"),
        ("reset", "wide", "reset by subtraction", "reset to zero"),
        ("reset", "high", "reset to -0.5", "reset to zero"),
        ("firing_test", "wide", "potential >= threshold", "potential > threshold"),
        ("graded_values", "integrator", "whole numbers", "0 or 1"),
        ("delays", "late", 63, 62),
        ("in_axons_per_core", "wide", 5000, 4096),
    ]
    assert all(violation.remedy for violation in found.violations)
    assert "spikebert quantize" in found.violations[0].remedy


def test_operators_that_no_neuron_computes(make_network):
    network = make_network(seed=3)
    on_loihi1 = [node for rule, node in rules(network, "loihi1", 4) if rule == "operators"]
    norms = [f"block00_{name}_norm" for name in ("qkv", "projection", "intermediate", "output")]
    assert sorted(on_loihi1) == sorted(["block00_attention", *norms])  # those before the first neurons are the host's
    assert not [rule for rule, _ in rules(network, "loihi2", 4) if rule == "operators"]


def test_input_beyond_a_spike():
    network = integer_chain()
    assert rules(replace(network, input_limit=2)) == [("graded_values", "input")]
    assert rules(replace(network, input_limit=2), "loihi2") == []
    assert rules(replace(network, input_limit=1 << 31), "loihi2") == [("graded_values", "input")]


def test_a_decaying_current_stores_one_less():
    network = integer_chain()
    arrays = {name: np.zeros(2, np.int64) for name in ("threshold", "decay", "bias_mantissa", "bias_exponent")}
    for decay, broken in ((4096, []), (4097, [("decays", "neuron")])):
        neuron = IntegerCurrentNeuron(current_decay=np.full(2, decay), unit=np.ones(2), **arrays)
        nodes = (network.nodes[0], replace(network.nodes[1], operator=neuron))
        assert rules(replace(network, nodes=nodes)) == broken


def test_sentences_longer_than_positions_and_than_what_is_proven():
    builder = NetworkBuilder("input", 9)
    last = builder.add("embedding", IntegerAffine(weight=np.ones((2, 9), np.int8), unit=np.ones(2)), "input")
    neuron = integer_chain().nodes[1].operator
    last = builder.add("first", neuron, last)
    last = builder.add("affine", IntegerAffine(weight=np.ones((2, 2), np.int8), unit=np.ones(2)), last)
    last = builder.add("sum", TokenSum(2), builder.add("neuron", neuron, last))
    readout = Readout(1.0, np.zeros(2, np.int64))
    encoding = TokenEncoding(5, 4)
    network = builder.network("output", last, token_encoding=encoding, readout=readout, max_tokens=3)
    assert rules(network, "loihi1", 3) == []
    assert rules(network, "loihi1", 4) == [("sentence_length", "graph")]
    assert rules(network, "loihi1", 5) == [("sentence_length", "graph")] * 2
    assert place(network, "loihi1").tokens == 3


def test_fewer_bits_of_a_chip_of_ones_own(make_chip):
    chip = make_chip(weight_bits=4, threshold_bits=6, decay_bits=9)
    assert rules(integer_chain(weight=8), chip) == [
        ("weights", "affine"),
        ("thresholds", "neuron"),
        ("decays", "neuron"),
    ]
    assert rules(integer_chain(weight=7, threshold=63, decay=511), chip) == []


@pytest.mark.parametrize("case", [*all_cases(), *all_integer_cases()], ids=lambda case: case.title)
def test_what_an_operator_is_on_a_chip_agrees_with_its_traits(case):
    operator, traits = case.operator, case.operator.traits
    expected = [
        form
        for form, says in (
            (PassedOn, traits.passes_values),
            (Synapses, traits.is_synaptic),
            (Programs, traits.needs_program),
            (OnHost, traits.pools_tokens is not None),
            (Neurons, traits.spike_range is not None or (traits.remembers and not traits.passes_values)),
        )
        if says
    ]
    assert [type(form_of(Node("node", operator, ("input",))))] == expected


def test_registers_are_those_of_the_neuron():
    neuron = integer_chain().nodes[1].operator
    integrator = integer_pictures().nodes[1].operator
    assert set(neuron.registers) == {"threshold", "decay", "bias_mantissa", "bias_exponent"}
    assert set(integrator.registers) == {"decay", "bias_mantissa", "bias_exponent"}


@pytest.mark.parametrize(
    ("before", "moves"),
    [
        (LayerNorm(np.ones(6), np.zeros(6)), True),
        (Flatten((6,)), True),
        (Delay(np.full(6, 2)), False),
        (SpikeAttention(1, 2, 0.5), False),
    ],
)
def test_the_host_computes_what_it_alone_reads_but_for_what_remembers_or_mixes_tokens(before, moves):
    builder = NetworkBuilder("input", 6)
    neuron = LeakyIntegrateAndFire(np.full(6, 0.5), np.full(6, 2.0), np.ones(6), "zero")
    last = builder.add("neuron", neuron, builder.add("affine", Affine(np.ones((6, 6))), "input"))
    last = builder.add("before", before, last)
    network = builder.network("output", builder.add("mean", TokenMean(before.out_features), last))
    assert list(map_network(network, LOIHI2).host) == (["before", "mean"] if moves else ["mean"])
