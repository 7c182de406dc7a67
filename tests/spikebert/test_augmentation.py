"""Augmentation: the probabilities are kept, a word is replaced by its like, and nothing labelled comes out."""

import re
from collections import Counter

import pytest

from spikebert.data import Example
from spikebert.distillation.augmentation import augment, random_spans
from spikebert.distillation.part_of_speech import CHINESE, ENGLISH, find_tagger, guess_language
from spikebert.distillation.settings import AugmentationSettings
from spikebert.errors import ConfigurationError, MissingDependencyError

TAGS = {"film": "N", "story": "N", "plot": "N", "good": "A", "dull": "A", "the": ""}


def tag(text):
    return [(word, TAGS[word]) for word in text.split()]


def examples(*texts):
    return [Example((text,), 1.0) for text in texts]


def copies(settings, *texts, seed=0):
    return augment(examples(*texts), tag, ENGLISH, "[MASK]", settings, seed)


LONG = " ".join(["the good film", "the dull story", "the plot"] * 1000)


def test_words_are_masked_and_replaced_as_often_as_asked():
    (made,) = copies(AugmentationSettings(1, 0.1, 0.2, 0.0), LONG)
    assert made.label is None
    before, after = LONG.split(), made.texts[0].split()
    masked = sum(word == "[MASK]" for word in after)
    assert masked / len(before) == pytest.approx(0.1, abs=0.015)
    changed = Counter((a, b) for a, b in zip(before, after, strict=True) if b != "[MASK]" and a != b)
    assert changed, "nothing was replaced"
    assert all(TAGS[a] == TAGS[b] != "" for a, b in changed)
    # a word is drawn as often as it stands in the text, itself included: two in three nouns, half of all adjectives
    nouns = sum(number for (a, _), number in changed.items() if TAGS[a] == "N")
    assert nouns / 3000 == pytest.approx(0.2 * 2 / 3, abs=0.03)


def test_an_ngram_of_the_text_stands_for_it_as_often_as_asked():
    texts = [
        f"{a} {b} {c} {d} {e} {f}" for a in TAGS for b in TAGS for c in TAGS for d in TAGS for e, f in [("the", "film")]
    ]
    made = copies(AugmentationSettings(1, 0.0, 0.0, 0.25), *texts)
    lengths = Counter(len(example.texts[0].split()) for example in made)
    assert set(lengths) <= {1, 2, 3, 4, 5}  # whole texts are left out as they are there already
    whole = set(texts)
    assert all(any(example.texts[0] in text for text in whole) for example in made)
    drawn = copies(AugmentationSettings(1, 1.0, 0.0, 0.25), *texts)  # all masked: a length shows once
    assert {len(example.texts[0].split()) for example in drawn} == {1, 2, 3, 4, 5, 6}


def test_copies_are_new_and_the_seed_decides_them():
    settings = AugmentationSettings(20)
    first, again, other = (copies(settings, "the good film", "the dull story", seed=s) for s in (0, 0, 1))
    assert first == again != other
    texts = [example.texts for example in first]
    assert len(set(texts)) == len(texts)
    assert ("the good film",) not in texts
    assert not copies(AugmentationSettings(0), LONG)


def test_both_texts_of_a_pair_are_changed():
    made = augment([Example((LONG, LONG), 0.0)], tag, ENGLISH, "[MASK]", AugmentationSettings(1, 0.1, 0.1, 0.0), 0)
    first, second = made[0].texts
    assert LONG not in (first, second)
    assert first != second


@pytest.mark.parametrize("changes", [{"copies": -1}, {"mask_probability": 1.5}, {"replace_probability": 0.95}])
def test_settings_outside_their_range_are_refused(changes):
    with pytest.raises(ConfigurationError):
        AugmentationSettings(**changes)


def test_spans_are_pieces_of_the_text():
    text = " ".join(str(i) for i in range(40))
    made = random_spans(examples(text, "one", "ab"), 50, seed=0)
    long = [example.texts[0] for example in made if re.match(r"\d", example.texts[0])]
    assert all(f" {span} " in f" {text} " for span in long)
    lengths = {len(span.split()) for span in long}
    assert min(lengths) == 2
    assert max(lengths) == 16
    assert len({example.texts for example in made}) == len(made)
    assert all(example.label is None for example in made)
    chinese = [example.texts[0] for example in random_spans(examples("交通便利酒店位于商业中心"), 10, seed=0)]
    assert chinese
    assert all(span in "交通便利酒店位于商业中心" for span in chinese)


def test_english_is_tagged_from_a_lexicon_where_no_model_is_installed():
    pytest.importorskip("lemminflect")
    _, tagger = find_tagger(ENGLISH, "lemminflect")
    tags = dict(tagger("Films tell the warmest stories, don't they?"))
    assert tags["Films"] == "NNS|VBZ"
    assert tags["stories"] == "NNS"
    assert tags["warmest"] == "JJS"
    assert tags["the"] == tags[","] == ""
    assert "don't" in tags


def test_chinese_is_tagged_and_joined_without_spaces():
    pytest.importorskip("jieba")
    text = "酒店很好，房间很大"
    name, tagger = find_tagger(CHINESE, "jieba")
    assert name == "jieba"
    words = tagger(text)
    assert "".join(word for word, _ in words) == text
    assert dict(words)["酒店"] == "n"
    assert dict(words)["，"] == ""
    made = augment([Example((text,), 1.0)], tagger, CHINESE, "[MASK]", AugmentationSettings(30, 0.3, 0.3, 0.0), 0)
    assert made
    assert all(" " not in example.texts[0] for example in made)


def test_the_language_is_read_off_the_text():
    assert guess_language(["a warm film", "dull"]) == ENGLISH
    assert guess_language(["很快，包装很好 OK"]) == CHINESE
    assert guess_language([]) == ENGLISH


def test_a_tagger_that_is_not_there_is_named_with_its_remedy(monkeypatch):
    with pytest.raises(ConfigurationError, match="jieba"):
        find_tagger(ENGLISH, "jieba")
    with pytest.raises(ConfigurationError, match="latin"):
        find_tagger("latin")
    monkeypatch.setitem(__import__("sys").modules, "spacy", None)
    with pytest.raises(MissingDependencyError, match="spacy download zh_core_web_sm"):
        find_tagger(CHINESE, "spacy")
