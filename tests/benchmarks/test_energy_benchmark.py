"""``python benchmarks/energy.py`` runs anywhere, writes all five files, and says in them how they were made."""

from __future__ import annotations

import csv
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import pytest

from export import to_nir
from export.nir_graph.reader import parse_graph
from hardware import run as run_trace
from hardware.energy import OperationCounter, estimate_energy
from hardware.energy.published import PUBLISHED
from spikebert.checkpoint import checkpoint_sha256, load_model, load_tokenizer
from spikebert.data import load_examples
from spikebert.tasks import find_task

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("energy benchmark")]

ROOT = Path(__file__).parents[2]
SENTENCES = 2


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Return what the benchmark printed, and the folder it wrote to, for a data folder with one small data set."""
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "data" / "waimai").mkdir(parents=True)
    rows = ["sentence\tlabel", "很好吃\t1", "a warm | film\t1", "never run\t0"]
    (folder / "data" / "waimai" / "dev.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    command = [sys.executable, "benchmarks/energy.py", "--no-base", "--limit", str(SENTENCES), "--seed", "5"]
    command += ["--data-dir", str(folder / "data"), "--output", str(folder / "made" / "results")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, folder / "made" / "results"


@pytest.fixture(scope="module")
def found(run: tuple[str, Path]) -> dict[str, Any]:
    return json.loads((run[1] / "energy.json").read_text())


def test_all_five_files_are_there_and_nothing_half_written(run: tuple[str, Path]) -> None:
    names = sorted(path.name for path in run[1].iterdir())
    assert names == ["energy.csv", "energy.html", "energy.json", "energy.md", "energy.png"]
    assert (run[1] / "energy.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_record_says_how_it_was_made(run: tuple[str, Path], found: dict[str, Any]) -> None:
    sha256 = checkpoint_sha256("default")
    assert (found["seed"], found["checkpoint_sha256"], found["limit"]) == (5, sha256, SENTENCES)
    assert {"python", "torch", "transformers", "numpy", "spikebert"} <= set(found["versions"])
    assert found["command"].startswith("energy.py --no-base --limit 2")
    for name in ("energy.md", "energy.html"):
        assert sha256 in (run[1] / name).read_text(), name


def test_measured_and_published_stand_side_by_side(found: dict[str, Any]) -> None:
    (measured,) = found["measured"]
    assert (measured["data"], measured["sentences"], measured["mean_tokens"]) == ("waimai", 2, (5 + 6) / 2)
    assert "unknown to this English vocabulary" in measured["remark"]
    rows = {(row["data"], row["network"]): row for row in found["tables_2_and_5"]}
    ours, paper = rows["waimai", "SpikeBERT, our checkpoint"], rows["waimai", "SpikeBERT, paper"]
    assert ours["printed_mj"] == paper["printed_mj"] == 29.90
    assert paper["formula_mj"] == pytest.approx(27.81 * 0.9)
    assert paper["gap_mj"] == pytest.approx(29.90 - 27.81 * 0.9)
    assert "Eq. 19" in paper["why"]
    operations = measured["operations"]["real"]
    accumulates = measured["synaptic_operations_eq_18"]
    assert accumulates >= (operations["ac_binary"] + operations["ac_graded_additions"]) / SENTENCES
    embedding = 4.6 * operations["embedding_read"] / SENTENCES
    assert ours["formula_mj"] == pytest.approx((0.9 * accumulates + embedding) / 1e9)


def test_every_shipped_checkpoint_has_its_row(run: tuple[str, Path], found: dict[str, Any]) -> None:
    """Counted here anew, sentence by sentence."""
    rows = {(row["data"], row["network"]): row for row in found["tables_2_and_5"]}
    row = rows["waimai", "SpikeBERT, default-loihi"]
    model, tokenizer = load_model("default-loihi"), load_tokenizer("default-loihi")
    network = parse_graph(to_nir(model))
    counter, tokens = OperationCounter(network), 0
    for example in load_examples(find_task("waimai"), "dev", run[1].parents[1] / "data")[:SENTENCES]:
        ids = np.array([tokenizer(example.texts[0])["input_ids"]])
        counter.update(run_trace(model, ids, runner="torch", precision="float32"))
        tokens += ids.size
    assert row["tokens"] == tokens / SENTENCES
    assert row["formula_mj"] == pytest.approx(estimate_energy(counter.result(), model="paper").energy_mj)
    assert found["other_checkpoints"] == {"default-loihi": checkpoint_sha256("default-loihi")}


def test_data_sets_that_are_not_there_keep_their_published_rows(found: dict[str, Any]) -> None:
    printed = [(row["data"], row["network"]) for row in found["tables_2_and_5"] if not row["ours"]]
    assert sorted(printed) == sorted({(row.dataset, f"{row.model}, paper") for row in PUBLISHED})
    assert len(found["published"]) == len(PUBLISHED)


def test_three_counters_agree_on_every_baseline(found: dict[str, Any]) -> None:
    assert len(found["baselines"]) == 9 * 3
    for count in found["baselines"]:
        assert count["macs_by_torch"] == count["macs_by_formula"], count
        assert count["macs_by_fvcore"] in (count["macs_by_formula"], None), count
        assert count["verdict"] in ("3 agree", "2 agree")
        expected = None if count["name"] == "quantized" else pytest.approx(4.6e-9 * count["macs_by_torch"])
        assert count["energy_mj"]["paper"] == expected
    assert {count["tokens"] for count in found["baselines"]} == {6, 128, 256}


def test_every_comparison_names_precisions_memory_and_basis(run: tuple[str, Path], found: dict[str, Any]) -> None:
    comparisons = found["measured"][0]["comparisons"]
    assert {row["energy_model"] for row in comparisons} >= {"paper", "horowitz-int8", "memory", "loihi1"}
    for row in comparisons:
        assert row["network_precision"]
        assert row["memory_included"] in (True, False)
        assert "estimate" in row["basis"]
        if row["ratio"] is None:
            assert row["remark"]
        else:
            assert row["baseline_precision"]


def test_where_the_spiking_network_loses_the_tables_say_so(run: tuple[str, Path], found: dict[str, Any]) -> None:
    losses = [row for row in found["measured"][0]["comparisons"] if row["ratio"] is not None and row["ratio"] > 1]
    for text in (run[0], (run[1] / "energy.md").read_text()):
        rows = [line for line in text.splitlines() if "LOSES" in line and "under" not in line]
        assert len(rows) == len(losses)
    assert (run[1] / "energy.html").read_text().count(">LOSES</b>") == len(losses)
    verdicts = " ".join(run[0].split()).split("* ")
    for name in {row["baseline"] for row in found["measured"][0]["comparisons"]}:
        (verdict,) = [line for line in verdicts if f"against {name}: " in line]
        for row in found["measured"][0]["comparisons"]:
            if row["baseline"] == name and row["ratio"] is None:
                assert row["energy_model"] in verdict.partition("no comparison under ")[2]


def test_each_chip_model_says_where_its_cores_and_chips_are_from(run: tuple[str, Path], found: dict[str, Any]) -> None:
    said = {row["placement"] for row in found["measured"][0]["comparisons"] if row["energy_model"] == "loihi1"}
    assert len(said) == 1
    assert said.pop().startswith("placed: ")
    assert f"loihi1, {found['measured'][0]['data']}: placed: " in " ".join(run[0].split())


def test_the_ratio_gets_worse_with_every_time_step(found: dict[str, Any]) -> None:
    panels = {panel["panel"]: panel for panel in found["sensitivity"]}
    assert set(panels) == {"firing rate, scaled", "time steps, run", "sentence length, run", "precision and memory"}
    for curve in panels["time steps, run"]["curves"]:
        assert curve["x"] == [1, 2, 4, 8, 16]
        assert curve["ratio"] == sorted(curve["ratio"]), curve["label"]
    for curve in panels["firing rate, scaled"]["curves"]:
        assert curve["ratio"] == sorted(curve["ratio"]), curve["label"]


def test_the_tables_fit_and_the_csv_is_one_table(run: tuple[str, Path]) -> None:
    assert max(len(line) for line in run[0].splitlines()) <= 100
    rows = list(csv.DictReader((run[1] / "energy.csv").open()))
    assert {row["section"] for row in rows} == {"ours", "paper", "comparison", "baseline"}
    assert all(None not in row and None not in row.values() for row in rows)


def test_the_page_stands_alone(run: tuple[str, Path]) -> None:
    html = (run[1] / "energy.html").read_text()
    assert html.count("data:image/png;base64,") == 1
    assert "<script" not in html
    assert 'src="http' not in html
    assert "url(" not in html


def test_a_checkpoint_that_is_not_there_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    benchmark = importlib.import_module("energy")
    result = click.testing.CliRunner().invoke(benchmark.main, ["--checkpoint", "/nowhere"])
    assert result.exit_code == 2
    assert "there is no checkpoint '/nowhere'" in " ".join(result.stderr.split())
    assert result.stdout == ""
