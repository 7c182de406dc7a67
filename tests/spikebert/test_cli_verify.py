"""The promises of the commands around a graph: verify, simulate, compare, export nir, info.

Exit code 0 is yes, 1 is no, 2 is bad use or input, never a traceback; ``--json`` prints one object on standard output.
A nudged weight makes the answer no, and the node named is the neuron that the weight feeds.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click.testing
import h5py
import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hardware import Trace
from spikebert.cli import main

TEXTS = ("a warm film .", "the dull story", "good")
lava = pytest.mark.lava


def _invoke(*arguments: Any) -> click.testing.Result:
    result = click.testing.CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    assert "Traceback" not in result.output
    return result


def _json(*arguments: Any, exit_code: int = 0) -> dict[str, Any]:
    result = _invoke(*arguments, "--json")
    assert result.exit_code == exit_code, result.output
    return json.loads(result.stdout)  # one object and nothing beside it


def _refused(*arguments: Any, said: str = "") -> None:
    result = _invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert said in " ".join(result.stderr.split())


def _torch_run(checkpoint: Path, texts: tuple[str, ...] = TEXTS) -> tuple[Any, np.ndarray]:
    """Run the checkpoint as any user of transformers would; return its output in float64 and the mask."""
    tokens = AutoTokenizer.from_pretrained(checkpoint)(list(texts), padding=True, return_tensors="pt")
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint).double().eval()
    with torch.no_grad():
        output = model(tokens["input_ids"], tokens["attention_mask"], output_spikes=True)
    return output, tokens["attention_mask"].numpy() != 0


# ---------------------------------------------------------------------------------------------------------------------
# verify


@pytest.mark.parametrize("against", ["reference", pytest.param("lava", marks=lava)])
def test_a_checkpoint_and_its_graph_fire_the_same_spikes(checkpoint: Path, against: str) -> None:
    found = _json("verify", checkpoint, "--against", against, "--precision", "float64", "--text", *TEXTS)
    output, mask = _torch_run(checkpoint)
    assert found["equal"] is True
    assert found["spikes_different"] == 0
    assert found["first_divergence"] is None
    assert found["graph_differences"] == []
    assert (found["samples"], found["tokens"]) == (len(TEXTS), mask.sum())
    counts = {name: spikes.shape[0] * int(mask.sum()) * spikes.shape[-1] for name, spikes in output.spikes.items()}
    assert found["spikes_compared"] == sum(counts.values())
    assert [node["node"] for node in found["per_node"]] == list(counts)
    for node in found["per_node"]:
        assert set(node) >= {"node", "compared", "different", "rate_a", "rate_b", "margin"}
        fired = float(output.spikes[node["node"]].sum())
        assert (node["compared"], node["different"]) == (counts[node["node"]], 0)
        assert node["rate_a"] == node["rate_b"] == pytest.approx(fired / counts[node["node"]], rel=1e-12)
        assert node["margin"] >= 0
    assert (found["against"], found["precision"]) == (against, "float64")
    assert found["seed"] == 0
    assert len(found["checkpoint_sha256"]) == 64
    if against == "lava":
        assert found["processes"] > 1
        assert found["stock_share"]["spikes"] == sum(int(spikes.sum()) for spikes in output.spikes.values())


def test_the_answer_in_words(checkpoint: Path) -> None:
    result = _invoke("verify", checkpoint, "--against", "reference", "--text", TEXTS[0])
    assert result.exit_code == 0
    assert "EQUAL torch and reference at float64: 0 of" in result.stdout
    assert "NOT EQUAL" not in result.stdout
    assert "block00_qkv_neuron" in result.stdout


@lava
def test_the_answer_in_words_says_what_ran_in_stock_processes(checkpoint: Path) -> None:
    result = _invoke("verify", checkpoint, "--against", "lava:network", "--text", TEXTS[0])
    assert result.exit_code == 0
    words = " ".join(result.stdout.split())
    assert "1 Lava processes; in stock Lava processes: 0.0 % of 72 neurons" in words
    assert (
        "in ours: embedding, embedding_neuron, block00_qkv_affine, block00_qkv_norm and 17 more: granularity" in words
    )


def test_texts_are_taken_in_every_form(checkpoint: Path) -> None:
    options = ("--against", "reference")
    forms = [
        ("verify", checkpoint, *options, "--text", *TEXTS),
        ("verify", checkpoint, *options, *(word for text in TEXTS for word in ("--text", text))),
        ("verify", "--text", *TEXTS, *options, checkpoint),
        ("verify", *options, "--text", *TEXTS, checkpoint),
        ("verify", *options, "--text", *TEXTS[:2], "--text", TEXTS[2], checkpoint),
    ]
    answers = [_json(*form) for form in forms]
    assert {answer["samples"] for answer in answers} == {len(TEXTS)}
    assert len({answer["spikes_compared"] for answer in answers}) == 1
    assert _json("verify", "--text", "good", checkpoint, *options)["samples"] == 1


def test_more_sentences_than_a_batch_are_all_compared(checkpoint: Path) -> None:
    texts = [f"{'a ' * (1 + index % 5)}film" for index in range(19)]
    found = _json("verify", checkpoint, "--against", "reference", "--text", *texts)
    assert (found["equal"], found["samples"]) == (True, 19)
    assert found["tokens"] == sum(3 + 1 + index % 5 for index in range(19))  # [CLS], a, ..., film, [SEP]


def test_long_sentences_are_cut_to_the_positions_of_the_model(checkpoint: Path) -> None:
    assert _json("verify", checkpoint, "--against", "reference", "--text", "film " * 50)["tokens"] == 10


def test_sentences_of_a_task(checkpoint: Path, tiny_data: Path) -> None:
    found = _json(
        "verify", checkpoint, "--against", "reference", "--task", "sst2", "--data-dir", tiny_data, "--limit", 3
    )
    assert (found["equal"], found["samples"]) == (True, 3)


def _busiest(checkpoint: Path, node: str) -> int:
    """Return the feature of a node that fires most."""
    output, _ = _torch_run(checkpoint)
    return int(output.spikes[node].sum((0, 1, 2)).argmax())


def _nudge(path: Path, where: str, index: tuple[int, ...], by: float) -> None:
    with h5py.File(path, "r+") as file:
        array = file[f"node/nodes/{where}"]
        value = array[index]
        array[index] = value + by
        assert array[index] != value


NUDGES = {
    "embedding": ("embedding/weight", "embedding_neuron", "embedding: weight: 1 of"),
    "query": ("block00_qkv_affine/weight", "block00_qkv_neuron", "block00_qkv_affine: weight: 1 of"),
    "bias of the value": ("block00_qkv_affine/bias", "block00_qkv_neuron", "block00_qkv_affine: bias: 1 of"),
    "intermediate": (
        "block00_intermediate_affine/weight",
        "block00_intermediate_neuron",
        "block00_intermediate_affine: weight: 1 of",
    ),
    "norm": ("block00_output_norm/metadata/weight", "block00_output_neuron", "block00_output_norm: weight: 1 of"),
    "last norm": ("final_norm/metadata/bias", "output", "final_norm: bias: 1 of"),
    "classifier": ("classifier/weight", "output", "classifier: weight: 1 of"),
    "scale of attention": ("block00_attention/metadata/scale", "block00_attention_neuron", "block00_attention: scale"),
}


@pytest.mark.parametrize("by", [1e-3, 0.5])
@pytest.mark.parametrize("what", NUDGES)
def test_a_nudged_weight_is_found_and_named(
    what: str, by: float, checkpoint: Path, graph_file: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copy(graph_file, tmp_path / "nudged.nir"))
    where, node, difference = NUDGES[what]
    index: tuple[int, ...] = (0, _busiest(checkpoint, "embedding_neuron"))  # a weight whose input fires
    if what == "embedding":
        index = (0, AutoTokenizer.from_pretrained(checkpoint).convert_tokens_to_ids("film"))
    elif what == "bias of the value":
        index = (17,)
    elif what.endswith("norm"):
        index = (3,)
    elif what == "scale of attention":
        index = ()
    _nudge(path, where, index, by)
    found = _json("verify", checkpoint, "--graph", path, "--against", "reference", "--text", *TEXTS, exit_code=1)
    assert found["equal"] is False
    assert found["first_divergence"]["node"] == node
    (named,) = found["graph_differences"]
    assert named.startswith(difference)
    result = _invoke("verify", checkpoint, "--graph", path, "--against", "reference", "--text", *TEXTS)
    assert result.exit_code == 1
    said = " ".join(result.stdout.split())
    assert "NOT EQUAL torch and reference" in said
    assert f"first divergence: {node}, " in said
    assert f"is not the checkpoint's own graph: {difference}" in said


@pytest.mark.parametrize("by", [1e-3, 0.5])
def test_a_nudged_threshold_is_found_and_named(by: float, checkpoint: Path, graph_file: Path, tmp_path: Path) -> None:
    """The whole neuron is changed as one would: threshold, the number below it, and what the reset takes away."""
    node = "block00_intermediate_neuron"
    path = Path(shutil.copy(graph_file, tmp_path / "nudged.nir"))
    feature = _busiest(checkpoint, node)
    with h5py.File(path, "r+") as file:
        neuron = file[f"node/nodes/{node}"]
        threshold = neuron["metadata/threshold"][feature] + by
        neuron["metadata/threshold"][feature] = threshold
        neuron["nodes/spike/threshold"][feature] = np.nextafter(np.float32(threshold), np.float32(0))
        neuron["nodes/reset/scale"][feature] = -threshold
    found = _json("verify", checkpoint, "--graph", path, "--against", "reference", "--text", *TEXTS, exit_code=1)
    assert found["first_divergence"]["node"] == node
    assert found["first_divergence"]["feature"] == feature
    (named,) = found["graph_differences"]
    assert named.startswith(f"{node}: threshold: 1 of 16 values differ, the first at [{feature}]: {threshold!r}")


def test_a_nudged_weight_that_no_sentence_shows_is_found_too(
    checkpoint: Path, graph_file: Path, tmp_path: Path
) -> None:
    """A word none of the texts has: nothing that runs can show the nudge, and the answer is no all the same."""
    path = Path(shutil.copy(graph_file, tmp_path / "nudged.nir"))
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    said = {token for text in TEXTS for token in tokenizer(text)["input_ids"]}
    unsaid = next(token for token in range(1, len(tokenizer)) if token not in said)
    _nudge(path, "embedding/weight", (0, unsaid), 0.5)
    found = _json("verify", checkpoint, "--graph", path, "--against", "reference", "--text", *TEXTS, exit_code=1)
    assert (found["equal"], found["spikes_different"]) == (False, 0)
    assert (found["first_divergence"]["quantity"], found["first_divergence"]["node"]) == ("parameter", "embedding")
    said_by_command = " ".join(
        _invoke("verify", checkpoint, "--graph", path, "--against", "reference", "--text", *TEXTS).stdout.split()
    )
    assert "first at embedding" in said_by_command


@lava
@pytest.mark.parametrize("by", [1e-3, 0.5])
def test_a_nudged_weight_is_found_on_lava(by: float, checkpoint: Path, graph_file: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(graph_file, tmp_path / "nudged.nir"))
    _nudge(path, "block00_qkv_affine/weight", (0, _busiest(checkpoint, "embedding_neuron")), by)
    found = _json("verify", checkpoint, "--graph", path, "--against", "lava", "--text", *TEXTS, exit_code=1)
    assert found["first_divergence"]["node"] == "block00_qkv_neuron"


def test_a_nudged_weight_is_found_in_float32(checkpoint: Path, graph_file: Path, tmp_path: Path) -> None:
    options = ("--against", "reference", "--precision", "float32", "--text", *TEXTS)
    assert _json("verify", checkpoint, "--graph", graph_file, *options)["equal"] is True
    for where, node in (("classifier/bias", "output"), ("block00_qkv_affine/bias", "block00_qkv_neuron")):
        path = Path(shutil.copy(graph_file, tmp_path / "nudged.nir"))
        _nudge(path, where, (2,), 0.1)
        found = _json("verify", checkpoint, "--graph", path, *options, exit_code=1)
        assert found["first_divergence"]["node"] == node


def test_the_same_graph_in_another_precision_is_the_same(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "model64.nir"
    assert _json("export", "nir", checkpoint, "-o", path, "--precision", "float64")["precision"] == "float64"
    found = _json("verify", checkpoint, "--graph", path, "--against", "reference", "--text", *TEXTS)
    assert found["equal"] is True
    assert found["graph_differences"] == []


def test_a_divergence_names_the_sentence(checkpoint: Path, graph_file: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(graph_file, tmp_path / "nudged.nir"))
    word = AutoTokenizer.from_pretrained(checkpoint).convert_tokens_to_ids("story")  # only in the second sentence
    _nudge(path, "embedding/weight", (0, word), 0.5)
    arguments = ("verify", checkpoint, "--graph", path, "--against", "reference", "--text", *TEXTS)
    assert _json(*arguments, exit_code=1)["first_divergence"]["sample"] == 1
    assert "sample 1: “the dull story”" in _invoke(*arguments).stdout


BAD_VERIFY: dict[str, tuple[tuple[str, ...], str]] = {
    "no sentences": ((), "say which sentences to run"),
    "text and task": (("--text", "good", "--task", "sst2"), "and not both"),
    "an empty text": (("--text", " "), "a text is empty"),
    "a task nobody knows": (("--task", "nonsense"), "nonsense"),
    "a runner nobody knows": (("--against", "loihi", "--text", "good"), "loihi"),
    "a precision nobody knows": (("--precision", "float16", "--text", "good"), "float16"),
    "an option of another runner": (
        ("--against", "reference", "--timeout", "9", "--text", "good"),
        "--timeout is for --against lava only",
    ),
    "a timeout of no time": (("--timeout", "0", "--text", "good"), "timeout"),
    "a missing graph": (("--graph", "/nowhere/model.nir", "--text", "good"), "/nowhere/model.nir: no such file"),
    "a graph that is none": (("--graph", __file__, "--text", "good"), "is not a readable HDF5 file"),
    "an option nobody knows": (("--nonsense", "--text", "good"), "--nonsense"),
}


@pytest.mark.parametrize("what", BAD_VERIFY)
def test_bad_use_of_verify_ends_with_a_reason(what: str, checkpoint: Path) -> None:
    arguments, said = BAD_VERIFY[what]
    _refused("verify", checkpoint, *arguments, said=said)


def test_a_missing_checkpoint_ends_with_a_reason(tmp_path: Path) -> None:
    _refused("verify", tmp_path / "missing", "--text", "good", said="there is no checkpoint")
    _refused("verify", tmp_path, "--text", "good", said="has no config.json")


def test_a_graph_of_another_model_ends_with_a_reason(checkpoint: Path, make_model: Callable, tmp_path: Path) -> None:
    from export import to_nir, write_nir

    vocabulary = AutoModelForSequenceClassification.from_pretrained(checkpoint).config.vocab_size
    others: dict[str, dict[str, Any]] = {
        "another depth": {"num_hidden_layers": 2},
        "another width": {"hidden_size": 16},
        "another number of steps": {"time_steps": 3},
        "another vocabulary": {"vocab_size": 4},
    }
    for configuration in others.values():
        model = make_model(**{"vocab_size": vocabulary, "max_position_embeddings": 10, **configuration})
        path = write_nir(tmp_path / "other.nir", to_nir(model))
        _refused("verify", checkpoint, "--graph", path, "--against", "reference", "--text", "good")


# ---------------------------------------------------------------------------------------------------------------------
# export nir, simulate, compare, info


def test_export_writes_a_graph_that_says_where_it_is_from(checkpoint: Path, tmp_path: Path) -> None:
    import hashlib

    import nir

    path = tmp_path / "model.nir"
    found = _json("export", "nir", checkpoint, "-o", path)
    assert found["file"] == str(path)
    assert found["bytes"] == path.stat().st_size
    assert found["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found["checkpoint_sha256"] == hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    graph = nir.read(path)
    assert found["nodes"] == len(graph.nodes)
    assert graph.metadata["checkpoint_sha256"] == found["checkpoint_sha256"]
    assert found["spiking_nodes"] == list(_torch_run(checkpoint)[0].spikes)


@pytest.mark.parametrize("command", ["export", "simulate"])
def test_nothing_is_written_over_without_force(
    command: str, checkpoint: Path, graph_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "here already"
    path.write_bytes(b"precious")
    arguments: tuple[Any, ...] = ("export", "nir", checkpoint, "-o", path)
    if command == "simulate":
        arguments = ("simulate", graph_file, "--tokenizer", checkpoint, "--text", "good", "-o", path)
    _refused(*arguments, said="exists already; add --force")
    assert path.read_bytes() == b"precious"
    assert _invoke(*arguments, "--force").exit_code == 0
    assert path.read_bytes() != b"precious"


@pytest.mark.parametrize("runner", ["reference", pytest.param("lava", marks=lava)])
def test_simulate_writes_the_trace_it_prints(runner: str, checkpoint: Path, graph_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "trace.npz"
    arguments = ("simulate", graph_file, "--runner", runner, "--tokenizer", checkpoint, "--membrane-potentials")
    found = _json(*arguments, "--text", *TEXTS, "-o", path)
    trace = Trace.load(path)
    output, mask = _torch_run(checkpoint)
    for name, spikes in output.spikes.items():
        np.testing.assert_array_equal(trace.spikes[name], spikes.numpy())
        rate = float(spikes.sum()) / (spikes.shape[0] * mask.sum() * spikes.shape[-1])
        assert found["firing_rates"][name] == pytest.approx(rate, rel=1e-12)
    np.testing.assert_allclose(trace.logits, output.logits.numpy(), rtol=0, atol=1e-12)
    assert found["logits"] == trace.logits.tolist()
    assert set(trace.membrane_potentials) == set(trace.spikes)
    assert (trace.metadata["runner"], trace.metadata["texts"]) == (runner, list(TEXTS))
    assert found["trace"] == str(path)


def test_simulate_takes_token_ids(checkpoint: Path, graph_file: Path, tmp_path: Path) -> None:
    tokens = AutoTokenizer.from_pretrained(checkpoint)(list(TEXTS), padding=True, return_tensors="np")["input_ids"]
    np.save(tmp_path / "ids.npy", tokens)
    found = _json("simulate", graph_file, "--ids", tmp_path / "ids.npy")
    np.testing.assert_allclose(found["logits"], _torch_run(checkpoint)[0].logits.numpy(), rtol=0, atol=1e-12)


def test_simulate_prints_for_people(checkpoint: Path, graph_file: Path) -> None:
    result = _invoke("simulate", graph_file, "--tokenizer", checkpoint, "--text", *TEXTS)
    assert result.exit_code == 0
    for said in (*TEXTS, "block00_qkv_neuron: "):
        assert said in result.stdout


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (np.ones(3, int), "expected whole numbers (sentences, tokens)"),
        (np.ones((2, 3)), "expected whole numbers (sentences, tokens)"),
        (np.ones((0, 3), int), "expected whole numbers (sentences, tokens)"),
        (np.array([[1, 2], [0, 0]]), "sentence 1 is all padding"),
        (np.array([[1, 1000]]), "the graph's vocabulary"),
        (np.array([[1, -2]]), "the graph's vocabulary"),
        (np.ones((1, 11), int), "more than the 10 positions"),
        (np.array([[None]]), "is not an .npy array"),
    ],
)
def test_bad_token_ids_end_with_a_reason(ids: np.ndarray, said: str, graph_file: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", ids)
    _refused("simulate", graph_file, "--ids", tmp_path / "ids.npy", "-o", tmp_path / "trace.npz", said=said)
    assert not (tmp_path / "trace.npz").exists()


def test_bad_use_of_simulate_ends_with_a_reason(checkpoint: Path, graph_file: Path, tmp_path: Path) -> None:
    text = ("--tokenizer", checkpoint, "--text", "good")
    _refused("simulate", tmp_path / "missing.nir", *text, said="no such file")
    _refused("simulate", graph_file, "--tokenizer", checkpoint, said="say which sentences")
    _refused("simulate", graph_file, *text, "--ids", tmp_path / "ids.npy", said="only one of them")
    _refused("simulate", graph_file, "--ids", tmp_path / "ids.npy", said="is not an .npy array")
    _refused("simulate", graph_file, *text, "--timeout", "9", said="is for --runner lava only")
    _refused("simulate", graph_file, *text, "-o", tmp_path / "missing" / "trace.npz", said="does not exist")
    _refused(
        "simulate", graph_file, "--tokenizer", checkpoint, "--text", "film " * 20, said="more than the 10 positions"
    )


@pytest.fixture(scope="module")
def traces(checkpoint: Path, graph_file: Path) -> dict[str, Path]:
    folder = checkpoint.parent
    nudged = Path(shutil.copy(graph_file, folder / "nudged.nir"))
    _nudge(nudged, "block00_intermediate_affine/weight", (0, _busiest(checkpoint, "embedding_neuron")), 0.5)
    found = {}
    for name, graph, texts in (
        ("one", graph_file, TEXTS),
        ("same", graph_file, TEXTS),
        ("nudged", nudged, TEXTS),
        ("other", graph_file, TEXTS[:1]),
    ):
        found[name] = folder / f"{name}.npz"
        arguments = ("simulate", graph, "--tokenizer", checkpoint, "--membrane-potentials", "--text", *texts)
        assert _invoke(*arguments, "-o", found[name]).exit_code == 0
    return found


def test_compare_says_equal(traces: dict[str, Path]) -> None:
    found = _json("compare", traces["one"], traces["same"])
    assert found["equal"] is True
    assert found["spikes_compared"] > 0
    result = _invoke("compare", traces["one"], traces["same"])
    assert result.exit_code == 0
    assert "EQUAL one.npz and same.npz at float64" in " ".join(result.stdout.split())


def test_compare_says_where_traces_differ(traces: dict[str, Path]) -> None:
    found = _json("compare", traces["one"], traces["nudged"], exit_code=1)
    assert found["equal"] is False
    a, b = Trace.load(traces["one"]), Trace.load(traces["nudged"])
    differing = {name: int((a.spikes[name] != b.spikes[name]).sum()) for name in a.spikes}
    assert {node["node"]: node["different"] for node in found["per_node"]} == differing
    assert found["first_divergence"]["node"] == "block00_intermediate_neuron"
    result = _invoke("compare", traces["one"], traces["nudged"])
    assert result.exit_code == 1
    assert "first divergence: block00_intermediate_neuron" in " ".join(result.stdout.split())


def test_bad_use_of_compare_ends_with_a_reason(traces: dict[str, Path], tmp_path: Path) -> None:
    _refused("compare", traces["one"], traces["other"], said="has shape")
    _refused("compare", traces["one"], tmp_path / "missing.npz", said="no such file")
    _refused("compare", traces["one"], __file__, said="is not a trace")
    _refused("compare", traces["one"])


def test_info_explains_a_checkpoint(checkpoint: Path) -> None:
    found = _json("info", checkpoint)
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    assert found["kind"] == "checkpoint"
    assert found["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert (found["blocks"], found["hidden_size"], found["time_steps"]) == (1, 8, 4)
    assert "spikebert.blocks.0.attention.qkv.affine.weight" in _invoke("info", checkpoint).stdout


def test_an_encoder_of_stage_1_is_explained_and_asks_for_a_classifier(checkpoint: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    encoder = tmp_path / "encoder"
    model.base_model.save_pretrained(encoder)
    for file in checkpoint.glob("token*"):
        shutil.copy(file, encoder)
    found = _json("info", encoder)
    assert found["kind"] == "checkpoint, an encoder without a classifier"
    assert found["parameters"] == sum(value.numel() for value in model.base_model.parameters())
    for words in (("export", "nir", encoder, "-o", tmp_path / "new.nir"), ("evaluate", encoder, "--task", "sst2")):
        _refused(*words, said=f"spikebert distill task --student {encoder}")
    assert not (tmp_path / "new.nir").exists()


def test_info_explains_a_graph(graph_file: Path) -> None:
    found = _json("info", graph_file)
    assert found["kind"] == "NIR graph"
    assert found["file"] == str(graph_file)
    assert found["operators"] == {
        "affine": 6,
        "heaviside": 1,
        "layer_norm": 5,
        "leaky_integrate_and_fire": 5,
        "spike_attention": 1,
        "token_mean": 1,
        "total": 2,
    }
    rows = {row["node"]: row for row in found["nodes"]}
    assert rows["block00_qkv_neuron"]["standard"] == "yes"
    assert rows["block00_qkv_norm"]["standard"] == "no"
    assert rows["block00_qkv_neuron"]["detail"] == "beta 0.9, threshold 1, >=, reset subtract"
    shown = _invoke("info", graph_file).stdout
    assert all(f" {row['node']} " in shown for row in found["nodes"]), "a name is cut off"


def test_info_explains_a_trace(traces: dict[str, Path], checkpoint: Path) -> None:
    found = _json("info", traces["one"])
    output, mask = _torch_run(checkpoint)
    assert (found["kind"], found["sentences"], found["real_tokens"]) == ("trace", 3, mask.sum())
    assert found["padding_tokens"] == mask.size - mask.sum()
    assert [row["node"] for row in found["nodes"]] == list(output.spikes)
    assert _invoke("info", traces["one"]).exit_code == 0


def test_info_believes_no_metadata_about_the_file(graph_file: Path, traces: dict[str, Path], tmp_path: Path) -> None:
    path = Path(shutil.copy(graph_file, tmp_path / "liar.nir"))
    with h5py.File(path, "r+") as file:
        file["node/metadata/kind"] = "checkpoint"
        file["node/metadata/bytes"] = 7
    found = _json("info", path)
    assert (found["kind"], found["bytes"]) == ("NIR graph", path.stat().st_size)
    trace = Trace.load(traces["one"])
    trace.metadata.update(kind="checkpoint", sentences=77)
    found = _json("info", trace.save(tmp_path / "liar.npz"))
    assert (found["kind"], found["sentences"]) == ("trace", 3)


def test_bad_use_of_info_ends_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("text")
    (tmp_path / "bad.nir").write_text("text")
    (tmp_path / "bad.npz").write_text("text")
    _refused("info", tmp_path / "file.txt", said="is not a checkpoint folder")
    _refused("info", tmp_path / "bad.nir", said="is not a readable HDF5 file")
    _refused("info", tmp_path / "bad.npz", said="is not a trace")
    _refused("info", tmp_path / "missing", said="there is no checkpoint")
    _refused("info", tmp_path / "missing.nir", said="no such file")
