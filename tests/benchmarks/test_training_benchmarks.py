"""``benchmarks/accuracy.py`` and ``benchmarks/training.py`` run anywhere, and say of what and how they were made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from spikebert.checkpoint import checkpoint_sha256

ROOT = Path(__file__).parents[2]


def run(script: str, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "sst2").mkdir()
    rows = ["sentence\tlabel", "a warm and funny film\t1", "dull and endless\t0", "the best in years\t1", "awful\t0"]
    for split in ("train", "dev"):
        (folder / "sst2" / f"{split}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


@pytest.mark.slow
def test_accuracy_scores_the_shipped_checkpoints_beside_the_paper(data: Path, tmp_path: Path) -> None:
    done = run("accuracy.py", "--data-dir", data, "-o", tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "accuracy.json").read_text())
    first = result["rows"][0]
    assert (first["checkpoint"], first["task"], first["published"]) == ("default", "sst2", 85.39)
    assert first["sha256"] == checkpoint_sha256("default")
    assert first["dev"] in (0, 25, 50, 75, 100)
    assert f"{first['dev']:.2f}" in done.stdout
    assert "85.39" in (tmp_path / "accuracy.md").read_text()
    assert (tmp_path / "accuracy.csv").read_text().startswith("checkpoint,task,metric,dev")
    refused = run("accuracy.py", "--data-dir", tmp_path / "nowhere", "-o", tmp_path)
    assert refused.returncode == 1
    assert "nowhere" in refused.stderr


@pytest.mark.slow
def test_accuracy_trains_what_is_not_there_yet(data: Path, tmp_path: Path) -> None:
    words = ["--data-dir", data, "-o", tmp_path, "--runs", tmp_path / "runs", "--train", "--tasks", "sst2", "waimai"]
    for note in ("no Chinese teacher", "not trained again"):
        done = run("accuracy.py", *words, "--seeds", 0, 1, "--epochs", 1, "--blocks", 1)
        assert done.returncode == 0, done.stderr
        assert note in done.stdout
    trained = json.loads((tmp_path / "accuracy.json").read_text())["rows"][-1]
    assert trained["teacher_dev"] is not None
    assert trained["deviation"] is not None


@pytest.mark.slow
def test_training_compares_models_that_are_the_same(tmp_path: Path) -> None:
    done = run(
        "training.py", "--tiny", "--batch-size", 4, "--tokens", 8, "--rounds", 3, "-o", tmp_path / "training.json"
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "training.json").read_text())
    differences = result["largest_gradient_difference"]
    assert set(differences) == {"snnTorch", "SpikingJelly"}
    assert max(differences.values()) < 1e-9
    seconds = {name: each["forward_backward"]["median"] for name, each in result["seconds"].items()}
    faster = min(("snnTorch", "SpikingJelly"), key=lambda name: seconds[name])
    assert result["faster_library"] == faster
    assert result["like_for_like"] == pytest.approx(seconds[faster] / seconds[f"ours, neurons as {faster}"])
    assert result["at_best"] == pytest.approx(seconds[faster] / seconds["ours at its best"])
    kept = result["kept_bytes"]
    for earlier, later in zip(kept["ours"], kept["ours"][1:], strict=False):
        assert 1 < later / earlier <= 2 * 1.02  # twice the steps, at most twice the memory
