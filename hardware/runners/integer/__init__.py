"""Runner ``integer``: simulates an integer graph fast, and exactly by construction; see ``runner``.

``planner`` decides how each node is computed, by one of the ``fast_paths`` or by its operator's ``own_steps``.
"""

from hardware.runners.integer.runner import IntegerRunner

__all__ = ["IntegerRunner"]
