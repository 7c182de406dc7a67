"""Spiking encoders made by hand, node by node: no model, no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from unittest.mock import patch

import numpy as np
import pytest

from export.network import Network, NetworkBuilder
from export.operators import Affine, Heaviside, LayerNorm, LeakyIntegrateAndFire, SpikeAttention, TokenMean
from export.token_encoding import TokenEncoding
from hardware.kernels import counting as counting_kernel

NetworkMaker = Callable[..., Network]


@pytest.fixture(scope="module", params=["C", "NumPy"])
def counted_in(request: pytest.FixtureRequest) -> Iterator[str]:
    """Have spikes counted in C, then all over again with NumPy alone, as where there is no C compiler."""
    if request.param == "C" and counting_kernel.load_kernel() is None:
        pytest.skip("there is no C compiler")
    with patch.object(
        counting_kernel, "load_kernel", counting_kernel.load_kernel if request.param == "C" else _no_kernel
    ):
        yield request.param


def _no_kernel() -> None:
    """Be a machine without a C compiler."""


@pytest.fixture(scope="session")
def make_network() -> NetworkMaker:
    """Return a function that makes a random encoder with every operator; the seed decides weights and neurons."""

    def make(
        seed: int = 0,
        blocks: int = 1,
        width: int = 8,
        heads: int = 2,
        hidden: int = 16,
        vocabulary: int = 20,
        positions: int = 12,
        time_steps: int = 4,
        classes: int = 3,
        spread: float = 0.5,
    ) -> Network:
        rng = np.random.default_rng(seed)

        def weights(*shape: int) -> np.ndarray:
            return (spread * rng.normal(size=shape)).astype(np.float32)

        def norm(features: int, groups: int = 1) -> LayerNorm:
            return LayerNorm(1 + weights(features), weights(features), 1e-5, groups)

        def neuron(features: int, threshold: float = 1.0) -> LeakyIntegrateAndFire:
            return LeakyIntegrateAndFire(
                beta=np.full(features, rng.choice([0.9, 0.5, 1.0])),
                tau=np.full(features, rng.choice([2.0, 4.0])),
                threshold=np.full(features, threshold),
                reset=str(rng.choice(["subtract", "zero"])),
                decay_input=bool(rng.integers(2)),
                fire_on_equal=bool(rng.integers(2)),
            )

        builder = NetworkBuilder("input", vocabulary + positions)

        def projection(name: str, features: int, sources: list[str], groups: int = 1) -> str:
            fan_in = builder.widths[sources[0]]
            last = builder.add(f"{name}_affine", Affine(weights(features, fan_in), weights(features)), sources)
            last = builder.add(f"{name}_norm", norm(features, groups), last)
            return builder.add(f"{name}_neuron", neuron(features), last)

        last = builder.add("embedding", Affine(weights(width, vocabulary + positions)), "input")
        last = builder.add("embedding_norm", norm(width), last)
        first = Heaviside(np.zeros(width), True) if rng.integers(2) else neuron(width)
        stream = [builder.add("embedding_neuron", first, last)]
        for index in range(blocks):
            block = f"block{index:02d}_"
            qkv = projection(f"{block}qkv", 3 * width, stream, groups=3)
            product = builder.add(f"{block}attention", SpikeAttention(heads, width // heads, 0.125), qkv)
            attended = builder.add(f"{block}attention_neuron", neuron(width, 0.25), product)
            stream = [*stream, projection(f"{block}projection", width, [attended])]
            inner = projection(f"{block}intermediate", hidden, stream)
            stream = [*stream, projection(f"{block}output", width, [inner])]
        last = builder.add("final_norm", norm(width), stream)
        last = builder.add("token_mean", TokenMean(width), last)
        last = builder.add("classifier", Affine(weights(classes, width), weights(classes)), last)
        encoding = TokenEncoding(vocabulary, positions)
        return builder.network("output", last, token_encoding=encoding, time_steps=time_steps)

    return make
