"""What the shipped models need on Loihi 1 and 2; docs/placement.md's tables.

    python benchmarks/placement.py [--tokens 16 64 128] [--checkpoints default-loihi default] [--chips loihi1 loihi2]

Graphs are placed as they are exported, in floats: quantized ones take the same room, and break the rule of precision no
more, which is left out here. Prints a line as soon as it is known and writes results/placement.json.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from export import parse_graph, to_nir
from export.network import Network
from hardware import place
from hardware.loihi import CHIPS
from spikebert.checkpoint import load_model
from spikebert.provenance import run_record

RESULTS = Path("results/placement.json")
COLUMNS = ("model", "chip", "tokens", "cores", "chips", "neurons", "synapses", "memory", "used of it", "why not")


def main() -> None:
    """Place every checkpoint on every chip at every length, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 64, 128])
    parser.add_argument("--checkpoints", nargs="+", default=["default-loihi", "default"])
    parser.add_argument("--chips", nargs="+", default=list(CHIPS))
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    words = parser.parse_args()
    rows: list[dict[str, Any]] = []
    print(f"| {' | '.join(COLUMNS)} |\n{'| --- ' * len(COLUMNS)}|", flush=True)
    for checkpoint in words.checkpoints:
        network = parse_graph(to_nir(load_model(checkpoint)))
        for chip in words.chips:
            for tokens in words.tokens:
                rows.append(measure(checkpoint, network, chip, tokens))
                print_row(rows[-1])
    words.output.parent.mkdir(parents=True, exist_ok=True)
    words.output.write_text(json.dumps({"rows": rows, **run_record(0)}, indent=2))


def measure(checkpoint: str, network: Network, chip: str, tokens: int) -> dict[str, Any]:
    """Return what a network needs."""
    placement = place(network, chip, tokens)
    total = placement.total
    rules = Counter(violation.rule for violation in placement.violations if violation.rule != "precision")
    return {
        "checkpoint": checkpoint,
        "chip": chip,
        "tokens": tokens,
        "cores": len(placement.cores),
        "chips": placement.chips,
        "neurons": total.neurons,
        "synapses": total.synapses,
        "memory_megabytes": total.memory_bits / 8 / 1024**2,
        "memory_share": total.memory_bits / (len(placement.cores) * placement.chip["memory_bits_per_core"]),
        "violations": dict(rules),
        "nodes": placement.node_rows(),
    }


def print_row(row: dict[str, Any]) -> None:
    """Print a line of a Markdown table."""
    cells = (
        row["checkpoint"],
        row["chip"],
        row["tokens"],
        f"{row['cores']:,}",
        row["chips"],
        f"{row['neurons']:,}",
        f"{row['synapses'] / 1e6:,.1f} M",
        f"{row['memory_megabytes']:,.1f} MB",
        f"{100 * row['memory_share']:.0f} %",
        ", ".join(f"{rule} ({count})" for rule, count in row["violations"].items()) or "it fits",
    )
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
