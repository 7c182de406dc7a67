"""An array of a file that commands are given: ``FILE.npy``, ``FILE.npz`` with one array in it, or ``FILE.npz:NAME``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from spikebert.errors import ConfigurationError

if TYPE_CHECKING:
    import numpy as np

ARRAY, ARCHIVE = ".npy", ".npz"
NAME_MARK = f"{ARCHIVE}:"
SHOWN_NAMES = 8
"""Arrays of a file that a message lists."""


def names_array(text: str) -> bool:
    """Return whether a word on the command line is an array of a file, and not another kind of file or name."""
    return text.endswith((ARRAY, ARCHIVE)) or NAME_MARK in text


def array_file(path: Path) -> Path:
    """Return the file that an array is in: `path` without ``:NAME``."""
    return _split(path)[0]


def read_array(path: Path, expected: str = "an array of two axes or more, none of them empty") -> np.ndarray:
    """Return an array of a file; `expected` says in an error what should have been there.

    Raises
    ------
    ConfigurationError
        There is no such array, or it has less than two axes.
    TraceError
        The file is no .npz, or the array unpacks to more than there is memory.
    """
    import numpy as np

    file, name = _split(path)
    if file.exists() and not file.is_file():
        raise ConfigurationError(f"{file}: is not a regular file")
    array = _of_archive(file, name) if file.suffix == ARCHIVE else _of_file(file)
    if not isinstance(array, np.ndarray) or array.ndim < 2 or 0 in array.shape:
        shape = getattr(array, "shape", None)
        raise ConfigurationError(f"{path}: holds shape {shape}; expected {expected}")
    return array


def _split(path: Path) -> tuple[Path, str | None]:
    file, mark, name = str(path).rpartition(NAME_MARK)
    if not mark or path.exists():  # a file may be called so
        return path, None
    return Path(f"{file}{ARCHIVE}"), name


def _of_file(path: Path) -> np.ndarray:
    import numpy as np

    try:
        # mapped first, so that no memory is taken for what the file does not hold
        return np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError, TypeError, OverflowError) as error:
        raise ConfigurationError(f"{path}: is not an .npy array: {error}") from error


def _of_archive(path: Path, name: str | None) -> np.ndarray:
    from hardware.trace import array_names, read_arrays

    what = "an archive of arrays"
    names = array_names(path, what)
    said = f"{', '.join(names[:SHOWN_NAMES])}{', …' if len(names) > SHOWN_NAMES else ''}" or "none at all"
    if name is None and len(names) != 1:
        raise ConfigurationError(f"{path}: holds {len(names)} arrays ({said}); name one behind it, as in {path}:NAME")
    chosen = names[0] if name is None else name
    if chosen not in names:
        raise ConfigurationError(f"{path}: holds no array {chosen!r}; it holds {said}")
    return read_arrays(path, what, (chosen,))[chosen]
