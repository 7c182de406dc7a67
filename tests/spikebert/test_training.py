"""The loop: batches, evaluations, averages, and a killed training that goes on as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from spikebert.data import TokenizedExamples, load_examples
from spikebert.distillation import task_trainer
from spikebert.distillation.settings import TrainingSettings
from spikebert.distillation.student import build_student
from spikebert.distillation.task_trainer import TaskTrainer
from spikebert.distillation.teacher import load_teacher
from spikebert.distillation.training import StateFile
from spikebert.errors import CheckpointError, ConfigurationError, DataError
from spikebert.tasks import TASKS

SST2 = TASKS["sst2"]
SHAPE = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "time_steps": 2}


@pytest.fixture
def make_trainer(tiny_teacher, tiny_data):
    def make(double=False, shape=SHAPE, **settings):
        settings = TrainingSettings(**{"batch_size": 8, "precision": "float32", "learning_rate": 1e-2, **settings})
        torch.manual_seed(settings.seed)
        model, tokenizer = build_student(*load_teacher(str(tiny_teacher)), SST2, **shape)
        train, dev = (TokenizedExamples(load_examples(SST2, s, tiny_data), SST2, tokenizer) for s in ("train", "dev"))
        return TaskTrainer(model.double() if double else model, SST2, train, dev, settings)

    return make


def same_weights(first, second):
    return all(torch.equal(first[name], second[name]) for name in {*first, *second})


def test_accumulated_batches_are_one_large_batch(make_trainer, monkeypatch):
    """Two halves, averaged, make the step that the whole makes: 72 sentences are 9 batches of 8 or 18 of 4."""
    whole, halves = make_trainer(double=True, epochs=1), make_trainer(double=True, epochs=1, batch_size=4, accumulate=2)
    order = [np.arange(8 * i, 8 * i + 8) for i in range(9)]
    monkeypatch.setattr(whole, "plan", lambda epoch: iter(order))
    monkeypatch.setattr(halves, "plan", lambda epoch: (part for rows in order for part in (rows[::2], rows[1::2])))
    assert whole.steps == halves.steps == 9
    steps = [], []
    for trainer, seen in zip((whole, halves), steps, strict=True):
        trainer.train(seen.append)
    assert [s["loss"] for s in steps[1]] == pytest.approx([s["loss"] for s in steps[0]], rel=1e-9)
    for ours, theirs in zip(whole.model.parameters(), halves.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_an_epoch_shows_every_sentence_once_in_another_order(make_trainer):
    trainer = make_trainer()
    first, again, second = (np.concatenate(list(trainer.plan(epoch))).tolist() for epoch in (1, 1, 2))
    assert sorted(first) == list(range(len(trainer.train_examples)))
    assert first == again != second


def scripted(monkeypatch, values):
    kept = []

    def evaluate(model, task, examples):
        kept.append({name: value.clone() for name, value in model.state_dict().items()})
        return values[len(kept) - 1]

    monkeypatch.setattr(task_trainer, "evaluate", evaluate)
    return kept


def test_scores_between_epochs_and_patience(make_trainer, monkeypatch):
    kept = scripted(monkeypatch, [0.5, 0.7, 0.6, 0.7, 0.9])
    trainer = make_trainer(epochs=8, evaluate_every=4, patience=2)
    seen = []
    result = trainer.train(on_evaluation=seen.append)
    assert [evaluation["step"] for evaluation in result.evaluations] == [4, 8, 12, 16]  # two without a new best
    assert (result.best_step, result.best_epoch) == (8, 1)
    assert seen == result.evaluations
    assert same_weights(trainer.model.state_dict(), kept[1])


def test_the_last_step_is_scored_though_it_is_no_multiple(make_trainer, monkeypatch):
    scripted(monkeypatch, [0.1] * 9)
    result = make_trainer(epochs=1, evaluate_every=4).train()
    assert [evaluation["step"] for evaluation in result.evaluations] == [4, 8, 9]


def test_the_average_is_what_is_scored_and_kept(make_trainer, monkeypatch):
    kept = scripted(monkeypatch, [0.5])
    trainer = make_trainer(epochs=1, average_decay=0.9)
    history = []
    name = "classifier.weight"
    trainer.train(lambda _: history.append(trainer.model.state_dict()[name].clone()))
    average = history[0]
    for count, weight in enumerate(history[1:], start=1):
        decay = min(0.9, (1 + count) / (10 + count))
        average = decay * average + (1 - decay) * weight
    torch.testing.assert_close(kept[0][name], average)
    assert torch.equal(trainer.model.state_dict()[name], kept[0][name])
    assert not torch.equal(kept[0][name], history[-1])


class Killed(Exception):
    pass


@pytest.mark.parametrize("killed_at", [4, 9, 10, 17])
@pytest.mark.parametrize(
    "changes",
    [{}, {"average_decay": 0.9, "evaluate_every": 5, "accumulate": 2, "epochs": 4}],
    ids=["plain", "averaged"],
)
def test_a_resumed_training_ends_with_the_same_bits(make_trainer, tmp_path, killed_at, changes):
    settings = {"epochs": 2, "precision": "bfloat16", **changes}
    shape = {**SHAPE, "norm": "batch", "embedding_norm": True, "embedding_neuron": "lif"}
    whole = make_trainer(shape=shape, **settings)
    expected, expected_steps = None, []
    expected = whole.train(expected_steps.append)

    def kill(record):
        if record["step"] == killed_at:
            raise Killed

    file = StateFile(tmp_path / "state.pt", every=3, resume=True, identity={"texts": "these"})
    with pytest.raises(Killed):
        make_trainer(shape=shape, **settings).train(kill, state_file=file)
    torch.manual_seed(99)  # another process has other generators
    resumed = make_trainer(shape=shape, **settings)
    assert resumed.step_to_resume_from(file) == (killed_at - 1) // 3 * 3
    steps = []
    result = resumed.train(steps.append, state_file=file)
    assert steps[0]["step"] == (killed_at - 1) // 3 * 3 + 1
    assert result == expected
    assert same_weights(resumed.model.state_dict(), whole.model.state_dict())
    timeless = [{k: v for k, v in step.items() if k != "sentences_per_second"} for step in expected_steps + steps]
    assert timeless[len(expected_steps) :] == timeless[steps[0]["step"] - 1 : len(expected_steps)]


def test_an_empty_epoch_ends_the_training(make_trainer, monkeypatch):
    trainer = make_trainer(epochs=2)
    monkeypatch.setattr(trainer, "plan", lambda epoch: [])
    with pytest.raises(DataError, match="no text to learn from"):
        trainer.train()


def test_a_state_of_another_training_is_refused(make_trainer, tmp_path):
    file = StateFile(tmp_path / "state.pt", every=3, resume=True, identity={"texts": "these"})
    make_trainer(epochs=1).train(state_file=file)
    for changes, identity, complaint in (
        ({"learning_rate": 2e-2}, "these", "learning_rate was 0.01 and is 0.02"),
        ({}, "those", "texts was 'these' and is 'those'"),
    ):
        other = StateFile(file.path, every=3, resume=True, identity={"texts": identity})
        with pytest.raises(CheckpointError, match=complaint):
            make_trainer(epochs=1, **changes).train(state_file=other)
    anew = StateFile(file.path, every=3, resume=False, identity={"texts": "those"})
    assert make_trainer(epochs=1).train(state_file=anew).evaluations
    file.path.write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="delete it"):
        make_trainer(epochs=1).train(state_file=file)


def command(*words):
    program = "from spikebert.cli import main; main()"
    return [sys.executable, "-c", program, *map(str, words)]


def environment(tmp_path):
    return {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "OMP_NUM_THREADS": "1",
        "SPIKEBERT_CACHE": str(tmp_path / "cache"),
        "TOKENIZERS_PARALLELISM": "false",
    }


def kill_in_the_middle(words, log, environment):
    """Start a training and kill it, with no chance to say goodbye, once its log has passed step 20."""
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (log.exists() and '"step": 20,' in log.read_text()):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def stage_words(stage, teacher, data, tmp_path, corpus):
    tiny = ["--blocks", 1, "--heads", 2, "--intermediate-size", 32, "--time-steps", 2, "--max-length", 16]
    tiny += ["--batch-size", 8, "--save-every", 7, "--norm", "batch"]
    if stage == "general":
        return ["distill", "general", "--teacher", teacher, "--corpus", corpus, *tiny, "--epochs", 12, "-o"]
    words = ["distill", "task", "--teacher", teacher, "--fine-tuned-teacher", tmp_path / "knowing", "--task", "sst2"]
    return [*words, "--data-dir", data, *tiny, "--epochs", 12, "--teacher-epochs", 1, "-o"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["task", "general"])
def test_a_killed_command_resumes_to_the_same_bits(stage, tiny_teacher, tiny_data, tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(e.texts[0] for e in load_examples(SST2, "train", tiny_data)), encoding="utf-8")
    words = stage_words(stage, tiny_teacher, tiny_data, tmp_path, corpus)
    subprocess.run(command(*words, tmp_path / "whole"), env=environment(tmp_path), check=True, capture_output=True)
    kill_in_the_middle(command(*words, tmp_path / "killed"), tmp_path / "killed.training.jsonl", environment(tmp_path))
    assert not (tmp_path / "killed").exists()
    assert (tmp_path / "killed.state.pt").exists()
    subprocess.run(
        command(*words, tmp_path / "killed", "--resume"), env=environment(tmp_path), check=True, capture_output=True
    )
    assert same_weights(*(load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed")))
    assert not list(tmp_path.glob("killed.*")), "state and log are gone when all ended well"
    logs = [
        [
            {key: value for key, value in json.loads(line).items() if key != "sentences_per_second"}
            for line in (tmp_path / name / "training.jsonl").read_text().splitlines()
        ]
        for name in ("whole", "killed")
    ]
    assert logs[0] == logs[1]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["task", "general"])
def test_the_same_command_runs_in_two_processes(stage, tiny_teacher, tiny_data, tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(e.texts[0] for e in load_examples(SST2, "train", tiny_data)), encoding="utf-8")
    words = stage_words(stage, tiny_teacher, tiny_data, tmp_path, corpus)
    entry = tmp_path / "entry.py"
    entry.write_text("from spikebert.cli import main\nmain()\n", encoding="utf-8")
    # accelerate launch starts several processes on GPUs itself, on a CPU only under MPI; torchrun does so everywhere
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, str(entry), *map(str, words), str(tmp_path / "both"), "--json"],
        env={**environment(tmp_path), "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads(done.stdout)  # one process speaks
    assert record["processes"] == 2
    assert record["steps"] == 12 * 5  # 72 sentences are 9 batches, two a step
    losses = [evaluation["loss"] for evaluation in record["evaluations"]]
    assert losses[-1] < losses[0]


def test_settings_of_the_loop_are_checked():
    for name, value in (("accumulate", 0), ("evaluate_every", 0), ("patience", 0), ("average_decay", 1.0)):
        with pytest.raises(ConfigurationError, match=name):
            TrainingSettings(**{name: value})
