"""Conformance files: one tiny graph for each operator, its inputs, and what must come out; and the check of a reply.

Another team runs the graphs with its own tool and puts what fired beside them; `check_conformance` names the first
divergence of each. ``docs/nir-extension.md`` describes the files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from export.cases import network_of_case
from export.network import INTEGER, Network, NetworkBuilder
from export.nir_file import read_nir, write_nir
from export.nir_graph.reader import parse_graph
from export.nir_graph.writer import build_graph
from export.operators import (
    Affine,
    Case,
    LayerNorm,
    LeakyIntegrateAndFire,
    SpikeAttention,
    TokenMean,
    all_cases,
    all_integer_cases,
)
from export.passes.quantize import quantize
from export.token_encoding import TokenEncoding
from hardware.equivalence.comparison import NODE_OF_LOGITS, Divergence, compare
from hardware.errors import TraceError, TraceMismatchError
from hardware.runners import run
from hardware.traces.recorded import trace_from_arrays
from hardware.traces.trace import RESERVED_ARRAYS, Trace, read_arrays, write_arrays

GRAPH, INPUTS, EXPECTED, REPLY = "{}.nir", "{}.inputs.npz", "{}.expected.npz", "{}.npz"
PRECISIONS = ("float64", INTEGER)
"""Of the cases; folders of these names."""
OUTPUT_TOLERANCE = 1e-12
"""By how much an output in float64 may be off, relative to its size where that is above 1: sums of a few numbers in
another order."""
WHOLE = "spiking transformer"
EQUAL, DIFFERENT, MISSING, UNUSABLE = "equal", "different", "missing", "unusable"


@dataclass(frozen=True)
class CaseResult:
    """What became of a case.

    Attributes
    ----------
    case : str
        ``PRECISION/NAME``, where its files are.
    status : str
        ``"equal"``, ``"different"``, ``"missing"`` (no reply) or ``"unusable"`` (a reply that is none to this case).
    spikes_compared, states_compared, outputs_compared : int
        How much of it there was in the reply; states are membrane potentials.
    first_divergence : Divergence or None
    detail : str
        What is unusable.
    """

    case: str
    status: str
    spikes_compared: int = 0
    states_compared: int = 0
    outputs_compared: int = 0
    first_divergence: Divergence | None = None
    detail: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


def write_conformance(folder: str | Path) -> list[str]:
    """Write the files of every case, and return the cases' names; what stands there is replaced.

    Raises
    ------
    NirFileError, TraceError
        The folder cannot be written to.
    """
    written = []
    for precision in PRECISIONS:
        for title, network, inputs, mask in _cases(precision):
            name = f"{precision}/{_slug(title)}"
            place = Path(folder) / name
            place.parent.mkdir(parents=True, exist_ok=True)
            # what the file says is run, not what it was written from
            graph = read_nir(write_nir(_file(place, GRAPH), build_graph(network, np.float64)))
            expected = run(graph, inputs, mask, precision=precision, record_membrane_potentials=True)
            expected.save(_file(place, EXPECTED))
            key = "input" if network.token_encoding is None else "input_ids"
            write_arrays(_file(place, INPUTS), {key: inputs, "mask": expected.mask})
            written.append(name)
    return written


def check_conformance(folder: str | Path, only: Iterable[str] = ()) -> list[CaseResult]:
    """Compare every reply ``NAME.npz`` with ``NAME.expected.npz`` beside it.

    Parameters
    ----------
    folder : str or Path
        As `write_conformance` made it.
    only : iterable of str
        Patterns of cases, such as ``integer/*``; all where empty.

    Raises
    ------
    TraceError
        There are no such cases, or what is expected cannot be read.
    """
    folder, patterns = Path(folder), tuple(only)
    suffix = EXPECTED.format("")
    names = sorted(f"{path.parent.name}/{path.name.removesuffix(suffix)}" for path in folder.glob(f"*/*{suffix}"))
    if not names:
        raise TraceError(f"{folder}: holds no conformance files; write them with --write")
    chosen = [name for name in names if not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise TraceError(f"{folder}: no case is called {pattern}; there are {', '.join(names)}")
    return [_check(folder / name, name) for name in chosen]


def _check(place: Path, name: str) -> CaseResult:
    expected, reply = Trace.load(_file(place, EXPECTED)), _file(place, REPLY)
    if not reply.exists():
        return CaseResult(name, MISSING)
    try:
        arrays = read_arrays(reply)
        outputs = arrays.pop("outputs", None)
        arrays = {key: value for key, value in arrays.items() if key not in RESERVED_ARRAYS}
        spikes = states = 0
        first: Divergence | None = None
        if outputs is None and not expected.spikes:
            raise TraceMismatchError(f"{reply}: has no array 'outputs', all that this operator shows")
        if expected.spikes:
            found = trace_from_arrays({**arrays, "mask": expected.mask}, reply)
            found.metadata["precision"] = expected.precision
            comparison = compare(expected.select(expected.spikes, logits=False), found)
            first = comparison.first_divergence
            spikes = comparison.spikes_compared
            states = sum(value[:, expected.mask].size for value in found.membrane_potentials.values())
        if outputs is not None:
            first = first or _first_output(expected, outputs, reply)
    except (TraceError, TraceMismatchError) as error:
        return CaseResult(name, UNUSABLE, detail=str(error))
    shown = 0 if outputs is None else outputs.size
    return CaseResult(name, EQUAL if first is None else DIFFERENT, spikes, states, shown, first)


def _first_output(expected: Trace, found: np.ndarray, reply: Path) -> Divergence | None:
    """Return the first output ``(T, B, N, C)`` or ``(T, B, C)`` that is not the expected one, at real tokens."""
    meant = expected.outputs
    assert meant is not None
    if found.shape != meant.shape or found.dtype.kind not in "fiub":
        raise TraceMismatchError(
            f"{reply}: outputs have shape {found.shape} and type {found.dtype}; expected numbers {meant.shape}"
        )
    tolerance = 0.0 if expected.precision == INTEGER else OUTPUT_TOLERANCE
    wrong = ~(np.abs(found - meant) <= tolerance * np.maximum(1, np.abs(meant)))  # what is no number is wrong
    if meant.ndim == 4:
        wrong &= expected.mask[..., None]
    if not wrong.any():
        return None
    place = tuple(int(index) for index in np.argwhere(wrong)[0])
    step, sample, *token, feature = place
    values = float(meant[place]), float(found[place])
    return Divergence("output", NODE_OF_LOGITS, step, sample, token[0] if token else None, feature, *values)


def _file(place: Path, pattern: str) -> Path:
    return place.with_name(pattern.format(place.name))


def _cases(precision: str) -> Iterator[tuple[str, Network, np.ndarray, np.ndarray]]:
    """Yield title, network, inputs and token mask of every case."""
    for case in all_integer_cases() if precision == INTEGER else all_cases():
        yield f"{case.operator.name}-{case.title}", network_of_case(case), case.inputs, _mask(case)
    whole, (ids, mask) = _spiking_transformer(), _sentences()
    if precision == INTEGER:
        whole = parse_graph(quantize(build_graph(whole, np.float64), calibration=(ids, mask)))
    yield WHOLE, whole, ids, mask


def _slug(title: str) -> str:
    """Return a title as a file's name: letters, digits, underscores, and hyphens."""
    in_words = title.replace(">=", "at equality").replace(">", "above")
    return re.sub("[^a-z0-9-]+", "_", in_words)


def _mask(case: Case) -> np.ndarray:
    return np.ones(case.inputs.shape[1:3], bool) if case.token_mask is None else case.token_mask


def _sentences() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(41)
    mask = np.arange(5) < np.array([[5], [3], [1]])
    return np.where(mask, rng.integers(1, 12, mask.shape), 0), mask


def _spiking_transformer() -> Network:
    """Return a block of a spiking transformer with everything that SpikeBERT is made of."""
    rng = np.random.default_rng(42)
    width, hidden, steps = 8, 12, 4

    def affine(fan_out: int, fan_in: int) -> Affine:
        return Affine(rng.normal(0, 1.5 / np.sqrt(fan_in), (fan_out, fan_in)), rng.normal(0, 0.1, fan_out))

    def norm(features: int) -> LayerNorm:
        return LayerNorm(rng.normal(1, 0.2, features), rng.normal(0.3, 0.2, features), 1e-5, 1)

    def neuron(features: int, threshold: float = 1.0) -> LeakyIntegrateAndFire:
        full = np.full(features, 1.0)
        return LeakyIntegrateAndFire(0.9 * full, 10 * full, threshold * full, fire_on_equal=True)

    builder = NetworkBuilder("input", 12 + 5)
    builder.add("embedding", Affine(rng.normal(0, 1, (width, 17))), "input")
    stream = [builder.add("embedding_neuron", neuron(width), "embedding")]

    def projection(name: str, fan_out: int, fan_in: int, sources: list[str]) -> str:
        normed = builder.add(
            f"{name}_norm", norm(fan_out), builder.add(f"{name}_affine", affine(fan_out, fan_in), sources)
        )
        return builder.add(f"{name}_neuron", neuron(fan_out), normed)

    qkv = projection("qkv", 3 * width, width, stream)
    attention = builder.add("attention", SpikeAttention(2, width // 2, 0.125), qkv)
    attended = builder.add("attention_neuron", neuron(width, 0.25), attention)
    stream.append(projection("projection", width, width, [attended]))
    intermediate = projection("intermediate", hidden, width, stream)
    stream.append(projection("output_projection", width, hidden, [intermediate]))
    builder.add("classifier", affine(3, width), builder.add("token_mean", TokenMean(width), stream))
    encoding = TokenEncoding(vocabulary=12, positions=5)
    return builder.network("output", "classifier", token_encoding=encoding, time_steps=steps)
