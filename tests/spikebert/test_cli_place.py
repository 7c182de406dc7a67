"""`spikebert place` says what the library says, with exit code 0, 1 or 2, and writes pictures and pages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from export import quantize, read_nir, write_nir
from hardware import place, run
from spikebert.cli import main


@pytest.fixture(scope="module")
def integer_file(make_model, tmp_path_factory) -> Path:
    """The NIR file of a random SpikeBERT of stock neurons without norms, in whole numbers."""
    from export import to_nir

    path = tmp_path_factory.mktemp("placed") / "integer.nir"
    model = make_model(neuron="loihi", norm="none")
    write_nir(path, quantize(to_nir(model), calibration=[[1, 2, 3, 4], [5, 6, 7]]))
    return path


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["place", *map(str, arguments)])


def test_it_fits(integer_file):
    result = call(integer_file, "--chip", "loihi2", "--tokens", "12", "--json", "--seed", "3")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    expected = place(read_nir(integer_file), chip="loihi2", tokens=12).to_dict()
    assert {key: found[key] for key in expected} == json.loads(json.dumps(expected))
    assert (found["fits"], found["violations"], found["chips"], found["seed"]) == (True, [], 1, 3)
    assert found["cores"] == len(found["utilization"]) >= 1
    assert found["utilization"][0]["neurons"]["limit"] == 8192
    assert {"embedding", "embedding_neuron", "classifier"} <= {entry["node"] for entry in found["host"]}
    table = call(integer_file, "--chip", "loihi2", "--tokens", "12")
    assert table.exit_code == 0
    assert "FITS: 12 tokens on loihi2" in table.stdout
    assert "assumed: " in table.stdout


def test_it_does_not_fit(integer_file, tmp_path):
    result = call(integer_file, "--chip", "loihi1", "--json")
    assert result.exit_code == 1, result.output
    found = json.loads(result.stdout)
    assert not found["fits"]
    assert {(entry["rule"], entry["node"]) for entry in found["violations"]} == {("operators", "block00_attention")}
    assert set(found["violations"][0]) == {"rule", "node", "value", "limit", "remedy"}
    chip = tmp_path / "small.json"
    chip.write_text(json.dumps({"base": "loihi2", "limits": {"neurons_per_core": 5, "chips_per_board": 1}}), "utf-8")
    result = call(integer_file, "--chip", chip)
    assert result.exit_code == 1
    assert "DOES NOT FIT" in result.stdout
    assert "chips_per_board" in result.stdout


def test_pictures_and_pages(integer_file, tmp_path):
    png, html = tmp_path / "cores.png", tmp_path / "cores.html"
    arguments = (integer_file, "--chip", "loihi1", "--png", png, "--html", html)
    assert call(*arguments).exit_code == 1
    assert min(Image.open(png).size) > 300
    page = html.read_text("utf-8")
    for text in ("block00_attention", "spike_attention", "4,096", "nengo-loihi", "looks words up", "file sha256"):
        assert text in page, text
    assert "http" not in page.replace("http-equiv", "")
    before = png.read_bytes()
    again = call(*arguments)
    assert again.exit_code == 2
    assert "--force" in again.stderr
    assert call(*arguments, "--force").exit_code == 1
    assert png.read_bytes() == before


def test_spikes_between_chips(integer_file, tmp_path):
    ids = np.array([[1, 2, 3, 4, 5]])
    trace = run(read_nir(integer_file), ids, np.ones_like(ids, bool), runner="integer", precision="integer")
    trace.save(tmp_path / "trace.npz")
    chip = tmp_path / "small.json"
    chip.write_text(json.dumps({"base": "loihi2", "limits": {"neurons_per_core": 16, "cores_per_chip": 1}}), "utf-8")
    result = call(integer_file, "--chip", chip, "--tokens", "8", "--trace", tmp_path / "trace.npz", "--json")
    found = json.loads(result.stdout)["spikes_per_sentence"]
    assert found["sentences"] == 1
    assert 0 < found["between_chips"] <= found["sent"]
    assert found["from_host"] >= trace.spikes["embedding_neuron"].sum() > 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--chip", "loihi3"], "known are loihi1, loihi2"),
        (["--chip", "nowhere.json"], "nowhere.json"),
        (["--chip", "loihi1", "--tokens", "0"], "expected a whole number from 1"),
        (["--chip", "loihi1", "--png", "cores.bmp"], "a picture ends in"),
        (["--chip", "loihi1", "--html", "no/such/folder.html"], "does not exist"),
        (["--chip", "loihi1", "--trace", "nowhere.npz"], "nowhere.npz"),
        ([], "--chip"),
    ],
)
def test_bad_input(integer_file, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    result = call(integer_file, *arguments)
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_graph(tmp_path):
    (tmp_path / "text.nir").write_text("no", "utf-8")
    assert call(tmp_path / "text.nir", "--chip", "loihi1").exit_code == 2
    assert call(tmp_path / "nowhere.nir", "--chip", "loihi1").exit_code == 2
