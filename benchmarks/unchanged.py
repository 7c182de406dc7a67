"""Proves that a refactoring changed nothing: two versions of this project do the same jobs, compared value for value.

    python benchmarks/unchanged.py --before CHECKOUT [--after CHECKOUT] [--only NAME...] [--quick] [--cache FOLDER]

The jobs (`benchmarks/unchanged_jobs.py`) write every array of every trace and file and every JSON of the commands:
of the shipped checkpoints, a small random one, the conformance files, and graphs that other tools write. Each version
does them in a process of its own, with this Python and on one thread. Then everything must be equal: text and whole
numbers as they are, floats bit for bit. What differs by its nature, such as seconds, is named in `VOLATILE` and
counted; what was renamed on purpose, in `RENAMED`. Exits with 0 if nothing differs, with 1 and the first difference of
each job if something does.

What a commit computed is kept in `--cache`, by commit, jobs and environment; from then on only the other side runs.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import unchanged_jobs
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
VOLATILE = {
    "*/versions/*": "versions of the project and of what it uses",
    "*/producer": "version of the project that wrote a file",
    "*/command": "what was typed",
    "*/answer/seconds/*": "how long it took",
    "info/answer/source": "folder of the checkout",
    "*/sha256": "hash of a file, which may hold a version; what is in the file is compared",
    "*/file_sha256": "likewise",
    "*/graph_sha256": "likewise",
    "*/trace_sha256": "likewise",
    "*/source_sha256": "likewise",
    "*/trace_graph_sha256": "likewise",
}
"""Patterns of what is not compared, and why; the path of a value is RECORD/KEY/KEY."""
RENAMED: dict[str, str] = {}
"""Names, whole keys or whole texts, of the version before that are called otherwise now."""
DECIDING = (
    "h5py",
    "nir",
    "norse",
    "numpy",
    "onnx",
    "onnxruntime",
    "scipy",
    "sinabs",
    "snntorch",
    "tokenizers",
    "torch",
    "transformers",
)
"""Packages on whose versions a result depends; Lava's computes in NumPy."""
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
SHOWN_DIFFERENCES = 6
"""Of a job, below the table."""
PRINTED_COLUMNS = 120
"""Of a line where no terminal says how many it has."""
LONGEST_VALUE = 60
"""Letters of a value that are shown."""


@dataclass(frozen=True)
class Found:
    """What a job found in one version.

    Attributes
    ----------
    values : dict
        Text, numbers, True, False and None by path; an empty list or object is one too.
    arrays : dict of str to ndarray
    failed : str or None
        Why the job found nothing.
    """

    values: dict[str, Any]
    arrays: dict[str, np.ndarray]
    failed: str | None = None

    @classmethod
    def read(cls, folder: Path, job: str) -> Found:
        """Read what a job wrote."""
        text = json.loads((folder / f"{job}.json").read_text(encoding="utf-8"))
        with np.load(folder / f"{job}.npz", allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        return cls(dict(leaves(text)), arrays, text.get(unchanged_jobs.FAILED))


@dataclass(frozen=True)
class Verdict:
    """How two versions of a job compare.

    Attributes
    ----------
    values : int
        That were compared, each number of an array being one.
    skipped : int
        Paths that were not.
    differences : list of str
        In the order of the version before.
    """

    values: int
    skipped: int
    differences: list[str]


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield path and value of everything in a JSON value that holds nothing more."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    entries = list(inside)
    if not entries:
        yield path, value
    for key, entry in entries:
        yield from leaves(entry, f"{path}/{key}" if path else str(key))


def compare(before: Found, after: Found) -> Verdict:
    """Compare what a job found in two versions."""
    for side, found in (("before", before), ("now", after)):
        if found.failed is not None:
            return Verdict(0, 0, [f"the job failed {side}: {found.failed}"])
    differences, compared, skipped = [], 0, 0
    old_values = {renamed_path(path): renamed(value) for path, value in before.values.items()}
    old_arrays = {renamed_path(path): value for path, value in before.arrays.items()}
    for old, new, differ in (
        (old_values, after.values, value_difference),
        (old_arrays, after.arrays, array_difference),
    ):
        for path in dict.fromkeys([*old, *new]):
            if is_volatile(path):
                skipped += 1
                continue
            compared += int(getattr(old.get(path, new.get(path)), "size", 1))
            if path not in new:
                differences.append(f"{path}: {shown(old[path])} before, missing now")
            elif path not in old:
                differences.append(f"{path}: missing before, {shown(new[path])} now")
            elif (difference := differ(old[path], new[path])) is not None:
                differences.append(f"{path}{difference}")
    return Verdict(compared, skipped, differences)


def value_difference(old: Any, new: Any) -> str | None:
    """Say how two values of JSON differ, if they do; 1, 1.0 and True are three things, and so are 0.0 and -0.0."""
    same = type(old) is type(new) and repr(old) == repr(new)
    return None if same else f": {shown(old)} before, {shown(new)} now"


def array_difference(old: np.ndarray, new: np.ndarray) -> str | None:
    """Say how two arrays differ, if they do: in type, shape, or a bit of a number."""
    if (old.dtype, old.shape) != (new.dtype, new.shape):
        return f": {shown(old)} before, {shown(new)} now"
    first, second = (np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in (old, new))
    differ = (first != second).reshape(old.size, old.itemsize).any(-1)
    if not differ.any():
        return None
    place = tuple(int(index) for index in np.unravel_index(int(differ.argmax()), old.shape))
    numbers = f"{old[place]!r} before, {new[place]!r} now"
    return f"{list(place)}: {numbers}; {np.count_nonzero(differ):,} of {old.size:,} numbers differ"


def shown(value: Any) -> str:
    """Return a value in few letters."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def is_volatile(path: str) -> bool:
    """Return whether a value is not compared."""
    return any(fnmatchcase(path, pattern) for pattern in VOLATILE)


def renamed(value: Any) -> Any:
    """Return a value of the version before as it is called now."""
    return RENAMED.get(value, value) if isinstance(value, str) else value


def renamed_path(path: str) -> str:
    """Return a path of the version before as it is called now."""
    return "/".join(RENAMED.get(part, part) for part in path.split("/"))


# ---------------------------------------------------------------------------------------------------------------------
# Running both sides.


def run_jobs(checkout: Path, folder: Path, jobs: Iterable[str]) -> None:
    """Do jobs with the packages of a checkout.

    Raises
    ------
    SystemExit
        The process ended before it was done.
    """
    environment = {**os.environ, **ONE_THREAD, **OFFLINE, "PYTHONPATH": str(checkout)}
    done = subprocess.run([sys.executable, unchanged_jobs.__file__, str(folder), *jobs], env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"the jobs of {checkout} ended with {done.returncode}")


def commit_of(checkout: Path) -> str | None:
    """Return the commit that a checkout holds; None where its packages are not as committed, or it is no clone."""
    said = []
    for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--", *unchanged_jobs.PACKAGES)):
        found = subprocess.run(["git", "-C", str(checkout), *words], capture_output=True, text=True, check=False)
        if found.returncode:
            return None
        said.append(found.stdout.strip())
    commit, changes = said
    return None if changes else commit


def cache_key(commit: str) -> str:
    """Return a folder's name for what a commit computed with these jobs, packages and processor."""
    packages = [f"{name} {metadata.version(name)}" for name in DECIDING if importlib.util.find_spec(name)]
    jobs = [(HERE / name).read_text(encoding="utf-8") for name in ("unchanged_jobs.py", "unchanged_graphs.py")]
    environment = "\n".join([*jobs, *packages, platform.python_version(), _processor()])
    return f"{commit[:12]}-{hashlib.sha256(environment.encode()).hexdigest()[:12]}"


def _processor() -> str:
    """Return what decides which instructions NumPy, torch and our C use."""
    facts = Path("/proc/cpuinfo")
    if not facts.is_file():
        return platform.processor()
    return "\n".join(sorted(set(re.findall(r"^(?:model name|flags)\s*:.*$", facts.read_text(), re.MULTILINE))))


def find(checkout: Path, jobs: list[str], cache: Path | None, scratch: Path) -> Path:
    """Do the jobs of a checkout that its commit has not done, and return the folder with what all of them found."""
    commit = commit_of(checkout)
    folder = scratch if cache is None or commit is None else cache / cache_key(commit)
    folder.mkdir(parents=True, exist_ok=True)
    missing = [job for job in jobs if not _is_done(folder, job)]
    print(f"{checkout} at {commit or 'no commit'}: {len(missing)} of {len(jobs)} jobs to do", file=sys.stderr)
    if missing:
        run_jobs(checkout, folder, missing)
    return folder


def _is_done(folder: Path, job: str) -> bool:
    """Return whether a job is done; one that failed is tried again."""
    text = folder / f"{job}.json"
    return text.is_file() and unchanged_jobs.FAILED not in json.loads(text.read_text(encoding="utf-8"))


def chosen_jobs(only: list[str], quick: bool) -> list[str]:
    """Return the names of the jobs that were asked for.

    Raises
    ------
    SystemExit
        A pattern matches none.
    """
    jobs = {name: job for name, job in unchanged_jobs.all_jobs().items() if job.quick or not quick}
    for pattern in only:
        if not any(fnmatchcase(name, pattern) for name in jobs):
            raise SystemExit(f"no job is called {pattern}; there are {', '.join(jobs)}")
    return [name for name in jobs if not only or any(fnmatchcase(name, pattern) for pattern in only)]


def table(verdicts: dict[str, Verdict]) -> Table:
    """Return a line for each job."""
    rows = Table("job", "compared", "values", "skipped", "", box=None, header_style="bold")
    for column in ("values", "skipped"):
        rows.columns[[entry.header for entry in rows.columns].index(column)].justify = "right"
    known = unchanged_jobs.all_jobs()
    for job, verdict in verdicts.items():
        different = len(verdict.differences)
        answer = "equal" if not different else f"DIFFERENT in {different:,}"
        rows.add_row(job, known[job].what, f"{verdict.values:,}", f"{verdict.skipped:,}", answer)
    return rows


def main() -> None:
    """Compare what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="checkout of the version before")
    parser.add_argument("--after", type=Path, default=HERE.parent, help="checkout of the version now (this one)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="jobs, such as 'foreign/*'")
    parser.add_argument("--quick", action="store_true", help="a minute: no Lava, and little of the shipped checkpoints")
    parser.add_argument("--cache", type=Path, help="where to keep what a commit computed")
    words = parser.parse_args()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else PRINTED_COLUMNS)
    jobs = chosen_jobs(words.only, words.quick)
    with tempfile.TemporaryDirectory(prefix="spikebert-unchanged-") as scratch:
        before = find(words.before.resolve(), jobs, words.cache, Path(scratch) / "before")
        after = find(words.after.resolve(), jobs, None, Path(scratch) / "after")
        verdicts = {job: compare(Found.read(before, job), Found.read(after, job)) for job in jobs}
    console.print(table(verdicts))
    for job, verdict in verdicts.items():
        for difference in verdict.differences[:SHOWN_DIFFERENCES]:
            console.print(f"{job}: {difference}", markup=False, soft_wrap=True)
        if len(verdict.differences) > SHOWN_DIFFERENCES:
            console.print(f"{job}: and {len(verdict.differences) - SHOWN_DIFFERENCES:,} more", markup=False)
    different = sum(bool(verdict.differences) for verdict in verdicts.values())
    values = sum(verdict.values for verdict in verdicts.values())
    said = f"{different} of {len(jobs)} jobs DIFFER" if different else "EQUAL"
    console.print(f"{said}: {values:,} values of {len(jobs)} jobs, {words.before} before and {words.after} now")
    raise SystemExit(1 if different else 0)


if __name__ == "__main__":
    main()
