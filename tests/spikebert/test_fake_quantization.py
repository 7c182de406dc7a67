"""The promise of training for integers: it computes as lava-dl's SLAYER does, and as `quantize` will."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from export import quantize, to_nir
from spikebert.fake_quantization import fake_quantize, integer_recurrence, quantize_weight, weight_scale
from spikebert.neuron import NEURON_PRESETS, NeuronParameters


@pytest.fixture(scope="module")
def slayer():
    """Return lava-dl's SLAYER; Lava itself needs mending on newer Pythons first."""
    from hardware.runners.lava.compatibility import import_lava

    import_lava()
    from lava.lib.dl import slayer as found

    return found


@pytest.mark.lava
def test_weights_are_rounded_as_slayer_rounds_them(slayer) -> None:
    neuron = slayer.neuron.cuba.Neuron(threshold=1, current_decay=1, voltage_decay=0.1)
    weight = torch.randn(40, 60, generator=torch.Generator().manual_seed(0)) * 2
    weight[0, :5] = torch.tensor([-8.0, 8.0, 2 / 64, 3 / 64, 5 / 64])  # beyond both ends, and halves
    mine, theirs = weight.clone().requires_grad_(), weight.clone().requires_grad_()
    found, expected = quantize_weight(mine, 2 / neuron.w_scale), neuron.quantize_8bit(theirs)
    assert torch.equal(found, expected)
    found.sum().backward()
    expected.sum().backward()
    assert torch.equal(mine.grad, theirs.grad)
    assert 0 < mine.grad.sum() < mine.numel()  # straight through, but not where the weight is clipped


@pytest.mark.lava
@pytest.mark.parametrize("decay", [1, 410, 2048, 4095])
def test_neurons_decay_as_slayers_leaky_integrator(slayer, decay: int) -> None:
    scale_bits = 12  # slayer's s_scale of 4096
    generator = torch.Generator().manual_seed(decay)
    current = torch.randint(-90, 128, (9, 4, 7), generator=generator) / 64  # what rounded weights sum to
    neuron = NeuronParameters(beta=1 - decay / 4096, reset="zero", fire_on_equal=True, threshold=1.0)
    spikes, potentials = integer_recurrence(current, neuron, scale_bits)
    theirs = slayer.neuron.dynamics.leaky_integrator.dynamics(
        current.permute(1, 2, 0), torch.tensor([float(decay)]), torch.zeros(4, 7), 1 << scale_bits, threshold=1.0
    ).permute(2, 0, 1)
    assert torch.equal(potentials, theirs)
    assert torch.equal(spikes, (theirs >= 1).float())
    assert 0 < spikes.mean() < 1


@pytest.mark.parametrize("preset", NEURON_PRESETS)
def test_neurons_are_the_float_neurons_but_for_rounding(preset: str) -> None:
    current = torch.randn(5, 3, 50, generator=torch.Generator().manual_seed(1)).double()
    neuron = replace(NEURON_PRESETS[preset], threshold=0.7)
    from spikebert.neuron import _recurrence

    expected = _recurrence(current, neuron)
    found = integer_recurrence(current, neuron, 18)
    assert (found[0] != expected[0]).float().mean() < 0.01
    np.testing.assert_allclose(found[1][0], expected[1][0], atol=2.0**-18)


@pytest.mark.parametrize("heads", [1, 2])
def test_quantize_finds_the_numbers_that_were_trained(make_model, padded_batch, heads: int) -> None:
    ids, mask = padded_batch
    model = make_model(num_attention_heads=heads, embedding_norm=True, embedding_neuron="lif")
    training = fake_quantize(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask), "labels": torch.tensor([0, 1, 2])}
    before = [parameter.clone() for parameter in model.parameters()]
    for _ in range(2):
        loss = model(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(torch.any(old != new) for old, new in zip(before, model.parameters(), strict=True))
    trained = model(**{**inputs, "labels": None}).logits
    qkv = model.spikebert.blocks[0].attention.qkv.affine
    scale = weight_scale([qkv.parametrizations.weight.original], 3)
    whole = torch.round(qkv.weight.detach() / scale).numpy()
    training.bake()
    half = model.half().float()  # checkpoints are stored so
    graph = quantize(to_nir(half), (ids, mask))
    np.testing.assert_array_equal(graph.nodes["block00_qkv_affine"].weight, whole)
    tables = graph.nodes["embedding"].weight
    assert np.abs(tables).max() == 127
    from hardware import run

    found = run(graph, ids, mask, runner="integer", precision="integer").logits
    assert np.corrcoef(found.ravel(), trained.detach().numpy().ravel())[0, 1] > 0.9


def test_what_was_baked_is_a_plain_model_again(make_model, padded_batch) -> None:
    ids, mask = (torch.tensor(part) for part in padded_batch)
    model = make_model()
    names = set(model.state_dict())
    training = fake_quantize(model)
    assert set(model.state_dict()) != names
    training.bake()
    assert set(model.state_dict()) == names
    once = model(ids, attention_mask=mask).logits
    again = fake_quantize(model)
    for module in again.linears:  # rounding twice is rounding once
        torch.testing.assert_close(module.weight, module.parametrizations.weight.original, rtol=1e-6, atol=0)
    again.bake()
    torch.testing.assert_close(model(ids, attention_mask=mask).logits, once)
