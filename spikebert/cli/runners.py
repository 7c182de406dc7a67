"""Runners as every command names them: ``reference``, ``lava``, ``lava:network``, ``lava:operator:hardware``."""

from __future__ import annotations

import click

from hardware.choices import GRANULARITIES, LAVA, RUNNERS, TIMINGS, TORCH
from spikebert.errors import ConfigurationError

TRACE_SUFFIX = ".npz"
WORDS = {**dict.fromkeys(GRANULARITIES, "granularity"), **dict.fromkeys(TIMINGS, "timing")}
"""What may stand behind ``lava:``, and which option of the runner it is."""


def parse_runner(text: str) -> tuple[str, dict[str, str]]:
    """Return a runner's name and its options.

    Raises
    ------
    ConfigurationError
        It is no runner, or what stands behind its name is not known or is said twice.
    """
    runner, _, words = text.partition(":")
    if runner not in RUNNERS:
        raise ConfigurationError(
            f"{text!r} is not a runner ({', '.join(RUNNERS)}) and not a trace file (ending in {TRACE_SUFFIX})"
        )
    options: dict[str, str] = {}
    for word in words.replace(",", ":").split(":") if words else ():
        if runner != LAVA or word not in WORDS:
            raise ConfigurationError(
                f"{text!r}: {word!r} is not known; behind lava: may stand {', '.join(WORDS)}, as in lava:network"
            )
        if WORDS[word] in options:
            raise ConfigurationError(f"{text!r}: says {options[WORDS[word]]!r} and {word!r}; give one {WORDS[word]}")
        options[WORDS[word]] = word
    return runner, options


class RunnerName(click.ParamType):
    """A runner's name with what stands behind it, or where `traces` a recorded trace, checked before anything loads.

    Parameters
    ----------
    *runners : str
        Those that the option takes; all there are, where none is named.
    traces : bool
    """

    name = "runner"

    def __init__(self, *runners: str, traces: bool = False) -> None:
        self.runners = runners or RUNNERS
        self.traces = traces

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Return what stands for it in the help."""
        return f"RUNNER|FILE{TRACE_SUFFIX}" if self.traces else "RUNNER"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text as it is."""
        if value.endswith(TRACE_SUFFIX):
            if not self.traces:
                self.fail(f"{value} is a recorded trace; name a runner: {', '.join(self.runners)}", param, ctx)
            return value
        try:
            runner, _ = parse_runner(value)
        except ConfigurationError as error:
            self.fail(str(error), param, ctx)
        if runner == TORCH and TORCH not in self.runners:
            self.fail(f"{value} runs models, not the graph of a file; choose {', '.join(self.runners)}", param, ctx)
        if runner not in self.runners:
            self.fail(f"{value!r} is not one of {', '.join(self.runners)}", param, ctx)
        return value
