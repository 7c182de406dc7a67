"""Norms: padding is no statistic, the shift is a shift, folding changes nothing, and no layer starts silent."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from export import to_nir
from export.errors import UnsupportedOperatorError
from hardware import compare, run
from spikebert import SpikeBertConfig, SpikeBertForSequenceClassification
from spikebert.checkpoint import load_model, save_checkpoint
from spikebert.cli import main
from spikebert.errors import ConfigurationError
from spikebert.families import family_of
from spikebert.families.spikebert import calibrate_attention_threshold
from spikebert.folding import calibrate_norms, change_norms
from spikebert.norms import BatchStatisticsNorm, ShiftPowerNorm, StatisticsNorm

FOLDABLE = ("batch", "power")


@pytest.fixture(scope="module")
def sentences():
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, 40, (64, 14), generator=generator)
    lengths = torch.randint(3, 15, (64, 1), generator=generator)
    return {"input_ids": ids, "attention_mask": (torch.arange(14) < lengths).long()}


def fresh(norm, **configuration):
    torch.manual_seed(1)
    defaults = {
        "vocab_size": 40,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "embedding_norm": True,
        "embedding_neuron": "lif",
        "max_position_embeddings": 16,
        "num_labels": 3,
    }
    return SpikeBertForSequenceClassification(SpikeBertConfig(norm=norm, **{**defaults, **configuration}))


def fold(model):
    return family_of(model).fold(model)


def trained(norm, sentences, **configuration):
    """Return a model whose gains, biases and statistics are no longer those of a fresh one."""
    model = fresh(norm, **configuration).double()
    calibrate_norms(model, [sentences])
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm." in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model.eval()


def real_tokens(x, mask):
    """Return ``(n, features)`` one token at a time, with nothing of the code under test."""
    return torch.stack([x[t, b, n] for t, b, n in np.ndindex(*x.shape[:3]) if mask[b, n, 0]])


@pytest.mark.parametrize("padding", [0.0, 1e6])
def test_batch_statistics_are_those_of_real_tokens(padding):
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]).unsqueeze(-1)
    x = torch.where(mask.bool(), x, torch.tensor(padding, dtype=torch.float64))
    norm = BatchStatisticsNorm(5, eps=1e-5).double().train()
    made = norm(x, mask.double())
    rows = real_tokens(x, mask)
    expected = (rows - rows.mean(0)) / (rows.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(real_tokens(made, mask), expected)
    torch.testing.assert_close(norm.running_mean, 0.1 * rows.mean(0))
    torch.testing.assert_close(norm.running_variance, 0.9 + 0.1 * rows.var(0))
    norm.eval()
    torch.testing.assert_close(
        norm(x, mask.double())[0, 0, 0], (x[0, 0, 0] - norm.running_mean) / (norm.running_variance + 1e-5).sqrt()
    )


@pytest.mark.parametrize("training", [True, False])
def test_a_power_norm_multiplies_by_a_power_of_two(training):
    norm = ShiftPowerNorm(4, eps=0.0).double().train(training)
    norm.momentum = 1.0
    x = torch.tensor([0.3, 1.0, 5.0, 100.0], dtype=torch.float64) * torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1)
    x = torch.cat([x, torch.full_like(x, 1e9)], dim=2)  # a second token, which is padding
    mask = torch.tensor([[[1.0], [0.0]]], dtype=torch.float64)
    if not training:
        norm.set_statistics(torch.zeros(4), torch.tensor([0.3, 1.0, 5.0, 100.0]) ** 2)
    made = norm(x, mask)
    factor = made[0, 0, 0] / x[0, 0, 0]
    assert factor.tolist() == [4.0, 1.0, 0.25, 0.0078125]  # 2 to the minus round(log2(0.3, 1, 5, 100))


def test_the_gradient_of_a_power_norm_is_that_of_a_division_by_the_root_mean_square():
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    norm = ShiftPowerNorm(5, eps=1e-12).double().train()
    (norm(x) * direction).sum().backward()
    plain = x.detach().clone().requires_grad_()
    scale = plain.square().mean((0, 1, 2)).rsqrt()
    (plain * scale * direction).sum().backward()
    shift = norm.scale_and_shift()[0] / scale.detach()  # the rounding to a power of two is a constant factor
    torch.testing.assert_close(x.grad, plain.grad * shift)


@pytest.mark.parametrize("norm", FOLDABLE)
def test_padding_changes_no_statistic_of_a_whole_model(norm, sentences):
    short = {name: value[:, :8].clone() for name, value in sentences.items()}
    padded = {name: torch.nn.functional.pad(value, (0, 5)) for name, value in short.items()}
    padded["input_ids"][padded["attention_mask"] == 0] = 7
    a, b = (trained(norm, each) for each in (short, padded))
    for (name, value), other in zip(a.named_buffers(), b.buffers(), strict=True):
        torch.testing.assert_close(value, other, msg=name)


@pytest.mark.parametrize("norm", FOLDABLE)
@pytest.mark.parametrize("neuron", ["paper", "loihi"])
@pytest.mark.parametrize(
    "embeddings",
    [
        {"position_embedding_type": "absolute"},
        {"position_embedding_type": "none"},
        {"embedding_norm": False, "embedding_neuron": "heaviside"},
        {"position_embedding_type": "absolute", "previous_word": "table"},
        {"position_embedding_type": "none", "previous_word": "projected"},
        {"embedding_norm": False, "embedding_neuron": "heaviside", "previous_word": "projected"},
    ],
    ids=[
        "positions",
        "no positions",
        "no embedding norm",
        "previous words",
        "projected previous words",
        "projected, no embedding norm",
    ],
)
def test_folding_changes_no_spike_and_no_prediction(norm, neuron, embeddings, sentences):
    model = trained(norm, sentences, neuron=neuron, attention_threshold=0.5, **embeddings)
    folded = fold(model)
    assert not [name for name, _ in folded.named_modules() if "norm" in name]
    before, after = (m(**sentences, output_spikes=True) for m in (model, folded))
    torch.testing.assert_close(after.logits, before.logits, rtol=1e-12, atol=1e-12)
    for node, spikes in before.spikes.items():
        assert 0 < spikes.mean() < 1, f"{node} proves nothing"
        assert torch.equal(spikes, after.spikes[node]), node


@pytest.mark.parametrize("norm", FOLDABLE)
def test_a_folded_model_is_its_graph(norm, sentences):
    model = trained(norm, sentences, neuron="loihi", position_embedding_type="absolute", previous_word="projected")
    folded = fold(model)
    ids, mask = (value[:6].numpy() for value in sentences.values())
    torch_trace = run(folded, ids, mask, runner="torch", precision="float64")
    graph = to_nir(folded)
    assert not [name for name in graph.nodes if "norm" in name]
    assert compare(torch_trace, run(graph, ids, mask, runner="reference", precision="float64")).equal


@pytest.mark.parametrize("norm", FOLDABLE)
def test_an_unfolded_model_is_not_written_as_nir(norm, sentences):
    with pytest.raises(UnsupportedOperatorError, match="spikebert fold"):
        to_nir(trained(norm, sentences))


def test_projected_previous_words_are_not_written_as_nir(make_model):
    with pytest.raises(UnsupportedOperatorError, match="previous words is no table; fold it first: spikebert fold"):
        to_nir(make_model(previous_word="projected"))


def test_what_cannot_be_folded_or_changed_says_why(sentences):
    with pytest.raises(ConfigurationError, match="--norm batch"):
        fold(fresh("layer"))
    folded = fold(trained("batch", sentences))
    with pytest.raises(ConfigurationError, match="no norms to fold"):
        fold(folded)
    with pytest.raises(ConfigurationError, match="norm is none"):
        change_norms(folded, "power", [sentences])
    with pytest.raises(ConfigurationError, match="'layer'"):
        change_norms(fresh("batch"), "layer", [sentences])
    with pytest.raises(ConfigurationError, match="embedding_norm"):
        SpikeBertConfig(norm="none", embedding_norm=True)
    with pytest.raises(ConfigurationError, match="instance"):
        SpikeBertConfig(norm="instance")


@pytest.mark.parametrize("norm", FOLDABLE)
@pytest.mark.parametrize("neuron", ["paper", "loihi"])
@pytest.mark.parametrize("size", [{}, {"hidden_size": 128, "num_attention_heads": 2}])
def test_no_layer_starts_silent_or_saturated(norm, neuron, size, sentences):
    model = fresh(norm, neuron=neuron, **size)
    calibrate_norms(model, [sentences])
    threshold = calibrate_attention_threshold(model, [sentences])
    assert (threshold / model.config.attention_scale).is_integer()
    real = sentences["attention_mask"].bool()
    with torch.no_grad():
        spikes = model.eval()(**sentences, output_spikes=True).spikes
    for node, fired in spikes.items():
        assert 0.02 < fired[:, real].mean() < 0.6, node
        assert (fired.sum((0, 1, 2)) == 0).float().mean() < 0.2, f"{node} has silent features"
    assert spikes["block00_attention_neuron"][:, real].mean() == pytest.approx(0.2, abs=0.1)


def test_a_model_without_attention_has_no_threshold_to_choose(sentences):
    model = fresh("batch", attention="none")
    assert calibrate_attention_threshold(model, [sentences]) is None
    folded = fold(model.double().eval())
    assert not [name for name in folded.state_dict() if "attention" in name]
    with torch.no_grad():
        expected, found = model(**sentences), folded(**sentences)
    torch.testing.assert_close(found.logits, expected.logits)


@pytest.mark.parametrize("kind", FOLDABLE)
def test_changed_norms_keep_each_feature_s_mean_and_variance(kind, sentences):
    model = trained("layer", sentences, attention_threshold=0.25)
    with torch.no_grad():
        model.spikebert.final_norm.weight[0] = -1.5
    changed = change_norms(model, kind, [sentences])
    kept = {}

    def hook(module, given, made):
        kept[len(kept)] = made[:, sentences["attention_mask"].bool()].flatten(0, 1)

    for each in (model, changed):
        each.spikebert.blocks[0].attention.qkv.norm.register_forward_hook(hook)
        with torch.no_grad():
            each.eval()(**sentences)
    # the first norm behind the embeddings sees other spikes, those of another embedding norm: about the same moments
    torch.testing.assert_close(kept[1].mean(0), kept[0].mean(0), atol=0.4, rtol=0)
    torch.testing.assert_close(kept[1].std(0), kept[0].std(0), atol=0.4, rtol=0.3)
    assert model.config.norm == "layer"
    same = family_of(changed).change(changed, {"neuron": "loihi", "attention_threshold": 0.5}, lambda: [sentences])
    assert same.config.neuron_parameters().reset == "zero"
    assert same.config.attention_neuron_parameters().threshold == 0.5
    assert torch.equal(same.classifier.weight, model.classifier.weight)
    with pytest.raises(ConfigurationError, match="hidden_size"):
        family_of(model).change(model, {"hidden_size": 8}, lambda: [sentences])


@pytest.mark.parametrize("norm", FOLDABLE)
def test_running_statistics_survive_the_disk_unrounded(norm, sentences, tiny_tokenizer, tmp_path):
    model = trained(norm, sentences)
    save_checkpoint(model.float(), tiny_tokenizer, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    statistics = [(name, value) for name, value in model.named_buffers() if "running" in name]
    assert len(statistics) == sum(len(list(m.buffers())) for m in model.modules() if isinstance(m, StatisticsNorm))
    for name, value in statistics:
        assert torch.equal(dict(loaded.named_buffers())[name], value), name


def test_the_fold_command_writes_a_checkpoint_that_verifies(sentences, tiny_tokenizer, tmp_path):
    def spikebert(*words):
        return CliRunner().invoke(main, [str(word) for word in words])

    known = {**sentences, "input_ids": sentences["input_ids"] % len(tiny_tokenizer)}
    model = trained("batch", known, vocab_size=len(tiny_tokenizer)).float()
    save_checkpoint(model, tiny_tokenizer, tmp_path / "model")
    refused = spikebert("export", "nir", tmp_path / "model", "-o", tmp_path / "model.nir")
    assert refused.exit_code == 2
    assert "spikebert fold" in refused.stderr
    result = spikebert("fold", tmp_path / "model", "-o", tmp_path / "folded")
    assert result.exit_code == 0, result.output
    assert "batch norms folded" in " ".join(result.stdout.split())
    assert load_model(tmp_path / "folded").config.norm == "none"
    verified = spikebert(
        "verify", tmp_path / "folded", "--against", "reference", "--text", "a good film", "the dull story"
    )
    assert verified.exit_code == 0, verified.output
    again = spikebert("fold", tmp_path / "folded", "-o", tmp_path / "twice")
    assert again.exit_code == 2
    assert "no norms to fold" in again.stderr
    assert not (tmp_path / "twice").exists()
    assert spikebert("fold", tmp_path / "model", "-o", tmp_path / "folded").exit_code == 2  # it is there
