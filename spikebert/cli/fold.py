"""``spikebert fold``: a checkpoint without norms, for chips and for NIR."""

from __future__ import annotations

from pathlib import Path

import click

from spikebert.cli.application import common_options, data_directory, messages, print_json, refuse_overwrite, results
from spikebert.cli.grammar import Command


@click.command(cls=Command)
@click.argument("checkpoint")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the checkpoint to write.",
)
@click.option("--force", is_flag=True, help="Replace the checkpoint that is there.")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder with TASK/dev.tsv, to score the folded model [default: SPIKEBERT_DATA, else it is not scored].",
)
@common_options
def fold(checkpoint: str, output: Path, force: bool, data_dir: Path | None, seed: int, as_json: bool) -> None:
    """Fold the batch or power norms of CHECKPOINT into its weights.

    The folded model says the same, up to the rounding of its weights as stored, and can be written as NIR.

    \b
    Example:
      spikebert fold my-model -o my-folded-model --data-dir DATA
    """
    from spikebert.distillation.folding import fold_checkpoint
    from spikebert.provenance import seed_everything

    seed_everything(seed)
    if not (output.is_dir() and not any(output.iterdir())):
        refuse_overwrite(output, force)
    directory = data_directory(data_dir)
    record = fold_checkpoint(checkpoint, output, directory)
    if as_json:
        print_json(record)
        return
    scored = ""
    if directory is not None and "dev_before_folding" in record:
        scored = f", {record['metric']} {record['dev']:.4f} on dev ({record['dev_before_folding']:.4f} before)"
    elif "dev" in record:
        messages.print("the folded model was not scored: give --data-dir to do so")
    results.print(f"{output}: {record['norm_before_folding']} norms folded{scored}")
