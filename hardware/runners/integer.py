"""Runner ``integer``: simulates an integer graph fast, and exactly by construction.

The reference interpreter computes the same graph operator by operator in int64; here whole layers run over all time
steps, sentences and real tokens at once (padding is not computed at all), in whatever type is proven exact for them
when the runner is built. Proof is by intervals (``export.passes.intervals``): how large a sum can get, whatever
sentence comes.

affine
    int8 products with 32-bit sums (oneDNN's VNNI and AMX kernels) where inputs are 0 to 127 and no sum leaves 32 bits;
    else float32 below 2^24, float64 below 2^53.
attention
    float32 below 2^24, else float64.
layer norm
    float64: `IntegerLayerNorm` is made such that every product stays below 2^53; the inverse square root in int64.
layer norm and neurons behind it
    in one pass of C, where there is a compiler, in the same float64 arithmetic.
neuron
    float64, potentials being below 2^24 and decays 12 bits, where no current can wrap around.

Anything not proven so runs on the operator's own int64 step. Wrapped currents and saturated potentials are counted.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from export.loihi_numbers import ACTIVATION_MAX, ACTIVATION_SHIFT, DECAY_UNITY, POTENTIAL_MAX
from export.network import INTEGER, Network, Node
from export.operators import (
    Heaviside,
    IntegerAffine,
    IntegerLayerNorm,
    IntegerLeakyIntegrateAndFire,
    IntegerSpikeAttention,
    TokenMean,
    Total,
)
from export.operators.layer_norm import (
    NORMED_BITS,
    PRODUCT_BITS,
    RADICAND_BITS,
    integer_inverse_square_root,
    numerator_shift,
)
from export.operators.operator import FLOAT64_EXACT
from export.passes.intervals import Interval, check_layer_norm, value_intervals
from hardware.errors import RunnerError
from hardware.runners.execution import NodeExecution
from hardware.runners.integer_kernel import load_kernel
from hardware.runners.reference import overflows, read_outputs, thresholds
from hardware.runners.runner import Batch, Runner, check_batch, check_time_steps, number_type
from hardware.trace import Trace

INT8_MAX = 127
INT32_EXACT, FLOAT32_EXACT = (1 << 31) - 1, 1 << 24
CHUNK_BYTES = 1 << 19
"""Of float64 that a layer norm and its neurons work on at a time: what a core's cache holds beside the rest."""
GROUP_BYTES = 64 << 20
"""Of a layer's widest sums that are held at a time: more sentences go through in groups."""


class IntegerRunner(Runner):
    """Runs an integer network; see the module for how.

    Parameters
    ----------
    network : Network
    precision : {"integer"}
    time_steps : int, optional
        In place of the graph's own.
    record_membrane_potentials : bool
        Keep every neuron's potential as it was tested against the threshold, in the chip's units.
    record_spikes : bool
        Keep spikes; without them a trace holds the logits only, and a data set of any size fits in memory.
    device : str
        Where torch computes, such as ``"cpu"`` or ``"cuda"``.
    compiled : bool, optional
        Run layer norm and the neurons behind it in one pass of C (``integer_kernel.c``); by default where there is a C
        compiler and torch computes on the CPU. The numbers are the same: what is exact does not depend on the order of
        operations.

    Raises
    ------
    RunnerError
        The network is a float one, or the kernel is asked for and cannot be had.
    """

    name = "integer"

    def __init__(
        self,
        network: Network,
        precision: str = "integer",
        time_steps: int | None = None,
        record_membrane_potentials: bool = False,
        record_spikes: bool = True,
        device: str = "cpu",
        compiled: bool | None = None,
    ) -> None:
        number_type(network, INTEGER)  # refuses a float graph
        if precision != INTEGER:
            raise RunnerError(f"runner 'integer' runs at precision {INTEGER!r}, not {precision!r}")
        self.network, self.precision = network, precision
        self.time_steps = check_time_steps(time_steps)
        self.record_membrane_potentials, self.record_spikes = record_membrane_potentials, record_spikes
        self.device = torch.device(device)
        intervals = value_intervals(network)
        self.readers = Counter(source for node in network.nodes for source in node.sources)
        self.readers[network.output_source] += 1
        self.kernel = None if compiled is False or self.device.type != "cpu" else load_kernel()
        if compiled and self.kernel is None:
            raise RunnerError("the C kernel needs a C compiler (cc, or what CC names) and device 'cpu'")
        self._by_name = {node.name: node for node in network.nodes}
        self._readers_of: dict[str, list[Node]] = {node.name: [] for node in network.nodes}
        for node in network.nodes:
            for source in node.sources:
                if source in self._readers_of:
                    self._readers_of[source].append(node)
        widest = max(node.operator.out_features for node in network.nodes)
        self._bytes_per_token = 4 * widest
        self._layers = [self._layer(node, intervals) for node in network.nodes]

    @property
    def methods(self) -> dict[str, str]:
        """How each node is computed."""
        return {layer.node.name: layer.method for layer in self._layers}

    @torch.no_grad()
    def run(self, inputs: Any, token_mask: Any = None) -> Trace:
        """Run one batch; see `Runner.run`."""
        batch = check_batch(self.network, inputs, token_mask, self.time_steps)
        sentences, tokens = batch.mask.shape
        size = max(1, GROUP_BYTES // (self._bytes_per_token * batch.time_steps * tokens))
        groups = [
            self._run_group(batch, slice(start, min(start + size, sentences))) for start in range(0, sentences, size)
        ]
        logits, shown = read_outputs(self.network, np.concatenate([g.outputs for g in groups], 1), batch.mask)
        found: dict[str, Counter[str]] = {}
        for group in groups:
            for name, counts in group.overflows.items():
                found.setdefault(name, Counter()).update(counts)
        return Trace(
            spikes=_joined([group.spikes for group in groups]),
            logits=logits,
            mask=batch.mask,
            outputs=shown,
            membrane_potentials=_joined([group.potentials for group in groups]),
            thresholds=thresholds(self.network) if self.record_spikes else {},
            input_ids=batch.input_ids,
            metadata={
                "runner": self.name,
                "precision": self.precision,
                "time_steps": batch.time_steps,
                "device": str(self.device),
                "overflows": {name: dict(counts) for name, counts in found.items()},
            },
        )

    def _run_group(self, batch: Batch, rows: slice) -> _Group:
        group = _Group(self, batch, rows)
        unread = Counter(self.readers)
        for layer in self._layers:
            layer.run(group)
            for source in layer.reads:
                unread[source] -= 1
                if not unread[source]:
                    group.values.pop(source, None)
        group.outputs = group.shown(group.values[self.network.output_source])
        group.values.clear()
        return group

    def _layer(self, node: Node, intervals: dict[str, Interval]) -> _Layer:
        """Choose how a node is computed."""
        operator, read = node.operator, intervals.get(node.sources[0])
        if isinstance(operator, Total):
            return _Layer(node, "sum", _total(node, intervals.get(node.name)))
        if isinstance(operator, IntegerAffine):
            return self._affine_layer(node, operator, intervals)
        if isinstance(operator, IntegerSpikeAttention) and read is not None and self.network.max_tokens is not None:
            found = intervals.get(node.name)
            largest = FLOAT64_EXACT if found is None else found.largest
            inner = self.network.max_tokens * operator.head_size * read.largest**2
            if max(largest, inner) < FLOAT64_EXACT and read.low.min() >= 0:
                kind = torch.float32 if max(largest, inner) < FLOAT32_EXACT else torch.float64
                return _Layer(node, str(kind).removeprefix("torch."), _attention(node, operator, kind))
        if isinstance(operator, IntegerLayerNorm) and read is not None:
            check_layer_norm(operator, read, node.name)
            if self._is_fused(node, intervals):
                return _Layer(node, "C", _passed_on(node))
            return _Layer(node, "float64", _layer_norm(node, operator, self))
        if isinstance(operator, IntegerLeakyIntegrateAndFire) and read is not None and read.largest <= ACTIVATION_MAX:
            norm = self._by_name.get(node.sources[0])
            if norm is not None and isinstance(norm.operator, IntegerLayerNorm) and self._is_fused(norm, intervals):
                return _Layer(node, "C", _fused(node, operator, norm.operator, self))
            return _Layer(node, "float64", _neuron(node, operator, self, read.largest))
        if isinstance(operator, TokenMean):
            return _Layer(node, "sum", _token_sum(node))
        if isinstance(operator, Heaviside) and read is not None and read.largest < FLOAT64_EXACT:
            return _Layer(node, "comparison", _heaviside(node, operator))
        return _Layer(node, "int64", _operator(node))

    def _is_fused(self, node: Node, intervals: dict[str, Interval]) -> bool:
        """Return whether a node is a layer norm that only one neuron reads, both of which the kernel may compute."""
        readers = self._readers_of[node.name]
        found = intervals.get(node.name)
        return (
            self.kernel is not None
            and isinstance(node.operator, IntegerLayerNorm)
            and node.sources[0] in intervals
            and intervals[node.sources[0]].largest <= INT32_EXACT
            and [type(reader.operator) for reader in readers] == [IntegerLeakyIntegrateAndFire]
            and node.name != self.network.output_source
            and found is not None
            and found.largest <= ACTIVATION_MAX
        )

    def _affine_layer(self, node: Node, operator: IntegerAffine, intervals: dict[str, Interval]) -> _Layer:
        source = node.sources[0]
        if source == self.network.input_name and self.network.token_encoding is not None:
            return _Layer(node, "gather", _gather(node, operator, self.device))
        read = intervals.get(source)
        if read is None:
            return _Layer(node, "int64", _operator(node))
        offset = 0 if operator.bias is None else int(np.abs(operator.bias).max(initial=0))
        # no partial sum, in whatever order, is larger than the sum of all magnitudes
        largest = int((np.abs(operator.weight).astype(np.float64) @ read.magnitude).max(initial=0)) + offset
        narrow = operator.weight.dtype == np.int8 and read.low.min() >= 0 and read.largest <= INT8_MAX
        if narrow and largest <= INT32_EXACT and self.device.type == "cpu":
            return _Layer(node, "int8", _affine(node, operator, torch.int8, self.device))
        if largest < FLOAT64_EXACT:
            kind = torch.float32 if largest < FLOAT32_EXACT else torch.float64
            return _Layer(node, str(kind).removeprefix("torch."), _affine(node, operator, kind, self.device))
        return _Layer(node, "int64", _operator(node))


@dataclass(frozen=True)
class _Layer:
    """A node and how it is computed: `run` reads and writes the values of a group."""

    node: Node
    method: str
    run: Callable[[_Group], None]

    @property
    def reads(self) -> tuple[str, ...]:
        return self.node.sources


class _Group:
    """Some sentences on their way through the network.

    Attributes
    ----------
    values : dict of str to Tensor
        What each node sent: ``(T, P, D)`` for the P real tokens of all sentences, ``(T, B, D)`` behind a token sum; a
        first axis of 1 where every step is the same.
    """

    def __init__(self, runner: IntegerRunner, batch: Batch, rows: slice) -> None:
        self.runner = runner
        self.steps = batch.time_steps
        self.mask = batch.mask[rows]
        self.lengths = self.mask.sum(-1)
        self.places = torch.from_numpy(np.flatnonzero(self.mask)).to(runner.device)
        self.sentence_of = torch.from_numpy(np.nonzero(self.mask)[0]).to(runner.device)
        self.values: dict[str, Tensor] = {}
        self.pooled: set[str] = set()
        self.spikes: dict[str, np.ndarray] = {}
        self.potentials: dict[str, np.ndarray] = {}
        self.overflows: dict[str, Counter[str]] = {}
        self.outputs = np.zeros(0)
        self.hot: Tensor | None = None
        network = runner.network
        if batch.input_ids is not None and network.token_encoding is not None:
            hot = network.token_encoding.hot_inputs(batch.input_ids[rows])
            self.hot = torch.from_numpy(hot[:, self.mask]).to(runner.device)
        elif batch.values is not None:
            values = batch.values[:, rows][:, self.mask].astype(np.int64)
            self.values[network.input_name] = torch.from_numpy(values).to(runner.device)

    def padded(self, packed: Tensor) -> Tensor:
        """Return ``(T, P, D)`` as ``(T, B, N, D)`` with zeros at padding."""
        steps, _, features = packed.shape
        if self.places.numel() == self.mask.size:
            return packed.reshape(steps, *self.mask.shape, features)
        full = packed.new_zeros(steps, self.mask.size, features)
        full[:, self.places] = packed
        return full.reshape(steps, *self.mask.shape, features)

    def packed(self, padded: Tensor) -> Tensor:
        """Return the real tokens of ``(T, B, N, D)`` as ``(T, P, D)``."""
        flat = padded.flatten(1, 2)
        return flat if self.places.numel() == self.mask.size else flat[:, self.places]

    def shown(self, value: Tensor) -> np.ndarray:
        """Return a value as outputs ``(T, B, N or 1, C)`` int64."""
        value = value.expand(self.steps, *value.shape[1:])
        full = value[:, :, None] if self.runner.network.sums_tokens else self.padded(value)
        return full.to(torch.int64).cpu().numpy()

    def record(self, name: str, spikes: Tensor, potentials: Tensor | None) -> None:
        """Keep what a neuron sent, and what it tested, where the runner is asked to."""
        if self.runner.record_spikes:
            self.spikes[name] = self.padded(spikes.expand(self.steps, -1, -1)).cpu().numpy().view(np.uint8)
        if potentials is not None:
            self.potentials[name] = self.padded(potentials.expand(self.steps, -1, -1)).cpu().numpy()


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts], 1) for name in parts[0]}


def _gather(node: Node, operator: IntegerAffine, device: torch.device) -> Callable[[_Group], None]:
    weight = torch.from_numpy(operator.weight).to(device)
    bias = None if operator.bias is None else torch.from_numpy(operator.bias).to(device)

    def run(group: _Group) -> None:
        assert group.hot is not None
        y = torch.stack([weight.index_select(1, hot).t().to(torch.int64) for hot in group.hot]).sum(0)
        group.values[node.name] = (y if bias is None else y + bias)[None]

    return run


def _affine(node: Node, operator: IntegerAffine, kind: torch.dtype, device: torch.device) -> Callable[[_Group], None]:
    weight = torch.from_numpy(operator.weight).to(device, kind)
    bias = None if operator.bias is None else torch.from_numpy(operator.bias).to(device)

    def run(group: _Group) -> None:
        x = group.values[node.sources[0]]
        flat = x.to(kind).flatten(0, 1)
        multiply = torch._int_mm if kind == torch.int8 else torch.mm
        y = multiply(flat, weight.t()).reshape(*x.shape[:2], -1)
        group.values[node.name] = y if bias is None else y.add_(bias.to(y.dtype))

    return run


def _total(node: Node, interval: Interval | None) -> Callable[[_Group], None]:
    largest = interval.largest if interval is not None else FLOAT64_EXACT
    kinds = ((torch.int8, INT8_MAX), (torch.int32, INT32_EXACT))
    kind = next((kind for kind, limit in kinds if largest <= limit), torch.int64)

    def run(group: _Group) -> None:
        left, right = (group.values[source].to(kind) for source in node.sources)
        group.values[node.name] = left + right

    return run


def _attention(node: Node, operator: IntegerSpikeAttention, kind: torch.dtype) -> Callable[[_Group], None]:
    def run(group: _Group) -> None:
        x = group.padded(group.values[node.sources[0]].to(kind))
        split = x.unflatten(-1, (3, operator.num_heads, operator.head_size)).permute(3, 0, 1, 4, 2, 5)
        query, key, value = split  # (T, B, H, N, head_size)
        if x.shape[-2] > operator.head_size:
            product = query @ (key.transpose(-1, -2) @ value)
        else:
            product = (query @ key.transpose(-1, -2)) @ value
        joined = product.transpose(-2, -3).flatten(-2)
        group.values[node.name] = group.packed(joined).mul(1 << operator.shift)

    return run


def _layer_norm(node: Node, operator: IntegerLayerNorm, runner: IntegerRunner) -> Callable[[_Group], None]:
    features, groups = operator.in_features, operator.groups
    scale = 2.0**-operator.shift
    gain = torch.from_numpy(operator.weight * scale).to(runner.device).view(groups, -1)
    offset = torch.from_numpy(operator.bias * scale + 0.5).to(runner.device).view(groups, -1)
    eps = torch.from_numpy(operator.integer_eps).to(runner.device)

    def run(group: _Group) -> None:
        x = group.values[node.sources[0]]
        steps, tokens = x.shape[:2]
        flat = x.reshape(steps * tokens, groups, features // groups)
        factors = _norm_factors(flat, eps)
        y = torch.empty(steps * tokens, groups, features // groups, dtype=torch.float64, device=x.device)
        for rows in _chunks(len(flat), features * 8):
            first, second, third = (factor[rows] for factor in factors)
            y[rows] = _norm(flat[rows], first, second, third, gain, offset)
        group.values[node.name] = y.reshape(steps, tokens, features)

    return run


def _passed_on(node: Node) -> Callable[[_Group], None]:
    """Return a layer that leaves a layer norm to the neurons behind it."""

    def run(group: _Group) -> None:
        group.values[node.name] = group.values[node.sources[0]]

    return run


def _fused(
    node: Node, neuron: IntegerLeakyIntegrateAndFire, norm: IntegerLayerNorm, runner: IntegerRunner
) -> Callable[[_Group], None]:
    """Return a layer of neurons and the layer norm before them, in C."""
    kernel, groups, size = runner.kernel, norm.groups, norm.in_features // norm.groups
    assert kernel is not None
    scale = 2.0**-norm.shift
    constants = [
        np.ascontiguousarray(np.broadcast_to(part, norm.in_features), np.float64)
        for part in (
            norm.weight * scale,
            norm.bias * scale + 0.5,
            (DECAY_UNITY - neuron.decay) / DECAY_UNITY,
            neuron.tested_threshold,
            neuron.bias,
        )
    ]
    state = np.empty(3 * norm.in_features)
    eps = torch.from_numpy(norm.integer_eps)

    def run(group: _Group) -> None:
        x = group.values[node.sources[0]].to(torch.int32).contiguous()
        steps, tokens = x.shape[:2]
        sums, squares = (torch.empty(steps * tokens, groups, dtype=torch.int64) for _ in range(2))
        kernel.group_sums(
            *map(_pointer, (x,)), _whole(steps * tokens * groups), _whole(size), *map(_pointer, (sums, squares))
        )
        factors = [factor.contiguous() for factor in _factors(sums, squares, size, eps)]
        spikes = torch.empty(group.steps, tokens, norm.in_features, dtype=torch.int8)
        potentials = torch.empty(spikes.shape, dtype=torch.int32) if runner.record_membrane_potentials else None
        saturated = kernel.norm_and_fire(
            _pointer(x),
            *map(_whole, (steps, group.steps, tokens, groups, size)),
            *map(_pointer, factors),
            *(ctypes.c_void_p(part.ctypes.data) for part in constants),
            ctypes.c_int(neuron.reset == "subtract"),
            ctypes.c_int(neuron.fire_on_equal),
            _pointer(spikes),
            None if potentials is None else _pointer(potentials),
            ctypes.c_void_p(state.ctypes.data),
        )
        if saturated:
            group.overflows[node.name] = Counter(wrapped_currents=0, saturated_potentials=int(saturated))
        group.values[node.name] = spikes
        group.record(node.name, spikes, potentials)

    return run


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _whole(number: int) -> ctypes.c_int64:
    return ctypes.c_int64(number)


def _norm_factors(x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the factors of ``(rows, groups, size)``, see `_factors`."""
    size = x.shape[-1]
    total = torch.empty(x.shape[:-1], dtype=torch.float64, device=x.device)
    squares = torch.empty_like(total)
    for rows in _chunks(len(x), x.shape[1] * size * 8):
        part = x[rows].double()
        torch.sum(part, -1, out=total[rows])
        torch.sum(part.square_(), -1, out=squares[rows])
    return _factors(total.to(torch.int64), squares.to(torch.int64), size, eps)


def _factors(sums: Tensor, squares: Tensor, size: int, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the features of each token are multiplied with, added to it, and multiplied with again.

    ``n = floor(x first + second)`` and ``normed = floor(n third + 1/2)``, ``(rows, groups, 1)`` each, from the sums
    and sums of squares ``(rows, groups)`` over `size` features.
    """
    radicand = size * squares - sums * sums + eps
    exponent = (RADICAND_BITS - _bit_length(radicand)).bitwise_and_(~1)
    root = integer_inverse_square_root((radicand << exponent).cpu().numpy())
    drop = numerator_shift(size)
    power = torch.ldexp(torch.ones_like(sums, dtype=torch.float64), (exponent >> 1) - drop)
    third = torch.from_numpy(root).to(sums.device).double() * 2.0 ** -(PRODUCT_BITS - drop - NORMED_BITS)
    return tuple(part.unsqueeze(-1) for part in (power * size, 0.5 - sums * power, third))  # type: ignore[return-value]


def _norm(x: Tensor, first: Tensor, second: Tensor, third: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    """Return the layer norm of ``(rows, groups, size)`` as whole numbers in float64."""
    half = torch.full((), 0.5, dtype=torch.float64, device=x.device)
    y = torch.addcmul(second, x.double(), first).floor_()
    y = torch.addcmul(half, y, third).floor_()
    return torch.addcmul(offset, y, gain).floor_()


def _bit_length(x: Tensor) -> Tensor:
    """Return the number of bits of positive int64; float64 may round one up to the next power of two."""
    length = torch.frexp(x.double()).exponent.to(torch.int64)
    return length - (x >> (length - 1) == 0).to(torch.int64)


def _neuron(
    node: Node, neuron: IntegerLeakyIntegrateAndFire, runner: IntegerRunner, largest_activation: int
) -> Callable[[_Group], None]:
    def constant(values: np.ndarray) -> Tensor:
        whole = torch.from_numpy(np.asarray(values, np.float64)).to(runner.device)
        return whole[0] if bool((whole == whole[0]).all()) else whole

    keep = constant((DECAY_UNITY - neuron.decay) / DECAY_UNITY)
    threshold, bias = constant(neuron.tested_threshold), constant(neuron.bias)
    features = neuron.in_features
    own = int(np.abs(neuron.bias).max()) + (int(neuron.tested_threshold.max()) if neuron.reset == "subtract" else 0)
    strongest = float(keep.max())

    def may_saturate(activation: int, steps: int) -> bool:
        """Return whether activations up to so much can drive a potential to its limit."""
        reachable = 0.0
        for _ in range(steps):
            reachable = reachable * strongest + (activation << ACTIVATION_SHIFT) + own
        return reachable > POTENTIAL_MAX

    def run(group: _Group) -> None:
        x = group.values[node.sources[0]]
        tokens = x.shape[1]
        doubtful = may_saturate(largest_activation, group.steps)
        spikes = torch.empty(group.steps, tokens, features, dtype=torch.int8, device=x.device)
        potentials = None
        if runner.record_membrane_potentials:
            potentials = torch.empty(group.steps, tokens, features, dtype=torch.int32, device=x.device)
        saturated: int | Tensor = 0
        for rows in _chunks(tokens, features * 8 * (2 + x.shape[0])):
            part = x[:, rows]
            # what may happen in some sentence seldom does in this one, and one look is cheaper than many clamps
            clamp = doubtful and may_saturate(int(max(-part.min(), part.max())), group.steps)
            saturated += _fire(  # counted on the device; read once at the end
                part,
                keep,
                threshold,
                bias,
                bool(neuron.bias.any()),
                neuron.reset == "subtract",
                neuron.fire_on_equal,
                clamp,
                spikes[:, rows],
                None if potentials is None else potentials[:, rows],
            )
        if saturated:
            group.overflows[node.name] = Counter(wrapped_currents=0, saturated_potentials=int(saturated))
        group.values[node.name] = spikes
        group.record(node.name, spikes, potentials)

    return run


def _fire(
    x: Tensor,
    keep: Tensor,
    threshold: Tensor,
    bias: Tensor,
    biased: bool,
    subtract: bool,
    fire_on_equal: bool,
    clamp: bool,
    spikes: Tensor,
    potentials: Tensor | None,
) -> Tensor:
    """Run neurons over activations ``(T or 1, rows, D)``, fill `spikes` and `potentials`, count what saturated."""
    fires = torch.ge if fire_on_equal else torch.gt
    potential = torch.zeros(x.shape[1:], dtype=torch.float64, device=x.device)
    fired = torch.zeros_like(potential)
    saturated = torch.zeros((), dtype=torch.int64, device=x.device)
    for step in range(spikes.shape[0]):
        if step:
            potential.mul_(keep).trunc_()
        potential.add_(x[step if x.shape[0] > 1 else 0], alpha=1 << ACTIVATION_SHIFT)
        if biased:
            potential.add_(bias)
        if subtract and step:
            potential.addcmul_(fired, threshold, value=-1)
        if clamp:
            saturated += (potential.abs() > POTENTIAL_MAX).sum()
            potential.clamp_(-POTENTIAL_MAX, POTENTIAL_MAX)
        if potentials is not None:
            potentials[step].copy_(potential)
        fires(potential, threshold, out=fired)
        spikes[step].copy_(fired)
        if not subtract:
            potential.addcmul_(potential, fired, value=-1)
    return saturated


def _heaviside(node: Node, operator: Heaviside) -> Callable[[_Group], None]:
    def run(group: _Group) -> None:
        x = group.values[node.sources[0]]
        threshold = torch.from_numpy(np.asarray(operator.threshold, np.float64)).to(x.device)
        spikes = (x >= threshold if operator.fire_on_equal else x > threshold).to(torch.int8)
        group.values[node.name] = spikes
        kept = x.to(torch.int64) if group.runner.record_membrane_potentials else None
        group.record(node.name, spikes, kept)

    return run


def _token_sum(node: Node) -> Callable[[_Group], None]:
    def run(group: _Group) -> None:
        x = group.values[node.sources[0]].to(torch.int64)
        y = x.new_zeros(x.shape[0], len(group.mask), x.shape[-1])
        group.values[node.name] = y.index_add_(1, group.sentence_of, x)

    return run


def _operator(node: Node) -> Callable[[_Group], None]:
    """Return a layer that runs the operator's own int64 step."""

    def run(group: _Group) -> None:
        x = group.values[node.sources[0]].to(torch.int64)
        padded = isinstance(node.operator, IntegerSpikeAttention)
        x = group.padded(x) if padded else x[:, None]  # operators see (..., tokens, features)
        whole = x.expand(group.steps, *x.shape[1:]).cpu().numpy()
        mask = group.mask[..., None] if padded and not group.mask.all() else None
        potentials: list[np.ndarray] = []
        execution = NodeExecution([node], np.int64, lambda _, __, potential: potentials.append(potential))
        found = []
        for step in whole:
            values = {node.sources[0]: step}
            execution.step(values, mask)
            found.append(values[node.name])
        y = torch.from_numpy(np.stack(found)).to(x.device)
        y = group.packed(y) if padded else y[:, 0]
        if node.operator.spikes:
            kept = torch.from_numpy(np.stack(potentials))[:, 0] if group.runner.record_membrane_potentials else None
            y = y.to(torch.int8)
            group.record(node.name, y, kept)
        for name, counts in overflows(execution.states).items():
            group.overflows[name] = Counter(counts)
        group.values[node.name] = y

    return run


def _chunks(rows: int, bytes_per_row: int) -> list[slice]:
    """Return slices of rows that fit the cache."""
    size = max(1, CHUNK_BYTES // bytes_per_row)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
