"""What a run cost: operation counts from what fired, and energy models on top of them."""

from hardware.energy.counts import (
    ATTENTION_ORDERS,
    OPERATION_KINDS,
    NodeOperations,
    OperationCounter,
    OperationCounts,
    count_operations,
)
from hardware.energy.errors import EnergyModelError
from hardware.energy.estimate import EnergyEstimate, estimate_energy
from hardware.energy.models import (
    EnergyModel,
    Price,
    PriceTable,
    Timing,
    energy_model,
    energy_models,
    load_energy_model,
    register_energy_model,
)

__all__ = [
    "ATTENTION_ORDERS",
    "OPERATION_KINDS",
    "EnergyEstimate",
    "EnergyModel",
    "EnergyModelError",
    "NodeOperations",
    "OperationCounter",
    "OperationCounts",
    "Price",
    "PriceTable",
    "Timing",
    "count_operations",
    "energy_model",
    "energy_models",
    "estimate_energy",
    "load_energy_model",
    "register_energy_model",
]
