"""The configuration's promise: it comes back from disk as it was, and what is not allowed is refused by name."""

from __future__ import annotations

import json
import math

import pytest
from transformers import AutoConfig

from spikebert.configuration import SpikeBertConfig
from spikebert.errors import ConfigurationError
from spikebert.neuron import NEURON_PRESETS

CHANGED = {
    "vocab_size": 31,
    "hidden_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 9,
    "position_embedding_type": "absolute",
    "layer_norm_eps": 1e-12,
    "initializer_range": 0.5,
    "time_steps": 7,
    "neuron": "published",
    "tau": 3.5,
    "threshold": 0.7,
    "reset": "subtract",
    "decay_input": False,
    "fire_on_equal": False,
    "initial_membrane_potential": 0.125,
    "attention": "none",
    "attention_threshold": 0.5,
    "attention_scale": 0.3,
    "embedding_neuron": "lif",
    "embedding_norm": True,
    "surrogate": "sigmoid",
    "surrogate_alpha": 4.0,
    "attend_to_padding": True,
    "pad_token_id": 5,
}


def test_every_setting_comes_back_from_disk(tmp_path):
    defaults = SpikeBertConfig()
    for key, value in CHANGED.items():
        assert getattr(defaults, key) != value, f"{key} is not changed, so this test would not see it lost"
    written = SpikeBertConfig(**CHANGED, id2label={0: "no", 1: "perhaps", 2: "yes"})
    written.save_pretrained(tmp_path)
    on_disk = json.loads((tmp_path / "config.json").read_text())
    assert on_disk["model_type"] == "spikebert"
    for read in (SpikeBertConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(read) is SpikeBertConfig
        for key, value in CHANGED.items():
            assert on_disk[key] == value
            assert getattr(read, key) == value
        assert read.id2label == {0: "no", 1: "perhaps", 2: "yes"}
        assert read.label2id == {"no": 0, "perhaps": 1, "yes": 2}
        assert read.neuron_parameters() == written.neuron_parameters()
        assert read.attention_neuron_parameters() == written.attention_neuron_parameters()


def test_beta_comes_back_to_the_last_bit(tmp_path):
    SpikeBertConfig(beta=1 / 3).save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).neuron_parameters().beta == 1 / 3


def test_defaults_are_the_papers():
    """Section 4.2 of arXiv 2308.15122: 12 blocks, D = 768, beta 0.9, thresholds 1.0 and 0.25, tau 0.125, alpha 2."""
    config = SpikeBertConfig()
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (12, 768, 4 * 768)
    assert (config.attention_scale, config.surrogate, config.surrogate_alpha) == (0.125, "arctangent", 2.0)
    assert config.neuron_parameters() == NEURON_PRESETS["paper"]
    assert config.attention_neuron_parameters().threshold == 0.25
    assert (config.attend_to_padding, config.position_embedding_type) == (False, "none")


@pytest.mark.parametrize("preset", list(NEURON_PRESETS))
def test_a_preset_reaches_both_kinds_of_neuron(preset):
    config = SpikeBertConfig(neuron=preset)
    assert config.neuron_parameters() == NEURON_PRESETS[preset]
    attention = config.attention_neuron_parameters()
    assert attention.threshold == 0.25
    assert (attention.decay, attention.reset, attention.fire_on_equal) == (
        NEURON_PRESETS[preset].decay,
        NEURON_PRESETS[preset].reset,
        NEURON_PRESETS[preset].fire_on_equal,
    )


def test_knobs_override_the_preset_and_threshold_leaves_attention_alone():
    config = SpikeBertConfig(neuron="snntorch", beta=0.5, threshold=2.0, reset="zero", fire_on_equal=True)
    for neuron, threshold in ((config.neuron_parameters(), 2.0), (config.attention_neuron_parameters(), 0.25)):
        assert (neuron.beta, neuron.threshold, neuron.reset, neuron.fire_on_equal) == (0.5, threshold, "zero", True)


@pytest.mark.parametrize("name", ["lif", "PAPER", None, 3, ["paper"]])
def test_an_unknown_preset_is_refused_and_the_known_ones_named(name):
    with pytest.raises(ConfigurationError) as caught:
        SpikeBertConfig(neuron=name)
    assert repr(name) in str(caught.value)
    assert all(preset in str(caught.value) for preset in NEURON_PRESETS)


SIZES = [
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "time_steps",
]


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, value) for key in SIZES for value in (0, -1, 4.0, "4", None, True)]
    + [
        (key, value)
        for key in ("attention_threshold", "attention_scale", "layer_norm_eps", "surrogate_alpha")
        for value in (0, -1.0, math.nan, math.inf, "1", None)
        if (key, value) != ("attention_threshold", None)  # that is the default, see below
    ]
    + [("initializer_range", value) for value in (-0.1, math.nan, math.inf, "1", None)]
    + [("position_embedding_type", value) for value in ("relative_key", None, [])]
    + [("previous_word", value) for value in ("next", None, True, [])]
    + [("embedding_neuron", value) for value in ("if", None, [])]
    + [("attention", value) for value in ("softmax", None, [])]
    + [("norm", value) for value in ("instance", None, [])]
    + [("surrogate", value) for value in ("gauss", None, [])]
    + [(key, value) for key in ("embedding_norm", "attend_to_padding") for value in (1, "no", None)]
    + [("pad_token_id", value) for value in (-1, 30522, "0")]
    + [("beta", 1.5), ("tau", 0.5), ("threshold", -1.0), ("reset", "none"), ("decay_input", "no")]
    + [("fire_on_equal", 1), ("initial_membrane_potential", math.nan), ("beta", "0.9"), ("threshold", math.inf)],
)
def test_a_setting_out_of_range_is_refused_by_name_and_value(key, value):
    with pytest.raises(ConfigurationError) as caught:
        SpikeBertConfig(**{key: value})
    assert key in str(caught.value)
    assert repr(value) in str(caught.value)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ConfigurationError, match="hidden_size 768 cannot be shared among num_attention_heads 7"):
        SpikeBertConfig(num_attention_heads=7)


def test_beta_and_tau_together_are_refused():
    with pytest.raises(ConfigurationError, match="give one of them"):
        SpikeBertConfig(beta=0.5, tau=2.0)


def test_a_vocabulary_may_have_no_padding_token():
    assert SpikeBertConfig(pad_token_id=None).pad_token_id is None


def test_labels_may_be_given_either_way_round_or_by_their_number():
    forward, backward = {0: "bad", 1: "good", 2: "fine"}, {"bad": 0, "good": 1, "fine": 2}
    for config in (
        SpikeBertConfig(id2label=forward),
        SpikeBertConfig(id2label={str(index): label for index, label in forward.items()}),
        SpikeBertConfig(label2id=backward),
        SpikeBertConfig(id2label=forward, label2id=backward),
    ):
        assert (config.id2label, config.label2id, config.num_labels) == (forward, backward, 3)
    assert SpikeBertConfig(num_labels=4).num_labels == 4
    assert SpikeBertConfig().num_labels == 2


@pytest.mark.parametrize(
    "labels",
    [
        {"id2label": {0: "a"}, "label2id": {"a": 0, "b": 1}},
        {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 1, "b": 0}},
        {"id2label": {0: "a", 2: "b"}},
        {"id2label": {0: "a", 1: "a"}},
        {"num_labels": 0},
        {"num_labels": -1},
        {"num_labels": None},
        {"num_labels": 2.0},
    ],
)
def test_labels_that_make_no_sense_are_refused(labels):
    with pytest.raises(ConfigurationError, match="label"):
        SpikeBertConfig(**labels)


@pytest.mark.parametrize(("norm", "threshold"), [("layer", 0.25), ("batch", 2.0), ("power", 2.0), ("none", 0.25)])
def test_the_attention_threshold_suits_the_norm_unless_given(norm, threshold):
    assert SpikeBertConfig(norm=norm).attention_neuron_parameters().threshold == threshold
    assert SpikeBertConfig(norm=norm, attention_threshold=0.5).attention_threshold == 0.5
