"""The promise of ``docs/nir-extension.md``: it suffices. A reader and simulator of our files, written from it alone.

What stands above the tests uses h5py and NumPy, and of this project nothing. It runs one unpadded sentence. Its spikes
must be those of the reference runner and of the integer runner: where the page says too little or the wrong thing, they
are not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

Array = np.ndarray
Step = Callable[[Array], Array]
"""What a node computes at one time step: ``(tokens, in)`` to ``(tokens, out)``; neurons remember in between."""

UNITY = 4096
HIGHEST = 2**23 - 1


def read_tree(group: h5py.Group) -> dict[str, Any]:
    """Return an HDF5 group as nested dictionaries."""
    found = {}
    for key, entry in group.items():
        value = read_tree(entry) if isinstance(entry, h5py.Group) else entry[()]
        found[key] = value.decode() if isinstance(value, bytes) else value
    return found


def simulate(path: Path, sentence: Any) -> tuple[dict[str, Array], Array, Array]:
    """Run one sentence: token ids ``(N,)``, or values ``(T, N, F)``.

    Returns every neuron's spikes ``(T, N, F)`` by node, what the output shows at each step ``(T, N or 1, C)``, and the
    logits ``(C,)``.
    """
    with h5py.File(path, "r") as file:
        graph = read_tree(file["node"])
    nodes, said = graph["nodes"], graph["metadata"]
    sources: dict[str, list[str]] = {}
    for source, target in graph["edges"].astype(str):
        sources.setdefault(target, []).append(source)
    is_integer = said["precision"] == "integer"
    number = np.int64 if is_integer else np.float64
    (end,) = (name for name, node in nodes.items() if node["type"] == "Output")
    (start,) = (name for name, node in nodes.items() if node["type"] == "Input")
    steps = {name: step_of(node, number, said["dt"]) for name, node in nodes.items() if name not in (start, end)}
    if nodes[start]["metadata"]["encoding"] == "multi_hot":
        shown_at = [multi_hot(nodes[start], sentence)] * said["time_steps"]
    else:
        shown_at = list(sentence)
    spikes: dict[str, list[Array]] = {name: [] for name in nodes if fires(nodes[name])}
    shown = []
    for arrived in shown_at:
        sent = {start: arrived.astype(number)}

        def value(name: str, sent: dict[str, Array] = sent) -> Array:
            if name not in sent:
                arriving = reduce(np.add, [value(source) for source in sources[name]])
                sent[name] = steps[name](arriving).astype(number)
            return sent[name]

        shown.append(reduce(np.add, [value(source) for source in sources[end]]))
        for name, kept in spikes.items():
            kept.append(value(name))
    outputs, fired = np.stack(shown), {name: np.stack(kept) for name, kept in spikes.items()}
    last = nodes[end].get("metadata", {})
    if "unit" not in last:
        return fired, outputs, outputs.mean(0)[0]
    sums = any(node.get("metadata", {}).get("op") == "token_sum" for node in nodes.values())
    tokens = len(sent[start]) if sums else 1
    steps_seen = tokens * len(shown_at)
    logits = (outputs.sum(0) + steps_seen * last["bias"]) * last["unit"] / steps_seen
    return fired, (outputs + tokens * last["bias"]) * last["unit"] / tokens, logits[0]


def multi_hot(node: dict[str, Any], token_ids: list[int]) -> Array:
    """Return what a sentence is at the graph's input, ``(N, in)``."""
    said = node["metadata"]
    words, positions = said["vocabulary"], said["positions"]
    hot = np.zeros((len(token_ids), int(node["shape"][0])))
    behind = words
    for n, token in enumerate(token_ids):
        hot[n, token] = 1
        if "before_first" in said:
            behind = 2 * words
            hot[n, words + (token_ids[n - 1] if n else said["before_first"])] = 1
        if positions:
            hot[n, behind + n] = 1
    return hot


def operator_of(node: dict[str, Any]) -> str:
    return node.get("metadata", {}).get("op", node["type"])


def fires(node: dict[str, Any]) -> bool:
    return operator_of(node) in NEURONS


def step_of(node: dict[str, Any], number: Any, dt: float) -> Step:
    """Return what a node computes, by the name of its operator, or for a plain NIR node by its type."""
    said = node.get("metadata", {})
    name = operator_of(node)
    if "op" in said:
        assert said["op_version"] == 1
    if name in ("integer_affine", "Affine", "Linear"):
        weight, bias = node["weight"].astype(number), node.get("bias", np.zeros(1)).astype(number)
        return lambda x: x @ weight.T + bias
    return {**NEURONS, **OTHERS}[name](node, said, dt)


def leaky_integrate_and_fire(node: dict[str, Any], said: dict[str, Any], dt: float) -> Step:
    membrane = node["nodes"]["membrane"] if node["type"] == "NIRGraph" else node
    threshold, state = said["threshold"], {"U": 0.0, "S": 0.0}
    leaks = "tau" in membrane
    beta = said.get("beta", 1 - dt / membrane["tau"] if leaks else 1.0)
    tau = said.get("tau_steps", membrane["tau"] / dt if leaks else 1.0)

    def step(current: Array) -> Array:
        before = state["U"]
        potential = before + (current - before) / tau if said["decay_input"] else beta * before + current
        if said["reset"] == "subtract":
            potential = potential - state["S"] * threshold
        fired = potential >= threshold if said["fire_on_equal"] else potential > threshold
        state["U"] = np.where(fired, 0, potential) if said["reset"] == "zero" else potential
        state["S"] = fired.astype(np.float64)
        return state["S"]

    return step


def heaviside(node: dict[str, Any], said: dict[str, Any], dt: float) -> Step:
    at_equality = said["fire_on_equal"]
    return lambda x: (x >= said["threshold"] if at_equality else x > said["threshold"]).astype(np.float64)


def toward_zero(values: Array) -> Array:
    return np.sign(values) * (np.abs(values) // UNITY)


def wrapped(values: Array) -> Array:
    values = np.where(values <= -(2**23), values + 2**24, values)
    return np.where(values > 2**23, values - 2**24, values)


def integer_leaky_integrate_and_fire(node: dict[str, Any], said: dict[str, Any], dt: float) -> Step:
    keeps, threshold = UNITY - said["decay"].astype(np.int64), said["threshold"].astype(np.int64) * 64
    bias = said["bias_mantissa"].astype(np.int64) * 2 ** said["bias_exponent"].astype(np.int64)
    state: dict[str, Any] = {"v": np.int64(0), "S": np.int64(0)}

    def step(activation: Array) -> Array:
        current = wrapped((activation * 64 + 2**31) % 2**32 - 2**31)
        potential = toward_zero(state["v"] * keeps) + current + bias
        if said["reset"] == "subtract":
            potential = potential - state["S"] * threshold
        potential = np.clip(potential, -HIGHEST, HIGHEST)
        fired = potential >= threshold if said["fire_on_equal"] else potential > threshold
        state["v"] = np.where(fired, 0, potential) if said["reset"] == "zero" else potential
        state["S"] = fired.astype(np.int64)
        return state["S"]

    return step


def integer_current_neuron(node: dict[str, Any], said: dict[str, Any], dt: float) -> Step:
    keeps, stays = (UNITY - said[key].astype(np.int64) for key in ("decay", "current_decay"))
    threshold = said["threshold"].astype(np.int64) * 64
    bias = said["bias_mantissa"].astype(np.int64) * 2 ** said["bias_exponent"].astype(np.int64)
    state: dict[str, Any] = {"u": np.int64(0), "v": np.int64(0)}

    def step(activation: Array) -> Array:
        state["u"] = wrapped(toward_zero(state["u"] * stays) + activation * 64)
        potential = np.clip(toward_zero(state["v"] * keeps) + state["u"] + bias, -HIGHEST, HIGHEST)
        fired = potential > threshold
        state["v"] = np.where(fired, 0, potential)
        return fired.astype(np.int64)

    return step


def integer_integrator(node: dict[str, Any], said: dict[str, Any], dt: float) -> Step:
    keeps = UNITY - said["decay"].astype(np.int64)
    bias = said["bias_mantissa"].astype(np.int64) * 2 ** said["bias_exponent"].astype(np.int64)
    state = {"v": np.int64(0)}

    def step(activation: Array) -> Array:
        current = wrapped((activation * 64 + 2**31) % 2**32 - 2**31)
        state["v"] = np.clip(toward_zero(state["v"] * keeps) + current + bias, -HIGHEST, HIGHEST)
        return state["v"]

    return step


def layer_norm(node: dict[str, Any], said: dict[str, Any], dt: float) -> Step:
    def step(x: Array) -> Array:
        groups = x.reshape(len(x), said["groups"], -1)
        centred = groups - groups.mean(-1, keepdims=True)
        variance = (centred * centred).mean(-1, keepdims=True)
        normal = centred / np.sqrt(variance + said["eps"])
        return normal.reshape(x.shape) * said["weight"] + said["bias"]

    return step


TABLE = [math.isqrt(2**67 // (2 * part + 1)) for part in range(64, 256)]


def rounded_shift(value: int, by: int) -> int:
    return (2 * value + (1 << by)) >> (by + 1)


def integer_layer_norm(node: dict[str, Any], said: dict[str, Any], dt: float) -> Step:
    """In Python's own whole numbers, which have no end."""
    weight, bias = said["weight"].tolist(), said["bias"].tolist()

    def one(x: list[int], eps: int, first: int) -> list[int]:
        size, total = len(x), sum(x)
        scaled = size * sum(value * value for value in x) - total * total + eps
        e = 0
        while scaled << e < 1 << 60:
            e += 2
        z = scaled << e
        assert 1 << 60 <= z < 1 << 62
        root = TABLE[(z >> 54) - 64]
        for _ in range(2):
            square = (root * root) >> 30
            root = (root * (3 * 2**30 - (((z >> 30) * square) >> 30))) >> 31
        factor = rounded_shift(root, 6)
        h = 3 + math.ceil(math.ceil(math.log2(size)) / 2) if size > 1 else 3
        found = []
        for index, value in enumerate(x):
            normal = rounded_shift((size * value - total) << (e // 2), h)
            gained = rounded_shift(normal * factor, 34 - h) * weight[first + index] + bias[first + index]
            found.append(rounded_shift(gained, int(said["shift"])))
        return found

    def step(x: Array) -> Array:
        size = x.shape[-1] // said["groups"]
        rows = []
        for row in x.tolist():
            firsts = range(0, len(row), size)
            eps = said["integer_eps"].tolist()
            rows.append([y for g, at in enumerate(firsts) for y in one(row[at : at + size], eps[g], at)])
        return np.array(rows, np.int64)

    return step


def attention(x: Array, heads: int, size: int) -> Array:
    query, key, value = (part.reshape(len(x), heads, size) for part in np.split(x, 3, axis=-1))
    scores = np.einsum("nhs,mhs->hnm", query, key)
    return np.einsum("hnm,mhs->nhs", scores, value).reshape(len(x), heads * size)


def spike_attention(node: dict[str, Any], said: dict[str, Any], dt: float) -> Step:
    return lambda x: attention(x, said["num_heads"], said["head_size"]) * said["scale"]


def integer_spike_attention(node: dict[str, Any], said: dict[str, Any], dt: float) -> Step:
    return lambda x: attention(x, said["num_heads"], said["head_size"]) * 2 ** int(said["shift"])


def token_mean(node: dict[str, Any], said: dict[str, Any], dt: float) -> Step:
    return lambda x: x.sum(0, keepdims=True) / len(x)


def token_sum(node: dict[str, Any], said: dict[str, Any], dt: float) -> Step:
    return lambda x: x.sum(0, keepdims=True)


NEURONS = {
    form.__name__: form
    for form in (leaky_integrate_and_fire, heaviside, integer_leaky_integrate_and_fire, integer_current_neuron)
}
OTHERS = {
    form.__name__: form
    for form in (
        *(layer_norm, integer_layer_norm, spike_attention, integer_spike_attention),
        *(token_mean, token_sum, integer_integrator),
    )
}

# ---------------------------------------------------------------------------------------------------------------------
# the same files in our runners

SENTENCES = ("A warm and quietly funny film .", "Dull .", "It never finds its feet , but the leads are a joy .")
SHIPPED = ("default", "default-loihi")
VARIANTS: dict[str, dict[str, Any]] = {
    **{neuron: {"neuron": neuron} for neuron in ("paper", "snntorch", "published", "loihi")},
    "embedding behind a norm and a neuron": {"embedding_neuron": "lif", "embedding_norm": True},
    "no positions, previous words": {"position_embedding_type": "none", "previous_word": "table"},
    "no leak": {"beta": 1.0},
    "two blocks, no attention": {"attention": "none", "num_hidden_layers": 2},
}


def _assert_equal(path: Path, sentences: list[list[int]], runner: str, precision: str) -> None:
    from export import read_nir
    from hardware import run

    longest = max(map(len, sentences))
    ids = np.array([tokens + [0] * (longest - len(tokens)) for tokens in sentences])
    mask = np.arange(longest) < np.array([[len(tokens)] for tokens in sentences])
    trace = run(read_nir(path), ids, mask, runner=runner, precision=precision)
    fired = 0
    for row, tokens in enumerate(sentences):
        spikes, _, logits = simulate(path, tokens)
        assert set(spikes) == set(trace.spikes)
        for name, expected in trace.spikes.items():
            rows = expected[:, row, : len(tokens)] if expected.shape[2] == longest else expected[:, row]
            np.testing.assert_array_equal(spikes[name], rows, name)
            fired += int(rows.sum())
        np.testing.assert_allclose(logits, trace.logits[row], rtol=0, atol=1e-9)
    assert fired > 100


@pytest.mark.parametrize("variant", VARIANTS)
def test_random_models_fire_the_same_spikes(variant: str, make_model: Callable, tmp_path: Path) -> None:
    from export import quantize, to_nir, write_nir

    model = make_model(**VARIANTS[variant])
    sentences = np.random.default_rng(5).integers(1, 20, (3, 7)).tolist()
    sentences = [sentences[0], sentences[1][:4], sentences[2][:1]]
    graph = to_nir(model, "float64")
    _assert_equal(write_nir(tmp_path / "float.nir", graph), sentences, "reference", "float64")
    whole = write_nir(tmp_path / "integer.nir", quantize(graph, sentences))
    for runner in ("reference", "integer"):
        _assert_equal(whole, sentences, runner, "integer")


def test_every_case_of_every_operator_comes_out_as_expected(tmp_path: Path) -> None:
    """Ties at the threshold, registers that overflow, padding: the files of ``spikebert conformance --write``."""
    from export.operators import MARKED_OPERATORS
    from hardware.equivalence.conformance import write_conformance

    checked: set[str] = set()
    for case in write_conformance(tmp_path):
        path = tmp_path / f"{case}.nir"
        with h5py.File(path, "r") as file:
            graph = read_tree(file["node"])
        operators = {operator_of(node) for node in graph["nodes"].values()} - {"Input", "Output"}
        if not operators <= {*NEURONS, *OTHERS, "integer_affine", "Affine", "Linear"}:
            continue  # a plain node of NIR, which the page leaves to NIR
        checked |= operators
        inputs, expected = (np.load(f"{path.with_suffix('')}.{kind}.npz") for kind in ("inputs", "expected"))
        mask = inputs["mask"]
        for row, real in enumerate(mask):
            sentence = inputs["input"][:, row, real] if "input" in inputs else inputs["input_ids"][row, real].tolist()
            spikes, outputs, _ = simulate(path, sentence)
            for name, fired in spikes.items():
                there = expected[name][:, row]
                np.testing.assert_array_equal(fired, there[:, real] if there.shape[1] == len(real) else there, case)
            there = expected["outputs"][:, row]
            there = there[:, real] if there.ndim == 3 else there[:, None]
            np.testing.assert_allclose(outputs, there, rtol=1e-12, atol=1e-12, err_msg=case)
            assert not case.startswith("integer") or np.array_equal(outputs, there), case
    assert checked >= {*NEURONS, *OTHERS, *MARKED_OPERATORS, "integer_affine"}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_trained_models_fire_the_same_spikes(name: str, tmp_path: Path) -> None:
    from export import quantize, to_nir, write_nir
    from spikebert.checkpoint import load_model, load_tokenizer

    sentences = load_tokenizer(name)(list(SENTENCES))["input_ids"]
    graph = to_nir(load_model(name), "float64")  # type: ignore[arg-type]
    _assert_equal(write_nir(tmp_path / "float.nir", graph), sentences, "reference", "float64")
    _assert_equal(write_nir(tmp_path / "integer.nir", quantize(graph, sentences)), sentences, "integer", "integer")
