"""Traces recorded elsewhere: our own files, plain .npz files of spikes by node, NIR's data layout.

Whoever has a chip, or another simulator, brings its spikes in one of these layouts (``docs/equivalence.md`` describes
them), and everything that compares runs takes the file in place of a runner.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from nir.data_ir import EventData, NIRGraphData, NIRNodeData, TimeGriddedData

from export.network import INTEGER, Network
from hardware.choices import PRECISIONS
from hardware.errors import TraceError, TraceMismatchError
from hardware.traces.trace import POTENTIAL_SUFFIX, RESERVED_ARRAYS, Trace, largest_trace, read_arrays, whole_spikes

EVENTS, SHAPE = ".events", ".shape"
NIR_SPIKES, NIR_VOLTAGES = "spikes", "voltages"
NIR_FIELDS = ("data", "dt", "idx", "time", "n_neurons", "t_max")


def load_trace(path: str | Path) -> Trace:
    """Read a trace from a file of any of the layouts.

    Raises
    ------
    TraceError
        The file is missing, no .npz, or in no layout known here; the message names the array.
    """
    path = Path(path)
    return trace_from_arrays(read_arrays(path), path)


def check_kind(trace: Trace, network: Network, path: str | Path) -> None:
    """Check that a trace was recorded on a graph of the kind given: of floats, or of whole numbers.

    An integer graph has the nodes of the float graph it was made of, so nothing else tells their traces apart. One that
    does not say its precision, as other tools' do not, passes.

    Raises
    ------
    TraceMismatchError
        It says that it is of the other kind.
    """
    precision = str(trace.precision)
    if precision not in PRECISIONS:
        return
    if (precision == INTEGER) != network.is_integer:
        kinds = ("a float graph", "an integer graph")
        recorded, given = kinds[precision == INTEGER], kinds[network.is_integer]
        raise TraceMismatchError(
            f"{path}: was recorded at precision {precision!r}, on {recorded}, and the graph given is {given}; their "
            "spikes differ, so give the graph it was recorded on"
        )


def trace_from_arrays(arrays: dict[str, np.ndarray], path: Path) -> Trace:
    """Return the trace that the arrays of a file make, in any of the layouts; `path` is for messages.

    Raises
    ------
    TraceError
        They are in no layout known here; the message names the array.
    """
    if "logits" in arrays and "mask" in arrays:
        return Trace.from_arrays(arrays, path)
    return _foreign(arrays, path)


def _foreign(arrays: dict[str, np.ndarray], path: Path) -> Trace:
    known = {key: arrays.pop(key) for key in RESERVED_ARRAYS if key in arrays}
    nir_names = sorted({_nir_node(key) for key in arrays if _nir_node(key)})
    shape = next((known[key].shape for key in ("mask", "input_ids") if key in known), None)
    found: dict[str, np.ndarray] = {}
    for node in nir_names:
        observables = {
            name: _nir_observable(arrays, f"{node}.{name}", path)
            for name in (NIR_SPIKES, NIR_VOLTAGES)
            if any(key.startswith(f"{node}.{name}.") for key in arrays)
        }
        if NIR_SPIKES not in observables:
            raise TraceError(f"{path}: {node} has no {NIR_SPIKES}")
        if shape is None:
            raise TraceError(
                f"{path}: {node}.{NIR_SPIKES} numbers neurons without saying which token they stand for; add an array "
                "'mask' (sentences, tokens)"
            )
        where = f"{path}: {node}.{NIR_SPIKES}"
        found[node] = whole_spikes(_from_neurons(observables[NIR_SPIKES], shape, where), where)
        if NIR_VOLTAGES in observables:
            found[f"{node}{POTENTIAL_SUFFIX}"] = _from_neurons(
                observables[NIR_VOLTAGES], shape, f"{path}: {node}.{NIR_VOLTAGES}"
            )
    for key, value in arrays.items():
        if _nir_node(key) or (key.endswith(SHAPE) and f"{key.removesuffix(SHAPE)}{EVENTS}" in arrays):
            continue
        if key.endswith(EVENTS):
            node = key.removesuffix(EVENTS)
            found[node] = _from_events(value, arrays.get(f"{node}{SHAPE}"), f"{path}: {node}")
        else:
            found[key] = value[:, None] if value.ndim == 3 else value
    spikes = next((value for key, value in found.items() if not key.endswith(POTENTIAL_SUFFIX)), None)
    if spikes is None or spikes.ndim != 4:
        raise TraceError(
            f"{path}: holds no spikes by node; expected arrays (time steps, sentences, tokens, features) under the "
            "names of nodes, or one of the layouts in docs/equivalence.md"
        )
    sentences, tokens = spikes.shape[1:3]
    mask = known.pop("mask", np.ones((sentences, tokens), bool))
    logits = known.pop("logits", np.zeros((sentences, 0)))
    return Trace.from_arrays({**found, **known, "mask": mask, "logits": logits}, path)


def _nir_node(key: str) -> str:
    """Return the node of an array in NIR's data layout, ``NODE.spikes.idx``; empty for any other."""
    parts = key.rsplit(".", 2)
    is_nir = len(parts) == 3 and parts[1] in (NIR_SPIKES, NIR_VOLTAGES) and parts[2] in NIR_FIELDS
    return parts[0] if is_nir else ""


def _nir_observable(arrays: dict[str, np.ndarray], prefix: str, path: Path) -> TimeGriddedData:
    given = {name: arrays[f"{prefix}.{name}"] for name in NIR_FIELDS if f"{prefix}.{name}" in arrays}
    try:
        dt = float(given["dt"])
        if "data" in given:
            return TimeGriddedData(given["data"], dt)
        events = EventData(given["idx"], given["time"], int(given["n_neurons"]), float(given["t_max"]))
        return events_to_grid(events, dt)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise TraceError(
            f"{path}: {prefix} is not in NIR's data layout (data and dt, or idx, time, n_neurons, t_max and dt): "
            f"{type(error).__name__}: {error}"
        ) from error


def events_to_grid(events: EventData, dt: float) -> TimeGriddedData:
    """Return events on a grid of time steps.

    NIR's own ``to_time_gridded`` rounds ``t_max / dt`` and every time down, so that 3e-4 s at 1e-4 s a step becomes
    step 2; an event here belongs to the step whose start it lies nearest to, or within.

    Raises
    ------
    ValueError
        A step has no length, the grid would be larger than any trace may be, or an event lies outside the recording or
        is of a neuron that is not there.
    """
    if not (0 < dt < math.inf and 0 < events.t_max / dt < math.inf):
        raise ValueError(f"{events.t_max} seconds in steps of {dt} make no recording")
    steps = round(events.t_max / dt)
    if events.n_samples * steps * events.n_neurons > largest_trace():
        raise ValueError(f"its grid would take more than the {largest_trace()} bytes that are read")
    fired = events.idx != -1
    when = np.floor(np.where(fired, events.time, 0) / dt + 1e-6)
    if not ((when >= 0) & (when < steps)).all():
        raise ValueError(f"an event lies outside the {steps} time steps of the recording")
    if (events.idx[fired] < 0).any() or (events.idx[fired] >= events.n_neurons).any():
        raise ValueError(f"an event is of a neuron outside the {events.n_neurons} there are")
    data = np.zeros((events.n_samples, steps, events.n_neurons), bool)
    sample = np.broadcast_to(np.arange(events.n_samples)[:, None], fired.shape)
    data[sample[fired], when[fired].astype(int), events.idx[fired]] = True
    return TimeGriddedData(data, dt)


def _from_neurons(grid: TimeGriddedData, shape: tuple[int, ...], where: str) -> np.ndarray:
    samples, steps, neurons = grid.shape
    if len(shape) != 2 or samples != shape[0] or neurons % shape[1]:
        raise TraceError(
            f"{where}: has {samples} samples of {neurons} neurons; the mask is {shape} (sentences, tokens), and every "
            "token needs as many"
        )
    return np.moveaxis(grid.data.reshape(samples, steps, shape[1], neurons // shape[1]), 0, 1)


def _from_events(events: np.ndarray, shape: np.ndarray | None, where: str) -> np.ndarray:
    if shape is None or shape.shape != (4,) or shape.dtype.kind not in "ui" or (shape < 1).any():
        raise TraceError(
            f"{where}{EVENTS} needs an array {where.rsplit(': ', 1)[-1]}{SHAPE} of four whole numbers: time steps, "
            "sentences, tokens, features"
        )
    if events.ndim != 2 or events.shape[1] != 4 or events.dtype.kind not in "ui":
        raise TraceError(
            f"{where}{EVENTS} has shape {events.shape} and type {events.dtype}; expected whole numbers (E, 4)"
        )
    beyond = ((events < 0) | (events >= shape)).any(-1)
    if beyond.any():
        index = int(np.argmax(beyond))
        raise TraceError(f"{where}{EVENTS}[{index}] is {events[index].tolist()}, outside {shape.tolist()}")
    lengths = [int(length) for length in shape]
    if math.prod(lengths) > largest_trace():
        raise TraceError(f"{where}{SHAPE} is {lengths}, more than the {largest_trace()} bytes that are read")
    spikes = np.zeros(lengths, np.uint8)
    spikes[tuple(events.T)] = 1
    return spikes


def trace_from_nir_data(data: NIRGraphData, mask: Any, **rest: Any) -> Trace:
    """Return NIR's data of a run as a trace.

    Parameters
    ----------
    data : nir.data_ir.NIRGraphData
        Every node's ``spikes`` as events or on a grid, and ``voltages`` where recorded; neurons are numbered
        ``token * features + feature``.
    mask : array
        ``(sentences, tokens)``.
    rest
        Other attributes of `Trace`.

    Raises
    ------
    TraceError
        A node has no spikes, some that are no whole numbers, or other neurons than the mask has tokens for.
    """
    mask = np.asarray(mask) != 0
    spikes: dict[str, np.ndarray] = {}
    potentials: dict[str, np.ndarray] = {}
    for name, node in data.nodes.items():
        if not isinstance(node, NIRNodeData) or NIR_SPIKES not in node.observables:
            raise TraceError(f"{name}: has no observable {NIR_SPIKES!r}")
        for observable, kept in ((NIR_SPIKES, spikes), (NIR_VOLTAGES, potentials)):
            if observable not in node.observables:
                continue
            found = node.observables[observable]
            if isinstance(found, EventData):
                raise TraceError(
                    f"{name}: its {observable} are events; put them on a grid with "
                    "hardware.traces.recorded.events_to_grid"
                )
            kept[name] = _from_neurons(found, mask.shape, f"{name}: {observable}")
    trace = {"logits": np.zeros((mask.shape[0], 0)), "membrane_potentials": potentials, **rest}
    whole = {name: whole_spikes(value, f"{name}: {NIR_SPIKES}") for name, value in spikes.items()}
    return Trace(spikes=whole, mask=mask, **trace)


def trace_to_nir_data(trace: Trace, dt: float) -> NIRGraphData:
    """Return a trace's spikes, and potentials where recorded, as NIR's data on a grid of `dt` seconds.

    Spikes of 0 and 1 are booleans there, as NIR has them; others stay the whole numbers they are.
    """

    def grid(values: np.ndarray) -> TimeGriddedData:
        by_sample = np.moveaxis(values, 0, 1)
        return TimeGriddedData(by_sample.reshape(*by_sample.shape[:2], -1), dt)

    nodes: dict[str, NIRGraphData | NIRNodeData] = {}
    for name, spikes in trace.spikes.items():
        is_binary = spikes.min(initial=0) >= 0 and spikes.max(initial=0) <= 1
        observables: dict[str, EventData | TimeGriddedData] = {NIR_SPIKES: grid(spikes != 0 if is_binary else spikes)}
        if name in trace.membrane_potentials:
            observables[NIR_VOLTAGES] = grid(trace.membrane_potentials[name])
        nodes[name] = NIRNodeData(observables)
    return NIRGraphData(nodes)
