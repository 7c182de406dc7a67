"""Export and re-read of SpikeBERT-base: seconds and memory, in one table and results/nir_export.json.

    python benchmarks/nir_export.py [--rounds 3] [--blocks 12] [-o results/nir_export.json]

Every part of every round runs in a fresh process, which counts from when all modules are imported (and, for an export,
the model is made): wall and processor seconds, and how far resident memory rose above where it stood, in units of the
weights. Stock ``nir.write`` and ``nir.read`` do the same work beside ours, and the bare bytes are written and read, for
what the disk gives at that moment. Where other work shares the machine, the processor's seconds are the measure.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hardware.reports.files import write_json_object
from spikebert.provenance import run_record

SECONDS_ALLOWED = {"export": 3.0, "read": 1.0}
MEMORY_ALLOWED = 1.5  # peak above the start, in units of the weights
BASE = {"hidden_size": 768, "num_attention_heads": 8, "intermediate_size": 3072}
PARTS = {
    "export": "to_nir and write_nir",
    "stock write": "to_nir and stock nir.write, not compressed",
    "read": "read_nir",
    "stock read": "stock nir.read",
    "bytes written": "the same bytes, written",
    "bytes read": "the same bytes, read",
}
RESET_PEAK = "5"  # what /proc/PID/clear_refs takes to make the peak of resident memory what it is now, see proc(5)


def main() -> None:
    """Measure every part in processes of their own and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which the median is shown")
    parser.add_argument("--blocks", type=int, default=12, help="encoder blocks")
    parser.add_argument("-o", "--output", type=Path, default=Path("results/nir_export.json"))
    parser.add_argument("--part", nargs=2, metavar=("PART", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        print(json.dumps(measure(arguments.part[0], Path(arguments.part[1]), arguments.blocks)))
        return
    measured: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--blocks", str(arguments.blocks), "--part"]
        rounds = [
            {
                part: json.loads(subprocess.check_output([*command, part, str(Path(folder) / "model.nir")]))
                for part in PARTS
            }
            for _ in range(arguments.rounds)
        ]
    for part in PARTS:
        measured[part] = {key: statistics.median(found[part][key] for found in rounds) for key in rounds[0][part]}
    weights = measured["export"]["weights_bytes"]
    for values in measured.values():
        values["weights_in_memory"] = values.pop("peak_bytes") / weights
    marks = {
        **{
            f"{part} at most {allowed:g} s": measured[part]["cpu_seconds"] <= allowed
            for part, allowed in SECONDS_ALLOWED.items()
        },
        **{
            f"{part} at most {MEMORY_ALLOWED:g} times the weights": measured[part]["weights_in_memory"]
            <= MEMORY_ALLOWED
            for part in SECONDS_ALLOWED
        },
    }
    console = Console(width=120)
    console.print(table(measured, weights, arguments.blocks))
    for mark, met in marks.items():
        console.print(f"{'met   ' if met else 'MISSED'}  {mark}", highlight=False)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    result = {"blocks": arguments.blocks, "weights_bytes": weights, "parts": measured, "marks": marks}
    write_json_object(arguments.output, {**result, **run_record(None)})
    print(f"wrote {arguments.output}")


def measure(part: str, path: Path, blocks: int) -> dict[str, float]:
    """Do one part of the work and return its seconds, its peak of memory in bytes and the size of the weights."""
    import nir

    from export import read_nir, to_nir, write_nir

    weights = 0
    work: dict[str, Callable[[], Any]] = {
        "read": lambda: read_nir(path),
        "stock read": lambda: nir.read(path),
        "bytes read": path.read_bytes,
    }
    if part == "bytes written":
        content = path.read_bytes()
        work[part] = lambda: path.with_suffix(".bytes").write_bytes(content)
    elif part not in work:
        from spikebert import SpikeBertConfig, SpikeBertForSequenceClassification

        model = SpikeBertForSequenceClassification(SpikeBertConfig(num_hidden_layers=blocks, **BASE)).eval()
        weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        work["export"] = lambda: write_nir(path, to_nir(model))
        work["stock write"] = lambda: nir.write(path, to_nir(model), compression=None)
    Path("/proc/self/clear_refs").write_text(RESET_PEAK, encoding="ascii")
    before, wall, cpu = _memory("VmRSS"), time.perf_counter(), time.process_time()
    result = work[part]()
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    peak = _memory("VmHWM") - before
    del result
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_bytes": peak, "weights_bytes": weights}


def _memory(field: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def table(measured: dict[str, dict[str, float]], weights: float, blocks: int) -> Table:
    """Return seconds and memory of every part as a table."""
    found = Table(
        title=f"SpikeBERT, {blocks} blocks, D = 768: {weights / 4e6:.1f} M weights, {weights / 1e6:.0f} MB",
        title_justify="left",
        box=None,
    )
    found.add_column("")
    for name in ("wall s", "processor s", "peak, times the weights"):
        found.add_column(name, justify="right")
    for part, title in PARTS.items():
        values = measured[part]
        found.add_row(
            title,
            f"{values['seconds']:.2f}",
            f"{values['cpu_seconds']:.2f}",
            f"{values['weights_in_memory']:.2f}",
        )
    return found


if __name__ == "__main__":
    main()
