"""The words that settings of models and training are chosen from, for those who must know them without torch.

The command line lists them in its help, which loads nothing else of this package.
"""

from __future__ import annotations

LAYER, BATCH, POWER, NONE = "layer", "batch", "power", "none"
NORMS = (LAYER, BATCH, POWER, NONE)
SPIKING, NO_ATTENTION = "spiking", "none"
ATTENTIONS = (SPIKING, NO_ATTENTION)
EMBEDDING_NEURONS = ("heaviside", "lif")
PROJECTED, TABLE = "projected", "table"
PREVIOUS_WORDS = (NONE, PROJECTED, TABLE)
NEURONS = ("paper", "snntorch", "published", "loihi")
"""Keys of `spikebert.neuron.NEURON_PRESETS`."""
