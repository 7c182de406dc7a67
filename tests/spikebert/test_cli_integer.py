"""The road in whole numbers on the command line: train, quantize, score, simulate, verify, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from export import parse_graph, read_nir, write_nir
from hardware.trace import Trace
from spikebert.checkpoint import load_model
from spikebert.cli import main

INTEGER = ["--precision", "integer"]
TINY = ["--blocks", 1, "--heads", 2, "--intermediate-size", 32, "--time-steps", 2, "--max-length", 16]


def run(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture(scope="module")
def trained(tiny_teacher, tiny_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("integer") / "model"
    words = ["distill", "task", "--teacher", tiny_teacher, "--task", "sst2", "--data-dir", tiny_data, "-o", folder]
    result = run(
        *words, "--epochs", 8, "--batch-size", 8, "--learning-rate", 5e-3, *TINY, "--label-only", *INTEGER, "--json"
    )
    assert result.exit_code == 0, result.output
    return folder, json.loads(result.stdout)


@pytest.fixture(scope="module")
def graphs(trained, tiny_data, tmp_path_factory):
    """Return the float and the integer file of the trained model, and what quantize printed."""
    folder = tmp_path_factory.mktemp("graphs")
    assert run("export", "nir", trained[0], "-o", folder / "float.nir").exit_code == 0
    words = ["quantize", folder / "float.nir", "-o", folder / "integer.nir", "--tokenizer", trained[0]]
    result = run(*words, "--calibration", "sst2", "--data-dir", tiny_data, "--json")
    assert result.exit_code == 0, result.output
    return folder / "float.nir", folder / "integer.nir", json.loads(result.stdout), words


def test_training_for_integers_leaves_weights_of_8_bits(trained):
    folder, record = trained
    assert record["settings"]["integer"]
    model = load_model(folder)
    for weight in (model.classifier.weight, model.spikebert.blocks[0].output.affine.weight):
        whole = (weight / weight.abs().max() * 127).detach().numpy()
        assert np.abs(whole - whole.round()).max() < 0.15  # stored in half precision
        assert len(np.unique(whole.round())) > 10


def test_integers_score_as_trained_for(trained, tiny_data):
    folder, record = trained
    words = ["evaluate", folder, "--task", "sst2", "--data-dir", tiny_data, "--json"]
    plain, integer = (json.loads(run(*words, *more).stdout) for more in ([], INTEGER))
    assert (plain["precision"], integer["precision"]) == ("float32", "integer")
    assert plain["value"] == record["dev"]
    assert integer["value"] >= record["dev"] - 1 / 24
    assert integer["value"] > 0.7


def test_quantize_reports_every_layer_and_writes_its_report_into_the_file(graphs):
    _, file, answer, _ = graphs
    network = parse_graph(read_nir(file))
    assert network.is_integer
    assert network.metadata["precision"] == "integer"
    assert [layer["node"] for layer in answer["layers"]] == [node.name for node in network.spiking_nodes]
    assert all(0 < layer["agreement"] <= 1 for layer in answer["layers"])
    kept = json.loads(network.metadata["quantization"])
    assert kept == {key: answer[key] for key in kept}
    assert answer["calibration_sentences"] == 32


def test_the_three_ways_to_an_integer_graph_agree(trained, graphs, tiny_data, tmp_path):
    folder, integer = trained[0], graphs[1]
    words = ["export", "nir", folder, "-o", tmp_path / "export.nir", "--precision", "integer"]
    assert run(*words, "--calibration", "sst2", "--data-dir", tiny_data).exit_code == 0
    text = ["--text", "a good film .", "the dull story"]
    scores = []
    for file in (integer, tmp_path / "export.nir"):
        for runner in ("integer", "reference"):
            result = run("simulate", file, "--runner", runner, "--tokenizer", folder, *text, "--json")
            assert result.exit_code == 0, result.output
            scores.append(json.loads(result.stdout)["logits"])
    assert all(score == scores[0] for score in scores)


def test_simulate_writes_a_trace_that_compares(trained, graphs, tmp_path):
    words = ["simulate", graphs[1], "--tokenizer", trained[0], "--text", "a good film .", "--membrane-potentials"]
    files = [tmp_path / f"{runner}.npz" for runner in ("integer", "reference")]
    for file in files:
        assert run(*words, "--runner", file.stem, "-o", file).exit_code == 0
    answer = json.loads(run("compare", *files, "--json").stdout)
    assert answer["equal"]
    assert answer["states_compared"] == answer["spikes_compared"] > 0
    assert answer["states_different"] == 0
    potentials = Trace.load(files[0]).membrane_potentials["block00_qkv_neuron"]
    changed = Trace.load(files[0])
    changed.membrane_potentials["block00_qkv_neuron"] = potentials + (np.arange(potentials.size) == 7).reshape(
        potentials.shape
    )
    changed.save(tmp_path / "changed.npz")
    result = run("compare", files[0], tmp_path / "changed.npz", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["states_different"] == 1


def test_verify_compares_with_the_integer_simulator(trained, graphs, tiny_data, tmp_path):
    folder, integer = trained[0], graphs[1]
    text = ["--text", "a good film .", "the dull story"]
    task = ["--task", "sst2", "--data-dir", tiny_data, "--limit", 4]
    for words in (text, task, [*task, "--calibration", "sst2"]):
        result = run("verify", folder, "--against", "reference", "--precision", "integer", *words, "--json")
        assert result.exit_code == 0, result.output
        answer = json.loads(result.stdout)
        assert answer["equal"]
        assert answer["states_different"] == 0 < answer["states_compared"]
    words = ["verify", folder, "--against", "reference", "--precision", "integer", *text, "--graph"]
    assert run(*words, integer).exit_code == 0
    between = run("verify", folder, "--against", "integer", *text)
    assert "torch and integer at float64 and integer:" in between.stdout
    other = read_nir(integer)
    other.metadata["checkpoint_sha256"] = "another"
    result = run(*words, write_nir(tmp_path / "other.nir", other))
    assert result.exit_code == 1
    assert "checkpoint_sha256: another" in result.output


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["quantize", "FLOAT", "-o", "NEW", "--calibration", "nothing"], "neither a task"),
        (["quantize", "INTEGER", "-o", "NEW", "--calibration", "EMPTY"], "holds no sentence"),
        (["quantize", "INTEGER", "-o", "NEW", "--calibration", "LINES"], "is an integer graph already"),
        (["quantize", "FLOAT", "-o", "INTEGER", "--calibration", "LINES"], "exists already"),
        (["export", "nir", "MODEL", "-o", "NEW", "--precision", "integer"], "needs --calibration"),
        (["export", "nir", "MODEL", "-o", "NEW", "--calibration", "LINES"], "needs --calibration"),
        (["simulate", "FLOAT", "--runner", "integer", "--tokenizer", "MODEL", "--text", "a"], "float graph"),
        (["simulate", "INTEGER", "--precision", "float64", "--tokenizer", "MODEL", "--text", "a"], "integer graph"),
        (["evaluate", "MODEL", "--task", "sst2", "--graph", "INTEGER"], "--precision integer only"),
        (["verify", "MODEL", "--calibration", "LINES", "--text", "a"], "--precision integer"),
    ],
)
def test_bad_use_ends_with_2_and_writes_nothing(trained, graphs, tmp_path, words, complaint):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "lines.txt").write_text("a good film\nthe dull story\n")
    names = {
        "MODEL": trained[0],
        "FLOAT": graphs[0],
        "INTEGER": graphs[1],
        "NEW": tmp_path / "new.nir",
        "EMPTY": tmp_path / "empty.txt",
        "LINES": tmp_path / "lines.txt",
    }
    more = ["--tokenizer", trained[0]] if words[0] == "quantize" else []
    result = run(*[names.get(word, word) for word in words], *more)
    assert result.exit_code == 2, result.output
    assert complaint in " ".join(result.output.split())
    assert not (tmp_path / "new.nir").exists()


def test_training_for_integers_refuses_what_cannot_go_with_it(tiny_teacher, tiny_data, tmp_path):
    words = ["distill", "task", "--teacher", tiny_teacher, "--task", "sst2", "--data-dir", tiny_data, *INTEGER]
    for more, complaint in ((["--compile"], "leave out --compile"), (["--average-decay", 0.9], "no 8-bit weight")):
        result = run(*words, "-o", tmp_path / "model", *more)
        assert result.exit_code == 2
        assert complaint in result.output
