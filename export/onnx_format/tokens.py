"""How layer norms, attention and what pools tokens are spelled in ONNX.

Layer norm is spelled out: ONNX Runtime's fused operator adds and scales in an order of its own, which can flip a spike.
"""

from __future__ import annotations

import numpy as np

from export.onnx_format.builder import TOKEN_MASK, OnnxBuilder
from export.onnx_format.spellings import writes
from export.operators import (
    IntegerLayerNorm,
    IntegerSpikeAttention,
    LayerNorm,
    SpikeAttention,
    TokenMean,
    TokenSum,
)
from export.operators.layer_norm import (
    FACTOR_BITS,
    NORMED_BITS,
    PRODUCT_BITS,
    RADICAND_BITS,
    ROOT_BITS,
    TABLE_BITS,
    inverse_square_root_table,
    numerator_shift,
)


@writes(LayerNorm)
def write_layer_norm(build: OnnxBuilder, name: str, operator: LayerNorm, x: str) -> None:
    """Write the norm of each group, centred before it is squared."""
    grouped = operator.groups > 1
    parts = build.add("Reshape", [x, build.shape(0, 0, 0, operator.groups, -1)], f"{name}/groups") if grouped else x
    last_axis = build.axes(-1)
    centred = build.add("Sub", [parts, build.add("ReduceMean", [parts, last_axis], f"{name}/mean")], f"{name}/centred")
    squared = build.add("Mul", [centred, centred], f"{name}/squared")
    variance = build.add("ReduceMean", [squared, last_axis], f"{name}/variance")
    guarded = build.add("Add", [variance, build.weight(f"{name}/eps", operator.eps)], f"{name}/guarded_variance")
    deviation = build.add("Sqrt", [guarded], f"{name}/deviation")
    normed = build.add("Div", [centred, deviation], f"{name}/normed")
    if grouped:
        normed = build.add("Reshape", [normed, build.shape(0, 0, 0, operator.in_features)], f"{name}/joined")
    scaled = build.add("Mul", [normed, build.weight(f"{name}/weight", operator.weight)], f"{name}/scaled")
    build.add("Add", [scaled, build.weight(f"{name}/bias", operator.bias)], name)


@writes(IntegerLayerNorm)
def write_integer_layer_norm(build: OnnxBuilder, name: str, operator: IntegerLayerNorm, x: str) -> None:
    """Write the norm in whole numbers, with the same table, shifts and roundings as its docstring."""

    def add(op_type: str, inputs: list[str], output: str) -> str:
        return build.add(op_type, inputs, f"{name}/{output}")

    features, last_axis = operator.in_features // operator.groups, build.axes(-1)
    parts = add("Reshape", [x, build.shape(0, 0, 0, operator.groups, -1)], "groups")
    total = add("ReduceSum", [parts, last_axis], "total")
    centred = add("Sub", [add("Mul", [parts, build.scalar(features)], "widened"), total], "centred")
    squares = add("ReduceSum", [add("Mul", [parts, parts], "squared"), last_axis], "squares")
    squares = add("Mul", [squares, build.scalar(features)], "squares_widened")
    radicand = add("Sub", [squares, add("Mul", [total, total], "total_squared")], "variance")
    eps = build.weight(f"{name}/eps", np.reshape(operator.integer_eps, (-1, 1)))
    radicand = add("Add", [radicand, eps], "radicand")
    # e even with 2^60 <= R 2^e < 2^62, by halving; half_power is 2^(e / 2)
    half_power = build.scalar(1)
    for bits in (32, 16, 8, 4, 2):
        fits = add("Less", [radicand, build.scalar(1 << (RADICAND_BITS - bits))], f"fits_{bits}")
        factor = add("Where", [fits, build.scalar(1 << bits), build.scalar(1)], f"factor_{bits}")
        half = add("Where", [fits, build.scalar(1 << (bits // 2)), build.scalar(1)], f"half_{bits}")
        radicand = add("Mul", [radicand, factor], f"radicand_{bits}")
        half_power = add("Mul", [half_power, half], f"half_power_{bits}")
    factor = _integer_inverse_square_root(build, name, radicand)
    drop = numerator_shift(features)
    numerator = build.round_shift(add("Mul", [centred, half_power], "scaled_up"), drop, f"{name}/numerator")
    product = add("Mul", [numerator, factor], "quotient")
    normed = build.round_shift(product, PRODUCT_BITS - drop - NORMED_BITS, f"{name}/normed")
    joined = add("Reshape", [normed, build.shape(0, 0, 0, operator.in_features)], "joined")
    gained = add("Mul", [joined, build.weight(f"{name}/weight", operator.weight)], "gained")
    biased = add("Add", [gained, build.weight(f"{name}/bias", operator.bias)], "biased")
    build.round_shift(biased, operator.shift, name)


def _integer_inverse_square_root(build: OnnxBuilder, name: str, x: str) -> str:
    """Write ``2^24 / sqrt(x / 2^60)``: a table and two Newton steps."""

    def add(op_type: str, inputs: list[str], output: str) -> str:
        return build.add(op_type, inputs, f"{name}/root/{output}")

    entry = build.shift_right(x, RADICAND_BITS - TABLE_BITS, f"{name}/root/high_bits")
    entry = add("Sub", [entry, build.scalar(1 << (TABLE_BITS - 2))], "entry")
    table = build.weight("/inverse_square_roots", inverse_square_root_table())
    root = add("Gather", [table, entry], "guess")
    scaled = build.shift_right(x, RADICAND_BITS - 2 - ROOT_BITS, f"{name}/root/scaled")
    for step in (1, 2):
        square = build.shift_right(add("Mul", [root, root], f"square_{step}"), ROOT_BITS, f"{name}/root/squared_{step}")
        product = add("Mul", [scaled, square], f"product_{step}")
        share = build.shift_right(product, ROOT_BITS, f"{name}/root/share_{step}")
        gap = add("Sub", [build.scalar(3 << ROOT_BITS), share], f"gap_{step}")
        root = build.shift_right(
            add("Mul", [root, gap], f"better_{step}"), ROOT_BITS + 1, f"{name}/root/estimate_{step}"
        )
    return build.round_shift(root, ROOT_BITS - FACTOR_BITS, f"{name}/root/factor")


@writes(SpikeAttention)
def write_spike_attention(build: OnnxBuilder, name: str, operator: SpikeAttention, x: str) -> None:
    """Write the attention and its scale."""
    product = _attention_product(build, name, operator, x)
    build.add("Mul", [product, build.weight(f"{name}/scale", operator.scale)], name)


@writes(IntegerSpikeAttention)
def write_integer_spike_attention(build: OnnxBuilder, name: str, operator: IntegerSpikeAttention, x: str) -> None:
    """Write the attention and its fraction bits."""
    build.add("Mul", [_attention_product(build, name, operator, x), build.scalar(1 << operator.shift)], name)


def _attention_product(build: OnnxBuilder, name: str, operator: SpikeAttention, x: str) -> str:
    """Write (Q K^T) V head by head; on spikes its sums are whole numbers, so the order of the products is free."""
    heads, size = operator.num_heads, operator.head_size
    x = build.add("Mul", [x, TOKEN_MASK], f"{name}/tokens")
    split = build.add_node("Split", [x], [f"{name}/{part}" for part in "qkv"], axis=-1, num_outputs=3)
    query, key, value = (
        build.add("Reshape", [part, build.shape(0, 0, 0, heads, size)], f"{part}/heads") for part in split
    )
    query, value = (build.add("Transpose", [part], f"{part}_first", perm=[0, 1, 3, 2, 4]) for part in (query, value))
    key = build.add("Transpose", [key], f"{key}_transposed", perm=[0, 1, 3, 4, 2])
    matches = build.add("MatMul", [query, key], f"{name}/matches")
    product = build.add("MatMul", [matches, value], f"{name}/product")
    tokens = build.add("Transpose", [product], f"{name}/tokens_first", perm=[0, 1, 3, 2, 4])
    return build.add("Reshape", [tokens, build.shape(0, 0, 0, operator.out_features)], f"{name}/joined")


@writes(TokenMean)
def write_token_mean(build: OnnxBuilder, name: str, operator: TokenMean, x: str) -> None:
    """Write the mean over real tokens; the token axis stays, with length 1."""
    token_axis = build.axes(-2)
    total = build.add("ReduceSum", [build.add("Mul", [x, TOKEN_MASK], f"{name}/tokens"), token_axis], f"{name}/sum")
    count = build.add("ReduceSum", [TOKEN_MASK, token_axis], f"{name}/count")
    build.add("Div", [total, count], name)


@writes(TokenSum)
def write_token_sum(build: OnnxBuilder, name: str, operator: TokenSum, x: str) -> None:
    """Write the sum over real tokens."""
    build.add("ReduceSum", [build.add("Mul", [x, TOKEN_MASK], f"{name}/tokens"), build.axes(-2)], name)
