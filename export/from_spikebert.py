"""SpikeBERT -> network: the one place that knows how the model's modules become nodes.

Node names are those the model records its spikes under (``spikebert.modeling`` owns them).
"""

from __future__ import annotations

import numpy as np

from export.errors import UnsupportedOperatorError
from export.from_modules import ArrayReader, affine_of, layer_norm_of, neuron_of, view_weight
from export.network import Network, NetworkBuilder
from export.operators import Affine, SpikeAttention, TokenMean
from export.token_encoding import TokenEncoding
from spikebert.modeling import (
    CLASSIFIER,
    EMBEDDING,
    FINAL_NORM,
    TOKEN_MEAN,
    SpikeBertBlock,
    SpikeBertEmbeddings,
    SpikeBertForSequenceClassification,
    SpikingProjection,
    SpikingSelfAttention,
    block_prefix,
)
from spikebert.recording import NamedNeuron


def spikebert_network(model: SpikeBertForSequenceClassification, read: ArrayReader) -> Network:
    """Return a model's network, see ``export.exporters``.

    Raises
    ------
    UnsupportedOperatorError
        The model has something NIR has no place for.
    """
    config, encoder = model.config, model.spikebert
    embeddings = encoder.embeddings
    encoding, table = _embedding_table(embeddings, read)
    builder = NetworkBuilder("input", encoding.width)
    last = builder.add(EMBEDDING, Affine(table), "input")
    if embeddings.norm is not None:
        last = builder.add(f"{EMBEDDING}_norm", layer_norm_of(f"{EMBEDDING}_norm", embeddings.norm), last)
    stream = [_add_neuron(builder, embeddings.neuron, config.hidden_size, last)]
    for index, block in enumerate(encoder.blocks):
        assert isinstance(block, SpikeBertBlock)
        prefix = block_prefix(index)
        if block.attention is not None:
            stream = [*stream, _add_attention(builder, prefix, block.attention, stream, read)]
        hidden = _add_projection(builder, f"{prefix}intermediate", block.intermediate, stream, read)
        stream = [*stream, _add_projection(builder, f"{prefix}output", block.output, [hidden], read)]
    if encoder.final_norm is not None:
        stream = [builder.add(FINAL_NORM, layer_norm_of(FINAL_NORM, encoder.final_norm), stream)]
    last = builder.add(TOKEN_MEAN, TokenMean(config.hidden_size), stream)
    last = builder.add(CLASSIFIER, affine_of(model.classifier, read), last)
    return builder.network(
        "output",
        last,
        token_encoding=encoding,
        time_steps=config.time_steps,
        attend_to_padding=config.attend_to_padding,
    )


def _embedding_table(embeddings: SpikeBertEmbeddings, read: ArrayReader) -> tuple[TokenEncoding, np.ndarray]:
    if embeddings.previous_word_projection is not None:
        raise UnsupportedOperatorError(
            "the projection of previous words is no table; fold it first: spikebert fold CHECKPOINT -o FOLDED"
        )
    words, previous, positions = (
        embeddings.word_embeddings,
        embeddings.previous_word_embeddings,
        embeddings.position_embeddings,
    )
    tables = [table.weight for table in (words, previous, positions) if table is not None]
    before_first = getattr(previous, "padding_idx", None)
    encoding = TokenEncoding(len(words.weight), 0 if positions is None else len(positions.weight), before_first)
    return encoding, (np.concatenate([view_weight(table) for table in tables]) if tables[1:] else read(tables[0])).T


def _add_attention(
    builder: NetworkBuilder, prefix: str, attention: SpikingSelfAttention, stream: list[str], read: ArrayReader
) -> str:
    qkv = _add_projection(builder, f"{prefix}qkv", attention.qkv, stream, read)
    width, heads = attention.projection.affine.in_features, attention.num_heads
    product = builder.add(f"{prefix}attention", SpikeAttention(heads, width // heads, float(attention.scale)), qkv)
    attended = _add_neuron(builder, attention.neuron, width, product)
    return _add_projection(builder, f"{prefix}projection", attention.projection, [attended], read)


def _add_projection(
    builder: NetworkBuilder, name: str, projection: SpikingProjection, sources: list[str], read: ArrayReader
) -> str:
    last = builder.add(f"{name}_affine", affine_of(projection.affine, read), sources)
    if projection.norm is not None:
        last = builder.add(f"{name}_norm", layer_norm_of(f"{name}_norm", projection.norm), last)
    return _add_neuron(builder, projection.neuron, projection.affine.out_features, last)


def _add_neuron(builder: NetworkBuilder, named: NamedNeuron, features: int, source: str) -> str:
    return builder.add(named.name, neuron_of(named, features), source)
