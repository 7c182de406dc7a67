"""``spikebert export``: a checkpoint as a file other tools read."""

from __future__ import annotations

from pathlib import Path

import click

from spikebert.cli.application import LazyGroup, common_options, messages, print_json, refuse_overwrite


@click.group(cls=LazyGroup)
def export() -> None:
    """Write a checkpoint in a format of other tools."""


@export.command("nir")
@click.argument("checkpoint")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="NIR file to write.")
@click.option(
    "--precision",
    type=click.Choice(["float32", "float64", "integer"]),
    default="float32",
    show_default=True,
    help="Of the weights; integer quantizes, see spikebert quantize.",
)
@click.option(
    "--calibration", help="For integers: sentences to choose scales on, a task (its training split) or a file."
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder with TASK/train.tsv [default: SPIKEBERT_DATA, else the hub].",
)
@click.option("--force", is_flag=True, help="Write over an existing file.")
@common_options
def nir_command(
    checkpoint: str,
    output: Path,
    precision: str,
    calibration: str | None,
    data_dir: Path | None,
    force: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Write CHECKPOINT as a NIR graph.

    \b
    Examples:
      spikebert export nir default -o model.nir
      spikebert export nir default -o integer.nir --precision integer --calibration sst2 --data-dir DATA
    """
    from export import parse_graph, read_nir, to_nir, write_nir
    from spikebert.checkpoint import checkpoint_sha256, load_model, load_tokenizer
    from spikebert.cli.quantization import CALIBRATION_SENTENCES, quantize_checkpoint, read_calibration
    from spikebert.errors import ConfigurationError
    from spikebert.provenance import file_sha256, run_record, seed_everything

    if (precision == "integer") != (calibration is not None):
        raise ConfigurationError("--precision integer needs --calibration, and nothing else takes it")
    refuse_overwrite(output, force)
    seed_everything(seed)
    sha256 = checkpoint_sha256(checkpoint)
    if calibration is not None:
        config = load_model(checkpoint).config
        longest = config.max_position_embeddings if config.position_embedding_type != "none" else None
        ids = read_calibration(calibration, load_tokenizer(checkpoint), data_dir, CALIBRATION_SENTENCES, longest)
        graph, _ = quantize_checkpoint(checkpoint, ids)
    else:
        graph = to_nir(load_model(checkpoint), precision, metadata={"checkpoint_sha256": sha256})  # type: ignore[arg-type]
    write_nir(output, graph)
    network = parse_graph(read_nir(output))
    summary = {
        "file": str(output),
        "bytes": output.stat().st_size,
        "sha256": file_sha256(output),
        "nodes": len(graph.nodes),
        "spiking_nodes": [node.name for node in network.spiking_nodes],
        "precision": precision,
    }
    if as_json:
        print_json({**summary, **run_record(seed, sha256)})
    else:
        messages.print(
            f"wrote {output}: {len(graph.nodes)} nodes, {len(network.spiking_nodes)} of them spiking, "
            f"{output.stat().st_size / 1e6:.1f} MB, read back and checked"
        )
