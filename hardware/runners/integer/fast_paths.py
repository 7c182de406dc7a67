"""The fast paths of the integer runner: whole layers over all steps and tokens at once, in types proven exact.

One function an operator; the table at the end says which. Each returns None where nothing proves it exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from torch import Tensor

from export.loihi_numbers import ACTIVATION_MAX
from export.network import Node
from export.operators import (
    Heaviside,
    IntegerAffine,
    IntegerLayerNorm,
    IntegerLeakyIntegrateAndFire,
    IntegerSpikeAttention,
    RuleTable,
    TokenSum,
    Total,
)
from export.operators.interval import Interval, largest_sum
from export.operators.operator import FLOAT64_EXACT, OperatorType
from export.passes.intervals import reads_words
from hardware.kernels.integer import SUMS_BYTES, IntegerKernel, KernelLayer, KernelNorm
from hardware.runners.integer.in_torch import INT32_EXACT, TorchNeurons, TorchNorm
from hardware.runners.integer.layer import FLOAT32_EXACT, INT8_MAX, Run
from hardware.runners.integer.packed_batch import PackedBatch
from hardware.runners.integer.planner import FastPath, LayerPlanner
from hardware.runners.integer.workspace import ALL, CHUNK_BYTES, Workspace, tokens_of

Product = Callable[[Tensor], Tensor]
"""Takes ``(T, P, in)`` to ``(T, P, out)``."""
Planned = tuple[str, Run | None]
"""How a node is computed, in a word, and what does it; see `FastPath.plan`."""


# ---------------------------------------------------------------------------------------------------------------------
# Sums, and the test against a threshold.


def add(node: Node, operator: Total, planner: LayerPlanner) -> Planned:
    """Add in int8 where sums fit, else in int32 or int64."""
    interval = planner.intervals.get(node.name)
    narrow = interval is not None and interval.largest <= INT8_MAX
    kind = torch.int8 if narrow else _whole_type(interval)

    def run(packed: PackedBatch) -> None:
        left, right = (packed.values[source].to(kind) for source in node.sources)
        packed.values[node.name] = left + right

    return "sum", run


def sum_tokens(node: Node, operator: TokenSum, planner: LayerPlanner) -> Planned:
    """Add up the tokens of each sentence, padding being 0, in int32 or int64."""
    kind = _whole_type(planner.intervals.get(node.name))

    def run(packed: PackedBatch) -> None:
        whole = packed.values[node.sources[0]].to(kind)
        packed.values[node.name] = packed.padded(whole).sum(-2, dtype=kind)

    return "sum", run


def compare(node: Node, operator: Heaviside, planner: LayerPlanner) -> Planned | None:
    """Compare whole numbers with the last whole number that does not fire."""
    read = planner.intervals.get(node.sources[0])
    if read is None or read.largest >= FLOAT64_EXACT:
        return None
    kind = _whole_type(read)
    # whole numbers reach a threshold where they exceed the last whole number below it
    above = np.ceil(operator.threshold) - 1 if operator.fire_on_equal else np.floor(operator.threshold)
    below = torch.from_numpy(np.asarray(np.clip(above, -read.largest - 1, read.largest)))
    below = below.to(planner.workspace.device, kind)

    def run(packed: PackedBatch) -> None:
        x = packed.values[node.sources[0]]
        spikes = (x.to(kind) > below).to(torch.int8)
        packed.values[node.name] = spikes
        packed.record(node.name, spikes, x.to(torch.int64) if packed.record_membrane_potentials else None)

    return "comparison", run


def _whole_type(interval: Interval | None) -> torch.dtype:
    """Return the narrower of int32 and int64 that holds what a node sends."""
    return torch.int32 if interval is not None and interval.largest <= INT32_EXACT else torch.int64


# ---------------------------------------------------------------------------------------------------------------------
# Affine maps.


def multiply(node: Node, operator: IntegerAffine, planner: LayerPlanner) -> Planned | None:
    """Look words up; multiply bytes with sums of 32 bits, else in float32 or float64."""
    if reads_words(planner.network, node):
        return "gather", _gather(node, operator, planner)
    kind = _product_type(node, operator, planner)
    if kind is None:
        return None
    if planner.is_fused_with_reader(node):
        return _name(kind), None
    product = _product(operator, kind, planner.workspace.device)

    def run(packed: PackedBatch) -> None:
        packed.values[node.name] = product(packed.values[node.sources[0]])

    return _name(kind), run


def _gather(node: Node, operator: IntegerAffine, planner: LayerPlanner) -> Run:
    device = planner.workspace.device
    table = torch.from_numpy(operator.weight.T.copy()).to(device)  # a row for each input: what is read lies together
    bias = None if operator.bias is None else torch.from_numpy(operator.bias).to(device)
    kind = _whole_type(planner.intervals.get(node.name))

    def run(packed: PackedBatch) -> None:
        assert packed.hot is not None
        first, *others = packed.hot
        y = table.index_select(0, first).to(kind)
        for hot in others:
            y += table.index_select(0, hot)
        packed.values[node.name] = (y if bias is None else y.add_(bias))[None]

    return run


def _product_type(node: Node, operator: IntegerAffine, planner: LayerPlanner) -> torch.dtype | None:
    """Return the type of inputs in which an affine map is exact; None where none is proven."""
    read = planner.intervals.get(node.sources[0])
    if read is None or reads_words(planner.network, node):
        return None
    largest = largest_sum(operator.weight, operator.bias, read)
    narrow = operator.weight.dtype == np.int8 and read.low.min() >= 0 and read.largest <= INT8_MAX
    if narrow and largest <= INT32_EXACT and planner.workspace.on_cpu:
        return torch.int8
    if largest < FLOAT64_EXACT:
        return torch.float32 if largest < FLOAT32_EXACT else torch.float64
    return None


def _product(operator: IntegerAffine, kind: torch.dtype, device: torch.device) -> Product:
    """Return the product in a type that is exact."""
    weight = torch.from_numpy(operator.weight).to(device, kind).t()
    matrix_product, sums_in = (torch._int_mm, torch.int32) if kind == torch.int8 else (torch.mm, kind)
    bias = None if operator.bias is None else torch.from_numpy(operator.bias).to(device, sums_in)

    def product(x: Tensor) -> Tensor:
        steps, tokens, features = x.shape
        y = matrix_product(x.to(kind).reshape(-1, features), weight).view(steps, tokens, -1)
        return y if bias is None else y.add_(bias)

    return product


def _name(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


# ---------------------------------------------------------------------------------------------------------------------
# Attention.


def attend(node: Node, operator: IntegerSpikeAttention, planner: LayerPlanner) -> Planned | None:
    """Multiply in C or float32 where no sum reaches 2^24, else in float64."""
    read, found = planner.intervals.get(node.sources[0]), planner.intervals.get(node.name)
    if read is None or read.low.min() < 0 or planner.network.max_tokens is None:
        return None
    outer = FLOAT64_EXACT if found is None else found.largest
    largest = max(outer, planner.network.max_tokens * operator.head_size * read.largest**2)
    if largest >= FLOAT64_EXACT:
        return None
    if planner.kernel is not None and largest < FLOAT32_EXACT and read.largest <= INT8_MAX:
        return "C", _compiled_attention(node, operator, planner.kernel, read.largest)
    kind = torch.float32 if largest < FLOAT32_EXACT else torch.float64
    return _name(kind), _attention(node, operator, kind)


def _attention(node: Node, operator: IntegerSpikeAttention, kind: torch.dtype) -> Run:
    def run(packed: PackedBatch) -> None:
        spikes = packed.padded(packed.values[node.sources[0]])
        parts = spikes.unflatten(-1, (3, operator.num_heads, operator.head_size)).permute(3, 0, 1, 4, 2, 5)
        # head by head in one copy, which also changes the type; products would make one of each part. What they are
        # multiplied with is a power of two, and exact wherever it stands.
        query, key, value = parts.to(kind, memory_format=torch.contiguous_format).flatten(1, 3)  # (T B H, N, head_size)
        if spikes.shape[-2] > operator.head_size:
            product = query @ (key.transpose(-1, -2) @ value).mul_(1 << operator.shift)
        else:
            product = (query @ key.transpose(-1, -2)).mul_(1 << operator.shift) @ value
        joined = product.unflatten(0, parts.shape[1:4]).transpose(-2, -3).flatten(-2)
        packed.values[node.name] = packed.packed(joined)

    return run


def _compiled_attention(node: Node, operator: IntegerSpikeAttention, kernel: IntegerKernel, largest: int) -> Run:
    def run(packed: PackedBatch) -> None:
        spikes = packed.values[node.sources[0]].to(torch.int8)
        packed.values[node.name] = kernel.attend(
            spikes, packed.lengths, operator.num_heads, operator.head_size, 1 << operator.shift, largest
        )

    return run


# ---------------------------------------------------------------------------------------------------------------------
# Layer norm.


def normalise(node: Node, operator: IntegerLayerNorm, planner: LayerPlanner) -> Planned | None:
    """Normalise in C where int32 holds what it sends, else in float64."""
    read, found = planner.intervals.get(node.sources[0]), planner.intervals.get(node.name)
    if read is None:
        return None
    operator.check_sums(read, node.name)
    compiled = planner.kernel is not None and found is not None and found.largest <= INT32_EXACT
    method = "C" if compiled else "float64"
    if planner.is_fused_with_reader(node):
        return method, None
    if compiled:
        assert planner.kernel is not None
        return method, _compiled_norm(node, operator, planner.kernel)
    return method, _norm_in_torch(node, operator, planner.workspace, read)


def _compiled_norm(node: Node, operator: IntegerLayerNorm, kernel: IntegerKernel) -> Run:
    norm = KernelNorm(operator)

    def run(packed: PackedBatch) -> None:
        packed.values[node.name] = kernel.normalise(packed.values[node.sources[0]], norm)

    return run


def _norm_in_torch(node: Node, operator: IntegerLayerNorm, workspace: Workspace, read: Interval) -> Run:
    norm = TorchNorm(operator, workspace, read)

    def run(packed: PackedBatch) -> None:
        x = packed.values[node.sources[0]]
        y = torch.empty(x.shape, dtype=torch.float64, device=x.device)
        factors = norm.factors(x)
        for rows in workspace.chunks(x.shape[1], x.shape[0] * x.shape[2] * 8, CHUNK_BYTES):
            norm.normalise(tokens_of(x, rows), factors, rows, tokens_of(y, rows))
        packed.values[node.name] = y

    return run


# ---------------------------------------------------------------------------------------------------------------------
# Neurons, with the layer norm and the affine map before them that nothing else reads.

Fire = Callable[[Tensor, Tensor, "Tensor | None"], "int | Tensor"]
"""Takes what the first of a layer reads that it computes itself, ``(T or 1, P, D)``; fills spikes and potentials
``(T, P, D)``; returns how many potentials were held at their limit."""


def fire(node: Node, operator: IntegerLeakyIntegrateAndFire, planner: LayerPlanner) -> Planned | None:
    """Run neurons whose currents cannot wrap around, in C or in float64, some tokens at a time."""
    if not _currents_fit(node, planner):
        return None
    workspace, kernel = planner.workspace, planner.kernel
    affine = _of_kind(IntegerAffine, planner.fused_before[node.name])
    norm = _of_kind(IntegerLayerNorm, planner.fused_before[node.name])
    product: Product | None = None
    multiplied_in_c: IntegerAffine | None = None
    if affine is not None:
        kind = _product_type(*affine, planner)
        assert kind is not None
        if kind == torch.int8 and kernel is not None and kernel.multiplies(affine[1]):
            multiplied_in_c = affine[1]
        else:
            product = _product(affine[1], kind, workspace.device)
    fire_some: Fire
    if kernel is not None:
        fire_some = _fire_in_c(multiplied_in_c, None if norm is None else norm[1], operator, kernel)
    else:
        in_torch = None if norm is None else TorchNorm(norm[1], workspace, planner.intervals[norm[0].sources[0]])
        fire_some = _fire_in_torch(in_torch, operator, workspace, planner.intervals[node.sources[0]].largest)
    (first,), widest = planner.reads(node), operator.in_features

    def run(packed: PackedBatch) -> None:
        x = packed.values[first]
        steps, tokens, _ = x.shape
        spikes = torch.empty(packed.steps, tokens, widest, dtype=torch.int8, device=x.device)
        potentials = None
        if packed.record_membrane_potentials:
            potentials = torch.empty(spikes.shape, dtype=torch.int32, device=x.device)
        saturated: int | Tensor = 0
        for rows in [ALL] if multiplied_in_c is not None else workspace.chunks(tokens, 4 * widest * steps, SUMS_BYTES):
            part = tokens_of(x, rows)
            shown = None if potentials is None else tokens_of(potentials, rows)
            # counted on the device; read once at the end
            saturated += fire_some(part if product is None else product(part), tokens_of(spikes, rows), shown)
        if saturated:
            packed.overflows[node.name] = Counter(wrapped_currents=0, saturated_potentials=int(saturated))
        packed.values[node.name] = spikes
        packed.record(node.name, spikes, potentials)

    return "float64" if kernel is None else "C", run


def before_neurons(node: Node, operator: IntegerLeakyIntegrateAndFire, planner: LayerPlanner) -> tuple[Node, ...]:
    """Return the affine map and the layer norm before neurons, where they alone read these and both are proven."""
    if not _currents_fit(node, planner):
        return ()
    found: tuple[Node, ...] = ()
    norm = _of_kind(IntegerLayerNorm, planner.read_alone(node))
    if norm is not None and norm[0].sources[0] in planner.intervals:
        found = (norm[0],)
    affine = _of_kind(IntegerAffine, planner.read_alone((*found, node)[0]))
    if affine is not None and _product_type(*affine, planner) is not None:
        found = (affine[0], *found)
    return found


def _currents_fit(node: Node, planner: LayerPlanner) -> bool:
    """Return whether no current of a node can wrap around."""
    read = planner.intervals.get(node.sources[0])
    return read is not None and read.largest <= ACTIVATION_MAX


def _of_kind(kind: type[OperatorType], nodes: tuple[Node, ...]) -> tuple[Node, OperatorType] | None:
    """Return the first of some nodes whose operator is of exactly this kind, and its operator."""
    return next(((node, cast(OperatorType, node.operator)) for node in nodes if type(node.operator) is kind), None)


def _fire_in_c(
    affine: IntegerAffine | None,
    norm: IntegerLayerNorm | None,
    neuron: IntegerLeakyIntegrateAndFire,
    kernel: IntegerKernel,
) -> Fire:
    layer = KernelLayer(affine, norm, neuron)
    return lambda x, spikes, potentials: kernel.fire(layer, x, spikes, potentials)


def _fire_in_torch(
    norm: TorchNorm | None, neuron: IntegerLeakyIntegrateAndFire, workspace: Workspace, largest_activation: int
) -> Fire:
    neurons = TorchNeurons(neuron, workspace)

    def fire_some(x: Tensor, spikes: Tensor, potentials: Tensor | None) -> int | Tensor:
        saturated: int | Tensor = 0
        factors = None if norm is None else norm.factors(x)
        reach = largest_activation if factors is None else min(largest_activation, factors.reach)
        for rows in workspace.chunks(x.shape[1], x.shape[2] * 8 * x.shape[0], CHUNK_BYTES):
            part = tokens_of(x, rows)
            charges = workspace.scratch.take("activations", part.shape)
            if norm is None or factors is None:
                charges.copy_(part)
            else:
                norm.normalise(part, factors, rows, charges)
            shown = None if potentials is None else tokens_of(potentials, rows)
            saturated += neurons(charges, reach, tokens_of(spikes, rows), shown)
        return saturated

    return fire_some


FAST_PATHS = RuleTable[FastPath]("fast integer path", serves_derived=False)
FAST_PATHS.set(FastPath(add), Total)
FAST_PATHS.set(FastPath(sum_tokens), TokenSum)
FAST_PATHS.set(FastPath(compare), Heaviside)
FAST_PATHS.set(FastPath(multiply), IntegerAffine)
FAST_PATHS.set(FastPath(attend), IntegerSpikeAttention)
FAST_PATHS.set(FastPath(normalise), IntegerLayerNorm)
FAST_PATHS.set(FastPath(fire, fuses=before_neurons), IntegerLeakyIntegrateAndFire)
