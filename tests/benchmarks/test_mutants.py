"""The promise of ``benchmarks/mutants.py``: each fault stands once in this code, and its verdict is what tests said."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).parents[2]
BENCHMARKS = REPOSITORY / "benchmarks"

SCRIPT = """
import json, sys
import mutants
from pathlib import Path
mutants.PRELOADED = ()
bench = mutants.Bench(Path(sys.argv[1]), Path(sys.argv[2]))
faults = {
    "killed": mutants.Mutant("", "$x * 2", "$x * 3", mutants.Tests("test_a*.py", "doubled")),
    "survived": mutants.Mutant("", "1 + 1", "1 + 2", mutants.Tests("test_a*.py", "doubled")),
    "not found": mutants.Mutant("", "x * 4", "", mutants.Tests("test_a*.py", "doubled")),
    "no tests": mutants.Mutant("", "$x * 2", "$x * 3", mutants.Tests("test_a*.py", "nonsense")),
    "broken": mutants.Mutant("", "$x * 2", "$x * 3", mutants.Tests("test_a*.py", "wrong")),
    "killed at import": mutants.Mutant("", "$x * 2", "$x *", mutants.Tests("test_a*.py", "doubled")),
}
print(json.dumps({name: vars(bench.judge(fault)) for name, fault in faults.items()}))
"""


@pytest.fixture
def mutants(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("mutants")


def test_there_are_thirty_and_each_stands_once_in_the_packages(mutants: ModuleType) -> None:
    assert len({mutant.name for mutant in mutants.MUTANTS}) == 30
    for mutant in mutants.MUTANTS:
        where = mutants.find_snippet(REPOSITORY, mutant)
        assert isinstance(where, Path), f"{mutant.name}: {where}"
        changed = mutants.mutated(where.read_text(encoding="utf-8"), mutant)
        assert "$" not in changed or "$" in where.read_text(encoding="utf-8"), mutant.name
        if where.suffix == ".py":
            compile(changed, str(where), "exec")


def test_a_snippet_is_found_however_it_is_broken_into_lines_and_named(mutants: ModuleType) -> None:
    mutant = mutants.Mutant("", "$low + min($low, 2 * $high)", "max($high, $low)", mutants.Tests("", ""))
    assert mutants.mutated("y = below+min(\n    below,\n    2*above\n)\n", mutant) == "y = max(above, below)\n"
    untouched = "y = below + min(other, 2 * above)\nz = min(a, 2 * b)\n"
    assert mutants.mutated(untouched, mutant) == untouched


def test_verdicts_are_what_the_tests_said(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    for folder in ("spikebert", "export", "hardware", "tests"):
        (checkout / folder).mkdir(parents=True)
    code = "def doubled(x):\n    return x * 2\n\n\ndef two():\n    return 1 + 1\n"
    (checkout / "export" / "__init__.py").write_text(code)
    (checkout / "tests" / "test_all.py").write_text(
        "import export\n\n\ndef test_doubled():\n    assert export.doubled(2) == 4\n\n\n"
        "def test_wrong():\n    assert export.doubled(1) == 3\n"
    )
    (tmp_path / "scratch").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(checkout), str(tmp_path / "scratch")],
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS), "PYTEST_ADDOPTS": "-p no:nengo"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {name: outcome["verdict"] for name, outcome in found.items()} == {
        **{name: name for name in found},
        "killed at import": "killed",
    }
    assert found["killed"]["where"] == "export/__init__.py"
    assert found["killed"]["found_by"] == "tests/test_all.py::test_doubled"
    assert found["not found"]["where"] == "no file has it"
    copy = tmp_path / "scratch" / "copy" / "export" / "__init__.py"
    assert copy.read_text() == code, "a fault stays in the copy"
    assert (checkout / "export" / "__init__.py").read_text() == code
