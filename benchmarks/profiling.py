"""What profiling costs on top of the plain forward pass: one table, and results/profiling.json.

    python benchmarks/profiling.py [--rounds 31] [--threads 1] [--base] [-o results/profiling.json]

Every round times the plain forward pass, then the same batch with spikes recorded as a trace, profiled, and its
operations counted; the overhead is the ratio within a round, of which the median is shown with its quartiles. On one
thread the processor's time is taken, which other work on the machine hardly touches; on several the wall clock, since
only torch uses them. Where there is no C compiler, spikes are counted with NumPy; the table says so.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import PreTrainedModel

from export import to_nir
from export.nir_graph.reader import parse_graph
from hardware.energy.counts import OperationCounter
from hardware.firing import Firing
from hardware.kernels.counting import load_kernel
from hardware.profiler import COLLECTIONS, Profiler
from hardware.reports.files import write_json_object
from hardware.runners import open_runner
from hardware.trace import Trace
from spikebert import SpikeBertConfig, SpikeBertForSequenceClassification
from spikebert.checkpoint import load_model
from spikebert.memory import ask_for_huge_pages
from spikebert.provenance import run_record, seed_everything

SHIPPED = ("default", "default-loihi")
PAPERS_ORDER = ("qk_first",)  # of the attention product; the default set of `spikebert profile` counts this one
BUDGET = 0.15  # the default set and operation counts, as a share of the plain forward pass
COUNTED_IN = {True: "C", False: "NumPy"}  # by whether there is a C compiler
SHARE_OF_PADDING = 0.2  # about what SST-2 has in batches of 8 sorted by nothing
BASE: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}


def main() -> None:
    """Measure every case and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=31, help="rounds of each case; at least 3")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads; counting uses one whatever is said")
    parser.add_argument("--base", action="store_true", help="also SpikeBERT-base of random weights at 128 tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, default=Path("results/profiling.json"))
    arguments = parser.parse_args()
    ask_for_huge_pages()  # as the command does
    seed_everything(arguments.seed)
    torch.set_num_threads(arguments.threads)
    cases = []
    for name in SHIPPED:
        shipped = load_model(name)
        cases += [(name, shipped, 8, 32), (name, shipped, 32, 64)]
    if arguments.base:
        base = SpikeBertForSequenceClassification(SpikeBertConfig(vocab_size=2000, **BASE)).eval()
        cases.append(("SpikeBERT-base, random weights", base, 1, 128))
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    rounds = max(3, arguments.rounds)
    measured = [measure(title, model, batch, tokens, rounds, clock) for title, model, batch, tokens in cases]
    Console(width=130).print(table(measured))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "budget": BUDGET,
        "threads": arguments.threads,
        "clock": clock.__name__,
        "counted_in": COUNTED_IN[load_kernel() is not None],
        "cases": measured,
        **run_record(arguments.seed),
    }
    write_json_object(arguments.output, json.loads(json.dumps(result)))
    print(f"wrote {arguments.output}")


def measure(
    title: str,
    model: PreTrainedModel,
    sentences: int,
    tokens: int,
    rounds: int,
    clock: Callable[[], float],
) -> dict[str, Any]:
    """Return medians over `rounds` of each part's seconds and of its share of the plain forward pass in its round."""
    rng = np.random.default_rng(0)
    ids = rng.integers(5, model.config.vocab_size, (sentences, tokens))
    lengths = rng.integers(round(tokens * (1 - 2 * SHARE_OF_PADDING)), tokens + 1, (sentences, 1))
    mask = np.arange(tokens) < lengths if sentences > 1 else np.ones((1, tokens), bool)
    torch_ids, torch_mask = torch.from_numpy(ids), torch.from_numpy(mask)
    network = parse_graph(to_nir(model))
    profilers = {name: Profiler(network, (name,)) for name in COLLECTIONS}
    default, counter = Profiler(network), OperationCounter(network, PAPERS_ORDER)
    both_orders = OperationCounter(network)
    seconds: dict[str, list[float]] = {}

    def timed(name: str, call: Callable[..., Any], *inputs: Any) -> Any:
        started = clock()
        result = call(*inputs)
        seconds.setdefault(name, []).append(clock() - started)
        return result

    with open_runner(model, "torch", "float32") as runner, torch.no_grad():
        trace = runner.run(ids, mask)
        firing = Firing(trace, network)  # once before anything is timed
        for add in (default.add, counter.add, both_orders.add, *(profiler.add for profiler in profilers.values())):
            add(firing)
        for _ in track(range(rounds), f"{title}, {sentences} x {tokens}", console=Console(stderr=True)):
            timed("plain", model, torch_ids, torch_mask)
            trace = timed("traced", runner.run, ids, mask)
            firing = timed("profile", profile_with, default, trace)
            timed("operation counts", counter.add, firing)
            timed("both attention orders", both_orders.add, firing)
            for name, profiler in profilers.items():
                timed(f"with {name}", profiler.update, trace)
    plain = seconds["plain"]
    shares = {name: [a / b for a, b in zip(values, plain, strict=True)] for name, values in seconds.items()}
    shares["traced"] = [share - 1 for share in shares["traced"]]
    for name in COLLECTIONS:
        shares[f"with {name}"] = [a - b for a, b in zip(shares[f"with {name}"], shares["profile"], strict=True)]
    shares["both attention orders"] = [
        a - b for a, b in zip(shares["both attention orders"], shares["operation counts"], strict=True)
    ]
    shares["trace + profile"] = [a + b for a, b in zip(shares["traced"], shares["profile"], strict=True)]
    shares["default set"] = [a + b for a, b in zip(shares["trace + profile"], shares["operation counts"], strict=True)]
    return {
        "case": title,
        "sentences": sentences,
        "tokens": tokens,
        "rounds": rounds,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "overhead": {name: statistics.median(values) for name, values in shares.items() if name != "plain"},
        "overhead_quartiles": {
            name: statistics.quantiles(values, n=4)[::2] for name, values in shares.items() if name != "plain"
        },
    }


def profile_with(profiler: Profiler, trace: Trace) -> Firing:
    """Profile a trace, and return its sums for the operation counter, as ``spikebert profile`` does."""
    firing = Firing(trace, profiler.network)
    profiler.add(firing)
    return firing


def table(measured: list[dict[str, Any]]) -> Table:
    """Return the overheads as a table, a column for each case."""
    title = f"on top of the plain forward pass, median (quartiles); counted in {COUNTED_IN[load_kernel() is not None]}"
    found = Table(title=title, title_justify="left", box=None)
    found.add_column("")
    for case in measured:
        found.add_column(
            f"{case['case']}\n{case['sentences']} x {case['tokens']} tokens, {1000 * case['seconds']['plain']:.0f} ms",
            justify="right",
        )
    rows = {
        "traced": "recording spikes as a trace",
        "profile": "profile, default set",
        "operation counts": "operation counts",
        "default set": f"all three (budget {100 * BUDGET:.0f} %)",
        "both attention orders": "asked for: the other order of attention",
        **{f"with {name}": f"asked for by name: {name}" for name in COLLECTIONS},
    }
    for key, title in rows.items():
        cells = []
        for case in measured:
            low, high = case["overhead_quartiles"][key]
            cells.append(f"{100 * case['overhead'][key]:5.1f} %  ({100 * low:5.1f} to {100 * high:5.1f})")
        found.add_row(title, *cells)
    return found


if __name__ == "__main__":
    main()
