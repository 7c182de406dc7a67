"""A second family, the one of ``docs/models.md``, goes down the whole road with no edit in the package."""

import json
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import BertConfig, BertForSequenceClassification, BertModel

from export import UnsupportedOperatorError, exporters, read_nir, to_nir, write_nir
from export.from_modules import affine_of
from export.network import Node
from export.operators import Operator, TokenMean, Traits
from export.operators.reading import MARKED_OPERATORS, opaque_node
from hardware import compare, run
from spikebert import families
from spikebert.checkpoint import load_model, save_checkpoint
from spikebert.cli import main
from spikebert.distillation.general import distill_general
from spikebert.distillation.settings import TeacherUse, TrainingSettings
from spikebert.distillation.student import build_student, load_student
from spikebert.distillation.task import distill_task
from spikebert.distillation.teacher import load_teacher, run_teacher
from spikebert.errors import CheckpointError, ConfigurationError
from spikebert.families.family import ModelFamily
from spikebert.tasks import TASKS

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
SST2 = TASKS["sst2"]
SETTINGS = TrainingSettings(epochs=8, batch_size=8, learning_rate=2e-2, max_length=16, precision="float32")
TEXTS = ("a good film", "the dull story .", "warm")


@pytest.fixture(scope="module")
def page():
    """What the page's code defines, which registers the family for the tests of this file."""
    code = "\n\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))
    module = sys.modules["voter"] = ModuleType("voter")  # where dataclasses look for it
    exec(compile(code, str(PAGE), "exec"), module.__dict__)
    yield module
    del families._families["voter"], exporters._EXPORTERS[module.VoterForSequenceClassification], sys.modules["voter"]


@pytest.fixture(scope="module")
def voter(page, tiny_tokenizer):
    torch.manual_seed(0)
    config = page.VoterConfig(
        vocab_size=len(tiny_tokenizer), hidden_size=16, time_steps=3, num_labels=2, max_position_embeddings=16
    )
    return page.VoterForSequenceClassification(config).eval()


@pytest.fixture(scope="module")
def saved(voter, tiny_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("voter") / "voter"
    save_checkpoint(voter, tiny_tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def wide_teacher(tiny_tokenizer, tmp_path_factory):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    shape["initializer_range"] = 0.3
    folder = tmp_path_factory.mktemp("teacher") / "tiny-bert"
    BertModel(BertConfig(vocab_size=len(tiny_tokenizer), max_position_embeddings=24, **shape)).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def spikebert(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def answer_of(*words):
    result = spikebert(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_it_is_saved_and_loaded(voter, saved, page):
    loaded = load_model(saved)
    assert type(loaded) is page.VoterForSequenceClassification
    for name, value in voter.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.half().float()), name
    assert families.family_of(loaded).name == "Voter"
    assert families.family_of(loaded.config) is families.family_named("voter")


def test_an_encoder_of_it_is_one(voter, page, tiny_tokenizer, tmp_path):
    save_checkpoint(voter.voter, tiny_tokenizer, tmp_path / "encoder")
    with pytest.raises(CheckpointError, match="an encoder without a classifier"):
        load_model(tmp_path / "encoder")
    assert type(load_model(tmp_path / "encoder", encoder_allowed=True)) is page.VoterModel
    assert answer_of("info", tmp_path / "encoder")["kind"] == "checkpoint, an encoder without a classifier"


def test_its_graph_computes_what_it_does(voter):
    ids, mask = _sentences(voter)
    expected = run(voter, ids, mask, runner="torch", precision="float64")
    assert all(0 < expected.firing_rate(node) < 1 for node in expected.spikes)
    found = run(to_nir(voter), ids, mask, runner="reference", precision="float64")
    comparison = compare(expected, found)
    assert comparison.equal
    assert comparison.spikes_compared == 3 * 3 * 16 * mask.sum()
    np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-12)


@dataclass(frozen=True, eq=False)
class FirstToken(Operator):
    """What the first token of a sentence says, as at BERT's [CLS]."""

    name: ClassVar[str] = "first_token"
    traits: ClassVar[Traits] = replace(TokenMean.traits, pools_tokens="choice")
    features: int

    in_features = out_features = property(lambda self: self.features)

    def step(self, x, state, token_mask):
        return x[..., :1, :]

    def interval(self, read, tokens):
        return None

    def to_nir(self, dtype, dt):
        return opaque_node(self, {"features": self.features, "formula": "y = x[0]"})


def test_another_read_out_needs_an_exporter_and_an_operator_and_no_more(page, voter, monkeypatch, tmp_path):
    """The classifier reads the rate of [CLS] over time, as in SpikingBERT."""

    class Chairman(page.VoterForSequenceClassification):
        def forward(self, input_ids, attention_mask=None, **asked):
            encoded = self.voter(input_ids, attention_mask, **asked)
            return page.VoterOutput(**{**encoded, "logits": self.vote(encoded.last_spikes[:, :, 0].mean(0))})

    def network_of(model, read):
        voted = page.voter_network(model, read)
        nodes = [node for node in voted.nodes if node.name not in ("vote", "token_mean")]
        first = Node("first_token", FirstToken(model.config.hidden_size), (nodes[-1].name,))
        vote = Node("vote", affine_of(model.vote, read), (first.name,))
        return replace(voted, nodes=(*nodes, first, vote), output_source=vote.name)

    monkeypatch.setitem(exporters._EXPORTERS, Chairman, network_of)
    monkeypatch.setitem(
        MARKED_OPERATORS, FirstToken.name, (FirstToken, lambda said, where: FirstToken(said["features"]))
    )
    model = Chairman(voter.config).eval()
    model.load_state_dict(voter.state_dict())
    ids, mask = _sentences(voter)
    expected = run(model, ids, mask, runner="torch", precision="float64")
    write_nir(tmp_path / "chairman.nir", to_nir(model))
    found = run(read_nir(tmp_path / "chairman.nir"), ids, mask, runner="reference", precision="float64")
    assert compare(expected, found).equal
    np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-12)
    votes = run(voter, ids, mask, runner="torch", precision="float64")
    assert not np.allclose(votes.logits[0], expected.logits[0])
    assert np.allclose(votes.logits[3], expected.logits[3])  # of one token, where it is the only one to vote


def test_info_says_what_its_family_says(saved):
    facts = answer_of("info", saved)
    assert facts["kind"] == "checkpoint"
    assert (facts["blocks"], facts["hidden_size"], facts["time_steps"], facts["threshold"]) == (2, 16, 3, 1.0)
    assert "attention" not in facts


@pytest.mark.parametrize("runner", ["torch", "reference"])
def test_check_runs_it_in_every_way(saved, runner):
    answer = answer_of("check", saved, "--runner", runner, "--text", *TEXTS)
    assert answer["passed"]
    asked = [result["check"] for result in answer["checks"] if result["passed"] is not None]
    assert {"batch", "padding", "order", "repeat", "prefix"} <= set(asked)


@pytest.mark.parametrize("against", ["reference", "onnx"])
def test_verify_finds_every_spike_equal(saved, against):
    answer = answer_of("verify", saved, "--against", against, "--text", *TEXTS)
    assert answer["equal"]
    assert answer["spikes_compared"] > 0
    assert answer["graph_differences"] == []


@pytest.mark.lava
def test_demo_takes_it_down_the_road(saved):
    result = spikebert("demo", "--checkpoint", saved, "--granularity", "network", "--text", *TEXTS)
    assert result.exit_code == 0, result.output
    assert "2 blocks, D = 16, every token votes, T = 3 steps" in result.stdout


def test_profile_and_energy_count_it(saved):
    nodes = [node["node"] for node in answer_of("profile", saved, "--text", *TEXTS)["nodes"]]
    assert nodes == ["embedding_neuron", "block00_neuron", "block01_neuron"]
    assert answer_of("energy", saved, "--text", *TEXTS)["operations"]["ac_binary"] > 0


def test_a_student_of_it_learns_from_a_teacher(wide_teacher, tiny_data, tmp_path):
    general = distill_general(
        str(wide_teacher),
        [_corpus(tiny_data, tmp_path)],
        tmp_path / "encoder",
        SETTINGS,
        student_configuration={"time_steps": 3, "threshold": 0.5},
        model_type="voter",
    )
    assert general["layers"] == {"1": 1, "2": 2}
    assert general["evaluations"][-1]["loss"] < general["evaluations"][0]["loss"]
    assert "# Voter encoder, before any task" in (tmp_path / "encoder" / "README.md").read_text()
    record = distill_task(
        str(wide_teacher),
        SST2,
        tiny_data,
        tmp_path / "model",
        SETTINGS,
        student=tmp_path / "encoder",
        teacher_use=TeacherUse(SETTINGS, tmp_path / "teacher", tmp_path / "cache"),
    )
    assert record["dev"] > 0.9
    assert set(record["firing_rates"]) == {"embedding_neuron", "block00_neuron", "block01_neuron"}
    log = (tmp_path / "model" / "training.jsonl").read_text()
    assert all(f"loss_{term}" in log for term in ("label", "logits", "features", "embedding"))
    card = (tmp_path / "model" / "README.md").read_text()
    assert "# Voter for sst2" in card
    assert "tags: [spiking neural network, Voter]" in card
    assert "whose tokens vote: 2 blocks, D = 16, every token votes, T = 3 steps" in card
    assert "SpikeBERT" not in card
    assert answer_of("verify", tmp_path / "model", "--against", "reference", "--text", *TEXTS)["equal"]


def test_a_student_made_from_its_teacher_has_its_embeddings(page, wide_teacher):
    teacher, tokenizer = load_teacher(str(wide_teacher))
    student, _ = build_student(teacher, tokenizer, SST2, prune=False, model_type="voter", num_hidden_layers=1)
    assert type(student) is page.VoterForSequenceClassification
    assert torch.equal(student.get_input_embeddings().weight, teacher.embeddings.word_embeddings.weight)
    assert student.config.id2label == {0: "negative", 1: "positive"}
    with pytest.raises(ConfigurationError, match="a Voter has no norm, num_attention_heads"):
        build_student(teacher, tokenizer, SST2, model_type="voter", norm="batch", num_attention_heads=2)
    with pytest.raises(ConfigurationError, match="a Voter takes no layers of a BERT"):
        build_student(teacher, tokenizer, SST2, model_type="voter", blocks_from_teacher=True)
    with pytest.raises(ConfigurationError, match="'perceiver' is not known; choose one of spikebert, voter"):
        build_student(teacher, tokenizer, SST2, model_type="perceiver")


def test_it_teaches_what_its_family_says(voter, tiny_tokenizer):
    inputs = dict(tiny_tokenizer(["a good film"], return_tensors="pt"))
    logits, features = run_teacher(voter, inputs, [0, 2])
    output = voter(**inputs, output_hidden_states=True)
    assert torch.equal(logits, output.logits)
    assert torch.equal(features, torch.stack([output.layer_rates[0], output.layer_rates[2]], 2))


def test_a_trained_one_keeps_its_configuration(voter):
    family = families.family_of(voter)
    assert family.change(voter, {}, list) is voter
    with pytest.raises(ConfigurationError, match="a Voter that is there keeps its configuration, not its threshold"):
        family.change(voter, {"threshold": 2.0}, list)


def test_folding_is_refused_by_name(saved, tmp_path):
    result = spikebert("fold", saved, "-o", tmp_path / "folded")
    assert result.exit_code == 2
    assert "a Voter has no norms that fold" in " ".join(result.stderr.split())
    assert not (tmp_path / "folded").exists()


def test_what_is_of_no_family_is_refused_by_name(tiny_tokenizer, tmp_path):
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    bert = BertForSequenceClassification(BertConfig(vocab_size=len(tiny_tokenizer), num_labels=2, **shape))
    save_checkpoint(bert, tiny_tokenizer, tmp_path / "bert")
    assert families.find_family(bert) is None
    for words in (["info"], ["demo", "--checkpoint"], ["fold", "-o", tmp_path / "folded"]):
        result = spikebert(*words, tmp_path / "bert")
        assert result.exit_code == 2, words
        said = " ".join(result.stderr.split())
        assert "is a BertForSequenceClassification; a SpikeBERT or Voter is needed" in said, words
    with pytest.raises(ConfigurationError, match=r"the student .* is a BertForSequenceClassification"):
        load_student(tmp_path / "bert", SST2)
    with pytest.raises(UnsupportedOperatorError, match="BertForSequenceClassification cannot be written as NIR"):
        to_nir(bert)


def test_two_families_have_two_names(page):
    class Impostor(page.VoterConfig):
        pass

    class Model(page.VoterForSequenceClassification):
        config_class = Impostor

    class Family(page.VoterFamily):
        classifier_class = Model

    with pytest.raises(ConfigurationError, match="model_type 'voter' is Voter's"):
        families.register_family(Family())
    with pytest.raises(TypeError, match="abstract"):
        type("Empty", (ModelFamily,), {})()


def _sentences(model):
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, (4, 7))
    return ids, np.arange(7) < np.array([[7], [5], [3], [1]])


def _corpus(data, folder):
    lines = (data / "sst2" / "train.tsv").read_text().splitlines()[1:]
    path = folder / "corpus.txt"
    path.write_text("\n".join(line.split("\t")[0] for line in lines) + "\n", encoding="utf-8")
    return path
