"""``spikebert import``: files of others as checkpoints and graphs of ours."""

from __future__ import annotations

from pathlib import Path

import click

from spikebert.cli.application import LazyGroup, common_options
from spikebert.cli.export import check_places, write_graph, written_anew
from spikebert.cli.grammar import Command


@click.group("import", cls=LazyGroup, lazy_commands={"published": "spikebert.cli.import_published:import_published"})
def import_group() -> None:
    """Read a file of other tools, as a checkpoint or a NIR graph."""


@import_group.command("netx", cls=Command)
@click.argument("file", metavar="FILE.net", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="NIR file to write.")
@click.option("--force", is_flag=True, help="Write over an existing file.")
@common_options
def import_netx(file: Path, output: Path, force: bool, seed: int, as_json: bool) -> None:
    """Write FILE.net, a chain of dense layers by lava-dl's SLAYER or netx, as an integer NIR graph.

    \b
    Example:
      spikebert import netx slayer.net -o integer.nir
    """
    from export.netx import read_netx
    from spikebert.provenance import file_sha256

    check_places(str(file), output, force)
    graph, about = read_netx(file), {"source_sha256": file_sha256(file)}
    write_graph(output, written_anew(graph, None, about), about, seed, as_json)
