"""What worker processes of the streaming tests call; a fresh process must be able to import it by name."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np

from export import parse_graph, read_nir
from hardware.equivalence.streaming import Pair
from hardware.runners import open_runner
from hardware.traces.trace import Trace


def open_from_files(good: Path, other: Path, kill: Path | None = None, at_first_id: int = -1) -> Pair:
    """Open a pair; the first worker that finds the file `kill` at a batch that starts so removes it and dies."""
    meant, runs = (parse_graph(read_nir(path)) for path in (good, other))
    expected, actual = (open_runner(graph, "reference", record_membrane_potentials=True) for graph in (meant, runs))
    pair = Pair(expected, actual, meant)
    if kill is not None:
        run = expected.run

        def run_or_die(inputs: Any, mask: Any = None) -> Trace:
            if kill.exists() and np.asarray(inputs)[0, 0] == at_first_id:
                kill.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            return run(inputs, mask)

        expected.run = run_or_die  # type: ignore[method-assign]
    return pair


def open_and_die(path: Path) -> Pair:
    """Die as a worker that the kernel kills."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError(path)
