"""How fast a graph is simulated: samples a second by size, batch and simulator, all in one run of one process.

    python benchmarks/simulation.py [--sizes 2x128 2x384 12x768] [--batches 1 32] [--compile] [--rows-only]

Every row of a table is a function `(case) -> Callable[[], None] | None` in `ROWS`: it builds what it needs and returns
what is timed, or None where it does not apply. Rounds go through all rows in turn, so that a busy machine slows all of
them; what counts are the ratios. On one thread the processor's time is taken, which other work on the machine hardly
touches; on several the wall clock. Weights are random (the time does not depend on them, spikes or no); sentences are
full. Tiles are the processor's for products of bytes (AMX); with ``ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI`` torch has none
either, as on a processor without them. The last row is the float graph on Lava, one process for each operator, one
sentence a round, as Lava runs them: of its wall clock and the time for which it keeps processors busy the shorter one
counts. First comes, unless there is `--rows-only`, what Lava costs at each size (`benchmarks/lava_rows.py`: start,
seconds a sample and memory of every granularity, beside NumPy and PyTorch), and what a plain mapping on Lava does on as
many tokens as it can. Prints tables and writes results/simulation.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lava_rows
import numpy as np
import psutil
import torch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from export import quantize, to_nir
from export.network import Network
from export.nir_graph.reader import parse_graph
from export.operators import Affine
from hardware import open_runner
from hardware.kernels.integer import load_kernel
from hardware.runners.runner import Runner
from spikebert.neuron import SpikingNeuron

RESULTS = Path("results/simulation.json")
CALIBRATION_TOKENS = 16
REFERENCE_ROW = "torch float32"
LAVA_ROW = "Lava float32, a process an operator"


@dataclass(frozen=True)
class Case:
    """What is simulated.

    Attributes
    ----------
    model : PreTrainedModel
    integer : Network
        The model's graph, quantized.
    ids : ndarray
        ``(B, N)`` token ids.
    compile : bool
        Whether rows that compile may.
    """

    model: PreTrainedModel
    integer: Network
    ids: np.ndarray
    compile: bool


def torch_row(case: Case, dtype: torch.dtype = torch.float32, compiled: bool = False) -> Callable[[], None]:
    """Time the model itself, logits only."""
    import copy

    model = copy.deepcopy(case.model).to(dtype) if compiled or dtype != torch.float32 else case.model
    if compiled:
        for module in model.modules():
            if isinstance(module, SpikingNeuron):
                module.compile_recurrence()
    ids = torch.from_numpy(case.ids)

    @torch.no_grad()
    def run() -> None:
        model(ids)

    return run


def integer_row(case: Case, compiled: bool = False) -> Callable[[], None]:
    """Time the integer simulator, logits only."""
    runner = open_runner(case.integer, "integer", "integer", record_spikes=False, compiled=compiled)
    return lambda: runner.run(case.ids) and None


def integer_row_without_tiles(case: Case) -> Callable[[], None] | None:
    """Time the integer simulator as it is where the processor has no tiles, on one that has."""
    kernel = load_kernel()
    if kernel is None or not kernel.has_tiles:
        return None
    without = patch.object(kernel, "has_tiles", False)
    with without:
        timed = integer_row(case, compiled=True)

    def run() -> None:
        with without:
            timed()

    return run


ROWS: dict[str, Callable[[Case], Callable[[], None] | None]] = {
    REFERENCE_ROW: torch_row,
    "torch float32, compiled neurons": lambda case: torch_row(case, compiled=True) if case.compile else None,
    "torch bfloat16": lambda case: torch_row(case, torch.bfloat16),
    "integer, torch alone": integer_row,
    "integer, C without tiles": integer_row_without_tiles,
    "integer, C kernel": lambda case: integer_row(case, compiled=True),
}


def make_case(blocks: int, width: int, batch: int, tokens: int, compiled: bool) -> Case:
    """Return the random model that `lava_rows` measures Lava on, and its integer graph."""
    model = lava_rows.random_model(blocks, width, tokens)
    ids = np.random.default_rng(0).integers(1, lava_rows.VOCABULARY, (batch, tokens))
    graph = quantize(to_nir(model), ids[:1, :CALIBRATION_TOKENS], clip=False)
    return Case(model, parse_graph(graph), ids, compiled)


def measure(case: Case, rounds: int, budget: float, lava: Runner | None) -> dict[str, float]:
    """Return the median seconds of a batch by row, over no more rounds than begin within `budget` seconds."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    timed = {name: row(case) for name, row in ROWS.items()}
    seconds: dict[str, list[float]] = {name: [] for name, run in timed.items() if run is not None}
    on_lava: list[tuple[float, float]] = []
    spent = 0.0
    for turn in range(rounds + 1):  # the first warms up
        if turn > 1 and spent > budget:
            break
        for name, run in timed.items():
            if run is None:
                continue
            began = clock()
            run()
            took = clock() - began
            spent += took
            if turn:
                seconds[name].append(took)
        if lava is not None:
            took_on_lava = lava_seconds(lava, case.ids[:1])
            spent += took_on_lava[0]
            if turn:
                on_lava.append(took_on_lava)
    found = {name: statistics.median(values) for name, values in seconds.items()}
    if on_lava:
        found[LAVA_ROW] = len(case.ids) * min(statistics.median(clocks) for clocks in zip(*on_lava, strict=True))
    return found


def open_lava(case: Case) -> Any:
    """Return the model's float graph on Lava, one process for each operator, ready to run."""
    runner = open_runner(to_nir(case.model), "lava", "float32", granularity="operator", tokens=case.ids.shape[1])
    runner.start()
    return runner


def lava_seconds(runner: Any, ids: np.ndarray) -> tuple[float, float]:
    """Return by the wall clock, and by what all processes were busy, how long a sentence takes on Lava."""
    actors = runner.process_ids()
    busy, began = lava_rows.processor_seconds(actors), time.perf_counter()
    runner.run(ids)
    return time.perf_counter() - began, lava_rows.processor_seconds(actors) - busy


def memory_share(case: Case) -> dict[str, float]:
    """Return what the integer runner holds beside the network, in bytes, with the int8 weights to compare with."""
    process = psutil.Process()
    weights = sum(n.operator.weight.nbytes for n in case.integer.nodes if isinstance(n.operator, Affine))
    before = process.memory_info().rss
    with open_runner(case.integer, "integer", "integer", record_spikes=False) as runner:
        built = process.memory_info().rss - before
        runner.run(case.ids[:1])
        ran = process.memory_info().rss - before
    return {"int8_weight_bytes": weights, "built_bytes": built, "built_and_run_bytes": ran}


def lava_costs(size: str, tokens: int, rounds: int, console: Console) -> dict[str, Any]:
    """Measure every way of `lava_rows` at a size and print their tables."""
    blocks, width = map(int, size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.nir"
        lava_rows.write_random_model(file, blocks, width, tokens)
        rows = [lava_rows.measure_way(way, file, tokens, rounds) for way in lava_rows.WAYS if way != lava_rows.PLAIN]
        lava_rows.check_spikes(rows)
        console.print(lava_rows.table(rows, f"{blocks} x {width}, {tokens} tokens"))
        plain = lava_rows.measure_plain(file, lava_rows.plain_tokens(blocks, width, tokens), tokens)
        console.print(lava_rows.plain_table(plain, rows, size))
    return {"size": size, "tokens": tokens, "rows": rows, "plain": plain}


def table(row: dict[str, Any], title: str) -> Table:
    """Return how fast every simulator is, and how many times as fast as torch in float32 and as Lava."""
    seconds: dict[str, float] = row["seconds"]
    beside = [name for name in (REFERENCE_ROW, LAVA_ROW) if name in seconds]
    shown = Table(
        "simulator", "samples a second", *(f"of {name.split(',')[0]}" for name in beside), title=title, box=None
    )
    for name, spent in seconds.items():
        times = (f"{seconds[other] / spent:.2f} x" for other in beside)
        shown.add_row(name, f"{row['batch'] / spent:.2f}", *times)
    return shown


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["2x128", "2x384", "12x768"], help="blocks x width")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget", type=float, default=60, help="seconds after which a table gets no more rounds")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="also what torch.compile makes of them")
    parser.add_argument("--no-lava", dest="lava", action="store_false", help="leave out Lava")
    parser.add_argument("--rows-only", action="store_true", help="leave out the tables of what Lava costs")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    console, results = Console(), []
    for size in words.sizes:
        blocks, width = map(int, size.split("x"))
        on_lava = lava_costs(size, words.tokens, words.rounds, console) if words.lava and not words.rows_only else None
        for batch in words.batches:
            case = make_case(blocks, width, batch, words.tokens, words.compile)
            with open_lava(case) if words.lava else nullcontext() as lava:
                seconds = measure(case, words.rounds, words.budget, lava)
            row: dict[str, Any] = {"size": size, "batch": batch, "tokens": words.tokens}
            row |= {"seconds": seconds, "memory": memory_share(case), "lava": on_lava}
            results.append(row)
            console.print(
                table(row, f"{blocks} blocks of {width}, {batch} x {words.tokens} tokens, T = {lava_rows.TIME_STEPS}")
            )
    words.output.parent.mkdir(parents=True, exist_ok=True)
    machine = {"processor": platform.processor() or platform.machine(), "threads": words.threads}
    words.output.write_text(json.dumps({"machine": machine, "torch": torch.__version__, "rows": results}, indent=2))
    console.print(f"wrote {words.output}")


if __name__ == "__main__":
    main()
