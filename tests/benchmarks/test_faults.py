"""The promise of the fault table: every planted fault is refused or found and located, as the document says it is."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).parents[2]
DOCUMENT = REPOSITORY / "docs" / "equivalence.md"


@pytest.fixture(scope="module")
def faults() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_faults", REPOSITORY / "benchmarks" / "faults.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("what", ["> in place of ≥", "residual edge missing", "spikes one step late"])
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_a_fault_is_found_where_it_is(what: str, precision: str, faults: ModuleType) -> None:
    from export import parse_graph, to_nir

    model = faults.make_model()
    (fault,) = [fault for fault in faults.GRAPH_FAULTS if fault.fault == what]
    explanation = faults.find_graph_fault(model, parse_graph(to_nir(model)), fault, precision).explanation
    assert explanation.at_fault == ["b"]
    assert explanation.first_unexplained.node in fault.expected


def test_every_fault_stands_in_the_document(faults: ModuleType) -> None:
    table = faults.table_in(DOCUMENT.read_text(encoding="utf-8"))
    for fault in (*faults.GRAPH_FAULTS, *(found[0] for found in faults.RUNNER_FAULTS)):
        assert f"| {getattr(fault, 'fault', fault)} |" in table


@pytest.mark.slow
def test_the_table_in_the_document_is_what_is_reported(faults: ModuleType) -> None:
    rows = faults.planted_faults()
    assert [row.fault for row in rows if not row.right] == []
    assert faults.table_in(DOCUMENT.read_text(encoding="utf-8")) == faults.markdown_table(rows)
