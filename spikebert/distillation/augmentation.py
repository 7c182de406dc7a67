"""More text for the teacher to label, made from a task's own training text.

`augment` is the recipe of Tang et al. (arXiv 1903.12136) that SpikeBERT follows (section 3.3.2 of arXiv 2308.15122):
words are masked, or replaced by another of the same part of speech, and now and then an n-gram stands for all.
`random_spans` cuts longer pieces, phrases as SST-2's own training set has them. Whatever is made has no label.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spikebert.data import Example
from spikebert.distillation.part_of_speech import CHINESE, TaggedWord, Tagger
from spikebert.errors import ConfigurationError

LONGEST_NGRAM = 5
SHORTEST_SPAN, LONGEST_SPAN = 2, 16


@dataclass(frozen=True)
class AugmentationSettings:
    """How texts are changed; the probabilities are those of section 4.2.

    Parameters
    ----------
    copies : int
        Changed copies of each text that are tried; those that come out like a text that is there are left out.
    mask_probability, replace_probability : float
        Of each word: to become the mask token, or another word of the same part of speech.
    ngram_probability : float
        Of each text: to be cut to an n-gram of 1 to 5 words afterwards.

    Raises
    ------
    ConfigurationError
        A value is not allowed.
    """

    copies: int = 1
    mask_probability: float = 0.1
    replace_probability: float = 0.1
    ngram_probability: float = 0.25

    def __post_init__(self) -> None:
        """Check every value."""
        if self.copies < 0:
            raise ConfigurationError(f"copies is {self.copies}; it must be 0 or more")
        for name in ("mask_probability", "replace_probability", "ngram_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigurationError(f"{name} is {getattr(self, name)}; it must lie in [0, 1]")
        if self.mask_probability + self.replace_probability > 1:
            raise ConfigurationError("mask_probability and replace_probability are more than 1 together; lower one")


def augment(
    examples: Sequence[Example],
    tagger: Tagger,
    language: str,
    mask_token: str,
    settings: AugmentationSettings,
    seed: int,
) -> list[Example]:
    """Return changed copies of `examples`, without labels.

    Parameters
    ----------
    examples : sequence of Example
        The training set; words for replacement come from it, as often as they stand in it.
    tagger, language
        See `spikebert.distillation.part_of_speech.find_tagger`.
    mask_token : str
        What a masked word becomes.
    settings : AugmentationSettings
        How many, and how.
    seed : int
        Of all that is drawn.
    """
    generator = np.random.default_rng(seed)
    tagged = [tuple(tagger(text) for text in example.texts) for example in examples]
    words_by_tag: dict[str, list[str]] = defaultdict(list)
    for texts in tagged:
        for word, tag in (word for text in texts for word in text):
            words_by_tag[tag].append(word)
    seen = {example.texts for example in examples}
    made = []
    for _ in range(settings.copies):
        for texts in tagged:
            changed = tuple(
                _join(_changed(text, words_by_tag, mask_token, settings, generator), language) for text in texts
            )
            if changed not in seen and all(changed):
                seen.add(changed)
                made.append(Example(changed, None))
    return made


def random_spans(examples: Sequence[Example], copies: int, seed: int) -> list[Example]:
    """Return `copies` pieces of 2 to 16 words in a row of each text, without labels; each piece once.

    Both texts of a pair are cut. Text that is written without spaces is cut by the character.
    """
    generator = np.random.default_rng(seed)
    seen = {example.texts for example in examples}
    made = []
    for _ in range(copies):
        for example in examples:
            texts = tuple(_random_span(text, generator) for text in example.texts)
            if texts not in seen and all(texts):
                seen.add(texts)
                made.append(Example(texts, None))
    return made


def _random_span(text: str, generator: np.random.Generator) -> str:
    words = text.split()
    separator = " "
    if len(words) < SHORTEST_SPAN:
        words, separator = list(text), ""
    longest = min(len(words), LONGEST_SPAN)
    if longest < SHORTEST_SPAN:
        return text
    length = int(generator.integers(SHORTEST_SPAN, longest + 1))
    start = int(generator.integers(0, len(words) - length + 1))
    return separator.join(words[start : start + length])


def _changed(
    words: list[TaggedWord],
    words_by_tag: dict[str, list[str]],
    mask_token: str,
    settings: AugmentationSettings,
    generator: np.random.Generator,
) -> list[str]:
    draws = generator.random(len(words))
    changed = []
    for (word, tag), draw in zip(words, draws, strict=True):
        if draw < settings.mask_probability:
            changed.append(mask_token)
        elif draw < settings.mask_probability + settings.replace_probability and tag:
            candidates = words_by_tag[tag]
            changed.append(candidates[int(generator.integers(len(candidates)))])
        else:
            changed.append(word)
    if changed and generator.random() < settings.ngram_probability:
        length = min(int(generator.integers(1, LONGEST_NGRAM + 1)), len(changed))
        start = int(generator.integers(0, len(changed) - length + 1))
        changed = changed[start : start + length]
    return changed


def _join(words: list[str], language: str) -> str:
    # BERT's tokenizers split punctuation off whether or not a space stands before it
    return ("" if language == CHINESE else " ").join(words)
