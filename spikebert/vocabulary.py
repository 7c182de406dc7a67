"""Pruning of a WordPiece vocabulary, so that a small model need not carry rows it can never or hardly use.

A multilingual-minded English BERT spends 8 % of its embedding table on placeholders and on letters of scripts that
English text does not contain. Without them, text in the Latin script is tokenized exactly as before: WordPiece takes
the longest token that matches, and no token that is dropped can match it. A vocabulary can also be cut to the tokens
that some texts use most; words whose token is gone are then written with shorter ones.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from spikebert.errors import ConfigurationError

COUNTING_BATCH_SIZE = 1000  # texts tokenized at a time

_PLACEHOLDER = re.compile(r"\[unused\d+\]")


def is_foreign(token: str, prefix: str = "##") -> bool:
    """Return whether a token is a placeholder or contains a letter, mark or digit from outside the Latin script."""
    if _PLACEHOLDER.fullmatch(token):
        return True
    return any(_is_foreign_character(character) for character in token.removeprefix(prefix))


def _is_foreign_character(character: str) -> bool:
    category = unicodedata.category(character)
    if category[0] == "L":
        return not unicodedata.name(character, "").startswith("LATIN")
    return category[0] == "M" or (category == "Nd" and not character.isascii())


def prune_vocabulary(tokenizer: PreTrainedTokenizerBase) -> tuple[PreTrainedTokenizerFast, Tensor]:
    """Drop placeholders and foreign tokens from a WordPiece tokenizer.

    Words made of dropped letters become the unknown token. Everything else keeps its tokens, in the same order, under
    new ids.

    Returns
    -------
    tokenizer : PreTrainedTokenizerFast
        The pruned one, without the truncation and padding the original may have had set.
    kept : Tensor
        ``(V,)``, the old id of each new one: ``table[kept]`` is the matching embedding table.

    Raises
    ------
    ConfigurationError
        The tokenizer is not a WordPiece tokenizer of the ``tokenizers`` library.
    """
    state = _word_piece_state(tokenizer)
    prefix = state["model"]["continuing_subword_prefix"]
    special = set(tokenizer.all_special_tokens)
    kept = {token for token in state["model"]["vocab"] if token in special or not is_foreign(token, prefix)}
    return _keep(tokenizer, state, kept)


def cut_vocabulary(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], size: int
) -> tuple[PreTrainedTokenizerFast, Tensor]:
    """Keep the `size` tokens of a WordPiece tokenizer that `texts` use most.

    Special tokens and single Latin characters are kept whatever the texts say, so that every Latin word can still be
    written.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        Not changed.
    texts : iterable of str
        What is counted; nothing that a model will be scored on.
    size : int
        At most as many tokens are kept.

    Returns
    -------
    tokenizer, kept
        As `prune_vocabulary` returns.

    Raises
    ------
    ConfigurationError
        The tokenizer is not a WordPiece tokenizer, or `size` has no room for what must be kept.
    """
    state = _word_piece_state(tokenizer)
    vocabulary, prefix = state["model"]["vocab"], state["model"]["continuing_subword_prefix"]
    special = set(tokenizer.all_special_tokens)
    kept = {
        token
        for token in vocabulary
        if token in special or (len(token.removeprefix(prefix)) == 1 and not is_foreign(token, prefix))
    }
    if size < len(kept):
        raise ConfigurationError(
            f"a vocabulary of {size} tokens has no room for the {len(kept)} special tokens and single characters that "
            "every text needs; choose a larger one"
        )
    counts: Counter[int] = Counter()
    all_texts = list(texts)
    for start in range(0, len(all_texts), COUNTING_BATCH_SIZE):
        for ids in tokenizer(all_texts[start : start + COUNTING_BATCH_SIZE], add_special_tokens=False)["input_ids"]:
            counts.update(ids)
    for token in tokenizer.convert_ids_to_tokens([index for index, _ in counts.most_common()]):
        if len(kept) == size:
            break
        kept.add(token)
    return _keep(tokenizer, state, kept & vocabulary.keys())


def _word_piece_state(tokenizer: PreTrainedTokenizerBase) -> dict:
    """Return the tokenizer's own description of itself."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = json.loads(backend.to_str()) if backend is not None else {}
    model = state.get("model", {})
    if model.get("type") != "WordPiece":
        raise ConfigurationError(
            f"only a WordPiece vocabulary can be pruned, this one is {model.get('type', type(tokenizer).__name__)}; "
            "keep the whole vocabulary"
        )
    return state


def _keep(tokenizer: PreTrainedTokenizerBase, state: dict, kept: set[str]) -> tuple[PreTrainedTokenizerFast, Tensor]:
    """Return a tokenizer with the `kept` tokens only, in the same order, and the old id of each new one."""
    model = state["model"]
    old_ids = sorted((old, token) for token, old in model["vocab"].items() if token in kept)
    model["vocab"] = {token: new for new, (_, token) in enumerate(old_ids)}
    state["added_tokens"] = [
        {**added, "id": model["vocab"][added["content"]]}
        for added in state["added_tokens"]
        if added["content"] in model["vocab"]
    ]
    _renumber(state["post_processor"], model["vocab"])
    state["truncation"] = state["padding"] = None
    pruned = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        model_max_length=tokenizer.model_max_length,
        model_input_names=["input_ids", "attention_mask"],  # a student has no token types
        **{name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)},
    )
    return pruned, torch.tensor([old for old, _ in old_ids])


def _renumber(post_processor: dict | None, vocabulary: dict[str, int]) -> None:
    """Write the new ids of special tokens into the step that puts them around a sentence."""
    if post_processor is None:
        return
    for entry in post_processor.get("special_tokens", {}).values():  # TemplateProcessing
        entry["ids"] = [vocabulary[token] for token in entry["tokens"]]
    for end in ("sep", "cls"):  # BertProcessing: [token, id]
        if end in post_processor:
            post_processor[end][1] = vocabulary[post_processor[end][0]]
