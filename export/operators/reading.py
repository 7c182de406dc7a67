"""How operators are read from NIR: who reads which node, and the checks that readers share.

An operator registers its reader beside itself: `reads` for NIR's own nodes, `reads_marked` for what NIR lacks and a
marked composite stands for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import nir
import numpy as np

from export.errors import ChipLimitError, GraphError, UnsupportedOperatorError
from export.operators.operator import Array, Operator


@dataclass(frozen=True)
class StepSeconds:
    """How long a time step is, for parameters that a file gives in seconds.

    Attributes
    ----------
    said : float or None
        What the graph says.
    assumed : float or None
        What the caller says, for a graph that does not.
    """

    said: float | None = None
    assumed: float | None = None

    @property
    def known(self) -> float | None:
        """What the graph says, or else the caller."""
        return self.assumed if self.said is None else self.said


STEP_UNKNOWN = StepSeconds()
"""For nodes without parameters in seconds."""
Reader = TypeVar("Reader", bound=Callable[..., Operator])
StandardReader = Callable[[Any, str, StepSeconds], Operator]
"""Reads a node of NIR's own; takes the node, its name for errors, and how long a step is."""
MarkedReader = Callable[[dict[str, Any], str], Operator]
"""Reads the metadata of a marked composite; takes them and the node's name for errors."""
STANDARD_READERS: dict[type[nir.NIRNode], tuple[type[Operator], StandardReader]] = {}
"""By type of node: what it means, and its reader."""
MARKED_OPERATORS: dict[str, tuple[type[Operator], MarkedReader]] = {}
"""Operators NIR lacks, by name: the operator, and its reader."""


def reads(operator: type[Operator], *kinds: type[nir.NIRNode]) -> Callable[[Reader], Reader]:
    """Register a function as the reader of NIR's own nodes of these types, which mean `operator`, or one like it."""

    def register(reader: Reader) -> Reader:
        STANDARD_READERS.update(dict.fromkeys(kinds, (operator, reader)))
        return reader

    return register


def reads_marked(operator: type[Operator]) -> Callable[[Reader], Reader]:
    """Register a function as the reader of composites marked as `operator`."""

    def register(reader: Reader) -> Reader:
        MARKED_OPERATORS[operator.name] = (operator, reader)
        return reader

    return register


def metadata_of(node: nir.NIRNode) -> dict[str, Any]:
    """Return a node's metadata; none where it has no such thing."""
    metadata = getattr(node, "metadata", None)
    return metadata if isinstance(metadata, dict) else {}


def parameter(value: Any, shape: tuple[int | None, ...], node: str, name: str) -> Array:
    """Return a parameter of node `node` as an array after checking it.

    Raises
    ------
    GraphError
        It is not numeric, has another shape than `shape` (None: any length), or holds NaN or infinity.
    """
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise GraphError(f"{node}: {name} holds {array.dtype}, not numbers")
    _check_shape(array, shape, node, name)
    if not np.isfinite(array).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise GraphError(f"{node}: {name}{list(where)} is {array[where]}; every parameter must be finite")
    return array.astype(np.float64) if array.dtype.kind != "f" else array


def whole_numbers(value: Any, count: int, low: int, node: str, name: str) -> tuple[int, ...]:
    """Return `count` whole numbers of at least `low`, as a file gives them: an array, a row, or one for all.

    Raises
    ------
    GraphError
        It is anything else.
    """
    array = np.asarray(value)
    found = array.reshape(-1)
    if array.dtype.kind not in "iu" or found.size not in (1, count) or found.min() < low:
        raise GraphError(f"{node}: {name} is {value!r}; expected {count} whole numbers of at least {low}")
    return tuple(int(number) for number in np.broadcast_to(found, (count,)))


def feature_shape(types: dict[str, Any] | None, node: str, port: str) -> tuple[int, ...]:
    """Return the shape of port `port` of node `node`.

    Raises
    ------
    GraphError
        It is not known, or has an axis of no length.
    """
    shape = (types or {}).get(port)
    if shape is None:
        raise GraphError(f"{node}: nothing says the shape of what it reads")
    array = np.asarray(shape).reshape(-1)
    if array.dtype.kind not in "iu" or not array.size or array.min() < 1:
        raise GraphError(f"{node}: its {port} has a shape of {array.tolist()}; expected positive whole numbers")
    return tuple(int(length) for length in array)


def integer_parameter(
    value: Any, shape: tuple[int | None, ...], node: str, name: str, low: int, high: int, remedy: str
) -> Array:
    """Return a whole-number parameter of node `node` as int64 after checking it.

    Raises
    ------
    GraphError
        It has another shape than `shape` (None: any length), or is not of an integer type.
    ChipLimitError
        A value lies outside `low` to `high`; the message gives the limit and `remedy`.
    """
    array = np.asarray(value)
    if array.dtype.kind not in "iu":
        raise GraphError(f"{node}: {name} holds {array.dtype}, not whole numbers")
    _check_shape(array, shape, node, name)
    if array.size:
        for index in (int(array.argmin()), int(array.argmax())):
            found = int(array.flat[index])
            if not low <= found <= high:
                where = [int(i) for i in np.unravel_index(index, array.shape)]
                raise ChipLimitError(
                    f"{node}: {name}{where or ''} is {found}; it must lie between {low} and {high}: {remedy}"
                )
    return array.astype(np.int64)


def unit_parameter(metadata: dict[str, Any], features: int, node: str) -> Array:
    """Return ``metadata["unit"]``, what a 1 of each feature stands for in the float graph, ``(features,)``.

    Raises
    ------
    GraphError
        It is missing, has another shape, or is not positive.
    """
    unit = parameter(metadata.get("unit"), (features,), node, "metadata unit")
    if not (unit > 0).all():
        raise GraphError(f"{node}: metadata unit[{int(np.argmin(unit))}] is {unit.min()}; it must be positive")
    return unit


def register_parameters(metadata: dict[str, Any], limits: dict[str, tuple[int, int]], node: str) -> dict[str, Array]:
    """Return the registers of neurons, one of each for each neuron, and their ``unit``, by key.

    Parameters
    ----------
    metadata : dict
    limits : dict of str to (int, int)
        What the chip holds in each register; the first says how many neurons there are.
    node : str

    Raises
    ------
    GraphError, ChipLimitError
        As `integer_parameter` and `unit_parameter` do.
    """
    first = next(iter(limits))
    shape = np.asarray(metadata.get(first)).shape
    if len(shape) != 1:
        raise GraphError(f"{node}: {first} has shape {shape}; expected (any)")
    read = {
        key: integer_parameter(metadata.get(key), shape, node, key, low, high, "the chip holds no other")
        for key, (low, high) in limits.items()
    }
    return {**read, "unit": unit_parameter(metadata, shape[0], node)}


def _check_shape(array: Array, shape: tuple[int | None, ...], node: str, name: str) -> None:
    fits = array.ndim == len(shape) and all(w is None or w == h for w, h in zip(shape, array.shape, strict=True))
    if not fits:
        expected = "(" + ", ".join("any" if length is None else str(length) for length in shape) + ")"
        raise GraphError(f"{node}: {name} has shape {array.shape}; expected {expected}")


def opaque_node(operator: Operator, metadata: dict[str, Any]) -> nir.NIRGraph:
    """Wrap an operator NIR has no node for: a nested graph marked in metadata, its body poisoned.

    Stock readers can load it (one input, one output, types check), but executing the body gives NaN whatever comes in,
    so that a reader that does not know the operator fails loudly or ends in NaN, never in a plausible wrong answer.

    Parameters
    ----------
    operator : Operator
        Gives name, version and widths.
    metadata : dict
        The operator's parameters, its ``axes`` and ``formula``.
    """
    down = np.full((1, operator.in_features), np.nan, np.float32)
    up = np.full((operator.out_features, 1), np.nan, np.float32)
    return nir.NIRGraph(
        nodes={
            "input": nir.Input({"input": np.array([operator.in_features])}),
            "poison_down": nir.Linear(down),
            "poison_up": nir.Linear(up),
            "output": nir.Output({"output": np.array([operator.out_features])}),
        },
        edges=[("input", "poison_down"), ("poison_down", "poison_up"), ("poison_up", "output")],
        metadata={"standard": False, "op": operator.name, "op_version": operator.version, **metadata},
    )


def check_standard_marks(metadata: dict[str, Any], operator: type[Operator], node: str) -> None:
    """Check that what a standard node's metadata say of its meaning is `operator`, in the version known here.

    Raises
    ------
    GraphError
        They say that the node is not standard, or that it is another operator.
    UnsupportedOperatorError
        They give another version.
    """
    if "standard" in metadata and not metadata_value(metadata, "standard", bool, node):
        raise GraphError(f"{node}: metadata say it is not standard, but it is made of NIR's own nodes")
    if "op" in metadata and (op := metadata_value(metadata, "op", str, node)) != operator.name:
        raise GraphError(f"{node}: metadata say it is a {op}, but the nodes mean a {operator.name}")
    if "op_version" in metadata:
        version = metadata_value(metadata, "op_version", int, node)
        if version != operator.version:
            raise UnsupportedOperatorError(
                f"{node}: {operator.name} version {version} is not known, only {operator.version}"
            )


def metadata_value(metadata: dict[str, Any], key: str, kind: type, node: str) -> Any:
    """Return ``metadata[key]`` as `kind` (int, float, bool or str) after checking it.

    Raises
    ------
    GraphError
        The key is missing or its value is of another kind.
    """
    if key not in metadata:
        raise GraphError(f"{node}: its metadata has no {key!r}")
    value = metadata[key]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    allowed = (int, float) if kind is float else (kind,)
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        raise GraphError(f"{node}: metadata {key!r} is {value!r}; expected {kind.__name__}")
    return kind(value)
