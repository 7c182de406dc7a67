"""The promise of one file: an operator of three ordered sources runs on the reference and on Lava, and NIR holds it.

No line of the package knows it. What it means is held against torch's own attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from softmax_attention import SoftmaxAttention, read_softmax_attention

from export import build_graph, parse_graph, read_nir, write_nir
from export.errors import GraphError
from export.network import Network, NetworkBuilder
from export.operators import Affine, LeakyIntegrateAndFire, TokenMean
from export.operators.reading import MARKED_OPERATORS, reads_marked
from hardware import Trace, open_runner

TOLERANCE = 1e-12
HEADS, HEAD_SIZE = 2, 3
WIDTH = HEADS * HEAD_SIZE
SOURCES = ("query", "key", "value")
LAVA = [pytest.param({"granularity": g}, id=g, marks=pytest.mark.lava) for g in ("operator", "block", "network")]


@pytest.fixture(autouse=True)
def _reader() -> Iterator[None]:
    """Register how the operator is read, and forget it behind each test."""
    reads_marked(SoftmaxAttention)(read_softmax_attention)
    yield
    del MARKED_OPERATORS[SoftmaxAttention.name]


def _neuron() -> LeakyIntegrateAndFire:
    ones = np.ones(WIDTH)
    return LeakyIntegrateAndFire(0.75 * ones, 2 * ones, 0.5 * ones, "zero")


def _network(in_order: tuple[str, ...] = SOURCES, sums: bool = False) -> Network:
    """A block of attention: what is read is projected and fires, what is attended to fires, and a mean over tokens.

    With `sums`, queries and values are sums of two nodes.
    """
    rng = np.random.default_rng(2)

    def affine(out: int = WIDTH) -> Affine:
        return Affine(rng.normal(size=(out, WIDTH)), rng.normal(size=out))

    builder = NetworkBuilder("input", WIDTH)
    for name in SOURCES:
        builder.add(f"block00_{name}_affine", affine(), "input")
        builder.add(f"block00_{name}", _neuron(), f"block00_{name}_affine")
    read = {name: f"block00_{name}" for name in SOURCES}
    if sums:
        read["query"] = builder.total((read["query"], read["key"]), "attention")
        read["value"] = builder.total((read["value"], "block00_key_affine"), "attention")
    attention = SoftmaxAttention(HEADS, HEAD_SIZE)
    builder.add("block00_attention", attention, [read[name] for name in in_order])
    builder.add("block00_projection", affine(), "block00_attention")
    builder.add("block00_neuron", _neuron(), ["block00_projection", "block00_attention"])
    builder.add("mean", TokenMean(WIDTH), "block00_neuron")
    return builder.network("output", builder.add("classifier", affine(3), "mean"))


def _batch() -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(0).normal(size=(6, 3, 5, WIDTH)), np.arange(5) < np.array([[5], [2], [4]])


def _assert_equal(found: Trace, expected: Trace) -> None:
    assert found.spikes.keys() == expected.spikes.keys()
    for name, spikes in expected.spikes.items():
        assert 0.05 < spikes.mean() < 0.95, f"{name}: too quiet to show anything"
        np.testing.assert_array_equal(found.spikes[name], spikes, err_msg=name)
        real = expected.mask
        np.testing.assert_allclose(
            found.membrane_potentials[name][:, real],
            expected.membrane_potentials[name][:, real],
            rtol=0,
            atol=TOLERANCE,
        )
    np.testing.assert_allclose(found.logits, expected.logits, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(found.outputs, expected.outputs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("sums", [False, True], ids=["nodes", "sums"])
@pytest.mark.parametrize("options", LAVA)
def test_lava_fires_what_the_reference_fires(options: dict[str, str], sums: bool) -> None:
    network, batch = _network(sums=sums), _batch()
    with (
        open_runner(network, "reference", record_membrane_potentials=True) as reference,
        open_runner(network, "lava", record_membrane_potentials=True, **options) as lava,
    ):
        _assert_equal(lava.run(*batch), reference.run(*batch))


def test_the_reference_attends_as_torch_does() -> None:
    network, (x, mask) = _network(), _batch()
    with open_runner(network, "reference", record_membrane_potentials=True) as reference:
        trace = reference.run(x, mask)
    query, key, value = (
        torch.from_numpy(trace.spikes[f"block00_{name}"].astype(float)).unflatten(-1, (HEADS, HEAD_SIZE))
        for name in SOURCES
    )
    attended = torch.nn.functional.scaled_dot_product_attention(
        *(part.transpose(-2, -3) for part in (query, key, value)), attn_mask=torch.from_numpy(mask)[None, :, None, None]
    )
    attended = attended.transpose(-2, -3).flatten(-2).numpy()
    projection = network.by_name["block00_projection"].operator
    drive = attended @ projection.weight.T + projection.bias + attended
    potential, fired = np.zeros_like(drive[0]), np.zeros(drive[0].shape, bool)
    for step, current in enumerate(drive):
        potential = 0.75 * np.where(fired, 0, potential) + current
        fired = potential > 0.5
        found = trace.membrane_potentials["block00_neuron"][step]
        np.testing.assert_allclose(found[mask], potential[mask], rtol=0, atol=TOLERANCE)


def test_a_file_keeps_which_source_is_which(tmp_path: Path) -> None:
    batch, traces = _batch(), []
    for order in (SOURCES, SOURCES[::-1]):
        network = _network(order)
        read = parse_graph(read_nir(write_nir(tmp_path / "softmax.nir", build_graph(network, np.float64))))
        assert read.by_name["block00_attention"].sources == tuple(f"block00_{name}" for name in order)
        for one in (network, read):
            with open_runner(one, "reference", record_membrane_potentials=True) as opened:
                traces.append(opened.run(*batch))
    _assert_equal(traces[1], traces[0])
    _assert_equal(traces[3], traces[2])
    assert np.any(traces[0].outputs != traces[2].outputs)


def test_a_source_too_few_is_refused_by_name() -> None:
    with pytest.raises(GraphError, match="block00_attention: softmax_attention reads 3 nodes, but 2 lead to it"):
        _network(SOURCES[:2])
