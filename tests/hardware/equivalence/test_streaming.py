"""The promises of streaming: batches, jobs, kills and resumes change nothing but time; what died is run again."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export import NirFileError, build_graph, write_nir
from export.network import Network, Node
from export.operators import Affine
from hardware.equivalence.evidence import Evidence
from hardware.equivalence.node_by_node import NodeByNode
from hardware.equivalence.streaming import Finding, Pair, ProgressFile, stream_findings
from hardware.errors import RunnerError, TraceMismatchError
from hardware.runners import open_runner
from hardware.runners.recorded_runner import RecordedRunner
from hardware.runners.reference import ReferenceRunner
from hardware.runners.runner import Runner
from hardware.traces.trace import Trace

sys.path.insert(0, str(Path(__file__).parent / "worker_functions"))  # a fresh process imports them by this name
from equivalence_workers import open_and_die, open_from_files

NetworkMaker = Callable[..., Network]
SENTENCES = 9
FAULTY = "block00_output_affine"


def _ids() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    mask = np.arange(8) < rng.integers(1, 9, SENTENCES)[:, None]
    return np.where(mask, rng.integers(1, 20, mask.shape), 0), mask


def _batches(size: int = 2, start: int = 0) -> list[tuple[int, np.ndarray, np.ndarray]]:
    ids, mask = _ids()
    return [(row, ids[row : row + size], mask[row : row + size]) for row in range(start, SENTENCES, size)]


def _faulty(network: Network) -> Network:
    def change(node: Node) -> Node:
        if node.name != FAULTY:
            return node
        assert isinstance(node.operator, Affine)
        return Node(node.name, replace(node.operator, weight=-node.operator.weight), node.sources)

    return replace(network, nodes=tuple(change(node) for node in network.nodes))


def _open(network: Network, precision: str = "float64") -> Runner:
    return open_runner(network, "reference", precision, record_membrane_potentials=True)


def _pair(network: Network, other: Network | None = None, **options: Any) -> Pair:
    return Pair(_open(network), _open(other or network), network, **options)


def _joined(findings: Any) -> Finding:
    found = None
    for part in findings:
        found = part if found is None else found.join(part)
    assert found is not None
    return found


def _plain(found: Finding) -> dict[str, Any]:
    values = json.loads(json.dumps(found.to_dict()))
    for key in ("seconds", "faults"):
        values.pop(key)
    return values


def _without_rates(values: dict[str, Any]) -> dict[str, Any]:
    for node in values["comparison"]["per_node"]:
        for key in ("rate_a", "rate_b"):
            node[key] = round(node[key], 12)
    return values


@pytest.fixture(scope="module")
def network(make_network: NetworkMaker) -> Network:
    return make_network(5, blocks=2)


@pytest.fixture(scope="module")
def files(network: Network, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("graphs")
    return (
        write_nir(folder / "good.nir", build_graph(network)),
        write_nir(folder / "faulty.nir", build_graph(_faulty(network))),
    )


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_size_of_batches_changes_nothing(network: Network, size: int) -> None:
    whole = _joined(stream_findings(lambda: _pair(network, _faulty(network)), _batches(SENTENCES)))
    parts = _joined(stream_findings(lambda: _pair(network, _faulty(network)), _batches(size)))
    assert not whole.comparison.equal
    assert _without_rates(_plain(parts)) == _without_rates(_plain(whole))


def test_a_finding_survives_json(network: Network) -> None:
    by_node = NodeByNode(_faulty(network), _open)
    found = _joined(stream_findings(lambda: _pair(network, _faulty(network), node_by_node=by_node), _batches()))
    assert found.evidence is not None
    assert found.node_by_node is not None
    again = Finding.from_dict(json.loads(json.dumps(found.to_dict())))
    assert again == found


def test_worker_processes_find_the_same(network: Network, files: tuple[Path, Path]) -> None:
    alone = _joined(stream_findings(partial(open_from_files, *files), _batches()))
    together = _joined(stream_findings(partial(open_from_files, *files), _batches(), jobs=2))
    assert _plain(together) == _plain(alone)
    assert together.faults == []


def test_a_killed_worker_is_replaced_and_nothing_is_lost(files: tuple[Path, Path], tmp_path: Path) -> None:
    kill = tmp_path / "kill"
    kill.touch()
    found = _joined(stream_findings(partial(open_from_files, *files, kill, int(_ids()[0][4, 0])), _batches(), jobs=2))
    expected = _joined(stream_findings(partial(open_from_files, *files), _batches()))
    assert not kill.exists()
    assert _plain(found) == _plain(expected)
    (fault,) = found.faults
    assert "died" in fault.cause
    assert fault.first_sample <= 4


def test_what_a_worker_cannot_open_is_told(tmp_path: Path) -> None:
    missing = tmp_path / "missing.nir"
    with pytest.raises(NirFileError, match="no such file"):
        list(stream_findings(partial(open_from_files, missing, missing), _batches(), jobs=2))


def test_workers_that_always_die_end_in_an_error_that_names_the_sentences(tmp_path: Path) -> None:
    with pytest.raises(RunnerError, match="died 3 times on sentences 0 to 1"):
        list(stream_findings(partial(open_and_die, tmp_path), _batches(), jobs=2))


def test_what_a_runner_mended_is_reported_with_its_sentences(network: Network) -> None:
    """Lava builds a network again whose process was killed, and lists it in the trace; the second batch shows it."""

    class Mending(ReferenceRunner):
        def run(self, inputs: Any, token_mask: Any = None) -> Trace:
            trace = super().run(inputs, token_mask)
            if (np.asarray(inputs)[0] == _ids()[0][2]).all():
                fault = {
                    "worker": 0,
                    "process": "block00",
                    "samples": [1],
                    "attempt": 1,
                    "message": "block00 was killed",
                }
                trace.metadata["faults"] = [fault]
            return trace

    mending = Mending(network, record_membrane_potentials=True)
    found = _joined(stream_findings(lambda: Pair(_open(network), mending, network), _batches()))
    assert found.comparison.equal
    assert found.comparison.samples == SENTENCES
    assert [(fault.first_sample, fault.samples, fault.cause) for fault in found.faults] == [
        (3, 1, "block00 was killed")
    ]


def test_progress_is_kept_and_read_back(network: Network, tmp_path: Path) -> None:
    file = ProgressFile(tmp_path / "progress.json", {"precision": "float64", "nodes": ()})
    assert file.read() is None
    found = _pair(network, _faulty(network)).run(*_batches()[0])
    file.write(found)
    assert file.read() == found
    assert os.listdir(tmp_path) == ["progress.json"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is not a progress file"),
        ("{}", "is not a progress file"),
        ('{"format": "spikebert-progress"}', "is not a progress file"),
        ("[1]", "is not a progress file"),
    ],
)
def test_another_file_is_no_progress(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    path.write_text(content)
    with pytest.raises(RunnerError, match=said):
        ProgressFile(path, {}).read()
    assert path.read_text() == content


def test_progress_of_another_job_is_refused(network: Network, tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    ProgressFile(path, {"precision": "float64"}).write(_pair(network).run(*_batches()[0]))
    with pytest.raises(RunnerError, match="its precision is float64, here it is float32"):
        ProgressFile(path, {"precision": "float32"}).read()
    with pytest.raises(RunnerError, match="cannot be written"):
        ProgressFile(tmp_path / "missing" / "p.json", {}).write(_pair(network).run(*_batches()[0]))


def test_only_the_nodes_asked_for_are_compared(network: Network) -> None:
    pair = _pair(network, _faulty(network), nodes=("block00_qkv*", "embedding_neuron"))
    found = pair.run(*_batches()[0])
    assert [node.node for node in found.comparison.per_node] == ["embedding_neuron", "block00_qkv_neuron"]
    assert found.comparison.equal
    assert found.comparison.logit_difference == 0
    found = _pair(network, _faulty(network), nodes=("block00_output_neuron",)).run(*_batches()[0])
    assert found.comparison.first_divergence is not None
    assert found.evidence is not None
    assert found.evidence.cause == "b"
    with pytest.raises(TraceMismatchError, match="no node is called nonsense"):
        _pair(network, nodes=("nonsense",)).run(*_batches()[0])


def test_node_by_node_shows_the_faulty_node_alone(network: Network) -> None:
    faulty = _faulty(network)
    found = _joined(
        stream_findings(lambda: _pair(network, faulty, node_by_node=NodeByNode(faulty, _open)), _batches(3))
    )
    assert sum(bool(node.different) for node in found.comparison.per_node) > 1
    assert found.node_by_node is not None
    assert [node.node for node in found.node_by_node.per_node if node.different] == ["block00_output_neuron"]
    explanation = found.node_by_node_explanation
    assert explanation is not None
    assert explanation.unexplained > 0
    assert found.left_out == []


def test_node_by_node_of_the_same_graph_is_the_free_run(network: Network) -> None:
    ids, mask = _ids()
    free = _open(network).run(ids, mask)
    with NodeByNode(network, _open) as by_node:
        again = by_node.run(free)
    assert list(again.spikes) == list(free.spikes)
    for name, spikes in free.spikes.items():
        np.testing.assert_array_equal(again.spikes[name], spikes)
        np.testing.assert_array_equal(again.membrane_potentials[name], free.membrane_potentials[name])
    np.testing.assert_array_equal(again.logits, free.logits)


def test_evidence_shows_the_neuron_its_neighbours_and_what_produced_it(network: Network) -> None:
    found = _pair(network, _faulty(network)).run(*_batches(SENTENCES)[0])
    first, evidence = found.comparison.first_divergence, found.evidence
    assert first is not None
    assert isinstance(evidence, Evidence)
    assert (evidence.cause, evidence.same_inputs) == ("b", True)
    ids, mask = _ids()
    a, b = (_open(graph).run(ids, mask) for graph in (network, _faulty(network)))
    place = (slice(None), first.sample, first.token, first.feature)
    for trace, side in ((a, evidence.side_a), (b, evidence.side_b)):
        assert side.spikes == trace.spikes[first.node][place].tolist()
        assert side.potentials == trace.membrane_potentials[first.node][place].tolist()
        row = first.feature - evidence.first_feature
        assert [step[row] for step in side.raster] == side.spikes
    assert evidence.side_a.expected is not None
    assert evidence.side_a.potentials is not None
    step = first.time_step or 0
    assert evidence.side_a.expected[step] == pytest.approx(evidence.side_a.potentials[step], abs=1e-12)
    if evidence.inputs_in_all == len(evidence.inputs):
        total = sum(entry.contribution for entry in evidence.inputs)
        assert total == pytest.approx(evidence.side_a.potentials[step], abs=1e-12)


def test_a_recorded_trace_stands_in_for_a_runner(network: Network, tmp_path: Path) -> None:
    ids, mask = _ids()
    recorded = Trace.load(_open(network).run(ids, mask).save(tmp_path / "trace.npz"))
    found = _joined(stream_findings(lambda: Pair(_open(network), RecordedRunner(recorded), network), _batches(4)))
    assert found.comparison.equal
    assert found.comparison.samples == SENTENCES
    with pytest.raises(TraceMismatchError, match="holds 9 sentences; sentence 9"):
        RecordedRunner(recorded, "t.npz").run(np.vstack([ids, ids[:1]]), np.vstack([mask, mask[:1]]))
    other = ids.copy()
    other[3, 0] += 1
    with pytest.raises(TraceMismatchError, match="sentence 3 has other token ids"):
        RecordedRunner(recorded).run(other, mask)
    with pytest.raises(TraceMismatchError, match="other real tokens"):
        RecordedRunner(recorded).run(ids, np.ones_like(mask))
    with pytest.raises(TraceMismatchError, match="tokens there, 2 here"):
        RecordedRunner(recorded).run(ids[:, :2], mask[:, :2])
