"""The promises of verify, compare and check as instruments: any pair, why runs differ, resume after a kill, reports.

Everything goes through the commands; what they say is held against runs made here.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click.testing
import h5py
import numpy as np
import pytest
from rich.console import Console

from hardware import Trace
from hardware.equivalence.comparison import Comparison, NodeComparison
from spikebert.cli import main
from spikebert.cli.verification import comparison_table

TEXTS = ("a warm film .", "the dull story", "good")
MANY = tuple(f"{'a ' * (1 + index % 5)}film" for index in range(19))
REPOSITORY = Path(__file__).parents[2]
lava = pytest.mark.lava


@pytest.fixture(scope="module")
def faulty_file(graph_file: Path) -> Path:
    path = Path(shutil.copy(graph_file, graph_file.with_name("faulty.nir")))
    with h5py.File(path, "r+") as file:
        weight = file["node/nodes/block00_intermediate_affine/weight"]
        weight[...] = -weight[...]
    return path


@pytest.fixture(scope="module")
def trace_file(checkpoint: Path, graph_file: Path) -> Path:
    path = checkpoint.parent / "trace.npz"
    arguments = ("simulate", graph_file, "--tokenizer", checkpoint, "--membrane-potentials", "--text", *TEXTS)
    assert _invoke(*arguments, "-o", path).exit_code == 0
    return path


def _invoke(*arguments: Any) -> click.testing.Result:
    result = click.testing.CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    assert "Traceback" not in result.output
    return result


def _json(*arguments: Any, exit_code: int = 0) -> dict[str, Any]:
    result = _invoke(*arguments, "--json")
    assert result.exit_code == exit_code, result.output
    return json.loads(result.stdout)


def _refused(*arguments: Any, said: str) -> None:
    result = _invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert said in " ".join(result.stderr.split())


REFERENCE = ("--against", "reference")


# ---------------------------------------------------------------------------------------------------------------------
# Pairs.


@pytest.mark.parametrize(
    ("expected", "against"),
    [
        ("reference", "torch"),
        ("torch", "torch"),
        pytest.param("reference", "lava:network", marks=lava),
        pytest.param("lava:operator", "lava:block", marks=lava),
    ],
)
def test_any_two_runners_make_a_pair(expected: str, against: str, checkpoint: Path) -> None:
    found = _json("verify", checkpoint, "--expected", expected, "--against", against, "--text", *TEXTS)
    assert found["equal"] is True
    assert (found["expected"], found["against"], found["samples"]) == (expected, against, 3)


@lava
@pytest.mark.parametrize("against", ["lava:block", "lava:hardware"])
def test_lava_runs_integers_in_both_timings(against: str, checkpoint: Path) -> None:
    found = _json("verify", checkpoint, "--against", against, "--precision", "integer", "--text", *TEXTS)
    assert (found["equal"], found["expected"], found["states_different"]) == (True, "integer", 0)
    assert found["states_compared"] == found["spikes_compared"] > 0


def test_a_recorded_trace_stands_on_either_side(checkpoint: Path, trace_file: Path, tmp_path: Path) -> None:
    assert _json("verify", checkpoint, "--against", trace_file, "--text", *TEXTS)["equal"] is True
    assert _json("verify", checkpoint, "--expected", trace_file, *REFERENCE, "--text", *TEXTS)["equal"] is True
    trace = Trace.load(trace_file)
    trace.spikes["block00_output_neuron"][1, 1, 0, 3] ^= 1
    broken = trace.save(tmp_path / "broken.npz")
    first = _json("verify", checkpoint, "--against", broken, "--text", *TEXTS, exit_code=1)["first_divergence"]
    assert [first[key] for key in ("node", "time_step", "sample", "token", "feature")] == [
        "block00_output_neuron",
        1,
        1,
        0,
        3,
    ]
    assert first["token_text"] == "[CLS]"
    _refused("verify", checkpoint, "--against", trace_file, "--text", "good", "film", said="there, ")


@pytest.mark.parametrize("by", [0.5, np.nan])
def test_a_recorded_answer_that_is_wrong_is_not_equal(
    by: float, checkpoint: Path, graph_file: Path, trace_file: Path, tmp_path: Path
) -> None:
    trace = Trace.load(trace_file)
    trace.logits[1, 0] += by
    trace.outputs = None
    wrong = trace.save(tmp_path / "wrong.npz")
    for words in (
        ("verify", checkpoint, "--against", wrong, "--text", *TEXTS),
        ("compare", trace_file, wrong, "--graph", graph_file),
    ):
        found = _json(*words, exit_code=1)
        assert (found["spikes_different"], found["first_divergence"]["quantity"]) == (0, "logits")
        assert found["explanation"]["at_fault"] == ["b"]


def test_margins_fit_into_80_columns() -> None:
    node = NodeComparison("block00_intermediate_neuron", 36_864, 0, 0.172, 0.172, margin=530.0)
    console = Console(width=80)
    with console.capture() as shown:
        console.print(comparison_table(Comparison(True, 36_864, 0, None, [node]), "integer", "lava:hardware"))
    assert "5.3e+02" in shown.get()


def test_where_no_precision_is_said_the_verdict_says_what_decides(trace_file: Path, tmp_path: Path) -> None:
    trace = Trace.load(trace_file)
    trace.metadata.pop("precision")
    silent = trace.save(tmp_path / "silent.npz")
    assert "spikes alone decide" in _invoke("compare", silent, silent).stdout
    assert "spikes alone decide" not in _invoke("compare", trace_file, trace_file).stdout


def test_spikes_from_elsewhere_need_no_more_than_their_nodes(
    checkpoint: Path, trace_file: Path, tmp_path: Path
) -> None:
    trace = Trace.load(trace_file)
    names = ["block00_qkv_neuron", "block00_output_neuron"]
    np.savez(tmp_path / "chip.npz", mask=trace.mask, **{name: trace.spikes[name] for name in names})
    arguments = ("verify", checkpoint, "--against", tmp_path / "chip.npz", "--text", *TEXTS)
    _refused(*arguments, said="embedding_neuron: is in the first trace, but not in the second")
    found = _json(*arguments, "--nodes", *names)
    assert found["equal"] is True
    assert [node["node"] for node in found["per_node"]] == names


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_onnx_makes_a_pair(precision: str, checkpoint: Path) -> None:
    found = _json("verify", checkpoint, "--against", "onnx", "--precision", precision, "--audit", "--text", *TEXTS)
    assert found["explanation"]["explained"] is True
    assert found["equal"] is True


def test_integer_runs_are_equal_to_the_last_state(checkpoint: Path) -> None:
    found = _json("verify", checkpoint, *REFERENCE, "--precision", "integer", "--node-by-node", "--text", *TEXTS)
    assert (found["equal"], found["expected"], found["states_different"]) == (True, "integer", 0)
    assert found["states_compared"] == found["spikes_compared"]
    assert found["node_by_node"]["spikes_different"] == found["node_by_node"]["states_different"] == 0
    assert found["node_by_node"]["spikes_compared"] == found["spikes_compared"]


def test_an_integer_state_that_differs_is_not_equal(checkpoint: Path, graph_file: Path, tmp_path: Path) -> None:
    graph = tmp_path / "integer.nir"
    calibration = tmp_path / "sentences.txt"
    calibration.write_text("\n".join(TEXTS))
    arguments = ("quantize", graph_file, "--tokenizer", checkpoint, "--calibration", calibration, "-o", graph)
    assert _invoke(*arguments).exit_code == 0
    path = tmp_path / "a.npz"
    arguments = ("simulate", graph, "--runner", "integer", "--precision", "integer", "--membrane-potentials")
    assert _invoke(*arguments, "--tokenizer", checkpoint, "--text", *TEXTS, "-o", path).exit_code == 0
    trace = Trace.load(path)
    trace.membrane_potentials["block00_output_neuron"][1, 0, 0, 2] += 1
    found = _json("compare", path, trace.save(tmp_path / "b.npz"), exit_code=1)
    assert (found["spikes_different"], found["states_different"]) == (0, 1)
    first = found["first_divergence"]
    assert (first["quantity"], first["node"], first["feature"]) == ("membrane_potential", "block00_output_neuron", 2)


def test_quantized_against_float_says_how_far_they_agree(checkpoint: Path) -> None:
    result = _invoke("verify", checkpoint, "--against", "integer", "--text", *TEXTS, "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == (0 if found["equal"] else 1)
    assert found["explanation"] is None  # rounding is not what makes them differ
    assert 0 < found["spikes_different"] < found["spikes_compared"]
    for node in found["per_node"]:
        agreement = found["agreement"][node["node"]]
        assert agreement["all"] == pytest.approx(1 - node["different"] / node["compared"])
        assert np.mean(agreement["by_step"]) == pytest.approx(agreement["all"])
        assert node["potential_difference"] is None  # they are in other units
    evidence = found["evidence"]
    assert evidence["side_a"]["potentials"] is not None
    assert evidence["side_b"]["potentials"] is None  # not to be drawn beside the first's
    assert 0 <= found["predictions_different"] <= len(TEXTS)
    assert set(found["silent_nodes"]) == {"a", "b"}
    said = _invoke("verify", checkpoint, "--against", "integer", "--text", *TEXTS).stdout
    assert "of spikes agree" in " ".join(said.split())


# ---------------------------------------------------------------------------------------------------------------------
# Why runs differ.


def test_a_fault_is_unexplained_and_blamed_on_the_right_side(checkpoint: Path, faulty_file: Path) -> None:
    for precision in ("float64", "float32"):
        arguments = (
            "verify",
            checkpoint,
            "--graph",
            faulty_file,
            *REFERENCE,
            "--precision",
            precision,
            "--text",
            *TEXTS,
        )
        found = _json(*arguments, exit_code=1)
        explanation = found["explanation"]
        assert explanation["explained"] is False
        assert explanation["at_fault"] == ["b"]
        assert explanation["first_unexplained"]["node"] == "block00_intermediate_neuron"
        assert found["evidence"]["cause"] == "b"
        assert found["evidence"]["inputs"]
        by_step = {node["node"]: node["different_by_step"] for node in found["per_node"]}
        assert sum(map(sum, by_step.values())) == found["spikes_different"]
        assert _invoke(*arguments, "--accept-rounding").exit_code == 1
    said = " ".join(_invoke(*arguments).stdout.split())
    for words in (
        "UNEXPLAINED",
        "reference does what the graph does not say",
        "differing spikes by step",
        "what entered",
    ):
        assert words in said


def test_an_audit_holds_every_value_against_its_bound(checkpoint: Path) -> None:
    found = _json("verify", checkpoint, *REFERENCE, "--precision", "float32", "--audit", "--text", *TEXTS)
    assert found["equal"] is True
    assert found["explanation"]["explained"] is True
    assert [node["node"] for node in found["explanation"]["per_node"]][-1] == "output"
    for node in found["explanation"]["per_node"]:
        assert 0 <= node["tightness_a"] <= 1
    # sums of two terms, and sums of whole numbers, leave no freedom
    exact = {node["node"] for node in found["explanation"]["per_node"] if not node["largest_bound"]}
    assert exact == {"embedding_neuron", "block00_attention_neuron"}
    assert _json("verify", checkpoint, *REFERENCE, "--text", *TEXTS)["explanation"] is None


def test_rounding_can_be_accepted_and_nothing_else(checkpoint: Path, graph_file: Path, tmp_path: Path) -> None:
    """A potential beyond the fixed tolerance of two files alone, but within what the graph allows."""
    path = tmp_path / "a.npz"
    arguments = ("simulate", graph_file, "--tokenizer", checkpoint, "--membrane-potentials", "--precision", "float32")
    assert _invoke(*arguments, "--text", *TEXTS, "-o", path).exit_code == 0
    trace = Trace.load(path)
    found = _json("compare", path, path, "--graph", graph_file, "--audit")
    bounds = {node["node"]: node["largest_bound"] for node in found["explanation"]["per_node"]}
    assert bounds["block00_output_neuron"] > 0
    trace.spikes["block00_output_neuron"][0, 0, 0, 0] ^= 1
    broken = trace.save(tmp_path / "b.npz")
    assert _invoke("compare", path, broken, "--graph", graph_file, "--accept-rounding").exit_code == 1
    _refused("compare", path, path, "--accept-rounding", said="needs the graph")


def test_node_by_node_names_the_faulty_node_alone(checkpoint: Path, faulty_file: Path) -> None:
    arguments = ("verify", checkpoint, "--graph", faulty_file, *REFERENCE, "--node-by-node", "--text", *TEXTS)
    found = _json(*arguments, exit_code=1)
    by_node = {node["node"]: node["different"] for node in found["node_by_node"]["per_node"]}
    assert [name for name, different in by_node.items() if different] == ["block00_intermediate_neuron"]
    free = {node["node"]: node["different"] for node in found["per_node"]}
    assert free["block00_output_neuron"] > 0
    _refused(
        "verify",
        checkpoint,
        "--against",
        "torch",
        "--node-by-node",
        "--text",
        "good",
        said="cannot run a node by itself",
    )


@lava
def test_node_by_node_on_lava(checkpoint: Path) -> None:
    found = _json("verify", checkpoint, "--against", "lava:network", "--node-by-node", "--text", TEXTS[0])
    assert found["node_by_node"]["spikes_different"] == 0
    assert found["node_by_node"]["spikes_compared"] == found["spikes_compared"]


# ---------------------------------------------------------------------------------------------------------------------
# Scale.


@pytest.mark.slow  # every worker imports torch
def test_jobs_and_batches_change_nothing(checkpoint: Path, faulty_file: Path) -> None:
    arguments = ("verify", checkpoint, "--graph", faulty_file, *REFERENCE, "--text", *MANY)
    one = _json(*arguments, exit_code=1)
    other = _json(*arguments, "--batch-size", 5, "--jobs", 2, exit_code=1)
    for key in ("samples", "tokens", "spikes_compared", "spikes_different", "first_divergence"):
        assert one[key] == other[key]


def test_it_stops_at_the_first_batch_that_differs(checkpoint: Path, faulty_file: Path) -> None:
    arguments = ("verify", checkpoint, "--graph", faulty_file, *REFERENCE, "--batch-size", 2, "--text", *MANY)
    found = _json(*arguments, "--stop-at-first", exit_code=1)
    assert (found["samples"], found["sentences_asked"]) == (2, len(MANY))
    assert found["first_divergence"] is not None


def test_only_the_nodes_asked_for_are_compared(checkpoint: Path, faulty_file: Path) -> None:
    arguments = ("verify", checkpoint, *REFERENCE, "--text", *TEXTS)
    found = _json(*arguments, "--nodes", "block00_qkv*")
    assert [node["node"] for node in found["per_node"]] == ["block00_qkv_neuron"]
    _refused(*arguments, "--nodes", "nonsense", said="no node is called nonsense")


def test_progress_is_kept_and_taken_up(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "progress.json"
    arguments = ("verify", checkpoint, *REFERENCE, "--resume", file, "--batch-size", 4, "--text", *MANY)
    first = _json(*arguments)
    assert json.loads(file.read_text())["samples"] == len(MANY)
    again = _json(*arguments)  # nothing is left to do
    for key in ("samples", "tokens", "spikes_compared", "per_node"):
        assert first[key] == again[key]
    _refused(*arguments[:-1], said="belongs to another run: its sentences_sha256")
    file.write_text("{}")
    _refused(*arguments, said="is not a progress file")


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_stopped(checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "progress.json"
    texts = [f"{'a ' * (1 + index % 7)}film" for index in range(4000)]
    data = tmp_path / "sst2"
    data.mkdir()
    (data / "dev.tsv").write_text("sentence\tlabel\n" + "".join(f"{text}\t0\n" for text in texts))
    arguments = ["verify", checkpoint, *REFERENCE, "--resume", file, "--batch-size", 1, "--task", "sst2"]
    arguments += ["--data-dir", tmp_path, "--json"]
    code = "from spikebert.cli import main; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        while not file.exists():
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    done = json.loads(file.read_text())["samples"]
    assert 0 < done < len(texts)
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []
    found = _json(*arguments[:-1])
    assert (found["equal"], found["samples"]) == (True, len(texts))
    whole = _json(*(word for word in arguments[:-1] if word not in ("--resume", file)))
    for key in ("tokens", "spikes_compared", "spikes_different"):
        assert found[key] == whole[key]


# ---------------------------------------------------------------------------------------------------------------------
# Reports and bad use.


def test_verify_and_compare_write_pages(
    checkpoint: Path, faulty_file: Path, trace_file: Path, graph_file: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    arguments = ("verify", checkpoint, "--graph", faulty_file, *REFERENCE, "--text", *TEXTS, "--html", page)
    assert _invoke(*arguments).exit_code == 1
    text = page.read_text(encoding="utf-8")
    for said in ("NOT EQUAL", "block00_intermediate_neuron", "is not the model", "checkpoint sha256"):
        assert said in text
    _refused(*arguments, said="exists already; add --force")
    assert _invoke(*arguments, "--force").exit_code == 1
    _refused(*arguments[:-1], tmp_path / "missing" / "page.html", said="does not exist")
    page = tmp_path / "compare.html"
    assert _invoke("compare", trace_file, trace_file, "--graph", graph_file, "--html", page).exit_code == 0
    assert "EQUAL" in page.read_text(encoding="utf-8")


def test_compare_names_tokens_and_causes(checkpoint: Path, trace_file: Path, graph_file: Path, tmp_path: Path) -> None:
    trace = Trace.load(trace_file)
    trace.spikes["block00_qkv_neuron"][2, 0, 2, 5] ^= 1
    broken = trace.save(tmp_path / "broken.npz")
    arguments = ("compare", trace_file, broken, "--graph", graph_file, "--tokenizer", checkpoint)
    found = _json(*arguments, exit_code=1)
    assert found["first_divergence"]["token_text"] == "warm"
    assert found["evidence"]["cause"] == "b"
    assert found["evidence"]["tokens"] == ["[CLS]", "a", "warm", "film", ".", "[SEP]"]
    said = " ".join(_invoke(*arguments).stdout.split())
    assert "token 2 “warm”" in said
    assert _json("compare", trace_file, broken, exit_code=1)["evidence"]["cause"] is None


def test_check_passes_for_every_sound_runner(checkpoint: Path) -> None:
    for runner in ("torch", "reference"):
        found = _json("check", checkpoint, "--runner", runner, "--text", *TEXTS)
        assert found["passed"] is True
        assert {check["check"]: check["passed"] for check in found["checks"]} == dict.fromkeys(
            ("batch", "padding", "order", "repeat", "reset", "prefix"), True
        )
    result = _invoke("check", checkpoint, "--check", "batch", "order", "--text", *TEXTS)
    assert result.exit_code == 0
    assert "PASSED reference at float64, 3 sentences" in result.stdout


@lava
def test_check_passes_on_lava(checkpoint: Path) -> None:
    found = _json("check", checkpoint, "--runner", "lava:network", "--check", "repeat", "reset", "--text", *TEXTS[:2])
    assert found["passed"] is True


def test_check_says_what_matters_that_must_not(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from export.execution import NodeExecution

    monkeypatch.setattr(NodeExecution, "reset", lambda self: None)
    arguments = ("check", checkpoint, "--check", "repeat", "--text", "good", "film")
    found = _json(*arguments, exit_code=1)
    assert [check["passed"] for check in found["checks"]] == [False]
    result = _invoke(*arguments)
    assert result.exit_code == 1
    assert "FAILED reference at float64" in result.stdout


def test_bad_use_ends_with_a_reason(checkpoint: Path, trace_file: Path, tmp_path: Path) -> None:
    verify = ("verify", checkpoint, "--text", "good")
    _refused(*verify, "--against", "lava:nonsense", said="'nonsense' is not known")
    _refused(*verify, "--against", "reference:block", said="'block' is not known")
    _refused(*verify, "--against", tmp_path / "missing.npz", said="no such file")
    _refused(*verify, *REFERENCE, "--jobs", "0", said="--jobs")
    _refused(
        *verify, "--precision", "integer", "--expected", "torch", *REFERENCE, said="torch computes in floating point"
    )
    _refused(*verify, *REFERENCE, "--calibration", "sst2", said="--calibration is for --precision integer")
    _refused("check", checkpoint, "--runner", trace_file, said="is a recorded trace")
    _refused("check", checkpoint, "--text", "good", said="at least two")
    _refused("check", checkpoint, "--check", "nonsense", said="is not one of batch")
    _refused("check", checkpoint, "--text", *["good"] * 17, said="more than the checks run")
