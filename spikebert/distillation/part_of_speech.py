"""Part-of-speech tags for data augmentation, from maintained taggers chosen by name.

spaCy and NLTK tag in context and need a model of their own on this machine. Where there is none, two packages that
carry their data do: lemminflect's lexicon for English, and jieba's tagger for Chinese.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

from spikebert.errors import ConfigurationError, MissingDependencyError

ENGLISH, CHINESE = "english", "chinese"
LANGUAGES = (ENGLISH, CHINESE)
TAGGERS = {ENGLISH: ("spacy", "nltk", "lemminflect"), CHINESE: ("spacy", "jieba")}  # the better first
SPACY_MODELS = {ENGLISH: "en_core_web_sm", CHINESE: "zh_core_web_sm"}
HOW_TO_GET = {
    "spacy": "pip install spacy && python -m spacy download {model}",
    "nltk": "pip install nltk && python -m nltk.downloader averaged_perceptron_tagger_eng",
    "lemminflect": "pip install lemminflect",
    "jieba": "pip install jieba",
}

_WORD = re.compile(r"\w+(?:[-'’]\w+)*|[^\w\s]")
_HAN = re.compile(r"[一-鿿]")

TaggedWord = tuple[str, str]  # the word, and its tag; "" where the tagger has none
Tagger = Callable[[str], list[TaggedWord]]


def guess_language(texts: list[str]) -> str:
    """Return the language of some texts: Chinese where at least a tenth of their characters are Han, else English."""
    text = "".join(texts)
    return CHINESE if len(_HAN.findall(text)) * 10 >= max(len(text), 1) else ENGLISH


def find_tagger(language: str, name: str | None = None) -> tuple[str, Tagger]:
    """Return a tagger and its name: the one asked for, else the best that is installed with its model.

    Raises
    ------
    ConfigurationError
        There is no tagger of that name for the language.
    MissingDependencyError
        It, or every tagger for the language, is not installed; the message says how to get it.
    """
    if language not in LANGUAGES:
        raise ConfigurationError(f"language {language!r} is not known; choose one of {', '.join(LANGUAGES)}")
    names = TAGGERS[language] if name is None else (name,)
    if name is not None and name not in TAGGERS[language]:
        raise ConfigurationError(f"tagger {name!r} does not tag {language}; choose one of {TAGGERS[language]}")
    makers = {"spacy": _spacy, "nltk": _nltk, "lemminflect": _lemminflect, "jieba": _jieba}
    for candidate in names:
        try:
            return candidate, makers[candidate](language)
        except (ImportError, LookupError, OSError):  # the package, or its model
            continue
    ways = "; or ".join(HOW_TO_GET[n].format(model=SPACY_MODELS[language]) for n in names)
    raise MissingDependencyError(f"no part-of-speech tagger for {language} is installed: {ways}")


def split_words(text: str) -> list[str]:
    """Split a text of a language that is written with spaces into words and punctuation marks."""
    return _WORD.findall(text)


def _spacy(language: str) -> Tagger:
    import spacy

    pipeline = spacy.load(SPACY_MODELS[language], disable=["parser", "ner", "lemmatizer"])
    return lambda text: [(token.text, token.tag_) for token in pipeline(text) if not token.is_space]


def _nltk(language: str) -> Tagger:
    import nltk

    nltk.pos_tag(["word"])  # LookupError now, not in the middle, where its model is missing
    return lambda text: nltk.pos_tag(split_words(text))


def _lemminflect(language: str) -> Tagger:
    """Tag by lexicon: a word's tag is the set of all Penn tags its form can have, e.g. ``NNS|VBZ`` for ``films``.

    The lexicon has nouns, verbs, adjectives and adverbs; other words get no tag and are never replaced.
    """
    import lemminflect

    @cache
    def tag(word: str) -> str:
        tags = set()
        for part, lemmas in lemminflect.getAllLemmas(word).items():
            for lemma in lemmas:
                forms = lemminflect.getAllInflections(lemma, upos=part)
                tags |= {penn for penn, spellings in forms.items() if word in spellings}
        return "|".join(sorted(tags))

    tag("word")
    return lambda text: [(word, tag(word.lower())) for word in split_words(text)]


def _jieba(language: str) -> Tagger:
    import logging

    import jieba
    import jieba.posseg

    jieba.setLogLevel(logging.WARNING)
    punctuation = "x"
    return lambda text: [(w.word, "" if w.flag == punctuation else w.flag) for w in jieba.posseg.cut(text)]
