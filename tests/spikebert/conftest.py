"""A tokenizer, a BERT and a task small enough to be made in a test."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from spikebert.cli import main

SPECIAL = ("[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[unused1]")
GOOD = ("good", "fine", "warm", "bright")
BAD = ("bad", "dull", "cold", "flat")
WORDS = (*GOOD, *BAD, "film", "story", "a", "the", "##ly", "привет", "##是", "é", "2", ".")


SPARE_BYTES = 400_000_000


@pytest.fixture
def little_memory():
    """A context in which this process gets no more than `SPARE_BYTES` beyond what it holds."""

    @contextmanager
    def limited() -> Iterator[None]:
        held = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (held + SPARE_BYTES, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)

    return limited


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 4), ("[CLS]", 3))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
    )


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory, tiny_tokenizer) -> Path:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
        initializer_range=1.0,
    )
    folder = tmp_path_factory.mktemp("teacher") / "tiny-bert"
    BertModel(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """SST-2 in small: a sentence is positive where its one adjective is."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "sst2").mkdir()
    lines = [
        f"{article} {word} {noun}{end}\t{int(word in GOOD)}"
        for article in ("a", "the")
        for word in (*GOOD, *BAD)
        for noun in ("film", "story", "film film story")
        for end in ("", " .")
    ]
    for split, chosen in (("train", lines[::2] + lines[1::4]), ("dev", lines[3::4])):
        (folder / "sst2" / f"{split}.tsv").write_text("sentence\tlabel\n" + "\n".join(chosen) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def checkpoint(make_model, tiny_tokenizer, tmp_path_factory) -> Path:
    """A random classifier of ten positions; modules that need another define their own."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    make_model(vocab_size=len(tiny_tokenizer), max_position_embeddings=10).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def graph_file(checkpoint) -> Path:
    """Its NIR file, as the command writes it."""
    path = checkpoint.parent / "model.nir"
    assert CliRunner().invoke(main, ["export", "nir", str(checkpoint), "-o", str(path)]).exit_code == 0
    return path
