"""The promises of ``verify --graph FILE.onnx``: the file as it lies there is run, and held against the checkpoint.

A file is told apart from the checkpoint's own by its weights and nodes too, where the sentences do not show it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import pytest

from spikebert.cli import main

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

TEXTS = ("--text", "a warm film .", "the dull story", "good")


def _invoke(*arguments: Any) -> click.testing.Result:
    result = click.testing.CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


def _json(*arguments: Any, exit_code: int = 0) -> dict[str, Any]:
    result = _invoke(*arguments, "--json")
    assert result.exit_code == exit_code, result.output
    return json.loads(result.stdout)


def _refused(*arguments: Any, said: str) -> None:
    result = _invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.stderr.split())


@pytest.fixture(scope="module")
def files(checkpoint: Path) -> dict[str, Path]:
    """ONNX files of the checkpoint, by what they show."""
    shown = {
        "everything": ("--precision", "float64", "--spikes", "--membrane-potentials"),
        "spikes": ("--spikes",),
        "logits": (),
        "five steps": ("--spikes", "--time-steps", 5),
        "integers": ("--precision", "integer", "--spikes", "--membrane-potentials"),
    }
    sentences = checkpoint.parent / "calibration.txt"
    sentences.write_text("a warm film .\nthe dull story\n")
    found = {}
    for name, options in shown.items():
        found[name] = checkpoint.parent / f"{name}.onnx"
        calibration = ("--calibration", sentences) if name == "integers" else ()
        _json("export", "onnx", checkpoint, "-o", found[name], *options, *calibration)
    return found


def _changed(path: Path, folder: Path, weight: str, by: float) -> Path:
    """Return a copy of a file with one number of one weight changed."""
    model = onnx.load(path)
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == weight]
    array = onnx.numpy_helper.to_array(tensor).copy()
    array.flat[0] += by
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, weight))
    onnx.save(model, folder / "changed.onnx")
    return folder / "changed.onnx"


@pytest.mark.parametrize(("name", "precision"), [("everything", "float64"), ("spikes", "float32")])
def test_the_checkpoints_own_file_is_equal(name: str, precision: str, checkpoint: Path, files: dict[str, Path]) -> None:
    found = _json("verify", checkpoint, "--graph", files[name], *TEXTS)
    afresh = _json("verify", checkpoint, "--against", "onnx", "--precision", precision, *TEXTS)
    assert found["equal"] is True
    assert found["graph_differences"] == []
    assert (found["against"], found["precision"]) == ("onnx", precision)
    assert found["spikes_compared"] == afresh["spikes_compared"] > 1000
    assert (found["states_compared"] > 0) == (name == "everything")


def test_a_changed_weight_is_named_and_shown(checkpoint: Path, files: dict[str, Path], tmp_path: Path) -> None:
    path = _changed(files["everything"], tmp_path, "block00_qkv_affine/weight", 2.0)
    found = _json("verify", checkpoint, "--graph", path, *TEXTS, exit_code=1)
    assert found["first_divergence"]["node"] == "block00_qkv_neuron"
    (named,) = found["graph_differences"]
    assert named.startswith("block00_qkv_affine: weight: 1 of ")


def test_what_no_sentence_shows_is_named_all_the_same(checkpoint: Path, files: dict[str, Path], tmp_path: Path) -> None:
    # the first word of the vocabulary is in none of the sentences
    path = _changed(files["everything"], tmp_path, "embedding/words", 2.0)
    found = _json("verify", checkpoint, "--graph", path, *TEXTS, exit_code=1)
    assert (found["equal"], found["spikes_different"]) == (False, 0)
    assert found["first_divergence"]["quantity"] == "parameter"
    assert found["graph_differences"][0].startswith("embedding: words: 1 of ")


def test_a_node_spelled_otherwise_is_named(checkpoint: Path, files: dict[str, Path], tmp_path: Path) -> None:
    model = onnx.load(files["everything"])
    (mean,) = [node for node in model.graph.node if node.name == "token_mean"]
    mean.op_type = "Mul"
    onnx.save(model, tmp_path / "other.onnx")
    found = _json("verify", checkpoint, "--graph", tmp_path / "other.onnx", *TEXTS, exit_code=1)
    (said,) = found["graph_differences"]
    inputs = "(token_mean/sum, token_mean/count)"
    assert said == f"token_mean: token_mean: Mul{inputs}, expected Div{inputs}"


def test_a_file_without_spikes_is_compared_by_its_logits_where_asked(checkpoint: Path, files: dict[str, Path]) -> None:
    command = ("verify", checkpoint, "--graph", files["logits"], *TEXTS)
    _refused(*command, said="export it with --spikes")
    _refused(*command, said="--nodes output compares logits alone")
    found = _json(*command, "--nodes", "output")
    assert (found["equal"], found["spikes_compared"]) == (True, 0)
    assert found["logit_difference"] < 1e-5


def test_changed_logits_are_found_without_spikes(checkpoint: Path, files: dict[str, Path], tmp_path: Path) -> None:
    path = _changed(files["logits"], tmp_path, "classifier/bias", 0.5)
    found = _json("verify", checkpoint, "--graph", path, *TEXTS, "--nodes", "output", exit_code=1)
    first = found["first_divergence"]  # what ran shows it, and the file's weights beside it
    assert (first["quantity"], first["node"]) == ("logits", "output")
    assert found["explanation"]["at_fault"] == ["b"]
    assert found["graph_differences"][0].startswith("classifier: bias: 1 of ")
    assert np.isclose(found["logit_difference"], 0.5, atol=1e-3)


def test_an_integer_file_is_held_against_the_checkpoint_quantized_likewise(
    checkpoint: Path, files: dict[str, Path]
) -> None:
    command = ("verify", checkpoint, "--graph", files["integers"], *TEXTS)
    found = _json(*command, "--calibration", checkpoint.parent / "calibration.txt")
    assert (found["equal"], found["precision"], found["expected"]) == (True, "integer", "integer")
    assert found["states_compared"] > 1000
    assert found["states_different"] == found["spikes_different"] == 0


def test_other_files_are_refused_or_named(
    checkpoint: Path, files: dict[str, Path], make_model: Any, tmp_path: Path
) -> None:
    command = ("verify", checkpoint, *TEXTS, "--graph")
    _refused(*command, files["spikes"], "--against", "lava", said="only --against onnx runs, not lava")
    _refused(*command, files["spikes"], "--precision", "float64", said="computes in float32, not float64")
    _refused(*command, files["integers"], "--precision", "float64", said="computes in integer, not float64")
    _refused(*command, files["spikes"], "--node-by-node", said="cannot run a node by itself")
    _refused(*command, tmp_path / "none.onnx", said="none.onnx: no such file")
    _refused(*command, Path(shutil.copy(checkpoint / "config.json", tmp_path / "a.onnx")), said="not a readable ONNX")
    _refused(*command, files["five steps"], said="runs 5 time steps, the checkpoint 4; export it again")
    other = tmp_path / "other"
    make_model(seed=1, vocab_size=checkpoint_vocabulary(checkpoint), max_position_embeddings=10).save_pretrained(other)
    for file in checkpoint.glob("*token*"):
        shutil.copy(file, other)
    _json("export", "onnx", other, "-o", tmp_path / "other.onnx", "--spikes")
    found = _json(*command, tmp_path / "other.onnx", exit_code=1)
    assert {text.partition(":")[0] for text in found["graph_differences"]} >= {"embedding", "classifier"}


def checkpoint_vocabulary(checkpoint: Path) -> int:
    return int(json.loads((checkpoint / "config.json").read_text())["vocab_size"])
