"""What Loihi's neuron cores hold, as stock Lava computes it: every number an integer graph must fit in.

Nothing else in ``export`` contains such a number. Sources: ``lava.proc.lif.models.PyLifModelBitAcc`` and
``lava.proc.dense.models.PyDenseModelBitAcc`` of lava-nc 0.10.0 (whose docstrings give the chip's registers), and for
delays those that ``DELAY_MAX`` names. What stock Lava does beyond a limit is part of the meaning of our operators and
stands in ``docs/integers.md``.
"""

from __future__ import annotations

STATE_BITS = 24
"""Bits of current u and potential v, the sign among them."""
STATE_LIMIT = 1 << (STATE_BITS - 1)
POTENTIAL_MAX = STATE_LIMIT - 1
"""Potentials saturate at plus and minus this."""
ACTIVATION_SHIFT = 6
"""Activations and thresholds are shifted left by this many bits, so that potentials have fraction bits."""
ACTIVATION_MAX = (STATE_LIMIT >> ACTIVATION_SHIFT) - 1
"""Largest magnitude of an activation that is sure not to wrap the current around: 2^17 - 1."""
DECAY_BITS = 12
DECAY_UNITY = 1 << DECAY_BITS
DECAY_MAX = DECAY_UNITY - 1
"""A decay d keeps (4096 - d) / 4096 of the potential from step to step."""
CURRENT_DECAY_NONE = DECAY_MAX
"""Stock LIF's ``du`` for which the current keeps nothing from step to step (the model adds 1 to it)."""
THRESHOLD_MAX = (1 << 17) - 1
"""Mantissa of the threshold, in units of the activation."""
BIAS_MANTISSA_MIN, BIAS_MANTISSA_MAX = -(1 << 12), (1 << 12) - 1
BIAS_EXPONENT_MAX = 7
"""A bias is mantissa 2^exponent, in units of the potential (2^-6 of an activation's)."""
WEIGHT_LIMITS = {"mixed": (-128, 127), "excitatory": (0, 255), "inhibitory": (-255, 0)}
"""Weights of a synapse by the sign mode of its matrix.

With mixed signs the chip spends one of its bits on the sign: stock Dense floors such weights to even numbers between
-256 and 254. They are held here halved, so that every int8 is one of them; Dense takes ``2 w`` with ``weight_exp=-1``,
which gives back exactly ``w``.
"""
DELAY_MAX = 62
"""Steps an axon or synapse can delay a spike; what lies within them runs on Loihi 1 and 2.

Loihi 1: ``brian2_loihi.LoihiSynapses`` of brian2-loihi 0.5 takes 0 to 62; that emulator was compared with the chip
(Michaelis et al. 2022, doi 10.3389/fninf.2022.1015624). Loihi 2: lava-dl 0.6 trains with up to 62
(``slayer.block.cuba``), clamps what it reads to 62 (``netx.hdf5``) and refuses more (``netx.utils.num_delay_bits``).
lava-nc's ``PyDelayDenseModelBitAcc`` says 6 bits and takes one step more, 0 to 63.
"""
