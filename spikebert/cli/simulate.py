"""``spikebert simulate``: a NIR or ONNX file on a simulator, to a trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hardware.choices import GRAPH_RUNNERS, LAVA, ONNX, REFERENCE
from spikebert.cli.application import (
    Positive,
    common_options,
    messages,
    print_json,
    refuse_overwrite,
    results,
)
from spikebert.cli.grammar import Command, PartOfRunner
from spikebert.cli.graph_runs import GraphOptions, default_precision, graph_options
from spikebert.cli.inputs import sentence_options
from spikebert.cli.runners import RunnerName, parse_runner
from spikebert.errors import ConfigurationError


@click.command(
    cls=Command,
    old=(PartOfRunner("--granularity", "--runner", REFERENCE), PartOfRunner("--timing", "--runner", REFERENCE)),
)
@click.argument("graph_file", metavar="MODEL.nir|MODEL.onnx", type=click.Path(path_type=Path))
@click.option(
    "--runner",
    type=RunnerName(*GRAPH_RUNNERS),
    help="What simulates: reference, integer, onnx, or lava, behind which may stand how much runs in one process "
    "(lava:operator, lava:block, lava:network) and that each synaptic hop takes a step (lava:hardware)  [default: "
    "reference; onnx for an ONNX file].",
)
@click.option("--timeout", type=Positive(), help="Lava only: seconds without progress.")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    help="Lava only: parallel networks at most [default: one a processor, where memory allows].",
)
@graph_options
@click.option("--membrane-potentials", is_flag=True, help="Record potentials too.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Trace to write (.npz).")
@click.option("--force", is_flag=True, help="Write over an existing file.")
@sentence_options
@common_options
def simulate(
    graph_file: Path,
    runner: str | None,
    timeout: float | None,
    jobs: int | None,
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
    **of_graph: Any,
) -> None:
    """Run sentences through a NIR or ONNX file on a simulator; print logits and firing rates, and write the trace.

    \b
    Example:
      spikebert simulate model.nir --runner lava --text "A warm and funny film ." -o trace.npz
      spikebert simulate from_snntorch.nir --dt 1e-4 --input spikes.npy
    """
    import numpy as np

    from export.nir_file import read_network
    from hardware.runners import open_runner
    from spikebert.provenance import file_sha256, run_record, seed_everything

    is_onnx = graph_file.suffix == ".onnx"
    runner, in_lava = parse_runner(runner or (ONNX if is_onnx else REFERENCE))
    if is_onnx and runner != ONNX:
        raise ConfigurationError(f"{graph_file}: only --runner onnx runs an ONNX file; give the NIR file")
    chosen = GraphOptions(**of_graph)
    given = {"timeout": timeout, "jobs": jobs}
    options: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if options and runner != LAVA:
        raise ConfigurationError(f"--{next(iter(options))} is for --runner lava only")
    if runner == LAVA:
        options |= {"jobs": jobs, **in_lava}
    if output is not None:
        refuse_overwrite(output, force)
    seed_everything(seed)
    network = None if is_onnx else read_network(graph_file, chosen.dt)[1]
    precision = chosen.precision or (precision_of_onnx(graph_file) if network is None else default_precision(network))
    samples = chosen.read_samples(graph_file, network, texts, task, data_dir, split, limit)
    (batch,) = samples.batches(len(samples))
    graph: Any = graph_file if network is None else network
    with open_runner(graph, runner, precision, record_membrane_potentials=membrane_potentials, **options) as opened:
        trace = opened.run(batch.inputs, batch.mask)
    trace.metadata.update(run_record(seed), graph_sha256=file_sha256(graph_file), texts=batch.texts)
    if output is not None:
        trace.save(output)
        messages.print(f"wrote {output}")
    rates = {name: trace.firing_rate(name) for name in trace.spikes}
    if as_json:
        print_json({"logits": trace.logits, "firing_rates": rates, "trace": output and str(output), **trace.metadata})
        return
    for text, logits in zip(batch.texts, trace.logits, strict=True):
        results.print(f"{np.array2string(logits, precision=4)}  {text}", markup=False)
    for name, rate in rates.items():
        results.print(f"{name}: {100 * rate:.2f} %")


def precision_of_onnx(path: Path) -> str:
    """Return the precision that an ONNX file computes in."""
    from export.onnx_format.file import read_onnx

    return read_onnx(path).precision
