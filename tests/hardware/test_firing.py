"""One `Firing` that profiler and operation counter share says what each of them finds alone, and what NumPy sums."""

from __future__ import annotations

import numpy as np
import pytest

from export import to_nir
from export.nir_graph.reader import parse_graph
from hardware.energy.counts import OperationCounter
from hardware.errors import TraceMismatchError
from hardware.runners import run
from hardware.traces.firing import Firing
from hardware.traces.profiler import COLLECTIONS, Profiler
from hardware.traces.trace import Trace

pytestmark = pytest.mark.usefixtures("counted_in")


@pytest.mark.parametrize("attend_to_padding", [False, True])
def test_shared_sums_are_those_of_each_alone(make_model, padded_batch, attend_to_padding):
    """A model that attends to padding fires there, so both sides of the mask are counted."""
    ids, mask = padded_batch
    graph = to_nir(make_model(attend_to_padding=attend_to_padding))
    network, trace = parse_graph(graph), run(graph, ids, mask)
    profiler, counter = Profiler(network, COLLECTIONS), OperationCounter(network)
    firing = Firing(trace, network, mask)
    assert firing.fires_at_padding == attend_to_padding
    counter.add(firing)
    profiler.add(firing)
    alone, counted_alone = Profiler(network, COLLECTIONS), OperationCounter(network)
    alone.update(trace, mask)
    counted_alone.update(trace, mask)
    assert profiler.result().to_dict(detailed=True) == alone.result().to_dict(detailed=True)
    assert counter.result().to_dict() == counted_alone.result().to_dict()


@pytest.mark.parametrize(("largest", "kind"), [(1, np.uint8), (1, bool), (5, np.int16)])
@pytest.mark.parametrize("sentences", [1, 3, 300])  # one is not summed, 300 do not fit in a byte
def test_sums_are_those_of_numpy(sentences, largest, kind):
    rng = np.random.default_rng(sentences)
    spikes = rng.integers(0, largest + 1, (2, sentences, 4, 5)).astype(kind)
    spikes[:, :, 0, 0] = largest  # as many in one place as there are sentences
    mask = rng.random((sentences, 4)) < 0.6
    mask[:, 0] = True
    found = Firing(Trace({"node": spikes}, np.zeros((sentences, 0)), mask)).nodes["node"]
    real = (spikes != 0) & mask[..., None]
    assert np.array_equal(found.fired, real)
    assert found.fired_at_padding == np.count_nonzero(spikes[:, ~mask])
    assert np.array_equal(found.over_sentences, real.sum(1))
    assert np.array_equal(found.by_position, real.sum((1, 3)))
    assert np.array_equal(found.by_neuron, real.sum((1, 2)))
    assert np.array_equal(found.by_step, real.sum((1, 2, 3)))


def test_real_tokens_of_another_batch_are_refused(tiny_model, padded_batch):
    ids, mask = padded_batch
    trace = run(to_nir(tiny_model), ids, mask)
    with pytest.raises(TraceMismatchError, match=r"real_tokens has shape \(3, 5\); the trace has \(3, 6\)"):
        Firing(trace, real_tokens=mask[:, :5])
