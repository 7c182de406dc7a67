"""What a student is pulled towards: the losses of Eqs. 6 to 8 of arXiv 2308.15122, and the transforms they need.

The paper writes ``||F_tm - F_sm||_2`` without saying how it is averaged; here it is the mean squared error over real
tokens and features, so that it depends neither on the batch nor on padding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FeatureTransforms(nn.Module):
    """The learned maps between student and teacher, used in training only (Eq. 6).

    Parameters
    ----------
    student_features, teacher_features : int
        Widths of both.
    layers : dict of int to int
        Which layer of the teacher each block is compared with, see ``ModelFamily.aligned_layers``.
    """

    def __init__(self, student_features: int, teacher_features: int, layers: dict[int, int]) -> None:
        super().__init__()
        self.layers = layers
        self.blocks = nn.ModuleDict(
            {
                str(block): nn.Sequential(nn.Linear(student_features, teacher_features), nn.LayerNorm(teacher_features))
                for block in layers
            }
        )
        self.embedding = nn.Linear(student_features, teacher_features)

    def teacher_layers(self) -> list[int]:
        """Return the teacher's layers that are looked at, 0 for its embeddings, in the order of `alignment_losses`."""
        return [0, *self.layers.values()]


def alignment_losses(
    transforms: FeatureTransforms,
    student_features: Sequence[Tensor],
    teacher_features: Tensor,
    token_mask: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the feature loss, summed over blocks, and the embedding loss (Eqs. 6 and 7).

    Parameters
    ----------
    transforms : FeatureTransforms
        Of this student and teacher.
    student_features : sequence of Tensor
        M + 1 of ``(B, N, D)``, of embeddings and blocks, see ``ModelFamily.student_features``.
    teacher_features : Tensor
        ``(B, N, L, D_teacher)``, the teacher's layers as `FeatureTransforms.teacher_layers` lists them.
    token_mask : Tensor
        ``(B, N)`` bool, the tokens that count.
    """
    teacher_features = teacher_features[token_mask]
    features = student_features[0].new_zeros(())
    for position, block in enumerate(transforms.layers, start=1):
        made = transforms.blocks[str(block)](student_features[block][token_mask])
        features = features + F.mse_loss(_at_least_float32(made), _at_least_float32(teacher_features[:, position]))
    made = transforms.embedding(student_features[0][token_mask])
    return features, F.mse_loss(_at_least_float32(made), _at_least_float32(teacher_features[:, 0]))


def logits_loss(student: Tensor, teacher: Tensor, kind: str = "kl", temperature: float = 1.0) -> Tensor:
    """Return how far the student's logits ``(B, C)`` are from the teacher's; one label makes a regression of it."""
    student, teacher = _at_least_float32(student), _at_least_float32(teacher)
    if kind == "mse" or student.shape[-1] == 1:
        return F.mse_loss(student, teacher)
    predicted, wanted = (F.log_softmax(logits / temperature, -1) for logits in (student, teacher))
    return F.kl_div(predicted, wanted, reduction="batchmean", log_target=True) * temperature**2


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of ``(B, C)`` logits, or with one label their mean squared error."""
    if logits.shape[-1] == 1:
        return F.mse_loss(_at_least_float32(logits).squeeze(-1), _at_least_float32(labels))
    return F.cross_entropy(_at_least_float32(logits), labels)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
