"""Nodes of dense networks, each with what it does in a sentence: what the spiking side has too is of the same table.

For what the spiking side does not have, each token (``D`` features, ``H`` heads, ``N`` tokens) costs:

=================== ================================================================================================
node                operations
=================== ================================================================================================
attention products  ``N D`` mac each, and ``H N`` and ``D`` activation_write; a model that prices memory reads both
                    factors of every mac from a memory that holds one head's, as the spiking side's map is one head's
softmax             for each of its ``H N`` entries 2 mac (1/sqrt(d), and the reciprocal of the sum), 2 addition (less
                    the maximum, and the sum), a comparison (the maximum) and a special (exponential); a special
                    (reciprocal) for each of ``H`` rows
GELU                2 mac, 1 addition and 1 special (erf) a feature
tanh, ReLU          1 special, or 1 comparison, a feature, once a sentence
quantizer           1 mac (to the scale of its steps) and 1 comparison (rounding, clipping) a feature
scale, integrator   1 mac a feature
=================== ================================================================================================
"""

from __future__ import annotations

from export.operators import Convolution, Pooling
from hardware.energy.counts import NodeOperations, Tally, dense

DenseNode = tuple[NodeOperations, Tally]
"""A node, and what it does in one sentence."""


def embedding(name: str, tables: int, inputs: int, width: int, rows: int) -> DenseNode:
    """Return a gather of `tables`, which have `inputs` rows in all; no matrix product, so without ``dense_mac``."""
    node = NodeOperations(name, "affine", "embedding", "tokens", "input", inputs, width, inputs * width)
    return node, _times(rows, dense.gather(tables, width))


def affine(name: str, fan_in: int, fan_out: int, rows: int, bias: bool = True, stage: str = "body") -> DenseNode:
    """Return an affine map."""
    parameters = fan_in * fan_out + fan_out * bias
    node = NodeOperations(name, "affine", "synapses", "analog", stage, fan_in, fan_out, parameters)
    return node, _times(rows, dense.affine(fan_in, fan_out, bias))


def convolution(name: str, operator: Convolution, rows: int, stage: str) -> DenseNode:
    """Return a convolution."""
    widths, parameters = (operator.in_features, operator.out_features), operator.weight.size + operator.bias.size
    node = NodeOperations(name, operator.name, "synapses", "analog", stage, *widths, parameters)
    return node, _times(rows, dense.convolution(operator))


def pool(name: str, operator: Pooling, rows: int, stage: str) -> DenseNode:
    """Return a pool."""
    widths = (operator.in_features, operator.out_features)
    return NodeOperations(name, operator.name, "rest", "analog", stage, *widths), _times(rows, dense.pool(operator))


def layer_norm(name: str, width: int, rows: int, groups: int = 1, stage: str = "body") -> DenseNode:
    """Return a layer norm."""
    node = NodeOperations(name, "layer_norm", "norms", "analog", stage, width, width, 2 * width)
    return node, _times(rows, dense.layer_norm(width, groups))


def attention_product(name: str, heads: int, fan_in: int, fan_out: int, width: int, tokens: int) -> DenseNode:
    """Return one of the two products of attention: all heads share `width`, so it has ``N D`` MACs a token.

    `fan_in` are the numbers a token brings into one head's product, which is what lies in memory at a time.
    """
    macs = tokens * width
    node = NodeOperations(name, "attention_product", "attention", "analog", "body", fan_in, fan_out, heads=heads)
    return node, _times(tokens, {"mac": macs, "dense_mac": macs, "activation_write": fan_out})


def softmax(name: str, heads: int, tokens: int) -> DenseNode:
    """Return the softmax of a sentence's attention maps."""
    entries = heads * tokens
    each = {"mac": 2 * entries, "addition": 2 * entries, "comparison": entries, "special": entries + heads}
    return elementwise(name, "softmax", "nonlinearities", entries, each, tokens)


def gelu(name: str, width: int, rows: int) -> DenseNode:
    """Return a GELU."""
    each = {"mac": 2 * width, "addition": width, "special": width}
    return elementwise(name, "gelu", "nonlinearities", width, each, rows)


def quantizer(name: str, width: int, rows: int, stage: str) -> DenseNode:
    """Return what stands where neurons were."""
    each = {"mac": width, "comparison": width}
    return elementwise(name, "quantizer", "nonlinearities", width, each, rows, stage)


def elementwise(
    name: str, operator: str, component: str, width: int, each: Tally, rows: int, stage: str = "body"
) -> DenseNode:
    """Return a node that reads and writes `width` features and does `each` to a row of them."""
    node = NodeOperations(name, operator, component, "analog", stage, width, width)
    return node, _times(rows, {**each, "activation_read": width, "activation_write": width})


def residual_sum(name: str, width: int, rows: int) -> DenseNode:
    """Return a residual sum."""
    node = NodeOperations(name, "total", "rest", "analog", "body", width, width)
    return node, _times(rows, dense.residual_sum(width))


def token_mean(name: str, width: int, tokens: int) -> DenseNode:
    """Return the mean over a sentence's tokens."""
    node = NodeOperations(name, "token_mean", "rest", "analog", "head", width, width)
    return node, {**_times(tokens, dense.token_sum(width)), **dense.token_mean(width, divides=True)}


def _times(rows: int, each: Tally) -> Tally:
    return {kind: rows * count for kind, count in each.items()}
