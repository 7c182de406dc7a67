"""The promise of ``docs/architecture.md``: its examples run as they stand there, one after the other."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from export import parse_graph, to_nir
from export.operators import reading, rules
from hardware import runners
from hardware.energy.models import registry

PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
REGISTRIES: tuple[dict, ...] = (rules.TABLES, reading.MARKED_OPERATORS, runners._openers, registry._REGISTERED)


@pytest.fixture
def _registries() -> Iterator[None]:
    """Take out behind the examples what they registered."""
    before = [dict(registered) for registered in REGISTRIES]
    yield
    for registered, kept in zip(REGISTRIES, before, strict=True):
        registered.clear()
        registered.update(kept)


@pytest.mark.usefixtures("_registries")
def test_every_example_runs(
    tiny_model: Any, padded_batch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    module = sys.modules["architecture_page"] = ModuleType("architecture_page")  # where dataclasses look for it
    shipped = to_nir(tiny_model)
    ids, mask = padded_batch
    module.__dict__.update(shipped=shipped)
    ran = 0
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        if "estimate_energy(" in code:  # of the model and sentences that a reader has
            module.__dict__.update(graph=shipped, trace=runners.run(parse_graph(shipped), ids, mask))
        exec(compile(code, str(PAGE), "exec"), module.__dict__)
        ran += 1
    said = capsys.readouterr().out
    assert ran == 6  # an operator twice, a target, a runner, a chip, an energy model; a model stands in models.md
    assert "gelu: operation counts knows no gelu" in said
    assert "mJ a sentence" in said
