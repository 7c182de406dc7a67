"""The jobs of `benchmarks/unchanged.py`: what a version of this project computes, recorded value for value.

    PYTHONPATH=CHECKOUT python benchmarks/unchanged_jobs.py FOLDER JOB...

Runs with the packages of the checkout that PYTHONPATH names, whichever that is, so everything here goes through names
and options that the project promises to keep. What a job finds is written as ``FOLDER/JOB.json`` (text and JSON) and
``FOLDER/JOB.npz`` (arrays as they are); files of the project are read without the project: HDF5 with h5py, ONNX with
onnx. Jobs run in a folder of their own under relative names, so that paths are the same for every version.
"""

from __future__ import annotations

import csv
import functools
import importlib
import importlib.util
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from unchanged_graphs import GRAPHS

PACKAGES = ("spikebert", "export", "hardware")
SHIPPED = ("default", "default-loihi")
STOCK = "default-loihi"
"""Whose neurons and synapses the chip has."""
RANDOM = "random"
"""A small checkpoint with what the shipped ones lack: layer norms, bare steps in place of embedding neurons. What costs
seconds and says nothing of a model's size is asked of it alone."""
SENTENCES = ("A warm and quietly funny film .", "Dull .")
CALIBRATION = (*SENTENCES, "It never finds its feet , but the leads are a joy .")
TEXT = ("--text", *SENTENCES)
TOKENS = "12"
QUICK_GRAPHS = ("pictures", "currents", "two cells", "residuals")
"""With every node there is, where there is little time."""
FAILED = "failed"


@dataclass
class Record:
    """What a job found.

    Attributes
    ----------
    values : dict
        JSON values by name.
    arrays : dict of str to ndarray
        By ``NAME/PART``.
    """

    values: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def value(self, name: str, value: Any) -> None:
        """Record a JSON value, once."""
        if name in self.values:
            raise ValueError(f"{name} is recorded already")
        self.values[name] = value

    def array(self, name: str, value: np.ndarray) -> None:
        """Record an array; one of text, or of names, as JSON."""
        if value.dtype.kind in "OUS":
            self.value(name, _plain(value.tolist()))
        elif name in self.arrays:
            raise ValueError(f"{name} is recorded already")
        else:
            self.arrays[name] = value

    def command(self, name: str, *words: str, files: tuple[str, ...] = ()) -> bool:
        """Run a command and record it, see `answer`."""
        return self.answer(name, spikebert(*words), files)

    def answer(self, name: str, found: Answer, files: tuple[str, ...] = ()) -> bool:
        """Record what a command answered and the files it wrote; return whether it did what it was asked for.

        What was refused is recorded with what was said.
        """
        if found.refused:
            self.value(name, {"exit code": found.code, "said": found.said})
            return False
        self.value(name, {"exit code": found.code, "answer": found.json})
        for file in files:
            self.file(f"{name}, {Path(file).suffix[1:]}", Path(file))
        return True

    def file(self, name: str, path: Path) -> None:
        """Record what is in a file."""
        READERS[path.suffix](self, name, path)

    def trace(self, name: str, model: Any, inputs: Any, mask: Any = None, **options: Any) -> None:
        """Run a graph or model and record the file that its trace makes."""
        from hardware import run

        trace = run(model, inputs, mask, record_membrane_potentials=True, **options)
        with tempfile.TemporaryDirectory() as folder:
            self.file(name, trace.save(Path(folder) / "trace.npz"))

    def save(self, folder: Path, job: str) -> None:
        """Write both files, whole."""
        for suffix, write in ((".npz", self._write_arrays), (".json", self._write_values)):
            path = folder / f"{job}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.name}.partial")
            write(partial)
            partial.replace(path)

    def _write_arrays(self, path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, **self.arrays)

    def _write_values(self, path: Path) -> None:
        path.write_text(json.dumps(self.values, indent=1), encoding="utf-8")


def _plain(value: Any) -> Any:
    """Return text, read as JSON where it is an object or a list; a list entry by entry."""
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    if isinstance(text, str) and text[:1] in ("{", "["):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


@dataclass(frozen=True)
class Answer:
    """What a command ended with: exit code, JSON on standard output, and text on standard error."""

    code: int
    json: Any
    said: str

    @property
    def refused(self) -> bool:
        """Whether the command did nothing; 1 is an answer, which is no."""
        return self.code not in (0, 1)


def spikebert(*words: str) -> Answer:
    """Run a command of this process's spikebert with ``--json``."""
    from click.testing import CliRunner

    from spikebert.cli import main

    result = CliRunner().invoke(main, [*words, "--json"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    answer = json.loads(result.stdout) if result.exit_code in (0, 1) else None
    return Answer(result.exit_code, answer, " ".join(result.stderr.split()))


# ---------------------------------------------------------------------------------------------------------------------
# Files, read without the project.


def record_hdf5(record: Record, name: str, path: Path) -> None:
    """Record every array and text of an HDF5 file."""
    import h5py

    def add(key: str, entry: Any) -> None:
        if isinstance(entry, h5py.Dataset):
            record.array(f"{name}/{key}", np.asarray(entry[()]))

    with h5py.File(path, "r") as file:
        file.visititems(add)


def record_npz(record: Record, name: str, path: Path) -> None:
    """Record every array of an .npz file."""
    with np.load(path, allow_pickle=False) as file:
        for key in file.files:
            record.array(f"{name}/{key}", file[key])


def record_csv(record: Record, name: str, path: Path) -> None:
    """Record the rows of a table."""
    with path.open(encoding="utf-8", newline="") as file:
        record.value(name, list(csv.reader(file)))


def record_onnx(record: Record, name: str, path: Path) -> None:
    """Record an ONNX file: initializers and constants as arrays, nodes, ports and metadata in ONNX's own words."""
    import onnx

    model = onnx.load(str(path))
    record.value(
        name,
        {
            "producer": f"{model.producer_name} {model.producer_version}",
            "ir_version": model.ir_version,
            "operator_sets": {entry.domain: entry.version for entry in model.opset_import},
            "metadata": {entry.key: _plain(entry.value) for entry in model.metadata_props},
            "graph": _onnx_graph(record, f"{name}/graph", model.graph),
        },
    )


def _onnx_graph(record: Record, where: str, graph: Any) -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict
    from onnx import numpy_helper

    for tensor in graph.initializer:
        record.array(f"{where}/{tensor.name}", numpy_helper.to_array(tensor))
    ports = {"inputs": graph.input, "outputs": graph.output, "values": graph.value_info}
    return {
        "name": graph.name,
        **{key: [MessageToDict(port) for port in group] for key, group in ports.items()},
        "initializers": [tensor.name for tensor in graph.initializer],
        "nodes": [_onnx_node(record, f"{where}/node {index}", node) for index, node in enumerate(graph.node)],
    }


def _onnx_node(record: Record, where: str, node: Any) -> dict[str, Any]:
    import onnx
    from onnx import AttributeProto, numpy_helper

    attributes: dict[str, Any] = {}
    for attribute in node.attribute:
        here = f"{where}/{attribute.name}"
        if attribute.type == AttributeProto.GRAPH:
            attributes[attribute.name] = _onnx_graph(record, here, attribute.g)
        elif attribute.type == AttributeProto.TENSOR:
            record.array(here, numpy_helper.to_array(attribute.t))
        else:
            value = onnx.helper.get_attribute_value(attribute)
            attributes[attribute.name] = _plain(value if isinstance(value, str | bytes | int | float) else list(value))
    ports = {"inputs": list(node.input), "outputs": list(node.output)}
    return {"name": node.name, "type": node.op_type, "domain": node.domain, **ports, "attributes": attributes}


READERS: dict[str, Callable[[Record, str, Path], None]] = {
    ".nir": record_hdf5,
    ".net": record_hdf5,
    ".npz": record_npz,
    ".csv": record_csv,
    ".onnx": record_onnx,
}


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints. Files that several jobs want are made once, by whichever comes first.


def checkpoint_folder(checkpoint: str) -> Path:
    """Return the folder of a checkpoint."""
    from spikebert import default_checkpoint

    return Path(checkpoint) if checkpoint == RANDOM else default_checkpoint().with_name(checkpoint)


@functools.cache
def checkpoint_name(checkpoint: str) -> str:
    """Return what commands call a checkpoint, made where it is not shipped."""
    if checkpoint == RANDOM and not Path(RANDOM).exists():
        _make_random_checkpoint(Path(RANDOM))
    return checkpoint


def _make_random_checkpoint(folder: Path) -> None:
    import torch

    from spikebert import SpikeBertConfig, SpikeBertForSequenceClassification, default_checkpoint

    tokenizer = _tokenizer(default_checkpoint())
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 32}
    model = SpikeBertForSequenceClassification(
        SpikeBertConfig(**sizes, num_hidden_layers=2, num_attention_heads=2, time_steps=5, num_labels=3)
    )
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if name.endswith("norm.weight") else 0.0
            parameter.copy_(centre + 0.5 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@functools.cache
def loaded(checkpoint: str) -> tuple[Any, np.ndarray, np.ndarray]:
    """Return a checkpoint's model, and ids and mask of the sentences."""
    from spikebert import SpikeBertForSequenceClassification

    folder = checkpoint_folder(checkpoint_name(checkpoint))
    read = _tokenizer(folder)(list(SENTENCES), padding=True, return_tensors="np")
    model = SpikeBertForSequenceClassification.from_pretrained(folder).eval()
    return model, read["input_ids"], read["attention_mask"]


@functools.cache
def made(file: str, *words: str) -> Answer:
    """Run the command that writes a file, once, and return its answer.

    Raises
    ------
    RuntimeError
        There is no such file now.
    """
    answer = spikebert(*words, "-o", file)
    if answer.code:
        raise RuntimeError(f"spikebert {' '.join(words)} ended with {answer.code}: {answer.said}")
    return answer


def float_file(checkpoint: str) -> str:
    """Return the NIR file of a checkpoint."""
    made_floats(checkpoint)
    return f"{checkpoint}.nir"


def made_floats(checkpoint: str) -> Answer:
    """Return what the export of a checkpoint answered."""
    return made(f"{checkpoint}.nir", "export", "nir", checkpoint_name(checkpoint))


def integer_file(checkpoint: str) -> str:
    """Return the quantized NIR file of a checkpoint."""
    made_integers(checkpoint)
    return f"{checkpoint}-integer.nir"


def made_integers(checkpoint: str) -> Answer:
    """Return what the quantization of a checkpoint answered."""
    calibration = ("--calibration", calibration_file())
    return made(f"{checkpoint}-integer.nir", "quantize", float_file(checkpoint), *calibration)


@functools.cache
def calibration_file() -> str:
    """Return a text file of sentences to quantize on."""
    Path("calibration.txt").write_text("\n".join(CALIBRATION) + "\n", encoding="utf-8")
    return "calibration.txt"


def simulated(file: str, runner: str, precision: str) -> str:
    """Return the trace that `simulate` writes for a NIR file."""
    name = f"{Path(file).stem}-{runner}-{precision}.npz"
    made(name, "simulate", file, "--runner", runner, "--precision", precision, *TEXT)
    return name


def record_nir_files(record: Record, checkpoint: str) -> None:
    """Export a checkpoint, quantize it, and explain the files."""
    floats, integers = float_file(checkpoint), integer_file(checkpoint)
    record.answer("export nir", made_floats(checkpoint), (floats,))
    record.answer("quantize", made_integers(checkpoint), (integers,))
    for file in (floats, integers):
        record.command(f"info {file}", "info", file)
    if checkpoint == RANDOM:
        exact = ("--precision", "float64", "-o", "float64.nir")
        record.command("export nir, float64", "export", "nir", RANDOM, *exact, files=("float64.nir",))
        channels = ("--calibration", calibration_file(), "--scale", "per-channel", "-o", "channels.nir")
        record.command("quantize, per channel", "quantize", floats, *channels, files=("channels.nir",))
        return
    chain = f"{checkpoint}.net"  # of the first checkpoint this is refused, as its neurons are not stock ones
    ends = ("--first", "block00_intermediate_affine", "--last", "block00_output_neuron", "--round-biases")
    record.command("export netx", "export", "netx", integers, "-o", chain, *ends, files=(chain,))


def record_onnx_files(record: Record, checkpoint: str) -> None:
    """Write both graphs of a checkpoint as ONNX, with all that a file can show, and explain the files."""
    for source in (float_file(checkpoint), integer_file(checkpoint)):
        file = f"{Path(source).stem}.onnx"
        shown = ("--spikes", "--membrane-potentials", "--force")
        record.command(f"export {file}", "export", "onnx", source, "-o", file, *shown, files=(file,))
        record.command(f"info {file}", "info", file)


def record_traces(record: Record, checkpoint: str) -> None:
    """Run a checkpoint and both its graphs on every runner but Lava."""
    from export import read_nir

    model, ids, mask = loaded(checkpoint)
    floats, integers = read_nir(float_file(checkpoint)), read_nir(integer_file(checkpoint))
    for precision in ("float64", "float32"):
        for runner, runs in (("torch", model), ("reference", floats), ("onnx", floats)):
            record.trace(f"{runner} {precision}", runs, ids, mask, runner=runner, precision=precision)
    for runner in ("reference", "integer", "onnx"):
        record.trace(f"{runner} integer", integers, ids, mask, runner=runner, precision="integer")
    record.trace("integer without C", integers, ids, mask, runner="integer", precision="integer", compiled=False)
    record.command(
        "simulate", "simulate", float_file(checkpoint), *TEXT, "-o", "trace.npz", "--force", files=("trace.npz",)
    )
    record.command("info trace.npz", "info", "trace.npz")


def record_lava_traces(record: Record, checkpoint: str) -> None:
    """Run both graphs of a checkpoint on Lava; some as a process an operator, or with the timing of the chip."""
    from export import read_nir

    _, ids, mask = loaded(checkpoint)
    floats, integers = read_nir(float_file(checkpoint)), read_nir(integer_file(checkpoint))
    on_lava = {"runner": "lava", "jobs": 1}
    record.trace("lava:network float64", floats, ids, mask, precision="float64", granularity="network", **on_lava)
    record.trace("lava:block integer", integers, ids, mask, precision="integer", **on_lava)
    short = ids[1:, : int(mask[1].sum())]
    if checkpoint == RANDOM:
        record.trace("lava:operator float64", floats, short, precision="float64", granularity="operator", **on_lava)
    if checkpoint == STOCK:
        record.trace("lava:hardware integer", integers, short, precision="integer", timing="hardware", **on_lava)


def record_profile(record: Record, checkpoint: str) -> None:
    """Profile a checkpoint with everything that is collected, and a recorded trace of its integers."""
    everything = ("--collect", "heads", "histogram", "persistence", "--both-orders", "--detailed")
    name = checkpoint_name(checkpoint)
    for axis in ("node", "operation") if checkpoint == RANDOM else ("node",):
        table = ("--csv", "profile.csv", "--csv-by", axis, "--force")
        record.command(f"profile by {axis}", "profile", name, *TEXT, *everything, *table, files=("profile.csv",))
    integers = integer_file(checkpoint)
    recorded = simulated(integers, "integer", "integer")
    record.command("profile of a trace", "profile", "--trace", recorded, "--graph", integers)


def record_energy(record: Record, checkpoint: str) -> None:
    """Estimate the energy of a checkpoint and of its integers under every energy model."""
    table = ("--csv", "energy.csv", "--force")
    record.command("energy", "energy", checkpoint_name(checkpoint), *TEXT, *table, files=("energy.csv",))
    record.command("energy of integers", "energy", integer_file(checkpoint), *TEXT, "--runner", "integer")


def record_placement(record: Record, checkpoint: str) -> None:
    """Place a checkpoint on both chips, and count the traffic of a recorded trace."""
    integers = integer_file(checkpoint)
    traffic = ("--trace", simulated(integers, "integer", "integer"))
    for chip in ("loihi1", "loihi2"):
        record.command(f"place on {chip}", "place", integers, "--chip", chip, "--tokens", TOKENS, *traffic)
        if checkpoint == RANDOM:
            words = ("--chip", chip, "--tokens", TOKENS)
            record.command(f"place floats on {chip}", "place", float_file(checkpoint), *words)


def record_explanation(record: Record, checkpoint: str) -> None:
    """Explain a checkpoint."""
    record.command("info", "info", checkpoint_name(checkpoint))


def record_verification(record: Record, checkpoint: str) -> None:
    """Verify a checkpoint against runners, with every rounding bound, and against a file that is not its own."""
    name = checkpoint_name(checkpoint)
    thorough = ("--audit", "--node-by-node")
    ways: dict[str, tuple[str, ...]] = {
        "reference float32": ("--against", "reference", "--precision", "float32", *thorough),
        "reference integer": ("--against", "reference", "--precision", "integer"),
        "another graph": ("--against", "reference", "--graph", _altered(float_file(checkpoint))),
    }
    if checkpoint == RANDOM:
        ways |= {
            "reference float64": ("--against", "reference", *thorough),
            "onnx float32": ("--against", "onnx", "--precision", "float32"),
            "integers": ("--against", "integer"),
        }
    for way, words in ways.items():
        record.command(f"verify {way}", "verify", name, *words, *TEXT)


def _altered(file: str) -> str:
    """Return a copy of a checkpoint's NIR file with one weight in the middle changed."""
    import shutil

    import h5py

    name = f"altered-{file}"
    shutil.copyfile(file, name)
    with h5py.File(name, "r+") as graph:
        graph["node/nodes/block01_intermediate_affine/weight"][1] *= 1.5
    return name


def record_checks(record: Record, checkpoint: str) -> None:
    """Run the checks for hidden state."""
    name = checkpoint_name(checkpoint)
    record.command("check reference", "check", name, *TEXT)
    record.command("check integers", "check", name, "--runner", "integer", "--precision", "integer", *TEXT)


def record_comparison(record: Record, checkpoint: str) -> None:
    """Compare recorded traces: of two precisions with every rounding bound, and of floats with integers."""
    file, integers = float_file(checkpoint), simulated(integer_file(checkpoint), "integer", "integer")
    first, second = (simulated(file, "reference", precision) for precision in ("float64", "float32"))
    record.command("compare precisions", "compare", first, second, "--graph", file, "--audit")
    record.command("compare with integers", "compare", first, integers)


OF_CHECKPOINTS: dict[str, tuple[str, Callable[[Record, str], None]]] = {
    "nir": ("NIR files, quantized and not, and reports", record_nir_files),
    "onnx": ("ONNX files", record_onnx_files),
    "traces": ("traces of torch, reference, integer and ONNX", record_traces),
    "profile": ("profiles", record_profile),
    "energy": ("counts and energies of every model", record_energy),
    "place": ("placement on loihi1 and loihi2", record_placement),
    "info": ("what info says", record_explanation),
    "verify": ("what verify says, with all bounds", record_verification),
    "check": ("checks for hidden state", record_checks),
    "compare": ("comparisons of traces", record_comparison),
    "lava": ("traces of Lava", record_lava_traces),
}


# ---------------------------------------------------------------------------------------------------------------------
# Conformance files and graphs of others.


def record_conformance(record: Record) -> None:
    """Write the conformance files, and check replies: right ones, wrong ones, and none."""
    folder = Path("conformance")
    record.command("write", "conformance", str(folder), "--write")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        record.file(str(path.relative_to(folder)), path)
    expected = [path for path in files if path.name.endswith(".expected.npz")]
    for index, path in enumerate(expected):
        with np.load(path) as file:
            reply = {key: file[key] for key in file.files if key not in ("logits", "mask", "metadata")}
        if index % 5 == 3:
            continue
        if index % 5 == 4:
            last = sorted(reply)[-1]
            reply[last] = reply[last] + reply[last].dtype.type(1)
        np.savez(path.with_name(path.name.replace(".expected", "")), **reply)
    record.command("check", "conformance", str(folder))


@functools.cache
def foreign(name: str) -> tuple[Any, str, str]:
    """Return a foreign graph, its file and that of its inputs."""
    import nir

    found = GRAPHS[name][0]()
    file, inputs = f"{name}.nir".replace(" ", "-"), f"{name}.npy".replace(" ", "-")
    if found.complete:
        nir.write(file, found.graph)
    else:
        from export import build_graph, parse_graph, write_nir

        write_nir(file, build_graph(parse_graph(found.graph, found.dt), np.float64))
    np.save(inputs, found.inputs())
    return found, file, inputs


def _installed(record: Record, name: str) -> bool:
    tool = GRAPHS[name][1]
    if tool is None or importlib.util.find_spec(tool) is not None:
        return True
    record.value("not installed", tool)
    return False


def record_foreign(record: Record, name: str) -> None:
    """Take a graph of others down the road: written anew, run, counted, placed; then the same quantized."""
    from export import read_nir

    if not _installed(record, name):
        return
    found, file, inputs = foreign(name)
    dt = ("--dt", str(found.dt))
    if found.complete:
        record.command("info without dt", "info", file)
    record.command("info", "info", file, *dt)
    record.command("export nir", "export", "nir", file, *dt, "-o", "anew.nir", "--force", files=("anew.nir",))
    shown = ("--spikes", "--membrane-potentials", "-o", "anew.onnx", "--force")
    record.command("export onnx", "export", "onnx", file, *dt, *shown, files=("anew.onnx",))
    graph = read_nir("anew.nir")
    for runner, precision in (("reference", "float64"), ("reference", "float32"), ("onnx", "float64")):
        record.trace(f"{runner} {precision}", graph, found.inputs(), runner=runner, precision=precision)
    trace = ("--runner", "reference", "-o", "trace.npz", "--force")
    record.command("simulate", "simulate", file, *dt, "--input", inputs, *trace, files=("trace.npz",))
    again = ("--runner", "onnx", "--precision", "float32", "-o", "again.npz", "--force")
    record.command("simulate again", "simulate", file, *dt, "--input", inputs, *again)
    record.command("compare", "compare", "trace.npz", "again.npz", "--graph", file, *dt, "--audit")
    for command in ("profile", "energy"):
        record.command(command, command, file, *dt, "--input", inputs)
    for chip in ("loihi1", "loihi2"):
        record.command(f"place on {chip}", "place", file, *dt, "--chip", chip)
    for scale in ("per-channel", "per-tensor"):
        words = ("--calibration", inputs, "--scale", scale, "-o", "integer.nir", "--force")
        done = record.command(f"quantize {scale}", "quantize", file, *dt, *words, files=("integer.nir",))
    if done:
        _record_foreign_integers(record, found, inputs)


def _record_foreign_integers(record: Record, found: Any, inputs: str) -> None:
    from export import read_nir

    integers = read_nir("integer.nir")
    for runner in ("reference", "integer", "onnx"):
        record.trace(f"{runner} integer", integers, found.inputs(1), runner=runner, precision="integer")
    record.command("info of integers", "info", "integer.nir")
    words = ("integer.onnx", "--spikes", "--force")
    record.command("export onnx of integers", "export", "onnx", "integer.nir", "-o", *words, files=("integer.onnx",))
    for command in ("profile", "energy"):
        fed = ("--input", inputs, "--runner", "integer")
        record.command(f"{command} of integers", command, "integer.nir", *fed)
    for chip in ("loihi1", "loihi2"):
        record.command(f"place integers on {chip}", "place", "integer.nir", "--chip", chip)


def record_foreign_on_lava(record: Record, names: tuple[str, ...]) -> None:
    """Run graphs of others on Lava, floats and integers."""
    from export import parse_graph, quantize
    from spikebert import SpikeBertError

    for name in names:
        if not _installed(record, name):
            continue
        found, _, _ = foreign(name)
        network, on_lava = parse_graph(found.graph, found.dt), {"runner": "lava", "granularity": "network", "jobs": 1}
        record.trace(f"{name} float64", network, found.inputs(), precision="float64", **on_lava)
        try:
            integers = quantize(network, found.inputs())
        except SpikeBertError as error:
            record.value(f"{name} integer", f"{type(error).__name__}: {error}")
        else:
            record.trace(f"{name} integer", integers, found.inputs(1), precision="integer", **on_lava)


# ---------------------------------------------------------------------------------------------------------------------
# The list, and the process that works it off.


@dataclass(frozen=True)
class Job:
    """A part of what is compared.

    Attributes
    ----------
    what : str
        In words.
    work : callable
        Fills a record.
    quick : bool
        Whether it is done where there is little time.
    """

    what: str
    work: Callable[[Record], None]
    quick: bool = False


def all_jobs() -> dict[str, Job]:
    """Return every job by name."""

    def of_checkpoint(work: Callable[[Record, str], None], checkpoint: str) -> Callable[[Record], None]:
        return lambda record: work(record, checkpoint)

    def of_graph(name: str) -> Callable[[Record], None]:
        return lambda record: record_foreign(record, name)

    jobs = {
        f"{checkpoint}/{part}": Job(
            what,
            of_checkpoint(work, checkpoint),
            quick=part != "lava" and (checkpoint == RANDOM or (checkpoint, part) == (STOCK, "traces")),
        )
        for checkpoint in (*SHIPPED, RANDOM)
        for part, (what, work) in OF_CHECKPOINTS.items()
    }
    jobs["conformance"] = Job("conformance files, and replies to them", record_conformance, quick=True)
    road = "files, traces, reports, floats and integers"
    jobs |= {f"foreign/{name}": Job(road, of_graph(name), quick=name in QUICK_GRAPHS) for name in GRAPHS}
    jobs["foreign/lava"] = Job("traces of Lava", lambda record: record_foreign_on_lava(record, tuple(GRAPHS)))
    return jobs


def check_origin(checkout: Path) -> None:
    """Check that the packages are those of a checkout.

    Raises
    ------
    SystemExit
        One is not.
    """
    for name in PACKAGES:
        found = Path(str(importlib.import_module(name).__file__)).resolve()
        if found.parents[1] != checkout.resolve():
            raise SystemExit(f"{name} is {found}, not of {checkout}; nothing that is found would be that version's")


def work_off(jobs: dict[str, Job], folder: Path) -> Iterator[tuple[str, float, str | None]]:
    """Run jobs and write what they find; yield name, seconds of processor time, and what went wrong."""
    for name, job in jobs.items():
        began, record, problem = _processor_seconds(), Record(), None
        try:
            job.work(record)
        except Exception as error:  # the other jobs still tell something
            traceback.print_exc()
            problem = f"{type(error).__name__}: {error}"
            record = Record({FAILED: problem})
        record.save(folder, name)
        yield name, _processor_seconds() - began, problem


def _processor_seconds() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def main() -> None:
    """Run the jobs that the command line names."""
    here = Path(__file__).resolve().parent
    folder, names = Path(sys.argv[1]).resolve(), sys.argv[2:]
    check_origin(Path(os.environ["PYTHONPATH"]))
    chosen = all_jobs()
    # neighbours of this file are no packages of the checkout
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != here]
    with tempfile.TemporaryDirectory(prefix="spikebert-unchanged-") as scratch:
        os.chdir(scratch)
        for name, seconds, problem in work_off({name: chosen[name] for name in names}, folder):
            print(
                f"  {name}: {seconds:.1f} s of processor time{f', failed: {problem}' if problem else ''}",
                file=sys.stderr,
                flush=True,
            )
        os.chdir(folder)


if __name__ == "__main__":
    main()
