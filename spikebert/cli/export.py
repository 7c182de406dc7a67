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
    type=click.Choice(["float32", "float64"]),
    default="float32",
    show_default=True,
    help="Of the weights.",
)
@click.option("--force", is_flag=True, help="Write over an existing file.")
@common_options
def nir_command(checkpoint: str, output: Path, precision: str, force: bool, seed: int, as_json: bool) -> None:
    """Write CHECKPOINT as a NIR graph.

    \b
    Example:
      spikebert export nir default -o model.nir
    """
    from export import parse_graph, read_nir, to_nir, write_nir
    from spikebert.checkpoint import checkpoint_sha256, load_model
    from spikebert.provenance import file_sha256, run_record, seed_everything

    refuse_overwrite(output, force)
    seed_everything(seed)
    sha256 = checkpoint_sha256(checkpoint)
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
