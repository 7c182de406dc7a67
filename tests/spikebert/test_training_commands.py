"""``spikebert distill task`` and ``spikebert evaluate``: their exit codes, their JSON, and what they refuse."""

import json
import re

import pytest
from click.testing import CliRunner

from spikebert.checkpoint import checkpoint_sha256
from spikebert.cli import main

TINY = ["--blocks", 1, "--heads", 2, "--intermediate-size", 32, "--time-steps", 2, "--max-length", 16]


def run(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture(scope="module")
def trained(tiny_teacher, tiny_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "model"
    words = ["distill", "task", "--teacher", tiny_teacher, "--task", "sst2", "--data-dir", tiny_data, "-o", folder]
    result = run(*words, "--epochs", 4, "--batch-size", 8, "--learning-rate", 5e-3, *TINY, "--label-only", "--json")
    assert result.exit_code == 0, result.output
    return folder, json.loads(result.stdout), words


def test_distill_prints_its_record_and_nothing_else(trained):
    folder, record, _ = trained
    assert record["checkpoint_sha256"] == checkpoint_sha256(folder)
    assert record["dev"] == max(evaluation["dev"] for evaluation in record["evaluations"])
    assert record["seed"] == 0


def test_evaluate_repeats_the_record_s_score(trained, tiny_data):
    folder, record, _ = trained
    result = run("evaluate", folder, "--task", "sst2", "--data-dir", tiny_data, "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["value"] == record["dev"]
    assert {key: answer[key] for key in ("task", "split", "metric", "examples", "checkpoint_sha256", "seed")} == {
        "task": "sst2",
        "split": "dev",
        "metric": "accuracy",
        "examples": 24,
        "checkpoint_sha256": record["checkpoint_sha256"],
        "seed": 0,
    }
    assert answer["versions"]["torch"]
    assert "evaluating" not in result.stdout


def test_evaluate_takes_a_split_a_limit_and_the_environment(trained, tiny_data, monkeypatch):
    folder, _, _ = trained
    monkeypatch.setenv("SPIKEBERT_DATA", str(tiny_data))
    result = run("evaluate", folder, "--task", "sst2", "--split", "train", "--limit", 7, "--json")
    assert json.loads(result.stdout)["examples"] == 7
    result = run("evaluate", folder, "--task", "sst2")
    assert result.exit_code == 0
    assert "accuracy" in result.stdout
    assert "24 examples" in " ".join(result.stdout.split())  # a long path wraps the line


def test_what_is_there_is_not_overwritten_without_force(trained):
    folder, record, words = trained
    result = run(*words, *TINY)
    assert result.exit_code == 2
    assert "--force" in result.stderr
    assert checkpoint_sha256(folder) == record["checkpoint_sha256"]


def test_force_replaces_a_checkpoint_and_starts_from_a_student(trained, tmp_path):
    folder, _, words = trained
    again = [*words[:-1], tmp_path / "again"]
    assert run(*again, *TINY, "--label-only", "--epochs", 1).exit_code == 0
    result = run(*again, "--label-only", "--student", folder, "--epochs", 1, "--force", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["student"] == str(folder)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (["--student", "default", "--blocks", "3"], "--blocks"),
        (["--epochs", "0"], "epochs is 0"),
        (["--heads", "3"], "num_attention_heads 3"),
        (["--task", "sst3"], "sst3"),
        (["--train-file", "nothing.tsv"], "nothing.tsv"),
        (["--teacher", "./nowhere"], "nowhere"),
    ],
)
def test_bad_training_input_ends_with_2_and_writes_nothing(trained, tmp_path, changes, complaint):
    _, _, words = trained
    result = run(*words[:-1], tmp_path / "model", "--label-only", *changes)
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["evaluate", "nowhere", "--task", "sst2"], "nowhere"),
        (["evaluate", "default", "--task", "sst5", "--data-dir", "/nowhere"], "2 labels and sst5 needs 5"),
        (["evaluate", "default", "--task", "sst2", "--data-dir", "/nowhere"], "/nowhere/sst2/dev.tsv"),
        (["evaluate", "default", "--task", "sst2", "--limit", "0"], "--limit"),
        (["evaluate", "default"], "--task"),
    ],
)
def test_bad_evaluation_input_ends_with_2(words, complaint):
    result = run(*words)
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "words", [["distill"], ["distill", "general"], ["distill", "teacher"], ["distill", "task"], ["fold"], ["evaluate"]]
)
def test_help_shows_an_example(words):
    result = run(*words, "--help")
    assert result.exit_code == 0
    assert re.search(rf"Examples?:\n    spikebert {words[0]}", result.stdout)


def test_both_stages_the_teacher_and_several_seeds_by_command(tiny_teacher, tiny_data, tmp_path):
    """Corpus to encoder, teacher to fine-tuned teacher, both to students of two seeds, trained once."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("a good film\nthe dull story .\n" * 8, encoding="utf-8")
    known = [
        "--teacher",
        tiny_teacher,
        "--task",
        "sst2",
        "--data-dir",
        tiny_data,
        "--max-length",
        16,
        "--batch-size",
        8,
    ]
    words = ["distill", "general", "--teacher", tiny_teacher, "--corpus", corpus, "-o", tmp_path / "encoder", *TINY]
    result = run(*words, "--steps", 3, "--ignore-front-blocks", 0, "--blocks-from-teacher", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert (record["steps"], record["blocks_from_teacher"]) == (3, True)
    assert "embeddings and layers of" in (tmp_path / "encoder" / "README.md").read_text()
    assert run(*words).exit_code == 2  # it is there
    result = run("distill", "teacher", *known, "-o", tmp_path / "knowing", "--epochs", 1, "--json")
    assert result.exit_code == 0, result.output
    dev = json.loads(result.stdout)["dev"]
    words = ["distill", "task", *known, "--student", tmp_path / "encoder", "--fine-tuned-teacher", tmp_path / "knowing"]
    words += ["--cache", tmp_path / "cache", "--epochs", 1, "-o", tmp_path / "students"]
    result = run(*words, "--seeds", 3, 5, "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert list(summary["dev"]) == ["3", "5"]
    record = json.loads((tmp_path / "students" / "seed-5" / "training.json").read_text())
    assert record["teacher"]["dev"] == dev
    assert record["seed"] == record["settings"]["seed"] == 5
    assert summary["checkpoint_sha256"]["5"] == checkpoint_sha256(tmp_path / "students" / "seed-5")
    result = run(*words, "--seeds", 3, 5, "--resume")
    assert result.exit_code == 0, result.output
    assert "+-" in result.stdout
    assert run(*words, "--seeds", 3, 5).exit_code == 2


def test_a_student_that_is_there_may_change_its_norms_and_not_its_shape(trained, tmp_path):
    folder, _, words = trained
    words = [*words[:-1], tmp_path / "model", "--label-only", "--student", folder, "--epochs", 1]
    result = run(*words, "--norm", "power", "--neuron", "loihi", "--json")
    assert result.exit_code == 0, result.output
    configuration = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (configuration["norm"], configuration["neuron"]) == ("power", "loihi")
    refused = run(*words, "--force", "--vocabulary-size", 10)
    assert refused.exit_code == 2
    assert "--vocabulary-size" in refused.stderr
