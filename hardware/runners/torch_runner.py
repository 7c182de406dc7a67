"""Runner ``torch``: the trained model itself, in eager PyTorch.

It takes any module that answers ``model(input_ids, attention_mask, output_spikes=True,
output_membrane_potentials=True)`` with ``logits`` ``(B, C)``, and with ``spikes`` and ``membrane_potentials``
``(T, B, N, D)`` keyed by node name; ``step_logits`` ``(T, B, C)`` where each step has a say of its own. Two more things
it asks, and takes for False where a module does not say:

* ``attends_to_padding``: whether padding counts as ordinary tokens;
* ``spikes_are_bits``: whether neurons send 0 and 1 and nothing else. Such a model hands each layer's spikes to
  ``keep_spikes`` as soon as it has them, which makes a byte of each: floats of all of them, kept until the end of the
  run, cost up to a fifth of it. Another model's are looked at before a byte is made of them.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

import numpy as np
import torch
from torch import nn

from hardware.errors import RunnerError
from hardware.runners.runner import Runner, as_array, check_token_ids, float_type
from hardware.trace import Trace


class TorchRunner(Runner):
    """Runs a model in float64 or float32, on a copy that leaves the caller's model as it is.

    Parameters
    ----------
    model : nn.Module
    precision : {"float64", "float32"}
    record_membrane_potentials : bool
        Keep every neuron's potential as it was tested against the threshold.
    """

    name = "torch"

    def __init__(self, model: nn.Module, precision: str = "float64", record_membrane_potentials: bool = False) -> None:
        float_type(precision)
        self.precision = precision
        self.record_membrane_potentials = record_membrane_potentials
        self.model = copy.deepcopy(model).to(getattr(torch, precision)).eval()
        sends_bits = getattr(model, "spikes_are_bits", False)
        self._options: dict[str, Any] = {"keep_spikes": ByteMemory().keep} if sends_bits else {}

    @torch.no_grad()
    def run(self, inputs: Any, token_mask: Any = None) -> Trace:
        """Run one batch of token ids; see `Runner.run`."""
        ids = torch.as_tensor(check_token_ids(inputs))
        mask = torch.ones_like(ids)
        if token_mask is not None:
            mask = torch.as_tensor(as_array(token_mask, "token_mask") != 0).long()
            if mask.shape != ids.shape:
                raise RunnerError(f"token_mask has shape {tuple(mask.shape)}; the inputs need {tuple(ids.shape)}")
        output = self.model(
            ids,
            mask,
            output_spikes=True,
            output_membrane_potentials=self.record_membrane_potentials,
            **self._options,
        )
        spikes = getattr(output, "spikes", None)
        if not spikes:
            raise RunnerError(f"{type(self.model).__name__} returned no spikes; it must honour output_spikes=True")
        potentials = getattr(output, "membrane_potentials", None) or {}
        step_logits = getattr(output, "step_logits", None)
        counts_padding = getattr(self.model, "attends_to_padding", False)
        return Trace(
            spikes={name: _as_bytes(value, name) for name, value in spikes.items()},
            logits=output.logits.numpy(),
            mask=np.ones(ids.shape, bool) if counts_padding else mask.numpy() != 0,
            outputs=None if step_logits is None else step_logits.numpy(),
            membrane_potentials={name: value.numpy() for name, value in potentials.items()},
            input_ids=ids.numpy(),
            metadata={
                "runner": self.name,
                "precision": self.precision,
                "time_steps": int(next(iter(spikes.values())).shape[0]),
            },
        )


class ByteMemory:
    """Where spikes are kept, a byte each, in memory that is used again once nobody holds the trace it was part of.

    Memory fresh from the system comes page by page, each filled with zeros first, which recording would pay for.
    """

    def __init__(self) -> None:
        self._blocks: list[np.ndarray] = []

    def keep(self, spikes: torch.Tensor) -> torch.Tensor:
        """Return a copy of whole numbers of any shape and type as int8."""
        size = spikes.numel()
        free = [i for i in range(len(self._blocks)) if _holders(self._blocks, i) == _HELD_BY_LIST_ALONE]
        free.sort(key=lambda i: self._blocks[i].size)
        fitting = next((i for i in free if self._blocks[i].size >= size), None)
        if fitting is None:
            if free:  # else batches of growing length would leave one behind for every length
                del self._blocks[free[-1]]
            fitting = len(self._blocks)
            self._blocks.append(np.empty(size, np.int8))
        kept = torch.from_numpy(self._blocks[fitting][:size])
        return kept.view(spikes.shape).copy_(spikes)


def _holders(blocks: list[np.ndarray], index: int) -> int:
    """Count who refers to a block; an array or tensor that is a part of it does."""
    return sys.getrefcount(blocks[index])


_HELD_BY_LIST_ALONE = _holders([np.empty(1, np.int8)], 0)


def _as_bytes(spikes: torch.Tensor, name: str) -> np.ndarray:
    """Return spikes as uint8.

    Raises
    ------
    RunnerError
        A spike is no whole number from 0 to 127: int8, which is several times as quick to make as uint8, ends there.
    """
    narrow = spikes.to(torch.int8)
    if narrow is not spikes and not torch.equal(narrow.to(spikes.dtype), spikes):
        raise RunnerError(f"{name}: its spikes are not all whole numbers up to 127; a trace holds them in a byte each")
    as_bytes = narrow.numpy().view(np.uint8)
    if as_bytes.max(initial=0) > np.iinfo(np.int8).max:  # a negative number; NumPy finds it three times as fast
        raise RunnerError(f"{name}: a spike is {int(narrow.min())}; spikes are 0 or positive")
    return as_bytes
