"""The neuron's promise: each preset is the library it is named for, spike for spike, and its gradient is autograd's.

Compared with snnTorch, SpikingJelly, stock Lava and the paper's equations written out; none shares code with it. Inputs
are eighths of the threshold, so that potentials equal it often: there >= and > part ways.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import snntorch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate
from snntorch import surrogate as snntorch_surrogates
from spikingjelly.activation_based import neuron as spikingjelly_neurons
from spikingjelly.activation_based import surrogate as spikingjelly_surrogates
from torch import Tensor

from spikebert.errors import ConfigurationError
from spikebert.neuron import NEURON_PRESETS, Heaviside, NeuronParameters, SpikingNeuron, neuron_preset
from spikebert.surrogate import SURROGATES, surrogate_gradient

FEATURES = 48
DTYPES = (torch.float32, torch.float64)

seeds = st.integers(0, 2**32 - 1)
step_counts = st.integers(1, 9)
dtypes = st.sampled_from(DTYPES)
betas = st.sampled_from([0.5, 0.75, 0.9, 1.0]) | st.floats(0.01, 1.0)
taus = st.sampled_from([1.5, 2.0, 4.0, 10.0]) | st.floats(1.01, 50.0)
thresholds = st.sampled_from([0.25, 0.5, 1.0, 1.5]) | st.floats(0.05, 4.0)
bounded = settings(deadline=None, max_examples=40)


def run(neuron: NeuronParameters, current: Tensor) -> tuple[Tensor, Tensor]:
    """Return spikes and the potentials that were tested."""
    kept: list[Tensor] = []
    return SpikingNeuron(neuron)(current, kept.append), kept[0]


def tie_rich_currents(seed: int, steps: int, threshold: float, dtype: torch.dtype, gain: float = 1.0) -> Tensor:
    """Return currents (T, FEATURES), eighths of the threshold; the first potential of neuron 0 equals it.

    With a `gain`, currents are that much larger, for neurons whose leak takes from the input.
    """
    eighths = np.random.default_rng(seed).integers(-8, 17, (steps, FEATURES)) / 8
    eighths[0, 0] = 1
    return torch.from_numpy(eighths).to(dtype) * threshold * gain


def assert_ties(potentials: Tensor, threshold: float) -> None:
    """Fail where no potential equals the threshold: then nothing was proven about >= against >."""
    assert (potentials == threshold).any()


# --- against other libraries


def run_leaky(
    current: Tensor, beta: float, threshold: float, reset: str, initial: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return spikes and potentials of snnTorch's neuron.

    Its spikes are float32 always, and numbers or tensors of no dimension join them there; those of one keep float64.
    """
    leaky = snntorch.Leaky(
        torch.tensor([beta], dtype=current.dtype),
        threshold=torch.tensor([threshold], dtype=current.dtype),
        reset_mechanism=reset,
    )
    potential = torch.full_like(current[0], initial)
    spikes, potentials = [], []
    for drive in current:
        fired, potential = leaky(drive, potential)
        spikes.append(fired)
        potentials.append(potential)
    return torch.stack(spikes).to(current.dtype), torch.stack(potentials)


@pytest.mark.parametrize("reset", ["subtract", "zero"])
@given(seeds, step_counts, betas, thresholds, dtypes)
@bounded
def test_snntorch_preset_is_leaky_with_either_reset(reset, seed, steps, beta, threshold, dtype):
    current = tie_rich_currents(seed, steps, threshold, dtype)
    spikes, potentials = run(neuron_preset("snntorch", beta=beta, threshold=threshold, reset=reset), current)
    expected_spikes, expected_potentials = run_leaky(current, beta, threshold, reset)
    assert_ties(potentials, threshold)
    assert torch.equal(spikes, expected_spikes)
    assert torch.equal(potentials, expected_potentials)


def test_snntorch_preset_untouched_is_leaky_with_its_defaults():
    current = torch.randn(8, 500, generator=torch.Generator().manual_seed(0)) * 2
    leaky, potential, expected = snntorch.Leaky(beta=0.9), torch.zeros(500), []
    for drive in current:
        fired, potential = leaky(drive, potential)
        expected.append(fired)
    spikes, _ = run(NEURON_PRESETS["snntorch"], current)
    assert torch.equal(spikes, torch.stack(expected))
    assert 0 < spikes.mean() < 1


def run_lif_node(current: Tensor, tau: float, threshold: float, decay_input: bool, mode: str, initial: float = 0.0):
    """Return spikes and potentials behind the reset of SpikingJelly's neuron."""
    node = spikingjelly_neurons.LIFNode(
        tau=tau, decay_input=decay_input, v_threshold=threshold, v_reset=0.0, step_mode=mode, store_v_seq=True
    )
    node.v = torch.full_like(current[0], initial)
    spikes = node(current) if mode == "m" else torch.stack([node(drive) for drive in current])
    return spikes, node.v_seq


@pytest.mark.parametrize("mode", ["m", "s"])
@given(seeds, step_counts, taus, thresholds, dtypes)
@bounded
def test_published_preset_is_spikingjellys_lif_node(mode, seed, steps, tau, threshold, dtype):
    current = tie_rich_currents(seed, steps, threshold, dtype, gain=tau if math.log2(tau).is_integer() else 1.0)
    spikes, potentials = run(neuron_preset("published", tau=tau, threshold=threshold), current)
    expected_spikes, expected_potentials = run_lif_node(current, tau, threshold, True, mode)
    if math.log2(tau).is_integer():  # dividing by others seldom lands on the threshold
        assert_ties(potentials, threshold)
    assert torch.equal(spikes, expected_spikes)
    assert torch.equal(potentials * (1 - spikes), expected_potentials)


@given(seeds, step_counts, st.sampled_from([2.0, 4.0, 8.0, 64.0]), thresholds, dtypes)
@bounded
def test_published_preset_without_decay_input_is_spikingjellys_where_tau_is_a_power_of_two(
    seed, steps, tau, threshold, dtype
):
    current = tie_rich_currents(seed, steps, threshold, dtype)
    neuron = neuron_preset("published", tau=tau, threshold=threshold, decay_input=False)
    spikes, potentials = run(neuron, current)
    expected_spikes, expected_potentials = run_lif_node(current, tau, threshold, False, "m")
    assert_ties(potentials, threshold)
    assert torch.equal(spikes, expected_spikes)
    assert torch.equal(potentials * (1 - spikes), expected_potentials)


@pytest.mark.parametrize("tau", [1.3, 3.0, 10.0, 17.7])
def test_without_decay_input_other_taus_differ_from_spikingjelly_by_rounding_alone(tau):
    """The documented limit: beta U + I and U - U / tau + I round differently, in the last bits."""
    current = torch.randn(8, 500, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2
    neuron = neuron_preset("published", tau=tau, decay_input=False)
    spikes, potentials = run(neuron, current)
    expected_spikes, expected_potentials = run_lif_node(current, tau, neuron.threshold, False, "m")
    assert torch.equal(spikes, expected_spikes)
    torch.testing.assert_close(potentials * (1 - spikes), expected_potentials, rtol=0, atol=1e-14)
    assert not torch.equal(potentials * (1 - spikes), expected_potentials)


@pytest.mark.lava
def test_loihi_preset_is_stock_lava_lif():
    """A real network of Lava processes: one source of currents, six neuron populations, one sink for each."""
    from hardware.runners.lava.compatibility import import_lava

    import_lava()
    from lava.magma.core.run_configs import Loihi2SimCfg
    from lava.proc.io.sink import RingBuffer as Sink
    from lava.proc.io.source import RingBuffer as Source
    from lava.proc.lif.process import LIF

    from hardware.runners.lava.guard import GuardedNetwork

    steps = 12
    current = tie_rich_currents(3, steps, 0.5, torch.float64)
    neurons = [NEURON_PRESETS["loihi"]] + [
        neuron_preset("loihi", beta=decay / 4096, threshold=threshold)
        for decay, threshold in [(3686, 0.5), (2048, 0.25), (4095, 1.0), (1, 0.5), (4096, 0.75)]
    ]
    source = Source(data=current.T.numpy())
    populations = []
    for neuron in neurons:
        lif = LIF(shape=(FEATURES,), du=1, dv=1 - neuron.beta, vth=neuron.threshold)
        sink = Sink(shape=(FEATURES,), buffer=steps)
        source.s_out.connect(lif.a_in)
        lif.s_out.connect(sink.a_in)
        populations.append((neuron, lif, sink))
    behind_reset = {}
    with GuardedNetwork(source, Loihi2SimCfg(select_tag="floating_pt")) as network:
        for step in range(steps):
            network.run(1)
            for index, (_, lif, _) in enumerate(populations):
                behind_reset[index, step] = torch.from_numpy(np.array(lif.v.get()))
        recorded = [torch.from_numpy(np.array(sink.data.get())).T for _, _, sink in populations]
    ties = 0
    for index, (neuron, _, _) in enumerate(populations):
        spikes, potentials = run(neuron, current)
        assert torch.equal(spikes, recorded[index])
        for step in range(steps):
            assert torch.equal((potentials * (1 - spikes))[step], behind_reset[index, step])
        assert spikes.any()
        ties += int((potentials == neuron.threshold).sum())
    assert ties > FEATURES


@pytest.mark.parametrize("preset", ["snntorch", "published"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_at_every_step_fire_as_the_libraries_do(preset, dtype):
    """Without leak potentials stay eighths, and a reset to zero starts afresh: many ties late in a run too."""
    current = torch.cat([tie_rich_currents(seed, 6, 0.5, dtype, gain=2.0) for seed in range(20)], dim=1)
    spikes, potentials = run(neuron_preset(preset, beta=1.0 if preset == "snntorch" else 0.5, threshold=0.5), current)
    if preset == "snntorch":
        expected, _ = run_leaky(current, 1.0, 0.5, "subtract")
    else:
        expected, _ = run_lif_node(current, 2.0, 0.5, True, "m")
    assert ((potentials == 0.5).sum(1) >= 10).all()
    assert torch.equal(spikes, expected)


# --- against the equations


def equations_1_and_2(current: np.ndarray, beta: float, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Return S and U of arXiv 2308.15122: U_t = I_t + beta U_(t-1) - S_(t-1) U_thr, S_t = 1 where U_t >= U_thr."""
    number = current.dtype.type
    spikes, potentials = np.zeros_like(current), np.zeros_like(current)
    for neuron in range(current.shape[1]):
        potential, spike = number(0), number(0)
        for step in range(current.shape[0]):
            potential = current[step, neuron] + number(beta) * potential - spike * number(threshold)
            spike = number(1) if potential >= number(threshold) else number(0)
            spikes[step, neuron], potentials[step, neuron] = spike, potential
    return spikes, potentials


@given(seeds, step_counts, betas, thresholds, dtypes)
@bounded
def test_paper_preset_is_equations_1_and_2(seed, steps, beta, threshold, dtype):
    current = tie_rich_currents(seed, steps, threshold, dtype)
    spikes, potentials = run(neuron_preset("paper", beta=beta, threshold=threshold), current)
    expected_spikes, expected_potentials = equations_1_and_2(current.numpy(), beta, threshold)
    assert_ties(potentials, threshold)
    assert np.array_equal(spikes.numpy(), expected_spikes)
    assert np.array_equal(potentials.numpy(), expected_potentials)


def test_presets_have_the_published_numbers():
    """Section 4.2 of the paper, and the table of its published code in the design."""
    paper, published, loihi = (NEURON_PRESETS[name] for name in ("paper", "published", "loihi"))
    assert (paper.beta, paper.threshold, paper.reset, paper.fire_on_equal) == (0.9, 1.0, "subtract", True)
    assert (published.tau, published.decay_input, published.reset, published.fire_on_equal) == (2.0, True, "zero", True)
    assert (loihi.beta * 4096, loihi.reset, loihi.fire_on_equal) == (3686, "zero", False)
    assert abs(loihi.beta - 0.9) <= 0.5 / 4096


@pytest.mark.parametrize("decay_input", [False, True])
@pytest.mark.parametrize("reset", ["subtract", "zero"])
@given(seed=seeds, dtype=dtypes)
@settings(deadline=None, max_examples=10)
def test_firing_at_equality_matters_exactly_at_ties(reset, decay_input, seed, dtype):
    current = tie_rich_currents(seed, 6, 0.5, dtype, gain=2.0 if decay_input else 1.0)
    changes = {"threshold": 0.5, "reset": reset, "decay_input": decay_input, "beta": 0.5}
    at, above = (neuron_preset("paper", fire_on_equal=on_equal, **changes) for on_equal in (True, False))
    (spikes_at, potentials_at), (spikes_above, potentials_above) = run(at, current), run(above, current)
    assert torch.equal(spikes_at, (potentials_at >= 0.5).to(dtype))
    assert torch.equal(spikes_above, (potentials_above > 0.5).to(dtype))
    never_tied = ~(potentials_above == 0.5).any(0)
    assert torch.equal(spikes_at[:, never_tied], spikes_above[:, never_tied])
    differs = spikes_at != spikes_above
    assert torch.equal(differs.any(0), ~never_tied)
    first = differs.int().argmax(0)
    for neuron in differs.any(0).nonzero().flatten():
        assert potentials_at[first[neuron], neuron] == 0.5


@pytest.mark.parametrize("reset", ["subtract", "zero"])
@given(seeds, st.floats(-2.0, 1.0), dtypes)
@settings(deadline=None, max_examples=15)
def test_initial_potential_is_leakys(reset, seed, initial, dtype):
    """Up to the threshold; above it snnTorch takes a spike before the first step for granted, and this does not."""
    current = tie_rich_currents(seed, 5, 1.0, dtype)
    neuron = neuron_preset("snntorch", reset=reset, initial_membrane_potential=initial)
    expected = run_leaky(current, neuron.beta, 1.0, reset, initial)
    assert all(torch.equal(a, b) for a, b in zip(run(neuron, current), expected, strict=True))


@given(seeds, st.floats(-3.0, 3.0), dtypes)
@settings(deadline=None, max_examples=15)
def test_initial_potential_is_lif_nodes(seed, initial, dtype):
    current = tie_rich_currents(seed, 5, 1.0, dtype)
    spikes, potentials = run(neuron_preset("published", initial_membrane_potential=initial), current)
    expected = run_lif_node(current, 2.0, 1.0, True, "m", initial)
    assert torch.equal(spikes, expected[0])
    assert torch.equal(potentials * (1 - spikes), expected[1])


def test_nothing_has_fired_before_the_first_step():
    neuron = neuron_preset("paper", beta=0.5, initial_membrane_potential=3.0)
    _, potentials = run(neuron, torch.zeros(2, 1, dtype=torch.float64))
    assert potentials.flatten().tolist() == [1.5, -0.25]  # 3 / 2 with no reset; then 1.5 / 2 - 1


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("preset", list(NEURON_PRESETS))
def test_half_precision_input_keeps_its_state_in_float32(preset, half):
    current = torch.randn(8, 2000, generator=torch.Generator().manual_seed(2)).to(half)
    neuron = NEURON_PRESETS[preset]
    spikes, potentials = run(neuron, current)
    expected_spikes, expected_potentials = run(neuron, current.float())
    assert spikes.dtype == half
    assert potentials.dtype == torch.float32
    assert torch.equal(spikes.float(), expected_spikes)
    assert torch.equal(potentials, expected_potentials)
    if not neuron.decay_input and neuron.reset == "subtract":  # a state in half precision would have shown
        rounded = run_leaky(current, neuron.beta, neuron.threshold, "subtract")[1]
        assert not torch.equal(potentials, rounded.float())


@pytest.mark.parametrize("preset", list(NEURON_PRESETS))
def test_any_memory_layout_gives_the_same_and_input_is_left_alone(preset):
    """The recurrence works in place on its own memory; embeddings come in as one step shown T times."""
    neuron = NEURON_PRESETS[preset]
    one_step = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 2
    for current in (one_step.expand(6, 3, 5), torch.randn(5, 3, 6, dtype=torch.float64).permute(2, 1, 0)):
        kept = current.clone()
        leaf = current.detach().requires_grad_()
        potentials: list[Tensor] = []
        spikes = SpikingNeuron(neuron)(leaf, potentials.append)
        recorded = potentials[0].clone()
        spikes.sum().backward()
        expected = run(neuron, kept.contiguous())
        assert torch.equal(spikes.detach(), expected[0])
        assert torch.equal(potentials[0], expected[1])
        assert torch.equal(potentials[0], recorded)
        assert torch.equal(current, kept)


@pytest.mark.parametrize("make", [lambda name: SpikingNeuron(NEURON_PRESETS[name]), lambda name: Heaviside(True)])
@pytest.mark.parametrize("preset", list(NEURON_PRESETS))
def test_a_mask_silences_and_is_all_it_does(make, preset):
    """Spikes and gradients are those of a product with the mask, potentials those without; all is left as it was."""
    neuron = make(preset)
    current = (torch.randn(5, 3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(8)) * 2).detach()
    mask = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.float64).unsqueeze(-1)
    weight = torch.randn(5, 3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    silenced, alone = current.clone().requires_grad_(), current.clone().requires_grad_()
    kept: list[Tensor] = []
    spikes, expected = neuron(silenced, kept.append, mask), neuron(alone, kept.append) * mask
    assert torch.equal(spikes, expected)
    assert torch.equal(kept[0], kept[1])
    (spikes * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(silenced.grad, alone.grad, rtol=1e-12, atol=0)
    assert silenced.grad.any()
    assert not silenced.grad[:, mask[..., 0] == 0].any()
    assert torch.equal(silenced.detach(), current)


@pytest.mark.parametrize("on_equal", [False, True])
def test_heaviside_is_a_step_at_0_with_no_memory(on_equal):
    current = torch.tensor([[-1.0, -0.0, 0.0, 1e-30], [5.0, 0.0, -1e-30, -5.0]]).requires_grad_()
    kept: list[Tensor] = []
    spikes = Heaviside(on_equal)(current, kept.append)
    at = float(on_equal)
    assert spikes.tolist() == [[0, at, at, 1], [1, at, 0, 0]]
    assert torch.equal(kept[0], current)
    spikes.sum().backward()
    x = current.detach().requires_grad_()
    spikingjelly_surrogates.ATan(alpha=2.0)(x).sum().backward()
    torch.testing.assert_close(current.grad, x.grad)


# --- gradients

WRITTEN_OUT: dict[str, Callable[[Tensor, float], Tensor]] = {
    "arctangent": lambda x, a: a / (2 * (1 + (math.pi * a * x / 2) ** 2)),
    "sigmoid": lambda x, a: a * torch.exp(-a * x) / (1 + torch.exp(-a * x)) ** 2,
    "fast_sigmoid": lambda x, a: 1 / (a * torch.abs(x) + 1) ** 2,
    "triangle": lambda x, a: torch.clamp(a - a**2 * torch.abs(x), min=0),
    "rectangle": lambda x, a: torch.where(torch.abs(x) < 1 / (2 * a), a, 0.0),
}


class WrittenOutStep(torch.autograd.Function):
    """A step at 0 whose derivative is a given function."""

    @staticmethod
    def forward(ctx, x, derivative, on_equal):
        ctx.save_for_backward(x)
        ctx.derivative = derivative
        return (x >= 0 if on_equal else x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.derivative(ctx.saved_tensors[0]), None, None


def differentiable_loop(neuron: NeuronParameters, current: Tensor, derivative: Callable[[Tensor], Tensor]) -> Tensor:
    """Return spikes from a loop that autograd walks back through; the reset is detached."""
    potential, spike, spikes = torch.zeros_like(current[0]), torch.zeros_like(current[0]), []
    for drive in current:
        if neuron.decay_input:
            potential = potential + (drive - potential) / neuron.tau
        else:
            potential = neuron.beta * potential + drive
        if neuron.reset == "subtract":
            potential = potential - spike.detach() * neuron.threshold
        spike = WrittenOutStep.apply(potential - neuron.threshold, derivative, neuron.fire_on_equal)
        spikes.append(spike)
        if neuron.reset == "zero":
            potential = potential * (1 - spike.detach())
    return torch.stack(spikes)


def test_every_surrogate_is_written_out_here():
    assert set(WRITTEN_OUT) == set(SURROGATES)


@pytest.mark.parametrize("alpha", [0.5, 2.0])
@pytest.mark.parametrize("surrogate", list(SURROGATES))
@pytest.mark.parametrize("decay_input", [False, True])
@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_analytic_gradient_is_autograds(reset, decay_input, surrogate, alpha):
    neuron = neuron_preset("paper", reset=reset, decay_input=decay_input, tau=2.5, threshold=0.8)
    generator = torch.Generator().manual_seed(4)
    current = (torch.randn(7, 60, generator=generator, dtype=torch.float64) * 2).requires_grad_()
    weight = torch.randn(7, 60, generator=generator, dtype=torch.float64)
    spikes = SpikingNeuron(neuron, surrogate, alpha)(current)
    expected_spikes = differentiable_loop(neuron, current, lambda x: WRITTEN_OUT[surrogate](x, alpha))
    assert torch.equal(spikes, expected_spikes)
    (found,) = torch.autograd.grad((spikes * weight).sum(), current)
    (expected,) = torch.autograd.grad((expected_spikes * weight).sum(), current)
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


def test_gradient_is_snntorchs():
    current = torch.randn(6, 200, generator=torch.Generator().manual_seed(5), dtype=torch.float64).requires_grad_()
    leaky = snntorch.Leaky(
        torch.tensor(0.9, dtype=torch.float64), spike_grad=snntorch_surrogates.atan(alpha=2.0), reset_mechanism="zero"
    )
    potential, spikes = torch.zeros(200, dtype=torch.float64), []
    for drive in current:
        fired, potential = leaky(drive, potential)
        spikes.append(fired)
    (expected,) = torch.autograd.grad(torch.stack(spikes).square().sum(), current)
    found = SpikingNeuron(neuron_preset("snntorch", reset="zero"), "arctangent", 2.0)(current)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), current)[0], expected, rtol=1e-12, atol=1e-13)


def test_gradient_is_spikingjellys_with_detached_reset():
    current = (
        torch.randn(6, 200, generator=torch.Generator().manual_seed(6), dtype=torch.float64) * 3
    ).requires_grad_()
    node = spikingjelly_neurons.LIFNode(
        tau=2.0, surrogate_function=spikingjelly_surrogates.ATan(alpha=2.0), detach_reset=True, step_mode="m"
    )
    (expected,) = torch.autograd.grad(node(current).square().sum(), current)
    found = SpikingNeuron(NEURON_PRESETS["published"], "arctangent", 2.0)(current)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), current)[0], expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("alpha", [0.5, 2.0, 5.0])
@pytest.mark.parametrize("surrogate", list(SURROGATES))
def test_surrogates_have_the_documented_area(surrogate, alpha):
    """A surrogate of unit area stands for a step of height 1."""
    gradient = surrogate_gradient(surrogate, alpha)

    def height(angle: np.ndarray) -> np.ndarray:  # over x = tan(angle), so that tails are counted to infinity
        return gradient(torch.from_numpy(np.tan(angle)), alpha).numpy() / np.cos(angle) ** 2

    angles = (np.arange(200_000) + 0.5) / 200_000 * np.pi - np.pi / 2
    area = integrate.trapezoid(height(angles), angles)
    assert area == pytest.approx(2 / alpha if surrogate == "fast_sigmoid" else 1, abs=1e-3)


@pytest.mark.parametrize("surrogate", list(SURROGATES))
def test_surrogates_leave_their_input_alone_unless_told_to_work_in_it(surrogate):
    x = torch.linspace(-3, 3, 101, dtype=torch.float64)
    before = x.clone()
    expected = surrogate_gradient(surrogate)(x, 2.0)
    assert torch.equal(x, before)
    found = surrogate_gradient(surrogate)(x, 2.0, out=x)
    assert found.data_ptr() == x.data_ptr()
    assert torch.equal(x, expected)


@pytest.mark.parametrize("alpha", [1.0, 2.0, 4.0])
@pytest.mark.parametrize(
    ("surrogate", "theirs"),
    [
        ("arctangent", spikingjelly_surrogates.ATan),
        ("sigmoid", spikingjelly_surrogates.Sigmoid),
        ("triangle", spikingjelly_surrogates.PiecewiseQuadratic),
        ("fast_sigmoid", snntorch_surrogates.fast_sigmoid),
        ("arctangent", snntorch_surrogates.atan),
    ],
)
def test_surrogates_are_those_of_the_libraries(surrogate, theirs, alpha):
    x = torch.linspace(-2, 2, 401, dtype=torch.float64).requires_grad_()
    theirs(alpha)(x).sum().backward()
    torch.testing.assert_close(surrogate_gradient(surrogate, alpha)(x.detach(), alpha), x.grad, rtol=1e-12, atol=1e-15)


# --- knobs

NOT_NUMBERS = [math.nan, math.inf, -math.inf, "0.5", None, True]


@pytest.mark.parametrize(
    ("knob", "value"),
    [("beta", value) for value in [0, -0.1, 1.0001, *NOT_NUMBERS]]
    + [("threshold", value) for value in [0, -1.0, *NOT_NUMBERS]]
    + [("tau", value) for value in [0.99, 0, -2, *NOT_NUMBERS]]
    + [("initial_membrane_potential", value) for value in NOT_NUMBERS]
    + [("reset", value) for value in ["none", "Subtract", None, 0]]
    + [(knob, value) for knob in ("decay_input", "fire_on_equal") for value in [1, 0, "false", None]],
)
def test_a_knob_out_of_range_is_refused_by_name_and_value(knob, value):
    with pytest.raises(ConfigurationError) as caught:
        NeuronParameters(**{knob: value})
    assert f"neuron {knob} is {value!r};" in str(caught.value)


@pytest.mark.parametrize("make", [SpikingNeuron, lambda neuron, *knobs: Heaviside(neuron.fire_on_equal, *knobs)])
@pytest.mark.parametrize(
    ("surrogate", "alpha", "complaint"),
    [
        ("gauss", 2.0, r"surrogate 'gauss' is not known; choose one of arctangent, "),
        (["sigmoid"], 2.0, r"surrogate \['sigmoid'\] is not known"),
        ("sigmoid", 0.0, "surrogate_alpha is 0.0; it must be a positive number"),
        ("sigmoid", math.nan, "surrogate_alpha is nan"),
        ("sigmoid", math.inf, "surrogate_alpha is inf"),
        ("sigmoid", "2", "surrogate_alpha is '2'"),
    ],
)
def test_an_unknown_surrogate_or_sharpness_is_refused(make, surrogate, alpha, complaint):
    with pytest.raises(ConfigurationError, match=complaint):
        make(NeuronParameters(), surrogate, alpha)


@pytest.mark.parametrize("name", ["lif", "Paper", "", None, ["paper"]])
def test_an_unknown_preset_is_refused_and_the_known_ones_named(name):
    with pytest.raises(ConfigurationError) as caught:
        neuron_preset(name)
    assert repr(name) in str(caught.value)
    assert all(preset in str(caught.value) for preset in ("paper", "snntorch", "published", "loihi"))


@pytest.mark.parametrize("preset", list(NEURON_PRESETS))
def test_changes_that_are_none_change_nothing(preset):
    assert neuron_preset(preset, beta=None, tau=None, threshold=None, reset=None) == NEURON_PRESETS[preset]


@given(st.sampled_from(list(NEURON_PRESETS)), st.booleans(), st.floats(0.01, 0.99))
@bounded
def test_the_leak_is_one_number_whether_given_as_beta_or_as_tau(preset, decay_input, beta):
    by_beta = neuron_preset(preset, decay_input=decay_input, beta=beta)
    by_tau = neuron_preset(preset, decay_input=decay_input, tau=1 / (1 - beta))
    assert by_beta.decay == pytest.approx(beta, abs=1e-12)
    assert by_tau.decay == pytest.approx(beta, abs=1e-12)


@pytest.mark.parametrize("preset", list(NEURON_PRESETS))
def test_changing_the_form_of_the_charge_keeps_the_presets_leak(preset):
    kept = NEURON_PRESETS[preset]
    changed = neuron_preset(preset, decay_input=not kept.decay_input)
    assert changed.decay == pytest.approx(kept.decay, abs=1e-12)


def test_beta_and_tau_together_are_refused():
    with pytest.raises(ConfigurationError, match=r"neuron beta is 0\.5 and tau 2\.0; give one of them"):
        neuron_preset("paper", beta=0.5, tau=2.0)


def test_a_leak_without_a_counterpart_is_refused():
    """No finite tau stands for beta 1, and tau 1 would keep nothing of the potential."""
    with pytest.raises(ConfigurationError, match=r"neuron beta is 1; with decay_input"):
        neuron_preset("published", beta=1)
    with pytest.raises(ConfigurationError, match=r"neuron tau is 1; without decay_input"):
        neuron_preset("paper", tau=1)
    assert neuron_preset("paper", beta=1).decay == 1
    assert neuron_preset("published", tau=1).decay == 0


def test_beta_1_integrates_without_leak():
    current = torch.full((5, 1), 0.25, dtype=torch.float64)
    spikes, potentials = run(neuron_preset("paper", beta=1), current)
    assert potentials.flatten().tolist() == [0.25, 0.5, 0.75, 1.0, 0.25]
    assert spikes.flatten().tolist() == [0, 0, 0, 1, 0]
