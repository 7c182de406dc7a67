"""A graph from a file: its options, and what is run through it, for ``simulate``, ``profile`` and ``energy``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hardware.choices import ONNX, PRECISIONS
from spikebert.cli.application import Function, Positive, messages
from spikebert.cli.inputs import (
    Sentences,
    Values,
    read_ids,
    read_sentences,
    read_values,
)
from spikebert.errors import ConfigurationError

if TYPE_CHECKING:
    from export.network import Network
    from hardware.trace import Trace

NIR_SUFFIX = ".nir"
SHOWN_DIGITS = 16
"""Of a hash."""
DEFAULT_TOKENIZER = "default"
MAX_PADDED_LENGTH = 1 << 16
"""Tokens of a sentence; a graph that asks for more is not to be believed."""

dt_option = click.option("--dt", type=Positive(), help="Seconds of a time step, where the NIR file does not say.")
input_option = click.option(
    "--input",
    "input_file",
    type=click.Path(path_type=Path),
    help="Spikes or values as .npy, .npz or .npz:NAME, for a graph that reads no tokens: (time steps, samples, ...) in "
    "the graph's shape.",
)


def graph_options(function: Function) -> Function:
    """Add ``--precision``, ``--tokenizer``, ``--ids``, ``--input`` and ``--dt``; `GraphOptions` takes them."""
    for option in (
        dt_option,
        input_option,
        click.option(
            "--ids",
            "ids_file",
            type=click.Path(path_type=Path),
            help="Token ids (sentences, tokens) as .npy, .npz or .npz:NAME; 0 is padding.",
        ),
        click.option(
            "--tokenizer",
            "tokenizer_name",
            help=f"Checkpoint whose tokenizer reads the text of a graph  [default: {DEFAULT_TOKENIZER}].",
        ),
        click.option(
            "--precision",
            type=click.Choice(PRECISIONS),
            help="Of a graph's run  [default: integer for an integer graph, an ONNX file's own, else float64].",
        ),
    ):
        function = option(function)
    return function


@dataclass(frozen=True)
class GraphOptions:
    """What `graph_options` were given; all None where nothing was."""

    precision: str | None = None
    tokenizer_name: str | None = None
    ids_file: Path | None = None
    input_file: Path | None = None
    dt: float | None = None

    def refuse(self, reason: str, allowed: tuple[str, ...] = ()) -> None:
        """Refuse every option that was given but is not `allowed`.

        Raises
        ------
        ConfigurationError
            One was; `reason` says why it is refused.
        """
        for name, value in vars(self).items():
            if value is not None and name not in allowed:
                option = name.removesuffix("_file").removesuffix("_name")
                raise ConfigurationError(f"--{option}: {reason}")

    def tokenizer(self) -> Any:
        """Return the tokenizer that reads text for a graph."""
        from spikebert.checkpoint import load_tokenizer

        return load_tokenizer(self.tokenizer_name or DEFAULT_TOKENIZER)

    def read_samples(
        self,
        graph_file: Path,
        network: Network | None,
        texts: tuple[str, ...],
        task: str | None,
        data_dir: Path | None,
        split: str,
        limit: int | None,
    ) -> Sentences | Values:
        """Return what is to be run through a graph; `network` is None for an ONNX file.

        Raises
        ------
        ConfigurationError
            Nothing, too much, or what the graph does not read was given; or a file of inputs cannot be read.
        DataError
            The task's file cannot be read.
        """
        if sum(map(bool, (texts, task, self.ids_file, self.input_file))) > 1:
            raise ConfigurationError("give --ids, --input, --text or --task, only one of them")
        if network is not None and (network.token_encoding is None) != (self.input_file is not None):
            wanted = "values: give --input" if self.input_file is None else "token ids: give --text, --task or --ids"
            raise ConfigurationError(f"{graph_file}: reads {wanted}")
        if self.input_file is not None:
            return read_values(self.input_file)
        if self.ids_file is not None:
            return read_ids(self.ids_file)
        padded = None if network is None else _padded_length(network)
        return read_sentences(self.tokenizer(), texts, task, data_dir, split, limit, padded, padded)


def check_recorded_on(trace: Trace, trace_file: Path, network: Network, graph_file: Path) -> None:
    """Check a recorded trace's own words about its graph; say so where it names another file of the same kind.

    Raises
    ------
    TraceMismatchError
        It says that it was recorded on a graph of the other kind, see `hardware.recorded.check_kind`.
    """
    from rich.markup import escape

    from hardware.recorded import check_kind
    from spikebert.provenance import file_sha256

    check_kind(trace, network, trace_file)
    recorded_on = trace.metadata.get("graph_sha256")
    if trace.metadata.get("runner") != ONNX and recorded_on not in (None, file_sha256(graph_file)):
        messages.print(
            f"[bold yellow]note[/]: {escape(str(trace_file))} says that it was recorded on a file of sha256 "
            f"{escape(str(recorded_on)[:SHOWN_DIGITS])}…, which {escape(str(graph_file))} is not; what is counted "
            "holds only if both compute the same",
            soft_wrap=True,
        )


def default_precision(network: Network) -> str:
    """Return the precision a graph runs in where nobody says."""
    return "integer" if network.is_integer else "float64"


def _padded_length(network: Network) -> int | None:
    """Return how long sentences must be, where padding counts as words and the graph says how much there is of it."""
    from export.errors import GraphError
    from export.operators.reading import metadata_value

    if not network.attend_to_padding or "padded_length" not in network.metadata:
        return None
    length = metadata_value(network.metadata, "padded_length", int, "graph")
    if not 1 <= length <= MAX_PADDED_LENGTH:
        raise GraphError(f"graph: padded_length is {length}; expected 1 to {MAX_PADDED_LENGTH} tokens")
    return length
