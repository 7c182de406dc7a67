"""``spikebert import published``: a file of the published SpikeBERT code as a checkpoint of ours."""

from __future__ import annotations

from pathlib import Path

import click

from spikebert.cli.application import common_options, messages, print_json, refuse_overwrite
from spikebert.cli.grammar import Command
from spikebert.errors import ConfigurationError


@click.command("published", cls=Command)
@click.argument("file", metavar="FILE.pt", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of the checkpoint.")
@click.option("--tau", type=float, default=2.0, show_default=True, help="Time constant it was trained with (--tau).")
@click.option(
    "--threshold", type=float, default=1.0, show_default=True, help="Threshold it was trained with (--common_thr)."
)
@click.option("--time-steps", type=int, default=4, show_default=True, help="Time steps (--num_step).")
@click.option("--heads", type=int, default=8, show_default=True, help="Attention heads; 8 in the published code.")
@click.option(
    "--max-length",
    type=int,
    default=128,
    show_default=True,
    help="Tokens every sentence is padded to (--max_length), since padding counts as words.",
)
@click.option("--tokenizer", help="Its tokenizer: a folder or hub name, such as bert-base-cased.")
@click.option(
    "--num-labels", type=click.IntRange(min=1), help="Start a new classifier: for a file of stage 1, which has none."
)
@click.option("--force", is_flag=True, help="Replace a checkpoint that is there.")
@common_options
def import_published(
    file: Path,
    output: Path,
    tau: float,
    threshold: float,
    time_steps: int,
    heads: int,
    max_length: int,
    tokenizer: str | None,
    num_labels: int | None,
    force: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Turn FILE.pt, a state dict of the published SpikeBERT code, into a checkpoint that every command here takes.

    The file holds weights only: time steps, time constant, threshold, heads and length are not in it, and a wrong one
    gives another network without a word. They stand in the command that trained it.

    \b
    Example:
      spikebert import published sst2_epoch29.pt -o published-sst2 --tau 2.0 --tokenizer bert-base-cased
    """
    import torch

    from spikebert.checkpoint import (
        checkpoint_sha256,
        load_tokenizer,
        refuse_foreign_directory,
        write_checkpoint_files,
        writing_directory,
    )
    from spikebert.provenance import file_sha256, run_record, seed_everything
    from spikebert.published import load_published, read_published

    refuse_overwrite(output, force)
    refuse_foreign_directory(output)
    seed_everything(seed)
    state_dict = read_published(file)
    model = load_published(
        state_dict,
        time_steps=time_steps,
        tau=tau,
        threshold=threshold,
        num_heads=heads,
        max_length=max_length,
        num_labels=num_labels,
    )
    words = None if tokenizer is None else load_tokenizer(tokenizer)
    if words is not None and len(words) != model.config.vocab_size:
        raise ConfigurationError(
            f"--tokenizer {tokenizer} has {len(words)} tokens and the table in {file} {model.config.vocab_size} rows; "
            "give the tokenizer that the model was trained with"
        )
    if words is not None:
        words.model_max_length = max_length
    # half precisions stay what they are, and float64 is rounded: transformers loads every checkpoint as float32
    types = {value.dtype for value in state_dict.values()}
    storage = types.pop() if types in ({torch.float16}, {torch.bfloat16}) else torch.float32
    with writing_directory(output) as folder:
        write_checkpoint_files(model, words, folder, storage)
    config = model.config
    summary = {
        "checkpoint": str(output),
        "file": str(file),
        "file_sha256": file_sha256(file),
        "blocks": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        "num_labels": config.num_labels,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "stored_as": str(storage).removeprefix("torch."),
        "not_in_the_file": {
            "time_steps": time_steps,
            "tau": tau,
            "threshold": threshold,
            "attention_threshold": config.attention_threshold,
            "num_heads": heads,
            "max_length": max_length,
        },
    }
    if as_json:
        print_json({**summary, **run_record(seed, checkpoint_sha256(output))})
        return
    messages.print(
        f"wrote {output}: {config.num_hidden_layers} blocks, D = {config.hidden_size}, {config.vocab_size:,} tokens, "
        f"{config.num_labels} labels, weights as {summary['stored_as']}",
        soft_wrap=True,
    )
    messages.print(
        f"not in the file, so taken from this command: T = {time_steps}, tau {tau:g}, threshold {threshold:g} "
        f"({config.attention_threshold:g} behind attention), {heads} heads, {max_length} tokens",
        soft_wrap=True,
    )
    if words is None:
        messages.print("it has no tokenizer: give --tokenizer, or save one into the folder, before running text")
