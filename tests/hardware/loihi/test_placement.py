"""Placements, held against networks worked out on paper, against a count of every synapse, and against nengo-loihi."""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from dataclasses import replace

import nir
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.network import Network, NetworkBuilder
from export.operators import (
    Affine,
    Convolution,
    Delay,
    Flatten,
    LayerNorm,
    LeakyIntegrateAndFire,
    LeakyIntegrator,
    Pooling,
    PreviousStep,
    Scale,
    SpikeAttention,
    Total,
)
from hardware import place
from hardware.errors import PlacementError, TraceMismatchError
from hardware.loihi import Chip, Limit, Placement, misfits
from hardware.loihi import placement as placement_module
from hardware.loihi.chip import LOIHI1, LOIHI2
from hardware.loihi.connectivity import TABLE_ENTRY_BITS, FeatureSlice
from hardware.loihi.mapping import map_network
from hardware.loihi.tiling import RESOURCES, core_limit
from hardware.traces.trace import Trace


def neurons(width: int) -> LeakyIntegrateAndFire:
    return LeakyIntegrateAndFire(np.full(width, 0.5), np.full(width, 2.0), np.ones(width), "zero")


class TestOnPaper:
    """A chain of 8 inputs, 16 neurons and 4 neurons."""

    @pytest.fixture
    def chip(self, make_chip) -> Chip:
        return make_chip(
            neurons_per_core=20,
            in_axons_per_core=40,
            out_axons_per_core=64,
            memory_bits_per_core=2048,
            cores_per_chip=2,
        )

    def test_three_tokens(self, make_chain, chip):
        """Lists are cut to words of 64 bits behind a head of 10; a weight is 8 bits, 18 with its neuron's index.

        neuron1, 4 neurons that read 16: of two tokens, 2 x 16 = 32 axons of 40 (three would be 48), 8 neurons of 20,
        and 16 lists of 4: each token's own 42 -> 64 bits, together 2,048; shared 82 -> 128 bits, 2,048 as well. So 2
        slices: tokens 0 and 1, and token 2. The host reads each neuron.

        neuron0, 16 neurons that read 8: two tokens would be 32 neurons, so that features are cut in half and slices for
        three tokens are 2 x 2 = 4; one token each takes 3: 16 neurons, 8 axons, and 8 lists of 16: 138 -> 192 bits,
        1,536. Each neuron sends to the one core that has its token.
        """
        placement = place(make_chain(8, 16, 4), chip, tokens=3)
        rows = [
            (
                piece.node,
                piece.tokens,
                piece.resources.neurons,
                piece.resources.in_axons,
                piece.resources.out_axons,
                piece.resources.memory_bits,
                piece.resources.synapses,
            )
            for core in placement.cores
            for piece in core.slices
        ]
        assert rows == [
            ("neuron0", (0, 1), 16, 8, 16, 1536, 128),
            ("neuron0", (1, 2), 16, 8, 16, 1536, 128),
            ("neuron0", (2, 3), 16, 8, 16, 1536, 128),
            ("neuron1", (0, 2), 8, 32, 8, 2048, 128),
            ("neuron1", (2, 3), 4, 16, 4, 1024, 64),
        ]
        assert [core.chip for core in placement.cores] == [0, 0, 1, 1, 2]
        assert (len(placement.cores), placement.chips) == (5, 3)

    def test_small_layers_share_a_core(self, make_chain, chip):
        """One token: 16 + 4 neurons of 20, 8 + 16 axons of 40, but 1,536 + 1,024 bits of 2,048; with 2,560 they do."""
        assert len(place(make_chain(8, 16, 4), chip, tokens=1).cores) == 2
        larger = replace(chip, memory_bits_per_core=Limit(2560, "a test"))
        (core,) = place(make_chain(8, 16, 4), larger, tokens=1).cores
        assert [piece.node for piece in core.slices] == ["neuron0", "neuron1"]
        assert core.resources.memory_bits == 2560
        less = replace(larger, memory_bits_per_core=Limit(2559, "a test"))
        assert len(place(make_chain(8, 16, 4), less, tokens=1).cores) == 2

    def test_a_residual_sum_shares_its_weights(self, make_chip):
        """neuron1 reads neuron0 and the input through the same 4 x 4 weights: 8 axons, 32 synapses, 4 lists of 4."""
        builder = NetworkBuilder("input", 4)
        first = builder.add("neuron0", neurons(4), builder.add("affine0", Affine(np.ones((4, 4))), "input"))
        last = builder.add("affine1", Affine(np.ones((4, 4))), ("input", first))
        network = builder.network("output", builder.add("neuron1", neurons(4), last))
        placement = place(network, make_chip(), tokens=1)
        row = {row["node"]: row for row in placement.node_rows()}["neuron1"]
        assert (row["in_axons"], row["synapses"], row["memory_bits"]) == (8, 32, 4 * 64)
        assert any("share" in assumption for assumption in placement.assumptions)
        row = {row["node"]: row for row in place(network, make_chip(shared_copies=1), tokens=1).node_rows()}["neuron1"]
        assert (row["in_axons"], row["synapses"], row["memory_bits"]) == (8, 32, 2 * 4 * 64)

    def test_flexible_memory_holds_neurons_and_axons_too(self, make_chain):
        """Loihi 2, one token of 8 -> 16: 192 bits a neuron, 56 an axon (8 in, 16 to the host), 8 lists of 192 bits."""
        (core,) = place(make_chain(8, 16), "loihi2", tokens=1).cores
        assert core.resources.memory_bits == 16 * 192 + (8 + 16) * 56 + 8 * 192


def test_attention_on_paper(make_chip):
    """4 features in 2 heads at 4 tokens, a core for each head: 2 x (4 queries + 2 x 4 keys and values) axons."""
    builder = NetworkBuilder("input", 4)
    last = builder.add("qkv_neuron", neurons(12), builder.add("qkv", Affine(np.ones((12, 4))), "input"))
    last = builder.add("attention", SpikeAttention(2, 2, 0.125), last)
    network = builder.network("output", builder.add("attention_neuron", neurons(4), last))
    chip = make_chip(LOIHI2, in_axons_per_core=24, neurons_per_core=40)
    placement = place(network, chip, tokens=4)
    heads = {
        piece.features.channels: piece for core in placement.cores for piece in core.slices if piece.node == "attention"
    }
    assert set(heads) == {(0, 2), (2, 4)}
    for piece in heads.values():
        assert piece.tokens == (0, 4)
        assert (piece.resources.in_axons, piece.resources.neurons, piece.resources.synapses) == (24, 8, 0)
        table = 2 * 2 * TABLE_ENTRY_BITS
        assert piece.resources.memory_bits == table + 8 * 192 + (24 + piece.resources.out_axons) * 56
    # a key goes to the one core that has its head, whatever token
    rows = {row["node"]: row for row in placement.node_rows()}
    assert rows["qkv_neuron"]["out_axons"] == 12 * 4
    # with 18 axons a core has one token of a head, 2 x (1 + 2 x 4); keys and values then go to 4 cores, queries to 1
    placement = place(network, replace(chip, in_axons_per_core=Limit(18, "a test")), tokens=4)
    rows = {row["node"]: row for row in placement.node_rows()}
    assert rows["attention"]["cores"] == 8
    assert rows["qkv_neuron"]["out_axons"] == 4 * (4 * 1 + 8 * 4)
    assert any("nobody has published" in assumption for assumption in placement.assumptions)
    # with 17 it does not fit at all
    placement = place(network, replace(chip, in_axons_per_core=Limit(17, "a test")), tokens=4)
    (violation,) = (violation for violation in placement.violations if violation.node == "attention")
    assert (violation.rule, violation.value, violation.limit) == ("in_axons_per_core", 18, 17)


class TestAgainstNengoLoihi:
    """nengo-loihi cuts a layer into blocks of equal width, a core each; one token is what both know."""

    @pytest.mark.parametrize(
        ("widths", "cores"),
        [
            ((64, 128), [1]),  # one block
            ((10, 1100), [2]),  # too many neurons
            ((400, 300), [2]),  # too much memory: 400 lists of 2,688 bits
            ((50, 1024, 10), [1, 1]),  # a core filled to its last neuron
            ((1024, 120, 20), [2, 1]),  # halves of 60 take 512 bits a list, half of a core's memory
        ],
    )
    def test_a_chain_takes_as_many_cores_and_as_much_of_them(self, make_chain, widths, cores):
        found = {row["node"]: row for row in place(make_chain(*widths), "loihi1", tokens=1).node_rows()}
        theirs = _nengo_blocks(widths)
        assert [len(blocks) for blocks in theirs.values()] == cores
        for node, blocks in theirs.items():
            used = [block.utilization() for block in blocks]
            assert all(count <= limit for each in used for count, limit in each.values())
            compartments, in_axons, _, bits = (sum(each[name][0] for each in used) for name in used[0])
            row = found[node]
            assert row["feature_slices"] == len(blocks)
            assert (row["neurons"], row["in_axons"], row["memory_bits"]) == (compartments, in_axons, bits)

    def test_where_its_blocks_are_too_large_ours_are_not(self, make_chain):
        """It divides the layer's memory by a core's: 4,096 lists of 61 weights take 512 bits each, two cores full.

        So it cuts in two. But a list of 31 weights is 258 bits, in words 320, and 4,096 of them are more than a core
        has; its own check refuses the block then. Ours are three, of 21, 21 and 19 weights.
        """
        (blocks,) = _nengo_blocks((4096, 61)).values()
        assert [block.utilization()["synapses"] for block in blocks] == [(4096 * 320, 1 << 20), (4096 * 256, 1 << 20)]
        cores = place(make_chain(4096, 61), "loihi1", tokens=1).cores
        assert [core.resources.neurons for core in cores] == [21, 21, 19]
        assert [core.resources.memory_bits for core in cores] == [4096 * 192] * 3

    def test_small_layers_share_cores_which_its_blocks_never_do(self, make_chain):
        assert sum(len(blocks) for blocks in _nengo_blocks((8, 16, 16, 16)).values()) == 3
        assert len(place(make_chain(8, 16, 16, 16), "loihi1", tokens=1).cores) == 1


def _nengo_blocks(widths: tuple[int, ...]):
    """Return the blocks that nengo-loihi cuts each layer into."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it was not tried with this nengo; counting needs none
        model = pytest.importorskip("nengo_loihi.builder.builder").Model()
        module = pytest.importorskip("nengo_loihi.block")
        split = pytest.importorskip("nengo_loihi.builder.split_blocks")
    rng = np.random.default_rng(0)
    before = None
    for index, (fan_in, width) in enumerate(itertools.pairwise(widths)):
        block = module.LoihiBlock(width, label=f"neuron{index}")
        synapse = module.Synapse(fan_in)
        synapse.set_weights(rng.normal(size=(fan_in, width)))  # equal lists would become one
        block.add_synapse(synapse)
        if before is not None:
            axon = module.Axon(fan_in)
            axon.target = synapse
            axon.set_compartment_axon_map(np.arange(fan_in))
            before.add_axon(axon)
        model.add_block(block)
        before = block
    return {old.label: list(new) for old, new in split.split_model(model).items()}


@st.composite
def networks(draw) -> Network:
    """Draw chains of neurons with dense layers, residual sums, recurrent connections, kernels, pools and delays."""
    builder = NetworkBuilder("input", width := draw(st.integers(1, 12)))
    stream = ["input"]
    if draw(st.booleans()):
        channels, height, breadth = draw(st.integers(1, 3)), draw(st.integers(2, 5)), draw(st.integers(2, 5))
        builder = NetworkBuilder("input", channels * height * breadth)
        out, groups = draw(st.sampled_from([(channels, channels), (draw(st.integers(1, 4)), 1)]))
        kernel = draw(st.integers(1, 2)), draw(st.integers(1, 2))
        stride, dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2))), (1, 1)
        padding = tuple((pad, pad) for pad in (draw(st.integers(0, 1)), draw(st.integers(0, 1))))
        weight = np.ones((out, channels // groups, *kernel))
        operator = Convolution((height, breadth), weight, np.zeros(out), stride, padding, dilation, groups)
        last = builder.add("neuron_c", neurons(operator.out_features), builder.add("kernel", operator, "input"))
        size = operator.out_shape
        if min(size[1:]) >= 2:
            pool = Pooling(size, (2, 2), (2, 1), (0, 0), mean=True)
            last = builder.add("neuron_p", neurons(pool.out_features), builder.add("pool", pool, last))
            size = pool.out_shape
        stream = [builder.add("flat", Flatten(size), last)]
        width = builder.widths[last]
    for index in range(draw(st.integers(1, 3))):
        inner = draw(st.integers(1, 20))
        sources = list(stream)
        if draw(st.booleans()):
            builder.add(f"late{index}", Delay(np.full(width, draw(st.integers(0, 3)))), stream)
            sources = [f"late{index}"]
        last = builder.add(f"up{index}", Affine(np.ones((inner, width))), sources)
        if draw(st.booleans()):
            before = builder.previous_step(f"inner{index}", inner)
            last = (last, builder.add(f"again{index}", Affine(np.ones((inner, inner))), before))
        last = builder.add(f"inner{index}", neurons(inner), last)
        last = builder.add(f"down{index}", Affine(np.ones((width, inner))), last)
        last = builder.add(f"outer{index}", neurons(width), last)
        stream = [*stream, last]
    last = builder.add("read", LeakyIntegrator(None, np.ones(width), np.zeros(width)), stream)
    return builder.network("output", last)


@st.composite
def chips(draw) -> Chip:
    """Draw chips on which most of such networks take several cores."""
    flexible = draw(st.booleans())
    base = LOIHI2 if flexible else LOIHI1
    limits = {
        "neurons_per_core": draw(st.integers(4, 60)),
        "memory_bits_per_core": draw(st.integers(6000, 40000)),
        "shared_copies": draw(st.sampled_from([1, 3, 256])),
        "cores_per_chip": draw(st.integers(1, 5)),
    }
    if not flexible:
        limits |= {"in_axons_per_core": draw(st.integers(40, 300)), "out_axons_per_core": draw(st.integers(10, 300))}
    return replace(base, **{name: Limit(value, "drawn") for name, value in limits.items()})


def connections(network: Network) -> list[tuple[str, str, np.ndarray]]:
    """Return reader, source, and ``(neurons of the reader, features of the source)`` bool: who reads whom at one token.

    Found by running the operators, with nothing of the packing's own code.
    """
    sent = {network.input_name: [(network.input_name, np.eye(network.input_features, dtype=bool))]}
    found = []
    for node in network.nodes:
        operator = node.operator
        if isinstance(operator, PreviousStep):
            sent[node.name] = [(node.sources[0], np.eye(operator.features, dtype=bool))]
        elif isinstance(operator, Total | Flatten | Delay):
            sent[node.name] = [wire for source in node.sources for wire in sent[source]]
        elif isinstance(operator, Affine | Convolution | Pooling):
            sent[node.name] = [(source, reads(operator)) for source, _ in sent[node.sources[0]]]
        else:
            found += [(node.name, source, matrix) for source, matrix in sent[node.sources[0]]]
            sent[node.name] = [(node.name, np.eye(operator.out_features, dtype=bool))]
    return found


def reads(operator: Affine | Convolution | Pooling) -> np.ndarray:
    """Return ``(out, in)``: whether an output moves when an input does and every weight is 1."""
    if not isinstance(operator, Pooling):
        operator = replace(operator, weight=np.ones(operator.weight.shape), bias=np.zeros(len(operator.weight)))
    return operator.step(np.eye(operator.in_features)[:, None], None, None)[:, 0].T != 0


@settings(max_examples=25, deadline=None)
@given(networks(), chips(), st.integers(1, 6))
def test_every_neuron_and_synapse_is_placed_once(network, chip, tokens):
    placement = place(network, chip, tokens)
    placed = Counter(
        (piece.node, token, feature)
        for core in placement.cores
        for piece in core.slices
        for token in range(*piece.tokens)
        for feature in features(placement, piece)
    )
    populations = placement.mapping.populations
    expected = {
        (name, token, feature)
        for name, population in populations.items()
        if name not in placement.unplaced
        for token in range(tokens)
        for feature in range(population.features)
    }
    assert set(placed) == expected
    assert set(placed.values()) <= {1}
    synapses = Counter()
    for reader, _, matrix in connections(network):
        synapses[reader] += tokens * int(matrix.sum())
    for row in placement.node_rows():
        if row["node"] not in placement.unplaced:
            assert row["synapses"] == synapses[row["node"]]
    # what does not fit is said, and only that
    broken = {violation.node for violation in placement.violations if violation.rule.endswith("_per_core")}
    assert broken == set(placement.unplaced)


@settings(max_examples=25, deadline=None)
@given(networks(), chips(), st.integers(1, 6))
def test_resources_are_those_of_every_synapse_counted(network, chip, tokens):
    """Neurons, axons in and axons out of each slice, from one synapse after the other; no core is over a limit."""
    placement = place(network, chip, tokens)
    arriving: Counter = Counter()
    leaving: Counter = Counter()
    home = {}
    pieces = [piece for core in placement.cores for piece in core.slices]
    for number, piece in enumerate(pieces):
        for feature in features(placement, piece):
            for token in range(*piece.tokens):
                home[piece.node, token, feature] = number
    for reader, source, matrix in connections(network):
        reached = {
            (token, feature, home[reader, token, neuron])
            for token in range(tokens)
            for neuron, feature in np.argwhere(matrix).tolist()
            if (reader, token, neuron) in home
        }
        for token, feature, number in reached:
            arriving[number] += 1
            if (source, token, feature) in home:
                leaving[home[source, token, feature]] += 1
    for number, piece in enumerate(pieces):
        shown = piece.resources.neurons if piece.node == network.output_source and _spikes(network, piece.node) else 0
        assert piece.resources.neurons == len(features(placement, piece)) * (piece.tokens[1] - piece.tokens[0])
        assert piece.resources.in_axons == arriving[number]
        assert piece.resources.out_axons == leaving[number] + shown
    for row in placement.to_dict()["utilization"]:
        for name in RESOURCES:
            limit = core_limit(chip, name)
            assert limit is None or row[name]["used"] <= limit
    total = placement.total
    for name in RESOURCES:
        limit = core_limit(chip, name)
        if limit is not None:
            assert len(placement.cores) * limit >= getattr(total, name)  # no fewer cores than the totals need


@settings(max_examples=20, deadline=None)
@given(networks(), chips(), st.integers(1, 12))
def test_a_longer_sentence_takes_no_fewer_cores(network, chip, tokens):
    shorter, longer = place(network, chip, tokens), place(network, chip, tokens + 1)
    assert shorter.unplaced == longer.unplaced
    assert len(shorter.cores) <= len(longer.cores)
    assert shorter.chips <= longer.chips
    assert place(network, chip, tokens).to_dict() == shorter.to_dict()


def features(placement: Placement, piece) -> list[int]:
    """Return the numbers of a slice's features."""
    population = placement.mapping.populations[piece.node]
    return [
        channel * population.positions + position
        for channel in range(*piece.features.channels)
        for position in range(*piece.features.positions)
    ]


def _spikes(network: Network, name: str) -> bool:
    return next(node.operator.spikes for node in network.nodes if node.name == name)


@settings(max_examples=20, deadline=None)
@given(networks(), chips(), st.integers(1, 4), st.integers(0, 10))
def test_spikes_between_chips_are_those_of_every_synapse(network, chip, tokens, seed):
    rng = np.random.default_rng(seed)
    spikes = {
        node.name: (rng.random((3, 2, tokens, node.operator.out_features)) < 0.4).astype(np.uint8)
        for node in network.spiking_nodes
    }
    spikes["input"] = rng.integers(0, 2, (3, 2, tokens, network.input_features)).astype(np.uint8)
    trace = Trace(spikes, np.zeros((2, network.output_features)), np.ones((2, tokens), bool))
    placement = place(network, chip, tokens, trace=trace)
    home = {
        (piece.node, token, feature): (core.index, core.chip, number)
        for core in placement.cores
        for number, piece in enumerate(core.slices)
        for token in range(*piece.tokens)
        for feature in features(placement, piece)
    }
    sent = between = from_host = 0
    for reader, source, matrix in connections(network):
        if source not in spikes:
            continue
        for token in range(tokens):
            for feature in range(matrix.shape[1]):
                fired = int(spikes[source][:, :, token, feature].sum())
                cores = {
                    home[reader, token, n] for n in np.flatnonzero(matrix[:, feature]) if (reader, token, n) in home
                }
                if source == "input":
                    from_host += fired * len(cores)
                else:
                    sent += fired * len(cores)
                    own = home.get((source, token, feature), (None, 0, None))[1]
                    between += fired * sum(target != own for _, target, _ in cores)
    assert placement.traffic.sentences == 2
    assert placement.traffic.from_host == from_host / 2
    if not placement.unplaced:
        assert placement.traffic.sent == sent / 2
        assert placement.traffic.between_chips == between / 2


@settings(max_examples=20, deadline=None)
@given(networks(), chips(), st.integers(1, 6))
def test_what_is_found_without_trying_every_cut_is_what_trying_finds(network, chip, tokens):
    """The search ends at a cut that no other can be better than; without that knowledge it tries them all."""
    found = place(network, chip, tokens).to_dict()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placement_module, "_fewest_cores", lambda mapping, tokens, chip: -1)
        assert place(network, chip, tokens).to_dict() == found


@settings(max_examples=20, deadline=None)
@given(networks(), chips(), st.integers(1, 6))
def test_neurons_that_fit_no_core_whatever_else_there_is_are_known_beforehand(network, chip, tokens):
    placement = place(network, chip, tokens)
    told = {(violation.rule, violation.node) for violation in placement.violations}
    for violation in misfits(network, chip, tokens):
        assert violation.node in placement.unplaced
        assert (violation.rule, violation.node) in told


@settings(max_examples=20, deadline=None)
@given(networks(), chips(), st.integers(1, 6))
def test_a_spike_reaches_as_many_cores_as_its_neuron_has_axons(network, chip, tokens):
    placement = place(network, chip, tokens)
    if placement.unplaced:
        return
    for row in placement.node_rows():
        assert placement.cores_reached[row["node"]] == pytest.approx(row["out_axons"] / row["neurons"])


def test_a_trace_must_belong_to_the_graph(make_chain):
    network = make_chain(3, 4)
    mask = np.ones((1, 2), bool)
    trace = Trace({"neuron0": np.zeros((2, 1, 2, 5), np.uint8)}, np.zeros((1, 4)), mask)
    with pytest.raises(TraceMismatchError, match="neuron0"):
        place(network, "loihi2", 2, trace=trace)
    trace = Trace({"neuron0": np.zeros((2, 1, 2, 4), np.uint8)}, np.zeros((1, 4)), mask)
    with pytest.raises(TraceMismatchError, match="sentences of 2 tokens; placed are 1"):
        place(network, "loihi2", 1, trace=trace)


@pytest.mark.parametrize("tokens", [0, -1, 1 << 17, 1.5, True])
def test_tokens_must_make_sense(make_chain, tokens):
    with pytest.raises(PlacementError, match="expected a whole number from 1 to 65536"):
        place(make_chain(3, 4), "loihi2", tokens)


def test_one_neuron_too_large_for_a_core_is_told_with_all_it_exceeds(make_chain, make_chip):
    """5,000 inputs: more axons than a core has, and 5,000 words of 64 bits, of which a core has 4,000."""
    chip = make_chip(memory_bits_per_core=4000 * 64)
    placement = place(make_chain(5000, 3, 2), chip, tokens=4)
    assert placement.unplaced == ("neuron0",)
    found = [(v.rule, v.node, v.value, v.limit) for v in placement.violations if v.node == "neuron0"]
    assert found == [
        ("in_axons_per_core", "neuron0", 5000, 4096),
        ("memory_bits_per_core", "neuron0", 5000 * 64, 4000 * 64),
    ]
    assert not placement.fits
    assert {piece.node for core in placement.cores for piece in core.slices} == {"neuron1"}


def test_neurons_that_cannot_reach_all_their_own_cores_are_told(make_chip):
    """Ten neurons read each other and one more does: two on a core need 2 x (5 + 1) axons, one by itself 10 + 1."""
    builder = NetworkBuilder("input", 1)
    up = builder.add("up", Affine(np.ones((10, 1))), "input")
    again = builder.add("again", Affine(np.ones((10, 10))), builder.previous_step("fire", 10))
    half, two, one = (np.full(10, value) for value in (0.5, 2.0, 1.0))
    fire = builder.add("fire", LeakyIntegrateAndFire(half, two, one, "zero"), (up, again))
    last = LeakyIntegrateAndFire(half[:1], two[:1], one[:1], "zero")
    builder.add("last", last, builder.add("down", Affine(np.ones((1, 10))), fire))
    network = builder.network("output", "last")
    found = place(network, make_chip(neurons_per_core=4, out_axons_per_core=10))
    assert found.unplaced == ("fire",)
    told = [v for v in found.violations if v.rule != "precision"]
    assert [(v.rule, v.node, v.value, v.limit) for v in told] == [("out_axons_per_core", "fire", 11, 10)]
    assert place(network, make_chip(neurons_per_core=4, out_axons_per_core=11)).unplaced == ()


def test_more_chips_than_a_board_has(make_chain, make_chip):
    chip = make_chip(neurons_per_core=1, cores_per_chip=2, chips_per_board=3)
    assert "chips_per_board" not in {v.rule for v in place(make_chain(2, 6), chip, tokens=1).violations}
    (found,) = (v for v in place(make_chain(2, 7), chip, tokens=1).violations if v.rule == "chips_per_board")
    assert (found.node, found.value, found.limit) == ("graph", 4, 3)


class TestMapping:
    """What becomes neurons, what synapses, what stays on the host."""

    def test_an_encoder(self, make_network):
        mapping = map_network(make_network(seed=3), LOIHI2)
        assert [name for name, does in mapping.host.items() if "looks words up" in does] == [
            "embedding",
            "embedding_norm",
            "embedding_neuron",
        ]
        readout = [name for name, does in mapping.host.items() if "sums over tokens" in does]
        assert set(readout) == {"block00_output_neuron_stream", "final_norm", "token_mean", "classifier"}
        kinds = {name: population.kind for name, population in mapping.populations.items()}
        assert kinds["block00_qkv_norm"] == kinds["block00_qkv_norm_statistics"] == "microcode"
        assert mapping.populations["block00_qkv_norm_statistics"].channels == 3  # a group each for query, key, value
        assert kinds["block00_attention"] == "microcode"
        assert kinds["block00_qkv_neuron"] == "neurons"
        (reading,) = (
            projection
            for projection in mapping.populations["block00_intermediate_norm"].projections
            if projection.weights == "block00_intermediate_affine"
        )
        assert reading.sources == ("embedding_neuron", "block00_projection_neuron")
        shown = {name for name, population in mapping.populations.items() if population.read_by_host}
        assert shown == {"block00_projection_neuron", "block00_output_neuron"}

    def test_an_encoder_without_programs(self, make_network):
        mapping = map_network(make_network(seed=3), LOIHI1)
        assert (
            mapping.host["block00_attention"] == mapping.host["block00_qkv_norm"] == "no neuron of the chip computes it"
        )
        kinds = {name: population.kind for name, population in mapping.populations.items()}
        assert kinds["block00_qkv_affine"] == "readout"  # sums that the host reads
        assert kinds["block00_qkv_neuron"] == "neurons"
        assert "block00_attention" not in kinds

    def test_a_map_behind_a_map_takes_neurons_between(self):
        builder = NetworkBuilder("input", 4)
        last = builder.add("pool", Pooling((1, 2, 2), (2, 2), (2, 2), (0, 0), mean=False), "input")
        last = builder.add("fc", Affine(np.ones((3, 1))), builder.add("flat", Flatten((1, 1, 1)), last))
        last = builder.add("scale", Scale(np.full(3, 2.0)), last)
        last = builder.add("late", Delay(np.array([0, 2, 5])), last)
        last = builder.add("neuron", neurons(3), last)
        mapping = map_network(builder.network("output", builder.add("head", Affine(np.ones((2, 3))), last)), LOIHI2)
        assert {name: p.kind for name, p in mapping.populations.items()} == {
            "flat": "relay",
            "neuron": "neurons",
            "head": "readout",
        }
        (projection,) = mapping.populations["neuron"].projections
        assert (projection.sources, projection.weights, projection.delay) == (("flat",), "fc", 5)

    def test_a_delay_takes_memory(self, make_chip):
        sizes = []
        for steps in (0, 1):
            builder = NetworkBuilder("input", 4)
            last = builder.add("late", Delay(np.full(4, steps)), builder.add("fc", Affine(np.ones((4, 4))), "input"))
            network = builder.network("output", builder.add("neuron", neurons(4), last))
            sizes.append(place(network, make_chip(), tokens=1).total.memory_bits)
        assert sizes == [4 * 64, 4 * 128]  # 4 x 8 + 10 bits in a word, 4 x (8 + 6) + 10 in two

    def test_a_norm_without_neurons_behind(self):
        """Read by a map, not by the host: its neurons send whole numbers."""
        builder = NetworkBuilder("input", 4)
        last = builder.add(
            "norm", LayerNorm(np.ones(4), np.zeros(4)), builder.add("fc", Affine(np.ones((4, 4))), "input")
        )
        last = builder.add("neuron", neurons(2), builder.add("fc2", Affine(np.ones((2, 4))), last))
        mapping = map_network(builder.network("output", last), LOIHI2)
        assert list(mapping.populations) == ["norm", "norm_statistics", "neuron"]

    def test_convolutions_of_different_shapes_into_one_place_are_refused(self):
        builder = NetworkBuilder("input", 8)
        flat = Convolution((8,), np.ones((2, 1, 1)), np.zeros(2), (1,), ((0, 0),), (1,), 1)
        deep = Convolution((8,), np.ones((4, 1, 1)), np.zeros(4), (2,), ((0, 0),), (1,), 1)
        sources = (builder.add("flat", flat, "input"), builder.add("deep", deep, "input"))
        network = builder.network("output", builder.add("neuron", neurons(16), sources))
        with pytest.raises(PlacementError, match="neuron: convolutions of different shapes"):
            place(network, "loihi2")


def test_kernels_share_weights_between_positions(make_chip):
    """A kernel of 3 over 6 positions, both ends padded: the ends meet 2 taps, all others 3: lists of 2 and 3 synapses.

    Positions 0 and 5 are met by different taps, so there are 3 kinds of lists, each of a word of 64 bits (3 x 18 + 10).
    """
    builder = NetworkBuilder("input", 6)
    kernel = Convolution((6,), np.ones((1, 1, 3)), np.zeros(1), (1,), ((1, 1),), (1,), 1)
    network = builder.network("output", builder.add("neuron", neurons(6), builder.add("kernel", kernel, "input")))
    (core,) = place(network, make_chip(), tokens=1).cores
    assert (core.resources.synapses, core.resources.memory_bits) == (16, 3 * 64)
    (core,) = place(network, make_chip(shared_copies=1), tokens=1).cores
    assert (core.resources.synapses, core.resources.memory_bits) == (16, 6 * 64)
    assert core.slices[0].features == FeatureSlice((0, 1), (0, 6))


@pytest.mark.parametrize("tokens", [1, 3, 6])
def test_neurons_whose_own_spikes_take_too_many_axons_are_said_not_to_fit(tokens):
    """Ten neurons read each other: cut one by one, each sends to ten cores and the host, and a core has ten axons."""
    ten = {key: np.full(10, value) for key, value in (("tau", 2e-4), ("r", 2.0), ("v_leak", 0.0), ("v_threshold", 1.0))}
    nodes = {
        "input": nir.Input({"input": np.array([1])}),
        "up": nir.Linear(np.ones((10, 1))),
        "inner": nir.LIF(**ten),
        "again": nir.Linear(np.ones((10, 10))),
        "output": nir.Output({"output": np.array([10])}),
    }
    path = ["input", "up", "inner", "output"]
    graph = nir.NIRGraph(nodes, [*itertools.pairwise(path), ("inner", "again"), ("again", "inner")])
    limits = {"neurons_per_core": 4, "in_axons_per_core": 40, "out_axons_per_core": 10}
    chip = replace(LOIHI1, **{name: Limit(value, "drawn") for name, value in limits.items()})
    placement = place(graph, chip, tokens, dt=1e-4)
    assert placement.unplaced == ("inner",)
    (said,) = [violation for violation in placement.violations if violation.rule.endswith("_per_core")]
    assert (said.rule, said.node, said.value, said.limit) == ("out_axons_per_core", "inner", 11, 10)
    roomier = place(graph, replace(chip, out_axons_per_core=Limit(11, "drawn")), tokens, dt=1e-4)
    assert roomier.unplaced == ()


def test_readers_are_cut_into_fewer_parts_where_those_they_read_have_too_few_axons(make_chip, make_chain):
    """One neuron to nine: a part for each takes 9 cores for 4 tokens, but 9 axons; parts of 4, 4 and 1 take 12, and 3.

    A core then holds two tokens' neuron and its axons.
    """
    network, tokens = make_chain(1, 1, 9), 4

    def cores(**limits: int) -> list[int]:
        placement = place(network, make_chip(neurons_per_core=4, **limits), tokens)
        assert placement.unplaced == ()
        return [row["cores"] for row in placement.node_rows()]

    assert cores() == [1, 9]
    assert cores(out_axons_per_core=8) == [2, 12]
