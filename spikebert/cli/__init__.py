"""The command ``spikebert``: the roof over all packages; nothing imports it.

Commands load when they are called, so that ``spikebert --help`` does not wait for torch.
"""

from __future__ import annotations

from spikebert.cli.application import main

__all__ = ["main"]
