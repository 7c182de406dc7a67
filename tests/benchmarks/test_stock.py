"""``benchmarks/stock.py`` trains with and without attention, and says what of each was stock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from spikebert.checkpoint import checkpoint_sha256

ROOT = Path(__file__).parents[2]
WORDS = ("good", "fine", "warm", "bad", "dull", "cold")


@pytest.mark.slow
@pytest.mark.lava
def test_a_model_without_attention_is_stock_and_one_with_it_is_not(tmp_path: Path) -> None:
    (tmp_path / "data" / "sst2").mkdir(parents=True)
    rows = [f"a {word} {noun}\t{int(index < 3)}" for index, word in enumerate(WORDS) for noun in ("film", "story")]
    for split in ("train", "dev"):
        text = "\n".join(["sentence\tlabel", *rows]) + "\n"
        (tmp_path / "data" / "sst2" / f"{split}.tsv").write_text(text, encoding="utf-8")
    recipe = (
        "--label-only --epochs 1 --batch-size 4 --max-length 8 --neuron loihi --norm batch --embedding-neuron lif "
        "--embedding-norm --positions --vocabulary-size 200 --blocks 1 --heads 2 --intermediate-size 16 --time-steps 2"
    )
    teacher = tmp_path / "teacher"
    _make_teacher(teacher)
    command = [sys.executable, str(ROOT / "benchmarks" / "stock.py"), "--data-dir", str(tmp_path / "data")]
    options = ["--teacher", str(teacher), "--sentences", "8", "--recipe", recipe, "--verified", "1"]
    done = subprocess.run(
        [*command, *options, "--runs", str(tmp_path / "runs"), "-o", str(tmp_path / "stock.json")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "runs" / "data" / "sst2" / "train.tsv").read_text().splitlines()) == 9
    attended, plain = json.loads((tmp_path / "stock.json").read_text())["rows"]
    assert (attended["attention"], plain["attention"]) == ("spiking", "none")
    assert list(attended["stock_share"]["own_nodes"]) == ["block00_attention"]
    assert plain["stock_share"]["own_nodes"] == {}
    for row in (attended, plain):
        assert row["spikes_different"] == row["states_different"] == 0 < row["states_compared"]
        assert row["checkpoint_sha256"] == checkpoint_sha256(tmp_path / "runs" / row["attention"])
        for part in ("neurons", "synapses", "spikes"):
            assert row["stock_share"][part] == row["stock_share"][f"{part}_stock"] > 0
        assert row["energy_mj"]["paper"] > 0
        assert f"{100 * row['accuracy_integer']:.2f} %" in done.stdout
    assert plain["accumulates"] < attended["accumulates"]


def _make_teacher(folder: Path) -> None:
    """Write a random BERT that has a head for the task, so that nothing needs to be fine-tuned."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "film", "story", *WORDS)
    tokenizer = Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=8, **special).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertForSequenceClassification(config).save_pretrained(folder)
