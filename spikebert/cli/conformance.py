"""``spikebert conformance``: does another implementation of our operators compute what they mean?"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click

from spikebert.cli.application import EXIT_ANSWER_IS_NO, common_options, messages, print_json, results
from spikebert.cli.grammar import Command
from spikebert.errors import ConfigurationError


@click.command(cls=Command)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.option("--write", is_flag=True, help="Write the files: graphs, inputs, and what must come out.")
@click.option("--force", is_flag=True, help="With --write: into a folder that holds something; replies are kept.")
@click.option("--only", multiple=True, help="Check only cases that match, such as 'integer/*'.")
@common_options
def conformance(folder: Path, write: bool, force: bool, only: tuple[str, ...], seed: int, as_json: bool) -> None:
    """Check a third party's spikes against the conformance files in DIR, case by case.

    Each case is a graph NAME.nir of one operator (and one of a whole spiking transformer), NAME.inputs.npz, and
    NAME.expected.npz, in float64 and in whole numbers. Run the graphs with your own tool, write NAME.npz beside them,
    and ask again. docs/nir-extension.md describes the files. Exits with 0 if every case is equal, else with 1 and the
    first divergence of each.

    \b
    Examples:
      spikebert conformance files --write
      spikebert conformance files --only 'integer/*layer_norm*'
    """
    from rich.markup import escape
    from rich.table import Table

    from hardware.conformance import EQUAL, check_conformance, write_conformance
    from spikebert.provenance import run_record

    if write:
        if only:
            raise ConfigurationError("--write writes every case; --only is for the check")
        if folder.exists() and any(folder.iterdir()) and not force:
            raise ConfigurationError(f"{folder} holds something already; add --force to write into it")
        names = write_conformance(folder)
        if as_json:
            print_json({"folder": str(folder), "cases": names, **run_record(seed)})
        else:
            messages.print(f"wrote {len(names)} cases to {folder}", markup=False, soft_wrap=True)
        return
    found = check_conformance(folder, only)
    conforms = all(case.status == EQUAL for case in found)
    if as_json:
        print_json({"conforms": conforms, "cases": [case.to_dict() for case in found], **run_record(seed)})
    else:
        table = Table("case", "answer", "spikes", "states", "outputs", box=None, header_style="bold")
        for case in found:
            counts = (case.spikes_compared, case.states_compared, case.outputs_compared)
            answer = case.status if case.status == EQUAL else f"[bold red]{case.status}[/]"
            table.add_row(escape(case.case), answer, *(f"{count:,}" if count else "" for count in counts))
        results.print(table)
        for case in found:
            why = f"first divergence: {case.first_divergence}" if case.first_divergence else case.detail
            if why:
                results.print(f"{case.case}: {why}", markup=False, soft_wrap=True)
        counted = Counter(case.status for case in found)
        said = ", ".join(f"{count} {status}" for status, count in counted.items())
        answer = "[bold green]CONFORMS[/]" if conforms else "[bold red]DOES NOT CONFORM[/]"
        results.print(f"{answer} {said} of {len(found)} cases", soft_wrap=True)
    if not conforms:
        raise SystemExit(EXIT_ANSWER_IS_NO)
