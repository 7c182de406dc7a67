"""More text for the teacher to label, made from a task's own training text.

`augment` is the recipe of Tang et al. (arXiv 1903.12136) that SpikeBERT follows (section 3.3.2 of arXiv 2308.15122):
words are masked, or replaced by another of the same part of speech, and now and then an n-gram stands for all.
`random_spans` cuts longer pieces, phrases as SST-2's own training set has them. Whatever is made has no label.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from spikebert.data import Example
from spikebert.distillation.part_of_speech import CHINESE, TaggedWord, Tagger
from spikebert.distillation.settings import AugmentationSettings

LONGEST_NGRAM = 5
SHORTEST_SPAN, LONGEST_SPAN = 2, 16


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
