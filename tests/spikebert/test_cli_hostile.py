"""The promise of every command that reads a file: whatever it holds, one reason, exit code 2, nothing half-written."""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click.testing
import h5py
import numpy as np
import pytest

from export import to_onnx, write_onnx
from spikebert.cli import main

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

LONGEST_MESSAGE = 1000


def _invoke(*arguments: Any) -> click.testing.Result:
    result = click.testing.CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


def _refused(*arguments: Any, said: str) -> None:
    result = _invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    message = result.stderr[result.stderr.index("Error: ") :]
    assert said in " ".join(message.split())
    assert "Traceback" not in message
    assert len(message) < LONGEST_MESSAGE
    assert "\n\n" not in message.strip(), "more than one paragraph"


def _header(shape: str, kind: str) -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


ARRAYS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a pipe": (os.mkfifo, "is not a regular file"),
    "more than any disk holds": (
        lambda path: path.write_bytes(_header("(1000000000, 1000000)", "<i8")),
        "no .npy array",
    ),
    "a negative length": (lambda path: path.write_bytes(_header("(-1, 4)", "<i8") + bytes(64)), "no .npy array"),
    "a type nobody knows": (lambda path: path.write_bytes(_header("(1, 4)", "evil") + bytes(64)), "no .npy array"),
    "objects": (lambda path: np.save(path, np.array([[{}]], object)), "no .npy array"),
    "beyond int64": (lambda path: np.save(path, np.array([[2, 2**64 - 1]], np.uint64)), "which is no token id"),
    "negative": (lambda path: np.save(path, np.array([[2, -1]])), "token ids span -1 to 2"),
    "fractions": (lambda path: np.save(path, np.array([[2.0, 1.0]])), "expected whole numbers"),
    "nothing": (lambda path: path.write_bytes(b""), "no .npy array"),
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("command", ["simulate", "profile", "energy"])
def test_arrays(name: str, command: str, graph_file: Path, tmp_path: Path) -> None:
    make, said = ARRAYS[name]
    make(tmp_path / "ids.npy")
    said = said.replace("no .npy array", "is not an .npy array")
    _refused(command, graph_file, "--ids", tmp_path / "ids.npy", said=said)


def _zipped(header: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("ids.npy", header)

    return make


NOT_ARRAYS = "is not an archive of arrays (.npz without pickled objects)"
ARCHIVES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a pipe": (os.mkfifo, "is not a regular file"),
    "a folder": (os.mkdir, "is not a regular file"),
    "absent": (lambda path: None, "no such file"),
    "no archive": (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100)), NOT_ARRAYS),
    "more than any memory holds": (
        _zipped(_header("(1000000000, 1000000)", "<i8")),
        "unpacks to 8000000000000000 bytes",
    ),
    "less than it says": (_zipped(_header("(1, 4)", "<i8") + bytes(8)), NOT_ARRAYS),
    "a negative length": (_zipped(_header("(-1, 4)", "<i8") + bytes(64)), NOT_ARRAYS),
    "objects": (lambda path: np.savez(path, ids=np.array([[{}]], object)), NOT_ARRAYS),
    "no arrays": (lambda path: np.savez(path), "holds 0 arrays (none at all)"),
    "many arrays": (
        lambda path: np.savez(path, **{f"layer{index}": np.ones((1, 2), int) for index in range(20)}),
        "holds 20 arrays (layer0, layer1, layer2, layer3, layer4, layer5, layer6, layer7, …); name one behind it",
    ),
    "text": (_zipped(b"spikes"), NOT_ARRAYS),
    "fractions": (lambda path: np.savez(path, np.array([[2.0, 1.0]])), "expected whole numbers"),
    "a row": (lambda path: np.savez(path, np.array([2, 1])), "holds shape (2,); expected whole numbers"),
}


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize("command", ["simulate", "profile", "energy"])
def test_archives(name: str, command: str, graph_file: Path, tmp_path: Path) -> None:
    make, said = ARCHIVES[name]
    make(tmp_path / "ids.npz")
    _refused(command, graph_file, "--ids", tmp_path / "ids.npz", said=said)


def test_an_array_that_an_archive_does_not_hold(graph_file: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "ids.npz", mine=np.array([[2, 3]]), huge=np.array([[2, 3]]))
    _refused(
        "simulate", graph_file, "--ids", f"{tmp_path}/ids.npz:yours", said="holds no array 'yours'; it holds mine, huge"
    )
    _refused("simulate", graph_file, "--ids", f"{tmp_path}/ids.npz:", said="holds no array ''")
    _refused("simulate", graph_file, "--ids", f"{tmp_path}/no.npz:mine", said="no.npz: no such file")


def test_only_the_array_asked_for_is_unpacked(graph_file: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "ids.npz", "w") as archive:
        archive.writestr("huge.npy", _header("(1000000000, 1000000)", "<i8"))
        with archive.open("mine.npy", "w") as file:
            np.save(file, np.array([[2, 3]]))
    assert _invoke("simulate", graph_file, "--ids", f"{tmp_path}/ids.npz:mine").exit_code == 0
    _refused("simulate", graph_file, "--ids", f"{tmp_path}/ids.npz:huge", said="unpacks to 8000000000000000 bytes")


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1", "0", "x"])
@pytest.mark.parametrize(
    "command",
    [
        ("simulate", "GRAPH", "--ids", "missing.npy"),
        ("profile", "GRAPH", "--ids", "missing.npy"),
        ("info", "GRAPH"),
        ("place", "GRAPH", "--chip", "loihi2"),
        ("export", "onnx", "GRAPH", "-o", "out.onnx"),
        ("compare", "a.npz", "b.npz"),
    ],
    ids=lambda words: words[0],
)
def test_a_step_is_a_finite_positive_number_of_seconds(
    command: tuple[str, ...], seconds: str, graph_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [str(graph_file) if word == "GRAPH" else word for word in command]
    result = _invoke(*words, "--dt", seconds)
    assert result.exit_code == 2
    assert "Invalid value for '--dt'" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["a pipe", "a folder"])
@pytest.mark.parametrize(
    "command",
    [
        ("export", "nir", "GRAPH", "-o", "PLACE"),
        ("export", "onnx", "GRAPH", "-o", "PLACE"),
        ("simulate", "GRAPH", "--ids", "IDS", "-o", "PLACE"),
        ("profile", "GRAPH", "--ids", "IDS", "--csv", "PLACE"),
        ("energy", "GRAPH", "--ids", "IDS", "--html", "PLACE"),
        ("place", "GRAPH", "--chip", "loihi2", "--html", "PLACE"),
    ],
    ids=lambda words: words[0],
)
def test_what_is_no_file_is_not_written_over(
    command: tuple[str, ...], kind: str, graph_file: Path, tmp_path: Path
) -> None:
    """Forced too: a rename onto /dev/null would leave a machine without it."""
    place, ids = tmp_path / "place", tmp_path / "ids.npy"
    np.save(ids, np.array([[2, 3]]))
    place.mkdir() if kind == "a folder" else os.mkfifo(place)
    words = [{"GRAPH": graph_file, "PLACE": place, "IDS": ids}.get(word, word) for word in command]
    result = _invoke(*words, "--force")
    assert result.exit_code == 2, result.output
    assert str(place.name) in result.stderr
    assert not place.is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ids.npy", "place"]


def test_no_report_takes_the_place_of_another(graph_file: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.array([[2, 3]]))
    both = ("--csv", tmp_path / "a.csv", "--html", tmp_path / "a.csv")
    for command in ("profile", "energy"):
        _refused(command, graph_file, "--ids", tmp_path / "ids.npy", *both, said="a.csv is named twice")
        missing = ("--csv", tmp_path / "missing" / "a.csv")
        _refused(command, graph_file, "--ids", tmp_path / "absent.npy", *missing, said="missing does not exist")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("time_steps", "-1", "'time_steps' is -1; expected 1 or more"),
        ("positions", "-5", "'positions' is -5; expected 0 or more"),
        ("vocabulary", "0", "'vocabulary' is 0; expected 1 or more"),
        ("input_features", "0", "'input_features' is 0; expected 1 or more"),
    ],
)
def test_counts_in_an_onnx_file(key: str, value: str, said: str, tiny_model: Any, tmp_path: Path) -> None:
    model = to_onnx(tiny_model, spikes=True)
    next(entry for entry in model.metadata_props if entry.key == key).value = value
    _refused("info", write_onnx(tmp_path / "model.onnx", model), said=said)


def test_an_onnx_file_that_runs_other_steps_than_it_says(tiny_model: Any, tmp_path: Path) -> None:
    model = to_onnx(tiny_model, spikes=True)
    next(entry for entry in model.metadata_props if entry.key == "time_steps").value = "1000000000000"
    path = write_onnx(tmp_path / "model.onnx", model)
    np.save(tmp_path / "ids.npy", np.array([[2, 3]]))
    said = "shows 4 time steps; the file's metadata say 1000000000000"
    _refused("simulate", path, "--ids", tmp_path / "ids.npy", said=said)


@pytest.mark.parametrize("location", ["/etc/passwd", "../secret", "gone.data"])
def test_weights_elsewhere_are_named_and_not_read(location: str, tiny_model: Any, tmp_path: Path) -> None:
    model = to_onnx(tiny_model, spikes=True)
    (tmp_path / "secret").write_bytes(bytes(4096))
    path = tmp_path / "inside" / "model.onnx"
    path.parent.mkdir()
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    length = str(len(weight.raw_data))
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", length)):
        weight.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    said = _invoke("info", path)
    assert said.exit_code == 0, said.output
    assert "external bytes: 0" in said.stdout
    np.save(tmp_path / "ids.npy", np.array([[2, 3]]))
    _refused("simulate", path, "--ids", tmp_path / "ids.npy", said="model.onnx: ONNX Runtime refuses it")


def test_a_netx_file_that_is_a_pipe_or_a_folder(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.net")
    (tmp_path / "folder.net").mkdir()
    for name, said in (("pipe", "not a regular file"), ("folder", "not a regular file"), ("absent", "no such file")):
        _refused("info", tmp_path / f"{name}.net", said=said)


def test_a_graph_of_a_billion_steps(graph_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.nir"
    path.write_bytes(graph_file.read_bytes())
    with h5py.File(path, "r+") as file:
        del file["node/metadata/time_steps"]
        file["node/metadata/time_steps"] = 10**9
    np.save(tmp_path / "ids.npy", np.array([[2, 3]]))
    _refused("simulate", path, "--ids", tmp_path / "ids.npy", said="time_steps is 1000000000; at most 65536 are run")
    asked = ("-o", tmp_path / "out.onnx", "--time-steps", 10**20)
    _refused("export", "onnx", graph_file, *asked, said=f"time_steps is {10**20}; at most 65536 are run")
    assert not (tmp_path / "out.onnx").exists()


def test_too_little_memory_is_one_message(graph_file: Path, tmp_path: Path, little_memory: Any) -> None:
    """A file of zeros that takes no place on the disk, and 300 MB in memory where 400 are to be had for all."""
    np.lib.format.open_memmap(tmp_path / "ids.npy", "w+", np.int64, (300, 125_000))
    with little_memory():
        _refused("simulate", graph_file, "--ids", tmp_path / "ids.npy", said="this machine has too little memory")


def test_a_checkpoint_of_a_billion_steps(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "many"
    path.mkdir()
    for file in checkpoint.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    text = (path / "config.json").read_text("utf-8")
    (path / "config.json").write_text(text.replace('"time_steps": 4', '"time_steps": 1000000000'), "utf-8")
    _refused("profile", path, "--text", "a good film", said="time_steps is 1000000000")
    _refused("export", "nir", path, "-o", tmp_path / "out.nir", said="time_steps is 1000000000")
    assert [entry.name for entry in tmp_path.iterdir()] == ["many"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ('"model_type": "nope"', "model type `nope`"),
        ('"padded_length": 1000000000', "cannot be loaded: AttributeError"),
        ('"auto_map": {"AutoConfig": "evil.Config"}, "model_type": "custom"', "contains custom code"),
    ],
)
def test_what_transformers_has_to_say_is_one_paragraph(
    change: str, said: str, checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model"
    path.mkdir()
    for file in checkpoint.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    text = (path / "config.json").read_text("utf-8").rstrip().removesuffix("}")
    (path / "config.json").write_text(f"{text}, {change}}}", "utf-8")
    (path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", "utf-8")
    _refused("info", path, said=said)
    assert not (tmp_path / "ran").exists()


def test_place_takes_spikes_in_every_layout(graph_file: Path, tmp_path: Path) -> None:
    """As compare, profile and energy do: spikes by node and a mask are all that a stranger has."""
    np.save(tmp_path / "ids.npy", np.array([[2, 3, 4]]))
    assert _invoke("simulate", graph_file, "--ids", tmp_path / "ids.npy", "-o", tmp_path / "ours.npz").exit_code == 0
    ours = np.load(tmp_path / "ours.npz")
    spikes = {name: ours[name] for name in ours.files if name.endswith("_neuron")}
    np.savez(tmp_path / "theirs.npz", mask=ours["mask"], **spikes)
    arguments = ("place", graph_file, "--chip", "loihi2", "--tokens", "3", "--trace")
    first, second = (_invoke(*arguments, tmp_path / f"{name}.npz") for name in ("ours", "theirs"))
    assert "spikes a sentence" in first.stdout
    assert first.stdout == second.stdout
