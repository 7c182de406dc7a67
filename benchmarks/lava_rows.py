"""What Lava costs: seconds to start, seconds a sample, and memory, for each granularity and for a plain mapping.

    python benchmarks/lava_rows.py [--layers 12] [--hidden-size 768] [--tokens 128] [--rounds 5] [-o results/lava.json]

Ways of the same network in float32, each in a Python of its own: the PyTorch model, NumPy without Lava (the reference
runner), our Lava runner in its granularities, and one Lava process for each operator with a Monitor on every neuron, as
a user would first write it. All but PyTorch have read nothing but the NIR file. Memory is PSS over all processes of a
run: what they take together, pages that they share counted once.

The plain mapping reads every neuron's Monitor value by value, which at SpikeBERT-base's size and length takes half an
hour and more. It is measured on as many tokens as are read in seconds, beside NumPy on as many; what more tokens would
take is a row of its own, marked as extrapolated.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).parent.parent
GRANULARITIES = ("network", "block", "operator")
PLAIN = "plain"
NUMPY = "numpy"
TORCH = "torch"
WAYS = (TORCH, NUMPY, *GRANULARITIES, PLAIN)
MARKS = {"times_numpy": 1.1, "start_seconds": 5.0, "memory_bytes": 1_000_000_000}
"""What the default granularity must keep at 12 blocks, D = 768 and 128 tokens."""
TIME_STEPS = 4
VOCABULARY = 2000
PLAIN_ELEMENTS = 400_000
"""Monitored values that the plain mapping is measured on, at 25 to 35 microseconds each on an idle machine."""


def main() -> None:
    """Measure every way and print a table; one way by itself is for the Pythons this one starts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden-size", type=int, default=768)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5, help="samples of which the median is shown")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one", nargs=2, metavar=("WAY", "NIR"), help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", type=Path, default=Path("results/lava.json"))
    arguments = parser.parse_args()
    if arguments.one:
        way, file = arguments.one
        print(json.dumps(measure_here(way, Path(file), arguments.tokens, arguments.rounds, arguments.seed)))
        return
    from rich.console import Console

    from hardware.reports.files import write_json_object
    from spikebert.provenance import run_record

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.nir"
        write_random_model(file, arguments.layers, arguments.hidden_size, arguments.tokens, arguments.seed)
        rows = [
            measure_way(way, file, arguments.tokens, arguments.rounds, arguments.seed)
            for way in arguments.ways
            if way != PLAIN
        ]
        check_spikes(rows)
        title, console = f"{arguments.layers} x {arguments.hidden_size}", Console(width=110)
        console.print(table(rows, f"{title}, {arguments.tokens} tokens"))
        plain = []
        if PLAIN in arguments.ways:
            few = plain_tokens(arguments.layers, arguments.hidden_size, arguments.tokens)
            plain = measure_plain(file, few, arguments.tokens, arguments.seed)
            console.print(plain_table(plain, rows, title))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    size = {"layers": arguments.layers, "hidden_size": arguments.hidden_size, "tokens": arguments.tokens}
    report = {"size": size, "marks": MARKS, "rows": rows, "plain": plain, **run_record(arguments.seed)}
    write_json_object(arguments.output, report)
    print(f"wrote {arguments.output}")


def check_spikes(rows: list[dict[str, Any]]) -> None:
    """Stop where ways of the same arithmetic fired differently; PyTorch sums in another order, so float32 may flip."""
    fired = {row["way"]: row["spikes"] for row in rows if row["way"] != TORCH}
    if len(set(fired.values())) > 1:
        raise SystemExit(f"the ways fired differently: {fired}")


def random_model(layers: int, hidden_size: int, tokens: int, seed: int = 0) -> Any:
    """Return a SpikeBERT of random weights, in evaluation mode."""
    import torch

    from spikebert import SpikeBertConfig, SpikeBertForSequenceClassification

    torch.manual_seed(seed)
    config = SpikeBertConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden_size // 64),
        intermediate_size=4 * hidden_size,
        max_position_embeddings=tokens,
        time_steps=TIME_STEPS,
    )
    return SpikeBertForSequenceClassification(config).eval()


def write_random_model(file: Path, layers: int, hidden_size: int, tokens: int, seed: int = 0) -> None:
    """Write `random_model` as a NIR file, and as a checkpoint in the folder of that name without suffix.

    In a Python of its own, which takes torch with it.
    """
    code = (
        "import sys\n"
        "from export import to_nir, write_nir\n"
        "folder, file, *numbers = sys.argv[1:]\n"
        "sys.path.append(folder)\n"
        "from lava_rows import random_model\n"
        "model = random_model(*map(int, numbers))\n"
        "model.save_pretrained(file.removesuffix('.nir'))\n"
        "write_nir(file, to_nir(model))\n"
    )
    words = [str(Path(__file__).parent), str(file), *map(str, (layers, hidden_size, tokens, seed))]
    subprocess.run([sys.executable, "-c", code, *words], check=True, env=_environment())


def measure_way(way: str, file: Path, tokens: int, rounds: int = 5, seed: int = 0) -> dict[str, Any]:
    """Measure one way in a Python of its own; see `measure_here`."""
    options = ["--one", way, str(file), "--tokens", str(tokens), "--rounds", str(rounds), "--seed", str(seed)]
    finished = subprocess.run(
        [sys.executable, __file__, *options], check=True, env=_environment(), stdout=subprocess.PIPE, text=True
    )
    return json.loads(finished.stdout.splitlines()[-1])


def plain_tokens(layers: int, hidden_size: int, tokens: int) -> int:
    """Return the length of sentence, up to `tokens`, on which the plain mapping's Monitors are read in seconds."""
    neurons = (10 * layers + 1) * hidden_size  # a block: q, k, v, attention, projection, 4 intermediate, output
    return max(1, min(tokens, PLAIN_ELEMENTS // (neurons * TIME_STEPS)))


def measure_plain(file: Path, few: int, tokens: int, seed: int = 0) -> list[dict[str, Any]]:
    """Measure the plain mapping on `few` tokens, beside NumPy on as many; extrapolate to `tokens` where they are more.

    Returns
    -------
    list of dict
        As `measure_here`, each with its ``tokens`` and whether it is ``extrapolated``.
    """
    rows = [measure_way(way, file, few, 1, seed) | {"tokens": few, "extrapolated": False} for way in (NUMPY, PLAIN)]
    check_spikes(rows)
    return rows if few == tokens else [*rows, extrapolate_plain(rows[1], tokens)]


def extrapolate_plain(measured: dict[str, Any], tokens: int) -> dict[str, Any]:
    """Return the least that the plain mapping takes for `tokens`: as many more values to read, all else as measured."""
    reading = measured["reading_seconds"] * tokens / measured["tokens"]
    seconds = measured["sample_seconds"] - measured["reading_seconds"] + reading
    return {"way": PLAIN, "tokens": tokens, "extrapolated": True, "sample_seconds": seconds, "reading_seconds": reading}


def plain_table(plain: list[dict[str, Any]], rows: list[dict[str, Any]], title: str) -> Any:
    """Return the plain mapping as a table, each length beside NumPy on the same; `rows` hold NumPy on the longest."""
    from rich.table import Table

    numpy_seconds = {row.get("tokens"): row["sample_seconds"] for row in plain if row["way"] == NUMPY}
    longest = {row["way"]: row["sample_seconds"] for row in rows}
    shown = Table(
        title=f"One Lava process for each operator, with Monitors, {title}",
        caption="extrapolated: Monitors are read value by value, so reading grows with tokens; all else as measured",
    )
    for column in ("tokens", "", "start s", "s a sample", "times NumPy", "memory MB", "processes"):
        shown.add_column(column, justify="left" if not column else "right")
    for row in plain:
        if row["way"] != PLAIN:
            continue
        beside = numpy_seconds.get(row["tokens"], longest.get(NUMPY))
        times = "–" if beside is None else f"{row['sample_seconds'] / beside:,.0f}"
        if row["extrapolated"]:
            cells = ("extrapolated", "–", f"at least {row['sample_seconds']:,.0f}", times, "–", "–")
        else:
            memory, processes = f"{row['memory_bytes'] / 1e6:,.0f}", str(row["processes"])
            start = f"{row['start_seconds']:.1f}"
            cells = ("measured", start, f"{row['sample_seconds']:.1f}", times, memory, processes)
        shown.add_row(str(row["tokens"]), *cells)
    return shown


def measure_here(way: str, file: Path, tokens: int, rounds: int, seed: int) -> dict[str, Any]:
    """Measure one way in this process.

    Parameters
    ----------
    way : str
        One of `WAYS`: ``"torch"``, ``"numpy"``, a granularity of the Lava runner, or ``"plain"``.
    file : Path
        NIR file of a graph of token ids.
    tokens, rounds, seed : int
        Length of the random sentences, how many of them, and their seed.

    Returns
    -------
    dict
        ``way``; ``start_seconds`` from a read graph to processes that wait; ``sample_seconds``, the median; all of
        them in ``samples_seconds``; ``processor_seconds`` for which a sample of our runners keeps processors busy, the
        median over all processes together; ``memory_bytes`` with a network that has run; ``processes``; ``spikes`` of
        the first sample, which must be the same for all ways.
    """
    from export.nir_file import read_nir
    from export.nir_graph.reader import parse_graph

    network = parse_graph(read_nir(file))
    encoding = network.token_encoding
    assert encoding is not None
    ids = np.random.default_rng(seed).integers(1, encoding.vocabulary, (rounds + 1, 1, tokens))
    if way == PLAIN:
        return {"way": way, **_measure_plain(network, ids)}
    if way == TORCH:
        return {"way": way, **_measure_torch(file.with_suffix(""), ids)}
    return {"way": way, **_measure_runner(way, network, ids)}


def _measure_runner(way: str, network: Any, ids: np.ndarray) -> dict[str, Any]:
    from hardware import open_runner
    from hardware.runners.lava.memory import proportional_bytes

    lava = {} if way == NUMPY else {"granularity": way, "tokens": ids.shape[-1]}
    with open_runner(network, "reference" if way == NUMPY else "lava", "float32", **lava) as runner:
        began = time.perf_counter()
        if way != NUMPY:
            runner.start()
        start = time.perf_counter() - began
        seconds, busy, spikes = [], [], 0
        for batch in ids:
            actors = [] if way == NUMPY else runner.process_ids()
            busy_before = processor_seconds(actors) if seconds else 0.0  # the first sample may build the network
            began = time.perf_counter()
            trace = runner.run(batch)
            seconds.append(time.perf_counter() - began)
            if len(seconds) == 1:
                spikes = sum(int(np.count_nonzero(value)) for value in trace.spikes.values())
            else:
                busy.append(processor_seconds(actors) - busy_before)
        actors = [] if way == NUMPY else runner.process_ids()
        memory = proportional_bytes([os.getpid(), *actors])
    row = _row(start, seconds, memory, len(actors), spikes)
    return {**row, "processor_seconds": statistics.median(busy)} if busy else row


def processor_seconds(actors: list[int]) -> float:
    """Return how long this process and `actors` have kept processors busy so far."""
    import psutil

    times = [psutil.Process(pid).cpu_times() for pid in (os.getpid(), *actors)]
    return sum(spent.user + spent.system for spent in times)


def _measure_torch(checkpoint: Path, ids: np.ndarray) -> dict[str, Any]:
    import torch

    from hardware.runners.lava.memory import proportional_bytes
    from spikebert.checkpoint import load_model

    torch.set_num_threads(1)
    began = time.perf_counter()
    model = load_model(checkpoint)
    start = time.perf_counter() - began
    seconds, spikes = [], 0
    for batch in ids:
        began = time.perf_counter()
        with torch.no_grad():
            output = model(torch.from_numpy(batch), output_spikes=True)
        seconds.append(time.perf_counter() - began)
        if len(seconds) == 1:
            spikes = sum(int(value.count_nonzero()) for value in output.spikes.values())
    return _row(start, seconds, proportional_bytes([os.getpid()]), 0, spikes)


def _measure_plain(network: Any, ids: np.ndarray) -> dict[str, Any]:
    """One sample: a user's first network has its input built in, and starts again for the next."""
    from hardware.runners.lava.compatibility import import_lava

    import_lava()
    sys.path.insert(0, str(REPOSITORY / "benchmarks" / "plain_lava"))
    import multiprocessing

    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg
    from lava.proc.monitor.process import Monitor
    from processes import OperatorProcess, TokenInput  # type: ignore[import-not-found]

    from export.operators import Total
    from hardware.runners.lava.compiler import port_shapes
    from hardware.runners.lava.memory import proportional_bytes

    shapes = port_shapes(network, ids.shape[-1])
    steps = network.time_steps
    began = time.perf_counter()
    ports: dict[str, list[Any]] = {}
    first: Any = None
    monitors = {}
    for node in network.nodes:
        if isinstance(node.operator, Total):
            ports[node.name] = [port for source in node.sources for port in ports[source]]
            continue
        operator = node.operator.cast(np.float32)
        if network.input_name in node.sources:
            value = operator.gather(network.token_encoding.hot_inputs(ids[0, 0])).astype(np.float32)
            first = process = TokenInput(value=value, name=node.name)
        else:
            (source,) = node.sources
            process = OperatorProcess(
                operator=operator, in_shape=shapes[source], out_shape=shapes[node.name], name=node.name
            )
            for port in ports[source]:
                port.connect(process.a_in)
            if node.operator.spikes:
                monitors[node.name] = Monitor()
                monitors[node.name].probe(process.shown, steps)
        ports[node.name] = [process.out]
    first.create_runtime(run_cfg=Loihi2SimCfg(select_tag="floating_pt"))
    start = time.perf_counter() - began
    began = time.perf_counter()
    first.run(condition=RunSteps(num_steps=steps))
    seconds = time.perf_counter() - began
    children = [child.pid for child in multiprocessing.active_children() if child.pid is not None]
    memory = proportional_bytes([os.getpid(), *children])
    began = time.perf_counter()
    recorded = {name: monitor.get_data()[name]["shown"] for name, monitor in monitors.items()}
    reading = time.perf_counter() - began
    first.stop()
    spikes = sum(int(np.count_nonzero(value)) for value in recorded.values())
    return {**_row(start, [seconds + reading], memory, len(children), spikes), "reading_seconds": reading}


def _row(start: float, seconds: list[float], memory: int, processes: int, spikes: int) -> dict[str, Any]:
    measured = seconds[1:] or seconds  # the first warms caches
    return {
        "start_seconds": start,
        "sample_seconds": statistics.median(measured),
        "samples_seconds": seconds,
        "memory_bytes": memory,
        "processes": processes,
        "spikes": spikes,
    }


def table(rows: list[dict[str, Any]], title: str) -> Any:
    """Return the rows as a table, each beside NumPy and PyTorch of the same run."""
    from rich.table import Table

    seconds = {row["way"]: row["sample_seconds"] for row in rows}
    shown = Table(title=f"Lava, float32, {title}")
    for column in ("way", "start s", "s a sample", "times NumPy", "times PyTorch", "memory MB", "processes"):
        shown.add_column(column, justify="left" if column == "way" else "right")
    for row in rows:
        times = [f"{row['sample_seconds'] / seconds[w]:.2f}" if w in seconds else "–" for w in (NUMPY, TORCH)]
        cells = (f"{row['start_seconds']:.1f}", f"{row['sample_seconds']:.3f}", *times)
        shown.add_row(row["way"], *cells, f"{row['memory_bytes'] / 1e6:,.0f}", str(row["processes"]))
    return shown


def _environment() -> dict[str, str]:
    """Return the environment with one thread for each BLAS: Lava's processes are the parallel ones."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**os.environ, **threads, "PYTHONPATH": str(REPOSITORY)}


if __name__ == "__main__":
    main()
