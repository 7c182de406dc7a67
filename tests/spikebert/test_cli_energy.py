"""The promises of ``spikebert energy``: the counts of what fired, honest ratios, and the JSON others rely on."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from export import quantize, read_nir, to_nir, write_nir
from hardware.runners import open_runner
from spikebert.cli import main
from spikebert.provenance import file_sha256

TEXTS = ("a warm film .", "the dull story", "good")
TOKENS = (6, 5, 3)  # with [CLS] and [SEP]
MODELS = ("paper", "horowitz-fp32", "memory-int8", "loihi1")


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(main.lazy_commands, "energy", "spikebert.cli.energy:energy")


@pytest.fixture(scope="module")
def checkpoint(make_model: Callable[..., Any], tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    make_model(vocab_size=len(tiny_tokenizer), max_position_embeddings=10).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def _invoke(*arguments: Any) -> click.testing.Result:
    result = click.testing.CliRunner().invoke(main, ["energy", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    assert "Traceback" not in result.output
    return result


def _json(*arguments: Any) -> dict[str, Any]:
    result = _invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)  # one object and nothing beside it


def _refused(*arguments: Any, said: str) -> None:
    result = _invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert said in " ".join(result.stderr.split())


def _accumulates_by_hand(checkpoint: Path) -> tuple[int, int]:
    """Count, with torch alone, the accumulates of the first block's query, key and value, and of its second layer."""
    tokens = AutoTokenizer.from_pretrained(checkpoint)(list(TEXTS), padding=True, return_tensors="pt")
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        spikes = model(tokens["input_ids"], tokens["attention_mask"], output_spikes=True).spikes
    width, wide = model.config.hidden_size, model.config.intermediate_size
    stream = spikes["embedding_neuron"] + spikes["block00_projection_neuron"]
    return int(spikes["embedding_neuron"].sum()) * 3 * width, int((stream == 2).sum()) * wide


def test_the_json_has_the_promised_keys_and_counts_what_fired(checkpoint: Path) -> None:
    found = _json(checkpoint, "--text", *TEXTS, "--model", *MODELS, "--baseline", "tinybert-4", "--seed", 3)
    for key in ("model", "operations", "energy_mj", "baseline", "ratio", "precision", "tokens"):
        assert key in found
    assert found["model"] == str(checkpoint)
    assert found["tokens"] == {"real": sum(TOKENS), "padding": 3 * max(TOKENS) - sum(TOKENS)}
    operations = found["operations"]
    for kind in ("ac_binary", "ac_graded", "mac"):
        assert operations[kind] == sum(node[kind] for node in operations["node"].values()) > 0
    binary, graded = _accumulates_by_hand(checkpoint)
    assert operations["node"]["block00_qkv_affine"]["ac_binary"] == binary
    assert operations["node"]["block00_intermediate_affine"]["ac_graded"] == graded
    assert set(found["energy_mj"]) == set(found["ratio"]) == set(found["precision"]) == set(MODELS)
    assert (found["seed"], len(found["checkpoint_sha256"])) == (3, 64)
    assert found["versions"]["torch"] == torch.__version__.split("+")[0]


def test_every_ratio_is_energy_over_energy_and_names_precisions_and_memory(checkpoint: Path) -> None:
    found = _json(checkpoint, "--text", *TEXTS, "--model", *MODELS, "--baseline", "tinybert-4")
    baseline = found["baseline"]
    per_token, per_pair = 4 * (4 * 312 * 312 + 2 * 312 * 1200), 4 * 2 * 312
    macs = [n * per_token + n * n * per_pair + 312 * 312 + 312 * 2 for n in TOKENS]
    assert (baseline["name"], baseline["macs"]) == ("tinybert-4", pytest.approx(np.mean(macs)))
    assert baseline["energy_mj"]["paper"] == pytest.approx(4.6e-9 * np.mean(macs))
    for model in ("paper", "horowitz-fp32", "memory-int8"):
        ratio = found["energy_mj"][model] / baseline["energy_mj"][model]
        assert found["ratio"][model] == pytest.approx(ratio)
        assert found["precision"][model]["network"] == found["precision"][model]["baseline"] != ""
        assert found["precision"][model]["memory"] is (model == "memory-int8")
    assert found["ratio"]["loihi1"] is None is baseline["energy_mj"]["loihi1"]
    twins = [row for row in found["comparisons"] if row["baseline"] == "quantized"]
    assert {row["energy_model"] for row in twins} == set(MODELS)
    assert all("estimate" in row["basis"] for row in found["comparisons"])


def test_a_trace_of_another_tool_goes_through_the_same_counters(checkpoint: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    tokens = AutoTokenizer.from_pretrained(checkpoint)(list(TEXTS), padding=True, return_tensors="np")
    with open_runner(model, "torch", "float32") as runner:
        trace = runner.run(tokens["input_ids"], tokens["attention_mask"])
    np.savez(tmp_path / "chip.npz", mask=trace.mask, **trace.spikes)  # as a stranger would, who has no logits
    write_nir(tmp_path / "model.nir", to_nir(model))
    found = _json("--trace", tmp_path / "chip.npz", "--graph", tmp_path / "model.nir", "--model", "paper")
    own = _json(checkpoint, "--text", *TEXTS, "--model", "paper")
    for key in ("operations", "energy_mj", "ratio", "tokens", "baseline"):
        assert found[key] == own[key], key
    assert len(found["trace_sha256"]) == len(found["graph_sha256"]) == 64


@pytest.fixture(scope="module")
def both_kinds(checkpoint: Path) -> dict[str, tuple[Path, Path]]:
    """The float graph of a model and the integer one made of it, which has the same nodes; a trace of each."""
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    ids = AutoTokenizer.from_pretrained(checkpoint)(list(TEXTS))["input_ids"]
    graphs = {"float": to_nir(model), "integer": quantize(to_nir(model), calibration=ids)}
    found = {}
    for kind, graph in graphs.items():
        file, trace = checkpoint.parent / f"{kind}.nir", checkpoint.parent / f"{kind}.npz"
        write_nir(file, graph)
        given = ("--text", *TEXTS, "--tokenizer", str(checkpoint), "-o", str(trace))
        result = click.testing.CliRunner().invoke(main, ["simulate", str(file), *given])
        assert result.exit_code == 0, result.output
        found[kind] = (file, trace)
    return found


@pytest.mark.parametrize("command", ["energy", "profile", "place"])
@pytest.mark.parametrize(("recorded", "given"), [("float", "integer"), ("integer", "float")])
def test_a_trace_of_the_other_kind_of_graph_is_refused(
    both_kinds: dict[str, tuple[Path, Path]], command: str, recorded: str, given: str
) -> None:
    (graph, own), (_, other) = both_kinds[given], both_kinds[recorded]
    alone = ("--chip", "loihi2", "--tokens", str(max(TOKENS)))
    before = (str(graph), *alone) if command == "place" else ("--graph", str(graph))
    runner = click.testing.CliRunner()
    accepted = runner.invoke(main, [command, *before, "--trace", str(own), "--json"])
    assert accepted.exit_code in ((0, 1) if command == "place" else (0,)), accepted.output
    assert "note" not in accepted.stderr
    refused = runner.invoke(main, [command, *before, "--trace", str(other)])
    said = " ".join(refused.stderr.split())
    assert refused.exit_code == 2, refused.output
    assert refused.stdout == ""
    kinds = {"float": "a float graph", "integer": "an integer graph"}
    assert f"{recorded}.npz: was recorded at precision" in said
    assert f"on {kinds[recorded]}, and the graph given is {kinds[given]}" in said


def test_a_trace_of_another_file_of_the_same_kind_is_counted_with_a_note(
    both_kinds: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    file, trace = both_kinds["float"]
    graph = read_nir(file)
    graph.metadata["note"] = "the same graph, said otherwise"
    write_nir(tmp_path / "again.nir", graph)
    result = _invoke("--trace", trace, "--graph", tmp_path / "again.nir", "--model", "paper", "--json")
    assert result.exit_code == 0, result.output
    assert f"says that it was recorded on a file of sha256 {file_sha256(file)[:16]}" in " ".join(result.stderr.split())
    found = json.loads(result.stdout)
    assert found["trace_graph_sha256"] == file_sha256(file) != found["graph_sha256"]


def test_a_model_from_a_file_is_used(checkpoint: Path, tmp_path: Path) -> None:
    chip = tmp_path / "chip.json"
    prices = {"ac_binary": 2.0, "mac": 10.0, "addition": 0.0}
    chip.write_text(json.dumps({"name": "chip", "source": "me", "precision": "int4", "picojoules": prices}))
    found = _json(checkpoint, "--text", *TEXTS, "--model-file", chip)
    totals = found["operations"]["real"]
    assert list(found["energy_mj"]) == ["chip"]
    expected = (2.0 * totals["ac_binary"] + 10.0 * totals["mac"]) / 1e9 / len(TEXTS)
    assert found["energy_mj"]["chip"] == pytest.approx(expected)
    assert any("charged as whole ones" in row["remark"] for row in found["comparisons"])


def test_the_table_says_who_loses_and_fits(checkpoint: Path) -> None:
    result = _invoke(checkpoint, "--text", *TEXTS, "--baseline", "tinybert-4")
    assert result.exit_code == 0, result.output
    assert max(len(line) for line in result.stdout.splitlines()) <= 100
    words = result.stdout.split()
    assert "LOSES" in words
    assert "wins" in words
    assert "estimate, not a measurement" in " ".join(words)


def test_loihi1_takes_the_cores_and_chips_that_place_prints(checkpoint: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    write_nir(tmp_path / "model.nir", to_nir(model))
    placed = click.testing.CliRunner().invoke(
        main, ["place", str(tmp_path / "model.nir"), "--chip", "loihi1", "--tokens", str(max(TOKENS)), "--json"]
    )
    expected = json.loads(placed.stdout)
    for source in ((checkpoint,), (tmp_path / "model.nir", "--tokenizer", checkpoint)):
        result = _json(*source, "--text", *TEXTS, "--model", "loihi1")
        found = result["estimates"]["loihi1"]
        assert (found["timing"]["cores"], found["timing"]["chips"]) == (expected["cores"], expected["chips"])
        cores = f"placed: {expected['cores']} core{'s' * (expected['cores'] > 1)} on {expected['chips']} chip"
        assert found["timing"]["placement"].startswith(cores)
        assert {row["placement"] for row in result["comparisons"]} == {found["timing"]["placement"]}
        for rule in {violation["rule"] for violation in expected["violations"]}:
            assert rule in found["timing"]["placement"]
    said = " ".join(_invoke(checkpoint, "--text", *TEXTS, "--model", "loihi1").stdout.split())
    assert f"chips {expected['chips']}" in said
    assert cores in said


def test_files_are_written_and_not_over_others(checkpoint: Path, tmp_path: Path) -> None:
    table, page = tmp_path / "energy.csv", tmp_path / "energy.html"
    arguments = (checkpoint, "--text", *TEXTS, "--csv", table, "--html", page, "--model", "paper", "memory")
    assert _invoke(*arguments).exit_code == 0
    rows = list(csv.DictReader(table.open()))
    assert {(row["energy_model"], row["baseline"]) for row in rows} == {
        (model, baseline) for model in ("paper", "memory") for baseline in ("bert-base-cased", "quantized")
    }
    assert "data:image/png;base64," in page.read_text()
    _refused(*arguments, said="exists already")
    assert _invoke(*arguments, "--force").exit_code == 0


def test_the_page_escapes_what_it_was_given_and_loads_nothing(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "<script>alert(1)<"
    folder.mkdir()
    for file in checkpoint.iterdir():
        (folder / file.name).symlink_to(file)
    page = tmp_path / "energy.html"
    result = _invoke(folder, "--text", "good", "--html", page, "--model", "paper")
    assert result.exit_code == 0, result.output
    html = page.read_text()
    assert "&lt;script&gt;alert(1)&lt;" in html
    assert "<script" not in html
    assert "http://" not in html
    assert "https://" not in html


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("{checkpoint}", "--text", "good", "--baseline", "gpt"), "baseline 'gpt' is not known"),
        (("{checkpoint}", "--text", "good", "--model", "free"), "energy model 'free' is not known"),
        (("{checkpoint}", "--text", "good", "--model", "paper", "paper"), "2 energy models are called 'paper'"),
        (("{checkpoint}",), "give --text or --task"),
        (("--trace", "trace.npz"), "give both --trace and --graph"),
        (("{checkpoint}", "--trace", "trace.npz", "--graph", "model.nir"), "give one or the other"),
        (("--trace", "trace.npz", "--graph", "model.nir", "--text", "good"), "leave out --text"),
        (("--trace", "missing.npz", "--graph", "model.nir"), "missing.npz: no such file"),
        (("--text", "good"), "Missing argument 'CHECKPOINT|MODEL.nir'"),
    ],
)
def test_bad_use_is_refused_in_one_message(checkpoint: Path, arguments: tuple[str, ...], said: str) -> None:
    _refused(*(argument.format(checkpoint=checkpoint) for argument in arguments), said=said)


def test_an_unknown_baseline_is_refused_before_anything_runs(checkpoint: Path) -> None:
    assert "counting" not in _invoke(checkpoint, "--text", "good", "--baseline", "gpt").stderr
    assert "counting" in _invoke(checkpoint, "--text", "good", "--model", "paper").stderr
