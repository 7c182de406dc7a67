"""`spikebert profile` says what the library says, writes what it is asked for, and overwrites nothing by accident."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from transformers import PreTrainedTokenizerFast

from export import to_nir, write_nir
from hardware import count_operations, run
from hardware.energy import OPERATION_KINDS
from hardware.reports import profile_figures, profile_report
from spikebert.checkpoint import load_model, load_tokenizer, save_checkpoint
from spikebert.cli import profile as command
from spikebert.cli.application import LazyGroup

TEXTS = ("a good film .", "the dull story")


@pytest.fixture(scope="module")
def checkpoint(make_model, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    model = make_model(vocab_size=len(tiny_tokenizer), num_labels=2)
    save_checkpoint(model, tiny_tokenizer, folder)
    return folder


@pytest.fixture
def profile(tmp_path, monkeypatch, checkpoint):
    """Return a function that calls the command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    group = LazyGroup("spikebert", lazy_commands={"profile": "spikebert.cli.profile:profile"})

    def call(*arguments: str) -> Result:
        return CliRunner().invoke(group, ["profile", str(checkpoint), *arguments], catch_exceptions=False)

    return call


def test_json_has_the_rates_of_the_torch_model_alone(profile, checkpoint, tiny_tokenizer):
    """Counted from the model's own spikes, sentence by sentence, so that no padding can play a part."""
    result = profile("--text", *TEXTS, "--json", "--seed", "5")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    model = load_model(checkpoint)
    rates: dict[str, list[np.ndarray]] = {}
    for text in TEXTS:
        with torch.no_grad():
            spikes = model(torch.tensor([tiny_tokenizer(text)["input_ids"]]), output_spikes=True).spikes
        for node, value in spikes.items():
            rates.setdefault(node, []).append(value.numpy()[:, 0])
    assert [node["node"] for node in found["nodes"]] == list(rates)
    for node in found["nodes"]:
        outputs = np.concatenate(rates[node["node"]], axis=1)  # (T, all tokens, D)
        assert node["firing_rate"] == pytest.approx(outputs.mean(), rel=1e-6)
        assert node["firing_rate_by_step"] == pytest.approx(outputs.mean((1, 2)).tolist(), rel=1e-6)
        assert node["silent"]["count"] == int((outputs.sum((0, 1)) == 0).sum())
        assert "neurons" not in node["silent"]
    assert (found["sentences"], found["tokens"]) == (2, {"real": 11, "padding": 1})
    assert (found["seed"], found["runner"], found["precision"]) == (5, "torch", "float32")
    assert len(found["checkpoint_sha256"]) == 64
    assert "2 sentences, 11 tokens" in found["data"]


def test_operations_are_those_the_library_counts(profile, checkpoint, tiny_tokenizer):
    """JSON, table, CSV and page; counted again from a trace of the NumPy interpreter over the whole batch."""
    model = load_model(checkpoint)
    batch = tiny_tokenizer(list(TEXTS), padding=True, return_tensors="np")
    graph = to_nir(model)
    expected = count_operations(run(graph, batch["input_ids"], batch["attention_mask"]), graph)
    paper = json.loads(profile("--text", *TEXTS, "--json").stdout)["operations"]
    assert paper["real"] == expected.totals
    assert paper["padding"] == expected.padding_totals
    assert list(paper["node"]["block00_attention"]["attention_orders"]) == ["qk_first"]
    both = json.loads(profile("--text", *TEXTS, "--json", "--both-orders").stdout)["operations"]
    assert both == json.loads(json.dumps(expected.to_dict()))
    result = profile("--text", *TEXTS, "--csv", "a.csv", "--csv-by", "operation", "--html", "a.html")
    accumulates = f"{expected.to_dict()['ac_binary'] / 2 / 1e6:,.3f}"
    assert "Operations of a sentence" in result.stdout
    assert accumulates in result.stdout
    assert f"<td>{accumulates}</td>" in Path("a.html").read_text(encoding="utf-8")
    with open("a.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for column, totals in (("at_real_tokens", expected.totals), ("at_padding", expected.padding_totals)):
        summed = {kind: sum(int(row[column]) for row in rows if row["operation"] == kind) for kind in OPERATION_KINDS}
        assert summed == {kind: totals.get(kind, 0) for kind in OPERATION_KINDS}


def test_padding_a_model_attends_to_is_no_token(make_model, tiny_tokenizer, tmp_path):
    model = make_model(vocab_size=len(tiny_tokenizer), attend_to_padding=True)
    save_checkpoint(model, tiny_tokenizer, tmp_path / "model")
    arguments = [str(tmp_path / "model"), "--text", *TEXTS, "--json"]
    found = json.loads(CliRunner().invoke(command.profile, arguments, catch_exceptions=False).stdout)
    assert found["tokens"] == {"real": 11, "padding": 2 * model.config.max_position_embeddings - 11}
    assert sum(node["spikes_at_padding"] for node in found["nodes"]) > 0


def test_a_task_is_profiled_up_to_its_limit(profile, tiny_data):
    result = profile("--task", "sst2", "--data-dir", str(tiny_data), "--limit", "9", "--json", "--detailed")
    found = json.loads(result.stdout)
    assert found["sentences"] == 9
    assert found["data"].startswith("sst2 dev, 9 sentences")
    assert all(len(node["silent"]["neurons"]) == node["silent"]["count"] for node in found["nodes"])


def test_table_and_files_are_written(profile):
    result = profile(
        "--text", *TEXTS, "--csv", "a.csv", "--png", "a.png", "--html", "a.html", "--figure", "rates", "steps"
    )
    assert result.exit_code == 0, result.output
    assert "block00_intermediate_neuron" in result.stdout
    picture = Image.open("a.png")
    assert picture.format == "PNG"
    assert picture.height < picture.width, "two figures, not all six"
    with open("a.csv", newline="") as file:
        assert [row["node"] for row in csv.DictReader(file)][:2] == ["embedding_neuron", "block00_qkv_neuron"]
    page = Path("a.html").read_text(encoding="utf-8")
    assert page.count("<img") == len(profile_figures.FIGURES), "the page shows all, the picture what was chosen"
    assert sorted(path.name for path in Path().iterdir()) == ["a.csv", "a.html", "a.png"]


@pytest.mark.parametrize(("by", "column"), [("head", "part"), ("value", "share")])
def test_csv_collects_what_it_needs(profile, by, column):
    assert profile("--text", TEXTS[0], "--csv", "a.csv", "--csv-by", by).exit_code == 0
    assert column in Path("a.csv").read_text().splitlines()[0]


@pytest.mark.parametrize("option", ["--csv", "--png", "--html"])
def test_an_existing_file_stays_without_force(profile, option):
    path = Path("mine" + option.replace("--", "."))
    path.write_text("mine")
    result = profile("--text", TEXTS[0], option, str(path))
    assert result.exit_code == 2
    assert "add --force" in result.stderr
    assert path.read_text() == "mine"
    assert profile("--text", TEXTS[0], option, str(path), "--force").exit_code == 0
    assert path.read_bytes() != b"mine"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "give --text or --task"),
        (("--text", "a", "--figure", "rates"), "give --png FILE too"),
        (("--text", "a", "--png", "a.gif"), "a picture ends in .png"),
        (("--text", "a", "--sentence", "1"), "there are 1 sentences"),
        (("--text", "a", "--collect", "everything"), "'everything' is not one of"),
        (("--text", "a", "--csv", "no/such/folder.csv"), "does not exist"),
    ],
)
def test_bad_use_ends_with_2_and_a_reason(profile, arguments, complaint):
    result = profile(*arguments)
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert not list(Path().iterdir())


def test_a_place_that_cannot_be_written_is_refused_before_the_work(profile, monkeypatch):
    monkeypatch.setattr("spikebert.checkpoint.load_model", lambda name: pytest.fail("worked first"))
    assert profile("--text", "a", "--html", "no/such/folder.html").exit_code == 2


def test_raster_is_of_the_sentence_asked_for(profile, monkeypatch):
    """The tenth sentence is the second of the second batch."""
    seen = []
    monkeypatch.setattr(
        profile_report, "write_profile_picture", lambda found, path, subject, sentence, figures: seen.append(sentence)
    )
    texts = ["good"] * 9 + ["bright film"] + ["bad"]
    assert profile("--text", *texts, "--png", "a.png", "--figure", "raster", "--sentence", "9").exit_code == 0
    assert seen[0].tokens == ["[CLS]", "bright", "film", "[SEP]"]
    assert (seen[0].index, seen[0].trace.mask[1].sum()) == (1, 4)


def test_help_has_an_example():
    result = CliRunner().invoke(command.profile, ["--help"])
    assert result.exit_code == 0
    assert "spikebert profile default --text" in result.output


def test_a_trace_of_another_tool_is_profiled_like_the_model_that_made_it(profile, checkpoint, tmp_path):
    """Spikes by node and a mask are all a stranger has; rates, operations and the raster follow from them."""
    expected = json.loads(profile("--text", *TEXTS, "--json").stdout)
    model = load_model(checkpoint)
    write_nir(tmp_path / "model.nir", to_nir(model))
    group = LazyGroup("spikebert", lazy_commands={"profile": "spikebert.cli.profile:profile"})
    tokenizer = load_tokenizer(checkpoint)
    tokens = tokenizer(list(TEXTS), padding=True, return_tensors="np")
    trace = run(model, tokens["input_ids"], tokens["attention_mask"], runner="torch", precision="float32")
    np.savez(tmp_path / "chip.npz", mask=trace.mask, **trace.spikes)
    arguments = ["profile", "--trace", "chip.npz", "--graph", "model.nir", "--json", "--png", "p.png"]
    result = CliRunner().invoke(group, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["operations"] == expected["operations"]
    for node, of_model in zip(found["nodes"], expected["nodes"], strict=True):
        assert {key: node[key] for key in of_model} == of_model
    assert Image.open(tmp_path / "p.png").size[0] > 0
    assert found["data"] == f"2 sentences, {trace.real_tokens} tokens"
    assert len(found["trace_sha256"]) == 64
    alone = CliRunner().invoke(group, arguments[:3], catch_exceptions=False)
    assert alone.exit_code == 2
    assert "give both --trace and --graph" in " ".join(alone.stderr.split())
