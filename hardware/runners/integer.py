"""Runner ``integer``: simulates an integer graph fast, and exactly by construction.

The reference interpreter computes the same graph operator by operator in int64; here whole layers run over all time
steps, sentences and real tokens at once (padding is not computed at all), in whatever type is proven exact for them
when the runner is built. Proof is by intervals (``export.passes.intervals``): how large a sum can get, whatever
sentence comes.

affine
    int8 products with 32-bit sums where inputs are 0 to 127 and no sum leaves 32 bits (the C kernel's on tiles, else
    oneDNN's); else float32 below 2^24, float64 below 2^53. On other devices than the CPU float32 and float64 only.
attention
    float32 below 2^24, else float64; on tiles in bytes where K^T V fits them.
layer norm
    float64: `IntegerLayerNorm` is made such that every product stays below 2^53; the inverse square root in int64;
    sums and sums of squares in int32 where the largest number that came says that they fit.
neuron
    float64, potentials being below 2^24 and decays 12 bits, where no current can wrap around.

Where nothing else reads them, an affine map, the layer norm behind it and its neurons are computed together, some
tokens at a time, so that sums of 32 bits never leave the cache. Layer norm, neurons and attention run in C where
there is a compiler (``integer_kernel.c``), and so do products of bytes where the processor has tiles for them (AMX);
there neurons are in float32, by a way of decaying that it holds.

The nodes of a cycle run together, step by step. They, and anything not proven so, run on the operators' own int64 step.
Wrapped currents and saturated potentials are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from export.execution import NodeExecution
from export.loihi_numbers import ACTIVATION_MAX
from export.network import INTEGER, Network, Node
from export.operators import (
    Heaviside,
    IntegerAffine,
    IntegerLayerNorm,
    IntegerLeakyIntegrateAndFire,
    IntegerSpikeAttention,
    Operator,
    TokenMean,
    Total,
)
from export.operators.interval import Interval, largest_sum
from export.operators.operator import FLOAT64_EXACT
from export.passes.intervals import value_intervals
from hardware.errors import RunnerError
from hardware.runners.integer_kernel import SUMS_BYTES, Kernel, KernelLayer, KernelNorm, load_kernel
from hardware.runners.integer_torch import ALL, CHUNK_BYTES, INT32_EXACT, TorchNeurons, TorchNorm, tokens_of
from hardware.runners.reference import overflows, read_outputs, thresholds
from hardware.runners.runner import Batch, Runner, check_batch, check_time_steps, number_type
from hardware.runners.scratch import Scratch
from hardware.trace import Trace

INT8_MAX = 127
FLOAT32_EXACT = 1 << 24
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
        Run layers and attention in C (``integer_kernel.c``); by default where there is a C compiler and torch computes
        on the CPU. The numbers are the same: what is exact does not depend on the order of
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
        self.scratch = Scratch(self.device)
        intervals = value_intervals(network)
        self.readers = Counter(source for node in network.nodes for source in node.sources)
        self.readers[network.output_source] += 1
        self.kernel = load_kernel() if self.on_cpu and compiled is not False else None
        if compiled and self.kernel is None:
            raise RunnerError(
                "the C kernel needs device 'cpu' and a C compiler: cc, what CC names, or pip install "
                "'spikebert[compiler]'"
            )
        self._by_name = {node.name: node for node in network.nodes}
        widest = max(node.operator.out_features for node in network.nodes)
        self._bytes_per_token = 4 * widest
        self._on_cycles = {node.name for stage in network.stages if len(stage) > 1 for node in stage}
        self._together = {node.name: self._chain(node, intervals) for node in network.nodes}
        self._ahead = {before.name for chain in self._together.values() for before in chain}
        self._layers = [self._stage(stage, intervals) for stage in network.stages]
        self._steps = self._with_last_reads()
        self._multiplies_float32 = _name(torch.float32) in self.methods.values()

    @property
    def on_cpu(self) -> bool:
        """Whether there are int8 products, the C kernel, and a cache to cut layers for."""
        return self.device.type == "cpu"

    @property
    def methods(self) -> dict[str, str]:
        """How each node is computed."""
        return {node.name: layer.method for layer in self._layers for node in layer.nodes}

    @torch.inference_mode()
    def run(self, inputs: Any, token_mask: Any = None) -> Trace:
        """Run one batch; see `Runner.run`."""
        batch = check_batch(self.network, inputs, token_mask, self.time_steps)
        sentences, tokens = batch.mask.shape
        size = max(1, GROUP_BYTES // (self._bytes_per_token * batch.time_steps * tokens))
        parts = [slice(start, min(start + size, sentences)) for start in range(0, sentences, size)]
        with _whole_float32() if self._multiplies_float32 else nullcontext():
            groups = [self._run_group(batch, part) for part in parts]
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
        for run, read in self._steps:
            run(group)
            for source in read:
                group.values.pop(source, None)
        group.outputs = group.shown(group.values[self.network.output_source])
        group.values.clear()
        return group

    def _read_with(self, node: Node) -> tuple[str, ...]:
        """Return whose values are read to compute a node together with what is computed with it."""
        return (*self._together[node.name], node)[0].sources

    def _with_last_reads(self) -> list[tuple[Callable[[_Group], None], list[str]]]:
        """Return what runs, in order, each with the values that nothing behind it reads."""
        runs = [
            (layer.run, layer.reads if layer.others else self._read_with(layer.node))
            for layer in self._layers
            if layer.run is not None
        ]
        last = {source: place for place, (_, read) in enumerate(runs) for source in read}
        last.pop(self.network.output_source, None)
        return [(run, [s for s in read if last.get(s) == place]) for place, (run, read) in enumerate(runs)]

    def chunks(self, rows: int, bytes_per_row: int, limit: int) -> list[slice]:
        """Return slices of rows that take no more than `limit` bytes each; all of them where there is no such cache."""
        size = max(1, limit // bytes_per_row) if self.on_cpu else rows
        if size >= rows:
            return [ALL]
        return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]

    def _stage(self, stage: tuple[Node, ...], intervals: dict[str, Interval]) -> _Layer:
        """Choose how a node is computed; the nodes of a cycle are computed together."""
        *others, last = stage
        return _Layer(last, "int64", _operator(*stage), tuple(others)) if others else self._layer(last, intervals)

    def _layer(self, node: Node, intervals: dict[str, Interval]) -> _Layer:
        """Choose how a node is computed."""
        operator, read, found = node.operator, intervals.get(node.sources[0]), intervals.get(node.name)
        if isinstance(operator, Total):
            return _Layer(node, "sum", _total(node, found))
        if isinstance(operator, IntegerAffine):
            return self._affine_layer(node, operator, intervals)
        if isinstance(operator, IntegerSpikeAttention) and read is not None and self.network.max_tokens is not None:
            largest = FLOAT64_EXACT if found is None else found.largest
            inner = self.network.max_tokens * operator.head_size * read.largest**2
            if max(largest, inner) < FLOAT64_EXACT and read.low.min() >= 0:
                if self.kernel is not None and max(largest, inner) < FLOAT32_EXACT and read.largest <= INT8_MAX:
                    return _Layer(node, "C", _compiled_attention(node, operator, self.kernel, read.largest))
                kind = torch.float32 if max(largest, inner) < FLOAT32_EXACT else torch.float64
                return _Layer(node, _name(kind), _attention(node, operator, kind))
        if isinstance(operator, IntegerLayerNorm) and read is not None:
            operator.check_sums(read, node.name)
            compiled = self.kernel is not None and found is not None and found.largest <= INT32_EXACT
            method = "C" if compiled else "float64"
            if node.name in self._ahead:
                return _Layer(node, method)
            return _Layer(node, method, _layer_norm(node, operator, self, read, compiled))
        if isinstance(operator, IntegerLeakyIntegrateAndFire) and _is_proven(operator, read):
            return _Layer(node, "float64" if self.kernel is None else "C", self._neurons(node, operator, intervals))
        if isinstance(operator, TokenMean):
            return _Layer(node, "sum", _token_sum(node, found))
        if isinstance(operator, Heaviside) and read is not None and read.largest < FLOAT64_EXACT:
            return _Layer(node, "comparison", _heaviside(node, operator, read, self.device))
        return _Layer(node, "int64", _operator(node))

    def _chain(self, node: Node, intervals: dict[str, Interval]) -> list[Node]:
        """Return the affine map and layer norm before a neuron that nothing else reads: what is computed with it."""
        if node.name in self._on_cycles or not _is_proven(node.operator, intervals.get(node.sources[0])):
            return []
        chain: list[Node] = []
        for kind in (IntegerLayerNorm, IntegerAffine):
            before = self._by_name.get((chain[0] if chain else node).sources[0])
            if before is None or not isinstance(before.operator, kind) or self.readers[before.name] > 1:
                continue
            if isinstance(before.operator, IntegerLayerNorm):
                alone = before.sources[0] in intervals
            else:
                assert isinstance(before.operator, IntegerAffine)
                alone = self._product_type(before, before.operator, intervals) is not None
            if alone:
                chain.insert(0, before)
        return chain

    def _neurons(
        self, node: Node, neuron: IntegerLeakyIntegrateAndFire, intervals: dict[str, Interval]
    ) -> Callable[[_Group], None]:
        """Return a layer of neurons with what is computed together with them."""
        multiply: Callable[[Tensor], Tensor] | None = None
        affine: IntegerAffine | None = None
        norm: IntegerLayerNorm | None = None
        widest = neuron.in_features
        (first,) = self._read_with(node)
        for before in self._together[node.name]:
            if isinstance(before.operator, IntegerLayerNorm):
                norm = before.operator
            else:
                assert isinstance(before.operator, IntegerAffine)
                kind = self._product_type(before, before.operator, intervals)
                assert kind is not None
                if kind == torch.int8 and self.kernel is not None and self.kernel.multiplies(before.operator):
                    affine = before.operator
                else:
                    multiply = _product(before.operator, kind, self.device)
        if self.kernel is not None:
            fire = _compiled_fire(affine, norm, neuron, self.kernel)
        else:
            inputs = None
            if norm is not None:
                last = self._together[node.name][-1]
                inputs = intervals[last.sources[0]]
            fire = _fire_in_torch(norm, neuron, self, intervals[node.sources[0]].largest, inputs)

        def run(group: _Group) -> None:
            x = group.values[first]
            steps, tokens, _ = x.shape
            spikes = torch.empty(group.steps, tokens, neuron.in_features, dtype=torch.int8, device=x.device)
            potentials = None
            if self.record_membrane_potentials:
                potentials = torch.empty(spikes.shape, dtype=torch.int32, device=x.device)
            saturated: int | Tensor = 0
            for rows in [ALL] if affine is not None else self.chunks(tokens, 4 * widest * steps, SUMS_BYTES):
                part = tokens_of(x, rows)
                shown = None if potentials is None else tokens_of(potentials, rows)
                # counted on the device; read once at the end
                saturated += fire(part if multiply is None else multiply(part), tokens_of(spikes, rows), shown)
            if saturated:
                group.overflows[node.name] = Counter(wrapped_currents=0, saturated_potentials=int(saturated))
            group.values[node.name] = spikes
            group.record(node.name, spikes, potentials)

        return run

    def _product_type(self, node: Node, operator: IntegerAffine, intervals: dict[str, Interval]) -> torch.dtype | None:
        """Return the type of inputs in which an affine map is exact; None where none is proven."""
        read = intervals.get(node.sources[0])
        if read is None or self._is_gathered(node):
            return None
        largest = largest_sum(operator.weight, operator.bias, read)
        narrow = operator.weight.dtype == np.int8 and read.low.min() >= 0 and read.largest <= INT8_MAX
        if narrow and largest <= INT32_EXACT and self.on_cpu:
            return torch.int8
        if largest < FLOAT64_EXACT:
            return torch.float32 if largest < FLOAT32_EXACT else torch.float64
        return None

    def _is_gathered(self, node: Node) -> bool:
        return node.sources[0] == self.network.input_name and self.network.token_encoding is not None

    def _affine_layer(self, node: Node, operator: IntegerAffine, intervals: dict[str, Interval]) -> _Layer:
        if self._is_gathered(node):
            return _Layer(node, "gather", _gather(node, operator, self.device, intervals.get(node.name)))
        kind = self._product_type(node, operator, intervals)
        if kind is None:
            return _Layer(node, "int64", _operator(node))
        if node.name in self._ahead:
            return _Layer(node, _name(kind))
        return _Layer(node, _name(kind), _affine(node, _product(operator, kind, self.device)))


@dataclass(frozen=True)
class _Layer:
    """A node and how it is computed.

    `run` reads and writes the values of a group; it is None where the neurons behind compute the node with themselves.
    The neurons of a cycle come with the `others` on it, which are computed with them.
    """

    node: Node
    method: str
    run: Callable[[_Group], None] | None = None
    others: tuple[Node, ...] = ()

    @property
    def nodes(self) -> tuple[Node, ...]:
        return (*self.others, self.node)

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(source for node in self.nodes for source in node.sources)


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
        self.lengths = torch.from_numpy(self.mask.sum(-1, dtype=np.int64))
        self.places = torch.from_numpy(np.flatnonzero(self.mask)).to(runner.device)
        self.values: dict[str, Tensor] = {}
        self.spikes: dict[str, np.ndarray] = {}
        self.potentials: dict[str, np.ndarray] = {}
        self.overflows: dict[str, Counter[str]] = {}
        self.outputs = np.zeros(0)
        self.hot: Tensor | None = None
        network = runner.network
        if batch.hot_inputs is not None:
            self.hot = torch.from_numpy(batch.hot_inputs[:, rows][:, self.mask]).to(runner.device)
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
        full = value[:, :, None] if self.runner.network.pools_tokens else self.padded(value)
        return full.to(torch.int64).cpu().numpy()

    def record(self, name: str, spikes: Tensor, potentials: Tensor | None) -> None:
        """Keep what a neuron sent, and what it tested, where the runner is asked to."""
        if self.runner.record_spikes:
            self.spikes[name] = self.padded(spikes.expand(self.steps, -1, -1)).cpu().numpy().view(np.uint8)
        if potentials is not None:
            self.potentials[name] = self.padded(potentials.expand(self.steps, -1, -1)).cpu().numpy()


@contextmanager
def _whole_float32() -> Iterator[None]:
    """Have float32 products take all 24 bits: a program may have allowed torch to take fewer (TF32, bfloat16)."""
    cuda: Any = torch.backends.cuda
    mkldnn: Any = torch.backends.mkldnn
    if not hasattr(mkldnn, "matmul"):  # torch before 2.9
        allowed = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(allowed)
        return
    # not by the function above, which raises where a program has set one of these
    backends = (cuda.matmul, mkldnn.matmul)
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        for backend, found in zip(backends, before, strict=True):
            backend.fp32_precision = "none"  # what a wider setting says
            if backend.fp32_precision != found:
                backend.fp32_precision = found


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts], 1) for name in parts[0]}


def _gather(
    node: Node, operator: IntegerAffine, device: torch.device, interval: Interval | None
) -> Callable[[_Group], None]:
    table = torch.from_numpy(operator.weight.T.copy()).to(device)  # a row for each input: what is read lies together
    bias = None if operator.bias is None else torch.from_numpy(operator.bias).to(device)
    kind = _whole_type(interval)

    def run(group: _Group) -> None:
        assert group.hot is not None
        first, *others = group.hot
        y = table.index_select(0, first).to(kind)
        for hot in others:
            y += table.index_select(0, hot)
        group.values[node.name] = (y if bias is None else y.add_(bias))[None]

    return run


def _is_proven(operator: Operator, read: Interval | None) -> bool:
    """Return whether a node is neurons whose currents cannot wrap around."""
    return isinstance(operator, IntegerLeakyIntegrateAndFire) and read is not None and read.largest <= ACTIVATION_MAX


def _name(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


def _product(operator: IntegerAffine, kind: torch.dtype, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return what takes ``(T, P, in)`` to ``(T, P, out)`` in a type that is exact."""
    weight = torch.from_numpy(operator.weight).to(device, kind).t()
    multiply, sums_in = (torch._int_mm, torch.int32) if kind == torch.int8 else (torch.mm, kind)
    bias = None if operator.bias is None else torch.from_numpy(operator.bias).to(device, sums_in)

    def product(x: Tensor) -> Tensor:
        steps, tokens, features = x.shape
        y = multiply(x.to(kind).reshape(-1, features), weight).view(steps, tokens, -1)
        return y if bias is None else y.add_(bias)

    return product


def _affine(node: Node, product: Callable[[Tensor], Tensor]) -> Callable[[_Group], None]:
    def run(group: _Group) -> None:
        group.values[node.name] = product(group.values[node.sources[0]])

    return run


def _whole_type(interval: Interval | None) -> torch.dtype:
    """Return the narrower of int32 and int64 that holds what a node sends."""
    return torch.int32 if interval is not None and interval.largest <= INT32_EXACT else torch.int64


def _total(node: Node, interval: Interval | None) -> Callable[[_Group], None]:
    narrow = interval is not None and interval.largest <= INT8_MAX
    kind = torch.int8 if narrow else _whole_type(interval)

    def run(group: _Group) -> None:
        left, right = (group.values[source].to(kind) for source in node.sources)
        group.values[node.name] = left + right

    return run


def _attention(node: Node, operator: IntegerSpikeAttention, kind: torch.dtype) -> Callable[[_Group], None]:
    def run(group: _Group) -> None:
        spikes = group.padded(group.values[node.sources[0]])
        parts = spikes.unflatten(-1, (3, operator.num_heads, operator.head_size)).permute(3, 0, 1, 4, 2, 5)
        # head by head in one copy, which also changes the type; products would make one of each part. What they are
        # multiplied with is a power of two, and exact wherever it stands.
        query, key, value = parts.to(kind, memory_format=torch.contiguous_format).flatten(1, 3)  # (T B H, N, head_size)
        if spikes.shape[-2] > operator.head_size:
            product = query @ (key.transpose(-1, -2) @ value).mul_(1 << operator.shift)
        else:
            product = (query @ key.transpose(-1, -2)).mul_(1 << operator.shift) @ value
        joined = product.unflatten(0, parts.shape[1:4]).transpose(-2, -3).flatten(-2)
        group.values[node.name] = group.packed(joined)

    return run


def _compiled_attention(
    node: Node, operator: IntegerSpikeAttention, kernel: Kernel, largest: int
) -> Callable[[_Group], None]:
    def run(group: _Group) -> None:
        spikes = group.values[node.sources[0]].to(torch.int8)
        group.values[node.name] = kernel.attend(
            spikes, group.lengths, operator.num_heads, operator.head_size, 1 << operator.shift, largest
        )

    return run


def _layer_norm(
    node: Node, operator: IntegerLayerNorm, runner: IntegerRunner, read: Interval, compiled: bool
) -> Callable[[_Group], None]:
    kernel_norm = KernelNorm(operator) if compiled else None
    in_torch = None if compiled else TorchNorm(operator, runner, read)

    def run(group: _Group) -> None:
        x = group.values[node.sources[0]]
        if kernel_norm is not None:
            assert runner.kernel is not None
            group.values[node.name] = runner.kernel.normalise(x, kernel_norm)
            return
        assert in_torch is not None
        y = torch.empty(x.shape, dtype=torch.float64, device=x.device)
        factors = in_torch.factors(x)
        for rows in runner.chunks(x.shape[1], x.shape[0] * x.shape[2] * 8, CHUNK_BYTES):
            in_torch.normalise(tokens_of(x, rows), factors, rows, tokens_of(y, rows))
        group.values[node.name] = y

    return run


_Fire = Callable[[Tensor, Tensor, "Tensor | None"], "int | Tensor"]
"""Takes what the first of a layer reads that it computes itself, ``(T or 1, P, D)``; fills spikes and potentials
``(T, P, D)``; returns how many potentials were held at their limit."""


def _compiled_fire(
    affine: IntegerAffine | None, norm: IntegerLayerNorm | None, neuron: IntegerLeakyIntegrateAndFire, kernel: Kernel
) -> _Fire:
    layer = KernelLayer(affine, norm, neuron)
    return lambda x, spikes, potentials: kernel.fire(layer, x, spikes, potentials)


def _fire_in_torch(
    norm: IntegerLayerNorm | None,
    neuron: IntegerLeakyIntegrateAndFire,
    runner: IntegerRunner,
    largest_activation: int,
    norm_reads: Interval | None,
) -> _Fire:
    in_torch = None if norm is None or norm_reads is None else TorchNorm(norm, runner, norm_reads)
    neurons = TorchNeurons(neuron, runner)

    def fire(x: Tensor, spikes: Tensor, potentials: Tensor | None) -> int | Tensor:
        saturated: int | Tensor = 0
        factors = None if in_torch is None else in_torch.factors(x)
        reach = largest_activation if factors is None else min(largest_activation, factors.reach)
        for rows in runner.chunks(x.shape[1], x.shape[2] * 8 * x.shape[0], CHUNK_BYTES):
            part = tokens_of(x, rows)
            charges = runner.scratch.take("activations", part.shape)
            if in_torch is None or factors is None:
                charges.copy_(part)
            else:
                in_torch.normalise(part, factors, rows, charges)
            shown = None if potentials is None else tokens_of(potentials, rows)
            saturated += neurons(charges, reach, tokens_of(spikes, rows), shown)
        return saturated

    return fire


def _heaviside(node: Node, operator: Heaviside, read: Interval, device: torch.device) -> Callable[[_Group], None]:
    kind = _whole_type(read)
    # whole numbers reach a threshold where they exceed the last whole number below it
    above = np.ceil(operator.threshold) - 1 if operator.fire_on_equal else np.floor(operator.threshold)
    below = torch.from_numpy(np.asarray(np.clip(above, -read.largest - 1, read.largest))).to(device, kind)

    def run(group: _Group) -> None:
        x = group.values[node.sources[0]]
        spikes = (x.to(kind) > below).to(torch.int8)
        group.values[node.name] = spikes
        kept = x.to(torch.int64) if group.runner.record_membrane_potentials else None
        group.record(node.name, spikes, kept)

    return run


def _token_sum(node: Node, interval: Interval | None) -> Callable[[_Group], None]:
    kind = _whole_type(interval)

    def run(group: _Group) -> None:
        whole = group.values[node.sources[0]].to(kind)
        group.values[node.name] = group.padded(whole).sum(-2, dtype=kind)

    return run


def _operator(*nodes: Node) -> Callable[[_Group], None]:
    """Return a layer that runs a node, or those of a cycle, step by step on the operators' own int64 arithmetic."""
    inside = [node.name for node in nodes]
    outside = list(dict.fromkeys(name for node in nodes for name in node.sources if name not in inside))
    # attention alone needs to know whose tokens are whose; all else sees all of them in one row
    padded = any(isinstance(node.operator, IntegerSpikeAttention) for node in nodes)

    def run(group: _Group) -> None:
        def spread(name: str) -> np.ndarray:
            x = group.values[name].to(torch.int64)
            x = group.padded(x) if padded else x[:, None]  # operators see (..., tokens, features)
            return x.expand(group.steps, *x.shape[1:]).cpu().numpy()

        def gathered(steps: list[np.ndarray]) -> Tensor:
            y = torch.from_numpy(np.stack(steps)).to(group.places.device)
            return group.packed(y) if padded else y[:, 0]

        mask = group.mask[..., None] if padded and not group.mask.all() else None
        potentials: dict[str, list[np.ndarray]] = {node.name: [] for node in nodes if node.operator.spikes}
        execution = NodeExecution(nodes, np.int64, lambda name, _, potential: potentials[name].append(potential))
        read = {name: spread(name) for name in outside}
        found: dict[str, list[np.ndarray]] = {name: [] for name in inside}
        shape = group.mask if padded else group.places[None].cpu().numpy()
        for step in range(group.steps):
            values = {name: x[step] for name, x in read.items()}
            # where a cycle reads nothing from outside, the third says how many sentences and tokens there are
            execution.step(values, mask, shape[None])
            for name in inside:
                found[name].append(values[name])
        for node in nodes:
            y = gathered(found[node.name])
            if node.operator.spikes:
                y = y.to(torch.int8)
                keeps = group.runner.record_membrane_potentials
                group.record(node.name, y, gathered(potentials[node.name]) if keeps else None)
            group.values[node.name] = y
        for name, counts in overflows(execution.states).items():
            group.overflows[name] = Counter(counts)

    return run
