"""Is what runs what was trained? Two runs spike by spike, why they differ, and whether rounding explains it.

``comparison``  two traces: every spike that differs, the first one, how differences grow
``subgraphs``   a graph cut at its spikes: what lies between two populations of neurons
``rounding``    how far two implementations of one operator may lie apart, derived from the operator
``replay``      a subgraph computed again on the inputs of a run, each value with that bound
``audit``       is every spike of a trace what the graph makes of the trace's own inputs, but for rounding?
``explanation`` is every difference between two traces rounding, or the consequence of one that is?
``attribution``  the inputs that produced a potential, ranked
``evidence``    what stands around one difference: potentials, raster, and those inputs
``node_by_node``  every subgraph by itself, on the inputs another run gave it
``streaming``   all of this over thousands of sentences, in bounded memory
"""

from hardware.equivalence.comparison import (
    FLOAT32_TOLERANCE,
    LOGIT_TOLERANCE,
    NODE_OF_LOGITS,
    POTENTIAL_TOLERANCE,
    Comparison,
    Divergence,
    NodeComparison,
    compare,
    merge_comparisons,
)

__all__ = [
    "FLOAT32_TOLERANCE",
    "LOGIT_TOLERANCE",
    "NODE_OF_LOGITS",
    "POTENTIAL_TOLERANCE",
    "Comparison",
    "Divergence",
    "NodeComparison",
    "compare",
    "merge_comparisons",
]
