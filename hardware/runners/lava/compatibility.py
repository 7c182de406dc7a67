"""The one door through which Lava is imported: mends what lava-nc 0.10 needs mended, and says how to get it if missing.

Every module of ours calls `import_lava` before its first `import lava`. Nothing happens when this file is imported.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from spikebert.errors import ConfigurationError, MissingDependencyError

HOW_TO_GET_LAVA = """\
  with uv, in the project:   uv sync --extra lava
  with pip on Python 3.10:   pip install "spikebert[lava]"
  with pip on 3.11 and 3.12: pip install --no-deps --ignore-requires-python lava-nc==0.10.0
                             pip install "asteval>=0.9.31,<0.10" "networkx<=2.8.7" "numpy>=1.24.4,<2" \
"scikit-learn>=1.5,<2" "scipy>=1.10.1,<2\""""

_import_lock = threading.Lock()


def import_lava() -> None:
    """Import Lava's core, mended for this Python; cheap and harmless to call again.

    Two things of lava-nc 0.10 are mended, each only while Lava is first imported, and no file is edited:
    from Python 3.11 on, a dataclass default (`ByteEncoder()`) is refused because it cannot be hashed; and Lava sets
    multiprocessing's start method to `fork`, which fails if anything has used multiprocessing before, even with `fork`.

    Raises
    ------
    MissingDependencyError
        lava-nc, or a package it needs, is not installed; the message says which and how to get it.
    ConfigurationError
        multiprocessing has been set to another start method than `fork`, the only one Lava's processes work with.
    """
    with _import_lock:
        if "lava.magma.core.process.process" in sys.modules:
            return
        try:
            with _hashable_byte_encoder(), _start_method_may_be_set_already():
                # The second import reaches the runtime, which sets the start method.
                import lava.magma.compiler.var_model
                import lava.magma.core.process.process  # noqa: F401
        except ModuleNotFoundError as error:
            missing = (error.name or "lava").split(".")[0]
            what = "Lava (lava-nc 0.10)" if missing == "lava" else f"{missing!r}, which Lava needs,"
            raise MissingDependencyError(f"{what} is not installed. To get it:\n{HOW_TO_GET_LAVA}") from error


@contextmanager
def _hashable_byte_encoder() -> Iterator[None]:
    """Give Lava's ByteEncoder a hash while it is defined: Python 3.11 refuses unhashable dataclass defaults."""
    if sys.version_info < (3, 11):
        yield
        return
    original: Any = dataclasses.dataclass

    def dataclass(cls: type | None = None, /, **options: Any) -> Any:
        if cls is not None and cls.__name__ == "ByteEncoder":
            options["unsafe_hash"] = True
        return original(cls, **options)

    dataclasses.dataclass = dataclass  # type: ignore[assignment]
    try:
        yield
    finally:
        dataclasses.dataclass = original


@contextmanager
def _start_method_may_be_set_already() -> Iterator[None]:
    """Let Lava's `set_start_method("fork")` pass where `fork` is what has been set already, say by a progress bar."""
    method = multiprocessing.get_start_method(allow_none=True)
    if method is None:
        yield
        return
    if method != "fork":
        raise ConfigurationError(
            f"Lava runs its processes by 'fork', but multiprocessing was set to {method!r} before Lava was imported; "
            f"leave multiprocessing.set_start_method() out, or call it with 'fork'"
        )
    original: Any = multiprocessing.set_start_method
    multiprocessing.set_start_method = lambda *_, **__: None
    try:
        yield
    finally:
        multiprocessing.set_start_method = original
