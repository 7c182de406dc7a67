"""The promise of `import_lava`: Lava imports on every supported Python whatever came before, or says how to get it.

Imports happen once per Python, so every case runs in one of its own.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.lava

REPOSITORY = Path(__file__).parents[3]
needs_lava = pytest.mark.skipif(importlib.util.find_spec("lava") is None, reason="lava-nc is not installed")


def _run(code: str) -> subprocess.CompletedProcess[str]:
    lines = f"import sys\nsys.path.insert(0, {str(REPOSITORY)!r})\n{code}"
    return subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=False)


def _assert_passes(code: str) -> None:
    finished = _run(code)
    assert finished.returncode == 0, finished.stderr


@needs_lava
def test_lava_imports_and_nothing_stays_patched() -> None:
    _assert_passes("""
import dataclasses, multiprocessing
before = dataclasses.dataclass, multiprocessing.set_start_method
from hardware.runners.lava.compatibility import import_lava
assert not any(name.split(".")[0] == "lava" for name in sys.modules), "work at import"
import_lava()
import_lava()
import lava.magma.compiler.compiler
import lava.proc.lif.process
assert (dataclasses.dataclass, multiprocessing.set_start_method) == before
assert multiprocessing.get_start_method() == "fork"
""")


@needs_lava
def test_multiprocessing_may_have_been_used_before() -> None:
    # A lock fixes the start method, after which Lava alone cannot be imported any more.
    _assert_passes("""
import multiprocessing
multiprocessing.set_start_method("fork")
multiprocessing.Lock()
from hardware.runners.lava.compatibility import import_lava
import_lava()
import lava.magma.compiler.compiler
""")


@needs_lava
def test_another_start_method_is_refused() -> None:
    finished = _run("""
import multiprocessing
multiprocessing.set_start_method("spawn")
from hardware.runners.lava.compatibility import import_lava
import_lava()
""")
    assert "ConfigurationError" in finished.stderr
    assert "'spawn'" in finished.stderr


@pytest.mark.parametrize(
    ("missing", "said"), [("lava", "Lava (lava-nc 0.10) is not"), ("scipy", "'scipy', which Lava")]
)
def test_what_is_missing_is_named_with_how_to_get_it(missing: str, said: str) -> None:
    if missing != "lava" and importlib.util.find_spec("lava") is None:
        pytest.skip("lava-nc is not installed")
    finished = _run(f"""
sys.modules[{missing!r}] = None
from hardware.runners.lava.compatibility import import_lava
from spikebert.errors import MissingDependencyError
try:
    import_lava()
except MissingDependencyError as error:
    print(error)
""")
    assert finished.returncode == 0, finished.stderr
    for fragment in (
        said,
        "uv sync --extra lava",
        'pip install "spikebert[lava]"',
        "pip install --no-deps --ignore-requires-python lava-nc==0.10.0",
        'pip install "asteval>=0.9.31,<0.10" "networkx<=2.8.7" "numpy>=1.24.4,<2" "scikit-learn>=1.5,<2" '
        '"scipy>=1.10.1,<2"',
    ):
        assert fragment in finished.stdout
