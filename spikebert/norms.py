"""Norms between an affine layer and its neuron, and the folding of those a chip need not know.

A layer norm looks at every token anew, which no neuron of a chip does. The two others scale and shift each feature by
numbers that are fixed once training ends, so they disappear into the weights and biases before them (`fold_norms`).
Statistics are over time steps, sentences and real tokens: padding never enters them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikebert.choices import BATCH, LAYER, NONE, POWER, PROJECTED, TABLE
from spikebert.errors import ConfigurationError

if TYPE_CHECKING:
    from spikebert.modeling import SpikeBertForSequenceClassification

MOMENTUM = 0.1  # share of the newest batch in the running statistics, as in torch's batch norm


class Norm(nn.Module):
    """What all norms share: a weight (gain) and a bias for each feature."""

    def __init__(self, features: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor, token_mask: Tensor | None = None) -> Tensor:
        """Norm ``(..., B, N, features)``; tokens where `token_mask` ``(B, N, 1)`` is 0 are no part of any statistic."""
        raise NotImplementedError


class GroupedLayerNorm(Norm):
    """Layer norm over each of `groups` equal parts of the features, with a weight and bias of its own for each.

    Query, key and value share one matrix product, yet each has its own norm; one group is an ordinary layer norm.
    """

    def __init__(self, features: int, groups: int, eps: float) -> None:
        super().__init__(features, eps)
        self.groups = groups

    def forward(self, x: Tensor, token_mask: Tensor | None = None) -> Tensor:
        """Norm ``(..., features)``, each token by itself."""
        if self.groups == 1:
            return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)
        parts = x.unflatten(-1, (self.groups, -1))
        return (F.layer_norm(parts, parts.shape[-1:], eps=self.eps).flatten(-2) * self.weight).add_(self.bias)


class StatisticsNorm(Norm):
    """A norm by statistics of each feature: the batch's in training, running ones afterwards."""

    momentum = MOMENTUM

    def set_statistics(self, mean: Tensor, variance: Tensor) -> None:
        """Set the running statistics to what a mean and a variance ``(features,)`` of the input make them."""
        raise NotImplementedError

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return what the norm does in evaluation, as float64 ``(features,)``: ``scale x + shift``."""
        raise NotImplementedError

    @staticmethod
    def real_rows(x: Tensor, token_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the real tokens of ``(..., B, N, D)`` as rows ``(n, D)``, and their places among all B x N tokens."""
        if token_mask is None:
            return x.reshape(-1, x.shape[-1]), None
        places = token_mask.flatten().nonzero().squeeze(-1)
        return x.flatten(-3, -2).index_select(-2, places).reshape(-1, x.shape[-1]), places


class BatchStatisticsNorm(StatisticsNorm):
    """Batch norm over real tokens: ``weight (x - mean) / sqrt(variance + eps) + bias`` for each feature."""

    running_mean: Tensor
    running_variance: Tensor

    def __init__(self, features: int, eps: float) -> None:
        super().__init__(features, eps)
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_variance", torch.ones(features))

    def forward(self, x: Tensor, token_mask: Tensor | None = None) -> Tensor:
        """Norm ``(..., B, N, features)``; in training, what stands at padding becomes 0."""
        if not self.training:
            rows, places = x.reshape(-1, x.shape[-1]), None
        else:
            rows, places = self.real_rows(x, token_mask)
        normed = F.batch_norm(
            rows,
            self.running_mean,
            self.running_variance,
            self.weight,
            self.bias,
            self.training,
            self.momentum,
            self.eps,
        )
        if places is None:
            return normed.reshape(x.shape)
        tokens = x.flatten(-3, -2)
        normed = normed.reshape(*tokens.shape[:-2], -1, x.shape[-1])
        return torch.zeros_like(tokens).index_copy(-2, places, normed).reshape(x.shape)

    @torch.no_grad()
    def set_statistics(self, mean: Tensor, variance: Tensor) -> None:
        """Set both."""
        self.running_mean.copy_(mean)
        self.running_variance.copy_(variance)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return ``weight / sqrt(variance + eps)`` and ``bias - scale mean``."""
        scale = self.weight.double() / (self.running_variance.double() + self.eps).sqrt()
        return scale, self.bias.double() - scale * self.running_mean.double()


class ShiftPowerNorm(StatisticsNorm):
    """Power norm by bit shifts: ``weight x 2**-k + bias``, with ``2**k`` the root mean square of each feature, rounded.

    After the bit-shifting PowerNorm of Sorbet (arXiv 2409.15298). There is no mean to subtract, and the division is a
    shift. The shift comes from the running mean square in training too, so that training sees the network that will
    run; the gradient is that of a division by the batch's own root mean square.
    """

    running_power: Tensor

    def __init__(self, features: int, eps: float) -> None:
        super().__init__(features, eps)
        self.register_buffer("running_power", torch.ones(features))

    def forward(self, x: Tensor, token_mask: Tensor | None = None) -> Tensor:
        """Norm ``(..., B, N, features)``."""
        straight_through: Tensor | float = 1.0
        if self.training:
            rows, _ = self.real_rows(x, token_mask)
            power = rows.to(torch.promote_types(rows.dtype, torch.float32)).square().mean(0)
            with torch.no_grad():
                self.running_power.lerp_(power.to(self.running_power.dtype), self.momentum)
            inverse = (power + self.eps).rsqrt()
            straight_through = inverse / inverse.detach()  # 1, with the gradient of the division
        gain = self.weight * self._shift().to(self.weight.dtype) * straight_through
        return x * gain.to(x.dtype) + self.bias.to(x.dtype)

    def _shift(self) -> Tensor:
        """Return ``2**-k`` for each feature, exact in every floating-point type."""
        exponents = ((self.running_power.double() + self.eps).log2() / 2).round()
        return torch.exp2(-exponents)

    @torch.no_grad()
    def set_statistics(self, mean: Tensor, variance: Tensor) -> None:
        """Set the mean square to ``variance + mean**2``."""
        self.running_power.copy_(variance + mean.square())

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return ``weight 2**-k`` and the bias."""
        return self.weight.double() * self._shift(), self.bias.double()


def make_norm(kind: str, features: int, groups: int, eps: float) -> Norm | None:
    """Return a norm by its name in the configuration; None for ``none``."""
    if kind == NONE:
        return None
    if kind == LAYER:
        return GroupedLayerNorm(features, groups, eps)
    return {BATCH: BatchStatisticsNorm, POWER: ShiftPowerNorm}[kind](features, eps)


@torch.no_grad()
def fold_norms(model: SpikeBertForSequenceClassification) -> SpikeBertForSequenceClassification:
    """Return a model without norms that does what `model` does in evaluation.

    Each norm's scale and shift go into the weights and biases of what stands before it: the affine of a projection, the
    embedding tables (the shift into the positions, where there are any), and for the last norm the classifier behind
    it, since a mean over tokens and an affine layer can change places. A projection of previous words becomes a table.

    What is promised: the two are equal in exact arithmetic. In floating point a folded weight is rounded once, so
    currents differ by the rounding of their type, and a spike differs only where a potential lies so close to
    threshold. In float64, and in float32 on text, logits agree to rounding and predictions are the same.

    Raises
    ------
    ConfigurationError
        The model has layer norms, which no fixed weights can stand for, or no norms.
    """
    from spikebert.modeling import SpikeBertForSequenceClassification

    if model.config.norm == LAYER:
        raise ConfigurationError(
            "a layer norm depends on the token and cannot be folded into weights; distil the model into one with batch "
            "or power norms first: spikebert distill task --teacher MODEL --student MODEL --norm batch …"
        )
    if model.config.norm == NONE:
        raise ConfigurationError("this model has no norms to fold: its norm is none already")
    config: Any = copy.deepcopy(model.config)
    config.norm, config.embedding_norm = NONE, False
    if config.previous_word == PROJECTED:
        config.previous_word = TABLE
    folded: Any = SpikeBertForSequenceClassification(config)
    folded.to(model.device, model.dtype).eval()
    weights = {name: value.clone() for name, value in model.state_dict().items() if ".norm." not in name}
    if model.config.previous_word == PROJECTED:
        _fold_projection(weights, config.pad_token_id)
    for name, module in model.named_modules():
        if not isinstance(module, StatisticsNorm):
            continue
        owner = name.rpartition(".")[0]
        scale, shift = module.scale_and_shift()
        if name == "spikebert.final_norm":
            _fold_after(weights, scale, shift)
        elif owner == "spikebert.embeddings":
            _fold_into_table(weights, owner, scale, shift)
        else:
            weight, bias = weights[f"{owner}.affine.weight"], weights[f"{owner}.affine.bias"]
            weights[f"{owner}.affine.weight"] = (scale.unsqueeze(-1) * weight.double()).to(weight.dtype)
            weights[f"{owner}.affine.bias"] = (scale * bias.double() + shift).to(bias.dtype)
    weights = {name: value for name, value in weights.items() if not name.startswith("spikebert.final_norm.")}
    folded.load_state_dict(weights)
    return folded


def _fold_after(weights: dict[str, Tensor], scale: Tensor, shift: Tensor) -> None:
    weight, bias = weights["classifier.weight"], weights["classifier.bias"]
    weights["classifier.weight"] = (weight.double() * scale).to(weight.dtype)
    weights["classifier.bias"] = (bias.double() + weight.double() @ shift).to(bias.dtype)


def _fold_projection(weights: dict[str, Tensor], pad: int) -> None:
    """Put the table of previous words in the place of their projection; nothing stands before the first token."""
    words = weights["spikebert.embeddings.word_embeddings.weight"]
    projection = weights.pop("spikebert.embeddings.previous_word_projection.weight")
    table = (words.double() @ projection.double().T).to(words.dtype)
    table[pad] = 0
    weights["spikebert.embeddings.previous_word_embeddings.weight"] = table


def _fold_into_table(weights: dict[str, Tensor], owner: str, scale: Tensor, shift: Tensor) -> None:
    words, previous, positions = (f"{owner}.{kind}_embeddings.weight" for kind in ("word", "previous_word", "position"))
    shifted = positions if positions in weights else words
    for table in {words, previous, positions} & weights.keys():
        rows = weights[table].double() * scale
        weights[table] = (rows + shift if table == shifted else rows).to(weights[table].dtype)


@torch.no_grad()
def calibrate_norms(model: nn.Module, batches: Iterable[dict[str, Tensor]]) -> None:
    """Set the running statistics of every norm to their mean over some batches, as training would see them.

    A fresh model's running statistics say nothing yet; with these, the shifts of power norms are right from the first
    step, and the model can be scored before it has learnt anything.

    Parameters
    ----------
    model : nn.Module
        Changed in place; left in the mode it was in.
    batches : iterable of dict
        What the model is called with.
    """
    norms = [module for module in model.modules() if isinstance(module, StatisticsNorm)]
    if not norms:
        return
    was_training = model.training
    model.train()
    for number, batch in enumerate(batches, start=1):
        for norm in norms:
            norm.momentum = 1 / number  # the mean of all so far
        model(**batch)
    for norm in norms:
        norm.momentum = MOMENTUM
    model.train(was_training)


@torch.no_grad()
def change_norms(
    model: SpikeBertForSequenceClassification, kind: str, batches: Iterable[dict[str, Tensor]]
) -> SpikeBertForSequenceClassification:
    """Return a model with the same weights and other norms, a start for distilling `model` into it.

    Each new norm gives every feature the mean and the variance that the old one gave it on the batches, so that neurons
    fire about as often as before.

    Parameters
    ----------
    model : SpikeBertForSequenceClassification
        With norms of any kind but ``none``; not changed.
    kind : {"batch", "power"}
        The new norms.
    batches : iterable of dict
        What the model is called with, some hundred sentences.

    Raises
    ------
    ConfigurationError
        Another kind is asked for, or the model has no norms.
    """
    from spikebert.modeling import SpikeBertForSequenceClassification

    if kind not in (BATCH, POWER):
        raise ConfigurationError(f"norms can be changed to batch or power, not to {kind!r}")
    if model.config.norm == NONE:
        raise ConfigurationError(
            "this model has no norms that could be changed (norm is none); start from one that has"
        )
    moments = _moments(model, batches)
    config: Any = copy.deepcopy(model.config)
    config.norm = kind
    changed: Any = SpikeBertForSequenceClassification(config)
    changed.to(model.device, model.dtype)
    same = {name: value for name, value in model.state_dict().items() if "norm." not in name}
    changed.load_state_dict(same, strict=False)
    for name, module in changed.named_modules():
        if isinstance(module, StatisticsNorm):
            (mean, variance), (wanted_mean, wanted_variance) = moments[name]
            module.set_statistics(mean, variance)
            scale, _ = module.scale_and_shift()  # with a weight of 1: what the statistics alone do
            weight = (wanted_variance.sqrt() / (scale * variance.sqrt()).clamp_min(module.eps)).to(module.weight.dtype)
            module.weight.copy_(weight)
            scale, shift = module.scale_and_shift()
            module.bias.add_((wanted_mean - (scale * mean + shift)).to(module.bias.dtype))
    return changed.eval()


def _moments(model: nn.Module, batches: Iterable[dict[str, Tensor]]) -> dict[str, Any]:
    """Return mean and variance, as float64 ``(features,)``, of every norm's input and output over real tokens."""
    sums: dict[str, list[Tensor]] = {}

    def hook_of(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: tuple[Any, ...], made: Tensor) -> None:
            token_mask = given[1] if len(given) > 1 else None
            values = []
            for x in (given[0], made):
                rows = StatisticsNorm.real_rows(x, token_mask)[0].double()
                values += [rows.sum(0), rows.square().sum(0), torch.tensor(float(len(rows)))]
            sums[name] = [a + b for a, b in zip(sums[name], values, strict=True)] if name in sums else values

        return hook

    hooks = [m.register_forward_hook(hook_of(name)) for name, m in model.named_modules() if isinstance(m, Norm)]
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            model(**batch)
    finally:
        for each in hooks:
            each.remove()
        model.train(was_training)

    def moments(total: Tensor, square: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        mean = total / count
        return mean, (square / count - mean.square()).clamp_min(0)

    return {name: (moments(*values[:3]), moments(*values[3:])) for name, values in sums.items()}
