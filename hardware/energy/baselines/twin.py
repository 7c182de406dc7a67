"""The quantized twin: the dense network that a spiking one competes with, and what stands for each of its operators.

A row of `QUANTIZED_TWIN` says what the twin counts in place of an operator, and how it is computed in torch, where
another library counts its matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from export.errors import UnsupportedOperatorError
from export.network import Network, Node
from export.operators import (
    Affine,
    Convolution,
    Delay,
    Flatten,
    Heaviside,
    IntegerCurrentNeuron,
    IntegerIntegrator,
    IntegerLeakyIntegrateAndFire,
    LayerNorm,
    LeakyIntegrateAndFire,
    LeakyIntegrator,
    Operator,
    Pooling,
    PreviousStep,
    ResistiveNeuron,
    Scale,
    SpikeAttention,
    TokenMean,
    Total,
)
from export.operators.rules import Refusal, RuleTable, rule_for
from export.token_encoding import TokenEncoding
from hardware.energy.baselines import nodes
from hardware.energy.baselines.baseline import Baseline
from hardware.energy.baselines.nodes import DenseNode


@dataclass(frozen=True, eq=False)
class QuantizedTwin(Baseline):
    """The dense network that a spiking one of T steps competes with: its shape and weights, fewer bits.

    Every population of neurons becomes a quantizer to ceil(log2(T + 1)) bits, since T steps can say T + 1 rates; the T
    steps become one. Maps, norms, attention products (in the paper's order), residual sums and head stay. Every product
    is dense: no zero is skipped. Where time is more than a way to say rates, as in cycles and delays, there is no twin.

    Parameters
    ----------
    network : Network
        The spiking network.
    time_steps : int
        T.

    References
    ----------
    Yan, Bai, Tang and Wong 2024, arXiv 2409.08290.
    """

    network: Network
    time_steps: int
    name: str = "quantized"

    @property
    def activation_bits(self) -> int:  # type: ignore[override]
        """Bits that tell T + 1 rates apart."""
        return math.ceil(math.log2(self.time_steps + 1))

    @property
    def title(self) -> str:  # type: ignore[override]
        """What it is called in tables."""
        return f"same shape, dense, {self.activation_bits}-bit activations"

    @property
    def obstacle(self) -> str | None:  # type: ignore[override]
        """What stands against it: the first node that the table refuses, and why."""
        for node in self.network.nodes:
            row = QUANTIZED_TWIN.find(type(node.operator))
            if isinstance(row, Refusal):
                return f"{node.name} {row.reason}"
        return None

    def nodes(self, tokens: int) -> Iterator[DenseNode]:
        """Yield every node with what it does for one sentence of so many tokens.

        Raises
        ------
        UnsupportedOperatorError
            The network has an `obstacle`.
        """
        if self.obstacle is not None:
            raise UnsupportedOperatorError(f"no quantized twin: {self.obstacle}")
        for place in self._places(tokens):
            yield from rule_for(QUANTIZED_TWIN, place.node).count(place.node.operator, place)

    def dense_model(self, tokens: int) -> tuple[nn.Module, Tensor]:
        """Return the network in torch without weights, norms and neurons: they multiply no matrices."""
        has_tokens = self.network.token_encoding is not None
        shape = (1, tokens) if has_tokens else (1, tokens, self.network.input_features)
        inputs = torch.zeros(shape, dtype=torch.long if has_tokens else torch.float32, device="meta")
        return _DenseNetwork(self.network, self._places(tokens)), inputs

    def _places(self, tokens: int) -> Iterator[Place]:
        network = self.network
        behind_neurons: set[str] = set()
        for node in network.nodes:
            stage = "body" if behind_neurons.intersection(node.sources) else "input"
            if node.operator.spikes or stage == "body":
                behind_neurons.add(node.name)
            reads_words = network.token_encoding is not None and network.input_name in node.sources
            yield Place(
                node,
                rows=1 if network.pooled.issuperset(node.sources) else tokens,
                stage="head" if node.name in network.pooled else stage,
                encoding=network.token_encoding if reads_words else None,
            )


@dataclass(frozen=True)
class Place:
    """A node of the spiking network as its twin finds it.

    Attributes
    ----------
    node : Node
    rows : int
        How often it is executed in a sentence: once a token, or once behind a token mean.
    stage : str
        As of `NodeOperations`.
    encoding : TokenEncoding or None
        Where it reads words.
    """

    node: Node
    rows: int
    stage: str
    encoding: TokenEncoding | None

    @property
    def name(self) -> str:
        """Of the node."""
        return self.node.name


Count = Callable[[Any, Place], Iterable[DenseNode]]
CountType = TypeVar("CountType", bound=Count)


@dataclass(frozen=True)
class TwinRule:
    """What stands for an operator.

    Attributes
    ----------
    count : callable
        Gives the dense nodes from the operator and its place; none for wiring.
    in_torch : callable
        Gives a module of the same matrix products on the meta device, from the same.
    """

    count: Count
    in_torch: Callable[[Any, Place], nn.Module]


QUANTIZED_TWIN: RuleTable[TwinRule] = RuleTable("quantized twin")


def _no_product(operator: Operator, place: Place) -> nn.Module:
    return nn.Identity()


def twin_rule(
    *operators: type[Operator], in_torch: Callable[[Any, Place], nn.Module] = _no_product
) -> Callable[[CountType], CountType]:
    """Register what is decorated as what the twin counts for `operators`; see `TwinRule`."""

    def register(count: CountType) -> CountType:
        QUANTIZED_TWIN.set(TwinRule(count, in_torch), *operators)
        return count

    return register


def _affine_in_torch(operator: Affine, place: Place) -> nn.Module:
    if place.encoding is not None:
        return nn.Embedding(operator.in_features, operator.out_features, device="meta")
    return nn.Linear(operator.in_features, operator.out_features, operator.bias is not None, device="meta")


@twin_rule(Affine, in_torch=_affine_in_torch)
def _affine(operator: Affine, place: Place) -> Iterator[DenseNode]:
    if place.encoding is not None:
        encoding = place.encoding
        yield nodes.embedding(place.name, len(encoding.tables), encoding.width, operator.out_features, place.rows)
    else:
        widths = (operator.in_features, operator.out_features)
        yield nodes.affine(place.name, *widths, place.rows, operator.bias is not None, place.stage)


@twin_rule(Convolution, in_torch=lambda operator, place: _Convolved(operator))
def _convolution(operator: Convolution, place: Place) -> Iterator[DenseNode]:
    yield nodes.convolution(place.name, operator, place.rows, place.stage)


@twin_rule(Pooling, in_torch=lambda operator, place: _Narrowed(operator.out_features))
def _pooling(operator: Pooling, place: Place) -> Iterator[DenseNode]:
    yield nodes.pool(place.name, operator, place.rows, place.stage)


@twin_rule(LayerNorm)
def _layer_norm(operator: LayerNorm, place: Place) -> Iterator[DenseNode]:
    yield nodes.layer_norm(place.name, operator.out_features, place.rows, operator.groups, place.stage)


@twin_rule(SpikeAttention, in_torch=lambda operator, place: _Attention(operator))
def _attention(operator: SpikeAttention, place: Place) -> Iterator[DenseNode]:
    heads, head_size, width, rows = operator.num_heads, operator.head_size, operator.out_features, place.rows
    yield nodes.attention_product(f"{place.name}_scores", heads, 2 * head_size, heads * rows, width, rows)
    yield nodes.attention_product(f"{place.name}_values", heads, rows + head_size, width, width, rows)
    yield nodes.elementwise(f"{place.name}_scale", "attention_scale", "attention", width, {"mac": width}, rows)


@twin_rule(Total, in_torch=lambda operator, place: _Sum())
def _total(operator: Total, place: Place) -> Iterator[DenseNode]:
    yield nodes.residual_sum(place.name, operator.out_features, place.rows)


@twin_rule(TokenMean, in_torch=lambda operator, place: _TokenMean())
def _token_mean(operator: TokenMean, place: Place) -> Iterator[DenseNode]:
    yield nodes.token_mean(place.name, operator.out_features, place.rows)


@twin_rule(LeakyIntegrateAndFire, IntegerLeakyIntegrateAndFire, ResistiveNeuron, IntegerCurrentNeuron, Heaviside)
def _neurons(operator: Operator, place: Place) -> Iterator[DenseNode]:
    yield nodes.quantizer(place.name, operator.out_features, place.rows, place.stage)


@twin_rule(Scale)
def _scale(operator: Scale, place: Place) -> Iterator[DenseNode]:
    width = operator.out_features
    yield nodes.elementwise(place.name, operator.name, "synapses", width, {"mac": width}, place.rows, place.stage)


@twin_rule(LeakyIntegrator, IntegerIntegrator)
def _integrator(operator: Operator, place: Place) -> Iterator[DenseNode]:
    width = operator.out_features
    yield nodes.elementwise(place.name, operator.name, "nonlinearities", width, {"mac": width}, place.rows, place.stage)


@twin_rule(Flatten)
def _wiring(operator: Flatten, place: Place) -> Iterator[DenseNode]:
    return iter(())


QUANTIZED_TWIN.refuse(
    "carries what was sent to later steps, so that the T steps cannot become one", PreviousStep, Delay
)


class _DenseNetwork(nn.Module):
    """A network's matrix products in torch, on the meta device."""

    def __init__(self, network: Network, places: Iterable[Place]) -> None:
        super().__init__()
        self.network = network
        self.operators = nn.ModuleList(
            rule_for(QUANTIZED_TWIN, place.node).in_torch(place.node.operator, place) for place in places
        )

    def forward(self, inputs: Tensor) -> Tensor:
        values = {self.network.input_name: inputs}
        for node, operator in zip(self.network.nodes, self.operators, strict=True):
            values[node.name] = operator(*(values[source] for source in node.sources))
        return values[self.network.output_source]


class _Attention(nn.Module):
    """Both products, ``(1, N, 3 D)`` to ``(1, N, D)``."""

    def __init__(self, operator: SpikeAttention) -> None:
        super().__init__()
        self.heads = (3, operator.num_heads, operator.head_size)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = x.unflatten(-1, self.heads).permute(2, 0, 3, 1, 4)  # (B, H, N, head_size)
        return ((query @ key.transpose(-1, -2)) @ value).transpose(1, 2).flatten(-2)


class _Convolved(nn.Module):
    """A convolution of ``(1, N, in)`` with weights that hold no numbers; padded places are multiplied too."""

    def __init__(self, operator: Convolution) -> None:
        super().__init__()
        self.operator = operator

    def forward(self, x: Tensor) -> Tensor:
        operator = self.operator
        before_and_behind = [pad for axis in reversed(operator.padding) for pad in axis]
        convolve = functional.conv1d if len(operator.size) == 1 else functional.conv2d
        picture = x[0].unflatten(-1, operator.in_shape)
        y = convolve(
            functional.pad(picture, before_and_behind) if any(before_and_behind) else picture,
            torch.empty(operator.weight.shape, device="meta"),
            stride=operator.stride,
            dilation=operator.dilation,
            groups=operator.groups,
        )
        return y.flatten(1).unsqueeze(0)


class _Narrowed(nn.Module):
    """What has the width of a pool's output; a pool multiplies no matrices."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return x[..., : self.width]


class _Sum(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class _TokenMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(-2, keepdim=True)
