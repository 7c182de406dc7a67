"""The promise of ``benchmarks/unchanged.py``: no value of a job changes unseen, and what is skipped is counted.

No job runs here: both sides are written by hand, as a job writes them.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest

REPOSITORY = Path(__file__).parents[2]
JOB = "conformance"
ANSWER = {"exit code": 0, "answer": {"nodes": [{"node": "a", "rate": 0.25}, {"node": "b", "rate": 0.5}], "equal": True}}
POTENTIALS = np.linspace(-1, 1, 24).reshape(2, 3, 4)


@pytest.fixture
def unchanged(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    return importlib.import_module("unchanged")


def _save(unchanged: ModuleType, folder: Path, answer: Any = ANSWER, **arrays: np.ndarray) -> Path:
    record = unchanged.unchanged_jobs.Record()
    record.value("verify", answer)
    for name, value in {"potentials": POTENTIALS, **arrays}.items():
        record.array(f"trace/{name}", value)
    record.save(folder, JOB)
    return folder


def _compared(unchanged: ModuleType, tmp_path: Path, answer: Any = ANSWER, **arrays: np.ndarray) -> Any:
    """Compare what `_save` writes by itself with what it writes of these."""
    folders = _save(unchanged, tmp_path / "before"), _save(unchanged, tmp_path / "after", answer, **arrays)
    return unchanged.compare(*(unchanged.Found.read(folder, JOB) for folder in folders))


def _with(path: str, value: Any) -> Any:
    answer = json.loads(json.dumps(ANSWER))
    *keys, last = path.split("/")
    inside = answer
    for key in keys:
        inside = inside[int(key) if key.isdigit() else key]
    inside[last] = value
    return answer


def test_what_is_equal_is_equal_and_counted(unchanged: ModuleType, tmp_path: Path) -> None:
    verdict = _compared(unchanged, tmp_path)
    assert verdict.differences == []
    assert (verdict.values, verdict.skipped) == (24 + 6, 0)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("answer/nodes/1/rate", 0.5000000000000001, "0.5 before, 0.5000000000000001 now"),
        ("answer/nodes/1/node", "c", "'b' before, 'c' now"),
        ("answer/equal", 1, "True before, 1 now"),
        ("exit code", 1, "0 before, 1 now"),
        ("answer/nodes/0/more", None, "missing before, None now"),
    ],
)
def test_a_changed_value_of_json_is_found(
    path: str, value: Any, said: str, unchanged: ModuleType, tmp_path: Path
) -> None:
    assert _compared(unchanged, tmp_path, _with(path, value)).differences == [f"verify/{path}: {said}"]


def test_a_list_that_ends_earlier_is_found(unchanged: ModuleType, tmp_path: Path) -> None:
    differences = _compared(unchanged, tmp_path, _with("answer/nodes", ANSWER["answer"]["nodes"][:1])).differences
    assert differences == [
        "verify/answer/nodes/1/node: 'b' before, missing now",
        "verify/answer/nodes/1/rate: 0.5 before, missing now",
    ]


def test_one_bit_of_one_number_is_found_where_it_is(unchanged: ModuleType, tmp_path: Path) -> None:
    planted = POTENTIALS.copy()
    planted[1, 2, 0] = np.nextafter(planted[1, 2, 0], 2)
    (said,) = _compared(unchanged, tmp_path, potentials=planted).differences
    assert said.startswith("trace/potentials[1, 2, 0]: ")
    assert said.endswith("; 1 of 24 numbers differ")
    assert repr(planted[1, 2, 0]) in said
    assert repr(POTENTIALS[1, 2, 0]) in said


@pytest.mark.parametrize(
    "planted",
    [POTENTIALS.astype(np.float32), POTENTIALS[:1], POTENTIALS.reshape(3, 2, 4), POTENTIALS.astype(">f8")],
    ids=["type", "shorter", "shape", "byte order"],
)
def test_another_type_or_shape_is_found(planted: np.ndarray, unchanged: ModuleType, tmp_path: Path) -> None:
    (said,) = _compared(unchanged, tmp_path, potentials=planted).differences
    assert said == f"trace/potentials: float64 of shape (2, 3, 4) before, {planted.dtype} of shape {planted.shape} now"


def test_zeros_of_two_signs_differ_and_a_nan_is_itself(unchanged: ModuleType) -> None:
    assert unchanged.array_difference(np.array([0.0]), np.array([-0.0])) is not None
    assert unchanged.value_difference(0.0, -0.0) is not None
    assert unchanged.array_difference(np.array([np.nan]), np.array([np.nan])) is None
    assert unchanged.value_difference(float("nan"), float("nan")) is None
    assert unchanged.array_difference(np.array(3), np.array(4)) is not None, "without axes"
    assert unchanged.array_difference(np.empty((2, 0)), np.empty((2, 0))) is None


def test_an_array_that_is_new_or_gone_is_found(unchanged: ModuleType, tmp_path: Path) -> None:
    (said,) = _compared(unchanged, tmp_path, spikes=np.ones(3, bool)).differences
    assert said == "trace/spikes: missing before, bool of shape (3,) now"


def test_only_what_is_volatile_is_skipped(unchanged: ModuleType, tmp_path: Path) -> None:
    record = {"versions": {"python": "3.11"}, "command": "spikebert", "seconds": {"a": 0.5}, "checkpoint_sha256": "c"}
    same = {**ANSWER, "answer": {**ANSWER["answer"], **record}}
    other = {"versions": {"python": "3.12"}, "command": "pytest", "seconds": {"a": 0.25}, "checkpoint_sha256": "d"}
    found = [
        dict(unchanged.leaves({"verify": {**same, "answer": {**same["answer"], **said}}})) for said in (record, other)
    ]
    verdict = unchanged.compare(*(unchanged.Found(values, {}) for values in found))
    assert verdict.differences == ["verify/answer/checkpoint_sha256: 'c' before, 'd' now"]
    assert (verdict.values, verdict.skipped) == (7, 3)
    assert not unchanged.is_volatile("energy/answer/estimates/loihi2/timing/seconds"), "computed, not measured"


def test_a_name_that_was_changed_on_purpose_is_no_difference(
    unchanged: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = {"unit": [1, 2], "operator": "total"}, {"scale": [1, 2], "operator": "sum"}
    found = [unchanged.Found(dict(unchanged.leaves(values)), {}) for values in (before, after)]
    assert len(unchanged.compare(*found).differences) == 5
    monkeypatch.setattr(unchanged, "RENAMED", {"unit": "scale", "total": "sum"})
    assert unchanged.compare(*found).differences == []


def test_files_are_read_without_the_project(unchanged: ModuleType, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")

    def nir(name: str, reset: str) -> Path:
        with h5py.File(tmp_path / name, "w") as file:
            file.create_dataset("node/nodes/a/weight", data=np.eye(2, dtype=np.int8))
            file.create_dataset("node/nodes/a/metadata/neurons", data=json.dumps({"reset": reset}))
        return tmp_path / name

    def scan(name: str, threshold: float) -> Path:
        """Write a constant within a loop within a model, as an ONNX file of a spiking network has it."""
        constant = onnx.helper.make_tensor("threshold", onnx.TensorProto.FLOAT, [1], [threshold])
        inside = onnx.helper.make_graph([onnx.helper.make_node("Constant", [], ["t"], value=constant)], "step", [], [])
        loop = onnx.helper.make_node("Scan", [], ["y"], name="steps", body=inside, num_scan_inputs=1)
        onnx.save(onnx.helper.make_model(onnx.helper.make_graph([loop], "model", [], [])), tmp_path / name)
        return tmp_path / name

    records = []
    for made in ((nir("a.nir", "zero"), scan("a.onnx", 1.0)), (nir("b.nir", "subtract"), scan("b.onnx", 1.5))):
        record = unchanged.unchanged_jobs.Record()
        for path in made:
            record.file(path.suffix, path)
        records.append(unchanged.Found(dict(unchanged.leaves(record.values)), record.arrays))
    differences = unchanged.compare(*records).differences
    assert differences == [
        ".nir/node/nodes/a/metadata/neurons/reset: 'zero' before, 'subtract' now",
        ".onnx/graph/node 0/body/node 0/value[0]: 1.0 before, 1.5 now; 1 of 1 numbers differ",
    ]


def test_a_job_that_fails_on_one_side_is_a_difference(unchanged: ModuleType, tmp_path: Path) -> None:
    jobs = unchanged.unchanged_jobs

    def broken(record: Any) -> None:
        raise KeyError("rules")

    (done,) = jobs.work_off({JOB: jobs.Job("what", broken)}, tmp_path / "after")
    assert done[2] == "KeyError: 'rules'"
    before = unchanged.Found.read(_save(unchanged, tmp_path / "before"), JOB)
    after = unchanged.Found.read(tmp_path / "after", JOB)
    assert unchanged.compare(before, after).differences == ["the job failed now: KeyError: 'rules'"]


def test_packages_of_another_checkout_are_refused(unchanged: ModuleType, tmp_path: Path) -> None:
    unchanged.unchanged_jobs.check_origin(REPOSITORY)
    with pytest.raises(SystemExit, match=r"spikebert is .*, not of"):
        unchanged.unchanged_jobs.check_origin(tmp_path)


@pytest.mark.parametrize("planted", [False, True])
def test_the_command_runs_a_commit_once_and_answers_by_its_exit_code(
    planted: bool,
    unchanged: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ran: list[str] = []

    def run_jobs(checkout: Path, folder: Path, jobs: list[str]) -> None:
        ran.append(checkout.name)
        assert jobs == [JOB]
        _save(unchanged, folder, _with("answer/nodes/1/rate", 0.75 if planted and checkout.name == "new" else 0.5))

    monkeypatch.setattr(unchanged, "run_jobs", run_jobs)
    monkeypatch.setattr(unchanged, "commit_of", lambda checkout: f"{checkout.name:0>40}")
    sides = ["--before", str(tmp_path / "old"), "--after", str(tmp_path / "new")]
    monkeypatch.setattr("sys.argv", ["unchanged.py", *sides, "--only", JOB, "--cache", str(tmp_path / "cache")])
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            unchanged.main()
        assert ended.value.code == int(planted)
    assert ran == ["old", "new", "new"]
    said = capsys.readouterr().out
    assert ("conformance: verify/answer/nodes/1/rate: 0.5 before, 0.75 now" in said) is planted
    assert ("EQUAL: 30 values of 1 jobs" in said) is not planted


def test_what_is_not_committed_is_not_cached(unchanged: ModuleType, tmp_path: Path) -> None:
    assert unchanged.commit_of(tmp_path) is None


def test_every_job_has_a_name_and_an_unknown_one_is_refused(unchanged: ModuleType) -> None:
    every, quick = unchanged.chosen_jobs([], quick=False), unchanged.chosen_jobs([], quick=True)
    assert {"default/lava", "default-loihi/lava", "conformance"} <= set(every)
    assert sum(name.startswith("foreign/") for name in every) > 10
    assert set(quick) < set(every)
    assert not any("lava" in name for name in quick)
    with pytest.raises(SystemExit, match="no job is called nonsense; there are default/nir"):
        unchanged.chosen_jobs(["nonsense"], quick=False)
