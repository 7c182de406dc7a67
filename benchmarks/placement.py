"""What the shipped models need on Loihi 1 and 2; docs/placement.md's tables.

    python benchmarks/placement.py [--tokens 16 64 128]

Checkpoints are quantized first, on the sentences of `spikebert demo`; another calibration gives weights that take the
same room.
Prints the tables and writes results/placement.json.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from export import parse_graph, quantize, to_nir
from hardware import place
from hardware.loihi import CHIPS
from spikebert.checkpoint import load_model, load_tokenizer
from spikebert.cli.demo import DEMO_SENTENCES
from spikebert.provenance import run_record

RESULTS = Path("results/placement.json")
CHECKPOINTS = ("default-loihi", "default")


def main() -> None:
    """Place every checkpoint on every chip at every length, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 64, 128])
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    words = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for checkpoint in CHECKPOINTS:
        model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
        calibration = tokenizer(list(DEMO_SENTENCES))["input_ids"]
        network = parse_graph(quantize(to_nir(model), calibration=calibration))
        for chip in CHIPS:
            for tokens in words.tokens:
                placement = place(network, chip, tokens)
                total = placement.total
                rules = Counter(violation.rule for violation in placement.violations)
                rows.append(
                    {
                        "checkpoint": checkpoint,
                        "chip": chip,
                        "tokens": tokens,
                        "fits": placement.fits,
                        "cores": len(placement.cores),
                        "chips": placement.chips,
                        "neurons": total.neurons,
                        "synapses": total.synapses,
                        "memory_megabytes": total.memory_bits / 8 / 1024**2,
                        "memory_share": total.memory_bits
                        / (len(placement.cores) * placement.chip["memory_bits_per_core"]),
                        "violations": dict(rules),
                        "nodes": placement.node_rows(),
                    }
                )
    table = Table("model", "chip", "tokens", "cores", "chips", "neurons", "synapses", "memory", "used of it", "why not")
    for row in rows:
        table.add_row(
            row["checkpoint"],
            row["chip"],
            str(row["tokens"]),
            f"{row['cores']:,}",
            str(row["chips"]),
            f"{row['neurons']:,}",
            f"{row['synapses'] / 1e6:,.1f} M",
            f"{row['memory_megabytes']:,.1f} MB",
            f"{100 * row['memory_share']:.0f} %",
            ", ".join(f"{rule} ({count})" for rule, count in row["violations"].items()) or "it fits",
        )
    console = Console(width=200)
    console.print(table)
    console.print("cores by node, default-loihi on loihi2:")
    for row in rows:
        if row["checkpoint"] == "default-loihi" and row["chip"] == "loihi2":
            console.print(row["tokens"], {node["node"]: node["cores"] for node in row["nodes"]})
    words.output.parent.mkdir(parents=True, exist_ok=True)
    words.output.write_text(json.dumps({"rows": rows, **run_record(0)}, indent=2))


if __name__ == "__main__":
    main()
