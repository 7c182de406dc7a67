"""The promise of `compare`: every spike that differs is counted, and the first one is named, or what moved without one.

The first divergence is found again here by loops in the promised order, over runs that hypothesis makes differ.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware import Trace, compare
from hardware.equivalence import Comparison, Divergence, merge_comparisons
from hardware.errors import TraceMismatchError

NODES = {"zebra": 3, "ant": 2, "middle": 1}
STEPS, SENTENCES, TOKENS, CLASSES = 3, 4, 3, 2
MASK = np.arange(TOKENS) < np.array([[3], [1], [2], [3]])


def _trace(precision: str = "float64", **changes: Any) -> Trace:
    rng = np.random.default_rng(0)
    shapes = {name: (STEPS, SENTENCES, TOKENS, width) for name, width in NODES.items()}
    fired = {name: rng.random(shape) < 0.4 for name, shape in shapes.items()}
    parts = {
        "spikes": {name: (spikes * MASK[None, :, :, None]).astype(np.uint8) for name, spikes in fired.items()},
        "logits": rng.uniform(-0.9, 0.9, (SENTENCES, CLASSES)),
        "mask": MASK,
        # magnitudes below 1, so that relative and absolute differences are the same
        "membrane_potentials": {name: rng.uniform(-0.9, 0.9, shape) for name, shape in shapes.items()},
        "thresholds": {name: rng.uniform(0.2, 0.8, width) for name, width in NODES.items()},
        "input_ids": rng.integers(1, 9, MASK.shape) * MASK,
        "metadata": {"precision": precision},
    }
    return Trace(**{**parts, **changes})


def _changed(trace: Trace, quantity: str, node: str, index: tuple[int, ...], by: float = 1) -> Trace:
    """Return a trace with one spike, potential or logit changed."""
    if quantity == "logits":
        logits = trace.logits.copy()
        logits[index] += by
        return replace(trace, logits=logits)
    arrays = dict(getattr(trace, quantity))
    arrays[node] = arrays[node].copy()
    arrays[node][index] = 1 - arrays[node][index] if quantity == "spikes" else arrays[node][index] + by
    return replace(trace, **{quantity: arrays})


def _first_by_loops(a: Trace, b: Trace, potential_tolerance: float, logit_tolerance: float) -> dict[str, Any] | None:
    """Return quantity, node and axes of the first divergence: node, then step, sample, token and feature."""
    axes = ("time_step", "sample", "token", "feature")
    for node in NODES:
        steps, sentences, tokens, features = a.spikes[node].shape
        places = [
            (t, i, n, d) for t in range(steps) for i in range(sentences) for n in range(tokens) for d in range(features)
        ]
        for place in places:
            if a.spikes[node][place] != b.spikes[node][place]:
                return {"quantity": "spike", "node": node, **dict(zip(axes, place, strict=True))}
        for place in places:
            moved = abs(float(a.membrane_potentials[node][place]) - float(b.membrane_potentials[node][place]))
            if a.mask[place[1], place[2]] and moved > potential_tolerance:
                return {"quantity": "membrane_potential", "node": node, **dict(zip(axes, place, strict=True))}
    for sample, feature in np.ndindex(a.logits.shape):
        if abs(float(a.logits[sample, feature]) - float(b.logits[sample, feature])) > logit_tolerance:
            none = dict.fromkeys(axes)
            return {"quantity": "logits", "node": "output", **none, "sample": sample, "feature": feature}
    return None


REAL = [tuple(map(int, place)) for place in np.argwhere(MASK)]


@st.composite
def _changes(draw: st.DrawFn) -> list[tuple[Any, ...]]:
    """Draw a few changes of real tokens: (quantity, node, index, by)."""
    found: list[tuple[Any, ...]] = []
    for _ in range(draw(st.integers(0, 4))):
        node = draw(st.sampled_from(list(NODES)))
        sample, token = draw(st.sampled_from(REAL))
        step, feature = draw(st.integers(0, STEPS - 1)), draw(st.integers(0, NODES[node] - 1))
        quantity = draw(st.sampled_from(["spikes", "membrane_potentials", "logits"]))
        index = (sample, draw(st.integers(0, CLASSES - 1))) if quantity == "logits" else (step, sample, token, feature)
        by = draw(st.sampled_from([1e-12, 1e-5, -1e-5, 0.1, -0.1]))
        found.append((quantity, node, index, by))
    return found


def _apply(trace: Trace, changes: list[tuple[Any, ...]]) -> Trace:
    for change in changes:
        trace = _changed(trace, *change)
    return trace


@settings(max_examples=200, deadline=None)
@given(changes=_changes(), precision=st.sampled_from(["float64", "float32", None]))
def test_the_first_divergence_is_the_one_that_loops_find(changes: list[tuple[Any, ...]], precision: str | None) -> None:
    a = _trace()
    b = _apply(a, changes)
    for trace in (a, b):
        trace.metadata["precision"] = precision
    tolerance = {"float64": 1e-9, "float32": 1e-3, None: np.inf}[precision]
    expected = _first_by_loops(a, b, tolerance, tolerance)
    found = compare(a, b)
    flipped = {name: int((a.spikes[name] != b.spikes[name]).sum()) for name in NODES}
    assert found.equal == (expected is None)
    assert found.spikes_different == sum(flipped.values())
    assert {node.node: node.different for node in found.per_node} == flipped
    if expected is None:
        assert found.first_divergence is None
        return
    first = found.first_divergence
    assert first is not None
    assert {key: getattr(first, key) for key in expected} == expected
    if first.quantity == "logits":
        place = (first.sample, first.feature)
        assert (first.value_a, first.value_b) == (a.logits[place], b.logits[place])
        return
    place = (first.time_step, first.sample, first.token, first.feature)
    values = "spikes" if first.quantity == "spike" else "membrane_potentials"
    assert (first.value_a, first.value_b) == tuple(getattr(t, values)[first.node][place] for t in (a, b))
    potentials = tuple(t.membrane_potentials[first.node][place] for t in (a, b))
    assert (first.membrane_potential_a, first.membrane_potential_b) == potentials
    assert first.threshold == a.thresholds[first.node][first.feature]


def _rows(trace: Trace, rows: slice) -> Trace:
    return replace(
        trace,
        spikes={name: value[:, rows] for name, value in trace.spikes.items()},
        membrane_potentials={name: value[:, rows] for name, value in trace.membrane_potentials.items()},
        logits=trace.logits[rows],
        mask=trace.mask[rows],
        input_ids=trace.input_ids[rows],
    )


@settings(max_examples=150, deadline=None)
@given(
    changes=_changes(), cuts=st.sets(st.integers(1, SENTENCES - 1)), precision=st.sampled_from(["float64", "float32"])
)
def test_batches_joined_are_the_whole(changes: list[tuple[Any, ...]], cuts: set[int], precision: str) -> None:
    a = _trace(precision)
    b = _apply(a, changes)
    edges = [0, *sorted(cuts), SENTENCES]
    batches = [slice(start, stop) for start, stop in pairwise(edges)]
    whole = asdict(compare(a, b))
    joined = asdict(merge_comparisons(compare(_rows(a, rows), _rows(b, rows)) for rows in batches))
    for mine, other in zip(joined["per_node"], whole["per_node"], strict=True):
        for rate in ("rate_a", "rate_b"):
            assert mine.pop(rate) == pytest.approx(other.pop(rate), rel=1e-12)
    assert joined == whole


def test_counts_rates_and_margins_of_real_tokens() -> None:
    a = _trace()
    b = _changed(_changed(a, "spikes", "ant", (0, 0, 0, 0)), "membrane_potentials", "ant", (1, 2, 0, 1), 0.03)
    found = compare(a, b)
    for node, (name, width) in zip(found.per_node, NODES.items(), strict=True):
        assert node.node == name
        assert node.compared == STEPS * int(MASK.sum()) * width
        for trace, rate in ((a, node.rate_a), (b, node.rate_b)):
            fired = sum(int(trace.spikes[name][t, i, n].sum()) for t in range(STEPS) for i, n in REAL)
            assert rate == pytest.approx(fired / node.compared, rel=1e-12)
        distances = [
            abs(float(trace.membrane_potentials[name][t, i, n, d]) - float(trace.thresholds[name][d]))
            for trace in (a, b)
            for t in range(STEPS)
            for i, n in REAL
            for d in range(width)
        ]
        assert node.margin == min(distances)
        assert node.potential_difference == pytest.approx(0.03 if name == "ant" else 0, abs=1e-15)
    assert found.spikes_compared == sum(node.compared for node in found.per_node)
    assert (found.samples, found.tokens) == (SENTENCES, int(MASK.sum()))


def test_one_trace_may_know_what_the_other_does_not() -> None:
    """The thresholds are the graph's, and stock Lava neurons show no potentials."""
    a, b = _trace(thresholds={}), _trace(membrane_potentials={})
    found = compare(_changed(a, "spikes", "ant", (0, 0, 0, 1)), b).first_divergence
    assert found is not None
    assert found.threshold == b.thresholds["ant"][1]
    assert found.membrane_potential_a == a.membrane_potentials["ant"][0, 0, 0, 1]
    assert found.membrane_potential_b is None
    (node, *_) = compare(_trace(thresholds={}), _trace(thresholds={})).per_node
    assert node.margin is None
    assert compare(b, b).per_node[0].potential_difference is None


def test_distances_of_two_units_are_not_mixed() -> None:
    """Whole numbers count potentials in a unit of their own: a margin of 0 there says nothing in the float run's."""
    a, whole = _trace(), _trace("integer")
    whole = replace(whole, membrane_potentials={name: np.ones_like(v) for name, v in a.membrane_potentials.items()})
    whole = replace(whole, thresholds={name: np.ones_like(v) for name, v in a.thresholds.items()})
    found = compare(a, _changed(whole, "spikes", "ant", (0, 0, 0, 1)))
    alone = compare(a, a)
    assert [node.margin for node in found.per_node] == [node.margin for node in alone.per_node]
    first = found.first_divergence
    assert first is not None
    assert first.threshold == a.thresholds["ant"][1]
    assert first.distance == abs(a.membrane_potentials["ant"][0, 0, 0, 1] - a.thresholds["ant"][1])
    unknown = compare(replace(a, thresholds={}), _changed(whole, "spikes", "ant", (0, 0, 0, 1)))
    assert unknown.per_node[0].margin is None
    assert unknown.first_divergence is not None
    assert (unknown.first_divergence.threshold, unknown.first_divergence.distance) == (None, None)


@pytest.mark.parametrize(("precision", "rounding", "change"), [("float64", 1e-11, 1e-8), ("float32", 1e-5, 1e-2)])
@pytest.mark.parametrize("quantity", ["membrane_potentials", "logits"])
def test_a_change_that_flips_no_spike_is_found(quantity: str, precision: str, rounding: float, change: float) -> None:
    a = _trace(precision)
    index = (2, 1) if quantity == "logits" else (1, 2, 1, 1)
    assert compare(a, _changed(a, quantity, "ant", index, rounding)).equal
    found = compare(a, _changed(a, quantity, "ant", index, change))
    assert not found.equal
    assert found.spikes_different == 0
    first = found.first_divergence
    assert first is not None
    assert (first.quantity, first.node) == (
        ("logits", "output") if quantity == "logits" else ("membrane_potential", "ant")
    )


@pytest.mark.parametrize("quantity", ["membrane_potentials", "logits"])
def test_two_float_precisions_are_judged_by_the_coarser(quantity: str) -> None:
    a, b = _trace(), _trace("float32")
    index = (2, 1) if quantity == "logits" else (1, 2, 1, 1)
    for pair in ((a, b), (b, a)):
        assert compare(pair[0], _changed(pair[1], quantity, "ant", index, 1e-5)).equal
        assert not compare(pair[0], _changed(pair[1], quantity, "ant", index, 1e-2)).equal


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_rounding_is_relative_to_the_largest_potential_of_the_node(scale: float) -> None:
    a = _trace()
    a.membrane_potentials["ant"][0, 0, 0, 0] = scale
    index = (1, 2, 1, 1)
    assert compare(a, _changed(a, "membrane_potentials", "ant", index, 0.5e-9 * scale)).equal
    assert not compare(a, _changed(a, "membrane_potentials", "ant", index, 2e-9 * scale)).equal


def test_what_happens_at_padding_does_not_count_as_a_potential() -> None:
    a = _trace()
    assert not MASK[1, 2]
    for value in (5.0, np.nan, np.inf):
        assert compare(a, _changed(a, "membrane_potentials", "zebra", (0, 1, 2, 0), value)).equal


@pytest.mark.parametrize("precision", ["float64", "float32", None])
@pytest.mark.parametrize("quantity", ["membrane_potentials", "logits"])
def test_what_is_not_a_number_is_never_equal(quantity: str, precision: str | None) -> None:
    a = _trace()
    a.metadata["precision"] = precision
    index = (2, 1) if quantity == "logits" else (1, 2, 1, 1)
    broken = _changed(a, quantity, "ant", index, np.nan)
    for pair in ((a, broken), (broken, a), (broken, broken)):
        assert not compare(*pair).equal
    if precision is not None:
        assert not compare(a, _changed(a, quantity, "ant", index, np.inf)).equal
        everything = _changed(a, quantity, "ant", tuple(slice(None) for _ in index), np.inf)
        assert not compare(everything, a).equal


def test_tokens_that_are_kept_are_compared_where_they_are_real() -> None:
    logits = np.random.default_rng(1).normal(size=(SENTENCES, TOKENS, CLASSES))
    a = _trace(logits=logits)
    at_padding, at_token = logits.copy(), logits.copy()
    at_padding[1, 2, 0] += 1
    at_token[2, 1, 1] += 1
    assert compare(a, _trace(logits=at_padding)).equal
    first = compare(a, _trace(logits=at_token)).first_divergence
    assert first is not None
    assert (first.quantity, first.sample, first.token, first.feature) == ("logits", 2, 1, 1)


def test_a_divergence_says_where_it_is() -> None:
    a = _trace()
    first = compare(a, _changed(a, "spikes", "ant", (2, 3, 1, 0))).first_divergence
    assert str(first).startswith("ant, step 2, sample 3, token 1, feature 0: spike ")
    for part in (
        repr(float(a.membrane_potentials["ant"][2, 3, 1, 0])),
        f"threshold {float(a.thresholds['ant'][0])!r}",
    ):
        assert part in str(first)


def test_the_answer_is_json_with_the_promised_keys() -> None:
    a = _trace()
    found = json.loads(json.dumps(compare(a, _changed(a, "spikes", "ant", (2, 3, 1, 0))).to_dict()))
    assert {"equal", "spikes_compared", "spikes_different", "first_divergence", "per_node"} <= set(found)
    assert {"node", "compared", "different", "rate_a", "rate_b", "margin"} <= set(found["per_node"][0])
    assert {"node", "time_step", "sample", "token", "feature"} <= set(found["first_divergence"])


LESS = {name: value for name, value in _trace().spikes.items() if name != "ant"}
SPIKES = _trace().spikes
MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "a node less": ({"spikes": LESS}, "ant: is in the first trace, but not in the second"),
    "a node more": ({"spikes": {**SPIKES, "bee": SPIKES["ant"]}}, "bee: is in the second trace, but not in the first"),
    "fewer steps": ({"spikes": {name: v[:2] for name, v in SPIKES.items()}}, "zebra: has shape"),
    "fewer features": ({"spikes": {**SPIKES, "ant": SPIKES["ant"][..., :1]}}, "ant: has shape"),
    "another mask": ({"mask": MASK[::-1]}, "mask: the traces do not agree"),
    "other classes": ({"logits": np.ones((SENTENCES, 5))}, "logits: have shape"),
    "other words": ({"input_ids": _trace().input_ids + 1}, "input_ids: the traces were made from different"),
    "potentials of another shape": ({"membrane_potentials": {"ant": np.ones(3)}}, "ant: the second trace has membrane"),
    "thresholds of another shape": ({"thresholds": {"ant": np.ones(3)}}, "ant: the second trace has thresholds"),
}


@pytest.mark.parametrize("what", MISFITS)
def test_traces_that_do_not_belong_together_are_refused(what: str) -> None:
    changes, said = MISFITS[what]
    with pytest.raises(TraceMismatchError, match=said):
        compare(_trace(), _trace(**changes))


def test_words_at_padding_may_differ() -> None:
    ids = _trace().input_ids
    assert compare(_trace(), _trace(input_ids=np.where(MASK, ids, 77))).equal


def test_traces_without_tokens_show_nothing() -> None:
    with pytest.raises(TraceMismatchError, match="no token"):
        compare(_trace(mask=MASK & False), _trace(mask=MASK & False))


def test_nodes_may_stand_in_any_order_and_the_first_trace_gives_it() -> None:
    a = _trace()
    turned = _changed(_changed(a, "spikes", "middle", (0, 0, 0, 0)), "spikes", "ant", (2, 0, 0, 0))
    turned = replace(turned, spikes=dict(reversed(turned.spikes.items())))
    found = compare(a, turned)
    assert [node.node for node in found.per_node] == list(NODES)
    assert found.first_divergence is not None
    assert found.first_divergence.node == "ant"


def test_nothing_cannot_be_joined() -> None:
    with pytest.raises(TraceMismatchError, match="nothing was compared"):
        merge_comparisons([])


def test_batches_of_different_graphs_are_not_joined() -> None:
    a = compare(_trace(), _trace())
    other = _trace(spikes=LESS, membrane_potentials={}, thresholds={})
    with pytest.raises(TraceMismatchError, match="nodes differ"):
        merge_comparisons([a, compare(other, other)])


def test_a_spike_comes_before_a_potential_of_the_same_node() -> None:
    """Joined batches say what the whole would: a potential counts only where no spike of the node differs."""
    a = _trace()
    b = _changed(_changed(a, "membrane_potentials", "ant", (0, 0, 0, 0), 0.1), "spikes", "ant", (2, 3, 0, 0))
    joined = merge_comparisons([compare(_rows(a, rows), _rows(b, rows)) for rows in (slice(0, 2), slice(2, 4))])
    assert isinstance(joined, Comparison)
    assert isinstance(joined.first_divergence, Divergence)
    assert (joined.first_divergence.quantity, joined.first_divergence.sample) == ("spike", 3)
    assert joined.first_divergence == compare(a, b).first_divergence
