"""What a user waits for before anything is computed: ``--help`` of every command, and a mistake in its words.

    python benchmarks/startup.py [--rounds 5] [-o results/startup.json]

Every call of every round is a process of its own, which counts from its start to its end: processor seconds, as other
work may share the machine, and the peak of resident memory. Python alone and click alone stand above them.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from hardware.reports.files import write_json_object
from spikebert.cli import main as command_line
from spikebert.provenance import run_record

SECONDS_ALLOWED = 0.3
MEGABYTES_ALLOWED = 60.0
REPORTING = "import atexit, sys; atexit.register(lambda: sys.stderr.write(open('/proc/self/status').read()))"
"""Begins every program measured: its own peak, not what the starting process had, is what wait4(2) cannot tell."""
COMMAND = f"{REPORTING}; from spikebert.cli import main; main()"
PEAK = re.compile(r"VmHWM:\s+(\d+) kB")


def main() -> None:
    """Measure every call in processes of their own and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds, of which the median is shown")
    parser.add_argument("-o", "--output", type=Path, default=Path("results/startup.json"))
    arguments = parser.parse_args()
    calls = {"python": [REPORTING], "import click": [f"{REPORTING}; import click"]}
    for words in commands(command_line):
        calls[" ".join(("spikebert", *words, "--help"))] = [COMMAND, *words, "--help"]
    calls["spikebert verify --no-such-option"] = [COMMAND, "verify", "--no-such-option"]
    rounds = [{call: measure(words) for call, words in calls.items()} for _ in range(arguments.rounds)]
    measured = {
        call: {key: statistics.median(found[call][key] for found in rounds) for key in rounds[0][call]}
        for call in calls
    }
    marks = {
        f"every call at most {SECONDS_ALLOWED:g} processor seconds": all(
            values["cpu_seconds"] <= SECONDS_ALLOWED for values in measured.values()
        ),
        f"every call at most {MEGABYTES_ALLOWED:g} MB": all(
            values["peak_megabytes"] <= MEGABYTES_ALLOWED for values in measured.values()
        ),
    }
    console = Console(width=120)
    console.print(table(measured))
    for mark, met in marks.items():
        console.print(f"{'met   ' if met else 'MISSED'}  {mark}", highlight=False)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_json_object(arguments.output, {"calls": measured, "marks": marks, **run_record(None)})
    print(f"wrote {arguments.output}")


def commands(command: click.Command, *words: str) -> Iterator[tuple[str, ...]]:
    """Yield the words of a command or group, and of all that is in it."""
    yield words
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from commands(found, *words, name)


def measure(words: list[str]) -> dict[str, float]:
    """Run one program of Python and return its processor seconds and its peak of memory."""
    before = os.times()
    done = subprocess.run([sys.executable, "-c", *words], capture_output=True, text=True, check=False)
    after = os.times()
    peak = PEAK.search(done.stderr)
    if peak is None:
        raise SystemExit(f"{words}: {done.stderr}")
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    return {"cpu_seconds": seconds, "peak_megabytes": int(peak[1]) * 1024 / 1e6}


def table(measured: dict[str, dict[str, Any]]) -> Table:
    """Return seconds and memory of every call as a table."""
    found = Table("call", box=None)
    for name in ("processor s", "peak MB"):
        found.add_column(name, justify="right")
    for call, values in measured.items():
        found.add_row(call, f"{values['cpu_seconds']:.2f}", f"{values['peak_megabytes']:.0f}")
    return found


if __name__ == "__main__":
    main()
