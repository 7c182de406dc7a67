"""``spikebert export``: a checkpoint or a NIR file as a file other tools read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spikebert.cli.application import (
    Function,
    LazyGroup,
    common_options,
    messages,
    print_json,
    refuse_overwrite,
)
from spikebert.cli.grammar import Command, say_new_spelling
from spikebert.cli.graph_runs import dt_option
from spikebert.errors import ConfigurationError

if TYPE_CHECKING:
    import nir

NIR_SUFFIX, NETX_SUFFIX = ".nir", ".net"
FLOAT_PRECISIONS = ("float32", "float64")


@click.group(cls=LazyGroup)
def export() -> None:
    """Write a checkpoint or a NIR file in a format of other tools."""


def conversion_options(what: str) -> Callable[[Function], Function]:
    """Add the source, ``-o``, ``--precision`` and ``--force``, which every conversion takes."""

    def add(function: Function) -> Function:
        for option in (
            click.option("--force", is_flag=True, help="Write over an existing file."),
            click.option(
                "--data-dir",
                type=click.Path(path_type=Path, file_okay=False),
                help="Folder with TASK/train.tsv  [default: SPIKEBERT_DATA, else the hub].",
            ),
            click.option(
                "--calibration",
                help="To quantize a checkpoint: sentences to choose scales on, a task (its training split) or a file.",
            ),
            dt_option,
            click.option(
                "--precision",
                type=click.Choice([*FLOAT_PRECISIONS, "integer"]),
                help="Of the numbers in the file; integer quantizes a checkpoint, see spikebert quantize  [default: "
                "float32; integer for an integer graph].",
            ),
            click.option(
                "-o", "--output", type=click.Path(path_type=Path), required=True, help=f"{what} file to write."
            ),
            click.argument("source", metavar="CHECKPOINT|MODEL.nir"),
        ):
            function = option(function)
        return function

    return add


@export.command("nir", cls=Command)
@conversion_options("NIR")
@common_options
def nir_command(
    source: str,
    output: Path,
    precision: str | None,
    dt: float | None,
    calibration: str | None,
    data_dir: Path | None,
    force: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Write a checkpoint as a NIR graph; or a NIR file anew, in another precision or as one of ours.

    \b
    Examples:
      spikebert export nir default -o model.nir
      spikebert export nir default -o integer.nir --precision integer --calibration sst2 --data-dir DATA
    """
    check_places(source, output, force)
    graph, about = _load_graph(source, precision, dt, calibration, data_dir, seed)
    if _is_graph(source):
        graph = written_anew(graph, precision, about)
    write_graph(output, graph, about, seed, as_json)


@export.command("onnx", cls=Command)
@conversion_options("ONNX")
@click.option("--spikes", is_flag=True, help="Show every spiking node's spikes as an output of its name.")
@click.option("--membrane-potentials", is_flag=True, help="Show every spiking node's potential too.")
@click.option("--time-steps", type=click.IntRange(min=1), help="In place of the model's own.")
@common_options
def onnx_command(
    source: str,
    output: Path,
    precision: str | None,
    dt: float | None,
    calibration: str | None,
    data_dir: Path | None,
    spikes: bool,
    membrane_potentials: bool,
    time_steps: int | None,
    force: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Write a checkpoint or a NIR file as ONNX; inputs input_ids and attention_mask, output logits.

    \b
    Examples:
      spikebert export onnx default -o model.onnx --precision float64 --spikes
      spikebert export onnx from_snntorch.nir --dt 1e-4 -o from_snntorch.onnx --spikes
    """
    from export import draft_onnx, write_onnx
    from export.onnx_format.file import DATA_SUFFIX, check_onnx, external_data, load_onnx

    check_places(source, output, force)
    data = output.with_name(output.name + DATA_SUFFIX)
    refuse_overwrite(data, force)
    graph, about = _load_graph(source, precision, dt, calibration, data_dir, seed)
    precision = precision or ("integer" if graph.metadata.get("precision") == "integer" else "float32")
    draft = draft_onnx(
        graph,
        precision,
        spikes=spikes,
        membrane_potentials=membrane_potentials,
        time_steps=time_steps,
        metadata=about,
    )
    write_onnx(output, draft)
    nodes, outputs = len(draft.model.graph.node), [value.name for value in draft.model.graph.output]
    del graph, draft  # as large as the model; the check does not need them
    check_onnx(output)
    beside = [output.with_name(name) for name in external_data(load_onnx(output))]
    if data not in beside:
        data.unlink(missing_ok=True)  # of a larger model that stood here
    external_bytes = sum(path.stat().st_size for path in beside)
    summary = {
        "nodes": nodes,
        "outputs": outputs,
        "precision": precision,
        "external_data": [path.name for path in beside],
        "external_bytes": external_bytes,
    }
    said = f"{nodes} nodes, {len(outputs)} outputs, {precision}"
    if beside:
        said += f", weights of {external_bytes / 1e6:.1f} MB in {data.name} beside it"
    _report(output, summary, about, said, seed, as_json)


@export.command("netx", cls=Command)
@conversion_options("netx")
@click.option("--first", help="Node the chain begins with  [default: the graph's first].")
@click.option("--last", help="Node the chain ends with  [default: the graph's last].")
@click.option("--round-biases", is_flag=True, help="Round what netx cannot hold; this makes another network.")
@common_options
def netx_command(
    source: str,
    output: Path,
    precision: str | None,
    dt: float | None,
    calibration: str | None,
    data_dir: Path | None,
    first: str | None,
    last: str | None,
    round_biases: bool,
    force: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Write a chain of dense layers of an integer graph for lava.lib.dl.netx; name all that is in the way.

    \b
    Example:
      spikebert export netx integer.nir -o model.net --first block00_intermediate_affine --last block00_output_neuron
    """
    import numpy as np

    from export import parse_graph
    from export.netx import read_netx, write_netx

    check_places(source, output, force)
    graph, about = _load_graph(source, precision, dt, calibration, data_dir, seed)
    chain = write_netx(output, graph, first, last, round_biases)
    nodes = [node.name for node in parse_graph(read_netx(output)).nodes]
    _report(output, {"nodes": nodes, "precision": "integer"}, about, f"{len(nodes) // 2} layers", seed, as_json)
    if any(np.any(getattr(node.operator, "bias_mantissa", 0)) for node in chain.nodes):
        messages.print(
            "its neurons have biases, which charge them before the first input arrives: load it with "
            "hdf5.Network(..., reset_interval=T, reset_offset=1), T the steps of a sample",
            soft_wrap=True,
        )


def written_anew(graph: nir.NIRGraph, precision: str | None, about: dict[str, str]) -> nir.NIRGraph:
    """Return a graph that was read from a file as one of ours, in its own precision or another."""
    from export import build_graph, parse_graph

    network = parse_graph(graph)
    network.metadata.update(about)
    return build_graph(network, precision or str(network.metadata.get("precision", "float32")))


def write_graph(output: Path, graph: nir.NIRGraph, about: dict[str, str], seed: int, as_json: bool) -> None:
    """Write a NIR file, read it back, and say what is in it."""
    from export import parse_graph, read_nir, write_nir

    write_nir(output, graph)
    network = parse_graph(read_nir(output))
    summary = {
        "nodes": len(graph.nodes),
        "spiking_nodes": [node.name for node in network.spiking_nodes],
        "precision": graph.metadata["precision"],
    }
    said = f"{len(graph.nodes)} nodes, {len(network.spiking_nodes)} of them spiking"
    _report(output, summary, about, said, seed, as_json)


def _is_graph(source: str) -> bool:
    return source.endswith((NIR_SUFFIX, NETX_SUFFIX))


def check_places(source: str, output: Path, force: bool) -> None:
    """Refuse an output that is there, unless forced, or that is what is to be read."""
    refuse_overwrite(output, force)
    if output.exists() and Path(source).exists() and output.samefile(source):
        raise ConfigurationError(f"{output}: is what is to be read; write to another file")


def _load_graph(
    source: str, precision: str | None, dt: float | None, calibration: str | None, data_dir: Path | None, seed: int
) -> tuple[nir.NIRGraph, dict[str, str]]:
    """Return the graph of a checkpoint or file, and the hash of what it was read from."""
    from spikebert.provenance import file_sha256, seed_everything

    if _is_graph(source):
        from export import read_nir
        from export.netx import read_netx

        if calibration is not None:
            raise ConfigurationError(f"{source}: is a graph; spikebert quantize makes an integer graph of it")
        if source.endswith(NETX_SUFFIX):
            say_new_spelling("export of FILE.net", "import netx FILE.net -o MODEL.nir")
        graph = read_netx(source) if source.endswith(NETX_SUFFIX) else read_nir(source, dt)
        if dt is not None:
            graph.metadata.setdefault("dt", dt)  # from here on the graph says it
        integers = (graph.metadata.get("precision") == "integer", precision == "integer")
        if precision is not None and integers[0] != integers[1]:
            found = "an integer" if integers[0] else "a float"
            raise ConfigurationError(
                f"{source}: is {found} graph and stays one; spikebert quantize makes integers of floats"
            )
        return graph, {"source_sha256": file_sha256(source)}
    from export import to_nir
    from spikebert.checkpoint import checkpoint_sha256, load_config, load_model, load_tokenizer
    from spikebert.cli.inputs import most_positions
    from spikebert.cli.quantization import CALIBRATION_SENTENCES, quantize_checkpoint, read_calibration

    if (precision == "integer") != (calibration is not None):
        raise ConfigurationError("--precision integer needs --calibration, and nothing else takes it")
    seed_everything(seed)
    about = {"checkpoint_sha256": checkpoint_sha256(source)}
    if calibration is None:
        graph = to_nir(load_model(source), precision or "float32", metadata=dict(about), copy=False)
        return graph, about
    longest = most_positions(load_config(source))
    ids = read_calibration(calibration, load_tokenizer(source), data_dir, CALIBRATION_SENTENCES, longest)
    return quantize_checkpoint(source, ids)[0], about


def _report(output: Path, summary: dict[str, Any], about: dict[str, str], said: str, seed: int, as_json: bool) -> None:
    from spikebert.provenance import file_sha256, run_record

    if as_json:
        record = {**run_record(seed), **about}
        size = output.stat().st_size
        print_json({"file": str(output), "bytes": size, "sha256": file_sha256(output), **summary, **record})
    else:
        messages.print(f"wrote {output}: {said}, {output.stat().st_size / 1e6:.1f} MB, read back and checked")
