"""Energy models: the contract, the registry, and one file for each model that comes with the package.

A model's file registers it (`register_energy_model`); that it is imported here is all that is needed besides.
"""

# isort: off
# in the order in which tables show the models
from hardware.energy.models import paper, horowitz, memory, loihi1  # noqa: F401

# isort: on
from hardware.energy.models.contract import EnergyModel, Price, Timing
from hardware.energy.models.price_table import PriceTable, load_energy_model
from hardware.energy.models.registry import energy_model, energy_models, register_energy_model

__all__ = [
    "EnergyModel",
    "Price",
    "PriceTable",
    "Timing",
    "energy_model",
    "energy_models",
    "load_energy_model",
    "register_energy_model",
]
