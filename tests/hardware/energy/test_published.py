"""The paper's figures are those it prints, its formula is fed with nothing else, and no gap is hidden."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hardware.energy import published
from hardware.energy.published import BERT, PUBLISHED, SPIKEBERT, TABLE_2, TABLE_5, PublishedRow, check

PAPER = Path(__file__).parents[4] / "shared" / "papers" / "spikebert_arxiv_2308.15122.txt"
DATA_SETS = {"ChnSenti": "chnsenti", "Waimai": "waimai", "MR": "mr", "SST-2": "sst2", "Subj": "subj", "SST-5": "sst5"}


def _row(dataset: str, model: str, table: int = 2) -> PublishedRow:
    return next(row for row in PUBLISHED if (row.dataset, row.model, row.table) == (dataset, model, table))


def _printed(table: int) -> list[tuple[str, str, list[float]]]:
    """Read a table out of the paper: data set, model, figures from left to right."""
    text = PAPER.read_text(encoding="utf-8")
    begin = text.index("Dataset\t", text.index(f"\nTable {table}: "))
    rows, data_set = [], ""
    for line in text[begin:].splitlines()[1:]:
        cells = line.split("\t")
        if len(cells) < 5:
            break
        data_set = DATA_SETS[cells[0]] if cells[0] else data_set
        figures = [re.sub(r"[%↓\s]", "", cell) for cell in cells[2:]]
        rows.append((data_set, cells[1], [float(figure) for figure in figures if figure not in ("", "-")]))
    return rows


def _merged_cells_apart(rows: list[tuple[str, str, list[float]]]) -> list[tuple[str, str, list[float]]]:
    """Table 2 prints the reduction in BERT's line, for both lines of a data set; it belongs to SpikeBERT."""
    found = []
    for data_set, model, figures in rows:
        if model == BERT:
            reduction = figures.pop(2)
        else:
            figures.insert(2, reduction)
        found.append((data_set, model, figures))
    return found


@pytest.mark.skipif(not PAPER.is_file(), reason="the paper's text is not beside this checkout")
@pytest.mark.parametrize(("number", "table"), [(2, TABLE_2), (5, TABLE_5)])
def test_every_figure_is_as_printed(number: int, table: tuple[PublishedRow, ...]) -> None:
    printed = _printed(number)
    if number == 2:
        printed = _merged_cells_apart(printed)
    ours = []
    for row in table:
        figures = [row.parameters, row.operations, row.energy_mj, row.reduction_percent, row.accuracy_percent]
        ours.append((row.dataset, row.model, [figure for figure in figures if figure is not None]))
    assert ours == printed
    assert len(ours) == 12


@pytest.mark.parametrize(
    ("dataset", "model", "formula", "gap"),
    [
        ("sst2", SPIKEBERT, 27.46 * 0.9, 3.826),
        ("chnsenti", SPIKEBERT, 28.47 * 0.9, 4.887),
        ("sst2", BERT, 22.23 * 4.6, -0.018),
        ("waimai", BERT, 22.46 * 4.6, 0.064),
    ],
)
def test_the_formula_is_fed_with_the_papers_own_figures(dataset: str, model: str, formula: float, gap: float) -> None:
    found = check(_row(dataset, model))
    assert found.formula_mj == pytest.approx(formula)
    assert found.gap_mj == pytest.approx(gap, abs=5e-4)


def test_what_is_said_of_the_embedding_remainder_holds() -> None:
    gaps = {row.dataset: check(row).gap_mj for row in TABLE_2 if row.spiking}
    chinese = [gaps.pop("chnsenti"), gaps.pop("waimai")]
    said = [float(figure) for figure in re.findall(r"\d\.\d\d", published.EMBEDDING_REMAINDER)]
    assert said == [round(value, 2) for value in (min(gaps.values()), max(gaps.values()), min(chinese), max(chinese))]
    macs = check(_row("sst2", SPIKEBERT)).embedding_macs
    assert macs is not None
    assert macs == pytest.approx(gaps["sst2"] / 4.6)


def test_rounding_is_not_blamed_for_more_than_it_can_do() -> None:
    # 22.23 G may stand for anything from 22.225 to 22.235, so 102.235 to 102.281 mJ; 22.46 G for at most 103.339 mJ
    assert check(_row("sst2", BERT)).within_rounding
    far = check(_row("chnsenti", BERT))
    assert not far.within_rounding
    assert "cause unknown" in far.why


def test_the_hypothesis_on_flops_is_called_one_and_rests_on_our_count() -> None:
    from hardware.energy.baselines import BASELINES

    macs = BASELINES["bert-base-cased"].macs
    why = check(_row("sst2", BERT)).why
    assert "hypothesis" in why
    for figure in (macs(128) / 1e9, 2 * macs(128) / 1e9, macs(256) / 1e9):
        assert f"{figure:.2f} G" in why


def test_every_gap_has_a_reason() -> None:
    for row in PUBLISHED:
        found = check(row)
        assert found.within_rounding or found.why, row


def test_reductions_are_those_of_the_printed_energies_but_for_one_digit() -> None:
    off = []
    for row in PUBLISHED:
        found = check(row)
        if found.reduction_gap is not None and abs(found.reduction_gap) > 0.005:
            off.append((row.table, row.dataset, row.model))
            assert published.REDUCTION_ROUNDING in found.why
    assert off == [(5, "sst2", "DistilBERT")]


def test_the_two_tables_agree_where_they_overlap() -> None:
    for row in TABLE_5:
        if row.model in (BERT, SPIKEBERT):
            other = _row(row.dataset, row.model)
            assert (other.operations, other.energy_mj, other.reduction_percent, other.accuracy_percent) == (
                row.operations,
                row.energy_mj,
                row.reduction_percent,
                row.accuracy_percent,
            )


def test_the_implied_rate_is_eq_18_solved_for_it() -> None:
    row = _row("sst2", SPIKEBERT)
    assert 4 * published.implied_firing_rate(row, 22.95) * 22.95 == pytest.approx(27.46)
    with pytest.raises(ValueError, match="does not spike"):
        published.implied_firing_rate(_row("sst2", BERT), 22.95)
