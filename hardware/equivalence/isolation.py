"""Checks for state that hides between runs: what a sentence's result may not depend on, asked of any runner.

A sentence means the same whatever stands beside it in the batch, however far it is padded, whatever ran before it, and
whether or not more time steps follow. Each check runs the same sentences in two ways and compares every spike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from export.network import Network
from hardware.equivalence.comparison import Comparison, compare, merge_comparisons
from hardware.equivalence.explanation import Explanation, explain, merge_explanations
from hardware.errors import RunnerError
from hardware.runners.runner import FLOAT_PRECISIONS, Runner
from hardware.traces.trace import Trace

OpenRunner = Callable[[int | None], Runner]
"""Makes a runner for a number of time steps; None for the graph's own."""

EXTRA_PADDING = 3


@dataclass(frozen=True)
class CheckResult:
    """What one check found.

    Attributes
    ----------
    name : str
    meaning : str
        What must not matter, in words.
    passed : bool or None
        None where the runner cannot be asked.
    comparison : Comparison or None
    explanation : Explanation or None
        Of the differences, where the graph is known and there are any.
    reason : str
        Why it was not asked.
    """

    name: str
    meaning: str
    passed: bool | None
    comparison: Comparison | None = None
    explanation: Explanation | None = None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "check": self.name,
            "meaning": self.meaning,
            "passed": self.passed,
            "reason": self.reason,
            "comparison": self.comparison and self.comparison.to_dict(),
            "explanation": self.explanation and self.explanation.to_dict(),
        }


@dataclass(frozen=True)
class PaddedSentences:
    """Sentences to check with: of several lengths, padded to the longest.

    Attributes
    ----------
    input_ids, mask : ndarray
        ``(B, N)``.
    """

    input_ids: np.ndarray
    mask: np.ndarray

    def rows(self, rows: Sequence[int] | slice, tokens: int | None = None) -> PaddedSentences:
        """Return some sentences, cut to the first `tokens`."""
        return PaddedSentences(self.input_ids[rows, :tokens], self.mask[rows, :tokens])

    def padded(self, by: int) -> PaddedSentences:
        """Return the sentences with more padding behind them."""
        behind = ((0, 0), (0, by))
        return PaddedSentences(np.pad(self.input_ids, behind), np.pad(self.mask, behind))


Pairs = list[tuple[Trace, Trace]]


def check_hidden_state(
    open_runner: OpenRunner,
    input_ids: np.ndarray,
    mask: np.ndarray,
    time_steps: int,
    network: Network | None = None,
    longest: int | None = None,
    checks: Sequence[str] | None = None,
    on_check: Callable[[str], None] | None = None,
) -> list[CheckResult]:
    """Ask a runner everything that a sentence's result may not depend on.

    Parameters
    ----------
    open_runner : callable
        Makes the runner anew; given a number of time steps, or None for its own.
    input_ids, mask : ndarray
        ``(B, N)``: at least two sentences, best of several lengths.
    time_steps : int
        The runner's own.
    network : Network, optional
        What it is meant to run: a difference that rounding explains then passes, in float precisions.
    longest : int, optional
        Most tokens a sentence may have; less padding is tried where there is no room.
    checks : sequence of str, optional
        Some of `CHECKS`.
    on_check : callable, optional
        Told the name of each check before it starts.

    Raises
    ------
    RunnerError
        A check is not known, or there are fewer than two sentences.
    """
    sentences = PaddedSentences(np.asarray(input_ids), np.asarray(mask) != 0)
    if len(sentences.mask) < 2:
        raise RunnerError("the checks compare sentences with one another; give at least two")
    for name in checks or ():
        if name not in CHECKS:
            raise RunnerError(f"check {name!r} is not one of {', '.join(CHECKS)}")
    subject = _Subject(open_runner, sentences, time_steps, longest)
    results = []
    for name, (meaning, check) in CHECKS.items():
        if checks and name not in checks:
            continue
        if on_check is not None:
            on_check(name)
        try:
            pairs = check(subject)
        except _CannotAsk as reason:
            results.append(CheckResult(name, meaning, None, reason=str(reason)))
            continue
        results.append(_judged(name, meaning, pairs, network))
    return results


def _judged(name: str, meaning: str, pairs: Pairs, network: Network | None) -> CheckResult:
    parts = [compare(a, b) for a, b in pairs]
    comparison = merge_comparisons(parts)
    explanation = None
    is_float = all(trace.precision in FLOAT_PRECISIONS for pair in pairs for trace in pair)
    if not comparison.equal and network is not None and is_float:
        offsets = np.cumsum([0, *(part.samples for part in parts)]).tolist()
        explained = ((explain(network, *pair), offset) for pair, offset in zip(pairs, offsets, strict=False))
        explanation = merge_explanations(explained)
    passed = comparison.equal or (explanation is not None and explanation.explained)
    return CheckResult(name, meaning, passed, comparison, explanation)


class _CannotAsk(Exception):
    """A check does not apply; the message says why."""


@dataclass
class _Subject:
    """What is checked, and one run that several checks start from."""

    open_runner: OpenRunner
    sentences: PaddedSentences
    time_steps: int
    longest: int | None
    _whole: Trace | None = None

    def run(self, sentences: PaddedSentences, runner: Runner | None = None) -> Trace:
        """Run sentences on a runner, or on a fresh one."""
        if runner is not None:
            return runner.run(sentences.input_ids, sentences.mask)
        with self.open_runner(None) as fresh:
            return fresh.run(sentences.input_ids, sentences.mask)

    @property
    def whole(self) -> Trace:
        """All sentences at once, on a runner that ran nothing before."""
        if self._whole is None:
            self._whole = self.run(self.sentences)
        return self._whole

    @property
    def count(self) -> int:
        return len(self.sentences.mask)


def _batch(subject: _Subject) -> Pairs:
    pairs = []
    with subject.open_runner(None) as runner:
        for row in range(subject.count):
            alone = subject.run(subject.sentences.rows([row]), runner)
            pairs.append((subject.whole.rows(row, row + 1), alone))
    return pairs


def _padding(subject: _Subject) -> Pairs:
    tokens = subject.sentences.mask.shape[1]
    room = EXTRA_PADDING if subject.longest is None else min(EXTRA_PADDING, subject.longest - tokens)
    rows = [row for row in range(subject.count) if room > 0 or not subject.sentences.mask[row].all()]
    if subject.whole.mask[~subject.sentences.mask].any():
        raise _CannotAsk("the model attends to padding: to it, padding is ordinary tokens")
    if not rows:
        raise _CannotAsk("every sentence is as long as the model allows; give a shorter one")
    pairs = []
    with subject.open_runner(None) as runner:
        wide = subject.run(subject.sentences.padded(max(0, room)), runner)
        for row in rows:
            length = int(subject.sentences.mask[row].sum())
            bare = subject.run(subject.sentences.rows([row], length), runner)
            pairs.append((bare, wide.rows(row, row + 1, length)))
    return pairs


def _order(subject: _Subject) -> Pairs:
    turned = list(reversed(range(subject.count)))
    backwards = subject.run(subject.sentences.rows(turned))
    last = subject.count - 1
    return [
        (subject.whole.rows(row, row + 1), backwards.rows(last - row, last - row + 1)) for row in range(subject.count)
    ]


def _repeat(subject: _Subject) -> Pairs:
    with subject.open_runner(None) as runner:
        first, second = (subject.run(subject.sentences, runner) for _ in range(2))
    return [(subject.whole, first), (first, second)]


def _reset(subject: _Subject) -> Pairs:
    pairs = []
    for row in (0, subject.count - 1):
        other = subject.sentences.rows([(row + 1) % subject.count])
        fresh = subject.run(subject.sentences.rows([row]))
        with subject.open_runner(None) as runner:
            subject.run(other, runner)
            pairs.append((fresh, subject.run(subject.sentences.rows([row]), runner)))
    return pairs


def _prefix(subject: _Subject) -> Pairs:
    steps = subject.time_steps
    try:
        runner = subject.open_runner(steps + 1)
    except TypeError as error:
        raise _CannotAsk(f"the runner takes no other number of time steps ({error})") from error
    with runner:
        longer = subject.run(subject.sentences, runner)
    if longer.outputs is None or subject.whole.outputs is None:
        longer = replace(longer, logits=np.zeros((subject.count, 0)))
    else:
        # logits are means over time, so the longer run's are taken over the same steps
        shown = longer.outputs[:steps]
        longer = replace(longer, outputs=shown, logits=shown.mean(0, dtype=shown.dtype))
    first = replace(
        longer,
        spikes={name: value[:steps] for name, value in longer.spikes.items()},
        membrane_potentials={name: value[:steps] for name, value in longer.membrane_potentials.items()},
    )
    return [(subject.whole, first)]


CHECKS: dict[str, tuple[str, Callable[[_Subject], Pairs]]] = {
    "batch": ("the other sentences of a batch", _batch),
    "padding": ("how much padding stands behind a sentence", _padding),
    "order": ("where in a batch a sentence stands", _order),
    "repeat": ("whether the same batch ran before", _repeat),
    "reset": ("which other sentence ran before", _reset),
    "prefix": ("whether more time steps follow", _prefix),
}
"""By name: what must not matter, and the runs to compare."""
