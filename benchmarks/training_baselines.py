"""The same SpikeBERT as one would first write it with snnTorch or SpikingJelly: what our training is timed against.

Both take their weights from one of our models, and `benchmarks/training.py` checks that logits and gradients come out
the same before anything is timed. snnTorch's neurons see one time step a call, so everything stands in a loop over
steps; SpikingJelly's take all steps at once, so only they loop.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from spikebert import SpikeBertForSequenceClassification
from spikebert.modeling import SpikeBertBlock, SpikingProjection
from spikebert.neuron import NeuronParameters


class Baseline(nn.Module):
    """What both share: one of our models' layers, with other neurons behind them.

    Parameters
    ----------
    model : SpikeBertForSequenceClassification
        Copied. LIF behind the embeddings, norms of any kind.
    """

    preset: str

    def __init__(self, model: SpikeBertForSequenceClassification) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.neurons = nn.ModuleDict()
        blocks = range(model.config.num_hidden_layers)
        common = [f"{block}_{part}" for block in blocks for part in ("qkv", "projection", "intermediate", "output")]
        for name in ("embedding", *common):
            self.neurons[name] = self.make_neuron(model.config.neuron_parameters(), model.config.surrogate_alpha)
        for block in blocks:
            attention = model.config.attention_neuron_parameters()
            self.neurons[f"{block}_attention"] = self.make_neuron(attention, model.config.surrogate_alpha)

    def make_neuron(self, parameters: NeuronParameters, alpha: float) -> nn.Module:
        """Return the library's neuron with these parameters."""
        raise NotImplementedError

    def fire(self, name: str, current: Tensor) -> Tensor:
        """Return the spikes of a neuron layer."""
        raise NotImplementedError

    def embed(self, input_ids: Tensor, mask: Tensor) -> Tensor:
        """Return the current of the embedding neuron, ``(B, N, D)``."""
        embeddings = self.model.spikebert.embeddings
        embedded = embeddings.word_embeddings(input_ids)
        if embeddings.position_embeddings is not None:
            embedded = embedded + embeddings.position_embeddings(torch.arange(input_ids.shape[1], device=mask.device))
        return embedded if embeddings.norm is None else embeddings.norm(embedded, mask)

    def project(self, name: str, projection: SpikingProjection, x: Tensor, mask: Tensor) -> Tensor:
        """Return linear, norm and neuron of ``(..., B, N, D)``, silent at padding."""
        current = projection.affine(x)
        if projection.norm is not None:
            current = projection.norm(current, mask)
        return self.fire(name, current) * mask

    def block(self, index: int, block: SpikeBertBlock, x: Tensor, mask: Tensor) -> Tensor:
        """Return the residual stream behind a block, for one step or for all."""
        attention = block.attention
        qkv = self.project(f"{index}_qkv", attention.qkv, x, mask)
        query, key, value = (
            part.unflatten(-1, (attention.num_heads, -1)).transpose(-2, -3) for part in qkv.chunk(3, dim=-1)
        )
        attended = (query @ key.transpose(-1, -2) @ value * attention.scale).transpose(-2, -3).flatten(-2)
        fired = self.fire(f"{index}_attention", attended) * mask
        x = x + self.project(f"{index}_projection", attention.projection, fired, mask)
        hidden = self.project(f"{index}_intermediate", block.intermediate, x, mask)
        return x + self.project(f"{index}_output", block.output, hidden, mask)

    def head(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return logits of ``(..., B, N, D)`` for each step."""
        norm = self.model.spikebert.final_norm
        normed = x if norm is None else norm(x, mask)
        return self.model.classifier((normed * mask).sum(-2) / mask.sum(-2))


class SnnTorchLoop(Baseline):
    """A loop over time steps around the whole network, with ``snntorch.Leaky``."""

    preset = "snntorch"

    def make_neuron(self, parameters: NeuronParameters, alpha: float) -> nn.Module:
        """Return a ``Leaky``."""
        import snntorch
        from snntorch import surrogate

        class ATan(surrogate.ATan):
            """snnTorch's own, whose spikes (and so the gradients that come back) are float32 whatever comes in."""

            @staticmethod
            def forward(ctx: FunctionCtx, input_: Tensor, alpha: float) -> Tensor:
                return surrogate.ATan.forward(ctx, input_, alpha).to(input_.dtype)

        return snntorch.Leaky(
            beta=torch.tensor(parameters.beta, dtype=torch.float64),  # a number it would round to float32
            threshold=parameters.threshold,
            reset_mechanism=parameters.reset,
            spike_grad=lambda shifted: ATan.apply(shifted, alpha),
        )

    def fire(self, name: str, current: Tensor) -> Tensor:
        """Return the spikes of one step."""
        potential = self.potentials.get(name)
        neuron = self.neurons[name]
        spikes, self.potentials[name] = neuron(current, neuron.init_leaky() if potential is None else potential)
        return spikes

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return logits ``(B, C)``."""
        mask = attention_mask.unsqueeze(-1).to(self.model.dtype)
        self.potentials: dict[str, Tensor] = {}
        embedded = self.embed(input_ids, mask)
        logits = []
        for _ in range(self.model.config.time_steps):
            x = self.fire("embedding", embedded) * mask
            for index, block in enumerate(self.model.spikebert.blocks):
                x = self.block(index, block, x, mask)
            logits.append(self.head(x, mask))
        return torch.stack(logits).mean(0)


class SpikingJellyMultiStep(Baseline):
    """All steps at once, with SpikingJelly's ``LIFNode`` in multi-step mode on its torch backend."""

    preset = "published"

    def make_neuron(self, parameters: NeuronParameters, alpha: float) -> nn.Module:
        """Return a ``LIFNode``."""
        from spikingjelly.activation_based import neuron, surrogate

        return neuron.LIFNode(
            tau=parameters.tau,
            decay_input=parameters.decay_input,
            v_threshold=parameters.threshold,
            v_reset=0.0,
            surrogate_function=surrogate.ATan(alpha=alpha),
            detach_reset=True,
            step_mode="m",
        )

    def fire(self, name: str, current: Tensor) -> Tensor:
        """Return the spikes of all steps."""
        self.neurons[name].reset()
        return self.neurons[name](current)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return logits ``(B, C)``."""
        mask = attention_mask.unsqueeze(-1).to(self.model.dtype)
        embedded = self.embed(input_ids, mask)
        x = self.fire("embedding", embedded.expand(self.model.config.time_steps, *embedded.shape)) * mask
        for index, block in enumerate(self.model.spikebert.blocks):
            x = self.block(index, block, x, mask)
        return self.head(x, mask).mean(0)
