"""Seeds thirty small faults in operators and targets, one at a time, and says which of them the tests find.

    python benchmarks/mutants.py [--checkout PATH] [--only NAME...] [--no-baseline]

A fault is a snippet of code and what stands in its place. It is looked for in all packages, so it is found wherever a
refactoring has put it; ``$x`` in it is any name. Each is planted in a scratch copy of the checkout, never in the
checkout, and the tests named for it are run there until one fails. Before that they run on the copy as it is, where
they must pass. Verdicts: killed, survived, not found (or found more than once), no tests, and broken where the tests
fail without any fault. Exits with 0 if every fault is killed.

Tests run in forks of this process, which imports what takes long (torch, transformers, ONNX) once for all of them; none
of it is the project's. One runs at a time.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.markup import escape
from rich.table import Table

PACKAGES = ("spikebert", "export", "hardware")
CODE = (".py", ".c")
NOT_COPIED = (".git", ".venv*", ".tools", "__pycache__", ".*_cache", "results", "runs", "*.egg-info")
PRELOADED = (
    "h5py",
    "hypothesis.extra.numpy",
    "matplotlib.pyplot",
    "nir",
    "onnx.reference",
    "onnxruntime",
    "scipy.sparse",
    "torch",
    "transformers.modeling_utils",
    "transformers.tokenization_utils_tokenizers",
)
"""Third parties that tests import anyway; those that are not installed are left out."""
SECONDS = 240
"""Of the wall clock, after which tests count as failed: a fault may make something wait for ever."""
KILLED, SURVIVED, NOT_FOUND, NO_TESTS, BROKEN = "killed", "survived", "not found", "no tests", "broken"
PASSED_CODE, FAILED_CODES, NO_TESTS_CODE = 0, (1, 2), 5
"""Of pytest; 2 is a test file that cannot even be imported."""


@dataclass(frozen=True)
class Tests:
    """Tests by file and name.

    Attributes
    ----------
    files : str
        Patterns below ``tests/``, apart by spaces.
    names : str
        An expression for pytest's ``-k``.
    """

    files: str
    names: str


@dataclass(frozen=True)
class Mutant:
    """A fault.

    Attributes
    ----------
    name : str
        What is wrong.
    old, new : str
        Code; blanks and line ends in it mean nothing, and ``$x`` is any name.
    tests : Tests
        That are there to find it.
    """

    name: str
    old: str
    new: str
    tests: Tests


@dataclass(frozen=True)
class Outcome:
    """What became of a fault.

    Attributes
    ----------
    verdict : str
    where : str
        File it was planted in, or what was wrong with that.
    found_by : str
        The first test that failed.
    seconds : float
        Of processor time.
    """

    verdict: str
    where: str = ""
    found_by: str = ""
    seconds: float = 0.0


FLOAT_CASES, INTEGER_CASES = "operators/test_cases*.py", "operators/test_integer_cases*.py"
NEARLY = Tests("export/test_quantize*.py", "nearly or readout or rounding or logits_are")


def cases(names: str, files: str = FLOAT_CASES) -> Tests:
    """Return the cases of operators that a pattern of names finds, on the reference runner."""
    return Tests(files, f"reference and {names}")


MUTANTS = (
    # --- what operators mean ---
    Mutant(
        "layer norm: eps behind the root",
        "np.sqrt($variance + $x.dtype.type($eps))",
        "(np.sqrt($variance) + $x.dtype.type($eps))",
        cases("layer and norm"),
    ),
    Mutant(
        "neuron: a spike takes 1 in place of the threshold",
        "$charged -= $spikes * $neuron.threshold",
        "$charged -= $spikes",
        cases("neuron and subtract"),
    ),
    Mutant(
        "integer neuron: a current below its register is brought back half way",
        "np.where($shifted <= -STATE_LIMIT, $shifted + 2 * STATE_LIMIT",
        "np.where($shifted <= -STATE_LIMIT, $shifted + STATE_LIMIT",
        cases("wraps", INTEGER_CASES),
    ),
    Mutant(
        "integer neuron: potentials below 0 decay downwards",
        "np.sign($x) * (np.abs($x) >> $bits)",
        "$x >> $bits",
        cases("neuron", INTEGER_CASES),
    ),
    Mutant(
        "integer layer norm: one Newton step in place of two",
        "for _ in range(2): square = ($root * $root)",
        "for _ in range(1):\n        square = ($root * $root)",
        Tests(INTEGER_CASES, "inverse_square_root"),
    ),
    Mutant(
        "token mean: padding is summed too",
        "($x * $weight).sum(-2, keepdims=True) / $weight.sum(-2, keepdims=True)",
        "$x.sum(-2, keepdims=True) / $weight.sum(-2, keepdims=True)",
        cases("token and mean"),
    ),
    Mutant(
        "leak: towards 0 in place of v_leak",
        "($v_leak - $potential + $r * $x) / $tau",
        "($r * $x - $potential) / $tau",
        cases("(leaky or resistive)"),
    ),
    Mutant(
        "delay: a step too early",
        "$state[-1 - int($steps)]",
        "$state[-int($steps)]",
        cases("delay"),
    ),
    # --- quantization ---
    Mutant(
        "quantize: threshold without tau where the input decays",
        "$threshold * $neuron.tau if $neuron.decay_input else $threshold",
        "$threshold",
        Tests("third_parties/test_their_graphs*.py", "nearly and norse"),
    ),
    Mutant(
        "quantize: a bias takes twice what its mantissa holds",
        "np.abs(np.rint($bias / 2.0**$exponent)) > BIAS_MANTISSA_MAX",
        "np.abs(np.rint($bias / 2.0**$exponent)) > 2 * BIAS_MANTISSA_MAX",
        Tests("export/test_quantize*.py", "equations_say and reference or nearly or logits_are or repaired"),
    ),
    Mutant(
        "quantize: a mean's scale is not divided by its window",
        "(math.prod($pooling.kernel) if $pooling.mean else 1)",
        "1",
        NEARLY,
    ),
    Mutant(
        "quantize: a layer norm's gains are doubled",
        "2.0 ** ($shift - NORMED_BITS)",
        "2.0 ** ($shift - NORMED_BITS + 1)",
        Tests("export/test_quantize*.py", "logits_are or repaired or intervals_hold"),
    ),
    Mutant(
        "quantize: an integrator's scale is 64 times too large",
        "* $gain / (1 << ACTIVATION_SHIFT)",
        "* $gain",
        NEARLY,
    ),
    # --- ONNX ---
    Mutant(
        "ONNX: a decay below 0 is off by one where nothing is cut",
        "$build.scalar(DECAY_UNITY - 1)",
        "$build.scalar(DECAY_UNITY)",
        Tests(INTEGER_CASES, "onnx and neuron"),
    ),
    Mutant(
        "ONNX: attention sees padding",
        '$x = $build.add("Mul", [$x, TOKEN_MASK], f"{$name}/tokens")',
        '$x = $build.add("Identity", [$x], f"{$name}/tokens")',
        Tests(FLOAT_CASES, "onnx and attention"),
    ),
    Mutant(
        "ONNX: neurons come to rest at 0 in place of v_reset",
        '$build.weight(f"{$name}/v_reset", $operator.v_reset)',
        '$build.weight(f"{$name}/v_reset", 0 * $operator.v_reset)',
        Tests(FLOAT_CASES, "onnx and resistive"),
    ),
    # --- the integer runner ---
    Mutant(
        "integer runner in C: a decay cuts nothing off",
        "truncf(($v - $upper) * $keep)",
        "(($v - $upper) * $keep)",
        Tests("hardware/test_integer*.py", "every_register"),
    ),
    Mutant(
        "integer runner: comparisons at equality are off by one",
        "np.ceil($operator.threshold) - 1 if $operator.fire_on_equal",
        "np.ceil($operator.threshold) if $operator.fire_on_equal",
        Tests("hardware/test_integer*.py", "threshold_may_lie"),
    ),
    Mutant(
        "integer runner: a current may be twice what its register holds",
        "$read is not None and $read.largest <= ACTIVATION_MAX",
        "$read is not None and $read.largest <= 2 * ACTIVATION_MAX",
        Tests("hardware/test_integer*.py operators/test_integer*.py", "limits and not c_kernel or wraps and integer"),
    ),
    # --- Lava ---
    Mutant(
        "Lava: stock neurons clear their state a step early",
        "(1 + $starts_at) % $time_steps",
        "$starts_at % $time_steps",
        Tests("hardware/lava/test_integer*.py", "reset_in_step or one_token"),
    ),
    Mutant(
        "Lava: a node works when the first of its inputs is there",
        "max($sent) + (0",
        "min($sent) + (0",
        Tests("hardware/lava/test_integer*.py", "how_late or random_graphs_agree_in"),
    ),
    # --- counts ---
    Mutant(
        "counts: the first of a token's embeddings is added to something",
        '"addition": ($tables - 1) * $width',
        '"addition": $tables * $width',
        Tests("hardware/energy/test_operation_counts*.py", "by_hand or brute_force"),
    ),
    Mutant(
        "counts: attention reaches into other sentences",
        "int(($lengths**2).sum())",
        "int($lengths.sum() ** 2)",
        Tests("hardware/energy/test_operation_counts*.py", "attention or streaming"),
    ),
    Mutant(
        "counts: every input of a convolution meets all groups",
        "$places.ravel() * ($operator.weight.shape[0] // $operator.groups)",
        "$places.ravel() * $operator.weight.shape[0]",
        Tests("hardware/energy/test_*counts*.py", "weight or hand"),
    ),
    # --- rounding bounds ---
    Mutant(
        "rounding: a map does not carry on what its inputs are apart",
        "$carried + 2 * $worst * ($magnitude + $carried)",
        "2 * $worst * ($magnitude + $carried)",
        Tests("hardware/equivalence/test_rounding*.py", "affine or terms"),
    ),
    Mutant(
        "rounding: what a spike takes is not rounded",
        "np.where($fired != 0, $apart($charged - $fired * $neuron.threshold, $distance), $distance)",
        "$distance",
        Tests("hardware/equivalence/test_rounding*.py", "potential"),
    ),
    # --- placement ---
    Mutant(
        "placement: of several delays the last counts",
        "delay=$sent.delay + $steps",
        "delay=$steps",
        Tests("hardware/loihi/test_*.py", "delays"),
    ),
    Mutant(
        "placement: attention reads keys or values, not both",
        "($copies + 2 * $tokens) * $part.size",
        "($copies + $tokens) * $part.size",
        Tests("hardware/loihi/test_placement*.py", "attention_on_paper or axons or synapse"),
    ),
    # --- intervals and edges ---
    Mutant(
        "intervals: a weight below 0 is least where its input is",
        "$positive @ $read.low + $negative @ $read.high",
        "$positive @ $read.low + $negative @ $read.low",
        Tests("export/test_quantize*.py", "intervals_hold or come_back"),
    ),
    Mutant(
        "edges: a recurrent connection carries this step's spikes",
        "$values[$node.name][1:] = $trace.spikes[$neuron][:-1]",
        "$values[$node.name][:] = $trace.spikes[$neuron]",
        Tests("export/test_foreign_graph*.py", "edges_show"),
    ),
)


def pattern_of(snippet: str) -> re.Pattern[str]:
    """Return what finds a snippet: its tokens with any blanks between, and for each ``$x`` one name throughout."""
    known: set[str] = set()
    parts = []
    for token in re.findall(r"\$?\w+|[^\w\s]", snippet):
        if not token.startswith("$"):
            parts.append(re.escape(token))
        elif token in known:
            parts.append(f"(?P={token[1:]})")
        else:
            known.add(token)
            parts.append(f"(?P<{token[1:]}>[^\\W\\d]\\w*)")
    return re.compile(r"(?<!\w)" + r"\s*".join(parts))


def mutated(text: str, mutant: Mutant) -> str:
    """Return code with a fault in place of its snippet, which stands there once."""

    def replacement(match: re.Match[str]) -> str:
        return re.sub(r"\$(\w+)", lambda name: match[name[1]], mutant.new)

    return pattern_of(mutant.old).sub(replacement, text)


def find_snippet(checkout: Path, mutant: Mutant) -> Path | str:
    """Return the file that a fault belongs into, or why there is none."""
    pattern = pattern_of(mutant.old)
    files = [path for package in PACKAGES for path in (checkout / package).rglob("*") if path.suffix in CODE]
    found = [(path, len(pattern.findall(path.read_text(encoding="utf-8")))) for path in sorted(files)]
    found = [(path, times) for path, times in found if times]
    if not found:
        return "no file has it"
    if sum(times for _, times in found) > 1:
        return "found in " + ", ".join(f"{path.relative_to(checkout)} {times} x" for path, times in found)
    return found[0][0]


@contextmanager
def planted(path: Path, mutant: Mutant, moment: int) -> Iterator[None]:
    """Have a file contain a fault; `moment` sets its time, so that nothing compiled from another text is taken."""
    original = path.read_text(encoding="utf-8")
    try:
        _write(path, mutated(original, mutant), 2 * moment)
        yield
    finally:
        _write(path, original, 2 * moment + 1)


def _write(path: Path, text: str, moment: int) -> None:
    path.write_text(text, encoding="utf-8")
    stamp = time.time() + moment
    os.utime(path, (stamp, stamp))


class Bench:
    """A copy of a checkout, and the tests in it.

    Parameters
    ----------
    checkout, scratch : Path
        What is copied, and where to.
    """

    def __init__(self, checkout: Path, scratch: Path) -> None:
        self.copy, self.log = scratch / "copy", scratch / "log"
        shutil.copytree(checkout, self.copy, ignore=shutil.ignore_patterns(*NOT_COPIED))
        self._passes: dict[Tests, Outcome] = {}
        self._moment = 0

    def passes(self, tests: Tests) -> Outcome:
        """Return what the tests say to the copy as it is; they are run once."""
        if tests not in self._passes:
            self._passes[tests] = self._run(tests)
        return self._passes[tests]

    def judge(self, mutant: Mutant, baseline: bool = True) -> Outcome:
        """Plant a fault and return what became of it."""
        where = find_snippet(self.copy, mutant)
        if isinstance(where, str):
            return Outcome(NOT_FOUND, where)
        if baseline:
            before = self.passes(mutant.tests)
            if before.verdict != SURVIVED:
                return Outcome(BROKEN if before.verdict == KILLED else before.verdict, found_by=before.found_by)
        self._moment += 1
        with planted(where, mutant, self._moment):
            found = self._run(mutant.tests)
        return Outcome(found.verdict, str(where.relative_to(self.copy)), found.found_by, found.seconds)

    def _run(self, tests: Tests) -> Outcome:
        """Run tests until one fails."""
        files = [str(path) for part in tests.files.split() for path in sorted((self.copy / "tests").glob(part))]
        if not files:
            return Outcome(NO_TESTS, f"no file is called tests/{tests.files}")
        options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", "-k", tests.names]
        code, seconds = self._forked([*options, *files])
        failed = re.search(r"^(?:FAILED|ERROR) (\S.*?)(?: - |$)", self.log.read_text(errors="replace"), re.MULTILINE)
        if code == PASSED_CODE:
            return Outcome(SURVIVED, seconds=seconds)
        if code == NO_TESTS_CODE:
            return Outcome(NO_TESTS, seconds=seconds)
        ended = "" if code in FAILED_CODES else f"ended with {code}"
        return Outcome(KILLED, found_by=failed[1] if failed else ended, seconds=seconds)

    def _forked(self, arguments: list[str]) -> tuple[int, float]:
        """Run pytest in a fork; return its exit code, negative for a signal, and its processor time."""
        child = os.fork()
        if not child:
            os.setsid()
            self._become_pytest(arguments)
        deadline, done = time.monotonic() + SECONDS, 0
        while not done:
            done, status, used = os.wait4(child, os.WNOHANG)
            if not done and time.monotonic() > deadline:
                os.killpg(child, signal.SIGKILL)
            time.sleep(0.02)
        return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime

    def _become_pytest(self, arguments: list[str]) -> Any:
        try:
            os.chdir(self.copy)
            os.environ.update(PYTHONPATH=str(self.copy), HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
            os.environ["SPIKEBERT_CACHE"] = str(self.copy.with_name("cache"))  # of what is compiled from faulty C
            sys.path[0] = str(self.copy)  # in place of this script's folder
            with self.log.open("wb") as log:
                for stream in (1, 2):
                    os.dup2(log.fileno(), stream)
            code = int(pytest.main(arguments))
            sys.stdout.flush()
        except BaseException:  # nothing of the parent's may run in this process
            code = 3
        os._exit(code)


def preload() -> None:
    """Import what takes long."""
    for name in PRELOADED:
        try:
            importlib.import_module(name)
        except ImportError:
            continue
    if any(name in sys.modules for name in PACKAGES):
        raise SystemExit("the project itself is loaded already; tests would not see what is planted")


def table(outcomes: Iterable[tuple[Mutant, Outcome]]) -> Table:
    """Return a line for each fault."""
    rows = Table("fault", "verdict", "planted in", "found by", "seconds", box=None, header_style="bold")
    for mutant, found in outcomes:
        by = found.found_by.rpartition("/")[2]
        rows.add_row(mutant.name, found.verdict, found.where, escape(by), f"{found.seconds:.1f}")
    return rows


def main() -> None:
    """Judge the faults that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__).resolve().parents[1]
    parser.add_argument("--checkout", type=Path, default=here, help="whose packages and tests (this one)")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="NAME", help="faults, such as 'ONNX: *'")
    parser.add_argument("--no-baseline", dest="baseline", action="store_false", help="trust that the tests pass as is")
    words = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if any(fnmatchcase(mutant.name, name) for name in words.only)]
    if not chosen:
        raise SystemExit(f"no fault is called {' or '.join(words.only)}")
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch starts threads, which a fork would not have
    preload()
    outcomes: list[tuple[Mutant, Outcome]] = []
    with tempfile.TemporaryDirectory(prefix="spikebert-mutants-") as scratch:
        bench = Bench(words.checkout.resolve(), Path(scratch))
        for mutant in chosen:
            found = bench.judge(mutant, words.baseline)
            outcomes.append((mutant, found))
            print(f"{found.verdict}: {mutant.name} ({found.seconds:.1f} s)", file=sys.stderr, flush=True)
    console = Console(width=None if sys.stdout.isatty() else 220, highlight=False)
    console.print(table(outcomes))
    killed = sum(found.verdict == KILLED for _, found in outcomes)
    console.print(f"{killed} of {len(outcomes)} faults killed in {words.checkout}")
    raise SystemExit(0 if killed == len(outcomes) else 1)


if __name__ == "__main__":
    main()
