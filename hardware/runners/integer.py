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
from math import gcd, prod
from threading import local
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from export.execution import NodeExecution
from export.loihi_numbers import ACTIVATION_MAX, ACTIVATION_SHIFT, DECAY_BITS, DECAY_UNITY, POTENTIAL_MAX
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
from export.operators.layer_norm import (
    NORMED_BITS,
    PRODUCT_BITS,
    RADICAND_BITS,
    integer_inverse_square_root,
    numerator_shift,
)
from export.operators.operator import FLOAT64_EXACT
from export.passes.intervals import Interval, check_layer_norm, largest_sum, value_intervals
from hardware.errors import RunnerError
from hardware.runners.integer_kernel import SUMS_BYTES, Kernel, KernelLayer, KernelNorm, load_kernel
from hardware.runners.reference import overflows, read_outputs, thresholds
from hardware.runners.runner import Batch, Runner, check_batch, check_time_steps, number_type
from hardware.trace import Trace

INT8_MAX = 127
INT32_EXACT, FLOAT32_EXACT = (1 << 31) - 1, 1 << 24
CHUNK_BYTES = 3 << 18
"""Of float64 that torch's layer norm and neurons work on at a time on the CPU: with what stands beside it, a core's
second cache."""
LEAST_BLOCK = 32
"""Features of which sums of squares are added up in int32; of fewer at a time it is not worth it."""
GROUP_BYTES = 64 << 20
"""Of a layer's widest sums that are held at a time: more sentences go through in groups."""
ALL = slice(None)


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
        self.scratch = _Scratch(self)
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
            check_layer_norm(operator, read, node.name)
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
                part = _part(x, rows)
                shown = None if potentials is None else _part(potentials, rows)
                # counted on the device; read once at the end
                saturated += fire(part if multiply is None else multiply(part), _part(spikes, rows), shown)
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
        full = value[:, :, None] if self.runner.network.sums_tokens else self.padded(value)
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


def _part(x: Tensor, tokens: slice) -> Tensor:
    """Return some tokens of ``(T, P, D)``; small layers would spend a tenth of their time on taking all of them."""
    return x if tokens is ALL else x[:, tokens]


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
    in_torch = None if compiled else _TorchNorm(operator, runner, read)

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
            in_torch.normalise(_part(x, rows), factors, rows, _part(y, rows))
        group.values[node.name] = y

    return run


class _Scratch(local):
    """Memory that one chunk uses after the other, for each thread its own.

    Fresh memory comes page by page from the system, each filled with zeros first, and that takes several times as long
    as a pass over it. Not so on a GPU, where torch keeps memory itself.
    """

    def __init__(self, runner: IntegerRunner) -> None:
        self._runner = runner
        self._memory: dict[str, Tensor] = {}
        self._taken: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], kind: torch.dtype = torch.float64) -> Tensor:
        """Return memory, with anything in it, that is nobody else's until the same name is taken again."""
        taken = self._taken.get(name)
        if taken is not None and taken.shape == shape and taken.dtype == kind:
            return taken
        if not self._runner.on_cpu:
            return torch.empty(shape, dtype=kind, device=self._runner.device)
        size, memory = prod(shape) * kind.itemsize, self._memory.get(name)
        if memory is None or memory.numel() < size:
            memory = self._memory[name] = torch.empty(size, dtype=torch.uint8, device=self._runner.device)
        taken = self._taken[name] = memory[:size].view(kind).view(shape)
        return taken


class _TorchNorm:
    """Layer norm of ``(T, P, D)`` whole numbers: first factors of every row, then the features in float64."""

    def __init__(self, norm: IntegerLayerNorm, runner: IntegerRunner, read: Interval) -> None:
        scale = 2.0**-norm.shift
        self.runner = runner
        self.shape = (norm.groups, norm.in_features // norm.groups)
        self.gain = torch.from_numpy(norm.weight * scale).to(runner.device).view(self.shape)
        self.offset = torch.from_numpy(norm.bias * scale + 0.5).to(runner.device).view(self.shape)
        self.eps = norm.integer_eps[:, None]
        squares = (read.magnitude**2).reshape(self.shape).sum(-1).max()
        self.sums_in = torch.float64 if squares < FLOAT64_EXACT else torch.int64
        self.largest_gain, self.largest_offset = float(self.gain.abs().max()), float(self.offset.abs().max())

    def factors(self, x: Tensor) -> _NormFactors:
        """Return what `normalise` needs to know of each row."""
        parts = x.to(torch.int32).view(*x.shape[:2], *self.shape)  # below 2^25
        low, high = (end(-1, keepdim=True).cpu().numpy() for end in (parts.amin, parts.amax))
        largest = max(-int(low.min()), int(high.max()))
        block = self._block(largest)
        if block:
            sums, squares = self._sums(parts, block)
        else:
            whole = parts.to(self.sums_in)
            sums, squares = whole.sum(-1, keepdim=True), (whole * whole).sum(-1, keepdim=True)
        first, second, third = self._factors(_whole(sums), _whole(squares).sum(-1, keepdims=True), largest)
        # a third factor is below 1, and rounding twice adds no more than 2
        normed = max(float((high * first + second).max()), -float((low * first + second).min())) + 2
        reach = int(normed * self.largest_gain + self.largest_offset) + 2

        def on_device(by: np.ndarray) -> Tensor:
            return torch.from_numpy(by).to(x.device)

        return _NormFactors(on_device(first), on_device(second), None if third is None else on_device(third), reach)

    def _block(self, largest: int) -> int:
        """Return how many features to take together so that int32 holds the sum of their squares; 0 where too few."""
        size, fitting = self.shape[1], INT32_EXACT // max(largest**2, 1)
        if fitting >= size:
            return size
        block = gcd(size, 1 << fitting.bit_length() - 1) if fitting else 0
        return block if block >= LEAST_BLOCK else 0

    def _sums(self, parts: Tensor, block: int) -> tuple[Tensor, Tensor]:
        """Return sums ``(T, P, groups, 1)`` in int32, and sums of the squares of every `block` features.

        Half the bytes of float64 to read, and the sums fit as well: no group has more than 2^12 features, and of one
        whose square fits there are 2^12 to a sum.
        """
        squares = torch.empty(*parts.shape[:3], self.shape[1] // block, dtype=torch.int32, device=parts.device)
        for rows in self.runner.chunks(parts.shape[1], parts[:, 0].numel() * 8, CHUNK_BYTES):
            part = _part(parts, rows)
            squared = torch.mul(part, part, out=self.runner.scratch.take("activations", part.shape, torch.int32))
            torch.sum(squared.unflatten(-1, (-1, block)), -1, dtype=torch.int32, out=_part(squares, rows))
        return parts.sum(-1, keepdim=True, dtype=torch.int32), squares

    def normalise(self, x: Tensor, by: _NormFactors, rows: slice, y: Tensor) -> None:
        """Fill `y` with the norm of `x`, the rows for which the factors hold that `rows` says."""
        parts = y.copy_(x).view(*y.shape[:2], *self.shape)
        # product and sum each by itself: with one factor a row torch does not vectorise them together
        parts.mul_(_part(by.first, rows)).add_(_part(by.second, rows))
        if by.third is None:
            parts.round_()
        else:
            parts.floor_().mul_(_part(by.third, rows)).add_(0.5).floor_()
        torch.addcmul(self.offset, parts, self.gain, out=parts).floor_()

    def _factors(
        self, sums: np.ndarray, squares: np.ndarray, largest: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return the factors from sums and sums of squares, where no feature's magnitude exceeds `largest`."""
        size, drop = self.shape[1], numerator_shift(self.shape[1])
        radicand = size * squares - sums * sums + self.eps
        greatest = int(radicand.max())
        exponent = _even_exponent(radicand, greatest)
        root = integer_inverse_square_root(radicand << exponent)
        # Where no numerator is shifted right (e / 2 >= h) and |D x| < 2^28, so that |S| is, too: D x f and S f, whole
        # and below 2^52, are exact, and so is their difference c f, which lies below 2^52 as well, c 2^(e / 2) being
        # below sqrt(D) 2^31. One product does. Half of the last place more, and nothing lies halfway.
        if greatest < 1 << (RADICAND_BITS - 2 * drop) and size * largest < 1 << 28:
            scale = _root_of_two_to(exponent, NORMED_BITS - PRODUCT_BITS)
            scaled = root * scale
            return scaled * size, 0.5 * scale - sums * scaled, None
        power = _root_of_two_to(exponent, -drop)
        return power * size, 0.5 - sums * power, root * 2.0 ** -(PRODUCT_BITS - drop - NORMED_BITS)


class _NormFactors(NamedTuple):
    """What the features of each group of each token are multiplied with, added to it, and multiplied with again.

    ``normed = floor(floor(x first + second) third + 1/2)``; without a third one ``normed = nearest(x first + second)``.
    No activation exceeds `reach` in magnitude.
    """

    first: Tensor
    second: Tensor
    third: Tensor | None
    reach: int


def _whole(x: Tensor) -> np.ndarray:
    return x.cpu().numpy().astype(np.int64)


def _even_exponent(x: np.ndarray, greatest: int) -> np.ndarray:
    """Return the even e with ``2^60 <= x 2^e < 2^62`` for positive int64 up to `greatest`."""
    length = (x.astype(np.float64).view(np.int64) >> 52) - 1022  # the exponent that float64 holds
    if greatest >= FLOAT64_EXACT:  # may have been rounded up to the next power of two
        length -= x >> (length - 1) == 0
    return RADICAND_BITS - length & ~1


def _root_of_two_to(exponent: np.ndarray, more: int) -> np.ndarray:
    """Return ``2^(e / 2 + more)`` for even exponents, from float64's bits."""
    return ((exponent << 51) + (more + 1023 << 52)).view(np.float64)


_Fire = Callable[[Tensor, Tensor, "Tensor | None"], "int | Tensor"]
"""Takes what neurons or the norm before them read, ``(T or 1, P, D)``; fills spikes and potentials ``(T, P, D)``;
returns how many potentials were held at their limit."""


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
    in_torch = None if norm is None or norm_reads is None else _TorchNorm(norm, runner, norm_reads)
    neurons = _TorchNeurons(neuron, runner)

    def fire(x: Tensor, spikes: Tensor, potentials: Tensor | None) -> int | Tensor:
        saturated: int | Tensor = 0
        factors = None if in_torch is None else in_torch.factors(x)
        reach = largest_activation if factors is None else min(largest_activation, factors.reach)
        for rows in runner.chunks(x.shape[1], x.shape[2] * 8 * x.shape[0], CHUNK_BYTES):
            part = _part(x, rows)
            charges = runner.scratch.take("activations", part.shape)
            if in_torch is None or factors is None:
                charges.copy_(part)
            else:
                in_torch.normalise(part, factors, rows, charges)
            shown = None if potentials is None else _part(potentials, rows)
            saturated += neurons(charges, reach, _part(spikes, rows), shown)
        return saturated

    return fire


class _TorchNeurons:
    """Neurons over activations ``(T or 1, P, D)``, whole numbers in float64."""

    def __init__(self, neuron: IntegerLeakyIntegrateAndFire, runner: IntegerRunner) -> None:
        def constant(values: np.ndarray) -> Tensor:
            whole = torch.from_numpy(np.asarray(values, np.float64)).to(runner.device)
            return whole[0] if bool((whole == whole[0]).all()) else whole

        self.runner = runner
        keep, threshold = DECAY_UNITY - neuron.decay.astype(np.int64), neuron.tested_threshold.astype(np.int64)
        self.keep, self.threshold = constant(keep / DECAY_UNITY), constant(threshold)
        self.bias = constant(neuron.bias) if neuron.bias.any() else None
        self.subtracts = neuron.reset == "subtract"
        self.fires = torch.ge if neuron.fire_on_equal else torch.gt
        self.largest_bias, self.strongest = int(np.abs(neuron.bias).max()), float(keep.max()) / DECAY_UNITY
        # a potential that fired keeps no less than the threshold would: of what a spike takes, only so much is missing
        self.taken = int((threshold - (threshold * keep >> DECAY_BITS)).max()) if self.subtracts else 0

    def __call__(self, x: Tensor, reach: int, spikes: Tensor, potentials: Tensor | None) -> int | Tensor:
        """Fill `spikes` and `potentials` ``(T, P, D)``; return how many potentials were held at their limit.

        No activation exceeds `reach`. They are lost: where each step has its own, what fired takes their place.
        """
        steps, scratch = spikes.shape[0], self.runner.scratch
        # what may happen in some sentence seldom does in this one
        doubtful = self._may_saturate(reach, steps) and self._may_saturate(_largest(x), steps)
        moving = x.shape[0] > 1
        potential, fired = scratch.take("potential", x.shape[1:]), x[0]
        still = None if moving else scratch.take("fired", x.shape[1:])
        saturated: int | Tensor = 0
        for step, charge in enumerate(x if moving else x.expand(steps, *x.shape[1:])):
            if step == 0:  # nothing is left of any step before
                torch.mul(charge, 1 << ACTIVATION_SHIFT, out=potential)
            else:
                if not self.subtracts:
                    potential.addcmul_(potential, fired, value=-1)
                potential.mul_(self.keep).trunc_().add_(charge, alpha=1 << ACTIVATION_SHIFT)
                if self.subtracts:
                    potential.addcmul_(fired, self.threshold, value=-1)
            if self.bias is not None:
                potential.add_(self.bias)
            # to look is cheaper than to hold and count, but for a GPU the looks had to wait at every step
            if doubtful and not (self.runner.on_cpu and _largest(potential) <= POTENTIAL_MAX):
                saturated += (potential.abs() > POTENTIAL_MAX).sum()
                potential.clamp_(-POTENTIAL_MAX, POTENTIAL_MAX)
            if potentials is not None:
                potentials[step].copy_(potential)
            fired = self.fires(potential, self.threshold, out=charge if still is None else still)
            if still is not None:
                spikes[step].copy_(fired)
        if still is None:
            spikes.copy_(x)
        return saturated

    def _may_saturate(self, activation: int, steps: int) -> bool:
        """Return whether activations up to so much can drive a potential to its limit."""
        reachable = 0.0
        for _ in range(steps):
            kept = max(reachable * self.strongest, self.taken)
            reachable = kept + (activation << ACTIVATION_SHIFT) + self.largest_bias
        return reachable > POTENTIAL_MAX


def _largest(x: Tensor) -> int:
    """Return the largest magnitude of whole numbers; twice amax reads them in less time than one aminmax."""
    return int(max(x.amax().item(), -x.amin().item()))


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
