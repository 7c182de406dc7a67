"""Energy models ``horowitz-…``: every arithmetic operation at Horowitz's figures, at one precision throughout.

Memory, control and static power cost nothing in them.
"""

from __future__ import annotations

from functools import partial

from hardware.energy.models.arithmetic import HOROWITZ, arithmetic_prices
from hardware.energy.models.price_table import PriceTable
from hardware.energy.models.registry import register_energy_model

_horowitz = partial(
    PriceTable,
    source=HOROWITZ,
    technology="45 nm",
    basis="exact counts of every arithmetic operation, norms, membrane updates and residual sums included, at this "
    "precision throughout; integers above 1 as repeated additions; no memory, no control, no static power",
)

register_energy_model(
    _horowitz(
        name="horowitz-fp32",
        precision="fp32",
        prices=arithmetic_prices(0.9, 3.7, f"{HOROWITZ}: fp32 add 0.9 pJ, multiply 3.7 pJ"),
    ),
    _horowitz(
        name="horowitz-fp16",
        precision="fp16",
        prices=arithmetic_prices(0.4, 1.1, f"{HOROWITZ}: fp16 add 0.4 pJ, multiply 1.1 pJ"),
    ),
    _horowitz(
        name="horowitz-int8",
        precision="int8, 8-bit sums",
        prices=arithmetic_prices(0.03, 0.2, f"{HOROWITZ}: int8 add 0.03 pJ, multiply 0.2 pJ"),
    ),
    _horowitz(
        name="horowitz-int8-int32",
        precision="int8, 32-bit sums",
        prices=arithmetic_prices(0.1, 0.2, f"{HOROWITZ}: int32 add 0.1 pJ, int8 multiply 0.2 pJ"),
    ),
)
