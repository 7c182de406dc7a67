"""The command ``spikebert``: the roof over all packages; nothing imports it.

Modules of commands declare options and import what they work with inside their functions, so that ``--help`` and a
mistake in the words do not wait for torch.
"""

from __future__ import annotations

from spikebert.cli.application import main

__all__ = ["main"]
