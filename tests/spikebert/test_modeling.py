"""The model's promise: it is the paper's architecture, a sentence does not see its batch, and Hugging Face knows it.

The architecture is written out below a second time, in the plainest form: one sentence, one time step, one head at a
time, with neither a batch nor a mask. In float64 its spikes must be the model's.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from spikebert.configuration import SpikeBertConfig
from spikebert.errors import ConfigurationError
from spikebert.modeling import SpikeBertForSequenceClassification, SpikeBertModel
from spikebert.neuron import NEURON_PRESETS
from spikebert.surrogate import SURROGATES

LOGITS_TOLERANCE = 1e-12  # the promise, in float64
SHAPE = {
    "vocab_size": 20,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 24,
    "num_labels": 3,
}
HEAD_SIZE = 8
BLOCK_NODES = {  # and their features
    "qkv_neuron": 48,
    "attention_neuron": 16,
    "projection_neuron": 16,
    "intermediate_neuron": 24,
    "output_neuron": 16,
}


def lively_model(seed: int = 0, **changes: Any) -> SpikeBertForSequenceClassification:
    """Return a model in float64 whose weights are all random, so that most neurons fire now and then."""
    model = SpikeBertForSequenceClassification(SpikeBertConfig(**{**SHAPE, **changes})).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre, width = (2.0 if name.endswith("weight") else 0.0, 1.0) if ".norm." in name else (0.0, 0.5)
            parameter.copy_(centre + width * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def random_sentences(seed: int, lengths: list[int]) -> list[Tensor]:
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.integers(0, SHAPE["vocab_size"], length)) for length in lengths]


def padded(sentences: list[Tensor], width: int, padding: int = 0) -> tuple[Tensor, Tensor]:
    ids = torch.full((len(sentences), width), padding)
    mask = torch.zeros(len(sentences), width, dtype=torch.int64)
    for row, sentence in enumerate(sentences):
        ids[row, : len(sentence)] = sentence
        mask[row, : len(sentence)] = 1
    return ids, mask


@torch.no_grad()
def answer(model: Any, ids: Tensor, mask: Tensor | None = None) -> Any:
    return model(ids, attention_mask=mask, output_spikes=True, output_membrane_potentials=True)


# --- the architecture, a second time


def step(fired: Tensor, distance: Tensor) -> Tensor:
    """Return 1 where fired, with the arctangent's surrogate gradient for alpha = 2: that of atan(pi x) / pi."""
    soft = torch.atan(torch.pi * distance) / torch.pi
    return torch.where(fired, 1.0, 0.0).double() + (soft - soft.detach())


class PlainNeurons:
    """Neurons of one node, a step at a time, in one of four forms."""

    def __init__(self, preset: str, threshold: float) -> None:
        self.preset, self.threshold = preset, threshold
        self.potential: Tensor | float = 0.0
        self.spikes: Tensor | float = 0.0

    def step(self, current: Tensor) -> Tensor:
        if self.preset == "published":
            self.potential = self.potential + (current - self.potential) / 2.0
        elif self.preset == "loihi":
            self.potential = current + (3686 / 4096) * self.potential
        else:
            self.potential = current + 0.9 * self.potential - self.threshold * self.spikes
        fires_on_equal = self.preset in ("paper", "published")
        fired = (self.potential > self.threshold) | (fires_on_equal & (self.potential == self.threshold))
        spikes = step(fired, self.potential - self.threshold)
        self.spikes = spikes.detach()
        if self.preset in ("published", "loihi"):
            self.potential = torch.where(fired, 0.0, self.potential)
        return spikes


def plain_layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias


def plain_attention(query: Tensor, key: Tensor, value: Tensor, order: str) -> Tensor:
    """Return the integers of QK^T V for one head, by either order of the products, or as autograd can walk back."""
    if order == "differentiable":
        return query @ key.T @ value
    query, key, value = query.long(), key.long(), value.long()
    if order == "scores first":
        scores = torch.stack([torch.stack([(q & k).sum() for k in key]) for q in query])
        return torch.stack([sum(score * v for score, v in zip(row, value, strict=True)) for row in scores])
    pairs = sum(torch.outer(k, v) for k, v in zip(key, value, strict=True))
    return torch.stack([(q.unsqueeze(1) * pairs).sum(0) for q in query])


def plain_spikebert(
    weights: dict[str, Tensor], preset: str, embedding_neuron: str, sentence: Tensor, steps: int, order: str
) -> tuple[dict[str, Tensor], Tensor]:
    """Return spikes (T, N, D) by node, and logits, of SpikeBERT as section 3.2 of arXiv 2308.15122 describes it."""
    nodes: dict[str, PlainNeurons] = {}
    spikes: dict[str, list[Tensor]] = {}
    step_logits = []

    def fire(name: str, current: Tensor, threshold: float = 1.0) -> Tensor:
        fired = nodes.setdefault(name, PlainNeurons(preset, threshold)).step(current)
        spikes.setdefault(name, []).append(fired)
        return fired

    def linear(path: str, x: Tensor) -> Tensor:
        return torch.stack([weights[f"{path}.weight"] @ token + weights[f"{path}.bias"] for token in x])

    def norm(path: str, x: Tensor, part: slice = slice(None)) -> Tensor:
        return plain_layer_norm(x, weights[f"{path}.weight"][part], weights[f"{path}.bias"][part])

    for _ in range(steps):
        words = weights["spikebert.embeddings.word_embeddings.weight"]
        x = words[sentence]
        before = [None, *sentence.tolist()[:-1]]
        if "spikebert.embeddings.previous_word_embeddings.weight" in weights:
            table = weights["spikebert.embeddings.previous_word_embeddings.weight"]
            x = x + torch.stack([table[0 if word is None else word] for word in before])  # 0 is the padding
        if "spikebert.embeddings.previous_word_projection.weight" in weights:
            projection = weights["spikebert.embeddings.previous_word_projection.weight"]
            x[1:] = x[1:] + torch.stack([projection @ words[word] for word in before[1:]])
        if "spikebert.embeddings.position_embeddings.weight" in weights:
            x = x + weights["spikebert.embeddings.position_embeddings.weight"][: len(sentence)]
        if "spikebert.embeddings.norm.weight" in weights:
            x = norm("spikebert.embeddings.norm", x)
        if embedding_neuron == "lif":
            x = fire("embedding_neuron", x)
        else:
            x = step((x > 0) | ((x == 0) & (preset in ("paper", "published"))), x)
            spikes.setdefault("embedding_neuron", []).append(x)
        for block in range(SHAPE["num_hidden_layers"]):
            path, name = f"spikebert.blocks.{block}", f"block{block:02d}"
            if f"{path}.attention.qkv.affine.weight" in weights:
                qkv = linear(f"{path}.attention.qkv.affine", x)
                width = qkv.shape[1] // 3
                parts = [slice(which * width, (which + 1) * width) for which in range(3)]
                qkv = torch.cat([norm(f"{path}.attention.qkv.norm", qkv[:, part], part) for part in parts], 1)
                qkv = fire(f"{name}_qkv_neuron", qkv)
                query, key, value = (qkv[:, part] for part in parts)
                heads = [slice(start, start + HEAD_SIZE) for start in range(0, width, HEAD_SIZE)]
                attended = [plain_attention(query[:, head], key[:, head], value[:, head], order) for head in heads]
                attended = fire(f"{name}_attention_neuron", torch.cat(attended, 1) * 0.125, 0.25)
                attended = norm(
                    f"{path}.attention.projection.norm", linear(f"{path}.attention.projection.affine", attended)
                )
                x = x + fire(f"{name}_projection_neuron", attended)
            hidden = norm(f"{path}.intermediate.norm", linear(f"{path}.intermediate.affine", x))
            hidden = fire(f"{name}_intermediate_neuron", hidden)
            hidden = norm(f"{path}.output.norm", linear(f"{path}.output.affine", hidden))
            x = x + fire(f"{name}_output_neuron", hidden)
        mean = norm("spikebert.final_norm", x).sum(0) / len(sentence)
        step_logits.append(weights["classifier.weight"] @ mean + weights["classifier.bias"])
    return {name: torch.stack(train) for name, train in spikes.items()}, sum(step_logits) / steps


ARCHITECTURES = [
    (*chosen, "spiking")
    for chosen in itertools.product(NEURON_PRESETS, ["heaviside", "lif"], ["none", "absolute"], [False, True])
] + [("paper", "heaviside", "none", False, "none"), ("loihi", "lif", "absolute", True, "none")]


@pytest.mark.parametrize(("preset", "embedding_neuron", "positions", "embedding_norm", "attention"), ARCHITECTURES)
def test_the_model_is_the_architecture_written_out(preset, embedding_neuron, positions, embedding_norm, attention):
    """Spikes identical, logits within 1e-12, for sentences shorter and longer than a head is wide."""
    model = lively_model(
        1,
        neuron=preset,
        embedding_neuron=embedding_neuron,
        position_embedding_type=positions,
        embedding_norm=embedding_norm,
        attention=attention,
        time_steps=3,
    )
    rates: dict[str, list[float]] = {}
    for length, order in ((HEAD_SIZE - 3, "scores first"), (HEAD_SIZE + 3, "keys and values first")):
        (sentence,) = random_sentences(length, [length])
        found = answer(model, sentence.unsqueeze(0))
        spikes, logits = plain_spikebert(model.state_dict(), preset, embedding_neuron, sentence, 3, order)
        assert list(found.spikes) == list(spikes)
        for name, expected in spikes.items():
            assert torch.equal(found.spikes[name][:, 0], expected), name
            rates.setdefault(name, []).append(expected.mean().item())
        assert (found.logits[0] - logits).abs().max() <= LOGITS_TOLERANCE
    for name, rate in rates.items():
        assert 0 < sum(rate) < 2, f"{name} proves nothing: all or none of its neurons fire"


@pytest.mark.parametrize("previous_word", ["projected", "table"])
def test_the_word_before_is_embedded_too(previous_word):
    model = lively_model(
        21, previous_word=previous_word, position_embedding_type="absolute", embedding_neuron="lif", time_steps=3
    )
    (sentence,) = random_sentences(21, [7])
    found = answer(model, sentence.unsqueeze(0))
    spikes, logits = plain_spikebert(model.state_dict(), "paper", "lif", sentence, 3, "scores first")
    for name, expected in spikes.items():
        assert torch.equal(found.spikes[name][:, 0], expected), name
    assert (found.logits[0] - logits).abs().max() <= LOGITS_TOLERANCE
    turned = answer(model, sentence.flip(0).unsqueeze(0))
    assert not torch.equal(turned.spikes["embedding_neuron"].flip(2), found.spikes["embedding_neuron"])


@pytest.mark.parametrize("length", [1, HEAD_SIZE - 1, HEAD_SIZE, HEAD_SIZE + 1, 3 * HEAD_SIZE])
def test_both_orders_of_the_attention_product_give_the_models_integers(length):
    """Whichever is cheaper is taken: (QK^T)V up to the head size in tokens, Q(K^T V) above."""
    model = lively_model(2)
    (sentence,) = random_sentences(length, [length])
    found = answer(model, sentence.unsqueeze(0))
    query, key, value = found.spikes["block00_qkv_neuron"][0, 0].chunk(3, dim=-1)
    current = found.membrane_potentials["block00_attention_neuron"][0, 0]  # of the first step, where nothing decayed
    for start in range(0, SHAPE["hidden_size"], HEAD_SIZE):
        head = slice(start, start + HEAD_SIZE)
        products = [
            plain_attention(query[:, head], key[:, head], value[:, head], order)
            for order in ("scores first", "keys and values first")
        ]
        assert torch.equal(products[0], products[1])
        assert torch.equal(current[:, head], products[0] * 0.125)
    assert length == 1 or current.any()


# --- batches and padding


@pytest.mark.parametrize(
    ("positions", "previous_word"), [("none", "none"), ("absolute", "table"), ("none", "projected")]
)
@pytest.mark.parametrize("preset", ["paper", "loihi"])
@given(
    seed=st.integers(0, 2**32 - 1),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    more=st.integers(0, 12),
    garbage=st.integers(0, SHAPE["vocab_size"] - 1),
)
@settings(deadline=None, max_examples=12)
def test_a_sentence_does_not_see_its_batch_its_padding_or_what_stands_there(
    preset, positions, previous_word, seed, lengths, more, garbage
):
    """In float64, as the issue promises: spikes identical, logits within 1e-12; padding never spikes."""
    model = lively_model(3, neuron=preset, position_embedding_type=positions, previous_word=previous_word)
    sentences = random_sentences(seed, lengths)
    ids, mask = padded(sentences, max(lengths) + more)
    wild = torch.where(mask == 1, ids, torch.from_numpy(np.random.default_rng(seed).integers(0, 20, ids.shape)))
    for batch in (ids, torch.where(mask == 1, ids, garbage), wild):
        together = answer(model, batch, mask)
        for row, sentence in enumerate(sentences):
            alone = answer(model, sentence.unsqueeze(0))
            assert (together.logits[row] - alone.logits[0]).abs().max() <= LOGITS_TOLERANCE
            for name, spikes in alone.spikes.items():
                assert torch.equal(together.spikes[name][:, row, : len(sentence)], spikes[:, 0]), name
                assert not together.spikes[name][:, row, len(sentence) :].any(), name


def test_padding_may_stand_anywhere_where_there_are_no_positions():
    model = lively_model(4, position_embedding_type="none")
    (sentence,) = random_sentences(4, [5])
    places = torch.tensor([1, 2, 4, 5, 8])
    ids, mask = torch.full((1, 9), 7), torch.zeros(1, 9)
    ids[0, places], mask[0, places] = sentence, 1
    alone, scattered = answer(model, sentence.unsqueeze(0)), answer(model, ids, mask)
    assert (alone.logits - scattered.logits).abs().max() <= LOGITS_TOLERANCE
    for name, spikes in alone.spikes.items():
        assert torch.equal(scattered.spikes[name][:, :, places], spikes), name


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.int64, torch.float32])
def test_a_mask_may_have_any_type(dtype):
    model = lively_model(5)
    ids, mask = padded(random_sentences(5, [3, 6]), 6)
    assert torch.equal(answer(model, ids, mask.to(dtype)).logits, answer(model, ids, mask).logits)


def test_a_mask_of_ones_is_no_mask():
    model = lively_model(6)
    ids, mask = padded(random_sentences(6, [6, 6]), 6)
    assert torch.equal(answer(model, ids, mask).logits, answer(model, ids).logits)


def test_attend_to_padding_makes_padding_ordinary_tokens():
    ids, mask = padded(random_sentences(7, [4]), 7)
    attending = answer(lively_model(7, attend_to_padding=True), ids, mask)
    masking = lively_model(7)
    as_tokens = answer(masking, ids)
    assert torch.equal(attending.logits, as_tokens.logits)
    assert all(torch.equal(attending.spikes[name], spikes) for name, spikes in as_tokens.spikes.items())
    assert attending.spikes["block00_qkv_neuron"][:, :, 4:].any()
    assert (attending.logits - answer(masking, ids, mask).logits).abs().max() > 1e-3


# --- what it records


def test_nodes_are_recorded_by_name_in_the_order_they_run():
    model = lively_model(8, time_steps=5)
    ids, mask = padded(random_sentences(8, [4, 6]), 6)
    found = answer(model, ids, mask)
    features = {"embedding_neuron": 16}
    for block in range(2):
        features.update({f"block{block:02d}_{name}": width for name, width in BLOCK_NODES.items()})
    for recorded in (found.spikes, found.membrane_potentials):
        assert list(recorded) == list(features)
        assert {name: value.shape for name, value in recorded.items()} == {
            name: (5, 2, 6, width) for name, width in features.items()
        }
    quiet = model(ids, attention_mask=mask)
    assert quiet.spikes is None
    assert quiet.membrane_potentials is None
    assert quiet.hidden_states is None
    assert torch.equal(quiet.logits, found.logits)


@pytest.mark.parametrize("embedding_neuron", ["heaviside", "lif"])
@pytest.mark.parametrize("preset", list(NEURON_PRESETS))
def test_spikes_are_where_the_recorded_potentials_reach_the_threshold(preset, embedding_neuron):
    model = lively_model(9, neuron=preset, embedding_neuron=embedding_neuron)
    ids, mask = padded(random_sentences(9, [12, 3]), 12)
    found = answer(model, ids, mask)
    ties = 0
    for name, potentials in found.membrane_potentials.items():
        threshold = 0.25 if name.endswith("attention_neuron") else 1.0
        if name == "embedding_neuron" and embedding_neuron == "heaviside":
            threshold = 0.0
        reached = potentials >= threshold if preset in ("paper", "published") else potentials > threshold
        assert torch.equal(found.spikes[name] == 1, reached & (mask == 1)[None, :, :, None]), name
        assert bool(((found.spikes[name] == 0) | (found.spikes[name] == 1)).all())
        ties += int((potentials == threshold).sum())
    assert ties > 0


def test_hidden_states_are_small_integers():
    """Behind M blocks the residual stream is a sum of 1 + 2 M spikes."""
    model = lively_model(10)
    ids, _ = padded(random_sentences(10, [7]), 7)
    found = model.spikebert(ids, output_hidden_states=True)
    assert len(found.hidden_states) == 3
    assert torch.equal(found.hidden_states[-1], found.last_hidden_state)
    for block, state in enumerate(found.hidden_states):
        assert torch.equal(state, state.round())
        assert state.min() >= 0
        assert 1 <= state.max() <= 1 + 2 * block
    assert torch.equal(model(ids, output_hidden_states=True).hidden_states[1], found.hidden_states[1])


def test_logits_are_the_mean_of_the_steps():
    found = lively_model(11)(padded(random_sentences(11, [7, 7]), 7)[0])
    assert found.step_logits.shape == (4, 2, 3)
    torch.testing.assert_close(found.logits, sum(found.step_logits) / 4, rtol=0, atol=1e-15)


# --- losses and training


def test_labels_give_a_cross_entropy():
    model, (ids, _) = lively_model(12), padded(random_sentences(12, [5, 5, 5]), 5)
    found = model(ids, labels=torch.tensor([2, 0, 1]))
    shares = found.logits.exp() / found.logits.exp().sum(-1, keepdim=True)
    expected = -(shares[0, 2].log() + shares[1, 0].log() + shares[2, 1].log()) / 3
    torch.testing.assert_close(found.loss, expected, rtol=1e-12, atol=0)
    assert model(ids).loss is None


def test_one_label_gives_a_mean_squared_error():
    model, (ids, _) = lively_model(13, num_labels=1), padded(random_sentences(13, [5, 5]), 5)
    found = model(ids, labels=torch.tensor([2.5, -1.0]))
    assert found.logits.shape == (2, 1)
    expected = ((found.logits[0, 0] - 2.5) ** 2 + (found.logits[1, 0] + 1) ** 2) / 2
    torch.testing.assert_close(found.loss, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("surrogate", ["arctangent", "sigmoid", "fast_sigmoid"])
@pytest.mark.parametrize("preset", list(NEURON_PRESETS))
def test_gradients_reach_every_parameter(preset, surrogate):
    """Those with tails; triangle and rectangle are 0 away from the threshold and may leave a neuron out."""
    assert surrogate in SURROGATES
    model = lively_model(
        14,
        neuron=preset,
        surrogate=surrogate,
        embedding_neuron="lif",
        embedding_norm=True,
        position_embedding_type="absolute",
        pad_token_id=None,
    ).train()
    ids = torch.arange(SHAPE["vocab_size"]).unsqueeze(0)
    model(ids, labels=torch.tensor([1])).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        rows = parameter.grad[: ids.shape[1]] if "embeddings" in name else parameter.grad
        assert rows.abs().sum() > 0, name
        if name.endswith("embeddings.weight"):
            assert rows.any(-1).all(), name


@pytest.mark.parametrize("lengths", [(HEAD_SIZE - 1, 3), (HEAD_SIZE + 2, 4)])
@pytest.mark.parametrize("embedding_neuron", ["heaviside", "lif"])
@pytest.mark.parametrize("preset", list(NEURON_PRESETS))
def test_gradients_are_autograds_of_the_architecture_written_out(preset, embedding_neuron, lengths):
    """Of a padded batch, against the sum over its sentences alone; both orders of the attention product occur."""
    model = lively_model(
        16,
        neuron=preset,
        embedding_neuron=embedding_neuron,
        embedding_norm=True,
        position_embedding_type="absolute",
        time_steps=3,
        pad_token_id=None,
    ).train()
    sentences = random_sentences(16, list(lengths))
    asked = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(16))
    ids, mask = padded(sentences, max(lengths), padding=9)
    (model(ids, attention_mask=mask).logits * asked).sum().backward()
    weights = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    for sentence, each in zip(sentences, asked, strict=True):
        _, logits = plain_spikebert(weights, preset, embedding_neuron, sentence, 3, "differentiable")
        (logits * each).sum().backward()
    for name, parameter in model.named_parameters():
        expected = weights[name].grad
        assert expected.abs().max() > 1e-4, name
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-9, atol=1e-11, msg=name)


def test_padding_has_no_gradient():
    model = lively_model(15, pad_token_id=None)
    ids, mask = padded([torch.tensor([3, 4, 5])], 6, padding=9)
    model(ids, attention_mask=mask, labels=torch.tensor([1])).loss.backward()
    rows = model.spikebert.embeddings.word_embeddings.weight.grad.any(-1).nonzero().flatten()
    assert rows.tolist() == [3, 4, 5]


def test_a_few_training_steps_reduce_the_loss():
    torch.manual_seed(0)
    model = SpikeBertForSequenceClassification(SpikeBertConfig(**SHAPE, initializer_range=0.5)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids, mask = padded(random_sentences(16, [5, 8, 3, 8, 6, 4]), 8)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = model(ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


# --- bad input


@pytest.mark.parametrize(
    ("ids", "mask", "complaint"),
    [
        ([[1, 20]], None, r"input_ids span 1 to 20; this model's vocabulary has ids 0 to 19"),
        ([[-1, 3]], None, r"input_ids span -1 to 3"),
        ([[1] * 25], None, r"25 tokens are more than the 24 positions"),
        ([1, 2, 3], None, r"input_ids has shape \(3,\); expected \(sentences, tokens\)"),
        ([[[1, 2]]], None, r"input_ids has shape \(1, 1, 2\)"),
        ([[], []], None, r"input_ids has shape \(2, 0\)"),
        ([[1.0, 2.0]], None, r"input_ids has type torch.float32"),
        ([[1, 2]], [[1, 1, 1]], r"attention_mask has shape \(1, 3\), input_ids \(1, 2\)"),
        ([[1, 2]], [1, 1], r"attention_mask has shape \(2,\)"),
        ([[1, 2], [3, 4]], [[1, 1], [0, 0]], r"a sentence has no token: its attention_mask is all zeros"),
    ],
)
def test_bad_input_is_refused_with_what_was_found(ids, mask, complaint):
    model = lively_model(17, position_embedding_type="absolute")
    ids = torch.tensor(ids)
    with pytest.raises(ConfigurationError, match=complaint):
        model(ids if ids.numel() else ids.long(), attention_mask=None if mask is None else torch.tensor(mask))


def test_a_mask_of_the_wrong_shape_is_refused_by_a_model_that_attends_to_padding_too():
    with pytest.raises(ConfigurationError, match="attention_mask has shape"):
        lively_model(17, attend_to_padding=True)(torch.tensor([[1, 2]]), attention_mask=torch.ones(1, 3))


@pytest.mark.parametrize(
    ("num_labels", "labels", "complaint"),
    [
        (3, [[0], [1]], r"labels has shape \(2, 1\); expected one for each of 2 sentences"),
        (3, [0, 1, 2], r"labels has shape \(3,\)"),
        (3, [0, 3], r"labels are \[0, 3\]; this model has classes 0 to 2"),
        (3, [0.5, 1.0], r"labels are \[0.5, 1.0\]; this model has classes 0 to 2"),
        (1, [[0.5], [1.0]], r"labels has shape \(2, 1\)"),
    ],
)
def test_bad_labels_are_refused(num_labels, labels, complaint):
    """Two columns against one would otherwise broadcast to a loss that means nothing."""
    with pytest.raises(ConfigurationError, match=complaint):
        lively_model(18, num_labels=num_labels)(torch.tensor([[1, 2], [3, 4]]), labels=torch.tensor(labels))


def test_without_positions_a_sentence_may_be_longer_than_max_position_embeddings():
    assert torch.isfinite(lively_model(19)(torch.ones(1, 40, dtype=torch.int64)).logits).all()


# --- Hugging Face


def test_a_saved_model_comes_back_bit_for_bit(tmp_path):
    torch.manual_seed(1)
    labels = {0: "no", 1: "perhaps", 2: "yes"}
    config = SpikeBertConfig(**SHAPE, id2label=labels, position_embedding_type="absolute")
    model = SpikeBertForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    on_disk = load_file(tmp_path / "model.safetensors")
    assert set(on_disk) == set(model.state_dict())
    assert all(torch.equal(on_disk[name], value) for name, value in model.state_dict().items())
    ids, mask = padded(random_sentences(20, [4, 7]), 7)
    expected = answer(model, ids, mask)
    for load in (SpikeBertForSequenceClassification, AutoModelForSequenceClassification):
        loaded = load.from_pretrained(tmp_path).eval()
        assert type(loaded) is SpikeBertForSequenceClassification
        assert loaded.config.id2label == labels
        assert loaded.config.label2id == {"no": 0, "perhaps": 1, "yes": 2}
        assert torch.equal(answer(loaded, ids, mask).logits, expected.logits)
    assert type(AutoConfig.from_pretrained(tmp_path)) is SpikeBertConfig
    encoder = AutoModel.from_pretrained(tmp_path).eval()
    assert type(encoder) is SpikeBertModel
    encoded = answer(encoder, ids, mask)
    assert all(torch.equal(encoded.spikes[name], spikes) for name, spikes in expected.spikes.items())


def test_a_setting_changed_while_loading_counts_and_is_checked(tmp_path):
    lively_model(21).float().save_pretrained(tmp_path)
    changed = SpikeBertForSequenceClassification.from_pretrained(tmp_path, time_steps=7)
    assert changed(torch.tensor([[1, 2]])).step_logits.shape[0] == 7
    for wrong, complaint in (
        ({"time_steps": 0}, "time_steps is 0"),
        ({"neuron": "lif"}, "neuron preset 'lif'"),
        ({"attention_scale": -1.0}, "attention_scale is -1.0"),
    ):
        with pytest.raises(ConfigurationError, match=complaint):
            SpikeBertForSequenceClassification.from_pretrained(tmp_path, **wrong)


def test_the_same_seed_makes_the_same_model_and_another_does_not():
    states = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        states.append(SpikeBertForSequenceClassification(SpikeBertConfig(**SHAPE)).state_dict())
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())
    assert not torch.equal(states[0]["classifier.weight"], states[2]["classifier.weight"])


def test_a_fresh_model_starts_as_bert_does():
    """Normal weights of the configured range, biases 0, norms 1, a padding row of zeros."""
    torch.manual_seed(7)
    config = SpikeBertConfig(**{**SHAPE, "hidden_size": 64, "intermediate_size": 256}, initializer_range=0.3)
    model = SpikeBertForSequenceClassification(config)
    assert not model.spikebert.embeddings.word_embeddings.weight[0].any()
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            assert (parameter == 1).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif parameter.numel() > 1000:
            assert float(parameter.detach().std()) == pytest.approx(0.3, rel=0.1), name


def test_what_a_tokenizer_adds_is_ignored():
    model, ids = lively_model(22), torch.tensor([[1, 2, 3]])
    found = model(input_ids=ids, attention_mask=torch.ones_like(ids), token_type_ids=torch.zeros_like(ids))
    assert torch.equal(found.logits, model(ids).logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_runs_with_float32_potentials(dtype):
    model = lively_model(23).to(dtype)
    ids, mask = padded(random_sentences(23, [4, 7]), 7)
    found = answer(model, ids, mask)
    assert found.logits.dtype == dtype
    assert found.spikes["block01_output_neuron"].dtype == dtype
    assert found.membrane_potentials["block01_output_neuron"].dtype == torch.float32
    loss = model(ids, attention_mask=mask, labels=torch.tensor([0, 1])).loss
    assert loss.dtype == torch.float32
    loss.backward()
    assert torch.isfinite(model.classifier.weight.grad).all()
