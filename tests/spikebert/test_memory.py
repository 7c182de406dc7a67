"""The memory of a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from spikebert.cli import main
from spikebert.memory import HUGE_PAGES_VARIABLE


@pytest.mark.parametrize(("before", "after"), [(None, "1"), ("0", "0")])
def test_commands_ask_for_huge_pages_unless_told_otherwise(
    before: str | None, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HUGE_PAGES_VARIABLE, before or "")  # so that what the command sets is taken back after the test
    if before is None:
        monkeypatch.delenv(HUGE_PAGES_VARIABLE)
    assert CliRunner().invoke(main, ["info", "--help"]).exit_code == 0
    assert os.environ[HUGE_PAGES_VARIABLE] == after


def test_large_arrays_come_in_huge_pages() -> None:
    modes = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not modes.exists() or "[madvise]" not in modes.read_text():
        pytest.skip("this system does not give huge pages to those who ask, and only to them")

    def faults(setting: str) -> int:
        program = """
import resource, torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(64 << 20, dtype=torch.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, HUGE_PAGES_VARIABLE: setting},
            capture_output=True,
            text=True,
            check=True,
        )
        return int(done.stdout)

    assert faults("1") < faults("0") / 4
