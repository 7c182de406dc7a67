"""What whole numbers cost: accuracy of a checkpoint in float and quantized in several ways; docs/integers.md's table.

    python benchmarks/integers.py [CHECKPOINT] [--fine-tuned CHECKPOINT] [--task sst2] [--data-dir DATA] [--limit N]

Scales are chosen on the first sentences of the task's training split, scores are on its dev split. Prints the table and
writes results/integers.json. `--fine-tuned` is what `spikebert distill task --precision integer` made of the
checkpoint; it is scored in float and in integers beside it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from export import parse_graph, quantize_with_report, to_nir
from hardware import open_runner
from spikebert.checkpoint import checkpoint_sha256, load_model, load_tokenizer
from spikebert.cli.application import data_directory
from spikebert.cli.evaluate import predict_in_integers
from spikebert.cli.quantization import CALIBRATION_SENTENCES, read_calibration
from spikebert.data import TokenizedExamples, load_examples
from spikebert.evaluation import predict
from spikebert.provenance import run_record
from spikebert.tasks import find_task

RESULTS = Path("results/integers.json")
WAYS: dict[str, dict[str, Any]] = {
    "per-tensor": {},
    "per-tensor, powers of two": {"power_of_two": True},
    "per-tensor, floor to even": {"rounding": "floor-even"},
    "per-tensor, nothing clipped": {"clip": False},
}


def main() -> None:
    """Score every way and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", nargs="?", default="default")
    parser.add_argument("--fine-tuned", help="the checkpoint fine-tuned for integers")
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS)
    words = parser.parse_args()
    task, folder = find_task(words.task), data_directory(words.data_dir)
    model, tokenizer = load_model(words.checkpoint), load_tokenizer(words.checkpoint)
    longest = model.config.max_position_embeddings
    ids = read_calibration(words.task, tokenizer, folder, CALIBRATION_SENTENCES, longest)
    examples = TokenizedExamples(load_examples(task, "dev", folder)[: words.limit], task, tokenizer, longest)
    labels = examples.labels.numpy()
    models = [("", model, WAYS)]
    if words.fine_tuned is not None:
        models.append(("fine-tuned, ", load_model(words.fine_tuned), {"per-tensor": {}}))
    rows: list[dict[str, Any]] = []
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("sentences", total=len(examples) * sum(1 + len(ways) for *_, ways in models))

        def advance(sentences: int) -> None:
            progress.advance(bar, sentences)

        for prefix, scored, ways in models:
            floats = predict(scored, examples, on_batch=advance)
            answers = floats.argmax(-1)
            rows.append({"weights": f"{prefix}float32", task.metric: task.score(floats, labels), "same_answer": 1.0})
            graph = parse_graph(to_nir(scored))
            for name, options in ways.items():
                integer_graph, report = quantize_with_report(graph, ids, **options)
                with open_runner(integer_graph, "integer", "integer", record_spikes=False) as runner:
                    logits = predict_in_integers(runner, examples, advance)
                rows.append(
                    {
                        "weights": f"{prefix}{name}",
                        task.metric: task.score(logits, labels),
                        "same_answer": float(np.mean(logits.argmax(-1) == answers)),
                        "agreement": {layer.node: layer.agreement for layer in report.layers},
                        "repaired": [layer.node for layer in report.repaired],
                    }
                )
    table = Table("weights", task.metric, "same answer as float", "agreement a layer", box=None)
    for row in rows:
        shares = row.get("agreement", {}).values()
        span = f"{100 * min(shares):.2f} to {100 * max(shares):.2f} %" if shares else ""
        table.add_row(row["weights"], f"{100 * row[task.metric]:.2f} %", f"{100 * row['same_answer']:.2f} %", span)
    Console().print(table)
    words.output.parent.mkdir(parents=True, exist_ok=True)
    record = {"task": task.name, "examples": len(examples), "rows": rows}
    if words.fine_tuned is not None:
        record["fine_tuned_sha256"] = checkpoint_sha256(words.fine_tuned)
    words.output.write_text(json.dumps({**record, **run_record(0, checkpoint_sha256(words.checkpoint))}, indent=2))


if __name__ == "__main__":
    main()
