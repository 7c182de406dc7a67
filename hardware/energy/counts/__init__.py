"""Operation counts: what a run did, exactly, from what fired; and what dense networks do, in the same kinds."""

from hardware.energy.counts.activity import NodeActivity
from hardware.energy.counts.counter import OperationCounter, count_operations
from hardware.energy.counts.kinds import (
    ATTENTION_ORDERS,
    COMPONENTS,
    GAMMAS,
    OPERATION_KINDS,
    STATISTIC_KINDS,
    Tallies,
    Tally,
    headline,
)
from hardware.energy.counts.result import NodeOperations, OperationCounts
from hardware.energy.counts.rules import OPERATION_COUNTS, CountingRule, counting_rule

__all__ = [
    "ATTENTION_ORDERS",
    "COMPONENTS",
    "GAMMAS",
    "OPERATION_COUNTS",
    "OPERATION_KINDS",
    "STATISTIC_KINDS",
    "CountingRule",
    "NodeActivity",
    "NodeOperations",
    "OperationCounter",
    "OperationCounts",
    "Tallies",
    "Tally",
    "count_operations",
    "counting_rule",
    "headline",
]
