"""Writes report files: whole or not at all, and never with a half-written file left behind."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from spikebert.errors import SpikeBertError
from spikebert.files import written_whole


class ReportError(SpikeBertError):
    """A report cannot be written, or is asked to show what it was not given."""


def write_whole(path: str | Path, content: str | bytes) -> Path:
    """Write a file beside its place, then rename it there; a file that was there is replaced.

    Parameters
    ----------
    path : str or Path
    content : str or bytes
        Text is written as UTF-8, its line ends as they are.

    Raises
    ------
    ReportError
        The folder does not exist or the file cannot be written.
    """
    path = Path(path)
    check_place(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    try:
        with written_whole(path) as partial:
            partial.write_bytes(data)
    except OSError as error:
        raise ReportError(f"{path}: cannot be written: {error}") from error
    return path


def check_place(path: Path) -> None:
    """Check that a file can stand where `path` says; a command asks before its work, not after it.

    Raises
    ------
    ReportError
        The folder does not exist, or `path` is one.
    """
    if not path.parent.is_dir():
        raise ReportError(f"{path}: the folder {path.parent} does not exist; make it first")
    if path.is_dir():
        raise ReportError(f"{path}: is a folder; give the name of a file")


def write_csv_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write rows with the same keys as CSV under one header line; None becomes an empty cell.

    Raises
    ------
    ReportError
        There is no row, or the file cannot be written.
    """
    rows = list(rows)
    if not rows:
        raise ReportError(f"{path}: there is nothing to write")
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return write_whole(path, text.getvalue())


def write_json_object(path: str | Path, value: Mapping[str, Any]) -> Path:
    """Write one JSON object.

    Raises
    ------
    ReportError
        It holds NaN or something JSON has no word for, or the file cannot be written.
    """
    try:
        text = json.dumps(value, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ReportError(f"{path}: cannot be written as JSON: {error}") from error
    return write_whole(path, text + "\n")
