"""From graphs to hardware: runners, traces, equivalence, and (later) profiles, energy and placement.

Nothing here knows SpikeBERT; a graph of our operators is all it takes.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hardware.equivalence import compare
    from hardware.runners import open_runner, run
    from hardware.trace import Trace

_HOMES = {
    "Trace": "hardware.trace",
    "compare": "hardware.equivalence",
    "open_runner": "hardware.runners",
    "run": "hardware.runners",
}

__all__ = ["Trace", "compare", "open_runner", "run"]


def __getattr__(name: str) -> Any:
    """Import a public name from its home."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
