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

The nodes of a cycle run together, step by step. They, anything not proven so, and operators without a fast path run on
the operators' own int64 step. Wrapped currents and saturated potentials are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

from export.network import INTEGER, Network
from hardware.errors import RunnerError
from hardware.kernels.integer import load_kernel
from hardware.runners.integer.fast_paths import FAST_PATHS
from hardware.runners.integer.layer import Run
from hardware.runners.integer.packed_batch import PackedBatch
from hardware.runners.integer.planner import LayerPlanner
from hardware.runners.integer.workspace import Workspace
from hardware.runners.reference import read_outputs, thresholds
from hardware.runners.runner import Runner, check_batch, check_time_steps, number_type
from hardware.trace import Trace

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
        self.workspace = Workspace(torch.device(device))
        kernel = load_kernel() if self.workspace.on_cpu and compiled is not False else None
        if compiled and kernel is None:
            raise RunnerError(
                "the C kernel needs device 'cpu' and a C compiler: cc, what CC names, or pip install "
                "'spikebert[compiler]'"
            )
        self._bytes_per_token = 4 * max(node.operator.out_features for node in network.nodes)
        self._layers = LayerPlanner(network, FAST_PATHS, self.workspace, kernel).layers()
        self._runs = self._with_last_reads()
        self._multiplies_float32 = "float32" in self.methods.values()

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
        outputs: list[np.ndarray] = []
        groups: list[PackedBatch] = []
        with _whole_float32() if self._multiplies_float32 else nullcontext():
            for part in parts:
                group = PackedBatch(
                    self.network,
                    batch,
                    part,
                    self.workspace.device,
                    self.record_spikes,
                    self.record_membrane_potentials,
                )
                outputs.append(self._run_group(group))
                groups.append(group)
        logits, shown = read_outputs(self.network, np.concatenate(outputs, 1), batch.mask)
        overflows: dict[str, Counter[str]] = {}
        for group in groups:
            for name, counts in group.overflows.items():
                overflows.setdefault(name, Counter()).update(counts)
        return Trace(
            spikes=_joined([group.spikes for group in groups]),
            logits=logits,
            mask=batch.mask,
            outputs=shown,
            membrane_potentials=_joined([group.membrane_potentials for group in groups]),
            thresholds=thresholds(self.network) if self.record_spikes else {},
            input_ids=batch.input_ids,
            metadata={
                "runner": self.name,
                "precision": self.precision,
                "time_steps": batch.time_steps,
                "device": str(self.workspace.device),
                "overflows": {name: dict(counts) for name, counts in overflows.items()},
            },
        )

    def _run_group(self, group: PackedBatch) -> np.ndarray:
        """Return outputs ``(T, B, N or 1, C)`` int64; nothing is left of what the nodes sent but what is recorded."""
        for run, read in self._runs:
            run(group)
            for source in read:
                group.values.pop(source, None)
        shown = group.values[self.network.output_source]
        group.values.clear()
        shown = shown.expand(group.steps, *shown.shape[1:])
        full = shown[:, :, None] if self.network.pools_tokens else group.padded(shown)
        return full.to(torch.int64).cpu().numpy()

    def _with_last_reads(self) -> list[tuple[Run, list[str]]]:
        """Return what runs, in order, each with the values that nothing behind it reads."""
        runs = [(layer.run, layer.reads) for layer in self._layers if layer.run is not None]
        last = {source: place for place, (_, read) in enumerate(runs) for source in read}
        last.pop(self.network.output_source, None)
        return [(run, [s for s in read if last.get(s) == place]) for place, (run, read) in enumerate(runs)]


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
