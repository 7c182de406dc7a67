"""What all commands share: lazy loading, exit codes, ``--seed``, ``--json`` and where messages go.

Exit codes: 0 success, 1 the answer is no, 2 bad use or bad input. Results go to standard output, progress and messages
to standard error.
"""

from __future__ import annotations

import importlib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from spikebert.cli.grammar import say_new_spelling
from spikebert.errors import ConfigurationError, SpikeBertError
from spikebert.memory import ask_for_huge_pages

if TYPE_CHECKING:
    from rich.console import Console

EXIT_ANSWER_IS_NO = 1
EXIT_BAD_INPUT = 2
DEFAULT_SEED = 0
DATA_VARIABLE = "SPIKEBERT_DATA"
TORCH_HAS_NO_MEMORY = "DefaultCPUAllocator"
"""Stands in the RuntimeError that torch raises in place of a MemoryError."""

Function = TypeVar("Function", bound=Callable[..., Any])


class LateConsole:
    """A console of rich that is made when something is printed, so that ``--help`` does not wait for rich."""

    def __init__(self, **settings: Any) -> None:
        self._settings = settings

    @cached_property
    def _console(self) -> Console:
        from rich.console import Console

        return Console(**self._settings)

    def __getattr__(self, name: str) -> Any:
        """Return what the console has."""
        return getattr(self._console, name)

    def __enter__(self) -> Console:
        """Begin to hold back what is printed; progress bars do so."""
        return self._console.__enter__()

    def __exit__(self, *raised: Any) -> None:
        """Print it."""
        self._console.__exit__(*raised)


messages = cast("Console", LateConsole(stderr=True, highlight=False))
results = cast("Console", LateConsole(highlight=False))


class BadInput(click.ClickException):
    """A typed error of ours on its way to the user."""

    exit_code = EXIT_BAD_INPUT


class LazyGroup(click.Group):
    """A group whose commands are imported when called, from a table of ``name -> "module:attribute"``.

    Our typed errors become one line on standard error and exit code 2. `old_commands` are names that commands had once,
    with the words that call them now.
    """

    def __init__(
        self,
        *args: Any,
        lazy_commands: dict[str, str] | None = None,
        old_commands: dict[str, tuple[str, ...]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.lazy_commands = lazy_commands or {}
        self.old_commands = old_commands or {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List commands in the order of the table, which is the order of the road."""
        return [*self.lazy_commands, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module."""
        if cmd_name not in self.lazy_commands:
            return super().get_command(ctx, cmd_name)
        module, attribute = self.lazy_commands[cmd_name].split(":")
        return getattr(importlib.import_module(module), attribute)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, by the name that it has now."""
        words = self.old_commands.get(args[0])
        if words is not None:
            say_new_spelling(f"{ctx.command_path} {args[0]}", " ".join((ctx.command_path, *words)))
            args = [*words, *args[1:]]
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; print a typed error, or that memory does not suffice, as one message."""
        try:
            return super().invoke(ctx)
        except SpikeBertError as error:
            raise BadInput(str(error)) from error
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and TORCH_HAS_NO_MEMORY not in str(error):
                raise
            raise BadInput(f"this machine has too little memory for it: {error or 'no more could be had'}") from error


def common_options(function: Function) -> Function:
    """Add ``--seed`` and ``--json``, which every command takes."""
    function = click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON object on standard output, messages on standard error."
    )(function)
    return click.option(
        "--seed", type=int, default=DEFAULT_SEED, show_default=True, help="Seed of everything that is drawn."
    )(function)


def print_json(result: dict[str, Any]) -> None:
    """Print one JSON object on standard output; what is not a finite number becomes null, as JSON has no NaN."""
    plain = json.loads(json.dumps(result, default=_jsonable), parse_constant=lambda _: None)
    click.echo(json.dumps(plain, indent=2, allow_nan=False))


def _jsonable(value: Any) -> Any:
    if hasattr(value, "item") and getattr(value, "size", 1) == 1:
        return value.item()
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)


class Positive(click.FloatRange):
    """A finite number above 0; click's own range lets NaN and infinity pass."""

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


def refuse_overwrite(path: Path, force: bool) -> None:
    """Refuse to write over what exists unless forced, and over a device or a pipe always.

    Raises
    ------
    ConfigurationError
        The file, or the folder of a checkpoint, exists and `force` is False; or `path` is neither.
    """
    if path.exists() and not force:
        raise ConfigurationError(f"{path} exists already; add --force to write over it")
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ConfigurationError(f"{path} is not a regular file; give the name of another")


def check_outputs(paths: Iterable[Path | None], force: bool) -> None:
    """Check that reports can be written, each to a place of its own, before the work.

    Raises
    ------
    ConfigurationError, ReportError
        A file exists and `force` is False, two are the same, or there is no such folder.
    """
    from hardware.reports.files import check_place

    given = [path for path in paths if path is not None]
    for path in given:
        check_place(path)
        refuse_overwrite(path, force)
    for first, second in itertools.combinations(given, 2):
        if first.absolute() == second.absolute():
            raise ConfigurationError(f"{first} is named twice; what is written first would be lost")


def data_directory(given: Path | None) -> Path | None:
    """Return the folder with the data sets: the option's, else the environment's, else None for the hub."""
    if given is not None:
        return given
    return Path(os.environ[DATA_VARIABLE]) if os.environ.get(DATA_VARIABLE) else None


@click.group(
    cls=LazyGroup,
    lazy_commands={
        "demo": "spikebert.cli.demo:demo",
        "distill": "spikebert.cli.distill:distill",
        "fold": "spikebert.cli.fold:fold",
        "evaluate": "spikebert.cli.evaluate:evaluate",
        "import": "spikebert.cli.importing:import_group",
        "export": "spikebert.cli.export:export",
        "quantize": "spikebert.cli.quantize:quantize",
        "simulate": "spikebert.cli.simulate:simulate",
        "verify": "spikebert.cli.verify:verify",
        "compare": "spikebert.cli.compare:compare",
        "check": "spikebert.cli.check:check",
        "profile": "spikebert.cli.profile:profile",
        "energy": "spikebert.cli.energy:energy",
        "place": "spikebert.cli.place:place",
        "info": "spikebert.cli.info:info",
        "conformance": "spikebert.cli.conformance:conformance",
    },
    old_commands={"import-published": ("import", "published")},
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="spikebert")
def main() -> None:
    """Carry spiking language models from PyTorch to NIR and Lava, and prove that the spikes are the same."""
    ask_for_huge_pages()
