"""SpikeBERT -> network: the one place that knows how the model's modules become nodes.

Node names are those the model records its spikes under (``spikebert.modeling`` owns them).
"""

from __future__ import annotations

import numpy as np
from torch import nn

from export.errors import UnsupportedOperatorError
from export.network import Network, NetworkBuilder, TokenEncoding
from export.operators import Affine, Heaviside, LayerNorm, LeakyIntegrateAndFire, SpikeAttention, TokenMean
from export.operators.operator import Operator
from export.weights import ArrayReader, copy_weight, view_weight
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
from spikebert.neuron import Heaviside as HeavisideModule
from spikebert.norms import GroupedLayerNorm, Norm
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
        last = builder.add(f"{EMBEDDING}_norm", _layer_norm(f"{EMBEDDING}_norm", embeddings.norm), last)
    stream = [_add_neuron(builder, embeddings.neuron, config.hidden_size, last)]
    for index, block in enumerate(encoder.blocks):
        assert isinstance(block, SpikeBertBlock)
        prefix = block_prefix(index)
        if block.attention is not None:
            stream = [*stream, _add_attention(builder, prefix, block.attention, stream, read)]
        hidden = _add_projection(builder, f"{prefix}intermediate", block.intermediate, stream, read)
        stream = [*stream, _add_projection(builder, f"{prefix}output", block.output, [hidden], read)]
    if encoder.final_norm is not None:
        stream = [builder.add(FINAL_NORM, _layer_norm(FINAL_NORM, encoder.final_norm), stream)]
    last = builder.add(TOKEN_MEAN, TokenMean(config.hidden_size), stream)
    last = builder.add(CLASSIFIER, _affine(model.classifier, read), last)
    return builder.network(
        "output",
        last,
        token_encoding=encoding,
        time_steps=config.time_steps,
        attend_to_padding=config.attend_to_padding,
    )


def _affine(linear: nn.Linear, read: ArrayReader) -> Affine:
    return Affine(read(linear.weight), None if linear.bias is None else read(linear.bias))


def _layer_norm(name: str, norm: Norm) -> LayerNorm:
    if not isinstance(norm, GroupedLayerNorm):
        # its fixed scale and shift belong into the weights; folded here, the graph would round unlike the model
        raise UnsupportedOperatorError(
            f"{name} is a {type(norm).__name__}, which NIR has no node for; fold it into the weights first: "
            "spikebert fold CHECKPOINT -o FOLDED"
        )
    return LayerNorm(copy_weight(norm.weight), copy_weight(norm.bias), float(norm.eps), norm.groups)


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
    last = builder.add(f"{name}_affine", _affine(projection.affine, read), sources)
    if projection.norm is not None:
        last = builder.add(f"{name}_norm", _layer_norm(f"{name}_norm", projection.norm), last)
    return _add_neuron(builder, projection.neuron, projection.affine.out_features, last)


def _add_neuron(builder: NetworkBuilder, named: NamedNeuron, features: int, source: str) -> str:
    return builder.add(named.name, _neuron(named, features), source)


def _neuron(named: NamedNeuron, features: int) -> Operator:
    if isinstance(named.neuron, HeavisideModule):
        return Heaviside(np.zeros(features), named.neuron.fire_on_equal)
    parameters = named.neuron.parameters_of_neuron
    if parameters.initial_membrane_potential != 0:
        raise UnsupportedOperatorError(
            f"{named.name}: starts at a membrane potential of {parameters.initial_membrane_potential}; NIR and Lava "
            "have no place for that, only for 0"
        )
    return LeakyIntegrateAndFire(
        beta=np.full(features, parameters.beta),
        tau=np.full(features, parameters.tau),
        threshold=np.full(features, parameters.threshold),
        reset=parameters.reset,
        decay_input=parameters.decay_input,
        fire_on_equal=parameters.fire_on_equal,
    )
