"""The promises of the commands that convert files: checkpoint or graph in, one whole file out; info explains it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click.testing
import h5py
import numpy as np
import pytest

from spikebert.cli import main

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

IDS = np.array([[1, 5, 3, 7], [2, 4, 6, 0]])


@pytest.fixture(scope="module")
def checkpoint(make_model: Callable, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    make_model(vocab_size=len(tiny_tokenizer), max_position_embeddings=10).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def files(checkpoint: Path) -> dict[str, Path]:
    found = {kind: checkpoint.parent / f"model.{kind}" for kind in ("nir", "onnx")}
    for kind, path in found.items():
        options = ("--precision", "float64", "--spikes") if kind == "onnx" else ()
        assert _invoke("export", kind, checkpoint, "-o", path, *options).exit_code == 0
    np.save(checkpoint.parent / "ids.npy", IDS)
    return found


def _invoke(*arguments: Any) -> click.testing.Result:
    result = click.testing.CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    assert "Traceback" not in result.output
    return result


def _json(*arguments: Any) -> dict[str, Any]:
    result = _invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def _refused(*arguments: Any, said: str) -> None:
    result = _invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.stderr.split())


def test_a_checkpoint_and_its_graph_become_the_same_onnx(
    checkpoint: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    answers = {}
    for source in (checkpoint, files["nir"]):
        path = tmp_path / f"from {source.name}.onnx"
        found = _json("export", "onnx", source, "-o", path, "--precision", "float64", "--spikes")
        assert found["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert "block00_qkv_neuron" in found["outputs"]
        answers[source] = _json("simulate", path, "--ids", checkpoint.parent / "ids.npy")
    first, second = answers.values()
    assert first["logits"] == second["logits"]
    reference = _json("simulate", files["nir"], "--ids", checkpoint.parent / "ids.npy")
    assert first["firing_rates"] == second["firing_rates"] == reference["firing_rates"]
    assert (first["runner"], first["precision"]) == ("onnx", "float64")
    np.testing.assert_allclose(first["logits"], reference["logits"], rtol=0, atol=1e-12)


def test_a_file_says_what_it_was_made_from(checkpoint: Path, files: dict[str, Path], tmp_path: Path) -> None:
    weights = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    for source in (checkpoint, files["nir"]):
        path = tmp_path / f"{source.name}.onnx"
        _json("export", "onnx", source, "-o", path)
        about = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        assert about["checkpoint_sha256"] == weights
        assert about["precision"] == "float32"
    assert about["source_sha256"] == hashlib.sha256(files["nir"].read_bytes()).hexdigest()


def test_a_graph_is_written_anew_in_another_precision(checkpoint: Path, files: dict[str, Path], tmp_path: Path) -> None:
    found = _json("export", "nir", files["nir"], "-o", tmp_path / "wide.nir", "--precision", "float64")
    assert found["precision"] == "float64"
    ids = checkpoint.parent / "ids.npy"
    narrow, wide = (_json("simulate", path, "--ids", ids) for path in (files["nir"], tmp_path / "wide.nir"))
    assert narrow["logits"] == wide["logits"]


def test_verify_runs_onnx(checkpoint: Path) -> None:
    found = _json("verify", checkpoint, "--against", "onnx", "--text", "a warm film .", "good")
    assert found["equal"] is True
    assert found["spikes_different"] == 0
    assert found["spikes_compared"] > 0


def test_an_integer_graph_becomes_an_integer_file(files: dict[str, Path], tmp_path: Path) -> None:
    from export import quantize, read_nir, write_nir

    integer = write_nir(tmp_path / "integer.nir", quantize(read_nir(files["nir"]), calibration=(IDS, IDS > 0)))
    found = _json("export", "onnx", integer, "-o", tmp_path / "integer.onnx", "--spikes")
    assert found["precision"] == _json("info", tmp_path / "integer.onnx")["precision"] == "integer"
    ids = ("--ids", files["nir"].parent / "ids.npy")
    onnx_run, reference = (_json("simulate", path, *ids) for path in (tmp_path / "integer.onnx", integer))
    assert onnx_run["precision"] == reference["precision"] == "integer"
    assert onnx_run["logits"] == reference["logits"]
    assert onnx_run["firing_rates"] == reference["firing_rates"]
    for kind in ("nir", "onnx"):
        out = ("-o", tmp_path / "out", "--precision", "float32")
        _refused("export", kind, integer, *out, said="is an integer graph and stays one")


@pytest.mark.parametrize("kind", ["nir", "onnx"])
def test_conversions_write_over_nothing(kind: str, files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / f"model.{kind}"
    path.write_bytes(b"precious")
    _refused("export", kind, files["nir"], "-o", path, said="exists already; add --force")
    assert path.read_bytes() == b"precious"
    assert _invoke("export", kind, files["nir"], "-o", path, "--force").exit_code == 0
    assert path.read_bytes() != b"precious"
    before = files["nir"].read_bytes()
    _refused("export", kind, files["nir"], "-o", files["nir"], "--force", said="is what is to be read")
    assert files["nir"].read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_weights_beside_an_onnx_file_belong_to_it(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from export.onnx_format import file

    out, data = tmp_path / "model.onnx", tmp_path / "model.onnx.data"
    ids = ("--ids", files["nir"].parent / "ids.npy")
    export = ("export", "onnx", files["nir"], "-o", out, "--precision", "float64")
    whole = _json(*export)
    assert (whole["external_data"], whole["external_bytes"], data.exists()) == ([], 0, False)
    monkeypatch.setattr(file.write_onnx, "__defaults__", (1000,))
    data.write_bytes(b"precious")
    _refused(*export, said="exists already; add --force")
    assert data.read_bytes() == b"precious"
    apart = _json(*export, "--force", "--spikes")
    assert (apart["external_data"], apart["external_bytes"]) == ([data.name], data.stat().st_size)
    assert apart["external_bytes"] > 1024
    said = _json("info", out)
    assert (said["external_data"], said["external_bytes"]) == ([data.name], data.stat().st_size)
    assert _json("simulate", out, *ids)["firing_rates"] == _json("simulate", files["nir"], *ids)["firing_rates"]
    monkeypatch.undo()
    _json(*export, "--force")
    assert [entry.name for entry in tmp_path.iterdir()] == [out.name], "what belonged to the other model stayed"


@pytest.mark.parametrize("kind", ["nir", "onnx"])
def test_bad_sources_end_with_a_reason(kind: str, files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "bad.nir").write_bytes(b"not HDF5")
    _refused("export", kind, tmp_path / "bad.nir", "-o", out, said="not a readable HDF5 file")
    _refused("export", kind, tmp_path / "missing.nir", "-o", out, said="no such file")
    _refused("export", kind, tmp_path / "missing", "-o", out, said="there is no checkpoint")
    _refused("export", kind, files["nir"], "-o", tmp_path / "nowhere" / "out", said="does not exist")
    assert [entry.name for entry in tmp_path.iterdir()] == ["bad.nir"]


def test_bad_use_of_onnx_ends_with_a_reason(files: dict[str, Path], tmp_path: Path) -> None:
    _refused(
        "export",
        "onnx",
        files["nir"],
        "-o",
        tmp_path / "out",
        "--precision",
        "integer",
        said="makes integers of floats",
    )
    ids = ("--ids", files["nir"].parent / "ids.npy")
    _refused("simulate", files["onnx"], *ids, "--runner", "reference", said="only --runner onnx runs an ONNX file")
    _refused("simulate", files["onnx"], *ids, "--precision", "float32", said="computes in float64, not float32")
    (tmp_path / "bad.onnx").write_bytes(b"not protobuf")
    _refused("simulate", tmp_path / "bad.onnx", *ids, said="not a readable ONNX file")


# ---------------------------------------------------------------------------------------------------------------------
# info


def test_info_explains_an_onnx_file(files: dict[str, Path]) -> None:
    found = _json("info", files["onnx"])
    graph = _json("info", files["nir"])
    assert (found["kind"], found["precision"], found["time_steps"]) == ("ONNX model", "float64", 4)
    assert found["operators"] == graph["operators"]
    assert [row["node"] for row in found["nodes"]] == [row["node"] for row in graph["nodes"]]
    assert found["neuron_equations"] == graph["neuron_equations"]
    assert found["sha256"] == hashlib.sha256(files["onnx"].read_bytes()).hexdigest()
    assert found["inputs"] == ["input_ids", "attention_mask"]
    assert found["onnx_operators"]["Scan"] == 5
    shown = _invoke("info", files["onnx"]).stdout
    assert "S[t] = U[t] >= threshold" in " ".join(shown.split()), "equations are no markup"


def test_info_names_what_is_not_standard_and_counts_parameters(files: dict[str, Path], checkpoint: Path) -> None:
    found = _json("info", files["nir"])
    marked = [
        row["node"] for row in found["nodes"] if row["operator"] in ("layer_norm", "spike_attention", "token_mean")
    ]
    assert found["non_standard_nodes"] == marked
    trained = _json("info", checkpoint)["parameters"]
    neurons = sum(row["parameters"] for row in found["nodes"] if row["node"].endswith("_neuron"))
    assert found["parameters"] == trained + neurons
    assert sum(found["neuron_equations"].values()) == 6


def test_info_explains_the_onnx_file_of_others(tmp_path: Path) -> None:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None])
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Abs", ["x"], ["y"])], "other", [value], [result])
    model = onnx.helper.make_model(graph, producer_name="somebody")
    onnx.save(model, tmp_path / "other.onnx")
    found = _json("info", tmp_path / "other.onnx")
    assert (found["producer"], found["onnx_operators"], found["parameters"]) == ("somebody", {"Abs": 1}, 0)
    assert "Abs" in _invoke("info", tmp_path / "other.onnx").stdout
    onnx.helper.set_model_props(model, {"format": "spikebert-onnx", "kind": "trace"})
    onnx.save(model, tmp_path / "liar.onnx")
    _refused("info", tmp_path / "liar.onnx", said="its metadata have no 'format_version'")


def test_info_explains_a_netx_file(tmp_path: Path) -> None:
    path = tmp_path / "model.net"
    with h5py.File(path, "w") as file:  # as lava.lib.dl.slayer.block.cuba.Dense writes it
        for index, (fan_in, fan_out) in enumerate([(4, 3), (3, 2)]):
            layer = file.create_group(f"layer/{index}")
            layer.create_dataset("type", (1,), "S10", [b"dense"])
            layer.create_dataset("shape", data=np.array([fan_out]))
            layer.create_dataset("weight", data=np.zeros((fan_out, fan_in)))
            layer.create_dataset("neuron/type", (1,), "S10", [b"CUBA"])
            layer.create_dataset("neuron/vThMant", data=64 + index)
    found = _json("info", path)
    assert (found["kind"], found["layers"], found["parameters"]) == ("SLAYER / netx network", 2, 18)
    assert found["operators"] == {"dense": 2}
    assert found["nodes"][1]["detail"] == "type CUBA, vThMant 65"
    assert "vThMant 64" in _invoke("info", path).stdout


def test_info_follows_no_link_out_of_a_netx_file(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file.create_dataset("type", data=b"secret")
    path = tmp_path / "model.net"
    with h5py.File(path, "w") as file:
        file.create_group("layer/0")["type"] = h5py.ExternalLink("secret.h5", "type")
    assert "secret" not in json.dumps(_json("info", path)["nodes"])
    with h5py.File(path, "w") as file:
        file["layer"] = h5py.ExternalLink("secret.h5", "/")
    _refused("info", path, said="has no group 'layer'")
    path.write_bytes(b"not HDF5")
    _refused("info", path, said="is not a readable HDF5 file")
