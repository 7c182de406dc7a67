"""``spikebert simulate``: a NIR or ONNX file on a simulator, to a trace."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from spikebert.cli.application import (
    MultiValueCommand,
    common_options,
    messages,
    print_json,
    refuse_overwrite,
    results,
)
from spikebert.cli.inputs import read_array, read_ids, read_sentences, sentence_options
from spikebert.errors import ConfigurationError

if TYPE_CHECKING:
    from export.network import Network

MAX_PADDED_LENGTH = 1 << 16
"""Tokens of a sentence; a graph that asks for more is not to be believed."""


@click.command(cls=MultiValueCommand)
@click.argument("graph_file", metavar="MODEL.nir|MODEL.onnx", type=click.Path(path_type=Path))
@click.option(
    "--runner",
    type=click.Choice(["reference", "integer", "lava", "onnx"]),
    help="What simulates  [default: reference; onnx for an ONNX file].",
)
@click.option(
    "--precision",
    type=click.Choice(["float64", "float32", "integer"]),
    help="Of the run  [default: integer for an integer graph, an ONNX file's own, else float64].",
)
@click.option(
    "--granularity",
    type=click.Choice(["operator", "block", "network"]),
    help="Lava only: how much runs in one process [default: block].",
)
@click.option(
    "--timing",
    type=click.Choice(["zero-latency", "hardware"]),
    help="Lava only: every process at once, or each synaptic hop one step later [default: zero-latency].",
)
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), help="Lava only: seconds without progress.")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    help="Lava only: parallel networks at most [default: one a processor, where memory allows].",
)
@click.option(
    "--tokenizer",
    "tokenizer_name",
    default="default",
    show_default=True,
    help="Checkpoint whose tokenizer reads the text.",
)
@click.option(
    "--ids", "ids_file", type=click.Path(path_type=Path), help="Token ids (sentences, tokens) as .npy, 0 is padding."
)
@click.option(
    "--input",
    "input_file",
    type=click.Path(path_type=Path),
    help="Spikes or values as .npy, for a graph that reads no tokens: (time steps, samples, ...) in the graph's shape.",
)
@click.option(
    "--dt", type=click.FloatRange(min=0, min_open=True), help="Seconds of a time step, where MODEL.nir does not say."
)
@click.option("--membrane-potentials", is_flag=True, help="Record potentials too.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Trace to write (.npz).")
@click.option("--force", is_flag=True, help="Write over an existing file.")
@sentence_options
@common_options
def simulate(
    graph_file: Path,
    runner: str | None,
    precision: str | None,
    granularity: str | None,
    timing: str | None,
    timeout: float | None,
    jobs: int | None,
    tokenizer_name: str,
    ids_file: Path | None,
    input_file: Path | None,
    dt: float | None,
    membrane_potentials: bool,
    output: Path | None,
    force: bool,
    texts: tuple[str, ...],
    task: str | None,
    data_dir: Path | None,
    split: str,
    limit: int | None,
    seed: int,
    as_json: bool,
) -> None:
    """Run sentences through a NIR or ONNX file on a simulator; print logits and firing rates, and write the trace.

    \b
    Example:
      spikebert simulate model.nir --runner lava --text "A warm and funny film ." -o trace.npz
      spikebert simulate from_snntorch.nir --dt 1e-4 --input spikes.npy
    """
    from export.nir_file import read_network
    from hardware.runners import open_runner
    from spikebert.provenance import file_sha256, run_record, seed_everything

    is_onnx = graph_file.suffix == ".onnx"
    runner = runner or ("onnx" if is_onnx else "reference")
    if is_onnx and runner != "onnx":
        raise ConfigurationError(f"{graph_file}: only --runner onnx runs an ONNX file; give the NIR file")
    given = {"granularity": granularity, "timing": timing, "timeout": timeout, "jobs": jobs}
    options: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if options and runner != "lava":
        raise ConfigurationError(f"--{next(iter(options))} is for --runner lava only")
    if runner == "lava":
        options["jobs"] = jobs
    if output is not None:
        refuse_overwrite(output, force)
    seed_everything(seed)
    if is_onnx:
        graph: Any = graph_file
        precision = precision or precision_of_onnx(graph_file)
    else:
        _, graph = read_network(graph_file, dt)
        precision = precision or ("integer" if graph.is_integer else "float64")
    if sum(map(bool, (texts, task, ids_file, input_file))) > 1:
        raise ConfigurationError("give --ids, --input, --text or --task, only one of them")
    if not is_onnx and (graph.token_encoding is None) != (input_file is not None):
        wanted = "values: give --input" if input_file is None else "token ids: give --text, --task or --ids"
        raise ConfigurationError(f"{graph_file}: reads {wanted}")
    inputs: Any
    if input_file is not None:
        inputs, mask = read_array(input_file), None
        names = [f"sample {index} of {input_file.name}" for index in range(inputs.shape[1])]
    else:
        if ids_file is not None:
            sentences = read_ids(ids_file)
        else:
            from spikebert.checkpoint import load_tokenizer

            padded = None if is_onnx else _padded_length(graph)
            tokenizer = load_tokenizer(tokenizer_name)
            sentences = read_sentences(tokenizer, texts, task, data_dir, split, limit, padded, padded)
        (batch,) = sentences.batches(len(sentences))
        inputs, mask, names = batch.input_ids, batch.mask, batch.texts
    with open_runner(graph, runner, precision, record_membrane_potentials=membrane_potentials, **options) as opened:
        trace = opened.run(inputs, mask)
    trace.metadata.update(run_record(seed), graph_sha256=file_sha256(graph_file), texts=names)
    if output is not None:
        trace.save(output)
        messages.print(f"wrote {output}")
    rates = {name: trace.firing_rate(name) for name in trace.spikes}
    if as_json:
        print_json({"logits": trace.logits, "firing_rates": rates, "trace": output and str(output), **trace.metadata})
        return
    for text, logits in zip(names, trace.logits, strict=True):
        results.print(f"{np.array2string(logits, precision=4)}  {text}", markup=False)
    for name, rate in rates.items():
        results.print(f"{name}: {100 * rate:.2f} %")


def precision_of_onnx(path: Path) -> str:
    """Return the precision that an ONNX file computes in."""
    from export.onnx_format.file import read_onnx

    return read_onnx(path).precision


def _padded_length(network: Network) -> int | None:
    """Return how long sentences must be, where padding counts as words and the graph says how much there is of it."""
    from export.errors import GraphError
    from export.operators.operator import metadata_value

    if not network.attend_to_padding or "padded_length" not in network.metadata:
        return None
    length = metadata_value(network.metadata, "padded_length", int, "graph")
    if not 1 <= length <= MAX_PADDED_LENGTH:
        raise GraphError(f"graph: padded_length is {length}; expected 1 to {MAX_PADDED_LENGTH} tokens")
    return length
