"""The promise of ``--input``, ``--ids`` and ``--calibration``: an array is read alike from .npy, .npz and .npz:NAME."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click.testing
import nir
import numpy as np
import pytest

from spikebert.cli import main
from spikebert.provenance import file_sha256

DT = 1e-3
WIDTH, NEURONS = 6, 4
DIFFERENT = ("command", "input", "input_sha256", "data", "file", "sha256", "bytes", "texts", "trace_sha256", "model")
"""What may differ where the same array comes from another file."""


def _json(*arguments: Any) -> dict[str, Any]:
    result = click.testing.CliRunner().invoke(main, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def _same(*results: dict[str, Any]) -> None:
    first, *rest = [{key: value for key, value in found.items() if key not in DIFFERENT} for found in results]
    assert len(first) > 3
    for other in rest:
        assert other == first


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A graph of another tool's kind, and the same spikes in three places."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("arrays")
    graph = nir.NIRGraph.from_list(
        nir.Input(input_type={"input": np.array([WIDTH])}),
        nir.Linear(rng.normal(size=(NEURONS, WIDTH))),
        nir.LIF(np.full(NEURONS, 0.02), np.full(NEURONS, 20.0), np.zeros(NEURONS), np.full(NEURONS, 0.5)),
        nir.Output(output_type={"output": np.array([NEURONS])}),
    )
    nir.write(folder / "theirs.nir", graph)
    spikes = rng.random((5, 3, WIDTH)) < 0.5
    np.save(folder / "spikes.npy", spikes)
    np.savez_compressed(folder / "alone.npz", spikes=spikes)
    np.savez(folder / "several.npz", **{"layer.0": spikes, "mask": np.ones((2, 2)), "note": np.array("theirs")})
    return {
        "graph": str(folder / "theirs.nir"),
        "npy": str(folder / "spikes.npy"),
        "npz": str(folder / "alone.npz"),
        "named": f"{folder / 'several.npz'}:layer.0",
    }


@pytest.mark.parametrize("command", ["simulate", "profile", "energy"])
def test_input_is_read_from_an_archive_too(command: str, places: dict[str, str]) -> None:
    found = {
        place: _json(command, places["graph"], "--dt", DT, "--input", places[place])
        for place in ("npy", "npz", "named")
    }
    _same(*found.values())
    if command == "simulate":
        assert any(found["npy"]["firing_rates"].values()), "nothing fires, so all would be alike"
        return
    assert found["named"]["input"] == places["named"]
    assert found["named"]["input_sha256"] == file_sha256(places["named"].removesuffix(":layer.0"))
    assert found["npz"]["input_sha256"] == file_sha256(places["npz"])


def test_a_trace_may_be_given_what_was_fed_from_an_archive(places: dict[str, str], tmp_path: Path) -> None:
    trace = tmp_path / "trace.npz"
    _json("simulate", places["graph"], "--dt", DT, "--input", places["npy"], "-o", trace)
    recorded = ("energy", "--trace", trace, "--graph", places["graph"], "--dt", DT, "--input")
    _same(*(_json(*recorded, places[place]) for place in ("npy", "npz", "named")))


def test_a_calibration_is_read_from_an_archive_too(places: dict[str, str], tmp_path: Path) -> None:
    quantized = {}
    for place in ("npy", "npz", "named"):
        file = tmp_path / f"{place}.nir"
        _json("quantize", places["graph"], "-o", file, "--dt", DT, "--calibration", places[place])
        quantized[place] = file_sha256(file)
    assert len(set(quantized.values())) == 1


def test_token_ids_are_read_from_an_archive_too(graph_file: Path, tmp_path: Path) -> None:
    ids = np.array([[2, 3, 4], [5, 6, 0]])
    np.save(tmp_path / "ids.npy", ids)
    np.savez(tmp_path / "ids.npz", ids)
    np.savez(tmp_path / "more.npz", ids=ids, labels=np.zeros((2, 1), int))
    given = ("ids.npy", "ids.npz", "more.npz:ids")
    _same(*(_json("simulate", graph_file, "--ids", tmp_path / place) for place in given))
    for index, place in enumerate(given):
        _json("quantize", graph_file, "-o", tmp_path / f"{index}.nir", "--calibration", tmp_path / place)
    assert len({file_sha256(tmp_path / f"{index}.nir") for index in range(3)}) == 1


def test_a_file_whose_own_name_has_the_mark_is_itself_read(places: dict[str, str], tmp_path: Path) -> None:
    odd = tmp_path / "spikes.npz:1.npy"
    odd.write_bytes(Path(places["npy"]).read_bytes())
    _same(*(_json("simulate", places["graph"], "--dt", DT, "--input", file) for file in (odd, places["npy"])))
