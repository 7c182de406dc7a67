"""From operation counts to energy: models chosen by name, each figure with its source.

A model is data plus one small function, `EnergyModel.charge`, that says what one node's operations cost. Most models
are a table of picojoules a kind of operation (`PriceTable`); users add theirs as a JSON or TOML file:

    {"name": "my-chip", "source": "datasheet, page 7", "precision": "int8, 32-bit sums",
     "picojoules": {"ac_binary": 0.11, "ac_graded": 0.3, "mac": 0.3, "weight_read": {"value": 5.0, "source": "page 9"}}}

Every estimate says what it is: an estimate, on which basis, at which precision, with or without memory, and which
operations the model has no figure for.
"""

from __future__ import annotations

import json
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import nir

if sys.version_info >= (3, 11):
    import tomllib
else:  # the standard library has it from 3.11 on
    import tomli as tomllib

from export.network import Network
from export.nir_graph.reader import parse_graph
from hardware.energy.errors import EnergyModelError
from hardware.energy.operation_counts import (
    ATTENTION_ORDERS,
    OPERATION_KINDS,
    STATISTIC_KINDS,
    NodeOperations,
    OperationCounts,
    Tally,
    count_operations,
)
from hardware.trace import Trace

PICOJOULES_PER_MILLIJOULE = 1e9
JOULES_PER_MILLIJOULE = 1e-3
GRADED = ("additions", "multi_bit")
"""How an accumulate by an integer k is charged: as k additions, or as one multi-bit operation."""

HOROWITZ = "Horowitz 2014, ISSCC, 'Computing's energy problem', 45 nm, 0.9 V"


@dataclass(frozen=True)
class Price:
    """Energy of one operation.

    Attributes
    ----------
    picojoules : float
    source : str
        Where the figure is from; it begins with "assumed" where nobody measured it.
    """

    picojoules: float
    source: str


@dataclass(frozen=True)
class Timing:
    """How long a sentence takes on a model that has time. An estimate as the energy is.

    Attributes
    ----------
    steps : float
        Time steps from the first spike in to the last one out.
    seconds_per_step, seconds : float
        Of a step; of a sentence.
    sentences_per_second, pipelined_sentences_per_second : float
        Throughput one sentence at a time, and with a new one as soon as the first layer is done with the last.
    static_mj : float
        Static power over `seconds`, in mJ; it is part of the estimate's total.
    energy_delay_product : float
        Energy of a sentence times `seconds`, in J s.
    basis : str
    cores, chips : int or None
        What the network takes of the hardware, where the model says.
    placement : str
        Where cores and chips are from: ``placed: …``, or ``best case: …, because …``.
    """

    steps: float
    seconds_per_step: float
    seconds: float
    sentences_per_second: float
    pipelined_sentences_per_second: float
    static_mj: float
    energy_delay_product: float
    basis: str
    cores: int | None = None
    chips: int | None = None
    placement: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return dict(vars(self))


@dataclass(frozen=True)
class EnergyModel(ABC):
    """What operations cost. Subclasses say it for one node at a time.

    Attributes
    ----------
    name : str
    source : str
        Where the figures are from.
    precision : str
        Of weights, sums and states.
    technology : str
        Process the figures hold for.
    includes_memory : bool
        Whether reading and writing memory is charged.
    basis : str
        What is charged and what is not, in a sentence.
    """

    name: str
    source: str
    precision: str
    technology: str = ""
    includes_memory: bool = False
    basis: str = ""

    @abstractmethod
    def charge(self, node: NodeOperations, operations: Tally, counts: OperationCounts) -> dict[str, float]:
        """Return what a node's operations cost, in pJ by kind.

        Parameters
        ----------
        node : NodeOperations
            Which node, and its shapes.
        operations : dict of str to int
            Its counts at real tokens, or at padding.
        counts : OperationCounts
            The whole run, for sizes of memories.
        """

    @abstractmethod
    def priced(self, node: NodeOperations) -> frozenset[str]:
        """Return the kinds of operation this model has a figure for at a node; the estimate lists the others."""

    def for_network(self, network: Network, tokens: int) -> EnergyModel:
        """Return the model as it prices one network, for sentences of up to so many tokens.

        A model of a chip places the network on it; most models price every network alike and return themselves.
        """
        return self

    def timing(self, counts: OperationCounts, dynamic_mj: float) -> Timing | None:
        """Return how long a sentence takes, where the model has time; `dynamic_mj` is its energy without static."""
        return None

    def variants(self) -> dict[str, EnergyModel]:
        """Return the same model under its other readings, for the estimate to show beside this one."""
        return {}


@dataclass(frozen=True)
class PriceTable(EnergyModel):
    """A model that is a table: each kind of operation has a price, wherever it happens.

    Attributes
    ----------
    prices : dict of str to Price
        By kind of `OPERATION_KINDS`.
    graded : {"additions", "multi_bit"}
        Which of ac_graded_additions and ac_graded is charged; the other reading is a variant.
    """

    prices: Mapping[str, Price] = field(default_factory=dict)
    graded: str = "additions"

    def __post_init__(self) -> None:
        """Check names and figures."""
        if self.graded not in GRADED:
            raise EnergyModelError(f"{self.name}: graded is {self.graded!r}; choose one of {', '.join(GRADED)}")
        for kind, price in self.prices.items():
            if kind not in OPERATION_KINDS:
                raise EnergyModelError(
                    f"{self.name}: {kind!r} is no kind of operation; known are {', '.join(OPERATION_KINDS)}"
                )
            if not (math.isfinite(price.picojoules) and price.picojoules >= 0):
                raise EnergyModelError(
                    f"{self.name}: {kind} costs {price.picojoules} pJ; it must be finite and not < 0"
                )
        if not self.prices:
            raise EnergyModelError(f"{self.name}: has no price at all")

    def charge(self, node: NodeOperations, operations: Tally, counts: OperationCounts) -> dict[str, float]:
        """Return count times price."""
        return self.picojoules(operations)

    def picojoules(self, operations: Mapping[str, int]) -> dict[str, float]:
        """Return count times price for any operations, of this network or of another, in pJ by kind.

        Examples
        --------
        >>> energy_model("horowitz-int8").picojoules({"mac": 11_170_000_000})
        """
        skipped = "ac_graded" if self.graded == "additions" else "ac_graded_additions"
        return {
            kind: count * self.prices[kind].picojoules
            for kind, count in operations.items()
            if kind in self.prices and kind != skipped
        }

    def priced(self, node: NodeOperations) -> frozenset[str]:
        """Return the kinds in the table; either form of a graded accumulate covers both."""
        chosen = "ac_graded_additions" if self.graded == "additions" else "ac_graded"
        both = {"ac_graded", "ac_graded_additions"}
        return frozenset(self.prices) - both | (both if chosen in self.prices else set())

    def variants(self) -> dict[str, EnergyModel]:
        """Return the other reading of graded accumulates, where the table has a price for it."""
        other = GRADED[1 - GRADED.index(self.graded)]
        needed = "ac_graded" if other == "multi_bit" else "ac_graded_additions"
        return {f"graded_as_{other}": replace(self, graded=other)} if needed in self.prices else {}


@dataclass(frozen=True)
class EnergyEstimate:
    """An estimate of energy, with everything needed to judge it.

    Energies are mJ a sentence, the mean over all sentences counted.

    Attributes
    ----------
    model, source, precision, technology, basis : str
        From the model.
    includes_memory : bool
    energy_mj : float
        At real tokens, with static power where the model has it.
    padding_mj : float
        What padding adds to that.
    by_node, by_kind : dict of str to float
        `energy_mj` taken apart.
    alternatives_mj : dict of str to float
        `energy_mj` under the other readings of what the model leaves open, and in the other order of attention.
    unpriced : dict of str to int
        Operations at real tokens, of all sentences, that the model has no figure for: they are not in the energy.
    sentences, real_tokens, padding_tokens : int
    timing : Timing or None
    partly_unpriced : tuple of str
        Kinds of `unpriced` that the model has a figure for at other nodes.
    """

    model: str
    source: str
    precision: str
    technology: str
    basis: str
    includes_memory: bool
    energy_mj: float
    padding_mj: float
    by_node: Mapping[str, float]
    by_kind: Mapping[str, float]
    alternatives_mj: Mapping[str, float]
    unpriced: Mapping[str, int]
    sentences: int
    real_tokens: int
    padding_tokens: int
    timing: Timing | None = None
    partly_unpriced: tuple[str, ...] = ()

    @property
    def total_energy_mj(self) -> float:
        """`energy_mj` of all sentences together."""
        return self.energy_mj * self.sentences

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            **{key: value for key, value in vars(self).items() if not isinstance(value, Mapping)},
            **{key: dict(value) for key, value in vars(self).items() if isinstance(value, Mapping)},
            "tokens": {"real": self.real_tokens, "padding": self.padding_tokens},
            "timing": self.timing.to_dict() if self.timing else None,
        }

    as_json = to_dict


def estimate_energy(
    trace: Trace | OperationCounts,
    graph: nir.NIRGraph | Network | None = None,
    model: str | Path | EnergyModel = "paper",
) -> EnergyEstimate:
    """Estimate the energy of a run under a model.

    Parameters
    ----------
    trace : Trace or OperationCounts
        What ran; counts where it was counted already, or streamed.
    graph : nir.NIRGraph or Network, optional
        The graph that ran; needed with a trace. A model of a chip places it; see `EnergyModel.for_network`, which
        whoever prices counts several times calls once.
    model : str, Path or EnergyModel
        A name of `ENERGY_MODELS`, a .json or .toml file, or a model.

    Raises
    ------
    EnergyModelError
        The model is not known, its file does not describe one, or a trace came without its graph.
    TraceMismatchError
        Trace and graph do not belong together.

    Examples
    --------
    >>> estimate_energy(trace, graph, model="horowitz-int8").energy_mj
    """
    chosen = energy_model(model)
    network = parse_graph(graph) if isinstance(graph, nir.NIRGraph) else graph
    if isinstance(trace, OperationCounts):
        counts = trace
    elif network is None:
        raise EnergyModelError("a trace needs its graph to be counted; give graph, or counts in place of the trace")
    else:
        counts = count_operations(trace, network)
    if network is not None:
        chosen = chosen.for_network(network, counts.longest_sentence)
    by_node, by_kind = _charge(chosen, counts, "real")
    dynamic = sum(by_node.values())
    timing = chosen.timing(counts, dynamic)
    if timing is not None:
        by_kind["static"] = timing.static_mj
    alternatives = {name: _energy(variant, counts) for name, variant in chosen.variants().items()}
    counted = {
        order for node in counts.nodes.values() if "attention_add" in chosen.priced(node) for order in node.orders
    }
    for order in ATTENTION_ORDERS:
        if order in counted and order != counts.attention_order:
            alternatives[f"attention_{order}"] = _energy(chosen, counts.with_attention_order(order))
    return EnergyEstimate(
        model=chosen.name,
        source=chosen.source,
        precision=chosen.precision,
        technology=chosen.technology,
        basis=f"estimate, not a measurement: {chosen.basis}",
        includes_memory=chosen.includes_memory,
        energy_mj=dynamic + (timing.static_mj if timing else 0.0),
        padding_mj=sum(_charge(chosen, counts, "padding")[0].values()),
        by_node=by_node,
        by_kind=by_kind,
        alternatives_mj=alternatives,
        unpriced=_unpriced(chosen, counts),
        partly_unpriced=_partly_unpriced(chosen, counts),
        sentences=counts.sentences,
        real_tokens=counts.real_tokens,
        padding_tokens=counts.padding_tokens,
        timing=timing,
    )


def _charge(model: EnergyModel, counts: OperationCounts, tokens: str) -> tuple[dict[str, float], dict[str, float]]:
    """Return mJ a sentence by node and by kind, at ``real`` tokens or at ``padding``."""
    by_node: dict[str, float] = {}
    by_kind: dict[str, float] = {}
    for name, node in counts.nodes.items():
        charged = model.charge(node, getattr(node, tokens), counts)
        for kind, picojoules in charged.items():
            if picojoules:
                millijoules = picojoules / PICOJOULES_PER_MILLIJOULE / counts.sentences
                by_kind[kind] = by_kind.get(kind, 0.0) + millijoules
                by_node[name] = by_node.get(name, 0.0) + millijoules
    return by_node, by_kind


def _energy(model: EnergyModel, counts: OperationCounts) -> float:
    dynamic = sum(_charge(model, counts, "real")[0].values())
    timing = model.timing(counts, dynamic)
    return dynamic + (timing.static_mj if timing else 0.0)


def _unpriced(model: EnergyModel, counts: OperationCounts) -> dict[str, int]:
    missing: Tally = {}
    for node in counts.nodes.values():
        for kind, count in node.real.items():
            if kind not in model.priced(node) and kind not in STATISTIC_KINDS:
                missing[kind] = missing.get(kind, 0) + count
    return missing


def _partly_unpriced(model: EnergyModel, counts: OperationCounts) -> tuple[str, ...]:
    priced = {kind for node in counts.nodes.values() for kind in node.real if kind in model.priced(node)}
    return tuple(kind for kind in _unpriced(model, counts) if kind in priced)


def energy_model(model: str | Path | EnergyModel) -> EnergyModel:
    """Return a model by name or from its file.

    Raises
    ------
    EnergyModelError
        There is no such model.
    """
    if isinstance(model, EnergyModel):
        return model
    models = energy_models()
    if str(model) in models:
        return models[str(model)]
    if Path(model).suffix in (".json", ".toml"):
        return load_energy_model(model)
    raise EnergyModelError(
        f"energy model {str(model)!r} is not known; choose one of {', '.join(models)}, or give a .json or .toml file"
    )


def energy_models() -> dict[str, EnergyModel]:
    """Return the models that come with the package, by name."""
    from hardware.energy.loihi1 import LOIHI1
    from hardware.energy.memory import MEMORY, MEMORY_INT8
    from hardware.energy.paper import PAPER

    return {model.name: model for model in (PAPER, *HOROWITZ_MODELS, MEMORY, MEMORY_INT8, LOIHI1)}


def load_energy_model(path: str | Path) -> PriceTable:
    """Read a model from a JSON or TOML file; the head of this module shows one.

    Keys are ``name``, ``source``, ``precision`` and ``picojoules`` (kind -> pJ, or -> {value, source}), and optionally
    ``technology``, ``includes_memory``, ``basis`` and ``graded``.

    Raises
    ------
    EnergyModelError
        The file cannot be read, lacks a key, or has one that means nothing.
    """
    path = Path(path)
    fields = _read_fields(path)
    required = {"name": str, "source": str, "precision": str, "picojoules": dict}
    optional = {"technology": str, "includes_memory": bool, "basis": str, "graded": str}
    for key in required:
        if key not in fields:
            raise EnergyModelError(f"{path}: has no {key!r}; it needs {', '.join(required)}")
    for key, value in fields.items():
        kind = {**required, **optional}.get(key)
        if kind is None:
            raise EnergyModelError(f"{path}: {key!r} means nothing; known are {', '.join({**required, **optional})}")
        if not isinstance(value, kind) or not (value or kind is bool):
            raise EnergyModelError(f"{path}: {key} is {value!r}; expected {kind.__name__}, not empty")
    given = fields.pop("picojoules")
    prices = {kind: _read_price(f"{path}: picojoules.{kind}", value, fields["source"]) for kind, value in given.items()}
    fields.setdefault("basis", f"count times price, from {path.name}; kinds without a price cost nothing")
    try:
        return PriceTable(**fields, prices=prices)
    except EnergyModelError as error:
        raise EnergyModelError(f"{path}: {error}") from error


def _read_fields(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        fields = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError) as error:  # both parsers raise a ValueError
        raise EnergyModelError(f"{path}: cannot be read as an energy model: {error}") from error
    if not isinstance(fields, dict):
        raise EnergyModelError(f"{path}: holds {type(fields).__name__}; expected an object of keys and values")
    return dict(fields)


def _read_price(where: str, given: Any, source: str) -> Price:
    if isinstance(given, dict) and set(given) <= {"value", "source"} and "value" in given:
        given, source = given["value"], given.get("source", source)
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise EnergyModelError(f"{where} is {given!r}; expected a number or {{value, source}}")
    try:
        return Price(float(given), str(source))
    except OverflowError as error:  # JSON's whole numbers have no end
        raise EnergyModelError(f"{where} is beyond what a number can hold") from error


DIVISION_PER_MULTIPLICATION = 7.1
"""Energy of a division over that of a multiplication, measured on a Cortex-M4F: PMC8934428 (2022), table 3."""
AND_PER_ADDITION = 1 / 32
"""Assumed: an AND of two bits against an addition of 32: one gate a bit, and an adder has several."""


def arithmetic_prices(addition: float, multiplication: float, source: str) -> dict[str, Price]:
    """Return prices of all arithmetic kinds from those of an addition and a multiplication.

    Parameters
    ----------
    addition, multiplication : float
        In pJ; a multiply-accumulate is both.
    source : str
    """
    add = Price(addition, source)
    both = Price(addition + multiplication, source)
    division = Price(
        DIVISION_PER_MULTIPLICATION * multiplication,
        "assumed: a division or square root is 7.1 multiplications, as measured on a Cortex-M4F (PMC8934428, table 3)",
    )
    return {
        **dict.fromkeys(("ac_binary", "ac_graded_additions", "addition", "residual_addition"), add),
        **dict.fromkeys(("attention_count", "attention_add"), add),
        **dict.fromkeys(("ac_graded", "mac"), both),
        "attention_and": Price(AND_PER_ADDITION * addition, "assumed: one of 32 bits of an addition"),
        "special": division,
        "membrane_update": add,
        "membrane_leak": Price(multiplication, source),
        "comparison": Price(addition, f"{source}; assumed: a comparison is a subtraction"),
        "reset": Price(addition, f"{source}; assumed: a reset is a subtraction"),
    }


_horowitz = partial(
    PriceTable,
    source=HOROWITZ,
    technology="45 nm",
    basis="exact counts of every arithmetic operation, norms, membrane updates and residual sums included, at this "
    "precision throughout; integers above 1 as repeated additions; no memory, no control, no static power",
)

HOROWITZ_MODELS: tuple[PriceTable, ...] = (
    _horowitz(
        name="horowitz-fp32",
        precision="fp32",
        prices=arithmetic_prices(0.9, 3.7, f"{HOROWITZ}: fp32 add 0.9 pJ, multiply 3.7 pJ"),
    ),
    _horowitz(
        name="horowitz-fp16",
        precision="fp16",
        prices=arithmetic_prices(0.4, 1.1, f"{HOROWITZ}: fp16 add 0.4 pJ, multiply 1.1 pJ"),
    ),
    _horowitz(
        name="horowitz-int8",
        precision="int8, 8-bit sums",
        prices=arithmetic_prices(0.03, 0.2, f"{HOROWITZ}: int8 add 0.03 pJ, multiply 0.2 pJ"),
    ),
    _horowitz(
        name="horowitz-int8-int32",
        precision="int8, 32-bit sums",
        prices=arithmetic_prices(0.1, 0.2, f"{HOROWITZ}: int32 add 0.1 pJ, int8 multiply 0.2 pJ"),
    ),
)
