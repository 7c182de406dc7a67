"""Models and sentences small enough to run anywhere in a moment, lively enough that most neurons fire now and then.

And, for graphs of other tools in whole numbers, the equations of ``docs/integers.md`` once more in torch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import nir
import numpy as np
import pytest
import torch
from torch import Tensor

from spikebert import SpikeBertConfig, SpikeBertForSequenceClassification

VOCABULARY = 20
LONGEST_SENTENCE = 12

ModelMaker = Callable[..., SpikeBertForSequenceClassification]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs Lava where there is none."""
    if importlib.util.find_spec("lava") is None:
        for item in items:
            # tests of how Lava is looked for run without it
            if item.get_closest_marker("lava") and "test_compatibility" not in item.nodeid:
                item.add_marker(pytest.mark.skip(reason="lava-nc is not installed"))


@pytest.fixture(scope="session")
def make_model() -> ModelMaker:
    """Return a function that makes a random SpikeBERT; keywords go to its configuration."""

    def make(seed: int = 0, **configuration: object) -> SpikeBertForSequenceClassification:
        defaults = {
            "vocab_size": VOCABULARY,
            "hidden_size": 8,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "max_position_embeddings": LONGEST_SENTENCE,
            "position_embedding_type": "absolute",
            "time_steps": 4,
            "num_labels": 3,
        }
        model = SpikeBertForSequenceClassification(SpikeBertConfig(**{**defaults, **configuration})).eval()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # norms and biases of a fresh model are ones and zeros, which would hide what mixes them up
                centre = 1.0 if name.endswith("norm.weight") else 0.0
                parameter.copy_(centre + 0.5 * torch.randn(parameter.shape, generator=generator))
        return model

    return make


@pytest.fixture(scope="session")
def tiny_model(make_model: ModelMaker) -> SpikeBertForSequenceClassification:
    """Return a random SpikeBERT of one block with the paper's neurons; leave it as it is."""
    return make_model()


@pytest.fixture(scope="session")
def padded_batch() -> tuple[np.ndarray, np.ndarray]:
    """Return token ids (3, 6) and their mask, for sentences of 6, 4 and 1 tokens."""
    ids = np.random.default_rng(7).integers(1, VOCABULARY, (3, 6))
    mask = np.arange(6) < np.array([[6], [4], [1]])
    return np.where(mask, ids, 0), mask


@pytest.fixture(scope="session")
def integer_equations() -> Callable[[nir.NIRGraph, np.ndarray], dict[str, Tensor]]:
    """Return a function that runs an integer graph without tokens, see `simulate`: no code of ours takes part."""
    return simulate


def _truncated(x: Tensor, keeps: Tensor) -> Tensor:
    return torch.div(x * keeps, 4096, rounding_mode="trunc")


def _wrapped(u: Tensor) -> Tensor:
    return torch.where(u > 2**23, u - 2**24, torch.where(u <= -(2**23), u + 2**24, u))


def _remembers(x: Tensor, said: dict[str, Any], state: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return potentials as they were tested, and what a neuron or integrator sends, in a step of (B, D)."""

    def whole(key: str) -> Tensor:
        return torch.as_tensor(np.asarray(said[key])).long()

    kept = _truncated(state.get("current", 0 * x), 4096 - whole("current_decay")) if "current_decay" in said else 0
    current = state["current"] = _wrapped(kept + x * 64)
    potential = _truncated(state.get("potential", 0 * x), 4096 - whole("decay")) + current
    potential = (potential + whole("bias_mantissa") * 2 ** whole("bias_exponent")).clamp(1 - 2**23, 2**23 - 1)
    fires = "threshold" in said
    sent = (potential > whole("threshold") * 64).long() if fires else potential
    state["potential"] = potential * (1 - sent) if fires else potential
    return potential, sent


def _convolution(node: nir.NIRNode, x: Tensor) -> Tensor:
    """float64 holds every number of these networks."""
    two = isinstance(node, nir.Conv2d)
    convolve = torch.nn.functional.conv2d if two else torch.nn.functional.conv1d
    padding = node.padding if isinstance(node.padding, str) else tuple(np.atleast_1d(node.padding).tolist())
    y = convolve(
        x.double(),
        torch.as_tensor(node.weight).double(),
        torch.as_tensor(node.bias).double(),
        stride=tuple(np.atleast_1d(node.stride).tolist()),
        padding=padding,
        dilation=tuple(np.atleast_1d(node.dilation).tolist()),
        groups=int(node.groups),
    )
    return y.round().long()


def _linear(node: nir.Affine | nir.Linear, x: Tensor) -> Tensor:
    y = x @ torch.as_tensor(node.weight.astype(np.int64)).T
    return y + torch.as_tensor(node.bias) if isinstance(node, nir.Affine) else y


def _sent(node: nir.NIRNode, x: Tensor, state: dict[str, Any]) -> Tensor:
    """Return what a node sends in a step in which it reads `x`, (B, ...); `state` is its own, from step to step."""
    if isinstance(node, nir.Affine | nir.Linear):
        return _linear(node, x)
    if isinstance(node, nir.Conv1d | nir.Conv2d):
        return _convolution(node, x)
    if isinstance(node, nir.SumPool2d):
        sides = [tuple(np.asarray(part).tolist()) for part in (node.kernel_size, node.stride, node.padding)]
        return torch.nn.functional.avg_pool2d(x.double(), *sides, divisor_override=1).round().long()
    if isinstance(node, nir.Flatten):
        return x.flatten(1)
    if isinstance(node, nir.Scale):
        return x * torch.as_tensor(node.scale).long()
    if isinstance(node, nir.Delay):
        history = state.setdefault("history", [])
        history.append(x)
        waits = np.rint(np.asarray(node.delay) / state["dt"]).astype(int)
        due = [history[-1 - wait][:, d] if wait < len(history) else 0 * x[:, d] for d, wait in enumerate(waits)]
        return torch.stack(due, 1)
    if isinstance(node, nir.Threshold):
        state["tested"] = x
        return (x > torch.as_tensor(node.threshold)).long()
    if isinstance(node, nir.Output):
        return x
    state["tested"], sent = _remembers(x.flatten(1), node.metadata, state)
    return sent.reshape(x.shape)


def simulate(graph: nir.NIRGraph, inputs: np.ndarray) -> dict[str, Tensor]:
    """Run an integer graph in torch int64, step by step.

    Parameters
    ----------
    graph : nir.NIRGraph
        Of shapes without tokens.
    inputs : ndarray
        ``(T, B, *shape)`` whole numbers.

    Returns
    -------
    dict of str to Tensor
        What each node sends, ``(T, B, D)``; what it reads, as ``"NAME reads"``; and for what fires the potential as it
        was tested, as ``"NAME tested"``.
    """
    edges = [(str(a), str(b)) for a, b in graph.edges]
    fires = [name for name, node in graph.nodes.items() if "threshold" in {*node.metadata, *vars(node)}]

    def leads_to(start: str, end: str) -> bool:
        reached, pending = set(), [start]
        while pending:
            reached.add(name := pending.pop())
            pending += [b for a, b in edges if a == name and b not in reached]
        return end in reached

    # what leaves a neuron and leads back to it arrives a step later
    late = {(a, b) for a, b in edges if a in fires and leads_to(b, a)}
    shapes = {name: tuple(np.atleast_1d(graph.nodes[name].output_type["output"])) for name in fires}
    before = {name: torch.zeros(inputs.shape[1], *shape, dtype=torch.int64) for name, shape in shapes.items()}
    states: dict[str, dict[str, Any]] = {name: {"dt": graph.metadata["dt"]} for name in graph.nodes}
    (first,) = (name for name, node in graph.nodes.items() if isinstance(node, nir.Input))
    found: dict[str, list[Tensor]] = {}
    for step in torch.as_tensor(inputs).long():
        now = {first: step}

        def value(name: str, now: dict[str, Tensor] = now) -> Tensor:
            if name not in now:
                read = [before[a] if (a, b) in late else value(a) for a, b in edges if b == name]
                now[f"{name} reads"] = sum(read[1:], read[0])
                now[name] = _sent(graph.nodes[name], now[f"{name} reads"], states[name])
            return now[name]

        for name in graph.nodes:
            value(name)
        for name in fires:
            before[name], now[f"{name} tested"] = now[name], states[name]["tested"]
        for name, sent in now.items():
            found.setdefault(name, []).append(sent)
    return {name: torch.stack(steps).flatten(2) for name, steps in found.items()}
