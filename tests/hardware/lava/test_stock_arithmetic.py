"""What stock Lava computes in fixed point, against the equations of ``docs/lava.md`` as `integer_equations` has them.

And against two emulators of the chip that nobody here wrote: nengo-loihi's and brian2-loihi. Where their ranges overlap
all three agree in every spike and state; where they do not, the difference is shown and not hidden.

The models are run without Lava's runtime, one step function at a time; networks of them are in test_integer.py.
"""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from integer_equations import neuron

from export.operators import IntegerLeakyIntegrateAndFire
from hardware.runners.lava.compatibility import import_lava
from spikebert.errors import MissingDependencyError

try:
    import_lava()
except MissingDependencyError as error:
    pytest.skip(str(error), allow_module_level=True)

from lava.proc.dense.models import PyDenseModelBitAcc
from lava.proc.lif.models import PyLifModelBitAcc, PyLifResetModelBitAcc
from lava.proc.sparse.models import PySparseModelBitAcc
from scipy.sparse import csr_matrix

pytestmark = pytest.mark.lava

LIMIT = 2**23
NO_CURRENT_KEPT = 4095
few_examples = settings(max_examples=60, deadline=None, derandomize=True)


class _Port:
    """Gives what it is told to and keeps what it is given."""

    def __init__(self) -> None:
        self.message: Any = None

    def recv(self) -> np.ndarray:
        return self.message

    def send(self, message: np.ndarray) -> None:
        self.message = np.array(message)


def _run_lif(
    activations: np.ndarray, du: int, dv: int, bias: tuple[int, int], vth: int, **resets: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return spikes and potentials behind the reset, ``(T, N)``, of the stock model itself."""
    model = (PyLifResetModelBitAcc if resets else PyLifModelBitAcc)(resets)
    width = activations.shape[1]
    model.a_in, model.s_out = _Port(), _Port()
    model.u, model.v = np.zeros(width, np.int32), np.zeros(width, np.int32)
    model.du, model.dv, model.vth = du, dv, vth
    model.bias_mant, model.bias_exp = (np.full(width, number, np.int16) for number in bias)
    spikes, potentials = [], []
    for step, activation in enumerate(activations.astype(np.int32)):
        model.time_step = step + 1
        model.a_in.message = activation
        model.run_spk()
        spikes.append(np.array(model.s_out.message, np.int64))
        potentials.append(model.v.astype(np.int64))
    return np.stack(spikes), np.stack(potentials)


def _equations(
    activations: np.ndarray, du: int, dv: int, bias: tuple[int, int], vth: int, interval: int = 0, offset: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The same from the equations."""
    said = {"current_decay": du + 1, "decay": dv, "bias_mantissa": bias[0], "bias_exponent": bias[1], "threshold": vth}
    state: dict[str, Any] = {}
    spikes, potentials = [], []
    for step, activation in enumerate(torch.as_tensor(activations)):
        if interval and (step + 1) % interval == offset % interval:
            state.clear()
        spikes.append(neuron(activation, said, state).numpy())
        potentials.append(state["potential"].numpy())
    return np.stack(spikes), np.stack(potentials)


def activations(bits: int) -> st.SearchStrategy[np.ndarray]:
    number = st.one_of(
        st.integers(-8, 8), st.integers(-(1 << bits), 1 << bits), st.sampled_from([1 << bits, -(1 << bits)])
    )
    return st.lists(st.tuples(number, number, number), min_size=1, max_size=8).map(np.array)


decays = st.one_of(st.sampled_from([0, 1, 410, 2048, 4095]), st.integers(0, 4095))
biases = st.tuples(st.one_of(st.integers(-64, 64), st.sampled_from([-4096, 4095])), st.integers(0, 7))
thresholds = st.one_of(st.integers(0, 16), st.sampled_from([0, 2**17 - 1]), st.integers(0, 2**17 - 1))


class TestNeuron:
    # 2^17 is where a current of one activation begins to wrap; 2^18 - 1 is as far as one wrap brings it back
    @few_examples
    @given(activations(18), decays, decays, biases, thresholds)
    def test_stock_lif_is_the_equations(self, a: np.ndarray, du: int, dv: int, bias: tuple[int, int], vth: int) -> None:
        for found, expected in zip(_run_lif(a, du, dv, bias, vth), _equations(a, du, dv, bias, vth), strict=True):
            np.testing.assert_array_equal(found, expected)

    @few_examples
    @given(activations(18), decays, biases, thresholds, st.integers(1, 4), st.integers(0, 6))
    def test_stock_lif_reset_clears_when_told(
        self, a: np.ndarray, dv: int, bias: tuple[int, int], vth: int, interval: int, offset: int
    ) -> None:
        found = _run_lif(a, NO_CURRENT_KEPT, dv, bias, vth, reset_interval=interval, reset_offset=offset)
        expected = _equations(a, NO_CURRENT_KEPT, dv, bias, vth, interval, offset)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)

    # beyond three times the range one wrap is not enough and int32 overflows; the operator follows the stock code there
    @few_examples
    @given(activations(27), decays, biases, thresholds)
    def test_our_operator_is_the_stock_neuron_to_any_size(
        self, a: np.ndarray, dv: int, bias: tuple[int, int], vth: int
    ) -> None:
        spikes, potentials = _run_lif(a, NO_CURRENT_KEPT, dv, bias, vth)
        ones = np.ones(3, np.int64)
        neuron = IntegerLeakyIntegrateAndFire(
            threshold=vth * ones,
            decay=dv * ones,
            bias_mantissa=bias[0] * ones,
            bias_exponent=bias[1] * ones,
            reset="zero",
            fire_on_equal=False,
            unit=np.ones(3),
        )
        assert neuron.is_stock_lif
        state = neuron.initial_state((3,), np.int64)
        for step, activation in enumerate(a):
            np.testing.assert_array_equal(neuron.step(activation.astype(np.int64), state, None), spikes[step])
            np.testing.assert_array_equal(state.membrane_potential, potentials[step])

    def test_wrap_saturation_and_truncation_happen_in_these_tests(self) -> None:
        a = np.array([[2**17, -(2**17), 1]])
        fired, v = _run_lif(a, NO_CURRENT_KEPT, 0, (0, 0), 2**17 - 1)
        assert fired.tolist() == [[1, 1, 0]]  # 2^23 stays, saturates and fires; -2^23 wraps around to 2^23
        assert v.tolist() == [[0, 0, 64]]
        _, v = _run_lif(np.array([[-3]] * 3), NO_CURRENT_KEPT, 2048, (0, 0), 9)
        assert v[:, 0].tolist() == [-192, -288, -336]
        _, v = _run_lif(np.array([[0]] * 2), NO_CURRENT_KEPT, 2048, (-1, 0), 9)
        assert v[:, 0].tolist() == [-1, -1]  # half of -1 is cut off to 0, where a shift alone would leave -1


def _run_synapses(model_type: type, weights: np.ndarray, messages: np.ndarray, bits: int, exponent: int) -> np.ndarray:
    model = model_type({"weight_exp": exponent})
    model.weights = csr_matrix(weights) if model_type is PySparseModelBitAcc else weights.copy()
    model.a_buff = np.zeros(len(weights), np.int32)
    model.num_message_bits = SimpleNamespace(item=lambda: bits)
    model.s_in, model.a_out = _Port(), _Port()
    sent = []
    for message in messages:
        model.s_in.message = message
        model.run_spk()
        sent.append(model.a_out.message)
    return np.stack([*sent, model.a_buff])


@pytest.mark.parametrize("model_type", [PyDenseModelBitAcc, PySparseModelBitAcc])
class TestSynapses:
    def test_weights_are_clipped_and_floored_to_even_where_signs_are_mixed(self, model_type: type) -> None:
        one = np.ones((1, 1), np.int32)
        for rows, held in (
            ([-300, -256, -255, -3, -1, 0, 1, 3, 255, 300], [-256, -256, -256, -4, -2, 0, 0, 2, 254, 254]),
            ([0, 1, 3, 255, 300], [0, 1, 3, 255, 255]),
            ([-300, -255, -3, -1, 0], [-255, -255, -3, -1, 0]),
        ):
            weights = np.array(rows, np.int32)[:, None]
            assert _run_synapses(model_type, weights, one, 24, 0)[-1].tolist() == held

    def test_int8_weights_go_in_doubled_and_come_out_whole(self, model_type: type) -> None:
        rng = np.random.default_rng(0)
        weights = rng.integers(-128, 128, (9, 7))
        weights[0] = -128, 127, -128, 127, 0, 1, -1
        messages = rng.integers(0, 50, (5, 7))
        found = _run_synapses(model_type, 2 * weights.astype(np.int32), messages, 24, -1)
        np.testing.assert_array_equal(found[0], 0)
        np.testing.assert_array_equal(found[1:], messages @ weights.T)  # what came at step t goes out at t + 1

    def test_without_message_bits_any_message_is_a_spike(self, model_type: type) -> None:
        weights = np.array([[2, 4, 8]], np.int32)
        messages = np.array([[0, 1, 2], [3, 0, 0]])
        assert _run_synapses(model_type, weights, messages, 0, 0)[1:].tolist() == [[12], [2]]
        assert _run_synapses(model_type, weights, messages, 24, 0)[1:].tolist() == [[20], [6]]


class TestOtherEmulators:
    """docs/lava.md, "Beside other emulators", tells these differences in words."""

    def _nengo(self, a: np.ndarray, du: int, dv: int, bias: tuple[int, int], vth: int) -> tuple[np.ndarray, np.ndarray]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it was not tried with this nengo; its chip arithmetic needs none
            block_module = pytest.importorskip("nengo_loihi.block")
            emulator = pytest.importorskip("nengo_loihi.emulator.interface")
            width = a.shape[1]
            block = block_module.LoihiBlock(width)
            cells = block.compartment
            cells.vth = np.full(width, vth * 64, np.int32)
            cells.decay_u, cells.decay_v = (np.full(width, decay, np.int32) for decay in (du, dv))
            cells.bias = np.full(width, bias[0] << bias[1], np.int32)
            cells.vmin, cells.vmax = -LIMIT + 1, LIMIT - 1
            cells.scale_u = cells.scale_v = False
            state = emulator.CompartmentState(emulator.BlockInfo([block]), strict=False)
            spikes, potentials = [], []
            for activation in a:
                state.input[0] = activation * 64
                state.update(np.random.RandomState(0))
                spikes.append(state.spiked.astype(np.int64))
                potentials.append(state.voltage.astype(np.int64))
        return np.stack(spikes), np.stack(potentials)

    @few_examples
    @given(activations(14), decays, decays, biases, thresholds)
    def test_nengo_loihi_agrees_where_its_range_ends_later(
        self, a: np.ndarray, du: int, dv: int, bias: tuple[int, int], vth: int
    ) -> None:
        """Inputs of 21 bits, and currents that stay below 2^23 with the bias."""
        a = np.clip(a, -(2**14) + 1, 2**14 - 1)
        if du < 600:  # a current that hardly leaks adds up beyond 23 bits
            a = a // 8
        for found, expected in zip(self._nengo(a, du, dv, bias, vth), _run_lif(a, du, dv, bias, vth), strict=True):
            np.testing.assert_array_equal(found, expected)

    def test_where_nengo_loihi_differs(self) -> None:
        vth = 2**17 - 1
        # its synaptic input wraps at 21 bits and sign before it becomes a current; Lava's does not
        a = np.array([[2**15]])
        assert self._nengo(a, NO_CURRENT_KEPT, 0, (0, 0), vth)[1].item() == -(2**21)
        assert _run_lif(a, NO_CURRENT_KEPT, 0, (0, 0), vth)[1].item() == 2**21
        # it adds the bias before it wraps the current; Lava adds it to the potential, which saturates
        a = np.full((5, 1), 2**15 - 1)
        bias = (4095, 7)
        nengo, lava = (run(a, 0, 0, bias, vth)[1][-1].item() for run in (self._nengo, _run_lif))
        assert nengo != lava

    def _brian(self, weights: np.ndarray, spikes: np.ndarray, dv: int, vth: int, signs: int) -> tuple[Any, Any]:
        brian2 = pytest.importorskip("brian2")
        brian2.prefs.codegen.target = "numpy"  # else it compiles for half a minute
        loihi = pytest.importorskip("brian2_loihi")
        steps, inputs = np.nonzero(spikes)
        source = loihi.LoihiSpikeGeneratorGroup(spikes.shape[1], inputs, steps)
        neurons = loihi.LoihiNeuronGroup(len(weights), threshold_v_mant=vth, decay_v=dv, decay_I=4096)
        synapses = loihi.LoihiSynapses(source, neurons, sign_mode=signs)
        synapses.connect()
        synapses.w = weights.T.reshape(-1)
        potential = loihi.LoihiStateMonitor(neurons, "v")
        fired = loihi.LoihiSpikeMonitor(neurons)
        loihi.LoihiNetwork(source, neurons, synapses, potential, fired).run(len(spikes))
        found = np.zeros((len(spikes), len(weights)), np.int64)
        found[np.asarray(fired.t).astype(int), np.asarray(fired.i)] = 1
        return found, np.asarray(potential.v).T

    def test_brian2_loihi_agrees_one_step_earlier(self) -> None:
        """Dense sends one step late; a spike generator's spikes arrive at once. Even weights of mixed signs."""
        rng = np.random.default_rng(0)
        weights = 2 * rng.integers(-127, 127, (12, 9))
        spikes = (rng.random((25, 9)) < 0.3).astype(np.int64)
        found, potentials = self._brian(weights, spikes, 410, 150, signs=1)
        sums = _run_synapses(PyDenseModelBitAcc, weights.astype(np.int32), spikes, 0, 0)
        expected, held = _run_lif(sums, NO_CURRENT_KEPT, 410, (0, 0), 150)
        assert 0.05 < expected.mean() < 0.6
        np.testing.assert_array_equal(found, expected[1:])
        np.testing.assert_array_equal(potentials, held[1:])

    def test_where_brian2_loihi_differs(self) -> None:
        """Odd weights of mixed signs: cut off towards 0, where Lava floors them. And no state has a last bit."""
        weights, spikes = np.array([[-3, 3]]), np.array([[1, 0]])
        _, potentials = self._brian(weights, spikes, 0, 100, signs=1)
        sums = _run_synapses(PyDenseModelBitAcc, weights.astype(np.int32), spikes, 0, 0)
        assert (potentials[0, 0], sums[1, 0] * 64) == (-2 * 64, -4 * 64)
        weights, spikes = np.full((1, 700), 255), np.ones((1, 700), np.int64)
        _, potentials = self._brian(weights, spikes, 0, 2**17 - 1, signs=2)
        sums = _run_synapses(PyDenseModelBitAcc, weights.astype(np.int32), spikes, 0, 0)
        _, held = _run_lif(sums, NO_CURRENT_KEPT, 0, (0, 0), 2**17 - 1)
        assert sums[1, 0] * 64 > LIMIT
        assert held[1, 0] == sums[1, 0] * 64 - 2 * LIMIT
        assert potentials[0, 0] in (sums[1, 0] * 64, 0)  # 0 where it fired
