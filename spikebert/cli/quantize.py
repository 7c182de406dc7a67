"""``spikebert quantize``: a float NIR graph as an integer one, in the whole numbers that Loihi computes with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from spikebert.cli.application import common_options, messages, print_json, refuse_overwrite, results
from spikebert.cli.arrays import names_array, read_array
from spikebert.cli.grammar import Command
from spikebert.cli.graph_runs import dt_option
from spikebert.cli.quantization import GONE, quantization_options, quantization_table, read_calibration, split_options
from spikebert.errors import ConfigurationError


@click.command(cls=Command, old=GONE)
@click.argument("graph_file", metavar="MODEL.nir", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Integer NIR file to write.")
@click.option(
    "--calibration",
    required=True,
    help="Sentences to choose scales on: a task (its training split), a text file, or token ids as .npy, .npz or "
    ".npz:NAME; for a graph that reads no tokens, whole numbers in such a file: (time steps, samples, ...) in the "
    "graph's shape.",
)
@dt_option
@click.option(
    "--tokenizer", "tokenizer_name", default="default", show_default=True, help="Checkpoint whose tokenizer reads text."
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder with TASK/train.tsv [default: SPIKEBERT_DATA, else the hub].",
)
@click.option("--force", is_flag=True, help="Write over an existing file.")
@quantization_options
@common_options
def quantize(
    graph_file: Path,
    output: Path,
    calibration: str,
    dt: float | None,
    tokenizer_name: str,
    data_dir: Path | None,
    force: bool,
    seed: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Quantize MODEL.nir: int8 weights, 24-bit states, 12-bit decays, every sum proven to fit.

    Prints each layer's firing rate before and after, its agreement with the float layer on the same inputs, and which
    layers had fallen silent or saturated and were repaired.

    \b
    Example:
      spikebert quantize model.nir -o integer.nir --calibration sst2 --data-dir DATA
      spikebert quantize from_snntorch.nir -o integer.nir --dt 1e-4 --calibration spikes.npy
    """
    from export import parse_graph, quantize_with_report, read_nir, write_nir
    from export.nir_file import read_network
    from spikebert.provenance import file_sha256, run_record, seed_everything

    refuse_overwrite(output, force)
    seed_everything(seed)
    _, network = read_network(graph_file, dt)
    keywords, limit = split_options(options)
    tokenizer = None
    given: Any
    if network.token_encoding is None:
        if not names_array(calibration):
            raise ConfigurationError(
                f"{graph_file}: reads values; give --calibration FILE.npy or FILE.npz, not {calibration!r}"
            )
        given = read_array(Path(calibration))[:, :limit]
        samples, kind = given.shape[1], "samples"
    elif not names_array(calibration):
        from spikebert.checkpoint import load_tokenizer

        tokenizer = load_tokenizer(tokenizer_name)
    if network.token_encoding is not None:
        given = read_calibration(calibration, tokenizer, data_dir, limit, network.token_encoding.positions or None)
        samples, kind = len(given), "sentences"
    graph, report = quantize_with_report(network, given, **keywords)
    write_nir(output, graph)
    parse_graph(read_nir(output))
    if as_json:
        print_json(
            {
                "file": str(output),
                "bytes": output.stat().st_size,
                "sha256": file_sha256(output),
                "precision": "integer",
                "calibration_sentences": samples,
                **report.to_dict(),
                **run_record(seed),
            }
        )
        return
    results.print(quantization_table(report))
    messages.print(
        f"wrote {output}: {output.stat().st_size / 1e6:.1f} MB, calibrated on {samples} {kind}, read back and checked"
    )
