"""The log of a training: JSON lines beside the output while it runs, and TensorBoard where asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spikebert.distillation.training import Callback, Record
from spikebert.errors import MissingDependencyError

LOG_FILE = "training.jsonl"
LOG_EVERY_STEPS = 10
STATE_FILE = "state.pt"


def log_beside(output: Path) -> Path:
    """Return where the log of a training lies until its folder is written."""
    return output.with_name(f"{output.name}.{LOG_FILE}")


def state_beside(output: Path) -> Path:
    """Return where the state of a training lies, for resuming, until its folder is written."""
    return output.with_name(f"{output.name}.{STATE_FILE}")


class TrainingLog:
    """Writes every tenth step and every evaluation.

    Parameters
    ----------
    path : Path
        The JSON-lines file.
    tensorboard : Path, optional
        Folder for TensorBoard's own files.
    keep_until : int
        When a training goes on from this step, lines up to it stay; what a killed run wrote after it goes.
    silent : bool
        Write nothing: of several processes one writes.
    """

    def __init__(self, path: Path, tensorboard: Path | None = None, keep_until: int = 0, silent: bool = False) -> None:
        self.file: Any = None
        self.writer: Any = None
        if silent:
            return
        kept = []
        if keep_until and path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= keep_until]
        path.parent.mkdir(parents=True, exist_ok=True)
        self.writer = None if tensorboard is None else _summary_writer(tensorboard)
        self.file = path.open("w", encoding="utf-8", buffering=1)
        self.file.writelines(kept)

    def __enter__(self) -> TrainingLog:
        """Return itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close both files."""
        for each in (self.file, self.writer):
            if each is not None:
                each.close()

    def before(self, callback: Callback | None) -> Callback:
        """Return a callback that writes to the log and then calls `callback`."""

        def both(record: Record) -> None:
            self.write(record)
            if callback is not None:
                callback(record)

        return both

    def write(self, record: Record) -> None:
        """Write one record, of a step or of an evaluation."""
        is_step = "dev" not in record
        if self.file is None or (is_step and record["step"] % LOG_EVERY_STEPS):
            return
        self.file.write(json.dumps(record) + "\n")
        if self.writer is not None:
            for name, value in record.items():
                if isinstance(value, float):
                    self.writer.add_scalar(f"{'train' if is_step else 'dev'}/{name}", value, record["step"])


def _summary_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingDependencyError("--tensorboard needs the package tensorboard (pip install tensorboard)") from error
    return SummaryWriter(str(folder))
