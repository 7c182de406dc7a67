"""The promise of the hidden-state checks: a sound runner passes every one, and each planted bug fails the check for it.

Six bugs, one for each check, in a runner that is otherwise the reference interpreter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from export.network import Network
from hardware.equivalence.isolation import CHECKS, check_hidden_state
from hardware.errors import RunnerError
from hardware.runners import open_runner
from hardware.runners.reference import ReferenceRunner
from hardware.runners.runner import Runner
from hardware.traces.trace import Trace

NetworkMaker = Callable[..., Network]
LENGTHS = (6, 4, 1, 6)
LONGEST = 12


def _sentences() -> tuple[np.ndarray, np.ndarray]:
    mask = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
    ids = np.random.default_rng(0).integers(1, 20, mask.shape)
    return np.where(mask, ids, 0), mask


@pytest.fixture(scope="module")
def network(make_network: NetworkMaker) -> Network:
    return make_network(5)


def _check(kind: type[ReferenceRunner], network: Network, **options: Any) -> dict[str, bool | None]:
    def open_it(time_steps: int | None) -> Runner:
        return kind(network, "float64", time_steps, record_membrane_potentials=True)

    assert network.time_steps is not None
    results = check_hidden_state(open_it, *_sentences(), network.time_steps, network, LONGEST, **options)
    return {result.name: result.passed for result in results}


class _Batch(ReferenceRunner):
    """Every sentence takes the first word of the batch's longest: seen alone, it is its own."""

    def run(self, inputs: Any, token_mask: Any = None) -> Trace:
        ids = np.array(inputs)
        ids[:, 0] = ids[:, 0].max()
        return replace(super().run(ids, token_mask), input_ids=np.array(inputs))


class _Padding(ReferenceRunner):
    """Takes padding for tokens."""

    def run(self, inputs: Any, token_mask: Any = None) -> Trace:
        trace = super().run(inputs)
        mask = np.asarray(token_mask) != 0
        silent = {name: spikes * mask[None, :, :, None].astype(spikes.dtype) for name, spikes in trace.spikes.items()}
        return replace(trace, mask=mask, spikes=silent)


class _Order(ReferenceRunner):
    """The first sentence of a batch loses its first word."""

    def run(self, inputs: Any, token_mask: Any = None) -> Trace:
        ids = np.array(inputs)
        ids[0, 0] = 0
        return replace(super().run(ids, token_mask), input_ids=np.array(inputs))


class _Repeat(ReferenceRunner):
    """Keeps the membrane potentials of the last batch, where it had the same shape."""

    last_shape: tuple[int, ...] | None = None

    def run(self, inputs: Any, token_mask: Any = None) -> Trace:
        reset = self._execution.reset
        if self.last_shape == np.shape(inputs):
            self._execution.reset = lambda: None  # type: ignore[method-assign]
        try:
            return super().run(inputs, token_mask)
        finally:
            self.last_shape = np.shape(inputs)
            self._execution.reset = reset  # type: ignore[method-assign]


class _Reset(ReferenceRunner):
    """Remembers the last sentence's first word and says it once more."""

    last_word: int | None = None

    def run(self, inputs: Any, token_mask: Any = None) -> Trace:
        ids = np.array(inputs)
        if self.last_word is not None and len(ids) == 1:
            ids[0, 0] = self.last_word
        self.last_word = int(np.array(inputs)[0, 0])
        return replace(super().run(ids, token_mask), input_ids=np.array(inputs))


class _Prefix(ReferenceRunner):
    """Shows another first word where there are more steps."""

    def run(self, inputs: Any, token_mask: Any = None) -> Trace:
        ids = np.array(inputs)
        if self.time_steps is not None:
            ids[:, 0] = 0
        return replace(super().run(ids, token_mask), input_ids=np.array(inputs))


BUGS: dict[str, type[ReferenceRunner]] = {
    "batch": _Batch,
    "padding": _Padding,
    "order": _Order,
    "repeat": _Repeat,
    "reset": _Reset,
    "prefix": _Prefix,
}


def test_there_is_a_bug_for_every_check() -> None:
    assert set(BUGS) == set(CHECKS)


def test_a_sound_runner_passes_every_check(network: Network) -> None:
    assert _check(ReferenceRunner, network) == dict.fromkeys(CHECKS, True)


@pytest.mark.parametrize("name", BUGS)
def test_each_bug_fails_its_check(name: str, network: Network) -> None:
    found = _check(BUGS[name], network)
    assert found[name] is False
    if name in ("padding", "prefix"):  # the others must show in several
        assert [check for check, passed in found.items() if passed is False] == [name]


def test_only_the_checks_asked_for_run(network: Network) -> None:
    started: list[str] = []
    found = _check(ReferenceRunner, network, checks=["repeat", "order"], on_check=started.append)
    assert set(found) == {"repeat", "order"}
    assert started == ["order", "repeat"]


def test_a_model_that_attends_to_padding_is_not_asked(network: Network) -> None:
    found = _check(ReferenceRunner, replace(network, attend_to_padding=True), checks=["padding"])
    assert found == {"padding": None}


def test_a_runner_of_one_number_of_steps_is_not_asked(network: Network) -> None:
    def open_it(time_steps: int | None) -> Runner:
        if time_steps is not None:
            raise TypeError("time_steps")
        return open_runner(network, "reference")

    (result,) = check_hidden_state(open_it, *_sentences(), 4, checks=["prefix"])
    assert result.passed is None
    assert "takes no other number of time steps" in result.reason


def test_rounding_passes_where_the_graph_explains_it(make_network: NetworkMaker) -> None:
    """A potential moved by one unit in the last place of float32 in batches of more than one sentence."""
    network = make_network(5)

    class Rounding(ReferenceRunner):
        def run(self, inputs: Any, token_mask: Any = None) -> Trace:
            trace = super().run(inputs, token_mask)
            name = "block00_output_neuron"
            if len(trace.mask) > 1:
                moved = np.nextafter(trace.membrane_potentials[name], np.float32(np.inf))
                trace.membrane_potentials[name] = moved
            return trace

    def open_it(time_steps: int | None) -> Runner:
        return Rounding(network, "float32", time_steps, record_membrane_potentials=True)

    results = check_hidden_state(open_it, *_sentences(), 4, network, LONGEST)
    assert all(result.passed for result in results)


def test_bad_use_is_refused(network: Network) -> None:
    ids, mask = _sentences()
    with pytest.raises(RunnerError, match="'nonsense' is not one of batch"):
        check_hidden_state(lambda _: open_runner(network), ids, mask, 4, checks=["nonsense"])
    with pytest.raises(RunnerError, match="at least two"):
        check_hidden_state(lambda _: open_runner(network), ids[:1], mask[:1], 4)
