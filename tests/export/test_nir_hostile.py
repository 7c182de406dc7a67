"""The promise of `read_nir`: a file from anywhere is a sound graph, or a typed error that names the file and the node.

Each file here is a good one with one thing wrong in it, put there with h5py, which the exporter never could.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export import GraphError, NirFileError, UnsupportedOperatorError, build_graph, read_nir, to_nir, write_nir
from export import nir_file as nir_file_module
from export.network import Network, NetworkBuilder
from export.nir_file import read_network
from export.operators import Affine, LayerNorm, LeakyIntegrateAndFire

TEXT = h5py.string_dtype()


@pytest.fixture(scope="session")
def good_file(tmp_path_factory: pytest.TempPathFactory, make_model: Callable) -> Path:
    """A SpikeBERT of the preset `paper`: every kind of node but a hard reset."""
    path = tmp_path_factory.mktemp("nir") / "good.nir"
    return write_nir(path, to_nir(make_model()))


@pytest.fixture(scope="session")
def hard_reset_file(tmp_path_factory: pytest.TempPathFactory, make_model: Callable) -> Path:
    """A SpikeBERT of the preset `loihi`, whose neurons are ``nir.LIF``."""
    path = tmp_path_factory.mktemp("nir") / "hard.nir"
    return write_nir(path, to_nir(make_model(neuron="loihi")))


@pytest.fixture
def bad_file(good_file: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(good_file, tmp_path / "bad.nir"))


def _replace(group: h5py.Group, name: str, value: Any, **options: Any) -> None:
    if name in group:
        del group[name]
    group.create_dataset(name, data=value, **options)


def _refused(path: Path, kind: type[Exception], *said: str) -> str:
    """Return what `read_nir` said when it refused the file with exactly this kind of error."""
    with pytest.raises((NirFileError, GraphError)) as caught:
        read_nir(path)
    assert type(caught.value) is kind, caught.value
    for fragment in (str(path), *said):
        assert fragment in str(caught.value)
    return str(caught.value)


def test_the_good_files_are_good(good_file: Path, hard_reset_file: Path) -> None:
    read_nir(good_file)
    read_nir(hard_reset_file)


# ---------------------------------------------------------------------------------------------------------------------
# No NIR file at all.


def test_a_missing_file(tmp_path: Path) -> None:
    _refused(tmp_path / "missing.nir", NirFileError, "no such file")


def test_a_folder(tmp_path: Path) -> None:
    _refused(tmp_path, NirFileError, "not a regular file")


@pytest.mark.parametrize("content", [b"", b"not HDF5 but text\n" * 50, b"\x89HDF\r\n\x1a\n" + bytes(500)])
def test_a_file_of_another_kind(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "text.nir").write_bytes(content)
    _refused(tmp_path / "text.nir", NirFileError, "is not a readable HDF5 file")


def test_a_file_cut_off_anywhere(good_file: Path, tmp_path: Path) -> None:
    whole = good_file.read_bytes()
    for end in np.linspace(0, len(whole) - 1, 150).astype(int):
        (tmp_path / "cut.nir").write_bytes(whole[:end])
        _refused(tmp_path / "cut.nir", NirFileError)


def test_hdf5_that_is_not_nir(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.nir", "w") as file:
        file["temperature"] = [1.0, 2.0]
    _refused(tmp_path / "other.nir", NirFileError, "no group 'node'")
    with h5py.File(tmp_path / "other.nir", "w") as file:
        file["node"] = [1.0, 2.0]
    _refused(tmp_path / "other.nir", NirFileError, "no group 'node'")


def test_a_single_node_is_no_graph(tmp_path: Path) -> None:
    nir.write(tmp_path / "single.nir", nir.Linear(np.eye(2)))
    _refused(tmp_path / "single.nir", NirFileError, "single Linear node")


# ---------------------------------------------------------------------------------------------------------------------
# Files that would read too much, or from somewhere else.


def test_an_array_that_the_file_cannot_hold(bad_file: Path) -> None:
    with h5py.File(bad_file, "r+") as file:
        del file["node/nodes/classifier/weight"]
        file["node/nodes/classifier"].create_dataset("weight", shape=(2**30, 2**30), dtype="f4", chunks=(64, 64))
    assert bad_file.stat().st_size < 1_000_000
    _refused(bad_file, NirFileError, "node/nodes/classifier/weight declares shape (1073741824, 1073741824)")


def test_many_arrays_that_the_file_cannot_hold_together(bad_file: Path) -> None:
    size = bad_file.stat().st_size
    with h5py.File(bad_file, "r+") as file:
        for index in range(30):  # each by itself could be real
            file["node/nodes/classifier"].create_dataset(f"extra{index}", shape=(100 * size,), dtype="i1", chunks=(64,))
    _refused(bad_file, NirFileError, "declares shape")


def test_an_array_that_was_never_written(bad_file: Path) -> None:
    with h5py.File(bad_file, "r+") as file:
        del file["node/nodes/classifier/weight"]
        file["node/nodes/classifier"].create_dataset("weight", shape=(3, 8), dtype="f4", chunks=(3, 8))
    _refused(bad_file, NirFileError, "node/nodes/classifier/weight declares shape (3, 8), 96 bytes, of which 0")


def test_a_compressed_file_is_read(bad_file: Path, good_file: Path) -> None:
    nir.write(bad_file, read_nir(good_file), compression="gzip")
    read_nir(bad_file)


@pytest.mark.parametrize("where", ["node", "node/nodes/token_mean"])
def test_a_file_that_switches_the_checks_off(bad_file: Path, where: str) -> None:
    with h5py.File(bad_file, "r+") as file:
        file[where]["type_check"] = False
    _refused(bad_file, NirFileError, "has an entry 'type_check'")


def test_a_named_type_among_the_nodes(bad_file: Path) -> None:
    with h5py.File(bad_file, "r+") as file:
        file["node/nodes/classifier/extra"] = np.dtype("f4")
    _refused(bad_file, NirFileError, "node/nodes/classifier/extra is neither a group nor an array")


def test_links_to_elsewhere(bad_file: Path, good_file: Path) -> None:
    elsewhere = h5py.ExternalLink(str(good_file), "/node/nodes/classifier/weight")
    for link in (h5py.SoftLink("/node/nodes/embedding/weight"), elsewhere):
        with h5py.File(bad_file, "r+") as file:
            del file["node/nodes/classifier/weight"]
            file["node/nodes/classifier/weight"] = link
        _refused(bad_file, NirFileError, "node/nodes/classifier/weight is a link")


def test_a_whole_graph_that_is_a_link(tmp_path: Path, good_file: Path) -> None:
    with h5py.File(tmp_path / "link.nir", "w") as file:
        file["node"] = h5py.ExternalLink(str(good_file), "/node")
    _refused(tmp_path / "link.nir", NirFileError, "no group 'node'")


def test_arrays_kept_in_other_files(bad_file: Path, good_file: Path) -> None:
    with h5py.File(bad_file, "r+") as file:
        weight = file["node/nodes/classifier/weight"]
        shape, dtype = weight.shape, weight.dtype
        del file["node/nodes/classifier/weight"]
        file["node/nodes/classifier"].create_dataset(
            "weight", shape, dtype, external=[(str(good_file), 0, h5py.h5f.UNLIMITED)]
        )
    _refused(bad_file, NirFileError, "node/nodes/classifier/weight takes its values from another file")
    layout = h5py.VirtualLayout(shape, dtype)
    layout[:] = h5py.VirtualSource(str(good_file), "node/nodes/classifier/weight", shape)
    with h5py.File(bad_file, "r+") as file:
        del file["node/nodes/classifier/weight"]
        file["node/nodes/classifier"].create_virtual_dataset("weight", layout)
    _refused(bad_file, NirFileError, "node/nodes/classifier/weight takes its values from another file")


def test_a_group_inside_itself(bad_file: Path) -> None:
    with h5py.File(bad_file, "r+") as file:
        file["node/nodes/token_mean/nodes/again"] = file["node/nodes/token_mean"]
    _refused(bad_file, NirFileError, "nested deeper than 16 levels")


def test_a_group_many_times_inside_itself(bad_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nir_file_module, "MAX_OBJECTS", 5000)
    with h5py.File(bad_file, "r+") as file:
        for index in range(8):  # 8 ** 16 objects
            file[f"node/nodes/token_mean/nodes/again{index}"] = file["node/nodes/token_mean"]
    _refused(bad_file, NirFileError)


def test_values_that_are_neither_numbers_nor_text(bad_file: Path) -> None:
    kinds = {"object": h5py.vlen_dtype(np.float64), "[('a'": np.dtype([("a", "f4")]), "object ": h5py.ref_dtype}
    for said, kind in kinds.items():
        with h5py.File(bad_file, "r+") as file:
            del file["node/nodes/classifier/bias"]
            file["node/nodes/classifier"].create_dataset("bias", (3,), kind)
        _refused(bad_file, NirFileError, "node/nodes/classifier/bias holds " + said.strip())


def test_no_value_at_all(bad_file: Path) -> None:
    with h5py.File(bad_file, "r+") as file:
        _replace(file["node/nodes/classifier"], "bias", h5py.Empty("f4"))
    _refused(bad_file, NirFileError, "node/nodes/classifier/bias holds no value")


# ---------------------------------------------------------------------------------------------------------------------
# Graphs that mean nothing.

Change = Callable[[h5py.Group], None]


def _weights(node: str, name: str, change: Callable[[np.ndarray], Any]) -> Change:
    return lambda graph: _replace(graph[f"nodes/{node}"], name, change(graph[f"nodes/{node}/{name}"][()]))


def _one_wrong(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array.flat[array.size // 2] = value
        return array

    return change


def _metadata(node: str, name: str, value: Any) -> Change:
    return lambda graph: _replace(graph[f"nodes/{node}/metadata" if node else "metadata"], name, value)


def _no_metadata(node: str, name: str) -> Change:
    def change(graph: h5py.Group) -> None:
        del graph[f"nodes/{node}/metadata/{name}"]

    return change


def _edges(change: Callable[[list[tuple[str, str]]], list[tuple[str, str]]], where: str = "") -> Change:
    def apply(graph: h5py.Group) -> None:
        group = graph[where] if where else graph
        edges = [(a.decode(), b.decode()) for a, b in group["edges"][()]]
        _replace(group, "edges", change(edges), dtype=TEXT)

    return apply


def _node(name: str, node: nir.NIRNode) -> Change:
    """Put another node in place of `name`, or beside the others."""

    def change(graph: h5py.Group) -> None:
        with tempfile.TemporaryDirectory() as folder:
            nir.write(Path(folder) / "node.nir", node, compression=None)
            with h5py.File(Path(folder) / "node.nir") as file:
                if name in graph["nodes"]:
                    del graph[f"nodes/{name}"]
                file.copy("node", graph["nodes"], name)

    return change


def _both(*changes: Change) -> Change:
    def change(graph: h5py.Group) -> None:
        for part in changes:
            part(graph)

    return change


def _without(*wanted: tuple[str, str]) -> Change:
    return _edges(lambda edges: [edge for edge in edges if edge not in wanted])


def _delete(path: str) -> Change:
    def change(graph: h5py.Group) -> None:
        del graph[path]

    return change


ONES = np.ones(8)
NEURON = "block00_output_neuron"
CUBA = nir.CubaLI(ONES, ONES, ONES, ONES * 0)
GRAPHS: dict[str, tuple[Change, type[Exception], tuple[str, ...]]] = {
    # what a node holds
    "a weight that is not a number": (
        _weights("classifier", "weight", _one_wrong(np.nan)),
        GraphError,
        ("classifier: weight[1, 4] is nan",),
    ),
    "an infinite bias": (
        _weights("classifier", "bias", _one_wrong(np.inf)),
        GraphError,
        ("classifier: bias[1] is inf",),
    ),
    "a norm weight that is not a number": (
        _metadata("final_norm", "weight", np.array([1, np.nan] * 4)),
        GraphError,
        ("final_norm: weight[1] is nan",),
    ),
    "a time constant that is not a number": (
        _weights(f"{NEURON}/nodes/membrane", "tau", _one_wrong(np.nan)),
        GraphError,
        (f"{NEURON}: tau[4] is nan",),
    ),
    "text for a weight": (
        _weights("classifier", "weight", lambda w: w.astype("S8")),
        GraphError,
        ("classifier: weight holds |S8, not numbers",),
    ),
    "one column too many": (
        _weights("classifier", "weight", lambda w: np.c_[w, w[:, :1]]),
        NirFileError,
        ("classifier",),
    ),
    "a bias for other features": (
        _weights("classifier", "bias", lambda b: b[:2]),
        GraphError,
        ("classifier: bias has shape (2,)",),
    ),
    "a weight without a row": (
        _weights("classifier", "weight", lambda w: w[:0]),
        NirFileError,
        ("classifier",),
    ),
    "a missing weight": (_delete("nodes/classifier/weight"), NirFileError, ("node classifier",)),
    "a missing type": (_delete("nodes/classifier/type"), NirFileError, ("classifier: has no type",)),
    "a time constant shorter than a step": (
        _weights(f"{NEURON}/nodes/membrane", "tau", lambda tau: tau / 100),
        GraphError,
        (f"{NEURON}: a time constant",),
    ),
    "a negative time constant": (
        _weights(f"{NEURON}/nodes/membrane", "tau", lambda tau: -tau),
        GraphError,
        (f"{NEURON}: a time constant",),
    ),
    "an input gain that is neither form": (
        _weights(f"{NEURON}/nodes/membrane", "r", lambda r: r * (1 + 1e-9)),
        UnsupportedOperatorError,
        (f"{NEURON}: r must be",),
    ),
    "a leak towards another potential": (
        _weights(f"{NEURON}/nodes/membrane", "v_leak", lambda v: v + 0.1),
        UnsupportedOperatorError,
        (f"{NEURON}: v_leak is not 0",),
    ),
    "a reset by another amount": (
        _weights(f"{NEURON}/nodes/reset", "scale", _one_wrong(-0.5)),
        UnsupportedOperatorError,
        (f"{NEURON}: the reset of neuron 4 is scaled by -0.5 at a threshold of 1.0",),
    ),
    # edges
    "a missing edge": (_without(("embedding", "embedding_neuron")), GraphError, ("embedding_neuron",)),
    "a missing edge to the output": (_without(("classifier", "output")), GraphError, ("output",)),
    "no edges": (_edges(lambda _: []), GraphError, ("21 Input nodes",)),
    "an edge to nowhere": (
        _edges(lambda edges: [*edges, ("classifier", "nowhere")]),
        NirFileError,
        ("'nowhere'",),
    ),
    "an edge from nowhere": (
        _edges(lambda edges: [*edges, ("nowhere", "classifier")]),
        NirFileError,
        ("'nowhere'",),
    ),
    "an edge twice": (
        _edges(lambda edges: [*edges, ("token_mean", "classifier")]),
        NirFileError,
        ("'token_mean'", "'classifier'"),
    ),
    "a cycle": (
        _edges(lambda edges: [*edges, ("block00_output_neuron", "block00_qkv_affine")]),
        UnsupportedOperatorError,
        ("cycle", "block00_output_neuron"),
    ),
    "edges between widths that differ": (
        _edges(lambda edges: [*edges, ("block00_intermediate_neuron", "final_norm")]),
        NirFileError,
        ("block00_intermediate_neuron", "final_norm"),
    ),
    "a neuron without its reset": (
        _edges(lambda edges: [e for e in edges if e != ("reset", "membrane")], f"nodes/{NEURON}"),
        NirFileError,
        (NEURON,),
    ),
    "a neuron that resets its own spikes": (
        _edges(lambda edges: [*edges, ("reset", "output")], f"nodes/{NEURON}"),
        UnsupportedOperatorError,
        (f"{NEURON}: NIRGraph has no operator here",),
    ),
    "an edge past the embedding": (
        _edges(lambda edges: [*edges, ("input", "embedding_neuron")]),
        NirFileError,
        ("embedding_neuron",),
    ),
    "tokens added to their mean": (
        _edges(lambda edges: [*edges, ("final_norm", "classifier")]),
        GraphError,
        ("classifier: adds token_mean to final_norm",),
    ),
    # inputs, outputs, nodes
    "two inputs": (
        _both(
            _node("second", nir.Input({"input": np.array([8])})),
            _edges(lambda edges: [*edges, ("second", "final_norm")]),
        ),
        GraphError,
        ("2 Input nodes", "second"),
    ),
    "two outputs": (
        _both(
            _node("second", nir.Output({"output": np.array([3])})),
            _edges(lambda edges: [*edges, ("classifier", "second")]),
        ),
        GraphError,
        ("2 Output nodes", "second"),
    ),
    "an input of no features": (
        _weights("input", "shape", lambda shape: shape * 0),
        NirFileError,
        (),
    ),
    "a fractional shape": (
        _both(
            _weights("output", "shape", lambda shape: shape + 0.0),
        ),
        GraphError,
        ("output: has no shape",),
    ),
    "a shape with tokens in it": (
        _both(
            _weights("input", "shape", lambda shape: np.array([4, *shape])),
        ),
        NirFileError,
        ("input",),
    ),
    "a node NIR knows and we do not": (
        _node(NEURON, CUBA),
        UnsupportedOperatorError,
        (f"{NEURON}: CubaLI has no operator here",),
    ),
    "a node NIR does not know": (
        _weights("classifier", "type", lambda _: "Softmax"),
        NirFileError,
        ("classifier: type 'Softmax' is no NIR node",),
    ),
    "a node inside a node that NIR does not know": (
        _weights("final_norm/nodes/poison_up", "type", lambda _: "Softmax"),
        NirFileError,
        ("final_norm/poison_up: type 'Softmax'",),
    ),
    "a number for a type": (
        _weights("classifier", "type", lambda _: 3),
        NirFileError,
        ("classifier: has no type",),
    ),
    "an array for a node": (
        lambda graph: _replace(graph["nodes"], "classifier", np.ones(3)),
        NirFileError,
        ("classifier: is an array, not a node",),
    ),
    "nodes that are an array": (lambda graph: _replace(graph, "nodes", np.ones(3)), NirFileError, ("without nodes",)),
    # marks
    "an unknown operator": (
        _metadata("final_norm", "op", "softmax"),
        UnsupportedOperatorError,
        ("final_norm: operator 'softmax' is not known",),
    ),
    "an operator from the future": (
        _metadata("final_norm", "op_version", 2),
        UnsupportedOperatorError,
        ("final_norm: layer_norm version 2",),
    ),
    "a standard neuron from the future": (
        _metadata(NEURON, "op_version", 2),
        UnsupportedOperatorError,
        (f"{NEURON}: leaky_integrate_and_fire version 2",),
    ),
    "a threshold from the future": (
        _metadata("embedding_neuron", "op_version", 2),
        UnsupportedOperatorError,
        ("embedding_neuron: heaviside version 2",),
    ),
    "a mark that is taken away": (
        _no_metadata("final_norm", "standard"),
        UnsupportedOperatorError,
        ("final_norm: NIRGraph has no operator here",),
    ),
    "a mark that is no truth value": (
        _metadata("final_norm", "standard", np.array([0, 0])),
        GraphError,
        ("final_norm: metadata 'standard'",),
    ),
    "a standard neuron marked as not standard": (
        _metadata(NEURON, "standard", False),
        GraphError,
        (f"{NEURON}: metadata say it is not standard",),
    ),
    "a neuron that says it is a norm": (
        _metadata(NEURON, "op", "layer_norm"),
        GraphError,
        (f"{NEURON}: metadata say it is a layer_norm",),
    ),
    "a marked node of other widths than its ports": (
        _both(
            _metadata("final_norm", "weight", np.ones(4)),
            _metadata("final_norm", "bias", np.ones(4)),
        ),
        GraphError,
        ("final_norm: its metadata describe 4 -> 4 features, its ports 8 -> 8",),
    ),
    "groups that do not divide": (_metadata("final_norm", "groups", 3), GraphError, ("final_norm: 8 features", "3")),
    "no groups": (_metadata("final_norm", "groups", 0), GraphError, ("final_norm: 8 features",)),
    "a negative eps": (_metadata("final_norm", "eps", -1e-5), GraphError, ("final_norm: eps is -1e-05",)),
    "an eps that is not a number": (_metadata("final_norm", "eps", np.nan), GraphError, ("final_norm: eps is nan",)),
    "a missing eps": (_no_metadata("final_norm", "eps"), GraphError, ("final_norm: its metadata has no 'eps'",)),
    "a missing norm weight": (_no_metadata("final_norm", "weight"), GraphError, ("final_norm: weight",)),
    "heads that are no number": (
        _metadata("block00_attention", "num_heads", "two"),
        GraphError,
        ("block00_attention: metadata 'num_heads' is 'two'",),
    ),
    "no heads": (_metadata("block00_attention", "num_heads", 0), GraphError, ("block00_attention: 0 heads",)),
    "other heads": (
        _metadata("block00_attention", "num_heads", 4),
        GraphError,
        ("block00_attention: its metadata describe 48 -> 16",),
    ),
    "an infinite scale": (
        _metadata("block00_attention", "scale", np.inf),
        GraphError,
        ("block00_attention: 2 heads of 4 features with scale inf",),
    ),
    "a fractional number of features": (
        _metadata("token_mean", "features", 8.5),
        GraphError,
        ("token_mean: metadata",),
    ),
    # contradictions
    "a threshold that is not the number below": (
        _weights(f"{NEURON}/nodes/spike", "threshold", _one_wrong(0.5)),
        GraphError,
        (f"{NEURON}: metadata say that neuron 4 fires at 1.0",),
    ),
    "a strict neuron with the threshold of another": (
        _metadata(NEURON, "fire_on_equal", False),
        GraphError,
        (f"{NEURON}: metadata say that neuron 0 fires above 1.0",),
    ),
    "another threshold in the metadata": (
        _metadata(NEURON, "threshold", ONES / 2),
        GraphError,
        (f"{NEURON}: metadata say that neuron 0 fires at 0.5",),
    ),
    "fewer thresholds in the metadata": (
        _metadata(NEURON, "threshold", ONES[:3]),
        GraphError,
        (f"{NEURON}: metadata threshold has shape (3,)",),
    ),
    "no threshold in the metadata": (
        _no_metadata(NEURON, "threshold"),
        GraphError,
        (f"{NEURON}: metadata threshold",),
    ),
    "another reset in the metadata": (
        _metadata(NEURON, "reset", "zero"),
        GraphError,
        (f"{NEURON}: metadata say reset is 'zero', but the nodes mean 'subtract'",),
    ),
    "another leak in the metadata": (
        _metadata(NEURON, "decay_input", True),
        GraphError,
        (f"{NEURON}: metadata say decay_input",),
    ),
    "fire_on_equal that is no truth value": (
        _metadata(NEURON, "fire_on_equal", "yes"),
        GraphError,
        (f"{NEURON}: metadata 'fire_on_equal' is 'yes'",),
    ),
    "a bare threshold that is not the number below": (
        _weights("embedding_neuron", "threshold", _one_wrong(0.5)),
        GraphError,
        ("embedding_neuron: metadata say that neuron 4 fires at 0.0",),
    ),
    "a neuron with another time step": (
        _metadata(NEURON, "dt", 2e-4),
        GraphError,
        (f"{NEURON}: says that dt",),
    ),
    # the graph's own metadata
    "a format from the future": (_metadata("", "format_version", 2), GraphError, ("version 2",)),
    "a format that is no number": (_metadata("", "format_version", "1"), GraphError, ("'format_version' is '1'",)),
    "no time steps": (_metadata("", "time_steps", 0), GraphError, ("time_steps is 0",)),
    "time steps below zero": (_metadata("", "time_steps", -4), GraphError, ("time_steps is -4",)),
    "a fractional number of time steps": (_metadata("", "time_steps", 4.5), GraphError, ("'time_steps' is 4.5",)),
    "time steps in an array": (_metadata("", "time_steps", np.array([4, 4])), GraphError, ("'time_steps' is",)),
    "a time step of no length": (_metadata("", "dt", 0.0), GraphError, ("dt is 0.0",)),
    "a time step that is not a number": (_metadata("", "dt", np.nan), GraphError, ("dt is nan",)),
    "a time step in words": (_metadata("", "dt", "short"), GraphError, ("'dt' is 'short'",)),
    "padding that is no truth value": (
        _metadata("", "attend_to_padding", 1),
        GraphError,
        ("'attend_to_padding' is 1",),
    ),
    "a vocabulary of another size": (_metadata("input", "vocabulary", 7), GraphError, ("input: 7 words",)),
    "a negative number of positions": (
        _both(_metadata("input", "vocabulary", 33), _metadata("input", "positions", -1)),
        GraphError,
        ("input: 33 words and -1 positions",),
    ),
    "words before that are not there": (
        _metadata("input", "before_first", 0),
        GraphError,
        ("words, as many words before and",),
    ),
    "an unknown word before the first": (
        _both(_metadata("input", "vocabulary", 10), _metadata("input", "before_first", 10)),
        GraphError,
        ("input: before_first is 10", "0 to 9"),
    ),
    "a word before the first that is text": (
        _metadata("input", "before_first", "none"),
        GraphError,
        ("before_first",),
    ),
    "a missing vocabulary": (
        _no_metadata("input", "vocabulary"),
        GraphError,
        ("input: its metadata has no 'vocabulary'",),
    ),
}


@pytest.mark.parametrize("what", GRAPHS)
def test_a_graph_with_one_thing_wrong(what: str, bad_file: Path) -> None:
    change, kind, said = GRAPHS[what]
    with h5py.File(bad_file, "r+") as file:
        change(file["node"])
    _refused(bad_file, kind, *said)


HARD_RESETS: dict[str, tuple[Change, type[Exception], tuple[str, ...]]] = {
    "a reset to another potential": (
        _weights(NEURON, "v_reset", _one_wrong(0.5)),
        UnsupportedOperatorError,
        (f"{NEURON}: v_reset is not 0",),
    ),
    "another threshold than the metadata": (
        _weights(NEURON, "v_threshold", _one_wrong(0.5)),
        GraphError,
        (f"{NEURON}: metadata say that neuron 4 fires above 1.0, but its threshold 0.5 is not that",),
    ),
    "parameters for fewer neurons": (_weights(NEURON, "tau", lambda tau: tau[:3]), NirFileError, (f"node {NEURON}",)),
    "a gain for an input that decays too": (
        _weights(NEURON, "r", lambda r: r * 0 + 1),
        GraphError,
        (f"{NEURON}: metadata say decay_input",),
    ),
}


@pytest.mark.parametrize("what", HARD_RESETS)
def test_a_hard_reset_with_one_thing_wrong(what: str, hard_reset_file: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(hard_reset_file, tmp_path / "bad.nir"))
    change, kind, said = HARD_RESETS[what]
    with h5py.File(path, "r+") as file:
        change(file["node"])
    _refused(path, kind, *said)


def test_a_file_that_does_not_say_how_long_a_step_is(tmp_path: Path) -> None:
    neuron = nir.LIF(tau=ONES / 10, r=ONES * 100, v_leak=ONES * 0, v_threshold=ONES)
    path = tmp_path / "foreign.nir"
    nir.write(path, nir.NIRGraph.from_list(neuron))
    _refused(path, GraphError, "lif: neither the node nor the graph says dt")
    (node,) = read_network(path, dt=1e-3)[1].nodes
    assert isinstance(node.operator, LeakyIntegrateAndFire)
    np.testing.assert_array_equal(node.operator.beta, 1 - 1e-3 / 0.1)
    for wrong in (0.0, -1e-3, float("nan")):
        with pytest.raises(GraphError, match="dt is"):
            read_nir(path, dt=wrong)


# ---------------------------------------------------------------------------------------------------------------------
# Bytes flipped by nobody knows whom.


def _small_network() -> Network:
    rng = np.random.default_rng(0)
    builder = NetworkBuilder("input", 4)
    builder.add("affine", Affine(rng.normal(size=(6, 4)), rng.normal(size=6)), "input")
    builder.add("norm", LayerNorm(np.ones(6), np.zeros(6), groups=3), "affine")
    neuron = LeakyIntegrateAndFire(np.full(6, 0.5), np.full(6, 2.0), np.ones(6), fire_on_equal=True)
    builder.add("neuron", neuron, "norm")
    return builder.network("output", "neuron", time_steps=3)


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nir(tmp_path_factory.mktemp("nir") / "small.nir", build_graph(_small_network(), np.float64))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4))
def test_flipped_bytes_give_a_network_or_a_typed_error(small_file: Path, flips: list[tuple[float, int]]) -> None:
    content = bytearray(small_file.read_bytes())
    for where, bits in flips:
        content[int(where * len(content))] ^= bits
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "flipped.nir"
        path.write_bytes(content)
        try:
            _, network = read_network(path)
        except (NirFileError, GraphError) as error:
            assert str(path) in str(error)  # noqa: PT017  either outcome is fine
        else:
            assert len(network.nodes) == len(_small_network().nodes)
