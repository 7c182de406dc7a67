"""A chip's limits are those of public code, name their source, and come from a user's file as well."""

from __future__ import annotations

import json

import numpy as np
import pytest

from export.loihi_numbers import WEIGHT_LIMITS
from hardware.errors import PlacementError
from hardware.loihi import CHIPS, Limit, find_chip, read_chip
from hardware.loihi.chip import LIMITS, LOIHI1, LOIHI2
from hardware.runners.lava.compatibility import import_lava


def test_loihi1_is_what_nengo_loihi_has():
    block = pytest.importorskip("nengo_loihi.block")
    assert LOIHI1["neurons_per_core"] == block.MAX_COMPARTMENTS
    assert LOIHI1["in_axons_per_core"] == block.MAX_IN_AXONS
    assert LOIHI1["out_axons_per_core"] == block.MAX_OUT_AXONS
    assert LOIHI1["memory_bits_per_core"] == block.MAX_SYNAPSE_BITS
    synapse = block.SynapseConfig(weight_bits=7, n_synapses=63, compression=3)
    assert synapse.real_weight_bits == LOIHI1["weight_bits"]
    assert LOIHI1["index_bits"] in block.SynapseConfig.INDEX_BITS_MAP
    assert 1 << LOIHI1["index_bits"] >= block.MAX_COMPARTMENTS


@pytest.mark.parametrize("indexed", [False, True])
def test_lists_take_the_memory_that_nengo_loihi_counts(indexed):
    block = pytest.importorskip("nengo_loihi.block")
    index = block.SynapseConfig.INDEX_BITS_MAP.index(LOIHI1["index_bits"])
    synapse = block.SynapseConfig(weight_bits=7, n_synapses=63, compression=0 if indexed else 3, idx_bits=index)
    for length in (0, 1, 2, 5, 6, 7, 63, 64, 65, 127, 128, 129, 500, 1023, 1024):
        assert LOIHI1.list_size(length, indexed) == synapse.bits_per_axon(length), length


def test_loihi2_is_what_lava_maps_to():
    constants = pytest.importorskip("lava.magma.compiler.subcompilers.constants")
    assert LOIHI2["cores_per_chip"] == constants.NUM_VIRTUAL_CORES_L3
    assert LOIHI1["cores_per_chip"] == constants.NUM_VIRTUAL_CORES_L2


def test_delays_are_what_brian2_loihi_and_lava_dl_take():
    loihi = pytest.importorskip("brian2_loihi")
    import_lava()
    neurons = loihi.LoihiNeuronGroup(1, threshold_v_mant=1, decay_v=0, decay_I=0)
    longest = LOIHI1["largest_delay"]
    loihi.LoihiSynapses(neurons, delay=longest)
    with pytest.raises(Exception, match=f"delay has to be between 0 and {longest}"):
        loihi.LoihiSynapses(neurons, delay=longest + 1)
    pytest.importorskip("lava.lib.dl.netx", reason="lava-dl is not installed")
    from lava.lib.dl.netx.utils import num_delay_bits

    longest = LOIHI2["largest_delay"]
    assert num_delay_bits(np.array([longest])) == LOIHI2["delay_bits"] == LOIHI1["delay_bits"]
    with pytest.raises(ValueError, match="delay"):
        num_delay_bits(np.array([longest + 1]))


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
def test_every_limit_has_a_source(chip):
    for name, limit in chip.limits.items():
        assert len(limit.source) > 3, name
    bits = chip["weight_bits"]
    assert {
        "mixed": (-(1 << bits - 1), (1 << bits - 1) - 1),
        "excitatory": (0, (1 << bits) - 1),
        "inhibitory": (-((1 << bits) - 1), 0),
    } == WEIGHT_LIMITS


def test_a_file_describes_a_chip(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(LOIHI2.to_dict()), "utf-8")
    assert read_chip(path) == LOIHI2
    path.write_text(json.dumps({"base": "loihi1", "limits": {"neurons_per_core": 2048, "in_axons_per_core": None}}))
    chip = find_chip(str(path))
    assert chip.name == "mine"
    assert chip.neurons_per_core == Limit(2048, str(path))
    assert chip.in_axons_per_core.value is None
    assert chip.cores_per_chip == LOIHI1.cores_per_chip


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is not a JSON file"),
        ("[1]", "expected an object"),
        ('{"limits": 3}', "expected an object"),
        ('{"limits": {"neurons": 3}}', "'neurons' not known"),
        ('{"name": "x", "cores": 1, "limits": {}}', "'cores' not known"),
        ('{"limits": {"neurons_per_core": 3}}', "in_axons_per_core, .* missing"),
        ('{"base": "loihi3", "limits": {}}', "base is 'loihi3'"),
        ('{"base": ["loihi1"], "limits": {}}', "base is"),
        (
            '{"base": "loihi1", "limits": {"neurons_per_core": 0}}',
            "neurons_per_core is 0; expected a whole number from 1",
        ),
        ('{"base": "loihi1", "limits": {"neurons_per_core": null}}', "neurons_per_core is None"),
        ('{"base": "loihi1", "limits": {"neurons_per_core": 1.5}}', "neurons_per_core is 1.5"),
        ('{"base": "loihi1", "limits": {"neurons_per_core": true}}', "neurons_per_core is True"),
        ('{"base": "loihi1", "limits": {"neurons_per_core": "many"}}', "neurons_per_core is 'many'"),
        ('{"base": "loihi1", "limits": {"programmable": 2}}', "programmable is 2; expected a whole number from 0 to 1"),
        ('{"base": "loihi1", "limits": {"word_bits": {"source": "x"}}}', "word_bits is"),
        ('{"base": "loihi1", "limits": {"word_bits": {"value": 8, "assumed": "yes"}}}', "assumed 'yes'"),
        ('{"base": "loihi1", "name": 5, "limits": {}}', "name is 5"),
        ('{"base": "loihi1", "name": "a\\u0007", "limits": {}}', "name is"),
        ("[" * 100_000, "is not a JSON file"),
    ],
)
def test_a_file_that_describes_none_is_refused(tmp_path, content, says):
    path = tmp_path / "chip.json"
    path.write_text(content, "utf-8")
    with pytest.raises(PlacementError, match=says):
        read_chip(path)


def test_an_unknown_chip_is_refused(tmp_path):
    with pytest.raises(PlacementError, match=r"known are loihi1, loihi2, and FILE\.json"):
        find_chip("loihi3")
    with pytest.raises(PlacementError, match="is not a JSON file"):
        find_chip(tmp_path / "nowhere.json")
    assert set(LIMITS) == set(LOIHI1.limits)
