"""The promise of checkpoints from anywhere: a sound model and tokenizer, or an error that says what is wrong and where.

Each folder here is a good one with one thing wrong in it.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from spikebert import SpikeBertConfig, SpikeBertForSequenceClassification
from spikebert import checkpoint as checkpoint_module
from spikebert.checkpoint import load_model, load_tokenizer, save_checkpoint
from spikebert.cli import main
from spikebert.errors import CheckpointError, ConfigurationError

Change = Callable[[Path], Any]


@pytest.fixture(scope="module")
def good(tiny_tokenizer, tmp_path_factory) -> Path:
    torch.manual_seed(0)
    config = SpikeBertConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    folder = tmp_path_factory.mktemp("good") / "checkpoint"
    save_checkpoint(SpikeBertForSequenceClassification(config), tiny_tokenizer, folder)
    return folder


@pytest.fixture
def bad(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "bad"))


def _json(file: str, **changes: Any) -> Change:
    def change(folder: Path) -> None:
        content = json.loads((folder / file).read_text(encoding="utf-8"))
        (folder / file).write_text(json.dumps({**content, **changes}), encoding="utf-8")

    return change


def _text(file: str, content: str | bytes) -> Change:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / file).write_bytes(data)


def _weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    def apply(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return apply


def _header(change: Callable[[dict[str, Any]], Any]) -> Change:
    """Change what the file with the weights says about them, and leave the bytes."""

    def apply(folder: Path) -> None:
        path = folder / "model.safetensors"
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])

    return apply


def _link(file: str, target: str) -> Change:
    def change(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).symlink_to(target)

    return change


def _pipe(file: str) -> Change:
    def change(folder: Path) -> None:
        (folder / file).unlink()
        os.mkfifo(folder / file)

    return change


HEAD = "classifier.bias"
MODELS: dict[str, tuple[Change, str]] = {
    # config.json
    "no JSON": (_text("config.json", "{"), "cannot be loaded"),
    "JSON of another kind": (_text("config.json", "[1, 2]"), "cannot be loaded"),
    "JSON without a bottom": (_text("config.json", "[" * 200_000), "cannot be loaded"),
    "bytes that are no text": (_text("config.json", b"\xff\xfe\x00{"), "cannot be loaded"),
    "a model of no known kind": (_json("config.json", model_type="wishful"), "wishful"),
    "code to run": (
        _json("config.json", model_type="mine", auto_map={"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}),
        "trust_remote_code",
    ),
    "a size in words": (_json("config.json", hidden_size="eight"), "hidden_size is 'eight'"),
    "a fractional size": (_json("config.json", time_steps=4.5), "time_steps is 4.5"),
    "a negative size": (_json("config.json", vocab_size=-1), "vocab_size is -1"),
    "no time steps": (_json("config.json", time_steps=None), "time_steps is None"),
    "a threshold that is not a number": (_json("config.json", threshold=float("nan")), "threshold is nan"),
    "labels that are a number": (_json("config.json", id2label=3), "cannot be loaded"),
    "labels that skip one": (_json("config.json", id2label={"0": "a", "2": "b"}), "id2label"),
    "a vocabulary of 2^60": (_json("config.json", vocab_size=2**60), "config.json says vocab_size 1152921504606846976"),
    "an MLP of 2^40": (_json("config.json", intermediate_size=2**40), "config.json says intermediate_size"),
    "sizes that multiply": (_json("config.json", vocab_size=900, intermediate_size=900), "config.json describes"),
    "positions that there are not": (
        _json("config.json", position_embedding_type="absolute", max_position_embeddings=2**50),
        "config.json describes",
    ),
    "2^40 blocks": (_json("config.json", num_hidden_layers=2**40), "config.json says num_hidden_layers 1099511627776"),
    "2^40 labels": (_json("config.json", num_labels=2**40), "config.json says num_labels 1099511627776"),
    "a block more than there is": (_json("config.json", num_hidden_layers=2), "missing_keys"),
    "another width": (_json("config.json", intermediate_size=17), "mismatched_keys"),
    # model.safetensors
    "no weights in the file": (_text("model.safetensors", b""), "cannot be loaded"),
    "text for weights": (_text("model.safetensors", "not weights\n" * 50), "cannot be loaded"),
    "a header of 2^60 bytes": (_text("model.safetensors", struct.pack("<Q", 2**60) + b"{}"), "cannot be loaded"),
    "a header that is no JSON": (_text("model.safetensors", struct.pack("<Q", 2) + b"[["), "cannot be loaded"),
    "a hostile shape": (_header(lambda h: h[HEAD].update(shape=[2**30, 2**30])), "cannot be loaded"),
    "a shape that overflows": (_header(lambda h: h[HEAD].update(shape=[2**60, 2**60])), "cannot be loaded"),
    "offsets behind the end": (_header(lambda h: h[HEAD].update(data_offsets=[0, 2**40])), "cannot be loaded"),
    "offsets the wrong way round": (_header(lambda h: h[HEAD].update(data_offsets=[8, 4])), "cannot be loaded"),
    "an unknown type": (_header(lambda h: h[HEAD].update(dtype="F7")), "cannot be loaded"),
    "whole numbers": (_header(lambda h: h[HEAD].update(dtype="I16")), f"{HEAD} holds I16"),
    "a weight that is not a number": (
        _weights(lambda w: w[HEAD].fill_(torch.nan)),
        f"{HEAD} in model.safetensors holds values that are not finite",
    ),
    "an infinite weight": (
        _weights(lambda w: w["spikebert.final_norm.weight"][:1].fill_(torch.inf)),
        "spikebert.final_norm.weight in model.safetensors holds",
    ),
    "a weight too many": (_weights(lambda w: w.update(extra=torch.zeros(2))), "unexpected_keys extra"),
    "a weight too few": (_weights(lambda w: w.pop(HEAD)), f"missing_keys {HEAD}"),
    "a weight of another shape": (_weights(lambda w: w.update({HEAD: torch.zeros(7)})), "mismatched_keys"),
    # the files themselves
    "a link to nowhere": (_link("model.safetensors", "/nowhere/at/all"), "has no model.safetensors"),
    "a link to itself": (_link("config.json", "config.json"), "has no config.json"),
    "a link to a device": (_link("model.safetensors", "/dev/zero"), "has no model.safetensors"),
    "a pipe": (_pipe("config.json"), "has no config.json"),
}


@pytest.mark.parametrize("what", MODELS)
def test_a_checkpoint_with_one_thing_wrong(what: str, bad: Path) -> None:
    change, said = MODELS[what]
    change(bad)
    with pytest.raises(CheckpointError) as caught:
        load_model(bad)
    assert str(bad) in str(caught.value)
    assert said in str(caught.value)


TOKENIZERS: dict[str, tuple[Change, str]] = {
    "no JSON": (_text("tokenizer.json", "{"), "cannot be loaded"),
    "JSON of another kind": (_text("tokenizer.json", "[]"), "cannot be loaded"),
    "JSON without a bottom": (_text("tokenizer.json", "[" * 200_000), "cannot be loaded"),
    "a model of no known kind": (_json("tokenizer.json", model={"type": "Wishful"}), "cannot be loaded"),
    "an id of 2^60": (
        _json("tokenizer.json", model={"type": "WordPiece", "unk_token": "a", "vocab": {"a": 2**60}}),
        "cannot be loaded",
    ),
    "an id below zero": (
        _json("tokenizer.json", model={"type": "WordPiece", "unk_token": "a", "vocab": {"a": -1}}),
        "cannot be loaded",
    ),
    "an unknown step": (_json("tokenizer.json", pre_tokenizer={"type": "Wishful"}), "cannot be loaded"),
    "settings of another kind": (_text("tokenizer_config.json", "[]"), "cannot be loaded"),
    "settings that are no JSON": (_text("tokenizer_config.json", "{"), "cannot be loaded"),
    "no padding token": (_json("tokenizer_config.json", pad_token=None), "names no pad_token"),
    "code to run": (
        _json("tokenizer_config.json", tokenizer_class="Mine", auto_map={"AutoTokenizer": ["mine.Mine", None]}),
        "cannot be loaded",
    ),
    "a link to nowhere": (_link("tokenizer.json", "/nowhere/at/all"), "has no tokenizer.json"),
    "a pipe": (_pipe("tokenizer.json"), "has no tokenizer.json"),
}


@pytest.mark.parametrize("what", TOKENIZERS)
def test_a_tokenizer_with_one_thing_wrong(what: str, bad: Path) -> None:
    change, said = TOKENIZERS[what]
    change(bad)
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer(bad)
    assert str(bad) in str(caught.value)
    assert said in str(caught.value)


def _info(folder: Path) -> tuple[dict[str, Any], str]:
    """Return what ``spikebert info`` says of a checkpoint, as JSON and as people read it."""
    as_json, as_text = (CliRunner().invoke(main, ["info", str(folder), *more]) for more in (["--json"], []))
    assert (as_json.exit_code, as_text.exit_code) == (0, 0), as_json.output + as_text.output
    return json.loads(as_json.stdout), " ".join(as_text.stdout.split())


def test_info_says_that_a_tokenizer_fits(good: Path, tiny_tokenizer: Any) -> None:
    found, said = _info(good)
    tokens = len(tiny_tokenizer)
    assert found["tokenizer_problem"] is None
    assert found["tokenizer"] == f"WordPiece, {tokens} tokens for the {tokens} rows of the embedding"
    assert found["tokenizer"] in said
    assert "problem" not in said


@pytest.mark.parametrize("what", TOKENIZERS)
def test_info_says_what_is_wrong_with_a_tokenizer_and_explains_the_rest(what: str, bad: Path) -> None:
    change, why = TOKENIZERS[what]
    change(bad)
    found, said = _info(bad)
    assert found["tokenizer"] == "none that can be used"
    assert why in found["tokenizer_problem"]
    assert "runs on token ids" in found["tokenizer_problem"]
    assert " ".join(found["tokenizer_problem"].split()) in said
    assert (found["kind"], found["hidden_size"]) == ("checkpoint", 8)


def test_info_says_that_a_tokenizer_has_more_tokens_than_the_model(bad: Path, tiny_tokenizer: Any) -> None:
    larger = copy.deepcopy(tiny_tokenizer)
    larger.add_tokens(["crocodile", "walrus", "otter"])
    larger.save_pretrained(bad)
    rows = len(tiny_tokenizer)
    found, said = _info(bad)
    assert found["tokenizer_problem"].startswith(
        f"3 of its {rows + 3} tokens have ids up to {rows + 2}, and the embedding has {rows} rows"
    )
    assert found["tokenizer_problem"] in said
    with pytest.raises(ConfigurationError, match="vocabulary has ids 0 to"):  # what it warns of
        load_model(bad)(torch.tensor([load_tokenizer(bad)("a walrus")["input_ids"]]))


def test_text_files_are_not_read_whole_whatever_their_size(bad: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_module, "MAX_TEXT_BYTES", 100_000)
    load_model(bad)
    with (bad / "config.json").open("ab") as file:
        file.truncate(200_000)
    for load in (load_model, load_tokenizer):
        with pytest.raises(CheckpointError, match=r"config\.json has 200000 bytes; at most 100000 are read"):
            load(bad)


@pytest.mark.parametrize(
    "changes",
    [
        {"intermediate_size": 2**33},
        {"vocab_size": 2**34},
        {"num_hidden_layers": 10**7},
        {"position_embedding_type": "absolute", "max_position_embeddings": 2**33},
    ],
)
def test_sizes_are_refused_before_memory_is_taken(changes: dict[str, Any], bad: Path, little_memory: Callable) -> None:
    _json("config.json", **changes)(bad)
    with little_memory(), pytest.raises(CheckpointError, match=r"config\.json (says|describes)"):
        load_model(bad)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    file=st.sampled_from(["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=4),
    kept=st.one_of(st.just(1.0), st.floats(0, 1)),
)
def test_a_damaged_checkpoint_is_loaded_or_refused(
    file: str, flips: list[tuple[float, int]], kept: float, good: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = Path(shutil.copytree(good, tmp_path_factory.mktemp("damaged") / "checkpoint"))
    content = bytearray((folder / file).read_bytes())
    for where, bits in flips:
        content[int(where * len(content))] ^= bits
    (folder / file).write_bytes(content[: int(kept * len(content))])
    try:
        tokenizer, model = load_tokenizer(folder), load_model(folder)
    except CheckpointError as error:
        assert str(folder) in str(error)  # noqa: PT017  either outcome is fine
        return
    assert all(isinstance(token, int) for token in tokenizer("a good film")["input_ids"])
    assert all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())
