"""A checkpoint whose norms are folded into its weights: none is left for a chip to compute."""

from __future__ import annotations

import json
from pathlib import Path

from spikebert.checkpoint import (
    checkpoint_sha256,
    load_model,
    load_tokenizer,
    resolve_checkpoint,
    write_checkpoint_files,
    writing_directory,
)
from spikebert.data import TokenizedExamples, load_examples
from spikebert.distillation.logs import LOG_FILE
from spikebert.distillation.model_card import CARD_FILE, RECORD_FILE, model_card
from spikebert.distillation.training import Record
from spikebert.evaluation import evaluate, firing_rates
from spikebert.families import family_of
from spikebert.provenance import run_record
from spikebert.tasks import find_task


def fold_checkpoint(checkpoint: str | Path, output: Path, data_directory: Path | None = None) -> Record:
    """Fold the norms of a checkpoint and write it as another.

    Folding is done in float64; what is stored is rounded to half precision like every checkpoint, and that rounded
    model is scored on dev where its training record names a task and the data is there.

    Parameters
    ----------
    checkpoint : str or Path
        With batch or power norms.
    output : Path
        The folder to write; model card, record and log of the training come along.
    data_directory : Path, optional
        Folder with ``TASK/dev.tsv``.

    Returns
    -------
    dict
        The record: that of the training with ``folded_from``, ``norm_before_folding`` and ``fold_command``, and with
        ``dev_before_folding``, ``dev`` and ``firing_rates`` measured anew where data was given.

    Raises
    ------
    ConfigurationError
        It is of no family known here, or has no norms that fold.
    """
    model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
    family = family_of(model, str(checkpoint))
    source = Path(resolve_checkpoint(checkpoint))
    before = checkpoint_sha256(checkpoint)
    folded = family.fold(model.double()).float()
    has_record = (source / RECORD_FILE).is_file()
    record: Record = json.loads((source / RECORD_FILE).read_text(encoding="utf-8")) if has_record else {}
    with writing_directory(output) as folder:
        write_checkpoint_files(folded, tokenizer, folder)
        done = run_record(None, checkpoint_sha256(folder))
        record = {
            "command": done["command"],
            **record,
            "folded_from": before,
            "norm_before_folding": model.config.norm,
            "fold_command": done["command"],
            "parameters": sum(parameter.numel() for parameter in folded.parameters()),
            "checkpoint_sha256": done["checkpoint_sha256"],
        }
        if has_record:
            record["dev_before_folding"] = record["dev"]
            if data_directory is not None:
                task = find_task(record["task"])
                examples = load_examples(task, "dev", data_directory)
                dev = TokenizedExamples(examples, task, tokenizer, record["settings"]["max_length"])
                stored = load_model(folder)
                record.update(dev=evaluate(stored, task, dev), firing_rates=firing_rates(stored, dev))
            card = model_card(record, folded.config)
            (folder / CARD_FILE).write_text(card, encoding="utf-8")
        if (source / LOG_FILE).is_file():
            (folder / LOG_FILE).write_text((source / LOG_FILE).read_text(encoding="utf-8"), encoding="utf-8")
        (folder / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record
