"""From a checkpoint or float graph to an integer graph, as the commands do it: options, calibration, and the report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from export.choices import SCALES, SIGN_MODES
from spikebert.cli.application import Function, data_directory
from spikebert.cli.arrays import names_array
from spikebert.cli.grammar import Gone
from spikebert.cli.inputs import read_ids
from spikebert.errors import ConfigurationError

if TYPE_CHECKING:
    import nir
    from rich.table import Table

    from export.passes.quantize import QuantizationReport

CALIBRATION_SENTENCES = 32
CALIBRATION_SPLIT = "train"
"""Never the split that is scored."""
GONE = (
    Gone(
        "--power-of-two", "its models answer like the default's (docs/integers.md); in Python quantize() still has it."
    ),
    Gone("--rounding", "its models answer like the default's (docs/integers.md); in Python quantize() still has it."),
)
"""Options of quantizing that were measured and made no difference."""


def quantization_options(function: Function) -> Function:
    """Add the options that say how to quantize, all but ``--calibration``."""
    for option in (
        click.option("--max-tokens", type=click.IntRange(min=1), help="Longest sentence [default: the positions]."),
        click.option("--no-repair", is_flag=True, help="Leave silent and saturated layers as they are."),
        click.option(
            "--sign-mode",
            type=click.Choice(SIGN_MODES),
            default="mixed",
            show_default=True,
            help="auto gives matrices of one sign 8 bits of magnitude.",
        ),
        click.option(
            "--scale",
            type=click.Choice(SCALES),
            default="per-tensor",
            show_default=True,
            help="One weight scale for a matrix, or for each row.",
        ),
        click.option(
            "--calibration-limit",
            type=click.IntRange(min=1),
            default=CALIBRATION_SENTENCES,
            show_default=True,
            help="Sentences of the calibration that are used.",
        ),
    ):
        function = option(function)
    return function


def split_options(options: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Return keywords for `export.quantize`, and the limit of the calibration, from `quantization_options`."""
    names = ("scale", "sign_mode", "max_tokens")
    keywords = {name: options[name] for name in names}
    return {**keywords, "repair": not options["no_repair"]}, options["calibration_limit"]


def read_calibration(
    calibration: str, tokenizer: Any, data_dir: Path | None, limit: int, max_tokens: int | None
) -> list[list[int]]:
    """Return token ids of the sentences of a calibration: a task's training split, a text file, or ids (.npy, .npz).

    Raises
    ------
    ConfigurationError
        It is none of these, or holds no sentence.
    DataError
        The task's file cannot be read.
    """
    from spikebert.data import load_examples
    from spikebert.tasks import TASKS, find_task

    path = Path(calibration)
    if calibration in TASKS:
        examples = load_examples(find_task(calibration), CALIBRATION_SPLIT, data_directory(data_dir))[:limit]
        rows: list[tuple[str, ...]] = [example.texts for example in examples]
    elif names_array(calibration):
        return read_ids(path).token_ids[:limit]
    elif path.is_file():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{path}: is not a text file: {error}") from error
        one_a_line: list[tuple[str, ...]] = [(line,) for line in lines if line.strip()]
        rows = one_a_line[:limit]
    else:
        raise ConfigurationError(
            f"calibration {calibration!r} is neither a task ({', '.join(TASKS)}) nor a file of sentences, one a line, "
            "or of token ids (.npy, .npz)"
        )
    if not rows:
        raise ConfigurationError(f"calibration {calibration!r} holds no sentence")
    columns = [list(column) for column in zip(*rows, strict=True)]
    return tokenizer(*columns, truncation=max_tokens is not None, max_length=max_tokens)["input_ids"]


def quantize_checkpoint(
    checkpoint: str, calibration: list[list[int]], **options: Any
) -> tuple[nir.NIRGraph, QuantizationReport]:
    """Export a checkpoint and quantize it."""
    from export import quantize_with_report, to_nir
    from spikebert.checkpoint import checkpoint_sha256, load_model

    graph = to_nir(
        load_model(checkpoint),
        metadata={"checkpoint_sha256": checkpoint_sha256(checkpoint)},
    )
    return quantize_with_report(graph, calibration, **options)


def quantization_table(report: QuantizationReport) -> Table:
    """Return the table of layers: firing rates before and after, agreement, and repairs."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("layer", no_wrap=True)
    for title in ("float\nrate", "integer\nrate", "agree on\nsame inputs", "features\nsilenced", "features\nsaturated"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("repair")
    for layer in report.layers:
        table.add_row(
            layer.node,
            f"{100 * layer.float_rate:.2f} %",
            f"{100 * layer.integer_rate:.2f} %",
            f"{100 * layer.agreement:.2f} %",
            str(layer.silent_features),
            str(layer.saturated_features),
            "" if layer.found is None else f"{layer.found}, thresholds x {layer.threshold_factor:.3g}",
        )
    return table
