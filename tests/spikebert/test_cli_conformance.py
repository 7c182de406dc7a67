"""The promises of ``spikebert conformance``: another implementation's spikes are judged case by case.

The other implementations are ONNX Runtime, which shares no code with the operators once the files are written, and
lines written here from ``docs/nir-extension.md`` alone.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import click.testing
import h5py
import numpy as np
import pytest

from export import read_nir
from export.operators import PreviousStep, Total, all_cases, all_integer_cases, all_operators
from hardware import Trace, open_runner
from spikebert.cli import main


def _invoke(*arguments: Any) -> click.testing.Result:
    result = click.testing.CliRunner().invoke(main, ["conformance", *(str(argument) for argument in arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


def _json(*arguments: Any, exit_code: int = 0) -> dict[str, Any]:
    result = _invoke(*arguments, "--json")
    assert result.exit_code == exit_code, result.output
    return json.loads(result.stdout)


def _refused(*arguments: Any, said: str) -> None:
    result = _invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.stderr.split())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The conformance files; leave them as they are."""
    folder = tmp_path_factory.mktemp("conformance") / "files"
    _json(folder, "--write")
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy to reply in."""
    return Path(shutil.copytree(written, tmp_path / "files"))


def _reply_with_expected(folder: Path) -> None:
    for path in folder.glob("*/*.expected.npz"):
        shutil.copy(path, path.with_name(path.name.replace(".expected", "")))


def _change(path: Path, **changed: np.ndarray) -> None:
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **{**arrays, **changed})


def test_every_operator_has_a_case_in_every_precision_it_has(written: Path) -> None:
    titles = {"float64": all_cases(), "integer": all_integer_cases()}
    for precision, cases in titles.items():
        assert len(list((written / precision).glob("*.expected.npz"))) == len(cases) + 1  # and a whole transformer
    kinds = {kind for kind in all_operators() if kind.__module__.startswith("export.")}
    covered = {type(case.operator) for cases in titles.values() for case in cases}
    assert covered == kinds - {Total, PreviousStep}


def test_onnx_runtime_conforms(folder: Path) -> None:
    pytest.importorskip("onnxruntime")
    for path in folder.glob("*/*.nir"):
        place, precision = path.with_suffix(""), path.parent.name
        with np.load(f"{place}.inputs.npz") as file:
            given = dict(file)
        mask = given.pop("mask")
        (inputs,) = given.values()
        with open_runner(read_nir(path), "onnx", precision, record_membrane_potentials=True) as runner:
            runner.run(inputs, mask).save(f"{place}.npz")
    found = _json(folder)
    assert found["conforms"] is True
    by_case = {case["case"]: case for case in found["cases"]}
    assert {case["status"] for case in by_case.values()} == {"equal"}
    whole = by_case["integer/spiking_transformer"]
    assert min(whole["spikes_compared"], whole["states_compared"], whole["outputs_compared"]) > 10
    assert "CONFORMS" in _invoke(folder).stdout


def _attributes(path: Path) -> dict[str, Any]:
    """Read a marked node's metadata with h5py alone, as any team can."""
    with h5py.File(path, "r") as file:
        metadata = file["node/nodes/node/metadata"]
        return {key: metadata[key][()] for key in metadata}


def _round_shift(x: int, bits: int) -> int:
    return (2 * x + (1 << bits)) >> (bits + 1)


def _integer_layer_norm(token: list[int], given: dict[str, Any]) -> list[int]:
    """docs/nir-extension.md, integer_layer_norm, line by line."""
    groups, found = int(given["groups"]), []
    size = len(token) // groups
    for group in range(groups):
        x = token[group * size : (group + 1) * size]
        total = sum(x)
        radicand = size * sum(v * v for v in x) - total**2 + int(given["integer_eps"][group])
        e = 0
        while not 2**60 <= radicand * 2**e < 2**62:
            e += 2
        z = radicand * 2**e
        p = z >> 54
        r = math.isqrt(2**67 // (2 * p + 1))
        for _ in range(2):
            s = (r * r) >> 30
            r = (r * (3 * 2**30 - (((z >> 30) * s) >> 30))) >> 31
        f = _round_shift(r, 6)
        h = 3 + math.ceil(math.log2(size) / 2)
        for index, value in enumerate(x):
            feature = group * size + index
            n = _round_shift((size * value - total) * 2 ** (e // 2), h)
            normed = _round_shift(n * f, 34 - h)
            y = normed * int(given["weight"][feature]) + int(given["bias"][feature])
            found.append(_round_shift(y, int(given["shift"])))
    return found


def test_a_layer_norm_written_from_the_document_alone_conforms(folder: Path) -> None:
    cases = sorted(folder.glob("integer/integer_layer_norm-*.nir"))
    for path in cases:
        given = _attributes(path)
        with np.load(path.with_suffix(".inputs.npz")) as file:
            x = file["input"]
        rows = [_integer_layer_norm([int(v) for v in token], given) for token in x.reshape(-1, x.shape[-1])]
        np.savez(path.with_suffix(".npz"), outputs=np.array(rows).reshape(x.shape))
    assert len(cases) >= 2
    found = _json(folder, "--only", "integer/integer_layer_norm-*")
    assert [case["status"] for case in found["cases"]] == ["equal"] * len(cases)


def test_a_spike_attention_written_from_the_document_alone_conforms(folder: Path) -> None:
    cases = sorted(folder.glob("*/*spike_attention-*.nir"))
    for path in cases:
        given = _attributes(path)
        heads, size = int(given["num_heads"]), int(given["head_size"])
        scale = 2 ** int(given["shift"]) if "shift" in given else float(given["scale"])
        with np.load(path.with_suffix(".inputs.npz")) as file:
            x, mask = file["input"], file["mask"]
        steps, sentences, tokens, _ = x.shape
        y = np.zeros((steps, sentences, tokens, heads * size), x.dtype)
        for t, b, n, h in np.ndindex(steps, sentences, tokens, heads):
            part = slice(h * size, (h + 1) * size)
            q, k, v = (x[t, b, :, i * heads * size : (i + 1) * heads * size][:, part] for i in range(3))
            y[t, b, n, part] = scale * sum((q[n] @ k[m]) * v[m] for m in range(tokens) if mask[b, m])
        np.savez(path.with_suffix(".npz"), outputs=y)
    assert {path.parent.name for path in cases} == {"float64", "integer"}
    found = _json(folder, "--only", "*/*spike_attention-*")
    assert {case["status"] for case in found["cases"]} == {"equal"}


def test_the_first_divergence_of_each_case_is_named(folder: Path) -> None:
    _reply_with_expected(folder)
    assert _json(folder)["conforms"] is True
    whole, norm = (
        folder / "float64/spiking_transformer.npz",
        folder / "integer/integer_layer_norm-integer_layer_norm.npz",
    )
    with np.load(whole) as file:
        spikes = file["qkv_neuron"].copy()
    spikes[2, 0, 1, 3] ^= 1
    _change(whole, qkv_neuron=spikes)
    with np.load(norm) as file:
        outputs = file["outputs"].copy()
    outputs[1, 0, 0, 2] += 1
    _change(norm, outputs=outputs)
    found = _json(folder, exit_code=1)
    different = {case["case"]: case["first_divergence"] for case in found["cases"] if case["status"] != "equal"}
    assert set(different) == {"float64/spiking_transformer", f"integer/{norm.stem}"}
    place = ("quantity", "node", "time_step", "sample", "token", "feature")
    assert [different["float64/spiking_transformer"][key] for key in place] == ["spike", "qkv_neuron", 2, 0, 1, 3]
    assert [different[f"integer/{norm.stem}"][key] for key in place] == ["output", "output", 1, 0, 0, 2]
    result = _invoke(folder)
    assert result.exit_code == 1
    assert "qkv_neuron, step 2, sample 0, token 1, feature 3: spike" in " ".join(result.stdout.split())
    assert "DOES NOT CONFORM" in result.stdout


def test_a_state_that_flips_no_spike_is_named_in_whole_numbers(folder: Path) -> None:
    _reply_with_expected(folder)
    path = folder / "integer/spiking_transformer.npz"
    with np.load(path) as file:
        states = file["embedding_neuron.membrane_potential"].copy()
    states[0, 0, 0, 0] += 1
    _change(path, **{"embedding_neuron.membrane_potential": states})
    found = _json(folder, "--only", "integer/spiking*", exit_code=1)
    (case,) = found["cases"]
    assert (case["first_divergence"]["quantity"], case["first_divergence"]["node"]) == (
        "membrane_potential",
        "embedding_neuron",
    )


def test_what_is_no_reply_is_said_and_no_answer_is_no(folder: Path, tmp_path: Path) -> None:
    found = _json(folder, exit_code=1)
    assert {case["status"] for case in found["cases"]} == {"missing"}
    (folder / "float64/delay-delay.npz").write_bytes(b"no archive")
    np.savez(folder / "integer/integer_layer_norm-integer_layer_norm.npz", y=np.zeros(3))
    np.savez(folder / "float64/affine-affine_on_spikes.npz", outputs=np.zeros((2, 2)))
    np.savez(folder / "float64/spiking_transformer.npz", qkv_neuron=np.zeros((4, 3, 5, 24), int))
    said = {
        case["case"]: case["detail"] for case in _json(folder, exit_code=1)["cases"] if case["status"] == "unusable"
    }
    assert "is not a trace" in said["float64/delay-delay"]
    assert "embedding_neuron" in said["float64/spiking_transformer"]
    assert "outputs have shape (2, 2)" in said["float64/affine-affine_on_spikes"]
    _refused(tmp_path / "none", said="holds no conformance files")
    _refused(folder, "--only", "float64/nothing", said="no case is called float64/nothing")
    _refused(folder, "--write", said="add --force")
    _refused(tmp_path / "new", "--write", "--only", "x", said="--only is for the check")
    expected = Trace.load(folder / "float64/delay-delay.expected.npz")
    assert expected.outputs is not None
