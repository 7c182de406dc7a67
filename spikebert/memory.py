"""How this process takes its memory from the system."""

from __future__ import annotations

import os

HUGE_PAGES_VARIABLE = "THP_MEM_ALLOC_ENABLE"


def ask_for_huge_pages() -> None:
    """Have torch ask for large memory in huge pages, unless the user's environment says otherwise.

    On Linux, torch gives back every large array it frees, and each new one comes 4 KiB at a time, every piece filled
    with zeros first, in every forward pass again. torch reads the variable when it first takes 2 MiB, so this belongs
    at the start of a program.
    """
    os.environ.setdefault(HUGE_PAGES_VARIABLE, "1")
