"""Dense transformers of the BERT family, by name."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from hardware.energy.baselines import nodes
from hardware.energy.baselines.baseline import Baseline
from hardware.energy.baselines.nodes import DenseNode
from spikebert.errors import MissingDependencyError


@dataclass(frozen=True)
class TransformerBaseline(Baseline):
    """An encoder of the BERT family with its head for classification.

    Parameters
    ----------
    name, title : str
    family : {"bert", "distilbert"}
        DistilBERT knows no segments, and its pooler ends in a ReLU in place of a tanh.
    layers, hidden_size, heads, intermediate_size, vocabulary : int
    source : str
        Where the shape is written down.
    positions, labels : int
    """

    name: str
    title: str
    family: Literal["bert", "distilbert"]
    layers: int
    hidden_size: int
    heads: int
    intermediate_size: int
    vocabulary: int
    source: str
    positions: int = 512
    labels: int = 2

    @property
    def parameters(self) -> int:
        """Number of weights and biases."""
        return sum(node.parameters for node, _ in self.nodes(1))

    def nodes(self, tokens: int) -> Iterator[DenseNode]:
        """Yield every node with what it does for one sentence of so many tokens."""
        width, wide, heads = self.hidden_size, self.intermediate_size, self.heads
        head_size = width // heads
        segments = 2 if self.family == "bert" else 0
        tables = [self.vocabulary, self.positions, segments] if segments else [self.vocabulary, self.positions]
        yield nodes.embedding("embedding", len(tables), sum(tables), width, tokens)
        yield nodes.layer_norm("embedding_norm", width, tokens, stage="input")
        for index in range(self.layers):
            prefix = f"layer{index:02d}_"
            yield nodes.affine(f"{prefix}qkv_affine", width, 3 * width, tokens)
            yield nodes.attention_product(
                f"{prefix}attention_scores", heads, 2 * head_size, heads * tokens, width, tokens
            )
            yield nodes.softmax(f"{prefix}softmax", heads, tokens)
            yield nodes.attention_product(f"{prefix}attention_values", heads, tokens + head_size, width, width, tokens)
            yield nodes.affine(f"{prefix}projection_affine", width, width, tokens)
            yield nodes.residual_sum(f"{prefix}projection_stream", width, tokens)
            yield nodes.layer_norm(f"{prefix}projection_norm", width, tokens)
            yield nodes.affine(f"{prefix}intermediate_affine", width, wide, tokens)
            yield nodes.gelu(f"{prefix}gelu", wide, tokens)
            yield nodes.affine(f"{prefix}output_affine", wide, width, tokens)
            yield nodes.residual_sum(f"{prefix}output_stream", width, tokens)
            yield nodes.layer_norm(f"{prefix}output_norm", width, tokens)
        yield nodes.affine("pooler", width, width, 1, stage="head")
        if self.family == "bert":
            yield nodes.elementwise("pooler_tanh", "tanh", "rest", width, {"special": width}, 1, stage="head")
        else:
            yield nodes.elementwise("pooler_relu", "relu", "rest", width, {"comparison": width}, 1, stage="head")
        yield nodes.affine("classifier", width, self.labels, 1, stage="head")

    def dense_model(self, tokens: int) -> tuple[nn.Module, Tensor]:
        """Return the transformers model without weights, its attention eager, and token ids."""
        return _transformer(self), torch.zeros(1, tokens, dtype=torch.long, device="meta")


_BERT = "Devlin et al. 2019, arXiv 1810.04805, and the vocabularies published with it"
_TINYBERT = "Jiao et al. 2020, arXiv 1909.10351"
_DISTILBERT = "Sanh et al. 2019, arXiv 1910.01108"
_MINILM = "config.json of all-MiniLM-L6-v2, from which the shipped checkpoint was distilled"

BASELINES: dict[str, TransformerBaseline] = {
    baseline.name: baseline
    for baseline in (
        TransformerBaseline("bert-base-cased", "BERT-base, cased English", "bert", 12, 768, 12, 3072, 28996, _BERT),
        TransformerBaseline("bert-base-uncased", "BERT-base, uncased English", "bert", 12, 768, 12, 3072, 30522, _BERT),
        TransformerBaseline("bert-base-chinese", "BERT-base, Chinese", "bert", 12, 768, 12, 3072, 21128, _BERT),
        TransformerBaseline("distilbert", "DistilBERT, 6 layers", "distilbert", 6, 768, 12, 3072, 30522, _DISTILBERT),
        TransformerBaseline("distilbert-4", "DistilBERT, 4 layers", "distilbert", 4, 768, 12, 3072, 30522, _TINYBERT),
        TransformerBaseline("tinybert-6", "TinyBERT, 6 layers", "bert", 6, 768, 12, 3072, 30522, _TINYBERT),
        TransformerBaseline("tinybert-4", "TinyBERT, 4 layers", "bert", 4, 312, 12, 1200, 30522, _TINYBERT),
        TransformerBaseline("minilm-6", "MiniLM, 6 layers (the teacher)", "bert", 6, 384, 12, 1536, 30522, _MINILM),
    )
}
"""Transformers by name. A vocabulary decides memory, not MACs: embeddings are gathered."""


@functools.lru_cache(maxsize=len(BASELINES))
def _transformer(shape: TransformerBaseline) -> nn.Module:
    """Return a transformers model of this shape on the meta device, where it takes no memory."""
    try:
        import transformers

        kind = "Bert" if shape.family == "bert" else "DistilBert"
        configuration = getattr(transformers, f"{kind}Config")
        architecture = getattr(transformers, f"{kind}ForSequenceClassification")
    except (ImportError, RuntimeError) as error:
        raise MissingDependencyError(
            f"transformers cannot load {shape.family}, whose operations were to be counted: {_first_cause(error)}"
        ) from error
    config = configuration(
        vocab_size=shape.vocabulary,
        max_position_embeddings=shape.positions,
        num_labels=shape.labels,
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden_size,
        num_attention_heads=shape.heads,
        attn_implementation="eager",
        **{"intermediate_size" if shape.family == "bert" else "hidden_dim": shape.intermediate_size},
    )
    with torch.device("meta"):
        return _Logits(architecture(config)).eval()


def _first_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


class _Logits(nn.Module):
    """A transformers model that takes and returns one tensor, which is what fvcore can trace."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids=input_ids).logits
