"""The promises of the baselines: what they cost is counted, not believed.

Their matrix products are those torch's FlopCounterMode and fvcore see while the real architecture runs; their
parameters are those of the real architecture; what the spiking side has too is charged as the spiking side is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from export import parse_graph, to_nir
from export.network import Network, NetworkBuilder
from export.operators import Affine, Heaviside
from hardware import run
from hardware.energy import OperationCounts, count_operations
from hardware.energy.baselines import BASELINES, Baseline, QuantizedTwin, TransformerBaseline, find_baseline
from spikebert.errors import ConfigurationError, MissingDependencyError

LENGTHS = (7, 128, 256)
TRANSFORMERS = [pytest.param(baseline, id=name) for name, baseline in BASELINES.items()]
ATTENTION = "attention_"


@pytest.fixture(scope="module")
def network(make_model: Callable[..., Any]) -> Network:
    return parse_graph(to_nir(make_model(hidden_size=12, num_hidden_layers=2, num_attention_heads=3, time_steps=5)))


def _macs(baseline: Baseline, tokens: int, part: Callable[[str], bool]) -> int:
    nodes = baseline.count([tokens]).nodes
    return sum(node.real.get("dense_mac", 0) for name, node in nodes.items() if part(name))


# ---------------------------------------------------------------------------------------------------------------------
# matrix products


@pytest.mark.parametrize("baseline", TRANSFORMERS)
def test_the_formula_is_what_torch_counts(baseline: TransformerBaseline) -> None:
    assert [baseline.library_macs(tokens) for tokens in LENGTHS] == [baseline.macs(tokens) for tokens in LENGTHS]


@pytest.mark.parametrize("baseline", TRANSFORMERS)
def test_the_formula_is_what_fvcore_counts(baseline: TransformerBaseline) -> None:
    pytest.importorskip("fvcore", reason="the second counter is not installed")
    assert [baseline.fvcore_macs(tokens) for tokens in LENGTHS] == [baseline.macs(tokens) for tokens in LENGTHS]


def test_the_twin_of_a_network_is_what_both_libraries_count(network: Network) -> None:
    twin = QuantizedTwin(network, 5)
    assert [twin.library_macs(tokens) for tokens in LENGTHS] == [twin.macs(tokens) for tokens in LENGTHS]
    pytest.importorskip("fvcore", reason="the second counter is not installed")
    assert [twin.fvcore_macs(tokens) for tokens in LENGTHS] == [twin.macs(tokens) for tokens in LENGTHS]


def test_bert_base_needs_what_the_literature_says() -> None:
    bert = BASELINES["bert-base-cased"]
    attention = _macs(bert, 256, lambda name: ATTENTION in name and name.endswith(("scores", "values")))
    encoder = _macs(bert, 256, lambda name: name.endswith("_affine"))
    assert round(encoder / 1e9, 2) == 21.74
    assert round(attention / 1e9, 2) == 1.21
    assert round(bert.macs(256) / 1e9, 2) == 22.95
    assert round(bert.macs(128) / 1e9, 2) == 11.17


def test_the_head_is_charged_once_a_sentence() -> None:
    distilbert = BASELINES["distilbert"]
    head = _macs(distilbert, 50, lambda name: name in ("pooler", "classifier"))
    assert head == 768 * 768 + 768 * 2


@pytest.mark.parametrize("baseline", TRANSFORMERS)
def test_parameters_are_those_of_the_architecture(baseline: TransformerBaseline) -> None:
    model, _ = baseline.dense_model(3)
    assert baseline.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_the_vocabularies_are_those_of_bert() -> None:
    sizes = {name: BASELINES[name].vocabulary for name in BASELINES if name.startswith("bert-base")}
    assert sizes == {"bert-base-cased": 28996, "bert-base-uncased": 30522, "bert-base-chinese": 21128}


# ---------------------------------------------------------------------------------------------------------------------
# everything else


def test_softmax_and_gelu_by_hand() -> None:
    small = TransformerBaseline("small", "small", "bert", 1, 4, 2, 6, 10, "made up")
    nodes = small.count([3]).nodes  # 3 tokens, 2 heads: 2 x 3 x 3 entries of the map in 2 x 3 rows
    softmax, gelu = nodes["layer00_softmax"].real, nodes["layer00_gelu"].real
    assert (softmax["mac"], softmax["addition"], softmax["comparison"], softmax["special"]) == (36, 36, 18, 18 + 6)
    assert (gelu["mac"], gelu["addition"], gelu["special"]) == (2 * 18, 18, 18)
    assert nodes["embedding"].real == {"addition": 2 * 12, "embedding_read": 3 * 12}
    assert nodes["layer00_output_stream"].real == {"residual_addition": 12}
    scores, values = nodes["layer00_attention_scores"].real, nodes["layer00_attention_values"].real
    assert scores == {"mac": 36, "activation_write": 18, "dense_mac": 36}
    assert values == {"mac": 36, "activation_write": 12, "dense_mac": 36}


def test_what_the_spiking_side_has_too_is_charged_alike(network: Network) -> None:
    steps, tokens = 5, 4
    ids = np.array([[3, 7, 1, 9]])
    spiking = count_operations(run(network, ids), network).nodes
    twin = QuantizedTwin(network, steps).count([tokens]).nodes
    norms = [name for name, node in spiking.items() if node.operator == "layer_norm"]
    assert len(norms) == 9
    for name in (*norms, "token_mean", "classifier"):
        assert spiking[name].real == {kind: steps * count for kind, count in twin[name].real.items()}, name
    assert spiking["embedding"].real["embedding_read"] == twin["embedding"].real["embedding_read"]
    assert spiking["embedding"].real["addition"] == twin["embedding"].real["addition"]
    affine = "block01_output_affine"
    for kind in ("addition", "parameter_read", "dense_mac"):
        assert spiking[affine].real[kind] == steps * twin[affine].real[kind]
    products = twin["block00_attention_scores"].real["dense_mac"] + twin["block00_attention_values"].real["dense_mac"]
    assert spiking["block00_attention"].real["dense_mac"] == steps * products


def test_a_dense_transformer_norms_as_the_spiking_side_does(network: Network) -> None:
    ids = np.array([[3, 7, 1, 9]])
    spiking = count_operations(run(network, ids), network).nodes["final_norm"].real
    same_width = TransformerBaseline("small", "small", "bert", 1, 12, 2, 6, 10, "made up")
    dense = same_width.count([4]).nodes["layer00_output_norm"].real
    assert spiking == {kind: 5 * count for kind, count in dense.items()}


def test_sentences_add_up() -> None:
    baseline = BASELINES["tinybert-4"]

    def totals(counts: OperationCounts) -> dict[str, int]:
        return counts.totals

    together = baseline.count([9, 4, 9])
    apart = [totals(baseline.count([tokens])) for tokens in (9, 9, 4)]
    assert totals(together) == {kind: sum(each[kind] for each in apart) for kind in apart[0]}
    assert (together.sentences, together.real_tokens, together.longest_sentence) == (3, 22, 9)


def test_a_map_without_bias_pays_for_none() -> None:
    builder = NetworkBuilder("input", 3)
    fired = builder.add("neurons", Heaviside(np.zeros(3)), "input")
    last = builder.add("map", Affine(np.ones((2, 3))), fired)
    plain = QuantizedTwin(builder.network("output", last), 1).count([4]).nodes["map"]
    assert (plain.real["mac"], plain.parameters) == (4 * 6, 6)
    assert "parameter_read" not in plain.real
    assert "addition" not in plain.real


@pytest.mark.parametrize(("steps", "bits"), [(1, 1), (2, 2), (3, 2), (4, 3), (7, 3), (8, 4), (16, 5)])
def test_the_twin_has_as_many_bits_as_tell_its_rates_apart(network: Network, steps: int, bits: int) -> None:
    assert 2 ** (bits - 1) < steps + 1 <= 2**bits
    assert QuantizedTwin(network, steps).activation_bits == bits


# ---------------------------------------------------------------------------------------------------------------------
# refusals


def test_an_unknown_baseline_is_refused_with_the_known_ones(network: Network) -> None:
    with pytest.raises(ConfigurationError, match=r"'bert' is not known.*tinybert-4.*quantized"):
        find_baseline("bert", network, 4)
    assert isinstance(find_baseline("quantized", network, 4), QuantizedTwin)


@pytest.mark.parametrize("lengths", [[], [3, 0]])
def test_no_sentence_and_empty_sentences_are_refused(lengths: list[int]) -> None:
    with pytest.raises(ConfigurationError, match="at least one token"):
        BASELINES["tinybert-4"].count(lengths)


def test_an_architecture_that_cannot_be_built_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    never_built = TransformerBaseline("small", "small", "bert", 1, 4, 2, 6, 11, "made up")
    with pytest.raises(MissingDependencyError, match="cannot load bert"):
        never_built.library_macs(3)
