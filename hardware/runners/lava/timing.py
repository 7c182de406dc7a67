"""When each node of a network computes: at once, or one step behind each synaptic hop as on the chip.

``zero-latency``: every process computes in the step in which it receives, and the whole network shows step t of a
sample in its t-th step. ``hardware``: what an operator sends arrives as many steps later as its traits say, one for an
affine map, spike attention or a sum over tokens, as between the cores of a chip and as stock Lava's ``Dense`` does it.
Each layer then works on a sample some steps behind the one before, its depth; where paths meet, the shorter ones are
delayed to match.
"""

from __future__ import annotations

from collections.abc import Collection

from export.errors import ChipLimitError
from export.loihi_numbers import DELAY_MAX
from export.network import Network
from export.operators import Operator
from hardware.choices import HARDWARE, TIMINGS, ZERO_LATENCY
from hardware.errors import RunnerError


def check_timing(timing: str) -> str:
    """Return `timing`.

    Raises
    ------
    RunnerError
        It is not known.
    """
    if timing not in TIMINGS:
        raise RunnerError(f"timing {timing!r} is not one of {', '.join(TIMINGS)}")
    return timing


def latency(operator: Operator, timing: str) -> int:
    """Return how many steps later than its input an operator's output arrives."""
    return operator.traits.latency if timing == HARDWARE else 0


def arrivals(network: Network, timing: str, at_once: Collection[str] = ()) -> dict[str, int]:
    """Return by how many steps what each node sends lies behind the network's input: its depth.

    Parameters
    ----------
    network : Network
    timing : str
    at_once : collection of str
        Nodes without a hop: sums over tokens that whoever reads the output adds up.

    Raises
    ------
    ChipLimitError
        With hardware timing: two paths that meet differ by more steps than the chip can delay a spike, or a delay of
        the graph's own is longer.
    GraphError
        With hardware timing: an operator is none in whole numbers.
    """
    arrives = {network.input_name: 0}
    for node in network.nodes:
        sent = [arrives[source] for source in node.sources if source in arrives] or [0]  # else a recurrent connection
        if len(sent) > 1 and max(sent) - min(sent) > DELAY_MAX:
            raise ChipLimitError(
                f"{node.name}: {node.sources[sent.index(min(sent))]} would have to be delayed by "
                f"{max(sent) - min(sent)} steps to meet {node.sources[sent.index(max(sent))]}; the chip delays by "
                f"{DELAY_MAX} at most. Relay it over neurons, or use timing {ZERO_LATENCY!r}"
            )
        if timing == HARDWARE:
            node.operator.check_whole_numbers(node.name)
        arrives[node.name] = max(sent) + (0 if node.name in at_once else latency(node.operator, timing))
    return arrives


def running_steps(samples: int, time_steps: int, depth: int) -> int:
    """Return the steps in which so many samples pass through a network of `depth`.

    A multiple of `time_steps`, since stock neurons clear their state at fixed intervals.
    """
    return (samples + -(-depth // time_steps)) * time_steps
