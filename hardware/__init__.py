"""From graphs to hardware: runners, traces, equivalence, profiles, operation counts and energy.

Nothing here knows SpikeBERT; a graph of our operators is all it takes.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hardware.energy.counts import OperationCounter, count_operations
    from hardware.energy.estimate import estimate_energy
    from hardware.equivalence import compare
    from hardware.loihi.placement import place
    from hardware.profiler import Profiler, profile
    from hardware.runners import open_runner, run
    from hardware.trace import Trace

_HOMES = {
    "OperationCounter": "hardware.energy.counts",
    "Profiler": "hardware.profiler",
    "Trace": "hardware.trace",
    "compare": "hardware.equivalence",
    "count_operations": "hardware.energy.counts",
    "estimate_energy": "hardware.energy.estimate",
    "open_runner": "hardware.runners",
    "place": "hardware.loihi.placement",
    "profile": "hardware.profiler",
    "run": "hardware.runners",
}

__all__ = [
    "OperationCounter",
    "Profiler",
    "Trace",
    "compare",
    "count_operations",
    "estimate_energy",
    "open_runner",
    "place",
    "profile",
    "run",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its home."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})
