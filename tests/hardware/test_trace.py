"""The promises of a trace file: what is saved is what is loaded, whole or not at all, and nothing else is let in."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hardware import Trace
from hardware.errors import TraceError
from hardware.traces import trace as trace_module

STEPS, SENTENCES, TOKENS, CLASSES = 3, 2, 4, 5
MASK = np.arange(TOKENS) < np.array([[4], [2]])


def _trace(**changes: Any) -> Trace:
    rng = np.random.default_rng(0)
    spikes = {
        name: ((rng.random((STEPS, SENTENCES, TOKENS, width)) < 0.3) * MASK[None, :, :, None]).astype(np.uint8)
        for name, width in (("zebra", 6), ("ant", 2), ("file", 1), ("in/folder", 3))
    }
    parts = {
        "spikes": spikes,
        "logits": rng.normal(size=(SENTENCES, CLASSES)),
        "mask": MASK,
        "outputs": rng.normal(size=(STEPS, SENTENCES, CLASSES)),
        "membrane_potentials": {"ant": rng.normal(size=spikes["ant"].shape)},
        "thresholds": {"ant": rng.normal(size=2), "zebra": rng.normal(size=6)},
        "input_ids": rng.integers(0, 9, (SENTENCES, TOKENS)),
        "metadata": {"runner": "reference", "precision": "float64", "note": "é 是", "nested": {"a": [1, 2.5, None]}},
    }
    return Trace(**{**parts, **changes})


def _arrays(trace: Trace) -> dict[str, np.ndarray]:
    """Return what the layout of the file says about a trace, written out."""
    return {
        **trace.spikes,
        **{f"{name}.membrane_potential": value for name, value in trace.membrane_potentials.items()},
        **{f"{name}.threshold": value for name, value in trace.thresholds.items()},
        "logits": trace.logits,
        "mask": trace.mask,
        "outputs": trace.outputs,
        "input_ids": trace.input_ids,
        "metadata": np.array(json.dumps({**trace.metadata, "nodes": list(trace.spikes)})),
    }


def _assert_equal(found: Trace, expected: Trace) -> None:
    assert list(found.spikes) == list(expected.spikes), "nodes and their order"
    for mine, other in (
        (found.spikes, expected.spikes),
        (found.membrane_potentials, expected.membrane_potentials),
        (found.thresholds, expected.thresholds),
    ):
        assert set(mine) == set(other)
        for name in other:
            assert mine[name].dtype == other[name].dtype
            np.testing.assert_array_equal(mine[name], other[name])
    for name in ("logits", "mask", "outputs", "input_ids"):
        mine, other = getattr(found, name), getattr(expected, name)
        assert (mine is None) == (other is None)
        if other is not None:
            assert mine.dtype == other.dtype
            np.testing.assert_array_equal(mine, other)
    assert found.metadata == expected.metadata


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    trace = _trace()
    path = trace.save(tmp_path / "trace.npz")
    assert path == tmp_path / "trace.npz"
    _assert_equal(Trace.load(path), trace)


def test_numpy_alone_reads_the_file(tmp_path: Path) -> None:
    trace = _trace()
    expected = _arrays(trace)
    with np.load(trace.save(tmp_path / "trace.npz"), allow_pickle=False) as file:
        assert set(file.files) == set(expected)
        for name, value in expected.items():
            np.testing.assert_array_equal(file[name], value)


def test_a_file_of_anyone_in_the_same_layout_is_read(tmp_path: Path) -> None:
    trace = _trace()
    arrays = {name.replace("file", "other"): value for name, value in _arrays(trace).items() if name != "metadata"}
    np.savez(tmp_path / "foreign.npz", **arrays)
    found = Trace.load(tmp_path / "foreign.npz")
    assert set(found.spikes) == {"zebra", "ant", "other", "in/folder"}
    assert found.metadata == {}
    np.savez(tmp_path / "least.npz", logits=trace.logits, mask=trace.mask.astype(int), ant=trace.spikes["ant"] > 0)
    assert Trace.load(tmp_path / "least.npz").spikes["ant"].sum() == trace.spikes["ant"].sum()


def test_only_what_is_there_is_written(tmp_path: Path) -> None:
    trace = _trace(outputs=None, input_ids=None, membrane_potentials={}, thresholds={})
    _assert_equal(Trace.load(trace.save(tmp_path / "trace.npz")), trace)


def test_a_graph_that_keeps_its_tokens_has_logits_for_each(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    trace = _trace(
        logits=rng.normal(size=(SENTENCES, TOKENS, CLASSES)),
        outputs=rng.normal(size=(STEPS, SENTENCES, TOKENS, CLASSES)),
    )
    _assert_equal(Trace.load(trace.save(tmp_path / "trace.npz")), trace)


def test_firing_rates_leave_padding_out() -> None:
    trace = _trace()
    fired = sum(int(trace.spikes["ant"][:, b, n].sum()) for b, n in np.argwhere(MASK))
    assert trace.real_tokens == 6
    assert trace.firing_rate("ant") == fired / (STEPS * 6 * 2)
    assert _trace(mask=MASK & False).firing_rate("ant") >= 0  # no division by no token


# ---------------------------------------------------------------------------------------------------------------------
# Whole or not at all.


@pytest.fixture
def folder_with_file(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "trace.npz").write_bytes(b"what was there before")
    yield tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["trace.npz"], "something half-written stayed"
    assert (tmp_path / "trace.npz").read_bytes() == b"what was there before"


@pytest.mark.parametrize("name", ["trace.npz", "new.npz"])
def test_a_failure_while_writing_leaves_nothing(
    folder_with_file: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(TraceError, match=rf"{name}: cannot be written: no space left"):
        _trace().save(folder_with_file / name)


def test_who_reads_the_old_file_meanwhile_never_sees_half_of_the_new(tmp_path: Path) -> None:
    path = tmp_path / "trace.npz"
    path.write_bytes(b"what was there before")
    with path.open("rb") as reader:
        _trace().save(path)
        assert reader.read() == b"what was there before"
    Trace.load(path)
    assert [path.name for path in tmp_path.iterdir()] == ["trace.npz"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metadata": {"an object": object()}}, "metadata cannot be written as JSON"),
        ({"logits": np.array([object(), None])}, "cannot be written"),
        ({"spikes": {"logits": np.zeros((1, 2, 4, 1), np.uint8)}}, "may not be called 'logits'"),
        ({"spikes": {"a.threshold": np.zeros((1, 2, 4, 1), np.uint8)}}, "may not be called 'a.threshold'"),
        ({"thresholds": {"nobody": np.ones(2)}}, "nobody has a membrane potential or threshold, but no spikes"),
    ],
)
def test_what_a_file_cannot_hold_is_refused(folder_with_file: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(TraceError, match=said):
        _trace(**changes).save(folder_with_file / "trace.npz")


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="does not exist"):
        _trace().save(tmp_path / "missing" / "trace.npz")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_a_folder_that_takes_no_files_is_refused() -> None:
    with pytest.raises(TraceError, match="cannot be written"):
        _trace().save("/proc/trace.npz")  # where not even root may write


# ---------------------------------------------------------------------------------------------------------------------
# What is no trace.


class _Pickled:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    arrays = {**_arrays(_trace()), "logits": np.array([_Pickled(tmp_path / "opened")], dtype=object)}
    del arrays["file"]
    np.savez(tmp_path / "pickle.npz", **arrays)
    with pytest.raises(TraceError, match=r"pickle\.npz"):
        Trace.load(tmp_path / "pickle.npz")
    assert not (tmp_path / "opened").exists()


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _trace(logits=np.zeros((SENTENCES, 1_000_000)), outputs=None).save(tmp_path / "bomb.npz")
    assert path.stat().st_size < 100_000
    Trace.load(path)
    monkeypatch.setattr(trace_module, "MAX_TRACE_BYTES", 1_000_000)
    with pytest.raises(TraceError, match="unpacks to 16"):
        Trace.load(path)


def test_a_header_that_declares_too_much_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "liar.npz"
    np.savez(path, logits=np.zeros((SENTENCES, CLASSES)), mask=MASK)
    with zipfile.ZipFile(path, "a") as archive:
        for shape in ((2**40, 2**20), (2**62,)):
            header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
            content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
            archive.writestr(f"node{len(shape)}.npy", content)
    with pytest.raises(TraceError, match="unpacks to"):
        Trace.load(path)


def test_a_file_cut_off_or_changed_anywhere_is_refused_or_read(tmp_path: Path) -> None:
    whole = _trace().save(tmp_path / "trace.npz").read_bytes()
    path = tmp_path / "bad.npz"
    rng = np.random.default_rng(0)
    for end in np.linspace(0, len(whole) - 1, 60).astype(int):
        path.write_bytes(whole[:end])
        with pytest.raises(TraceError, match=r"bad\.npz"):
            Trace.load(path)
    for _ in range(200):
        changed = bytearray(whole)
        for where in rng.integers(0, len(whole), 2):
            changed[where] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        try:
            Trace.load(path)
        except TraceError as error:
            assert "bad.npz" in str(error)  # noqa: PT017  either outcome is fine


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04" + bytes(100)])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other.npz").write_bytes(content)
    with pytest.raises(TraceError, match=r"other\.npz: is not a trace"):
        Trace.load(tmp_path / "other.npz")


def test_a_missing_file_and_a_single_array_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no such file"):
        Trace.load(tmp_path / "missing.npz")
    np.save(tmp_path / "single.npy", np.ones(3))
    with pytest.raises(TraceError, match="is not a trace"):
        Trace.load(tmp_path / "single.npy")


SPIKES = np.zeros((STEPS, SENTENCES, TOKENS, 2), np.uint8)
METADATA = {"nodes": ["ant"]}
AT_PADDING = SPIKES.copy()
AT_PADDING[1, 1, 3, 0] = 1
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no logits": ({"logits": None}, "has no array 'logits'"),
    "no mask": ({"mask": None}, "has no array 'mask'"),
    "a mask with an axis too many": ({"mask": MASK[..., None]}, "mask has shape"),
    "a mask of numbers with a point": ({"mask": MASK * 1.0}, "mask has shape"),
    "a mask of words": ({"mask": MASK.astype(str)}, "mask has shape"),
    "a sentence without tokens": ({"mask": MASK * [[1], [0]]}, "at least one token"),
    "no sentences": ({"mask": MASK[:0]}, "mask has shape"),
    "spikes without an axis": ({"ant": SPIKES[0]}, "ant has shape"),
    "spikes of other sentences": ({"ant": SPIKES[:, :1]}, "ant has shape"),
    "spikes of other tokens": ({"ant": SPIKES[:, :, :3]}, "ant has shape"),
    "spikes of no features": ({"ant": SPIKES[..., :0]}, "ant has shape"),
    "spikes with a point": ({"ant": SPIKES * 1.0}, "ant holds float64; spikes are whole numbers"),
    "spikes in words": ({"ant": SPIKES.astype(str)}, "ant holds <U"),
    "spikes at padding": ({"ant": AT_PADDING}, "ant fires at padding"),
    "nodes of other lengths": (
        {"bee": SPIKES[:2], "metadata": {"nodes": ["ant", "bee"]}},
        "bee has 2 time steps, nodes before it 3",
    ),
    "a node that metadata leave out": ({"bee": SPIKES}, "node 'bee' is in the arrays or in metadata"),
    "a node that only metadata have": ({"metadata": {"nodes": ["ant", "bee"]}}, "node 'bee' is in the arrays or"),
    "nodes that are a number": ({"metadata": {"nodes": 3}}, "'nodes' is not a list"),
    "nodes that are numbers": ({"metadata": {"nodes": [3]}}, "'nodes' is not a list"),
    "a precision that is a list": (
        {"metadata": {**METADATA, "precision": ["float64"]}},
        "expected text",
    ),
    "stock nodes that are a number": (
        {"metadata": {**METADATA, "stock_nodes": 5}},
        "'stock_nodes' is 5; expected a list",
    ),
    "own nodes that are names": (
        {"metadata": {**METADATA, "own_nodes": ["ant"]}},
        "expected an object of reasons",
    ),
    "faults that are numbers": (
        {"metadata": {**METADATA, "faults": [1]}},
        "expected a list of objects with samples",
    ),
    "a fault of no sample": (
        {"metadata": {**METADATA, "faults": [{"samples": [], "attempt": 1, "message": ""}]}},
        "expected a list of objects with samples",
    ),
    "metadata that are a list": ({"metadata": []}, "not a JSON object"),
    "metadata that are no JSON": ({"metadata": np.array("{")}, "metadata is not JSON"),
    "metadata that are numbers": ({"metadata": np.ones((2, 2))}, "metadata is not JSON"),
    "metadata without a bottom": ({"metadata": np.array("[" * 100_000)}, "metadata is not JSON"),
    "logits of other sentences": ({"logits": np.ones((3, 5))}, "logits has shape"),
    "logits that are words": ({"logits": np.full((2, 5), "a")}, "logits has shape"),
    "logits of other tokens": ({"logits": np.ones((2, 3, 5))}, "logits has shape"),
    "a single logit": ({"logits": np.array(1.0)}, "logits has shape"),
    "outputs of other classes": ({"outputs": np.ones((3, 2, 4))}, "outputs has shape"),
    "ids of other tokens": ({"input_ids": np.ones((2, 3), int)}, "input_ids has shape"),
    "ids with a point": ({"input_ids": np.ones((2, 4))}, "input_ids has shape"),
    "potentials of another shape": (
        {"ant.membrane_potential": np.ones((3, 2, 4, 1))},
        r"ant\.membrane_potential has shape",
    ),
    "potentials of no node": ({"bee.membrane_potential": np.ones((3, 2, 4, 1))}, "but no spikes of bee"),
    "thresholds for other features": ({"ant.threshold": np.ones(3)}, r"ant\.threshold has shape"),
    "thresholds of no node": ({"bee.threshold": np.ones(3)}, "but no spikes of bee"),
}


@pytest.mark.parametrize("what", WRONG)
def test_arrays_that_a_trace_cannot_have_are_refused(what: str, tmp_path: Path) -> None:
    changes, said = WRONG[what]
    arrays = {"logits": np.ones((2, 5)), "mask": MASK, "ant": SPIKES, "metadata": METADATA, **changes}
    if not isinstance(arrays["metadata"], np.ndarray):
        arrays["metadata"] = np.array(json.dumps(arrays["metadata"]))
    path = tmp_path / "wrong.npz"
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    with pytest.raises(TraceError, match=said) as caught:
        Trace.load(path)
    assert str(path) in str(caught.value)


def test_the_example_that_is_changed_above_is_right(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "right.npz", logits=np.ones((2, 5)), mask=MASK, ant=SPIKES, metadata=np.array(json.dumps(METADATA))
    )
    Trace.load(tmp_path / "right.npz")
