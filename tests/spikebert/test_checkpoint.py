"""Checkpoints: written whole or not at all, read in float32 or refused with a reason; the shipped one as promised."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from spikebert import SpikeBertConfig, SpikeBertForSequenceClassification, SpikeBertModel, default_checkpoint
from spikebert.checkpoint import (
    SHIPPED_CHECKPOINTS,
    checkpoint_sha256,
    load_model,
    load_tokenizer,
    resolve_checkpoint,
    save_checkpoint,
    shipped_checkpoint,
)
from spikebert.data import TokenizedExamples, load_examples
from spikebert.errors import CheckpointError
from spikebert.evaluation import evaluate
from spikebert.tasks import TASKS

DEFAULT_SIZE_LIMIT_BYTES = 30_000_000
DEFAULT_LEAST_ACCURACY = 0.81


@pytest.fixture
def model(tiny_tokenizer):
    torch.manual_seed(0)
    config = SpikeBertConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        id2label={0: "negative", 1: "positive"},
    )
    return SpikeBertForSequenceClassification(config)


@pytest.fixture
def saved(model, tiny_tokenizer, tmp_path):
    folder = tmp_path / "checkpoint"
    save_checkpoint(model, tiny_tokenizer, folder)
    return folder


def test_weights_are_stored_in_half_and_loaded_as_float32(model, saved):
    assert {value.dtype for value in load_file(saved / "model.safetensors").values()} == {torch.float16}
    for loaded in (
        load_model(saved),
        SpikeBertForSequenceClassification.from_pretrained(saved),
        AutoModelForSequenceClassification.from_pretrained(saved),
    ):
        assert loaded.dtype == torch.float32
        assert loaded.config.id2label == {0: "negative", 1: "positive"}
        for name, value in loaded.state_dict().items():
            assert torch.equal(value, model.state_dict()[name].half().float()), name
    assert isinstance(AutoModel.from_pretrained(saved), SpikeBertModel)
    assert load_tokenizer(saved).tokenize("good film") == ["good", "film"]


def test_the_model_in_memory_is_left_alone(model, tiny_tokenizer, tmp_path):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    save_checkpoint(model, tiny_tokenizer, tmp_path / "checkpoint")
    assert model.dtype == torch.float32
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_sha256_is_that_of_the_weights_file(saved):
    assert checkpoint_sha256(saved) == hashlib.sha256((saved / "model.safetensors").read_bytes()).hexdigest()


def test_a_failed_write_leaves_the_old_checkpoint_and_nothing_else(model, saved, tmp_path):
    class Broken:
        def save_pretrained(self, folder):
            raise OSError("disk full")

    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(model, Broken(), saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert list(tmp_path.iterdir()) == [saved]


def test_a_checkpoint_is_replaced_whole(model, tiny_tokenizer, saved, tmp_path):
    (saved / "stale.txt").touch()
    save_checkpoint(model, tiny_tokenizer, saved, storage_dtype=torch.float32)
    assert not (saved / "stale.txt").exists()
    assert {value.dtype for value in load_file(saved / "model.safetensors").values()} == {torch.float32}
    assert list(tmp_path.iterdir()) == [saved]


def test_a_folder_that_is_no_checkpoint_is_never_deleted(model, tiny_tokenizer, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(CheckpointError, match="no checkpoint"):
        save_checkpoint(model, tiny_tokenizer, tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_a_weight_beyond_half_precision_is_refused(model, tiny_tokenizer, tmp_path):
    with torch.no_grad():
        model.classifier.weight[0, 0] = 1e6
    with pytest.raises(CheckpointError, match=r"classifier\.weight"):
        save_checkpoint(model, tiny_tokenizer, tmp_path / "checkpoint")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(saved, missing):
    (saved / missing).unlink()
    with pytest.raises(CheckpointError, match=missing):
        load_model(saved)


def test_a_missing_tokenizer_is_named(saved):
    (saved / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        load_tokenizer(saved)


def test_damaged_files_are_refused(saved):
    weights = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_model(saved)
    (saved / "model.safetensors").write_bytes(weights)
    (saved / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_tokenizer(saved)
    (saved / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_model(saved)


def test_weights_that_do_not_fit_are_refused(saved):
    weights = load_file(saved / "model.safetensors")
    bias = weights.pop("classifier.bias")
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing_keys classifier\.bias"):
        load_model(saved)
    weights["classifier.bias"] = torch.cat([bias, bias])
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"mismatched_keys.*classifier\.bias"):
        load_model(saved)


def test_a_setting_that_is_not_allowed_is_refused(saved):
    configuration = json.loads((saved / "config.json").read_text())
    configuration["time_steps"] = 0
    (saved / "config.json").write_text(json.dumps(configuration))
    with pytest.raises(CheckpointError, match="time_steps"):
        load_model(saved)


def test_names_resolve_to_folders_or_to_the_hub(saved, tmp_path):
    assert resolve_checkpoint("default") == str(default_checkpoint())
    assert resolve_checkpoint("default-loihi") == str(shipped_checkpoint("default-loihi"))
    with pytest.raises(CheckpointError, match="default-loihi"):
        shipped_checkpoint("default-truenorth")
    assert resolve_checkpoint(saved) == str(saved)
    assert resolve_checkpoint("owner/model") == "owner/model"
    (tmp_path / "file.pt").touch()
    for name in ("nowhere", "./not/here", "/not/here", tmp_path / "file.pt"):
        with pytest.raises(CheckpointError):
            resolve_checkpoint(name)


@pytest.mark.parametrize("name", SHIPPED_CHECKPOINTS)
def test_a_shipped_checkpoint_is_small_documented_and_alive(name):
    folder = shipped_checkpoint(name)
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= DEFAULT_SIZE_LIMIT_BYTES
    record = json.loads((folder / "training.json").read_text())
    card = (folder / "README.md").read_text()
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert record["checkpoint_sha256"] == digest
    for said in (digest, record["command"], f"{record['dev']:.4f}", "Apache-2.0"):
        assert said in card
    assert "spikebert distill task " in card
    assert all(values["rate"] > 0.01 and values["silent"] < 1 for values in record["firing_rates"].values())


@pytest.mark.parametrize("name", SHIPPED_CHECKPOINTS)
def test_a_shipped_checkpoint_loads_as_float32_with_its_tokenizer(name):
    model = SpikeBertForSequenceClassification.from_pretrained(shipped_checkpoint(name))
    assert model.dtype == torch.float32
    tokenizer = AutoTokenizer.from_pretrained(shipped_checkpoint(name))
    inputs = tokenizer(["A wonderful film.", "A tedious mess of a film."], padding=True, return_tensors="pt")
    with torch.no_grad():
        assert model(**inputs).logits.argmax(-1).tolist() == [1, 0]


@pytest.mark.skipif("SPIKEBERT_DATA" not in os.environ, reason="SPIKEBERT_DATA names no folder with the data sets")
@pytest.mark.parametrize("name", SHIPPED_CHECKPOINTS)
def test_a_shipped_checkpoint_is_as_accurate_as_its_card_says(name):
    task = TASKS["sst2"]
    examples = load_examples(task, "dev", Path(os.environ["SPIKEBERT_DATA"]))
    value = evaluate(load_model(name), task, TokenizedExamples(examples, task, load_tokenizer(name), 128))
    stated = json.loads((shipped_checkpoint(name) / "training.json").read_text())["dev"]
    assert value >= DEFAULT_LEAST_ACCURACY
    assert value == pytest.approx(stated, abs=2.5 / len(examples))  # another processor may round a sentence over
