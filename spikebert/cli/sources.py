"""What ``profile`` and ``energy`` count: a checkpoint on sentences, a NIR graph on inputs, or a recorded trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hardware.choices import GRAPH_RUNNERS, REFERENCE
from spikebert.cli.application import Function, messages
from spikebert.cli.arrays import array_file
from spikebert.cli.grammar import Command
from spikebert.cli.graph_runs import NIR_SUFFIX, GraphOptions, check_recorded_on, default_precision, graph_options
from spikebert.cli.inputs import Sentences, Values, read_sentences, read_values, sentence_lengths, sentence_options
from spikebert.cli.runners import RunnerName
from spikebert.errors import ConfigurationError

if TYPE_CHECKING:
    from export.network import Network
    from hardware.firing import Firing

CHECKPOINT_PRECISION = "float32"
Words = Callable[[list[int]], list[str]]
"""Gives the tokens of ids."""


class SourceCommand(Command):
    """A command whose CHECKPOINT or MODEL.nir may be missing where ``--trace`` stands in its place."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Ask for it or not, then parse as usual."""
        has_trace = any(word.split("=")[0] in ("--trace", "--graph") for word in args)
        for parameter in self.params:
            if isinstance(parameter, click.Argument):
                parameter.required = not has_trace
        return super().parse_args(ctx, args)


def source_options(function: Function) -> Function:
    """Add all that says what is counted; `SourceOptions` takes it."""
    file = click.Path(path_type=Path, dir_okay=False)
    function = graph_options(sentence_options(function))
    for option in (
        click.option(
            "--runner",
            type=RunnerName(*GRAPH_RUNNERS),
            help="What runs MODEL.nir: reference, integer, lava:network, …  [default: reference].",
        ),
        click.option("--graph", "graph_file", type=file, help="NIR graph the trace was made with."),
        click.option(
            "--trace",
            "trace_file",
            type=file,
            help="Count this trace (.npz of any tool) and run nothing; --input may add what was fed to the graph.",
        ),
        click.argument("checkpoint", metavar="CHECKPOINT|MODEL.nir", required=False),
    ):
        function = option(function)
    return function


@dataclass(frozen=True)
class SourceOptions:
    """What `source_options` were given; the rest are `GraphOptions`."""

    checkpoint: str | None
    trace_file: Path | None
    graph_file: Path | None
    runner: str | None
    texts: tuple[str, ...]
    task: str | None
    data_dir: Path | None
    split: str
    limit: int | None
    of_graph: GraphOptions

    @classmethod
    def of(cls, given: dict[str, Any]) -> SourceOptions:
        """Return the options from a command's keywords."""
        own = {name: given[name] for name in cls.__dataclass_fields__ if name in given}
        rest = {name: value for name, value in given.items() if name not in own}
        return cls(**own, of_graph=GraphOptions(**rest))


@dataclass(frozen=True)
class Source:
    """What is counted.

    Attributes
    ----------
    name, title : str
        A checkpoint, a graph, or a trace with its graph; the title says more of a checkpoint.
    data : str
        What it ran on, in words.
    network : Network
    sentences : int
    firings : iterator of Firing
        What fired, batch by batch.
    words : callable or None
        None where nobody knows the tokens of ids.
    record : dict
        What a result must say about how it was made; ``runner`` and ``run_precision`` among it.
    """

    name: str
    title: str
    data: str
    network: Network
    sentences: int
    firings: Iterator[Firing]
    words: Words | None
    record: dict[str, Any]

    def counted(self, doing: str) -> Iterator[Firing]:
        """Yield the firings behind a progress bar that says what is being done."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("sentences"),
            TimeRemainingColumn(),
            console=messages,
        ) as progress:
            bar = progress.add_task(doing, total=self.sentences)
            for firing in self.firings:
                yield firing
                progress.advance(bar, len(firing.real))


def open_source(options: SourceOptions, seed: int) -> Source:
    """Read what the options name; nothing runs before the first firing is asked for.

    Raises
    ------
    ConfigurationError
        Options are missing, or stand where they mean nothing.
    SpikeBertError
        A file cannot be read, or what is in it means nothing; each with its own type.
    """
    checkpoint = options.checkpoint
    if checkpoint is None:
        return _recorded(options, seed)
    if options.trace_file is not None or options.graph_file is not None:
        raise ConfigurationError("--trace and --graph stand in place of CHECKPOINT or MODEL.nir; give one or the other")
    if checkpoint.endswith(NIR_SUFFIX):
        return _graph(Path(checkpoint), options, seed)
    reason = "is for MODEL.nir; a CHECKPOINT runs in PyTorch on --text or --task"
    options.of_graph.refuse(reason)
    if options.runner is not None:
        raise ConfigurationError(f"--runner: {reason}")
    return _checkpoint(checkpoint, options, seed)


def _checkpoint(checkpoint: str, options: SourceOptions, seed: int) -> Source:
    from export import parse_graph, to_nir
    from hardware.firing import Firing
    from hardware.runners import open_runner
    from spikebert.checkpoint import checkpoint_sha256, load_model, load_tokenizer
    from spikebert.provenance import run_record

    model, tokenizer = load_model(checkpoint), load_tokenizer(checkpoint)
    config = model.config
    longest, padded = sentence_lengths(config)
    asked = (options.texts, options.task, options.data_dir, options.split, options.limit)
    sentences = read_sentences(tokenizer, *asked, longest, padded)
    network = parse_graph(to_nir(model))

    def firings() -> Iterator[Firing]:
        with open_runner(model, "torch", CHECKPOINT_PRECISION) as runner:
            for batch in sentences.batches():
                trace = runner.run(batch.inputs, batch.mask)
                yield Firing(trace, network, batch.mask)  # a model may attend to padding; it is no token for that

    return Source(
        checkpoint,
        f"{checkpoint} ({config.num_hidden_layers} blocks, D = {config.hidden_size}, T = {config.time_steps})",
        _data(options, sentences),
        network,
        len(sentences),
        firings(),
        _words(tokenizer),
        {
            **run_record(seed, checkpoint_sha256(checkpoint)),
            "checkpoint": checkpoint,
            "runner": "torch",
            "run_precision": CHECKPOINT_PRECISION,
        },
    )


def _graph(path: Path, options: SourceOptions, seed: int) -> Source:
    from export.nir_file import read_network
    from hardware.firing import Firing
    from hardware.runners import open_runner
    from hardware.runners.runner import with_input
    from spikebert.cli.pairs import Side
    from spikebert.provenance import run_record

    given = options.of_graph
    side = Side.parse(options.runner or REFERENCE)
    _, network = read_network(path, given.dt)
    samples = given.read_samples(
        path, network, options.texts, options.task, options.data_dir, options.split, options.limit
    )
    precision = given.precision or default_precision(network)

    def firings() -> Iterator[Firing]:
        with open_runner(network, side.runner, precision, **side.options) as runner:
            for batch in samples.batches():
                trace = runner.run(batch.inputs, batch.mask)
                if batch.mask is None:
                    trace = with_input(trace, network, batch.inputs)
                yield Firing(trace, network, batch.mask)

    return Source(
        str(path),
        str(path),
        _data(options, samples),
        network,
        len(samples),
        firings(),
        _words(given.tokenizer()) if options.texts or options.task else None,
        {
            **run_record(seed),
            **_of_file("graph", path),
            **_of_file("input", given.input_file or given.ids_file),
            "runner": str(side),
            "run_precision": precision,
        },
    )


def _recorded(options: SourceOptions, seed: int) -> Source:
    from export.nir_file import read_network
    from hardware.firing import Firing
    from hardware.recorded import load_trace
    from hardware.runners.runner import with_input
    from spikebert.provenance import run_record

    trace_file, graph_file, given = options.trace_file, options.graph_file, options.of_graph
    if trace_file is None or graph_file is None:
        raise ConfigurationError("a trace is counted with the graph it was made with: give both --trace and --graph")
    if options.texts or options.task:
        raise ConfigurationError("--trace holds its own sentences; leave out --text and --task")
    given.refuse("has no meaning beside --trace, where nothing is run", allowed=("input_file", "dt"))
    if options.runner is not None:
        raise ConfigurationError("--runner has no meaning beside --trace, where nothing is run")
    trace = load_trace(trace_file)
    _, network = read_network(graph_file, given.dt)
    check_recorded_on(trace, trace_file, network, graph_file)
    if given.input_file is not None:
        trace = with_input(trace, network, read_values(given.input_file).array)
    name = f"{trace_file} on {graph_file}"
    return Source(
        name,
        name,
        _in_words(len(trace.mask)),
        network,
        len(trace.mask),
        iter([Firing(trace, network)]),
        None,
        {
            **run_record(seed),
            **_of_file("trace", trace_file),
            **_of_file("graph", graph_file),
            "trace_graph_sha256": trace.metadata.get("graph_sha256"),
            **_of_file("input", given.input_file),
            "runner": trace.metadata.get("runner"),
            "run_precision": trace.precision,
        },
    )


def _of_file(role: str, path: Path | None) -> dict[str, str]:
    """Return name and hash of a file, or of the one an array is in, as a record has them."""
    from spikebert.provenance import file_sha256

    return {} if path is None else {role: str(path), f"{role}_sha256": file_sha256(array_file(path))}


def _words(tokenizer: Any) -> Words:
    return lambda ids: [str(token) for token in tokenizer.convert_ids_to_tokens(ids)]


def _data(options: SourceOptions, samples: Sentences | Values) -> str:
    """Return what is run, in words."""
    if options.task:
        return f"{options.task} {options.split}, {_in_words(len(samples))}"
    file = options.of_graph.input_file or options.of_graph.ids_file
    number = _in_words(len(samples), "sample" if isinstance(samples, Values) else "sentence")
    return f"{'given text' if file is None else file.name}, {number}"


def _in_words(number: int, of: str = "sentence") -> str:
    return f"{number:,} {of}{'s' if number != 1 else ''}"
