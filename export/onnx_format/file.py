"""ONNX files: written tensor by tensor, whole or not at all, and read back with what they say of themselves.

``onnx.save`` wants the model in memory, serializes it in one piece, and ends at 2 GB. Here each weight goes from the
graph to the file by itself, a few megabytes at a time; above a threshold they go into a second file beside it, which
ONNX calls external data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from export.errors import OnnxFileError
from export.network import COUNTS, INTEGER
from export.onnx_format.builder import POTENTIAL, Weight
from export.onnx_format.graph import FORMAT, FORMAT_VERSION, PRECISIONS, STEP_LOGITS, OnnxDraft
from export.token_encoding import TokenEncoding
from spikebert.files import written_whole

MAX_PROTOBUF_BYTES = (1 << 31) - (1 << 20)
"""A protobuf message ends at 2 GiB; a megabyte less leaves room for what is not weights."""
SMALLEST_EXTERNAL_BYTES = 1024
"""What is smaller stays in the model's own file, as in ``onnx.save``: shape inference wants to see axes and shapes."""
EXTERNAL_ALIGNMENT = 4096
"""Offsets are whole pages, so that readers can map the file."""
DATA_SUFFIX = ".data"
_GRAPH_FIELD = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number
_INITIALIZER_FIELD = onnx.GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
_RAW_DATA_FIELD = TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number
_LENGTH_DELIMITED = 2


def write_onnx(path: str | Path, model: OnnxDraft | onnx.ModelProto, external_above: int = MAX_PROTOBUF_BYTES) -> Path:
    """Write a model to `path`, atomically.

    Parameters
    ----------
    path : str or Path
    model : OnnxDraft or onnx.ModelProto
        A draft needs a few megabytes beside the graph, a message its largest weight once more.
    external_above : int
        Bytes of weights above which they go into ``PATH.data``.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    OnnxFileError
        The folder does not exist or cannot be written to. Nothing half-written stays.
    """
    path = Path(path)
    weights: Sequence[Weight | _RawTensor]
    if isinstance(model, OnnxDraft):
        model, weights = model.model, model.weights
    else:
        weights = [_RawTensor(tensor) for tensor in model.graph.initializer]
    if not path.parent.is_dir():
        raise OnnxFileError(f"{path}: the folder {path.parent} does not exist; make it first")
    external = sum(weight.nbytes for weight in weights) > external_above
    data_path = path.with_name(path.name + DATA_SUFFIX)
    try:
        with ExitStack() as stack:
            partial = stack.enter_context(written_whole(path))
            data = stack.enter_context(stack.enter_context(written_whole(data_path)).open("wb")) if external else None
            with partial.open("wb") as file:
                _write_model(file, model, weights, data, data_path.name)
    except OSError as error:
        raise OnnxFileError(f"{path}: cannot be written: {error}") from error
    return path


@dataclass(frozen=True, eq=False)
class _RawTensor:
    """A tensor of a message, in the way of a `Weight`: its content apart from the rest."""

    tensor: TensorProto

    @property
    def nbytes(self) -> int:
        return len(self.tensor.raw_data)

    def head(self) -> TensorProto:
        return _without(self.tensor, "raw_data")

    def pieces(self) -> Iterator[bytes]:
        yield self.tensor.raw_data


def check_onnx(path: str | Path) -> None:
    """Let ONNX's own checker read a file, with every value's type and shape inferred.

    Raises
    ------
    OnnxFileError
        The checker finds fault with it.
    """
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # ValidationError, InferenceError, or what reading raises
        raise OnnxFileError(f"{path}: ONNX's checker refuses it: {error}") from error


def external_data(model: onnx.ModelProto) -> list[str]:
    """Return the files, beside a model's own, that its weights lie in."""
    tensors = model.graph.initializer
    return sorted({entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"})


@dataclass(frozen=True)
class OnnxFile:
    """What one of our ONNX files says of itself.

    Attributes
    ----------
    path : Path
    precision : str
    time_steps : int or None
        None for a graph that takes values and reads T from their shape.
    input_name, input_features : str, int
        Input node of the graph, and its width.
    input_shape : tuple of int or None
        Shape that the input's features had in the graph, where it was more than a row of them.
    token_encoding : TokenEncoding or None
    attend_to_padding : bool
    max_tokens, input_limit : int or None
        Longest sentence and largest input value that an integer graph was quantized for.
    spiking_nodes : tuple of str
        In topological order.
    operators, neurons : dict
        Name of each node's operator; semantics of each spiking node: its ``update`` equations and parameters.
    outputs : tuple of str
    thresholds : dict of str to ndarray
        ``(D,)`` for each spiking node.
    metadata : dict of str to str
        All of it, as it stands in the file.
    """

    path: Path
    precision: str
    time_steps: int | None
    input_name: str
    input_features: int
    input_shape: tuple[int, ...] | None
    token_encoding: TokenEncoding | None
    attend_to_padding: bool
    max_tokens: int | None
    input_limit: int | None
    spiking_nodes: tuple[str, ...]
    operators: dict[str, str]
    neurons: dict[str, dict[str, Any]]
    outputs: tuple[str, ...]
    thresholds: dict[str, np.ndarray]
    metadata: dict[str, str]

    @property
    def is_integer(self) -> bool:
        """Whether it computes in whole numbers."""
        return self.precision == INTEGER

    @property
    def shows_spikes(self) -> bool:
        """Whether spikes are among its outputs."""
        return STEP_LOGITS in self.outputs

    @property
    def shows_membrane_potentials(self) -> bool:
        """Whether potentials are among its outputs."""
        return bool(self.spiking_nodes) and POTENTIAL.format(self.spiking_nodes[0]) in self.outputs


def load_onnx(path: str | Path) -> onnx.ModelProto:
    """Read any ONNX file, without its external data.

    Raises
    ------
    OnnxFileError
        The file is missing or no ONNX.
    """
    path = Path(path)
    if not path.is_file():
        raise OnnxFileError(f"{path}: no such file" if not path.exists() else f"{path}: not a regular file")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf raises whatever it trips over
        raise OnnxFileError(f"{path}: is not a readable ONNX file: {type(error).__name__}: {error}") from error
    if not model.graph.node:
        raise OnnxFileError(f"{path}: is not a readable ONNX file: it has no nodes")
    return model


def is_ours(model: onnx.ModelProto) -> bool:
    """Return whether a model's metadata say that `to_onnx` wrote it."""
    return any(entry.key == "format" and entry.value == FORMAT for entry in model.metadata_props)


def read_onnx(path: str | Path) -> OnnxFile:
    """Read one of our ONNX files, without its external data.

    Raises
    ------
    OnnxFileError
        The file is missing, no ONNX, or was not written by `write_onnx`; or its metadata are damaged.
    """
    path = Path(path)
    model = load_onnx(path)
    text = {entry.key: entry.value for entry in model.metadata_props}
    if not is_ours(model):
        raise OnnxFileError(f"{path}: was not written by spikebert: its metadata do not say format {FORMAT}")
    said = _Metadata(path, text)
    version = said.take("format_version", int)
    if version != FORMAT_VERSION:
        raise OnnxFileError(
            f"{path}: written as {FORMAT} version {version}; this reader knows version {FORMAT_VERSION}"
        )
    precision = text.get("precision", "")
    if precision not in PRECISIONS:
        raise OnnxFileError(f"{path}: metadata precision is {precision!r}; expected one of {', '.join(PRECISIONS)}")
    spiking = said.take("spiking_nodes", list)
    if not all(isinstance(name, str) for name in spiking):
        raise OnnxFileError(f"{path}: metadata spiking_nodes is not a list of names")
    operators, neurons = said.take("operators", dict), said.take("neurons", dict)
    if not all(isinstance(operator, str) for operator in operators.values()):
        raise OnnxFileError(f"{path}: metadata operators is not names by node")
    if not all(isinstance(neuron, dict) and isinstance(neuron.get("update"), str) for neuron in neurons.values()):
        raise OnnxFileError(f"{path}: metadata neurons does not hold the equations of each")
    return OnnxFile(
        path=path,
        precision=precision,
        input_name=text.get("input", ""),
        input_features=said.take_count("input_features"),
        input_shape=_input_shape(said) if "input_shape" in text else None,
        token_encoding=(
            TokenEncoding(
                said.take_count("vocabulary"),
                said.take_count("positions", 0),
                said.take_count("before_first", 0) if "before_first" in text else None,
            )
            if "vocabulary" in text
            else None
        ),
        attend_to_padding=said.take("attend_to_padding", bool),
        **{key: said.take_count(key) if key in text else None for key in COUNTS},
        spiking_nodes=tuple(spiking),
        operators=operators,
        neurons=neurons,
        outputs=tuple(output.name for output in model.graph.output),
        thresholds=_thresholds(model, path, spiking),
        metadata=text,
    )


def _input_shape(said: _Metadata) -> tuple[int, ...]:
    shape = said.take("input_shape", list)
    if not all(type(length) is int for length in shape) or math.prod(shape) != said.take_count("input_features"):
        raise OnnxFileError(f"{said.path}: metadata input_shape is {shape}; expected the shape of its input_features")
    return tuple(shape)


def _thresholds(model: onnx.ModelProto, path: Path, spiking: list[str]) -> dict[str, np.ndarray]:
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    try:
        return {
            name: numpy_helper.to_array(stored[f"{name}/threshold"], base_dir=str(path.parent))
            for name in spiking
            if f"{name}/threshold" in stored
        }
    except Exception as error:  # the file with the external data is missing, too short, or elsewhere
        raise OnnxFileError(f"{path}: its external data cannot be read: {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class _Metadata:
    """JSON values in a file's metadata, checked when taken."""

    path: Path
    text: dict[str, str]

    def take_count(self, key: str, least: int = 1) -> int:
        count = self.take(key, int)
        if count < least:
            raise OnnxFileError(f"{self.path}: metadata {key!r} is {count}; expected {least} or more")
        return count

    def take(self, key: str, kind: type) -> Any:
        try:
            value = json.loads(self.text[key])
        except KeyError:
            raise OnnxFileError(f"{self.path}: its metadata have no {key!r}") from None
        except (ValueError, RecursionError) as error:
            raise OnnxFileError(f"{self.path}: metadata {key!r} is not JSON: {error}") from error
        if type(value) is not kind:
            raise OnnxFileError(f"{self.path}: metadata {key!r} is {value!r}; expected {kind.__name__}")
        return value


def _write_model(
    file: IO[bytes],
    model: onnx.ModelProto,
    weights: Sequence[Weight | _RawTensor],
    data: IO[bytes] | None,
    data_name: str,
) -> None:
    """Write a serialized ModelProto whose graph is put together from parts, one weight at a time.

    The size of a message stands before it, so all sizes are known before any content is touched.
    """
    model_head = _without(model, "graph").SerializeToString()
    graph_head = _without(model.graph, "initializer").SerializeToString()
    entries: list[tuple[bytes, Weight | _RawTensor, int | None]] = []
    body = end = 0
    for weight in weights:
        tensor, inside, offset = weight.head(), weight.nbytes, None
        if data is not None and weight.nbytes >= SMALLEST_EXTERNAL_BYTES:
            offset = -(-end // EXTERNAL_ALIGNMENT) * EXTERNAL_ALIGNMENT
            end, inside = offset + weight.nbytes, 0
            _point_outside(tensor, data_name, offset, weight.nbytes)
        head = tensor.SerializeToString() + (_head(_RAW_DATA_FIELD, inside) if inside else b"")
        head = _head(_INITIALIZER_FIELD, len(head) + inside) + head
        body += len(head) + inside
        entries.append((head, weight, offset))
    file.write(model_head + _head(_GRAPH_FIELD, len(graph_head) + body) + graph_head)
    for head, weight, offset in entries:
        file.write(head)
        place = file
        if offset is not None:
            assert data is not None
            place = data
            data.seek(offset)
        place.writelines(weight.pieces())


def _without(message: Any, left_out: str) -> Any:
    """Return a copy of a protobuf message without one of its fields."""
    rest = type(message)()
    for entry, value in message.ListFields():
        if entry.name == left_out:
            continue
        if hasattr(value, "extend"):
            getattr(rest, entry.name).extend(value)
        elif entry.message_type is not None:
            getattr(rest, entry.name).CopyFrom(value)
        else:
            setattr(rest, entry.name, value)
    return rest


def _point_outside(tensor: TensorProto, data_name: str, offset: int, length: int) -> None:
    """Let a tensor without content say where in the data file it is."""
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": data_name, "offset": str(offset), "length": str(length)}.items():
        tensor.external_data.add(key=key, value=value)


def _head(number: int, length: int) -> bytes:
    """Return what stands before a message of `length` bytes in protobuf's wire format."""
    return _variable_length((number << 3) | _LENGTH_DELIMITED) + _variable_length(length)


def _variable_length(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
