"""Which process model Lava takes: ours by precision, stock ones in floating or fixed point."""

from __future__ import annotations

from typing import Any

from hardware.runners.lava.compatibility import import_lava

import_lava()

from lava.magma.core.run_configs import RunConfig  # noqa: E402  the door above comes first
from lava.magma.core.sync.domain import SyncDomain  # noqa: E402
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol  # noqa: E402

STOCK_TAGS = {"float64": "floating_pt", "float32": "floating_pt", "integer": "fixed_pt"}


class PrecisionRunConfig(RunConfig):
    """Takes the model tagged with the precision, else the stock one in floating or fixed point.

    Parameters
    ----------
    precision : {"float64", "float32", "integer"}
    """

    def __init__(self, precision: str) -> None:
        super().__init__(custom_sync_domains=[SyncDomain("network", LoihiProtocol(), [])])
        self.tags = (precision, STOCK_TAGS[precision])

    def select(self, process: Any, proc_models: list[Any]) -> Any:
        """Return the process model to use for `process`."""
        for wanted in self.tags:
            for model in proc_models:
                if wanted in model.tags:
                    return model
        raise LookupError(f"{type(process).__name__} has no model tagged {' or '.join(self.tags)}")
