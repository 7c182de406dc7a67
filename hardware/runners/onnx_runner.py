"""Runner ``onnx``: ONNX Runtime executes a graph, or an ONNX file of ours, and fills the same trace.

A graph is written to a temporary file first, so that what runs is always a file as users get it. ONNX Runtime's graph
optimizations are off: they may fuse what is spelled out (a layer norm) and round differently, which can flip a spike.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from export.network import Network
from export.onnx_format import onnx_is_missing
from export.onnx_format.builder import POTENTIAL
from export.onnx_format.file import read_onnx, write_onnx
from export.onnx_format.graph import ATTENTION_MASK, INPUT_IDS, LOGITS, PRECISIONS, STEP_LOGITS, draft_onnx
from hardware.errors import RunnerError
from hardware.runners.runner import Runner, check_batch, check_time_steps, number_type
from hardware.traces.trace import Trace, whole_spikes

try:
    import onnxruntime
except ModuleNotFoundError as error:
    raise onnx_is_missing(error) from error


class OnnxRunner(Runner):
    """Runs a network, or a file, in float64 or float32, an integer network in integers.

    Parameters
    ----------
    model : Network or Path
        A file must have been exported with its spikes as outputs.
    precision : {"float64", "float32", "integer"}
        For a file, the one it was written in.
    time_steps : int, optional
        In place of the graph's own; a file has its own.
    record_membrane_potentials : bool
        Keep every neuron's potential as it was tested against the threshold; by default those that a file shows.
    logits_only : bool
        Be content with a file that shows nothing but logits; the trace has no spikes then.

    Raises
    ------
    RunnerError
        The file has other outputs, time steps or another precision; or ONNX Runtime refuses it.
    """

    name = "onnx"

    def __init__(
        self,
        model: Network | Path,
        precision: str = "float64",
        time_steps: int | None = None,
        record_membrane_potentials: bool | None = None,
        logits_only: bool = False,
    ) -> None:
        self.time_steps = check_time_steps(time_steps)
        self.precision = precision
        self.logits_only = logits_only
        with tempfile.TemporaryDirectory(prefix="spikebert-onnx-") as scratch:
            path = model
            if isinstance(model, Network):
                number_type(model, precision)
                draft = draft_onnx(
                    model,
                    precision,
                    spikes=True,
                    membrane_potentials=bool(record_membrane_potentials),
                    time_steps=time_steps,
                )
                path = write_onnx(Path(scratch) / "graph.onnx", draft)
            assert isinstance(path, Path)
            self.file = read_onnx(path)
            shown = self.file.shows_membrane_potentials and not logits_only
            self.record_membrane_potentials = (
                shown if record_membrane_potentials is None else record_membrane_potentials
            )
            self._check_file()
            options = onnxruntime.SessionOptions()
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            try:
                self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            except Exception as error:  # ONNX Runtime has an exception class of its own for each status code
                raise RunnerError(f"{path}: ONNX Runtime refuses it: {error}") from error

    def _check_file(self) -> None:
        file, time_steps = self.file, self.time_steps
        if file.precision != self.precision:
            raise RunnerError(f"{file.path}: computes in {file.precision}, not {self.precision}; export it again")
        if time_steps is not None and file.time_steps is not None and time_steps != file.time_steps:
            raise RunnerError(f"{file.path}: runs {file.time_steps} time steps, not {time_steps}; export it again")
        wanted = [LOGITS] if self.logits_only else [*file.spiking_nodes, STEP_LOGITS]
        if self.record_membrane_potentials:
            wanted += [POTENTIAL.format(name) for name in file.spiking_nodes]
        missing = [name for name in wanted if name not in file.outputs]
        if missing:
            raise RunnerError(
                f"{file.path}: does not show {missing[0]} and {len(missing) - 1} other values a trace needs; export it "
                "with --spikes, and with --membrane-potentials to compare those (verify --nodes output compares logits "
                "alone)"
            )

    def run(self, inputs: Any, token_mask: Any = None) -> Trace:
        """Run one batch; see `Runner.run`.

        Raises
        ------
        RunnerError
            Inputs do not fit, or ONNX Runtime fails.
        """
        file = self.file
        batch = check_batch(file, inputs, token_mask, self.time_steps)
        feeds: dict[str, np.ndarray] = {ATTENTION_MASK: batch.mask.astype(np.int64)}
        if batch.values is not None:
            feeds[file.input_name] = batch.values.astype(PRECISIONS[self.precision])
        else:
            assert batch.input_ids is not None
            feeds[INPUT_IDS] = batch.input_ids
        names = [LOGITS] if self.logits_only else list(file.outputs)
        try:
            found = dict(zip(names, self._session.run(names, feeds), strict=True))
        except Exception as error:  # see above
            raise RunnerError(f"{file.path}: ONNX Runtime fails: {error}") from error
        for name in () if self.logits_only else file.spiking_nodes:
            if found[name].shape[0] != batch.time_steps:
                raise RunnerError(
                    f"{file.path}: {name} shows {found[name].shape[0]} time steps; the file's metadata say "
                    f"{batch.time_steps}"
                )
        potentials = file.spiking_nodes if self.record_membrane_potentials else ()
        spiking = () if self.logits_only else file.spiking_nodes
        return Trace(
            spikes={name: whole_spikes(found[name], f"{file.path}: {name}") for name in spiking},
            logits=found[LOGITS],
            mask=batch.mask,
            outputs=None if self.logits_only else found[STEP_LOGITS],
            membrane_potentials={name: found[POTENTIAL.format(name)] for name in potentials},
            thresholds={name: value for name, value in file.thresholds.items() if name in spiking},
            input_ids=batch.input_ids,
            metadata={"runner": self.name, "precision": self.precision, "time_steps": batch.time_steps},
        )
