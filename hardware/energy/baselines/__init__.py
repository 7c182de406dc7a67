"""What a spiking network is compared with: dense transformers, and a quantized network of its own shape.

A baseline is counted with the kinds of `hardware.energy.counts`, so that every energy model prices it as it prices the
spiking side, and attention products, softmax, GELU and layer norms are on both bills. Its matrix products are counted
twice: by a closed formula, which is quick and names every node, and by a library while the real architecture runs
without weights (`Baseline.library_macs`). Tests and ``benchmarks/energy.py`` hold one against the other.
"""

from __future__ import annotations

from export.network import Network
from hardware.energy.baselines.baseline import Baseline
from hardware.energy.baselines.transformer import BASELINES, TransformerBaseline
from hardware.energy.baselines.twin import QUANTIZED_TWIN, QuantizedTwin, TwinRule, twin_rule
from spikebert.errors import ConfigurationError

__all__ = [
    "BASELINES",
    "QUANTIZED_TWIN",
    "Baseline",
    "QuantizedTwin",
    "TransformerBaseline",
    "TwinRule",
    "find_baseline",
    "twin_rule",
]


def find_baseline(name: str, network: Network, time_steps: int) -> Baseline:
    """Return the baseline called `name`: one of `BASELINES`, or ``quantized`` for the twin of `network`.

    Raises
    ------
    ConfigurationError
        No baseline has that name.
    """
    if name == QuantizedTwin.name:
        return QuantizedTwin(network, time_steps)
    if name not in BASELINES:
        raise ConfigurationError(
            f"baseline {name!r} is not known; choose one of {', '.join(BASELINES)}, {QuantizedTwin.name}"
        )
    return BASELINES[name]
