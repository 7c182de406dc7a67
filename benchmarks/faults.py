"""Plants faults in graphs, files and runners, and prints what `verify`, `check` and the NIR reader said about each.

    python benchmarks/faults.py                              prints the table
    python benchmarks/faults.py --write docs/equivalence.md  puts it between the markers there

The model is a small random SpikeBERT; PyTorch runs it as it is, the fault is in what it is compared with.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from export import GraphError, NirFileError, parse_graph, read_nir, to_nir, write_nir
from export.differences import graph_differences
from export.network import Network, Node
from export.operators import Affine, LayerNorm, LeakyIntegrateAndFire, NeuronState, SpikeAttention
from hardware.equivalence.isolation import check_hidden_state
from hardware.equivalence.streaming import Finding, Pair
from hardware.errors import TraceMismatchError
from hardware.runners import open_runner
from hardware.runners.reference import ReferenceRunner
from hardware.runners.runner import Runner
from hardware.traces.trace import Trace

BEGIN, END = "<!-- faults: made by benchmarks/faults.py -->", "<!-- faults: end -->"
HEADER_BYTES = 512
RANDOM_CUTS = 100
RANDOM_FLIPS = 200
LENGTHS = (10, 7, 4, 10)
VOCABULARY = 40


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes
    ----------
    fault : str
        What was planted.
    place : str
        Where.
    reported : str
        What was said.
    located : str
        The node that was named.
    right : bool
        Whether that is where the fault is, in float64 and in float32.
    """

    fault: str
    place: str
    reported: str
    located: str
    right: bool


@dataclass(frozen=True)
class GraphFault:
    """A fault in what a simulator runs.

    Attributes
    ----------
    fault, place : str
    change : callable
        Network -> faulty network.
    expected : tuple of str
        Nodes that may be named: the first to show it.
    in_simulator : bool
        The graph is right, what runs it is not.
    """

    fault: str
    place: str
    change: Callable[[Network], Network]
    expected: tuple[str, ...]
    in_simulator: bool = False


def make_model(seed: int = 3) -> Any:
    """Return a small random SpikeBERT with lively neurons."""
    import torch

    from spikebert import SpikeBertConfig, SpikeBertForSequenceClassification

    config = SpikeBertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        position_embedding_type="absolute",
        time_steps=4,
        num_labels=2,
    )
    model = SpikeBertForSequenceClassification(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if name.endswith("norm.weight") else 0.0
            parameter.copy_(centre + 0.5 * torch.randn(parameter.shape, generator=generator))
    return model


def make_sentences(seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return token ids of random sentences, padded to the longest, and their mask."""
    mask = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
    ids = np.random.default_rng(seed).integers(1, VOCABULARY, mask.shape)
    return np.where(mask, ids, 0), mask


# ---------------------------------------------------------------------------------------------------------------------
# Faults in the graph.


def _with(name: str, change: Callable[[Any], Any]) -> Callable[[Network], Network]:
    """Return a change of one node's operator."""

    def apply(network: Network) -> Network:
        assert any(node.name == name for node in network.nodes), name
        return replace(
            network,
            nodes=tuple(
                Node(node.name, change(node.operator), node.sources) if node.name == name else node
                for node in network.nodes
            ),
        )

    return apply


def _weight(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Network], Network]:
    return _with(name, lambda affine: replace(affine, weight=change(affine.weight.copy())))


def _swapped(first: str, second: str) -> Callable[[Network], Network]:
    def apply(network: Network) -> Network:
        operators = {node.name: node.operator for node in network.nodes}
        swapped = {first: operators[second], second: operators[first]}
        return replace(
            network,
            nodes=tuple(Node(n.name, swapped.get(n.name, n.operator), n.sources) for n in network.nodes),
        )

    return apply


def _without_residual(reader: str, kept: str) -> Callable[[Network], Network]:
    """Return a change that lets `reader` see `kept` alone where it read a sum."""

    def apply(network: Network) -> Network:
        return replace(
            network,
            nodes=tuple(Node(n.name, n.operator, (kept,)) if n.name == reader else n for n in network.nodes),
        )

    return apply


def _nudged(weight: np.ndarray) -> np.ndarray:
    weight[0] += 1e-2
    return weight


def _heads_swapped(weight: np.ndarray) -> np.ndarray:
    query = weight.shape[0] // 3
    weight[:query] = np.concatenate([weight[query // 2 : query], weight[: query // 2]])
    return weight


def _to_bfloat16(weight: np.ndarray) -> np.ndarray:
    bits = weight.astype(np.float32).view(np.uint32)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)


class _LateNeuron(LeakyIntegrateAndFire):
    """Sends its spikes one step late."""

    def step(self, x: np.ndarray, state: NeuronState, token_mask: np.ndarray | None) -> np.ndarray:
        late = getattr(state, "late", np.zeros_like(x))
        state.late = super().step(x, state, token_mask).copy()  # type: ignore[attr-defined]
        return late


class _StuckNeuron(LeakyIntegrateAndFire):
    """Its first features never fire."""

    def step(self, x: np.ndarray, state: NeuronState, token_mask: np.ndarray | None) -> np.ndarray:
        spikes = super().step(x, state, token_mask).copy()
        spikes[..., :4] = 0
        return spikes


class _CrossedNeuron(LeakyIntegrateAndFire):
    """Two of its features are wired to each other's place."""

    def step(self, x: np.ndarray, state: NeuronState, token_mask: np.ndarray | None) -> np.ndarray:
        spikes = super().step(x, state, token_mask).copy()
        spikes[..., [0, 1]] = spikes[..., [1, 0]]
        return spikes


def _as(kind: type[LeakyIntegrateAndFire]) -> Callable[[LeakyIntegrateAndFire], LeakyIntegrateAndFire]:
    return lambda neuron: kind(**{entry.name: getattr(neuron, entry.name) for entry in fields(neuron)})


QKV, QKV_NEURON = "block00_qkv_affine", "block00_qkv_neuron"
PROJECTION, PROJECTION_NEURON = "block01_projection_affine", "block01_projection_neuron"
INNER, INNER_NEURON = "block01_intermediate_affine", "block01_intermediate_neuron"
ATTENDED = "block00_attention_neuron"

GRAPH_FAULTS: tuple[GraphFault, ...] = (
    GraphFault("a row of weights off by 0.01", QKV, _weight(QKV, _nudged), (QKV_NEURON,)),
    GraphFault("weights rounded to bfloat16", INNER, _weight(INNER, _to_bfloat16), (INNER_NEURON,)),
    GraphFault(
        "weights of two layers swapped",
        "block00_projection_affine, block01_projection_affine",
        _swapped("block00_projection_affine", "block01_projection_affine"),
        ("block00_projection_neuron",),
    ),
    GraphFault("weights transposed", PROJECTION, _weight(PROJECTION, np.transpose), (PROJECTION_NEURON,)),
    GraphFault("two heads of the query swapped", QKV, _weight(QKV, _heads_swapped), (QKV_NEURON,)),
    GraphFault("bias lost", INNER, _with(INNER, lambda affine: replace(affine, bias=None)), (INNER_NEURON,)),
    GraphFault(
        "rows of the embedding shuffled",
        "embedding",
        _weight("embedding", lambda table: table[:, np.roll(np.arange(table.shape[1]), 1)]),
        ("embedding_neuron",),
    ),
    GraphFault(
        "attention scaled by 0.25 in place of 0.125",
        "block00_attention",
        _with("block00_attention", lambda attention: replace(attention, scale=2 * attention.scale)),
        (ATTENDED,),
    ),
    GraphFault(
        "4 heads in place of 2",
        "block00_attention",
        _with("block00_attention", lambda a: SpikeAttention(2 * a.num_heads, a.head_size // 2, a.scale)),
        (ATTENDED,),
    ),
    GraphFault(
        "layer norm over query, key and value together",
        "block00_qkv_norm",
        _with("block00_qkv_norm", lambda norm: replace(norm, groups=1)),
        (QKV_NEURON,),
    ),
    GraphFault(
        "layer norm with eps 1e-3 in place of 1e-5",
        "block01_output_norm",
        _with("block01_output_norm", lambda norm: LayerNorm(norm.weight, norm.bias, 1e-3, norm.groups)),
        ("block01_output_neuron",),
    ),
    GraphFault(
        "β = 0.95 in place of 0.9",
        ATTENDED,
        _with(ATTENDED, lambda neuron: replace(neuron, beta=np.full_like(neuron.beta, 0.95))),
        (ATTENDED,),
    ),
    GraphFault(
        "reset to zero in place of subtraction",
        QKV_NEURON,
        _with(QKV_NEURON, lambda neuron: replace(neuron, reset="zero")),
        (QKV_NEURON,),
    ),
    GraphFault(
        "> in place of ≥",
        ATTENDED,
        _with(ATTENDED, lambda neuron: replace(neuron, fire_on_equal=False)),
        (ATTENDED,),
    ),
    GraphFault(
        "threshold 1.01 in place of 1",
        INNER_NEURON,
        _with(INNER_NEURON, lambda neuron: replace(neuron, threshold=1.01 * neuron.threshold)),
        (INNER_NEURON,),
    ),
    GraphFault(
        "residual edge missing",
        "embedding_neuron → block00_intermediate_affine",
        _without_residual("block00_intermediate_affine", "block00_projection_neuron"),
        ("block00_intermediate_neuron",),
    ),
    GraphFault(
        "residual edge missing before the logits",
        "block00_output_neuron → final_norm",
        _without_residual("final_norm", "block01_output_neuron"),
        ("output",),
    ),
    GraphFault(
        "classifier rows swapped",
        "classifier",
        _with("classifier", lambda affine: Affine(affine.weight[::-1], affine.bias)),
        ("output",),
    ),
    GraphFault("spikes one step late", ATTENDED, _with(ATTENDED, _as(_LateNeuron)), (ATTENDED,), True),
    GraphFault(
        "four neurons that never fire",
        INNER_NEURON,
        _with(INNER_NEURON, _as(_StuckNeuron)),
        (INNER_NEURON,),
        in_simulator=True,
    ),
    GraphFault(
        "two neurons crossed",
        PROJECTION_NEURON,
        _with(PROJECTION_NEURON, _as(_CrossedNeuron)),
        (PROJECTION_NEURON,),
        in_simulator=True,
    ),
)


def find_graph_fault(model: Any, network: Network, fault: GraphFault, precision: str) -> Finding:
    """Return what comparing the model with the faulty network finds."""
    faulty = fault.change(network)
    ids, mask = make_sentences()
    pair = Pair(
        open_runner(model, "torch", precision, record_membrane_potentials=True),
        open_runner(faulty, "reference", precision, record_membrane_potentials=True),
        network,
        explain_all=True,
    )
    with pair:
        return pair.run(0, ids, mask)


def _graph_row(model: Any, network: Network, fault: GraphFault) -> Row:
    named, right = [], True
    for precision in ("float64", "float32"):
        found = find_graph_fault(model, network, fault, precision)
        explanation = found.explanation
        assert explanation is not None
        first = explanation.first_unexplained
        named.append("–" if first is None else first.node)
        right &= first is not None and first.node in fault.expected and explanation.at_fault == ["b"]
    in_graph = not fault.in_simulator and graph_differences(network, fault.change(network))
    reported = "not equal, unexplained" + ("; named in the graph" if in_graph else "")
    return Row(fault.fault, fault.place, reported, " / ".join(dict.fromkeys(named)), right)


# ---------------------------------------------------------------------------------------------------------------------
# Faults in a runner.


class MaskBlind(ReferenceRunner):
    """Takes padding for tokens, as the published code does; its recorder leaves padding out."""

    def run(self, inputs: Any, token_mask: Any = None) -> Trace:
        """Run without the mask."""
        trace = super().run(inputs)
        mask = np.ones(trace.mask.shape, bool) if token_mask is None else np.asarray(token_mask) != 0
        silent = {name: spikes * mask[None, :, :, None].astype(spikes.dtype) for name, spikes in trace.spikes.items()}
        return replace(trace, mask=mask, spikes=silent)


class NeverReset(ReferenceRunner):
    """Keeps its membrane potentials from batch to batch where the shapes are the same."""

    def run(self, inputs: Any, token_mask: Any = None) -> Trace:
        """Run on top of what ran before."""
        shape = np.shape(inputs)
        reset = self._execution.reset
        if getattr(self, "_last_shape", None) == shape:
            self._execution.reset = lambda: None  # type: ignore[method-assign]
        try:
            return super().run(inputs, token_mask)
        finally:
            self._last_shape = shape
            self._execution.reset = reset  # type: ignore[method-assign]


class BatchMean(ReferenceRunner):
    """Takes a sentence's first word for every sentence of the batch."""

    def run(self, inputs: Any, token_mask: Any = None) -> Trace:
        """Run with the first sentence's first word everywhere."""
        ids = np.array(inputs)
        ids[:, 0] = ids[0, 0]
        return replace(super().run(ids, token_mask), input_ids=np.array(inputs))


class LooksAhead(ReferenceRunner):
    """Charges less the more steps there will be."""

    def run(self, inputs: Any, token_mask: Any = None) -> Trace:
        """Run with weights that depend on the number of steps."""
        steps = self.time_steps or self.network.time_steps or 1
        original = self._execution.nodes
        self._execution.nodes = [
            Node(n.name, replace(n.operator, weight=n.operator.weight * (4 / steps)), n.sources)
            if n.name == "embedding_norm" and isinstance(n.operator, LayerNorm)
            else Node(n.name, replace(n.operator, weight=n.operator.weight * (4 / steps)), n.sources)
            if n.name == "embedding" and isinstance(n.operator, Affine)
            else n
            for n in original
        ]
        try:
            return super().run(inputs, token_mask)
        finally:
            self._execution.nodes = original


RUNNER_FAULTS: tuple[tuple[str, type[ReferenceRunner], set[str]], ...] = (
    ("padding taken for tokens", MaskBlind, {"padding"}),
    ("state kept from batch to batch", NeverReset, {"repeat"}),
    ("one sentence's word used for the whole batch", BatchMean, {"batch", "order"}),
    ("weights that depend on the number of steps", LooksAhead, {"prefix"}),
)


def failed_checks(kind: type[ReferenceRunner], network: Network) -> set[str]:
    """Return the hidden-state checks that a runner fails."""
    ids, mask = make_sentences()

    def open_faulty(time_steps: int | None) -> Runner:
        return kind(network, "float64", time_steps, record_membrane_potentials=True)

    assert network.time_steps is not None
    results = check_hidden_state(open_faulty, ids, mask, network.time_steps, network)
    return {result.name for result in results if result.passed is False}


def _runner_rows(network: Network) -> Iterable[Row]:
    for fault, kind, expected in RUNNER_FAULTS:
        failed = failed_checks(kind, network)
        names = ", ".join(sorted(failed))
        yield Row(fault, "a runner", f"`check` fails: {names}", "–", expected <= failed)


# ---------------------------------------------------------------------------------------------------------------------
# Faults in a file.


@dataclass(frozen=True)
class FileVerdicts:
    """What became of damaged files.

    Attributes
    ----------
    refused : int
        With a typed error.
    found : int
        Read, and named by the comparison with the model's own graph.
    unchanged : int
        Read as the very same graph: the damage hit bytes that mean nothing.
    """

    refused: int = 0
    found: int = 0
    unchanged: int = 0

    def add(self, what: str) -> FileVerdicts:
        """Count one more."""
        return replace(self, **{what: getattr(self, what) + 1})


def judge_file(content: bytes, network: Network, folder: Path) -> str:
    """Return ``"refused"``, ``"found"`` or ``"unchanged"`` for the content of a NIR file."""
    path = folder / "damaged.nir"
    path.write_bytes(content)
    try:
        read = parse_graph(read_nir(path))
    except (NirFileError, GraphError):
        return "refused"
    same_facts = read.metadata == network.metadata and read.dt == network.dt
    return "unchanged" if same_facts and not graph_differences(network, read) else "found"


def judge_cuts(content: bytes, network: Network, folder: Path, seed: int = 0) -> FileVerdicts:
    """Cut a file at every offset of its header and at random places."""
    places = [*range(HEADER_BYTES), *np.random.default_rng(seed).integers(HEADER_BYTES, len(content), RANDOM_CUTS)]
    verdicts = FileVerdicts()
    for place in places:
        verdicts = verdicts.add(judge_file(content[: int(place)], network, folder))
    return verdicts


def judge_flips(content: bytes, network: Network, folder: Path, seed: int = 1) -> FileVerdicts:
    """Flip single bits at random places."""
    rng = np.random.default_rng(seed)
    verdicts = FileVerdicts()
    for place, bit in zip(rng.integers(0, len(content), RANDOM_FLIPS), rng.integers(0, 8, RANDOM_FLIPS), strict=True):
        damaged = bytearray(content)
        damaged[int(place)] ^= 1 << int(bit)
        verdicts = verdicts.add(judge_file(bytes(damaged), network, folder))
    return verdicts


def _file_rows(graph: Any, network: Network) -> Iterable[Row]:
    with tempfile.TemporaryDirectory() as scratch:
        content = write_nir(Path(scratch) / "good.nir", graph).read_bytes()
        cuts = judge_cuts(content, network, Path(scratch))
        place = f"every offset up to {HEADER_BYTES}, {RANDOM_CUTS} others"
        yield Row("file cut off", place, "refused", "the file", cuts.found == cuts.unchanged == 0)
        flips = judge_flips(content, network, Path(scratch))
        print(f"flipped bits: {flips}", file=sys.stderr)
        yield Row(
            "a bit flipped",
            f"{RANDOM_FLIPS} random places",
            "refused, or named in the graph, or in bytes that mean nothing",
            "the file or the node",
            flips.refused > 0 and flips.found > 0,
        )


def _mismatch_rows(model: Any, network: Network) -> Iterable[Row]:
    ids, mask = make_sentences()
    for fault, change in (
        ("one time step more", {"time_steps": (network.time_steps or 0) + 1}),
        ("padding counted as tokens, by the graph", {"attend_to_padding": True}),
    ):
        pair = Pair(
            open_runner(model, "torch", "float64"), open_runner(replace(network, **change), "reference", "float64")
        )
        try:
            pair.run(0, ids, mask)
            said = "nothing"
        except TraceMismatchError as error:
            said = f"refused: {str(error).split(':', 1)[1].strip()}"
        differs = graph_differences(network, replace(network, **change))
        yield Row(fault, "graph", f"{said}; named in the graph", "graph", said != "nothing" and bool(differs))


def planted_faults(progress: Callable[[str], None] = lambda _: None) -> list[Row]:
    """Plant every fault and return what was reported."""
    model = make_model()
    graph = to_nir(model)
    network = parse_graph(graph)
    rows = []
    for fault in GRAPH_FAULTS:
        progress(fault.fault)
        rows.append(_graph_row(model, network, fault))
    progress("runners and files")
    rows.extend(_mismatch_rows(model, network))
    rows.extend(_runner_rows(network))
    rows.extend(_file_rows(graph, network))
    return rows


def markdown_table(rows: list[Row]) -> str:
    """Return the table as it stands in the documentation."""
    lines = ["| planted fault | where | reported | located at | right |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        located = f"`{row.located}`" if row.located and " " not in row.located else row.located
        lines.append(f"| {row.fault} | {row.place} | {row.reported} | {located} | {'yes' if row.right else '**no**'} |")
    return "\n".join(lines)


def table_in(text: str) -> str:
    """Return what stands between the markers of a document."""
    return text.split(BEGIN, 1)[1].split(END, 1)[0].strip()


def main() -> None:
    """Print the table, or write it into a document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="document with the markers")
    arguments = parser.parse_args()
    rows = planted_faults(lambda what: print(what, file=sys.stderr))
    table = markdown_table(rows)
    print(table)
    if arguments.write is not None:
        text = arguments.write.read_text(encoding="utf-8")
        before, after = text.split(BEGIN, 1)[0], text.split(END, 1)[1]
        arguments.write.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}", encoding="utf-8")
    if not all(row.right for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
