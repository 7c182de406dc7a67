"""Models and sentences small enough to run anywhere in a moment, lively enough that most neurons fire now and then.

And how tests are dealt out to several workers (``make test``).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import hypothesis
import numpy as np
import pytest
import torch

from spikebert import SpikeBertConfig, SpikeBertForSequenceClassification

VOCABULARY = 20
LONGEST_SENTENCE = 12

ModelMaker = Callable[..., SpikeBertForSequenceClassification]


# What is slow only because the machine is busy is no failure.
hypothesis.settings.register_profile(
    "spikebert", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("spikebert")


@pytest.hookimpl(tryfirst=True)  # pytest-xdist looks for groups next
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs Lava where there is none; say what goes to one worker where there are several.

    A file does, so that what its tests share is made once. Slow tests go one by one, and first, so that in the end no
    worker waits for the other's long one; those that share long work name an ``xdist_group``.
    """
    if importlib.util.find_spec("lava") is None:
        for item in items:
            # tests of how Lava is looked for run without it
            if item.get_closest_marker("lava") and "test_compatibility" not in item.nodeid:
                item.add_marker(pytest.mark.skip(reason="lava-nc is not installed"))
    if hasattr(config, "workerinput"):
        for item in items:
            if not item.get_closest_marker("slow") and not item.get_closest_marker("xdist_group"):
                item.add_marker(pytest.mark.xdist_group(f"{item.path.parent.name}/{item.path.stem}"))
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)


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
