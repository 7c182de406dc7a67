"""What a graph computes in whole numbers, once more: the equations of ``docs/integers.md`` on what is in the graph.

Every test of integers is held against this. No operator, no network and no runner of ours takes part; what is computed
is int64, step by step, and what int64 would not hold is refused rather than wrapped. One meaning stands apart on
purpose, ``export/test_written_from_the_page.py``: it proves that a page suffices to write one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import isqrt
from typing import Any

import nir
import numpy as np
import torch
from torch import Tensor

HIGHEST = 2**23 - 1


@dataclass(frozen=True)
class Simulated:
    """What a graph did.

    Attributes
    ----------
    sent, read : dict of str to Tensor
        What each node sent and what came to it, ``(T, B, N, D)``; behind a sum over tokens N is 1.
    spikes, potentials : dict of str to Tensor
        What each node that fires sent, and what it held against its threshold.
    logits : ndarray or None
        ``(B, C)``, or ``(B, N, C)`` where tokens are not summed; None where the output does not say how to read it.
    """

    sent: dict[str, Tensor]
    read: dict[str, Tensor]
    spikes: dict[str, Tensor]
    potentials: dict[str, Tensor]
    logits: np.ndarray | None


def simulate(graph: nir.NIRGraph, inputs: np.ndarray, mask: np.ndarray | None = None) -> Simulated:
    """Run an integer graph.

    Parameters
    ----------
    graph : nir.NIRGraph
        As it is read from a file.
    inputs : ndarray
        Token ids ``(B, N)`` or whole numbers ``(T, B, N, D)``; without `mask` ``(T, B, *shape)``, one token each.
    mask : ndarray of bool, optional
        ``(B, N)``, which tokens are real.
    """
    (first,) = (str(name) for name, node in graph.nodes.items() if isinstance(node, nir.Input))
    shape = np.atleast_1d(graph.nodes[first].output_type["output"]).tolist()
    if mask is None:
        mask = np.ones((inputs.shape[1], 1), bool)
        inputs = inputs[:, :, None]
    steps = _steps(graph, graph.nodes[first].metadata, inputs, shape)
    edges, late = _edges(graph)
    states: dict[str, dict[str, Any]] = {str(name): {} for name in graph.nodes}
    before = {
        a: torch.zeros(*mask.shape, *np.atleast_1d(graph.nodes[a].output_type["output"]), dtype=torch.int64)
        for a, _ in late
    }
    sent: dict[str, list[Tensor]] = {name: [] for name in states}
    read: dict[str, list[Tensor]] = {name: [] for name in states if name != first}
    tested: dict[str, list[Tensor]] = {}
    node = _Meaning(torch.as_tensor(mask), float(graph.metadata["dt"]))
    for step in steps:
        now = {first: step}
        waiting = [name for name in states if name != first]
        while waiting:  # whatever order the nodes stand in
            name = next(name for name in waiting if all(a in now for a, b in edges if b == name and (a, b) not in late))
            waiting.remove(name)
            came = [before[a] if (a, b) in late else now[a] for a, b in edges if b == name]
            read[name].append(sum(came[1:], came[0]))
            now[name] = node.sends(graph.nodes[name], read[name][-1], states[name])
            if "tested" in states[name]:
                tested.setdefault(name, []).append(states[name]["tested"])
        before = now
        for name, values in now.items():
            sent[name].append(values)
    stacked = {name: torch.stack(values).flatten(3) for name, values in sent.items()}
    return Simulated(
        sent=stacked,
        read={name: torch.stack(values).flatten(3) for name, values in read.items()},
        spikes={name: stacked[name] for name in tested},
        potentials={name: torch.stack(values) for name, values in tested.items()},
        logits=_logits(graph, stacked, mask),
    )


def neuron(x: Tensor, said: dict[str, Any], state: dict[str, Any]) -> Tensor:
    """Return what Loihi's neurons, or integrators where there is no threshold, send in a step in which they read `x`.

    `said` holds their registers. `state` is theirs from step to step; it shows the ``potential`` that stays and, of
    neurons, the one ``tested``.
    """
    current = wrapped((x * 64).int().long())
    if "current_decay" in said:
        current = wrapped(_kept(state.get("current", 0 * x), _whole(said["current_decay"])) + current)
        state["current"] = current
    potential = _kept(state.get("potential", 0 * x), _whole(said["decay"])) + current
    potential = potential + _whole(said["bias_mantissa"]) * 2 ** _whole(said["bias_exponent"])
    if "threshold" not in said:
        state["potential"] = potential.clamp(-HIGHEST, HIGHEST)
        return state["potential"]
    threshold, reset = _whole(said["threshold"]) * 64, said.get("reset", "zero")
    if reset == "subtract":
        potential = potential - state.get("fired", 0 * x) * threshold
    potential = state["tested"] = potential.clamp(-HIGHEST, HIGHEST)
    fired = state["fired"] = (potential >= threshold if said.get("fire_on_equal") else potential > threshold).long()
    state["potential"] = potential * (1 - fired) if reset == "zero" else potential
    return fired


def wrapped(u: Tensor) -> Tensor:
    """Return a current as 24 bits hold it."""
    return torch.where(u > 2**23, u - 2**24, torch.where(u <= -(2**23), u + 2**24, u))


def _steps(graph: nir.NIRGraph, said: dict[str, Any], inputs: np.ndarray, shape: list[int]) -> list[Tensor]:
    """Return what the input shows at each step, ``(B, N, *shape)``."""
    if said["encoding"] != "multi_hot":
        return list(torch.as_tensor(inputs).long().reshape(*inputs.shape[:3], *shape))
    words, positions, says_before = int(said["vocabulary"]), int(said["positions"]), "before_first" in said
    hot = torch.zeros(*inputs.shape, words * (1 + says_before) + positions, dtype=torch.int64)
    for row, place in np.ndindex(*inputs.shape):
        hot[row, place, inputs[row, place]] = 1
        if says_before:
            hot[row, place, words + (inputs[row, place - 1] if place else int(said["before_first"]))] = 1
        if positions:
            hot[row, place, words * (1 + says_before) + place] = 1
    return [hot] * int(graph.metadata["time_steps"])


def _edges(graph: nir.NIRGraph) -> tuple[list[tuple[str, str]], set[tuple[str, str]]]:
    """Return all edges, and those that arrive a step later: what leaves a neuron and leads back to it."""
    edges = [(str(a), str(b)) for a, b in graph.edges]
    readers: dict[str, list[str]] = {}
    for a, b in edges:
        readers.setdefault(a, []).append(b)
    fires = {str(name) for name, node in graph.nodes.items() if "threshold" in {*node.metadata, *vars(node)}}

    def leads_to(start: str, end: str) -> bool:
        reached, pending = set(), [start]
        while pending:
            reached.add(name := pending.pop())
            pending += [reader for reader in readers.get(name, []) if reader not in reached]
        return end in reached

    return edges, {(a, b) for a, b in edges if a in fires and leads_to(b, a)}


def _logits(graph: nir.NIRGraph, sent: dict[str, Tensor], mask: np.ndarray) -> np.ndarray | None:
    (last,) = (str(name) for name, node in graph.nodes.items() if isinstance(node, nir.Output))
    said = graph.nodes[last].metadata
    if "unit" not in said:
        return None
    summed = any(node.metadata.get("op") == "token_sum" for node in graph.nodes.values())
    tokens = mask.sum(-1).reshape(-1, 1, 1) if summed else 1
    steps = len(sent[last])
    totals = sent[last].sum(0).numpy() + tokens * steps * np.asarray(said["bias"])
    logits = totals * float(said["unit"]) / (tokens * steps)
    return logits[:, 0] if summed else logits


@dataclass(frozen=True)
class _Meaning:
    """What a node sends in a step in which it reads ``(B, N, *shape)``."""

    mask: Tensor
    dt: float

    def sends(self, node: nir.NIRNode, x: Tensor, state: dict[str, Any]) -> Tensor:
        if isinstance(node, nir.Affine | nir.Linear):
            return _affine(node, x)
        if isinstance(node, nir.Conv1d | nir.Conv2d):
            return _convolution(node, x.flatten(0, 1)).unflatten(0, self.mask.shape)
        if isinstance(node, nir.SumPool2d):
            return _sums_of_windows(node, x.flatten(0, 1)).unflatten(0, self.mask.shape)
        if isinstance(node, nir.Flatten):
            return x.flatten(2)
        if isinstance(node, nir.Output):
            return x
        said = node.metadata
        match said.get("op"):
            case "integer_layer_norm":
                return _layer_norm(x, said)
            case "integer_spike_attention":
                return _attention(x * self.mask[..., None], said)
            case "token_sum":
                return (x * self.mask[..., None]).sum(-2, keepdim=True)
        return self._of_each_feature(node, x.flatten(2), state).reshape(x.shape)

    def _of_each_feature(self, node: nir.NIRNode, x: Tensor, state: dict[str, Any]) -> Tensor:
        if isinstance(node, nir.Scale):
            return x * _whole(node.scale).flatten()
        if isinstance(node, nir.Delay):
            return self._late(node, x, state)
        if isinstance(node, nir.Threshold):
            state["tested"] = x
            return (x > torch.as_tensor(node.threshold).flatten()).long() * self.mask[..., None]
        match node.metadata.get("op"):
            case "integer_integrator":
                return neuron(x, node.metadata, state)
            case "integer_leaky_integrate_and_fire" | "integer_current_neuron":
                return neuron(x, node.metadata, state) * self.mask[..., None]
        raise AssertionError(f"{type(node).__name__} {node.metadata.get('op', '')}: write its meaning")

    def _late(self, node: nir.Delay, x: Tensor, state: dict[str, Any]) -> Tensor:
        history = state.setdefault("history", [])
        history.append(x)
        waits = np.rint(np.asarray(node.delay) / self.dt).astype(int).ravel()
        due = [history[-1 - wait][..., d] if wait < len(history) else 0 * x[..., d] for d, wait in enumerate(waits)]
        return torch.stack(due, -1)


def _whole(said: Any) -> Tensor:
    return torch.as_tensor(np.asarray(said)).long()


def _kept(x: Tensor, decay: Tensor) -> Tensor:
    return torch.div(x * (4096 - decay), 4096, rounding_mode="trunc")


def _product(a: Tensor, b: Tensor) -> Tensor:
    assert (a.double() * b.double()).abs().max() < 2.0**63, "more than int64 holds"
    return a * b


def _round_shift(x: Tensor, bits: int) -> Tensor:
    assert x.abs().max() < 2**62, "more than int64 holds"
    return torch.div(x + 2 ** (bits - 1), 2**bits, rounding_mode="floor")


def _affine(node: nir.Affine | nir.Linear, x: Tensor) -> Tensor:
    weight = torch.as_tensor(node.weight)
    used = x.flatten(0, -2).any(0)  # of a vocabulary, few words
    x, weight = x[..., used], weight[:, used]
    most = (x.double().abs() @ weight.double().abs().T).max()
    assert most < 2**62, "more than int64 holds"
    # float64 multiplies many times faster than int64, where it holds all sums
    y = (x.double() @ weight.double().T).long() if most < 2**53 else x @ weight.long().T
    return y + _whole(node.bias) if isinstance(node, nir.Affine) else y


def _convolution(node: nir.Conv1d | nir.Conv2d, x: Tensor) -> Tensor:
    weight, groups = _whole(node.weight), int(node.groups)
    kernel = list(weight.shape[2:])
    stride, dilation = (_sides(given, kernel) for given in (node.stride, node.dilation))
    if isinstance(node.padding, str) and node.padding == "same":
        whole = [gap * (k - 1) for gap, k in zip(dilation, kernel, strict=True)]
        padding = [(each // 2, each - each // 2) for each in whole]
    else:
        padding = [(pad, pad) for pad in _sides(0 if isinstance(node.padding, str) else node.padding, kernel)]
    image = x.unflatten(1, (groups, -1))
    taps = weight.unflatten(0, (groups, -1))
    y = sum(
        torch.einsum("bgc...,goc->bgo...", part, taps[(..., *tap)])
        for tap, part in _windows(image, kernel, stride, padding, dilation)
    )
    bias = _whole(node.bias).reshape(groups, -1, *[1] * len(kernel))
    return (y + bias).flatten(1, 2)


def _sums_of_windows(node: nir.SumPool2d, x: Tensor) -> Tensor:
    kernel, stride, padding = (_sides(given, [0, 0]) for given in (node.kernel_size, node.stride, node.padding))
    around = [(pad, pad) for pad in padding]
    return sum(part for _, part in _windows(x, kernel, stride, around, [1, 1]))


def _sides(given: Any, kernel: list[int]) -> list[int]:
    return np.broadcast_to(np.asarray(given).astype(int).ravel(), len(kernel)).tolist()


def _windows(
    image: Tensor, kernel: list[int], stride: list[int], padding: list[tuple[int, int]], dilation: list[int]
) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Yield each tap of a kernel with what it is laid on, over all places; outside the image is 0."""
    padded = torch.nn.functional.pad(image, list(itertools.chain(*reversed(padding))))
    sizes = padded.shape[-len(kernel) :]
    places = [
        (n - gap * (k - 1) - 1) // hop for n, gap, k, hop in zip(sizes, dilation, kernel, stride, strict=True)
    ]  # behind the first
    for tap in np.ndindex(*kernel):
        starts = [gap * k for gap, k in zip(dilation, tap, strict=True)]
        slices = (slice(at, at + hop * n + 1, hop) for at, hop, n in zip(starts, stride, places, strict=True))
        yield tap, padded[(..., *slices)]


def _layer_norm(x: Tensor, said: dict[str, Any]) -> Tensor:
    parts = x.unflatten(-1, (int(said["groups"]), -1))
    size = parts.shape[-1]
    assert size * parts.abs().max() <= 2**31, "more than int64 holds, squared"
    total = parts.sum(-1, keepdim=True)
    centred = size * parts - total
    radicand = size * (parts * parts).sum(-1, keepdim=True) - total * total
    radicand = radicand + _whole(said["integer_eps"])[:, None]
    half_exponent = torch.zeros_like(radicand)
    for _ in range(31):
        half_exponent += (radicand * 4**half_exponent < 2**60).long()
    h = 3 + int(np.ceil(np.log2(size) / 2))
    numerator = _round_shift(_product(centred, 2**half_exponent), h)
    root = _inverse_root(_product(radicand, 4**half_exponent))
    normed = _round_shift(_product(numerator, root), 34 - h).flatten(-2)
    return _round_shift(_product(normed, _whole(said["weight"])) + _whole(said["bias"]), int(said["shift"]))


def _inverse_root(x: Tensor) -> Tensor:
    """Two Newton steps in 30 fraction bits from the middle of each of 192 parts, rounded to 24 bits."""
    root = _middles()[x // 2**54]
    for _ in range(2):
        shrinks = _product(x // 2**30, _product(root, root) // 2**30) // 2**30
        root = _product(root, 3 * 2**30 - shrinks) // 2**31
    return _round_shift(root, 6)


@cache
def _middles() -> Tensor:
    return torch.tensor([isqrt(2**67 // (2 * part + 1)) for part in range(256)])


def _attention(x: Tensor, said: dict[str, Any]) -> Tensor:
    query, key, value = (part.unflatten(-1, (int(said["num_heads"]), -1)) for part in x.chunk(3, -1))
    score = torch.einsum("bnhd,bmhd->bhnm", query, key)
    return torch.einsum("bhnm,bmhd->bnhd", score, value).flatten(-2) * 2 ** int(said["shift"])
