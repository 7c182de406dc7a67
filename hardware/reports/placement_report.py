"""What a placement has to say: tables for the terminal, a picture, and one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from hardware.loihi.chip import KILOBYTE_BITS
from hardware.loihi.placement import Placement
from hardware.loihi.tiling import RESOURCES, core_limit
from hardware.reports.files import write_whole
from hardware.reports.page import percent, render_page
from hardware.reports.pictures import picture_data_uri, write_picture
from hardware.reports.placement_figures import LABELS, placement_figure

MOST_CORE_ROWS = 256
"""A page lists no more cores one by one; JSON has them all."""


def placement_tables(placement: Placement) -> list[Table]:
    """Return what each population takes, how full cores are, and what is violated."""
    nodes = Table(title="What goes on the chip", title_justify="left", box=None)
    nodes.add_column("node", overflow="fold")
    nodes.add_column("kind")
    for name in ("cores", "neurons", "synapses", "in-axons", "out-axons", "memory KB"):
        nodes.add_column(name, justify="right")
    for row in placement.node_rows():
        nodes.add_row(
            escape(row["node"]),
            row["kind"],
            "none fits" if row["node"] in placement.unplaced else f"{row['cores']:,}",
            *(f"{row[key]:,}" for key in ("neurons", "synapses", "in_axons", "out_axons")),
            f"{row['memory_bits'] / KILOBYTE_BITS:,.1f}",
        )
    cores = Table(title="How full the cores are", title_justify="left", box=None)
    cores.add_column("of a core")
    for name in ("limit", "mean", "fullest", "in all"):
        cores.add_column(name, justify="right")
    for row in fill_rows(placement):
        cores.add_row(row["resource"], row["limit"], row["mean"], row["fullest"], row["total"])
    tables = [nodes, cores]
    if placement.violations:
        broken = Table(title="Why it does not fit", title_justify="left", box=None)
        for name in ("rule", "node", "found", "allowed", "what would mend it"):
            broken.add_column(name, overflow="fold")
        for violation in placement.violations:
            broken.add_row(
                violation.rule,
                escape(violation.node),
                escape(_number(violation.value)),
                escape(_number(violation.limit)),
                escape(violation.remedy),
            )
        tables.append(broken)
    return tables


def fill_rows(placement: Placement) -> list[dict[str, str]]:
    """Return, by resource, the limit of a core, its mean and largest use, and what all cores use, in words."""
    rows = []
    for name in RESOURCES:
        limit = core_limit(placement.chip, name)
        used = [getattr(core.resources, name) for core in placement.cores]
        scale = KILOBYTE_BITS if name == "memory_bits" else 1
        unit = " KB" if name == "memory_bits" else ""

        def share(value: float, limit: int | None = limit, scale: int = scale, unit: str = unit) -> str:
            return f"{value / scale:,.0f}{unit}" if limit is None else percent(value / limit, 1)

        rows.append(
            {
                "resource": LABELS[name],
                "limit": "not counted" if limit is None else f"{limit / scale:,.0f}{unit}",
                "mean": share(sum(used) / len(used)) if used else "–",
                "fullest": share(max(used)) if used else "–",
                "total": f"{sum(used) / scale:,.0f}{unit}",
            }
        )
    return rows


def verdict(placement: Placement) -> str:
    """Return in one line whether it fits, and on what."""
    cores, chips, broken = len(placement.cores), placement.chips, len(placement.violations)
    words = "FITS" if placement.fits else f"DOES NOT FIT ({broken} reason{'s' if broken != 1 else ''})"
    return (
        f"{words}: {placement.tokens} token{'s' if placement.tokens != 1 else ''} on {placement.chip.name}: "
        f"{cores:,} core{'s' if cores != 1 else ''} of {chips:,} chip{'s' if chips != 1 else ''}"
    )


def write_placement_picture(placement: Placement, path: str | Path) -> Path:
    """Write how full every core is; the suffix chooses PNG, PDF or SVG.

    Raises
    ------
    ReportError
        The suffix is another one, or the file cannot be written.
    """
    return write_picture(placement_figure(placement), path)


def write_placement_page(placement: Placement, path: str | Path, model: str, record: dict[str, Any]) -> Path:
    """Write one self-contained HTML page.

    Raises
    ------
    ReportError
        The file cannot be written.
    """
    return write_whole(path, placement_page(placement, model, record))


def placement_page(placement: Placement, model: str, record: dict[str, Any]) -> str:
    """Return the page that `write_placement_page` writes."""
    return render_page(
        "placement.html",
        placement=placement,
        model=model,
        record=record,
        verdict=verdict(placement),
        nodes=placement.node_rows(),
        fill=fill_rows(placement),
        picture=picture_data_uri(placement_figure(placement)) if placement.cores else None,
        limits=placement.chip.limits,
        kilobyte=KILOBYTE_BITS,
        core_rows=placement.to_dict()["utilization"][:MOST_CORE_ROWS],
        number=_number,
    )


def _number(value: int | str) -> str:
    return f"{value:,}" if isinstance(value, int) else value
