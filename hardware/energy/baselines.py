"""What a spiking network is compared with: dense transformers, and a quantized network of its own shape.

A baseline is counted with the kinds of `hardware.energy.operation_counts`, so that every energy model prices it as it
prices the spiking side, and attention products, softmax, GELU and layer norms are on both bills. Its matrix products
are counted twice: by a closed formula, which is quick and names every node, and by a library while the real
architecture runs without weights (`Baseline.library_macs`). Tests and ``benchmarks/energy.py`` hold one against the
other.

Layer norms, affine maps, convolutions, pools, biases, gathers, residual sums and token means are charged exactly as
`operation_counts` does on numbers that are no spikes. Flattening is wiring.
For what the spiking side does not have, each token (``D`` features, ``H`` heads, ``N`` tokens) is charged:

=================== ================================================================================================
node                operations
=================== ================================================================================================
attention products  ``N D`` mac each, and ``H N`` and ``D`` activation_write; a model that charges memory reads both
                    factors of every mac from a memory that holds one head's, as the spiking side's map is one head's
softmax             for each of its ``H N`` entries 2 mac (1/sqrt(d), and the reciprocal of the sum), 2 addition (less
                    the maximum, and the sum), a comparison (the maximum) and a special (exponential); a special
                    (reciprocal) for each of ``H`` rows
GELU                2 mac, 1 addition and 1 special (erf) a feature
tanh, ReLU          1 special, or 1 comparison, a feature, once a sentence
quantizer           1 mac (to the scale of its steps) and 1 comparison (rounding, clipping) a feature
scale, integrator   1 mac a feature
=================== ================================================================================================
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from export.errors import UnsupportedOperatorError
from export.network import Network, Node
from export.operators import (
    Affine,
    Convolution,
    Delay,
    Flatten,
    IntegerIntegrator,
    LayerNorm,
    LeakyIntegrator,
    Pooling,
    PreviousStep,
    Scale,
    SpikeAttention,
    TokenMean,
    Total,
)
from hardware.energy.foreign_counts import biased_outputs, convolution_fan_out, pooling_fan_out
from hardware.energy.operation_counts import NodeOperations, OperationCounts, Split, Tally
from spikebert.errors import ConfigurationError, MissingDependencyError

FLOPS_PER_MAC = 2
"""What torch's FlopCounterMode counts for one multiply-accumulate; fvcore counts one."""

Row = tuple[NodeOperations, Tally]
"""A node, and what it does in one sentence."""


class Baseline(ABC):
    """A dense network to compare with.

    Attributes
    ----------
    name, title : str
        On the command line, and in tables.
    activation_bits : int or None
        Width of what it multiplies weights with; None for the precision of the energy model.
    obstacle : str or None
        Why there is no such network, so that nothing can be counted.
    """

    name: str
    title: str
    activation_bits: int | None = None
    obstacle: str | None = None

    @abstractmethod
    def rows(self, tokens: int) -> Iterator[Row]:
        """Yield every node with what it does for one sentence of so many tokens."""

    @abstractmethod
    def dense_model(self, tokens: int) -> tuple[nn.Module, Tensor]:
        """Return the network in torch on the meta device, and token ids ``(1, N)`` or inputs ``(1, N, D)`` for it."""

    def count(self, lengths: Iterable[int]) -> OperationCounts:
        """Count what the network does for sentences of these lengths, padding none of them.

        Parameters
        ----------
        lengths : iterable of int
            Tokens of each sentence.

        Returns
        -------
        OperationCounts
            Sums over all sentences, as `count_operations` gives them, of one step a sentence.

        Raises
        ------
        ConfigurationError
            There is no sentence, or one has no token.
        """
        sentences = Counter(lengths)
        if not sentences or min(sentences) < 1:
            raise ConfigurationError("a baseline is counted for sentences of at least one token")
        nodes: dict[str, NodeOperations] = {}
        for tokens, repeated in sorted(sentences.items(), reverse=True):  # nodes have the longest sentence's widths
            for node, tally in self.rows(tokens):
                counts = nodes.setdefault(node.name, replace(node, counts=Split())).counts
                counts.add(Split({kind: repeated * count for kind, count in tally.items()}))
        return OperationCounts(
            nodes=nodes,
            sentences=sentences.total(),
            sentence_steps=sentences.total(),
            real_tokens=sum(tokens * repeated for tokens, repeated in sentences.items()),
            padding_tokens=0,
            longest_sentence=max(sentences),
            depth=0,
        )

    def macs(self, tokens: int) -> int:
        """Return the MACs of all matrix products for one sentence, by the closed formula."""
        return sum(tally.get("dense_mac", 0) for _, tally in self.rows(tokens))

    def library_macs(self, tokens: int) -> int:
        """Return the same, counted by torch's FlopCounterMode.

        Attention is eager, since the counter misses fused attention on the CPU.

        Raises
        ------
        MissingDependencyError
            The architecture cannot be built.
        """
        model, inputs = self.dense_model(tokens)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(inputs)
        return counter.get_total_flops() // FLOPS_PER_MAC

    def fvcore_macs(self, tokens: int) -> int:
        """Return the same, counted by fvcore.

        Its five operations an element of each layer norm are left out: they are no matrix product. It cannot trace
        convolutions without weights.

        Raises
        ------
        MissingDependencyError
            fvcore is not installed, or the architecture cannot be built.
        """
        try:
            from fvcore.nn import FlopCountAnalysis
        except ImportError as error:
            raise MissingDependencyError("the second opinion on FLOPs needs fvcore (pip install fvcore)") from error
        analysis = FlopCountAnalysis(*self.dense_model(tokens))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return int(sum(count for kind, count in analysis.by_operator().items() if kind != "layer_norm"))


@dataclass(frozen=True)
class TransformerBaseline(Baseline):
    """An encoder of the BERT family with its head for classification.

    Parameters
    ----------
    name, title : str
    family : {"bert", "distilbert"}
        DistilBERT knows no segments, and its pooler ends in a ReLU in place of a tanh.
    layers, hidden_size, heads, intermediate_size, vocabulary : int
    source : str
        Where the shape is written down.
    positions, labels : int
    """

    name: str
    title: str
    family: Literal["bert", "distilbert"]
    layers: int
    hidden_size: int
    heads: int
    intermediate_size: int
    vocabulary: int
    source: str
    positions: int = 512
    labels: int = 2

    @property
    def parameters(self) -> int:
        """Number of weights and biases."""
        return sum(node.parameters for node, _ in self.rows(1))

    def rows(self, tokens: int) -> Iterator[Row]:
        """Yield every node with what it does for one sentence of so many tokens."""
        width, wide, entries = self.hidden_size, self.intermediate_size, self.heads * tokens
        head_size = width // self.heads
        segments = 2 if self.family == "bert" else 0
        tables = [self.vocabulary, self.positions, segments] if segments else [self.vocabulary, self.positions]
        yield _embedding("embedding", len(tables), sum(tables), width, tokens)
        yield _layer_norm("embedding_norm", width, tokens, stage="input")
        for index in range(self.layers):
            prefix = f"layer{index:02d}_"
            yield _affine(f"{prefix}qkv_affine", width, 3 * width, tokens)
            yield _product(f"{prefix}attention_scores", self.heads, 2 * head_size, entries, width, tokens)
            yield _elementwise(f"{prefix}softmax", "softmax", entries, _softmax(entries, self.heads), tokens)
            yield _product(f"{prefix}attention_values", self.heads, tokens + head_size, width, width, tokens)
            yield _affine(f"{prefix}projection_affine", width, width, tokens)
            yield _residual(f"{prefix}projection_stream", width, tokens)
            yield _layer_norm(f"{prefix}projection_norm", width, tokens)
            yield _affine(f"{prefix}intermediate_affine", width, wide, tokens)
            yield _elementwise(
                f"{prefix}gelu", "gelu", wide, {"mac": 2 * wide, "addition": wide, "special": wide}, tokens
            )
            yield _affine(f"{prefix}output_affine", wide, width, tokens)
            yield _residual(f"{prefix}output_stream", width, tokens)
            yield _layer_norm(f"{prefix}output_norm", width, tokens)
        yield _affine("pooler", width, width, 1, stage="head")
        if self.family == "bert":
            yield _elementwise("pooler_tanh", "tanh", width, {"special": width}, 1, stage="head")
        else:
            yield _elementwise("pooler_relu", "relu", width, {"comparison": width}, 1, stage="head")
        yield _affine("classifier", width, self.labels, 1, stage="head")

    def dense_model(self, tokens: int) -> tuple[nn.Module, Tensor]:
        """Return the transformers model without weights, its attention eager, and token ids."""
        return _transformer(self), torch.zeros(1, tokens, dtype=torch.long, device="meta")


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
        """Why time steps cannot become one: the first node that carries something from step to step."""
        for node in self.network.nodes:
            if isinstance(node.operator, PreviousStep | Delay):
                return f"{node.name} carries what was sent to later steps, so that the T steps cannot become one"
        return None

    def rows(self, tokens: int) -> Iterator[Row]:
        """Yield every node with what it does for one sentence of so many tokens.

        Raises
        ------
        UnsupportedOperatorError
            The network has an `obstacle`.
        """
        if self.obstacle is not None:
            raise UnsupportedOperatorError(f"no quantized twin: {self.obstacle}")
        pooled = self.network.pooled
        behind_neurons: set[str] = set()
        for node in self.network.nodes:
            stage = "body" if behind_neurons.intersection(node.sources) else "input"
            if node.operator.spikes or stage == "body":
                behind_neurons.add(node.name)
            is_behind_mean = node.name in pooled and not isinstance(node.operator, TokenMean)
            yield from self._rows_of(node, 1 if is_behind_mean else tokens, "head" if node.name in pooled else stage)

    def _rows_of(self, node: Node, rows: int, stage: str) -> Iterator[Row]:
        operator, name, width = node.operator, node.name, node.operator.out_features
        encoding = self.network.token_encoding
        if isinstance(operator, Affine) and encoding is not None and node.sources[0] == self.network.input_name:
            yield _embedding(name, len(encoding.tables), encoding.width, width, rows)
        elif isinstance(operator, Affine):
            yield _affine(name, operator.in_features, width, rows, operator.bias is not None, stage)
        elif isinstance(operator, LayerNorm):
            yield _layer_norm(name, width, rows, operator.groups, stage)
        elif isinstance(operator, SpikeAttention):
            heads, head_size = operator.num_heads, operator.head_size
            yield _product(f"{name}_scores", heads, 2 * head_size, heads * rows, width, rows)
            yield _product(f"{name}_values", heads, rows + head_size, width, width, rows)
            yield _elementwise(f"{name}_scale", "attention_scale", width, {"mac": width}, rows)
        elif isinstance(operator, Total):
            yield _residual(name, width, rows)
        elif isinstance(operator, TokenMean):
            yield _token_mean(name, width, rows)
        elif operator.spikes:
            yield _elementwise(name, "quantizer", width, {"mac": width, "comparison": width}, rows, stage)
        elif isinstance(operator, Convolution):
            yield _convolution(name, operator, rows, stage)
        elif isinstance(operator, Pooling):
            yield _pooling(name, operator, rows, stage)
        elif isinstance(operator, Scale | LeakyIntegrator | IntegerIntegrator):
            yield _elementwise(name, operator.name, width, {"mac": width}, rows, stage)
        elif not isinstance(operator, Flatten):  # which is wiring
            raise UnsupportedOperatorError(f"{name}: nobody has said what a quantized {operator.name} costs")

    def dense_model(self, tokens: int) -> tuple[nn.Module, Tensor]:
        """Return the network in torch without weights, norms and neurons: they multiply no matrices."""
        has_tokens = self.network.token_encoding is not None
        shape = (1, tokens) if has_tokens else (1, tokens, self.network.input_features)
        inputs = torch.zeros(shape, dtype=torch.long if has_tokens else torch.float32, device="meta")
        return _DenseNetwork(self.network), inputs


_BERT = "Devlin et al. 2019, arXiv 1810.04805, and the vocabularies published with it"
_TINYBERT = "Jiao et al. 2020, arXiv 1909.10351"
_DISTILBERT = "Sanh et al. 2019, arXiv 1910.01108"
_MINILM = "config.json of all-MiniLM-L6-v2, from which the shipped checkpoint was distilled"

BASELINES: dict[str, TransformerBaseline] = {
    baseline.name: baseline
    for baseline in (
        TransformerBaseline("bert-base-cased", "BERT-base, cased English", "bert", 12, 768, 12, 3072, 28996, _BERT),
        TransformerBaseline("bert-base-uncased", "BERT-base, uncased English", "bert", 12, 768, 12, 3072, 30522, _BERT),
        TransformerBaseline("bert-base-chinese", "BERT-base, Chinese", "bert", 12, 768, 12, 3072, 21128, _BERT),
        TransformerBaseline("distilbert", "DistilBERT, 6 layers", "distilbert", 6, 768, 12, 3072, 30522, _DISTILBERT),
        TransformerBaseline("distilbert-4", "DistilBERT, 4 layers", "distilbert", 4, 768, 12, 3072, 30522, _TINYBERT),
        TransformerBaseline("tinybert-6", "TinyBERT, 6 layers", "bert", 6, 768, 12, 3072, 30522, _TINYBERT),
        TransformerBaseline("tinybert-4", "TinyBERT, 4 layers", "bert", 4, 312, 12, 1200, 30522, _TINYBERT),
        TransformerBaseline("minilm-6", "MiniLM, 6 layers (the teacher)", "bert", 6, 384, 12, 1536, 30522, _MINILM),
    )
}
"""Transformers by name. A vocabulary decides memory, not MACs: embeddings are gathered."""


def find_baseline(name: str, network: Network, time_steps: int) -> Baseline:
    """Return the baseline called `name`: one of `BASELINES`, or ``quantized`` for the twin of `network`.

    Raises
    ------
    ConfigurationError
        No baseline has that name.
    """
    if name == QuantizedTwin.name:
        return QuantizedTwin(network, time_steps)
    if name not in BASELINES:
        raise ConfigurationError(
            f"baseline {name!r} is not known; choose one of {', '.join(BASELINES)}, {QuantizedTwin.name}"
        )
    return BASELINES[name]


@functools.lru_cache(maxsize=len(BASELINES))
def _transformer(shape: TransformerBaseline) -> nn.Module:
    """Return a transformers model of this shape on the meta device, where it takes no memory."""
    try:
        import transformers

        kind = "Bert" if shape.family == "bert" else "DistilBert"
        configuration = getattr(transformers, f"{kind}Config")
        architecture = getattr(transformers, f"{kind}ForSequenceClassification")
    except (ImportError, RuntimeError) as error:
        raise MissingDependencyError(
            f"transformers cannot load {shape.family}, whose operations were to be counted: {_first_cause(error)}"
        ) from error
    config = configuration(
        vocab_size=shape.vocabulary,
        max_position_embeddings=shape.positions,
        num_labels=shape.labels,
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden_size,
        num_attention_heads=shape.heads,
        attn_implementation="eager",
        **{"intermediate_size" if shape.family == "bert" else "hidden_dim": shape.intermediate_size},
    )
    with torch.device("meta"):
        return _Logits(architecture(config)).eval()


def _times(rows: int, **each: int) -> Tally:
    return {kind: rows * count for kind, count in each.items()}


def _embedding(name: str, gathered: int, inputs: int, width: int, rows: int) -> Row:
    return (
        NodeOperations(name, "affine", "tokens", "input", inputs, width, inputs * width),
        _times(rows, embedding_read=gathered * width, addition=(gathered - 1) * width),
    )


def _affine(name: str, fan_in: int, fan_out: int, rows: int, bias: bool = True, stage: str = "body") -> Row:
    tally = _times(
        rows,
        mac=fan_in * fan_out,
        dense_mac=fan_in * fan_out,
        weight_read=fan_in * fan_out,
        activation_read=fan_in,
        activation_write=fan_out,
        addition=fan_out * bias,
        parameter_read=fan_out * bias,
    )
    return NodeOperations(name, "affine", "analog", stage, fan_in, fan_out, fan_in * fan_out + fan_out * bias), tally


def _convolution(name: str, operator: Convolution, rows: int, stage: str) -> Row:
    width_in, width_out, biased = operator.in_features, operator.out_features, biased_outputs(operator)
    products = int(convolution_fan_out(operator).sum())
    tally = _times(
        rows,
        mac=products,
        dense_mac=products,
        weight_read=products,
        activation_read=width_in,
        activation_write=width_out,
        addition=biased,
        parameter_read=biased,
    )
    parameters = operator.weight.size + operator.bias.size
    return NodeOperations(name, operator.name, "analog", stage, width_in, width_out, parameters), tally


def _pooling(name: str, operator: Pooling, rows: int, stage: str) -> Row:
    width_in, width_out = operator.in_features, operator.out_features
    tally = _times(
        rows,
        addition=int(pooling_fan_out(operator).sum()),
        mac=width_out if operator.mean else 0,
        activation_read=width_in,
        activation_write=width_out,
    )
    return NodeOperations(name, operator.name, "analog", stage, width_in, width_out), tally


def _layer_norm(name: str, width: int, rows: int, groups: int = 1, stage: str = "body") -> Row:
    tally = _times(
        rows,
        mac=3 * width + 2 * groups,
        addition=2 * width + groups,
        special=2 * groups,
        parameter_read=2 * width,
        activation_read=3 * width,
        activation_write=width,
    )
    return NodeOperations(name, "layer_norm", "analog", stage, width, width, 2 * width), tally


def _product(name: str, heads: int, fan_in: int, fan_out: int, width: int, tokens: int) -> Row:
    """Return one of the two products of attention: all heads share `width`, so it has ``N D`` MACs a token.

    `fan_in` are the numbers a token brings into one head's product, which is what lies in memory at a time.
    """
    macs = tokens * width
    tally = _times(tokens, mac=macs, dense_mac=macs, activation_write=fan_out)
    return NodeOperations(name, "attention_product", "analog", "body", fan_in, fan_out, heads=heads), tally


def _softmax(entries: int, heads: int) -> Tally:
    return {"mac": 2 * entries, "addition": 2 * entries, "comparison": entries, "special": entries + heads}


def _elementwise(name: str, operator: str, width: int, each: Tally, rows: int, stage: str = "body") -> Row:
    tally = _times(rows, **each, activation_read=width, activation_write=width)
    return NodeOperations(name, operator, "analog", stage, width, width), tally


def _residual(name: str, width: int, rows: int) -> Row:
    return NodeOperations(name, "total", "analog", "body", width, width), _times(rows, residual_addition=width)


def _token_mean(name: str, width: int, tokens: int) -> Row:
    tally = _times(tokens, addition=width, activation_read=width)
    tally.update(mac=width, special=1, activation_write=width)
    return NodeOperations(name, "token_mean", "analog", "head", width, width), tally


def _first_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


class _Logits(nn.Module):
    """A transformers model that takes and returns one tensor, which is what fvcore can trace."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids=input_ids).logits


class _DenseNetwork(nn.Module):
    """A network's maps and attention products in torch, on the meta device."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.maps = nn.ModuleDict(
            {
                node.name: nn.Linear(
                    node.operator.in_features, node.operator.out_features, node.operator.bias is not None, device="meta"
                )
                for node in network.nodes
                if isinstance(node.operator, Affine) and not self._gathers(node)
            }
        )

    def _gathers(self, node: Node) -> bool:
        return self.network.token_encoding is not None and node.sources[0] == self.network.input_name

    def forward(self, inputs: Tensor) -> Tensor:
        values = {self.network.input_name: inputs}
        for node in self.network.nodes:
            operator = node.operator
            x = values[node.sources[0]]
            if isinstance(operator, Affine) and self._gathers(node):
                table = torch.empty(operator.in_features, operator.out_features, device="meta")
                x = functional.embedding(x, table)
            elif isinstance(operator, Affine):
                x = self.maps[node.name](x)
            elif isinstance(operator, SpikeAttention):
                heads = x.unflatten(-1, (3, operator.num_heads, operator.head_size))
                query, key, value = heads.permute(2, 0, 3, 1, 4)  # (B, H, N, head_size)
                x = ((query @ key.transpose(-1, -2)) @ value).transpose(1, 2).flatten(-2)
            elif isinstance(operator, Convolution):
                x = _convolved(operator, x)
            elif isinstance(operator, Pooling):
                x = x[..., : operator.out_features]  # multiplies no matrices
            elif isinstance(operator, Total):
                x = x + values[node.sources[1]]
            elif isinstance(operator, TokenMean):
                x = x.mean(-2, keepdim=True)
            values[node.name] = x
        return values[self.network.output_source]


def _convolved(operator: Convolution, x: Tensor) -> Tensor:
    """Return a convolution of ``(1, N, in)`` with weights that hold no numbers; padded places are multiplied too."""
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
