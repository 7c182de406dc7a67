"""What ``energy.py`` counts: networks over data, baselines by three counters, and the rows of the rebuilt tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from export.network import Network
from hardware.energy import EnergyEstimate, EnergyModel, OperationCounts, energy_models, estimate_energy
from hardware.energy.baselines import BASELINES, Baseline, QuantizedTwin, TransformerBaseline
from hardware.energy.comparison import EnergyComparison, compare_energy, dense_pricing, firing_rate, scale_firing
from hardware.energy.counts import headline
from hardware.energy.models.paper import dense_energy_mj
from hardware.energy.published import (
    BERT,
    DISTILBERT,
    PUBLISHED,
    SPIKEBERT,
    TINYBERT,
    PublishedRow,
    check,
    published_rows,
)
from spikebert.errors import MissingDependencyError

STANDARD_LENGTHS = (128, 256)
MEASURED_BIT_RATE = 0.132
"""Share of ones that an independent measurement found in SpikeBERT's activations on SST-2 (128 tokens, T = 4)."""
GIGA = 1e9
CHINESE = ("chnsenti", "waimai")
COUNTERPARTS = {BERT: "bert-base-cased", TINYBERT: "tinybert-6", DISTILBERT: "distilbert-4"}
"""Which of our baselines is the network of a printed row; why the last two: `published.TINYBERT_TABLE`."""
OPERATIONS_OF_A_MAC = 2
SETTING = "any"
"""What stands for a data set in rows at a fixed length."""


@dataclass(frozen=True, eq=False)
class Measurement:
    """A network that ran over some data.

    Attributes
    ----------
    title, data : str
        The network; the data set, or what else it ran over.
    network : Network
    counts : OperationCounts
    lengths : list of int
        Real tokens of each sentence.
    remark : str
        What the reader must know; may be empty.
    is_paper_size : bool
        Whether it has the shape of the paper's SpikeBERT.
    """

    title: str
    data: str
    network: Network
    counts: OperationCounts
    lengths: list[int]
    remark: str = ""
    is_paper_size: bool = False

    @property
    def mean_tokens(self) -> float:
        """Real tokens a sentence."""
        return self.counts.real_tokens / self.counts.sentences

    @property
    def baselines(self) -> list[Baseline]:
        """BERT-base of the data's language, the teacher, and the network's quantized twin."""
        bert = "bert-base-chinese" if self.data in CHINESE else "bert-base-cased"
        return [BASELINES[bert], BASELINES["minilm-6"], self.twin]

    @property
    def twin(self) -> QuantizedTwin:
        """The network itself, dense and quantized."""
        return QuantizedTwin(self.network, round(self.counts.time_steps))

    @cached_property
    def models(self) -> dict[str, EnergyModel]:
        """The energy models, those of a chip with this network placed on it."""
        tokens = self.counts.longest_sentence
        return {name: model.for_network(self.network, tokens) for name, model in energy_models().items()}

    @cached_property
    def comparisons(self) -> list[EnergyComparison]:
        """Every energy model's answer against every baseline."""
        return [
            compare_energy(self.counts, baseline, self.lengths, model)
            for model in self.models.values()
            for baseline in self.baselines
        ]

    def per_sentence(self, kind: str) -> float:
        """Return the mean count of a kind of operation, or of a headline figure, at real tokens."""
        totals = {**self.counts.totals, **headline(self.counts.totals)}
        return totals.get(kind, 0) / self.counts.sentences


@dataclass(frozen=True, eq=False)
class Variation:
    """Counts of the checkpoint with one thing changed.

    Attributes
    ----------
    kind : {"time steps", "tokens", "firing rate"}
    value : float
        Steps, tokens, or per cent of neurons.
    counts : OperationCounts
    lengths : list of int
    """

    kind: str
    value: float
    counts: OperationCounts
    lengths: list[int]


@dataclass(frozen=True)
class BaselineCount:
    """MACs of one baseline at one length, by three counters.

    Attributes
    ----------
    baseline : Baseline
    tokens, formula : int
    library, fvcore : int or None
        None where that counter is not installed.
    problem : str
        Why not.
    """

    baseline: Baseline
    tokens: int
    formula: int
    library: int | None
    fvcore: int | None
    problem: str = ""

    @property
    def verdict(self) -> str:
        """Whether the counters agree."""
        counted = {"torch": self.library, "fvcore": self.fvcore}
        names = [name for name, macs in counted.items() if macs is not None]
        if any(macs not in (None, self.formula) for macs in counted.values()):
            return "DIFFER"
        return f"{1 + len(names)} agree" if names else "formula only"

    @property
    def energies(self) -> dict[str, EnergyEstimate | None]:
        """Estimate of one sentence of this length under every energy model; None where a model has no figure."""
        pricings = {name: dense_pricing(m, self.baseline, [self.tokens])[0] for name, m in energy_models().items()}
        counts = self.baseline.count([self.tokens])
        return {name: None if of is None else estimate_energy(counts, model=of) for name, of in pricings.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "name": self.baseline.name,
            "title": self.baseline.title,
            "tokens": self.tokens,
            "macs_by_formula": self.formula,
            "macs_by_torch": self.library,
            "macs_by_fvcore": self.fvcore,
            "verdict": self.verdict,
            "problem": self.problem,
            "parameters": self.baseline.parameters if isinstance(self.baseline, TransformerBaseline) else None,
            "energy_mj": {name: None if e is None else e.energy_mj for name, e in self.energies.items()},
        }


@dataclass(frozen=True)
class TableRow:
    """One row of the rebuilt tables.

    Attributes
    ----------
    data, network : str
    tokens : float
    operations : float
        SOPs or FLOPs, in 10^9.
    formula_mj : float
        By Eqs. 16 to 19.
    printed_mj : float or None
    reduction_percent : float or None
        "Energy Reduction" against BERT: of printed rows as printed, of ours against BERT-base at the same length.
    why : str
        Of the gap.
    ours : bool
        Whether we counted it.
    """

    data: str
    network: str
    tokens: float
    operations: float
    formula_mj: float
    printed_mj: float | None
    reduction_percent: float | None
    why: str
    ours: bool

    @property
    def gap_mj(self) -> float | None:
        """Printed minus formula."""
        return None if self.printed_mj is None else self.printed_mj - self.formula_mj

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**vars(self), "gap_mj": self.gap_mj}


def rebuilt_rows(
    checkpoint: Sequence[Measurement], base: Measurement | None, others: Sequence[Measurement] = ()
) -> list[TableRow]:
    """Return Tables 2 and 5: ours, the paper's, and the paper's formula fed with the paper's figures.

    Parameters
    ----------
    checkpoint : sequence of Measurement
        Of the checkpoint, on each data set.
    base : Measurement or None
        Of SpikeBERT-base.
    others : sequence of Measurement
        Of further checkpoints, a row each.
    """
    measured = {measurement.data: measurement for measurement in checkpoint}
    rows: list[TableRow] = []
    for data in dict.fromkeys([*measured, *(row.dataset for row in PUBLISHED)]):
        printed = {row.model: row for row in published_rows(data)}  # what stands in both tables is the same in both
        if data in measured:
            ours, bert = _our_rows(measured[data], printed)
            rows += [ours, *(_measured_row(other, printed) for other in others if other.data == data), bert]
        rows += [_printed_row(row) for row in printed.values()]
    return [*rows, *_rows_of_paper_setting(base)]


def synaptic_operations(counts: OperationCounts) -> float:
    """Return SOPs of a sentence as the paper's Eq. 18 counts them: T x mean input x FLOPs."""
    spiking = (node for node in counts.nodes.values() if node.spike_driven)
    return sum(node.mean_field_operations() for node in spiking) / counts.sentences


def count_baseline(baseline: Baseline, tokens: int) -> BaselineCount:
    """Count a baseline's MACs by formula and by the libraries that are installed."""
    found: dict[str, int | None] = {}
    problems = []
    for name, count in (("library", baseline.library_macs), ("fvcore", baseline.fvcore_macs)):
        try:
            found[name] = count(tokens)
        except MissingDependencyError as error:
            found[name] = None
            problems.append(str(error))
    return BaselineCount(
        baseline, tokens, baseline.macs(tokens), found["library"], found["fvcore"], "; ".join(problems)
    )


def _measured_row(measurement: Measurement, printed: Mapping[str, PublishedRow], name: str = "") -> TableRow:
    energy = estimate_energy(measurement.counts, model="paper").energy_mj
    return TableRow(
        measurement.data,
        f"SpikeBERT, {name or measurement.title.split(' checkpoint, ')[0]}",
        measurement.mean_tokens,
        synaptic_operations(measurement.counts) / GIGA,
        energy,
        printed[SPIKEBERT].energy_mj if printed else None,
        100 * (1 - energy / dense_energy_mj(_macs_of_bert(measurement))),
        f"{measurement.title}, at real length; the paper's is 12 x 768, padded to 256 tokens" if printed else "",
        True,
    )


def _macs_of_bert(measurement: Measurement) -> float:
    """Return BERT-base's MACs of a sentence at the real lengths."""
    return sum(map(measurement.baselines[0].macs, measurement.lengths)) / len(measurement.lengths)


def _our_rows(measurement: Measurement, printed: Mapping[str, PublishedRow]) -> tuple[TableRow, TableRow]:
    macs = _macs_of_bert(measurement)
    counted = TableRow(
        measurement.data,
        "BERT-base, counted",
        measurement.mean_tokens,
        macs / GIGA,
        dense_energy_mj(macs),
        printed[BERT].energy_mj if printed else None,
        None,
        "counted at real length; the paper prints one figure for all English sets, one for both Chinese"
        if printed
        else "",
        True,
    )
    return _measured_row(measurement, printed, "our checkpoint"), counted


def _printed_row(row: PublishedRow) -> TableRow:
    found = check(row)
    return TableRow(
        row.dataset,
        f"{row.model}, paper",
        math.nan,
        row.operations,
        found.formula_mj,
        row.energy_mj,
        row.reduction_percent,
        found.why,
        False,
    )


def _rows_of_paper_setting(base: Measurement | None) -> Iterator[TableRow]:
    printed = {row.model: row for row in published_rows("sst2")}
    if base is not None:
        for title, counts, why in (
            ("SpikeBERT-base, random", base.counts, base.remark),
            (
                f"the same, {MEASURED_BIT_RATE:.1%} of bits",
                scale_firing(base.counts, MEASURED_BIT_RATE / firing_rate(base.counts)),
                "estimate: the row above with its firing scaled to what an independent measurement found in a "
                "trained SpikeBERT on SST-2; integers of the residual stream stay as high as random weights make "
                "them",
            ),
        ):
            operations = synaptic_operations(counts) / GIGA
            energy = estimate_energy(counts, model="paper").energy_mj
            dense = dense_energy_mj(BASELINES[COUNTERPARTS[BERT]].macs(round(base.mean_tokens)))
            reduction = 100 * (1 - energy / dense)
            yield TableRow(
                SETTING, title, base.mean_tokens, operations, energy, printed[SPIKEBERT].energy_mj, reduction, why, True
            )
    for model, name in COUNTERPARTS.items():
        baseline, row = BASELINES[name], printed[model]
        for tokens in reversed(STANDARD_LENGTHS):
            macs = baseline.macs(tokens)
            yield TableRow(
                SETTING,
                f"{baseline.title.split(',')[0]}, counted",
                tokens,
                macs / GIGA,
                dense_energy_mj(macs),
                row.energy_mj,
                None,
                f"printed: {row.model} on SST-2",
                True,
            )
        doubled = OPERATIONS_OF_A_MAC * baseline.macs(STANDARD_LENGTHS[0])
        yield TableRow(
            SETTING,
            f"{baseline.title.split(',')[0]}, 2 a MAC",
            STANDARD_LENGTHS[0],
            doubled / GIGA,
            dense_energy_mj(doubled),
            row.energy_mj,
            None,
            "hypothesis, not established: two operations a MAC at 128 tokens, and 4.6 pJ for each of the two",
            True,
        )
