"""What the benchmark of Lava measures is the same work each way: the same spikes, in processes that really ran."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.lava, pytest.mark.slow]

FILE = Path(__file__).parents[2] / "benchmarks" / "lava_rows.py"


@pytest.fixture(scope="module")
def lava_rows() -> Any:
    specification = importlib.util.spec_from_file_location("lava_rows", FILE)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_every_way_fires_the_same(lava_rows: Any, tmp_path: Path) -> None:
    file = tmp_path / "model.nir"
    lava_rows.write_random_model(file, layers=1, hidden_size=16, tokens=5)
    ways = (lava_rows.NUMPY, *lava_rows.GRANULARITIES, lava_rows.PLAIN)
    rows = {way: lava_rows.measure_way(way, file, tokens=5, rounds=2) for way in ways}
    assert len({row["spikes"] for row in rows.values()}) == 1
    assert rows[lava_rows.NUMPY]["spikes"] > 0
    # blocks: what is before, the block and what is behind; each with Lava's runtime service
    assert [rows[way]["processes"] for way in (lava_rows.NUMPY, "network", "block")] == [0, 2, 4]
    assert rows[lava_rows.PLAIN]["processes"] > rows["operator"]["processes"] / 2 > 5
    for row in rows.values():
        assert row["sample_seconds"] > 0
        assert row["memory_bytes"] > 20_000_000
    text = lava_rows.table(list(rows.values()), "tiny")
    assert text.row_count == len(ways)


def test_the_plain_mapping_says_what_was_measured_and_what_was_not(lava_rows: Any, tmp_path: Path) -> None:
    assert lava_rows.plain_tokens(layers=12, hidden_size=768, tokens=128) == 1  # 121 x 768 neurons, 4 steps
    assert lava_rows.plain_tokens(layers=1, hidden_size=16, tokens=5) == 5
    file = tmp_path / "model.nir"
    lava_rows.write_random_model(file, layers=1, hidden_size=16, tokens=6)
    numpy, measured, extrapolated = lava_rows.measure_plain(file, few=2, tokens=6)
    assert numpy["spikes"] == measured["spikes"] > 0
    assert [row["tokens"] for row in (numpy, measured, extrapolated)] == [2, 2, 6]
    assert [row["extrapolated"] for row in (numpy, measured, extrapolated)] == [False, False, True]
    more = extrapolated["sample_seconds"] - measured["sample_seconds"]
    assert more == pytest.approx(2 * measured["reading_seconds"])
    assert 0 < measured["reading_seconds"] < measured["sample_seconds"]
    assert lava_rows.plain_table([numpy, measured, extrapolated], [], "tiny").row_count == 2
