"""The promise of netx files: lava-dl's own netx fires the spikes of the graph, both ways.

What lava-dl does is asked of lava-dl: files we write run in ``lava.lib.dl.netx`` on Lava, and files we read are written
by SLAYER and run there too.
"""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import click.testing
import h5py
import numpy as np
import pytest

from export import build_graph, parse_graph, quantize, read_nir, write_nir
from export.errors import NetxError
from export.network import Network, NetworkBuilder
from export.netx import read_netx, write_netx
from export.operators import Affine, LayerNorm, LeakyIntegrateAndFire
from hardware import run
from hardware.runners.lava.compatibility import import_lava
from spikebert.cli import main

STEPS = 30


def _chain(widths: tuple[int, ...], seed: int = 0) -> Network:
    """Return layers of affine and Loihi neuron."""
    rng = np.random.default_rng(seed)
    builder, last = NetworkBuilder("input", widths[0]), "input"
    for index, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        weight, bias = rng.normal(0.2, 0.5, (outputs, inputs)), rng.normal(0, 0.1, outputs)
        last = builder.add(f"affine{index}", Affine(weight, bias), last)
        beta, threshold = np.full(outputs, 3686 / 4096), np.full(outputs, 1.0)
        neuron = LeakyIntegrateAndFire(beta, np.full(outputs, 2.0), threshold, "zero")
        last = builder.add(f"neuron{index}", neuron, last)
    return builder.network("output", last)


def _spikes(width: int, seed: int = 1) -> np.ndarray:
    """Return input spikes (T, 1, 1, D)."""
    return (np.random.default_rng(seed).random((STEPS, 1, 1, width)) < 0.4).astype(np.int64)


@pytest.fixture(scope="module")
def quantized() -> Network:
    return parse_graph(quantize(_chain((6, 10, 4)), _spikes(6)))


def _in_netx(path: Path, spikes: np.ndarray, message_bits: int = 0, reset: bool = False) -> np.ndarray:
    """Run spikes (T, D) through the file in lava-dl and return the last layer's, its latency taken off.

    With `reset` each layer is set back to zero when its first input arrives.
    """
    import_lava()
    from lava.lib.dl.netx import hdf5
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg
    from lava.proc.io.sink import RingBuffer as Sink
    from lava.proc.io.source import RingBuffer as Source

    resets = {"reset_interval": len(spikes), "reset_offset": 1} if reset else {}
    net = hdf5.Network(net_config=str(path), input_message_bits=message_bits, **resets)
    latency = len(net)  # each layer's synapses take a step
    source = Source(data=np.pad(spikes.T, ((0, 0), (0, latency))))
    sink = Sink(shape=net.out.shape, buffer=STEPS + latency)
    source.s_out.connect(net.inp)
    net.out.connect(sink.a_in)
    net.run(condition=RunSteps(num_steps=STEPS + latency), run_cfg=Loihi2SimCfg(select_tag="fixed_pt"))
    try:
        found = np.array(sink.data.get())
    finally:
        net.stop()
    assert reset or not found[:, :latency].any() or latency < 2, "spikes before any could arrive"
    return found[:, latency:].T


def _assert_same_in_netx(path: Path, network: Network, x: np.ndarray, message_bits: int = 0) -> None:
    trace = run(network, x, runner="reference", precision="integer")
    last = network.output_source
    for name, spikes in trace.spikes.items():
        assert 0.02 < spikes.mean() < 0.98, f"{name}: fires {spikes.mean():.1%} of the time, which shows little"
    np.testing.assert_array_equal(_in_netx(path, x[:, 0, 0], message_bits), trace.spikes[last][:, 0, 0])


@pytest.mark.lava
def test_a_file_we_write_fires_the_same_spikes_in_netx(quantized: Network, tmp_path: Path) -> None:
    written = write_netx(tmp_path / "chain.net", quantized, round_biases=True)
    _assert_same_in_netx(tmp_path / "chain.net", written, _spikes(6))


@pytest.mark.lava
def test_a_chain_out_of_a_graph_fires_the_same_spikes_in_netx(tmp_path: Path) -> None:
    network = parse_graph(quantize(_chain((6, 8, 8, 4), seed=2), _spikes(6)))
    written = write_netx(tmp_path / "part.net", network, "affine1", "neuron2", round_biases=True)
    assert [node.name for node in written.nodes] == ["affine1", "neuron1", "affine2", "neuron2"]
    _assert_same_in_netx(tmp_path / "part.net", written, _spikes(8, seed=3))


@pytest.mark.lava
def test_a_chain_behind_a_residual_sum_takes_what_netx_is_told_to_take(tmp_path: Path) -> None:
    network = _chain((6, 6, 6, 4), seed=4)
    builder = NetworkBuilder("input", 6)
    for node in network.nodes:
        builder.add(node.name, node.operator, ["input", "neuron0"] if node.name == "affine1" else node.sources)
    residual = parse_graph(quantize(builder.network("output", "neuron2"), _spikes(6)))
    path = tmp_path / "part.net"
    written = write_netx(path, residual, "affine1", "neuron2", round_biases=True)
    assert written.input_limit == parse_graph(read_netx(path)).input_limit == 2
    x = _spikes(6, seed=5) + _spikes(6, seed=6)
    assert x.max() == 2
    _assert_same_in_netx(path, written, x, message_bits=8)


@pytest.mark.lava
def test_biases_charge_neurons_that_wait_unless_netx_is_told_to_reset_them(tmp_path: Path) -> None:
    """As in an MLP whose norms are folded, where every neuron has a bias."""
    network = _chain((6, 40, 8), seed=3)
    rng = np.random.default_rng(8)
    builder = NetworkBuilder("input", 6)
    for node in network.nodes:
        operator = node.operator
        if isinstance(operator, Affine):
            operator = Affine(operator.weight, rng.normal(0.1, 0.3, operator.out_features))
        builder.add(node.name, operator, node.sources)
    biased = parse_graph(quantize(builder.network("output", "neuron1"), _spikes(6)))
    path = tmp_path / "biased.net"
    written = write_netx(path, biased, round_biases=True)
    expected = run(written, _spikes(6), precision="integer").spikes["neuron1"][:, 0, 0]
    assert 0.02 < expected.mean() < 0.98
    spikes = _spikes(6)[:, 0, 0]
    np.testing.assert_array_equal(_in_netx(path, spikes, reset=True), expected)
    assert (_in_netx(path, spikes) != expected).any(), "then docs/others.md asks for a reset without need"


def test_what_is_written_is_read_again(quantized: Network, tmp_path: Path) -> None:
    written = write_netx(tmp_path / "chain.net", quantized, round_biases=True)
    again = parse_graph(read_netx(tmp_path / "chain.net"))
    assert [(node.name, node.sources) for node in again.nodes] == [(n.name, n.sources) for n in written.nodes]
    x = _spikes(6)
    first, second = (run(net, x, precision="integer", record_membrane_potentials=True) for net in (written, again))
    for name, potentials in first.membrane_potentials.items():
        np.testing.assert_array_equal(second.membrane_potentials[name], potentials)


def _slayer_file(path: Path, current_decay: float) -> None:
    """Write two dense blocks with SLAYER, its weights large enough to leave int8."""
    import_lava()
    import torch
    from lava.lib.dl.slayer.block import cuba

    torch.manual_seed(0)
    neuron = {"threshold": 1.25, "current_decay": current_decay, "voltage_decay": 0.1}
    blocks = [cuba.Dense(neuron, 6, 12, weight_scale=3), cuba.Dense(neuron, 12, 4, weight_scale=3)]
    with torch.no_grad():
        for block in blocks:
            block.synapse.weight.mul_(2.5)
            block.synapse.weight.add_(0.3)
    x = torch.zeros(1, 6, 5)
    for block in blocks:
        x = block(x)
    with h5py.File(path, "w") as file:
        for index, block in enumerate(blocks):
            block.export_hdf5(file.create_group(f"layer/{index}"))


@pytest.mark.lava
@pytest.mark.parametrize("current_decay", [0.3, 1.0])
def test_a_file_of_slayer_fires_the_same_spikes_here_and_in_netx(current_decay: float, tmp_path: Path) -> None:
    path = tmp_path / "slayer.net"
    _slayer_file(path, current_decay)
    with h5py.File(path) as file:
        assert np.abs(file["layer/0/weight"][()]).max() > 128, "all weights fit int8, which shows little"
    _assert_same_in_netx(path, parse_graph(read_netx(path)), _spikes(6))


def _invoke(*arguments: Any) -> click.testing.Result:
    return click.testing.CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_command_writes_a_file_that_means_the_chain(quantized: Network, tmp_path: Path) -> None:
    source, target, back = (tmp_path / name for name in ("integer.nir", "chain.net", "back.nir"))
    write_nir(source, build_graph(quantized))
    written = _invoke("export", "netx", source, "-o", target, "--round-biases", "--json")
    assert written.exit_code == 0, written.output
    assert json.loads(written.stdout)["nodes"] == ["affine0", "neuron0", "affine1", "neuron1"]
    assert _invoke("import", "netx", target, "-o", back).exit_code == 0
    once = _invoke("export", "nir", target, "-o", tmp_path / "once.nir")  # how it was spelled
    assert once.exit_code == 0
    assert "import netx FILE.net" in once.stderr
    for name, node in read_nir(back).nodes.items():
        assert repr(node) == repr(read_nir(tmp_path / "once.nir").nodes[name])
    x = _spikes(6)
    expected = run(write_netx(tmp_path / "again.net", quantized, round_biases=True), x, precision="integer")
    found = run(read_nir(back), x, precision="integer")
    for name, spikes in expected.spikes.items():
        np.testing.assert_array_equal(found.spikes[name], spikes)
    refused = _invoke("export", "netx", source, "-o", target)
    assert refused.exit_code == 2
    assert "--force" in refused.stderr
    refused = _invoke("export", "netx", source, "-o", tmp_path / "other.net")
    assert refused.exit_code == 2
    assert "no multiples of 64" in " ".join(refused.stderr.split())
    assert not (tmp_path / "other.net").exists()


def test_everything_that_is_no_chain_is_named_at_once(tiny_model: Any, tmp_path: Path) -> None:
    from export import to_nir

    ids = np.random.default_rng(0).integers(1, 20, (4, 6))
    graph = quantize(to_nir(tiny_model), ids)
    with pytest.raises(NetxError) as caught:
        write_netx(tmp_path / "model.net", graph)
    said = str(caught.value)
    for node in ("block00_qkv_norm", "block00_attention", "block00_output_neuron_stream", "token_mean"):
        assert f"  {node}: " in said
    for fine in ("block00_qkv_affine", "block00_qkv_neuron", "block00_intermediate_affine", "classifier"):
        assert f"  {fine}: " not in said.replace("  classifier: the chain ends without neurons", "")
    assert not list(tmp_path.iterdir())


def test_a_refusal_names_the_chains_there_are(tiny_model: Any, make_model: Any, tmp_path: Path) -> None:
    from export import to_nir

    ids = np.random.default_rng(0).integers(1, 20, (4, 6))
    graph = quantize(to_nir(make_model(neuron="loihi", norm="none", embedding_neuron="lif")), ids)
    with pytest.raises(NetxError, match="block00_intermediate_affine to block00_output_neuron") as caught:
        write_netx(tmp_path / "model.net", graph)
    runs = re.findall(r"(\w+) to (\w+)", str(caught.value).splitlines()[-1])
    assert len(runs) >= 3
    for index, (first, last) in enumerate(runs):
        assert write_netx(tmp_path / f"{index}.net", graph, first, last, round_biases=True).nodes[-1].name == last


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("float", "affine0: affine of floating point; quantize the graph first"),
        ("biases", "are no multiples of 64"),
        ("unknown node", "nowhere: the graph has no such node"),
        ("ends in synapses", "affine1: the chain ends without neurons"),
        ("norm", "norm: integer_layer_norm; netx knows none"),
        ("no folder", "does not exist"),
    ],
)
def test_what_netx_cannot_hold_is_refused(what: str, expected: str, quantized: Network, tmp_path: Path) -> None:
    path, network, rest = tmp_path / "bad.net", quantized, {"round_biases": what != "biases"}
    if what == "float":
        network = _chain((6, 4))
    elif what == "unknown node":
        rest["first"] = "nowhere"
    elif what == "ends in synapses":
        rest["last"] = "affine1"
    elif what == "no folder":
        path = tmp_path / "none" / "bad.net"
    elif what == "norm":
        builder = NetworkBuilder("input", 6)
        builder.add("norm", LayerNorm(np.ones(6), np.zeros(6)), "input")
        one = np.ones(6)
        builder.add("neuron", LeakyIntegrateAndFire(0.9 * one, 2 * one, one, "zero"), "norm")
        network = parse_graph(quantize(builder.network("output", "neuron"), _spikes(6)))
    with pytest.raises(NetxError, match=expected):
        write_netx(path, network, **rest)
    assert not list(tmp_path.iterdir())


def _set(key: str, value: Any) -> Any:
    def change(file: h5py.File) -> None:
        del file[key]
        file[key] = value

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_set("layer/1/type", b"pool"), "layer 1: is of type pool"),
        (_set("layer/0/neuron/type", "SDNN"), "layer 0: its neuron is SDNN"),
        (_set("layer/0/neuron/gradedSpike", True), "layer 0: sends graded spikes"),
        (_set("layer/0/neuron/vThMant", 1 << 20), "layer 0: vThMant spans 1048576"),
        (_set("layer/0/neuron/refDelay", 3), "layer 0: has a refractory delay"),
        (_set("layer/0/weight", np.full((10, 6), 999.0)), "layer 0: weights of 999 to 999"),
        (lambda file: file.create_dataset("layer/0/delay", data=np.ones(6)), "layer 0: has delay"),
        (lambda file: file.move("layer/1", "layer/7"), "expected 0, 1, 2"),
        (lambda file: file.pop("layer"), "is not a readable netx file"),
    ],
)
def test_files_that_mean_something_else_are_refused(
    change: Any, expected: str, quantized: Network, tmp_path: Path
) -> None:
    path = tmp_path / "changed.net"
    write_netx(path, quantized, round_biases=True)
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(NetxError, match=expected) as caught:
        read_netx(path)
    assert str(path) in str(caught.value)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NetxError, match="no such file"):
        read_netx(tmp_path / "none.net")
    (tmp_path / "text.net").write_text("hello")
    with pytest.raises(NetxError, match="is not a readable netx file"):
        read_netx(tmp_path / "text.net")


def test_the_graph_is_a_nir_graph_of_standard_synapses(quantized: Network, tmp_path: Path) -> None:
    write_netx(tmp_path / "chain.net", quantized, round_biases=True)
    graph = read_netx(tmp_path / "chain.net")
    assert parse_graph(build_graph(parse_graph(graph))).input_limit == 1
