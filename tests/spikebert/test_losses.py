"""The losses of Eqs. 6 to 8, each against a plain loop or torch's own form of it."""

import math

import pytest
import torch

from spikebert.distillation.losses import FeatureTransforms, alignment_losses, label_loss, logits_loss
from spikebert.distillation.settings import LossWeights
from spikebert.errors import ConfigurationError
from spikebert.families.spikebert import SpikeBertFamily
from spikebert.modeling import SpikeBertOutput


@pytest.mark.parametrize(
    ("student", "teacher", "ignored", "pairs"),
    [
        (12, 12, 0, {i: i for i in range(1, 13)}),
        (6, 12, 0, {1: 2, 2: 4, 3: 6, 4: 8, 5: 10, 6: 12}),
        (2, 6, 0, {1: 3, 2: 6}),
        (2, 6, 1, {2: 6}),
        (4, 6, 0, {2: 2, 3: 4, 4: 6}),  # every 2nd: nothing is left for the first block
        (5, 12, 0, {2: 3, 3: 6, 4: 9, 5: 12}),
        (3, 1, 0, {3: 1}),
        (2, 2, 2, {}),
    ],
)
def test_blocks_are_compared_with_every_so_many_layers_and_the_last_with_the_last(student, teacher, ignored, pairs):
    assert SpikeBertFamily().aligned_layers(student, teacher, ignored) == pairs


@torch.no_grad()
def test_alignment_is_the_mean_squared_error_over_real_tokens():
    torch.manual_seed(0)
    transforms = FeatureTransforms(6, 4, {1: 2, 2: 4}).double()
    assert transforms.teacher_layers() == [0, 2, 4]
    embeddings = torch.randn(2, 3, 6, dtype=torch.float64)
    hidden = tuple(torch.randint(0, 3, (4, 2, 3, 6)).double() for _ in range(3))
    wanted = torch.randn(2, 3, 3, 4, dtype=torch.float64)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    made = SpikeBertFamily().student_features(SpikeBertOutput(embeddings=embeddings, hidden_states=hidden))
    features, embedding = alignment_losses(transforms, made, wanted, mask)
    by_hand, embedding_by_hand = 0.0, 0.0
    for sentence, token in [(0, 0), (0, 1), (0, 2), (1, 0)]:
        for position, block in ((1, 1), (2, 2)):
            linear, norm = transforms.blocks[str(block)]
            counts = sum(hidden[block][step, sentence, token] for step in range(4))
            x = linear.weight @ counts + linear.bias
            x = (x - x.mean()) / (x.var(unbiased=False) + norm.eps).sqrt()
            by_hand += float((x - wanted[sentence, token, position]).square().sum()) / 16
        made = transforms.embedding.weight @ embeddings[sentence, token] + transforms.embedding.bias
        embedding_by_hand += float((made - wanted[sentence, token, 0]).square().sum()) / 16
    assert float(features) == pytest.approx(by_hand, rel=1e-6)
    assert float(embedding) == pytest.approx(embedding_by_hand, rel=1e-6)


def test_the_logits_loss_is_a_divergence_or_a_squared_error():
    student, teacher = torch.tensor([[0.5, -1.0, 2.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    p = [math.exp(x / 2) for x in teacher[0].tolist()]
    q = [math.exp(x / 2) for x in student[0].tolist()]
    by_hand = sum(a / sum(p) * math.log(a / sum(p) / (b / sum(q))) for a, b in zip(p, q, strict=True)) * 4
    assert float(logits_loss(student, teacher, "kl", 2.0)) == pytest.approx(by_hand, rel=1e-5)
    assert float(logits_loss(teacher, teacher, "kl")) == pytest.approx(0, abs=1e-7)
    assert float(logits_loss(student, teacher, "mse")) == pytest.approx((0.25 + 1 + 4) / 3)
    assert float(logits_loss(torch.tensor([[3.0]]), torch.tensor([[1.0]]), "kl")) == 4  # a regression


def test_the_label_loss_is_cross_entropy_or_squared_error():
    assert float(label_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))) == pytest.approx(math.log(2))
    assert float(label_loss(torch.tensor([[2.0]]), torch.tensor([5.0]))) == 9


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"features": -0.1}, "features"),
        ({"label": math.nan}, "label"),
        ({"features": 0, "embedding": 0, "logits": 0, "label": 0}, "all losses"),
        ({"logits_loss": "l1"}, "'l1'"),
        ({"temperature": 0.0}, "temperature"),
        ({"ignored_front_blocks": -1}, "ignored_front_blocks"),
    ],
)
def test_weights_outside_their_range_are_refused(changes, complaint):
    with pytest.raises(ConfigurationError, match=complaint):
        LossWeights(**changes)


def test_the_defaults_are_the_paper_s():
    weights = LossWeights()
    assert (weights.features, weights.embedding, weights.logits, weights.label) == (0.1, 0.1, 1.0, 0.1)
    assert weights.logits_loss == "kl"
