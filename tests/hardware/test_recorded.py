"""The promise of foreign traces: every documented layout of the same spikes is read as the same trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nir.data_ir import EventData, NIRGraphData, NIRNodeData, TimeGriddedData

from hardware.errors import TraceError
from hardware.traces.recorded import events_to_grid, load_trace, trace_from_nir_data, trace_to_nir_data
from hardware.traces.trace import Trace

STEPS, SENTENCES, TOKENS, DT = 5, 2, 3, 1e-4
WIDTHS = {"zebra": 4, "ant": 2}
MASK = np.array([[True, True, True], [True, True, False]])


def _spikes() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name: ((rng.random((STEPS, SENTENCES, TOKENS, width)) < 0.5) & MASK[None, :, :, None]).astype(np.uint8)
        for name, width in WIDTHS.items()
    }


def _plain() -> dict[str, np.ndarray]:
    return {**_spikes(), "mask": MASK}


def _bool() -> dict[str, np.ndarray]:
    return {**{name: value != 0 for name, value in _spikes().items()}, "mask": MASK.astype(int)}


def _events() -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {"mask": MASK}
    for name, value in _spikes().items():
        found[f"{name}.events"] = np.argwhere(value)[::-1]  # in any order
        found[f"{name}.shape"] = np.array(value.shape)
    return found


def _neurons(value: np.ndarray) -> np.ndarray:
    """Return (samples, steps, neurons) by loops, as the layout is documented: token * features + feature."""
    steps, sentences, tokens, features = value.shape
    out = np.zeros((sentences, steps, tokens * features), value.dtype)
    for t, b, n, d in np.ndindex(*value.shape):
        out[b, t, n * features + d] = value[t, b, n, d]
    return out


def _nir_grid() -> dict[str, np.ndarray]:
    found: dict[str, Any] = {"mask": MASK}
    for name, value in _spikes().items():
        found[f"{name}.spikes.data"] = _neurons(value) != 0
        found[f"{name}.spikes.dt"] = np.array(DT)
    return found


def _nir_events() -> dict[str, np.ndarray]:
    found: dict[str, Any] = {"mask": MASK}
    for name, value in _spikes().items():
        grid = TimeGriddedData(_neurons(value) != 0, DT)
        events = grid.to_event(int(grid.data.sum((1, 2)).max()) + 2)
        for field in ("idx", "time", "n_neurons", "t_max"):
            found[f"{name}.spikes.{field}"] = np.array(getattr(events, field))
        found[f"{name}.spikes.dt"] = np.array(DT)
    return found


LAYOUTS: dict[str, Callable[[], dict[str, np.ndarray]]] = {
    "arrays": _plain,
    "booleans": _bool,
    "events": _events,
    "NIR data on a grid": _nir_grid,
    "NIR data as events": _nir_events,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_the_same_trace(layout: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "trace.npz", **LAYOUTS[layout]())
    trace = load_trace(tmp_path / "trace.npz")
    assert set(trace.spikes) == set(WIDTHS)
    for name, spikes in _spikes().items():
        np.testing.assert_array_equal(trace.spikes[name], spikes)
    np.testing.assert_array_equal(trace.mask, MASK)
    assert trace.logits.shape == (SENTENCES, 0)


def test_our_own_files_are_read_as_ever(tmp_path: Path) -> None:
    trace = Trace(_spikes(), np.ones((SENTENCES, 3)), MASK, metadata={"precision": "float64"})
    trace.save(tmp_path / "own.npz")
    found = load_trace(tmp_path / "own.npz")
    assert list(found.spikes) == list(trace.spikes)
    assert found.precision == "float64"
    np.testing.assert_array_equal(found.logits, trace.logits)


def test_one_sentence_needs_no_axis_and_no_mask(tmp_path: Path) -> None:
    one = {name: value[:, 0] for name, value in _spikes().items()}
    np.savez(tmp_path / "one.npz", **one)
    trace = load_trace(tmp_path / "one.npz")
    assert trace.mask.tolist() == [[True] * TOKENS]
    np.testing.assert_array_equal(trace.spikes["ant"][:, 0], one["ant"])


def test_nir_data_goes_both_ways() -> None:
    potentials = {name: value * 0.25 for name, value in _spikes().items()}
    trace = Trace(_spikes(), np.zeros((SENTENCES, 0)), MASK, membrane_potentials=potentials)
    data = trace_to_nir_data(trace, DT)
    np.testing.assert_array_equal(data.nodes["zebra"].observables["spikes"].data, _neurons(_spikes()["zebra"]) != 0)
    again = trace_from_nir_data(data, MASK)
    for name in WIDTHS:
        np.testing.assert_array_equal(again.spikes[name], trace.spikes[name])
        np.testing.assert_array_equal(again.membrane_potentials[name], potentials[name])


def test_an_event_at_the_start_of_a_step_belongs_to_it() -> None:
    """3 * 1e-4 / 1e-4 is 2.9999999999999996: rounding down would put the event a step early."""
    steps = np.arange(200)
    events = EventData(np.zeros((1, 200), int), (steps * DT)[None], 1, 200 * DT)
    assert events_to_grid(events, DT).data.all()


def _nir_events(**changes: Any) -> dict[str, np.ndarray]:
    """Return a file of NIR's events, two samples of one each, with some fields changed."""
    fields = {"idx": [[0], [0]], "time": [[0.5], [0.0]], "n_neurons": 6, "t_max": 1.0, "dt": 0.5, **changes}
    return {**{f"ant.spikes.{name}": np.array(value) for name, value in fields.items()}, "mask": MASK}


def test_nir_events_are_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "good.npz", **_nir_events())
    assert np.argwhere(load_trace(tmp_path / "good.npz").spikes["ant"]).tolist() == [[0, 1, 0, 0], [1, 0, 0, 0]]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({"mask": MASK}, "holds no spikes by node"),
    "two axes": ({"ant": np.ones((3, 2), np.uint8)}, "holds no spikes by node"),
    "floats": ({"ant": np.ones((3, 1, 2, 2))}, "ant holds float64"),
    "another mask": ({**_spikes(), "mask": MASK[:, :2]}, "zebra has shape"),
    "other steps": ({**_spikes(), "ant": _spikes()["ant"][:2]}, "ant has 2 time steps"),
    "events without shape": ({"ant.events": np.zeros((1, 4), int)}, "needs an array ant.shape"),
    "events of five columns": (
        {"ant.events": np.zeros((1, 5), int), "ant.shape": np.array([1, 1, 1, 1])},
        "expected whole numbers (E, 4)",
    ),
    "an event beyond": (
        {"ant.events": np.array([[0, 0, 0, 0], [0, 0, 0, 7]]), "ant.shape": np.array([1, 1, 1, 2])},
        "ant.events[1] is [0, 0, 0, 7], outside",
    ),
    "NIR data without mask": (
        {"ant.spikes.data": np.zeros((1, 2, 6), bool), "ant.spikes.dt": np.array(DT)},
        "add an array 'mask'",
    ),
    "NIR data without dt": (
        {"ant.spikes.data": np.zeros((2, 2, 6), bool), "mask": MASK},
        "is not in NIR's data layout",
    ),
    "NIR data of other neurons": (
        {"ant.spikes.data": np.zeros((2, 2, 7), bool), "ant.spikes.dt": np.array(DT), "mask": MASK},
        "2 samples of 7 neurons",
    ),
    "NIR voltages alone": (
        {"ant.voltages.data": np.zeros((2, 2, 6)), "ant.voltages.dt": np.array(DT), "mask": MASK},
        "ant has no spikes",
    ),
    "NIR events beyond": (
        _nir_events(time=[[5.0], [0.0]]),
        "outside the 2 time steps",
    ),
    "NIR steps without length": (_nir_events(dt=0.0), "in steps of 0.0 make no recording"),
    "NIR steps that run backwards": (_nir_events(dt=-0.5), "in steps of -0.5 make no recording"),
    "NIR events without end": (_nir_events(t_max=np.inf), "inf seconds in steps of 0.5 make no recording"),
    "NIR events at no time": (_nir_events(time=[[np.nan], [0.0]]), "outside the 2 time steps"),
    "NIR events on a grid beyond memory": (_nir_events(dt=1e-300), "its grid would take more than"),
    "NIR events of neurons beyond memory": (_nir_events(n_neurons=10**14), "its grid would take more than"),
    "events in a shape beyond memory": (
        {"ant.events": np.zeros((1, 4), int), "ant.shape": np.array([2**62, 2**62, 1, 1])},
        "ant.shape is [4611686018427387904, 4611686018427387904, 1, 1], more than",
    ),
    "spikes at padding": ({"ant": np.ones((3, 2, 3, 2), np.uint8), "mask": MASK}, "fires at padding"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_files_are_refused_by_name(what: str, tmp_path: Path) -> None:
    arrays, said = BAD[what]
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(TraceError) as caught:
        load_trace(tmp_path / "bad.npz")
    assert str(tmp_path / "bad.npz") in str(caught.value)
    assert said in str(caught.value)


def test_nir_data_without_spikes_is_refused() -> None:
    voltages = NIRNodeData({"voltages": TimeGriddedData(np.zeros((2, 3, 6)), DT)})
    with pytest.raises(TraceError, match="ant: has no observable 'spikes'"):
        trace_from_nir_data(NIRGraphData({"ant": voltages}), MASK)
    events = NIRNodeData({"spikes": EventData(np.zeros((2, 1), int), np.zeros((2, 1)), 6, 1.0)})
    with pytest.raises(TraceError, match="events_to_grid"):
        trace_from_nir_data(NIRGraphData({"ant": events}), MASK)
