"""A case of an operator as a graph of its own, for conformance files and for every test that runs cases."""

from __future__ import annotations

import numpy as np

from export.network import Network, NetworkBuilder, Readout
from export.operators import Affine, Case, IntegerAffine

NODE = "node"
"""Name of the case's operator in its graph."""


def network_of_case(case: Case) -> Network:
    """Return a graph that does nothing but what the case's operator does, in whole numbers where that is its kind.

    An operator with several sources reads its share of the input through a linear node for each.

    Parameters
    ----------
    case : Case
        Of integer inputs where an operator that belongs into either kind of graph is meant in whole numbers.
    """
    operator = case.operator
    is_integer = operator.traits.integer
    if is_integer is None:
        is_integer = case.inputs.dtype.kind in "iu"
    count, width = operator.traits.sources, operator.in_features
    builder = NetworkBuilder("input", count * width)
    sources = ["input"]
    if count > 1:
        shares = np.split(np.eye(count * width, dtype=np.int8 if is_integer else np.float64), count)
        linear = [IntegerAffine(weight=share, unit=np.ones(width)) if is_integer else Affine(share) for share in shares]
        sources = [builder.add(f"source{index}", node, "input") for index, node in enumerate(linear)]
    builder.add(NODE, operator, sources)
    readout = Readout(1.0, np.zeros(operator.out_features, np.int64)) if is_integer else None
    shape = operator.in_shape if count == 1 and len(operator.in_shape) > 1 else None
    return builder.network("output", NODE, input_shape=shape, readout=readout)
