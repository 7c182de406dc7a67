"""The promise to operators that no runner heard of: the integer runner and Lava compute them as the reference does.

They are made here, each unlike any there is: one that mixes tokens, one that remembers without spikes, one of two
ordered sources, poolings of every kind, one of graded spikes, one that reads words, and one derived from an operator
that has a fast path. What no trace holds is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import nir
import numpy as np
import pytest
from numpy.typing import DTypeLike

from export.errors import UnsupportedOperatorError
from export.network import Network, NetworkBuilder, Readout
from export.operators import (
    IntegerAffine,
    IntegerLeakyIntegrateAndFire,
    NeuronState,
    Operator,
    SpikingOperator,
    Traits,
)
from export.operators.interval import Interval
from export.token_encoding import TokenEncoding
from hardware import open_runner
from hardware.kernels.integer import load_kernel

FEATURES = 4
ONES = np.ones(FEATURES, np.int64)
ALONE = Traits(
    integer=True,
    spike_range=None,
    sources=1,
    edges=None,
    keeps_shape=False,
    mixes_tokens=False,
    pools_tokens=None,
    reads_sentences=False,
    reads_tokens=False,
    remembers=False,
    passes_values=False,
    is_synaptic=False,
    needs_program=True,
    latency=0,
)
"""Of an operator that acts on each token by itself."""


@dataclass(frozen=True, eq=False)
class _Made(Operator):
    """What the operators made here share: as many features as they read, and nothing proven of them."""

    name: ClassVar[str] = "made"
    features: int = FEATURES

    @property
    def in_features(self) -> int:
        return self.features

    @property
    def out_features(self) -> int:
        return self.features

    def interval(self, read: Sequence[Interval | None], tokens: int | None) -> Interval | None:
        return None

    def to_nir(self, dtype: DTypeLike, dt: float) -> nir.NIRNode:
        raise NotImplementedError


class _FromTheLeft(_Made):
    """Sums over the tokens so far, padding left out: where a token stands matters, and in which sentence."""

    traits: ClassVar[Traits] = replace(ALONE, mixes_tokens=True)

    def step(self, x: Any, state: Any, token_mask: np.ndarray | None) -> np.ndarray:
        return np.cumsum(x if token_mask is None else x * token_mask, -2)


class _Adaptive(_Made):
    """Remembers what it read, without spikes: the less it sends, the more came before."""

    traits: ClassVar[Traits] = replace(ALONE, remembers=True)

    def initial_state(self, shape: tuple[int, ...], dtype: DTypeLike) -> dict[str, np.ndarray]:
        return {"read": np.zeros(shape, dtype)}

    def step(self, x: Any, state: dict[str, np.ndarray], token_mask: np.ndarray | None) -> np.ndarray:
        state["read"] = state["read"] + x
        return 3 * x - state["read"] // 2


class _RemembersSentences(_Adaptive):
    """Both: what each token read, and all before it in the sentence."""

    traits: ClassVar[Traits] = replace(_Adaptive.traits, mixes_tokens=True)

    def step(self, x: Any, state: dict[str, np.ndarray], token_mask: np.ndarray | None) -> np.ndarray:
        return super().step(np.cumsum(x if token_mask is None else x * token_mask, -2), state, token_mask)


class _Gate(_Made):
    """Has two ordered sources: the second where the first is above 0, else its opposite."""

    traits: ClassVar[Traits] = replace(ALONE, sources=2)

    def step(self, x: Any, state: Any, token_mask: np.ndarray | None) -> np.ndarray:
        gate, value = x
        return np.where(gate > 0, value, -2 * value)


class _Cross(_Made):
    """Has two ordered sources and mixes tokens: each token's first times the sum of all seconds."""

    traits: ClassVar[Traits] = replace(ALONE, sources=2, mixes_tokens=True)

    def step(self, x: Any, state: Any, token_mask: np.ndarray | None) -> np.ndarray:
        query, value = x if token_mask is None else (part * token_mask for part in x)
        return query * value.sum(-2, keepdims=True)


class _First(_Made):
    """Pools tokens: picks the first, as a ``[CLS]`` is."""

    traits: ClassVar[Traits] = replace(ALONE, pools_tokens="choice")

    def step(self, x: Any, state: Any, token_mask: np.ndarray | None) -> np.ndarray:
        return x[..., :1, :]


class _Most(_Made):
    """Pools tokens: the greatest of each feature at real tokens."""

    traits: ClassVar[Traits] = replace(ALONE, pools_tokens="choice", mixes_tokens=True)

    def step(self, x: Any, state: Any, token_mask: np.ndarray | None) -> np.ndarray:
        return (x if token_mask is None else np.where(token_mask, x, x.min())).max(-2, keepdims=True)


class _TwiceTheSum(_Made):
    """Pools tokens: a sum over them, so that the read-out divides by their number."""

    traits: ClassVar[Traits] = replace(ALONE, pools_tokens="sum", mixes_tokens=True)

    def step(self, x: Any, state: Any, token_mask: np.ndarray | None) -> np.ndarray:
        return 2 * (x if token_mask is None else x * token_mask).sum(-2, keepdims=True)


class _OfSentences(_Adaptive):
    """Stands behind a pooling, remembers, and takes a mask, of which there is none for whole sentences."""

    traits: ClassVar[Traits] = replace(_Adaptive.traits, reads_sentences=True)

    def step(self, x: Any, state: dict[str, np.ndarray], token_mask: np.ndarray | None) -> np.ndarray:
        return super().step(x if token_mask is None else x * token_mask, state, token_mask)


@dataclass(frozen=True, eq=False)
class _Graded(SpikingOperator):
    """Sends as many spikes at once as its input holds quarters of a threshold, more than a signed byte does."""

    name: ClassVar[str] = "graded"
    traits: ClassVar[Traits] = replace(ALONE, spike_range=(0, 200))
    threshold: np.ndarray

    def initial_state(self, shape: tuple[int, ...], dtype: DTypeLike) -> NeuronState:
        return NeuronState(*(np.zeros(shape, dtype) for _ in range(3)))

    def step(self, x: Any, state: NeuronState, token_mask: np.ndarray | None) -> np.ndarray:
        state.tested_potential = x
        return np.clip(4 * x // self.threshold, 0, 200)

    def to_nir(self, dtype: DTypeLike, dt: float) -> nir.NIRNode:
        raise NotImplementedError


class _Ternary(_Graded):
    """Sends -1 where its input lies as far below 0 as it sends 1 above."""

    traits: ClassVar[Traits] = replace(_Graded.traits, spike_range=(-1, 1))

    def step(self, x: Any, state: NeuronState, token_mask: np.ndarray | None) -> np.ndarray:
        state.tested_potential = x
        return (x > 20 * self.threshold).astype(int) - (x < -20 * self.threshold)


class _Doubled(IntegerAffine):
    """Derived from an operator with a fast path, which it is not."""

    traits: ClassVar[Traits] = IntegerAffine.traits

    def step(self, x: Any, state: Any, token_mask: np.ndarray | None) -> np.ndarray:
        return 2 * super().step(x, state, token_mask)


class _Embedding(_Made):
    """Reads words, and is no affine map."""

    traits: ClassVar[Traits] = replace(ALONE, reads_tokens=True)

    @property
    def in_features(self) -> int:
        return 9

    def gather(self, columns: np.ndarray) -> np.ndarray:
        return columns[0][..., None] * np.arange(1, 1 + FEATURES) % 7 - 2

    def step(self, x: Any, state: Any, token_mask: np.ndarray | None) -> np.ndarray:
        raise AssertionError("words are gathered")


def _affine(seed: int, out: int = FEATURES, width: int = FEATURES) -> IntegerAffine:
    weight = np.random.default_rng(seed).integers(-9, 10, (out, width)).astype(np.int8)
    return IntegerAffine(weight=weight, bias=np.arange(out) - 2, unit=np.ones(out))


def _neuron(threshold: int, features: int = FEATURES) -> IntegerLeakyIntegrateAndFire:
    return IntegerLeakyIntegrateAndFire(
        threshold=np.full(features, threshold),
        decay=np.full(features, 400),
        bias_mantissa=np.arange(features) - 2,
        bias_exponent=np.zeros(features, np.int64),
        reset="subtract",
        fire_on_equal=True,
        unit=np.ones(features),
    )


def _between_neurons(operator: Operator) -> Network:
    """Neurons, an operator that reads one or two of them, an affine map and neurons again, all summed up at the end."""
    builder = NetworkBuilder("input", FEATURES)
    sources = [builder.add(f"a{index}", _neuron(20 + 9 * index), "input") for index in range(operator.traits.sources)]
    builder.add("made", operator, sources)
    builder.add("b", _neuron(1), "made")
    builder.add("c", _affine(1), "b")
    builder.add("d", _neuron(5), ["c", "a0"])
    builder.add("end", _affine(2, 3), ["d", "b"])
    return _finished(builder, "end", 3)


def _pooled(pooling: Operator, *behind: Operator) -> Network:
    builder = NetworkBuilder("input", FEATURES)
    last = builder.add("pool", pooling, [builder.add("a", _neuron(20), "input"), builder.add("b", _affine(3), "a")])
    for index, operator in enumerate(behind):
        last = builder.add(f"behind{index}", operator, last)
    return _finished(builder, builder.add("end", _affine(2, 3), [last, "pool"]), 3)


def _graded(neuron: SpikingOperator) -> Network:
    """Spikes of other numbers than 0 and 1, read by another neuron, an affine map, and one that mixes tokens."""
    builder = NetworkBuilder("input", FEATURES)
    builder.add("graded", neuron, "input")
    builder.add("a", _neuron(1), "graded")
    builder.add("b", _neuron(5), [builder.add("affine", _affine(1), "graded"), "a"])
    builder.add("mixed", _FromTheLeft(), ["graded", "b"])
    return _finished(builder, builder.add("end", _affine(2, 3), "mixed"), 3)


def _in_a_cycle(operator: Operator) -> Network:
    """What neurons send comes back to them over the operator, a step later."""
    builder = NetworkBuilder("input", FEATURES)
    back = builder.add("back", operator, [builder.previous_step("neuron", FEATURES)] * operator.traits.sources)
    builder.add("neuron", _neuron(30), ["input", back])
    return _finished(builder, "neuron", FEATURES)


def _graded_in_a_cycle() -> Network:
    """What comes back reaches further than spikes of 0 and 1 would, and more than the cycle reads it."""
    builder = NetworkBuilder("input", FEATURES)
    weight = np.random.default_rng(4).choice([-127, 127], (FEATURES, FEATURES)).astype(np.int8)
    before = builder.previous_step("graded", FEATURES)
    back = builder.add("back", IntegerAffine(weight=weight, unit=ONES), before)
    builder.add("graded", _Graded(100 * ONES), ["input", back])
    behind = builder.add("behind", IntegerAffine(weight=weight, unit=ONES), back)
    return _finished(builder, builder.add("end", _affine(2, 3), behind), 3)


def _finished(builder: NetworkBuilder, last: str, width: int) -> Network:
    return builder.network("output", last, readout=Readout(0.5, np.arange(width)), input_limit=60, max_tokens=6)


NETWORKS: dict[str, Callable[[], Network]] = {
    "mixes tokens": lambda: _between_neurons(_FromTheLeft()),
    "remembers without spikes": lambda: _between_neurons(_Adaptive()),
    "mixes tokens and remembers": lambda: _between_neurons(_RemembersSentences()),
    "two ordered sources": lambda: _between_neurons(_Gate()),
    "two ordered sources that mix tokens": lambda: _between_neurons(_Cross()),
    "graded spikes": lambda: _graded(_Graded(ONES)),
    "ternary spikes": lambda: _graded(_Ternary(ONES)),
    "derived from one with a fast path": lambda: _between_neurons(
        _Doubled(weight=np.eye(FEATURES, dtype=np.int8), unit=np.ones(FEATURES))
    ),
    "picks the first token": lambda: _pooled(_First()),
    "picks the greatest": lambda: _pooled(_Most()),
    "sums tokens": lambda: _pooled(_TwiceTheSum()),
    "remembers behind a pooling": lambda: _pooled(_First(), _OfSentences(), _affine(4), _OfSentences()),
    "mixes tokens in a cycle": lambda: _in_a_cycle(_FromTheLeft()),
    "remembers in a cycle": lambda: _in_a_cycle(_Adaptive()),
    "graded spikes in a cycle": _graded_in_a_cycle,
}
PICK_THE_FIRST = ("picks the first token", "remembers behind a pooling")
"""Of which nothing is promised where the first token is padding."""


@pytest.mark.parametrize("compiled", [False, pytest.param(True, id="compiled")])
@pytest.mark.parametrize("title", NETWORKS)
def test_an_operator_made_elsewhere_is_computed_as_the_reference_does(title: str, compiled: bool) -> None:
    network = NETWORKS[title]()
    rng = np.random.default_rng(0)
    inputs = rng.integers(-60, 61, (5, 4, 6, FEATURES))
    mask = np.arange(6) < np.array([[6], [1], [4], [3]])
    for real in (mask, mask[:, ::-1], np.ones_like(mask)):
        if real[:, 0].all() or title not in PICK_THE_FIRST:
            _check(network, inputs, real, "integer", compiled=compiled)


@pytest.mark.lava
@pytest.mark.parametrize(
    ("title", "granularity"),
    [
        ("mixes tokens", "block"),
        ("two ordered sources that mix tokens", "operator"),
        ("graded spikes", "operator"),
        ("ternary spikes", "operator"),
        ("picks the greatest", "operator"),
        ("remembers behind a pooling", "operator"),
        ("mixes tokens in a cycle", "network"),
    ],
)
def test_lava_computes_it_as_the_reference_does(title: str, granularity: str) -> None:
    inputs = np.random.default_rng(0).integers(-60, 61, (5, 4, 6, FEATURES))
    mask = np.arange(6) < np.array([[6], [1], [4], [3]])
    _check(NETWORKS[title](), inputs, mask, "lava", granularity=granularity)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, id="compiled")])
def test_an_operator_that_reads_words_is_computed_as_the_reference_does(compiled: bool) -> None:
    builder = NetworkBuilder("input", 9)
    builder.add("words", _Embedding(), "input")
    builder.add("mixed", _FromTheLeft(), builder.add("a", _neuron(2), "words"))
    builder.add("b", _neuron(5), ["mixed", "words"])
    network = builder.network(
        "output",
        builder.add("end", _affine(2, 3), "b"),
        readout=Readout(0.5, np.arange(3)),
        token_encoding=TokenEncoding(9, 0),
        time_steps=5,
        max_tokens=6,
    )
    mask = np.arange(6) < np.array([[6], [1], [4], [3]])
    ids = np.random.default_rng(1).integers(0, 9, mask.shape)
    for real in (mask, np.ones_like(mask)):
        _check(network, ids, real, "integer", compiled=compiled)


def _check(network: Network, inputs: np.ndarray, mask: np.ndarray, runner: str, **options: Any) -> None:
    """Every spike, potential, logit and overflow of a runner against the reference interpreter's."""
    if options.get("compiled") and load_kernel() is None:
        pytest.skip("there is no C compiler")
    with (
        open_runner(network, "reference", "integer", record_membrane_potentials=True) as reference,
        open_runner(network, runner, "integer", record_membrane_potentials=True, **options) as opened,
    ):
        expected, found = reference.run(inputs, mask), opened.run(inputs, mask)
    assert expected.spikes.keys() == found.spikes.keys()
    for name, spikes in expected.spikes.items():
        assert 0.02 < (spikes != 0).mean() < 0.98, f"{name}: too quiet to show anything"
        np.testing.assert_array_equal(found.spikes[name], spikes, err_msg=name)
        assert found.spikes[name].dtype == spikes.dtype
        np.testing.assert_array_equal(
            found.membrane_potentials[name][:, mask], expected.membrane_potentials[name][:, mask], err_msg=name
        )
    shown = ... if expected.logits.ndim == 2 else mask
    np.testing.assert_array_equal(found.logits[shown], expected.logits[shown])
    assert found.metadata["overflows"] == expected.metadata["overflows"]
    if "graded" in expected.spikes:
        low, high = network.by_name["graded"].operator.traits.spike_range or (0, 1)
        assert (expected.spikes["graded"].min(), expected.spikes["graded"].max()) == (low, high)


class _OfSentencesGraded(_Graded):
    traits: ClassVar[Traits] = replace(_Graded.traits, reads_sentences=True)


class _InFloats(_FromTheLeft):
    traits: ClassVar[Traits] = replace(ALONE, integer=False)


REFUSED: dict[str, tuple[Network, str]] = {
    "spikes of a sentence": (
        _pooled(_First(), _OfSentencesGraded(ONES)),
        "behind0: graded sends spikes for a whole sentence; a trace holds those of tokens",
    ),
    "a float operator": (_between_neurons(_InFloats()), "made: made is a float operator in an integer graph"),
}


@pytest.mark.parametrize("runner", ["integer", "reference", pytest.param("lava", marks=pytest.mark.lava)])
@pytest.mark.parametrize("title", REFUSED)
def test_what_no_trace_holds_is_refused_by_name(title: str, runner: str) -> None:
    network, said = REFUSED[title]
    with pytest.raises(UnsupportedOperatorError, match=said):
        open_runner(network, runner, "integer")
