"""Reports show the profile's own numbers, reach the disk whole or not at all, and trust nothing from outside."""

from __future__ import annotations

import csv
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from export import to_nir
from hardware.reports import pictures
from hardware.reports.files import ReportError, write_whole
from hardware.reports.pictures import can_be_drawn, picture_bytes, safe_label, split_node_name
from hardware.reports.profile_figures import FIGURES, ReportSubject, Sentence, drawable_figures, figure_of, overview
from hardware.reports.profile_report import (
    CSV_AXES,
    csv_rows,
    profile_page,
    profile_tables,
    write_profile_csv,
    write_profile_json,
    write_profile_page,
    write_profile_picture,
)
from hardware.runners import run
from hardware.traces.profiler import COLLECTIONS, Profile, profile
from hardware.traces.trace import Trace

SUBJECT = ReportSubject("a model", "some data", {"seed": 3, "versions": {"python": "3.11"}, "checkpoint_sha256": None})
HOSTILE = '<script>alert("1")</script><img src=x onerror=alert(1)>'
BLANK_SHARE = 0.95  # white in a picture of a title and nothing else: 0.97 and more


@pytest.fixture(scope="module", autouse=True)
def coarse_pictures():
    """Draw with fewer dots, which is quicker and changes nothing else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "DOTS_PER_INCH", 60)
        yield


@pytest.fixture(scope="module")
def trace(make_model, padded_batch) -> Trace:
    return run(to_nir(make_model(num_hidden_layers=2)), *padded_batch)


@pytest.fixture(scope="module")
def found(trace, make_model) -> Profile:
    return profile(trace, to_nir(make_model(num_hidden_layers=2)), collect=COLLECTIONS)


@pytest.fixture(scope="module")
def page(found, trace, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("page") / "profile.html"
    return write_profile_page(found, path, SUBJECT, Sentence(trace), detailed=True).read_text(encoding="utf-8")


def foreign_trace(*nodes: str, steps: int = 3, largest: int = 1) -> Trace:
    rng = np.random.default_rng(0)
    spikes = {node: rng.integers(0, largest + 1, (steps, 2, 4, 5)).astype(np.uint8) for node in nodes}
    return Trace(spikes, np.zeros((2, 2)), np.ones((2, 4), bool))


class Elements(HTMLParser):
    """What a browser would see: elements with their attributes, and text; complains where tags do not close."""

    VOID = ("meta", "img", "br", "link", "hr", "input")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


# files


def test_a_file_is_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "report.csv"
    write_whole(path, "old")
    assert path.stat().st_mode & 0o777 == 0o644

    def no_space(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", no_space)
    with pytest.raises(ReportError, match="no space left"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path], "nothing half-written stays"


def test_while_a_file_is_written_the_old_one_stands(tmp_path, monkeypatch):
    path = tmp_path / "report.csv"
    path.write_text("old")
    seen = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: (seen.append(path.read_text()), replace(self, to))[1])
    write_whole(path, "new")
    assert seen == ["old"]
    assert path.read_text() == "new"


def test_places_that_cannot_be_written_are_refused(tmp_path, found):
    with pytest.raises(ReportError, match="does not exist; make it first"):
        write_profile_csv(found, tmp_path / "nowhere" / "a.csv")
    with pytest.raises(ReportError, match="is a folder"):
        write_profile_json(found, tmp_path)


# CSV and JSON


def test_csv_has_a_row_for_every_node_with_the_profiles_numbers(tmp_path, found):
    path = write_profile_csv(found, tmp_path / "profile.csv")
    with open(path, newline="") as file:
        rows = {row["node"]: row for row in csv.DictReader(file)}
    assert list(rows) == list(found.nodes)
    for name, node in found.nodes.items():
        assert float(rows[name]["firing_rate"]) == node.firing_rate
        assert int(rows[name]["silent_neurons"]) == len(node.silent_neurons)
        assert float(rows[name]["persistence"]) == node.persistence.share
        for step, rate in enumerate(node.firing_rate_by_step):
            assert float(rows[name][f"firing_rate_step{step}"]) == rate


@pytest.mark.parametrize("by", sorted(set(CSV_AXES) - {"operation"}))
def test_csv_by_any_axis_adds_up_to_the_node(found, by):
    rows = csv_rows(found, by)
    of_node = [row for row in rows if row["node"] == "block01_qkv_neuron"]
    node = found.nodes["block01_qkv_neuron"]
    number = {"node": 1, "step": 4, "position": 6, "head": 3 * 2, "neuron": 24, "value": 2}[by]
    assert len(of_node) == number
    if by == "value":
        assert sum(row["value"] * row["count"] for row in of_node) == node.spikes
        assert {row["node"] for row in rows} == {*found.nodes, *found.streams}
    else:
        weights = node.tokens_by_position if by == "position" else np.ones(number)
        assert np.average([row["firing_rate"] for row in of_node], weights=weights) == pytest.approx(node.firing_rate)


def test_csv_of_what_was_not_collected_is_refused(trace):
    bare = profile(trace)
    for by, missing in (
        ("head", "collect 'heads'"),
        ("value", "collect 'histogram'"),
        ("operation", "no operations"),
        ("year", "not known"),
    ):
        with pytest.raises(ReportError, match=missing):
            csv_rows(bare, by)


def test_json_is_the_profile_and_what_it_is_about(tmp_path, found):
    value = json.loads(write_profile_json(found, tmp_path / "profile.json", SUBJECT, detailed=True).read_text())
    assert value == json.loads(
        json.dumps({"model": "a model", "data": "some data", **SUBJECT.record, **found.to_dict(True)})
    )


# pictures


def is_drawn(data: bytes) -> bool:
    image = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
    return min(image.shape) > 100 and (image == 255).mean() < BLANK_SHARE


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_drawn(name, found, trace):
    assert is_drawn(picture_bytes(figure_of(name, found, SUBJECT, Sentence(trace))))


@pytest.mark.parametrize("file_format", ["png", "pdf", "svg"])
def test_a_picture_has_the_same_bytes_each_time(found, file_format):
    first, again = (picture_bytes(figure_of("rates", found, SUBJECT), file_format) for _ in range(2))
    assert first == again


def test_overview_is_one_file_in_any_format(tmp_path, found, trace):
    png, pdf, svg = (
        write_profile_picture(found, tmp_path / f"profile.{suffix}", SUBJECT, Sentence(trace), figures)
        for suffix, figures in (("png", None), ("pdf", ["rates"]), ("svg", ["steps"]))
    )
    assert is_drawn(png.read_bytes())
    width, height = Image.open(png).size
    assert height > 2 * width, "all six, below one another"
    assert pdf.read_bytes().startswith(b"%PDF")
    assert b"<svg" in svg.read_bytes()[:500]


def test_bars_are_as_high_as_the_rates(found):
    (axes,) = figure_of("rates", found, SUBJECT).axes
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == pytest.approx([100 * node.firing_rate for node in found.nodes.values()])
    colours = {bar.get_facecolor() for bar in axes.patches}
    assert len(colours) == 6, "embedding and five kinds of node"


def test_heat_map_shows_each_rate_in_its_cell(found):
    figure = figure_of("steps", found, SUBJECT)
    panels = {axes.get_title(): axes.images[0].get_array() for axes in figure.axes if axes.images}
    for role in ("qkv", "attention", "projection", "intermediate", "output"):
        for block in (0, 1):
            rates = found.nodes[f"block0{block}_{role}_neuron"].firing_rate_by_step
            assert panels[role][block].tolist() == pytest.approx(list(100 * rates))
    rates = found.nodes["embedding_neuron"].firing_rate_by_step
    assert panels["embedding"][0].tolist() == pytest.approx(list(100 * rates))
    assert panels["embedding"].mask[1].all(), "the embedding is in no second block"


def test_raster_shows_the_spikes_of_that_sentence_without_padding(found, trace):
    sentence = Sentence(trace, 1, ["a", "b$\\c", "…", "d"], ["block00_output_neuron"])
    axes = figure_of("raster", found, SUBJECT, sentence).axes
    spikes = trace.spikes["block00_output_neuron"]
    assert len(axes) == 4
    for step, panel in enumerate(axes):
        assert (panel.images[0].get_array() == spikes[step, 1, :4].T).all()
    assert [label.get_text() for label in axes[0].get_xticklabels()] == ["a", r"b\$\c", "…", "d"]


def test_raster_of_many_neurons_shows_means_and_loses_none():
    spikes = np.random.default_rng(0).integers(0, 2, (1, 1, 3, 1000)).astype(np.uint8)
    wide = Trace({"n": spikes}, np.zeros((1, 2)), np.ones((1, 3), bool))
    (axes,) = figure_of("raster", profile(wide), SUBJECT, Sentence(wide)).axes
    shown = axes.images[0].get_array()
    assert shown.shape == (334, 3)
    sizes = [3] * 333 + [1]
    assert (shown * np.array(sizes)[:, None]).sum() == pytest.approx(spikes.sum())


def test_what_a_figure_lacks_is_said(found, trace):
    bare = profile(trace)
    assert drawable_figures(bare) == ["rates", "steps", "positions", "histogram"]
    with pytest.raises(ReportError, match="collect 'heads'"):
        figure_of("heads", bare, SUBJECT)
    with pytest.raises(ReportError, match="give it a trace"):
        figure_of("raster", found, SUBJECT)
    with pytest.raises(ReportError, match="figure 'rate' is not known"):
        figure_of("rate", found, SUBJECT)
    with pytest.raises(ReportError, match=r"ends in \.png, \.pdf, \.svg"):
        write_profile_picture(found, "profile.gif", SUBJECT)
    for arguments, complaint in (
        ((3,), "sentence 3 is not one of the 3"),
        ((1, ["only"]), "1 labels for the 4 real tokens"),
        ((0, None, ["block09_qkv_neuron"]), "block09_qkv_neuron"),
    ):
        with pytest.raises(ReportError, match=complaint):
            Sentence(trace, *arguments)


@pytest.mark.parametrize(
    ("nodes", "steps", "largest"),
    [
        (("only",), 1, 1),
        (("only",), 3, 0),
        (("a $x$", "b_$\\frac$", HOSTILE), 16, 7),
        (tuple(f"node{i}" for i in range(40)), 2, 1),
        (tuple(f"block{i:02d}_lif" for i in range(30)), 3, 1),
    ],
)
def test_graphs_of_other_people_are_drawn_too(nodes, steps, largest, recwarn):
    other = foreign_trace(*nodes, steps=steps, largest=largest)
    found = profile(other, collect=("histogram", "persistence"))
    subject = ReportSubject("$someone$ else's", "数据 $y$")
    assert is_drawn(picture_bytes(overview(found, subject, Sentence(other, 0, ["电影", "$", "\n", "x" * 50]))))
    assert not recwarn.list, "no glyph is missing, no axis empty"


def test_labels_are_drawn_as_they_stand():
    assert safe_label("$x_1$") == r"\$x_1\$"
    assert safe_label("two\nlines") == "two lines"
    assert safe_label("电影 film") == "□□ film"
    assert safe_label("x" * 100, 10) == "x" * 9 + "…"
    assert can_be_drawn("film ##ly é привет")
    assert not can_be_drawn("电影")


@pytest.mark.parametrize(
    ("node", "split"),
    [
        ("block03_qkv_neuron", (3, "qkv")),
        ("block11_output_neuron_stream", (11, "output")),
        ("embedding_neuron", (None, "embedding")),
        ("my_lif_2", (None, "my_lif_2")),
        ("block_a", (None, "block_a")),
    ],
)
def test_node_names_tell_their_block(node, split):
    assert split_node_name(node) == split


# page and tables


def test_page_is_well_formed_and_loads_nothing(page):
    seen = Elements(page)
    tags = [tag for tag, _ in seen.elements]
    assert tags.count("img") == len(FIGURES)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(tags)
    for tag, attributes in seen.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), f"{tag} has a handler {name}"
            if name in ("src", "href", "srcset", "data", "action", "background", "poster"):
                assert str(value).startswith("data:image/png;base64,"), f"{tag} loads {value}"
    policy = [attributes["content"] for tag, attributes in seen.elements if "http-equiv" in attributes]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert "url(" not in page
    assert "@import" not in page


def test_page_shows_the_numbers_and_how_it_was_made(page, found):
    text = Elements(page).text
    for name, node in found.nodes.items():
        assert name in text
        assert f"{100 * node.firing_rate:.2f} %" in text
    for stream in found.streams:
        assert stream in text
    assert "a model on some data" in text
    assert "python 3.11" in text
    assert "None" not in text
    index = found.nodes["block00_output_neuron"].silent_neurons
    assert not index.size or "silent: " + " ".join(map(str, index)) in text


def test_page_escapes_what_comes_from_outside():
    other = foreign_trace(HOSTILE, "second")
    subject = ReportSubject(HOSTILE, HOSTILE, {"command": HOSTILE, "versions": {HOSTILE: HOSTILE}})
    found = profile(other, collect=("histogram", "persistence"))
    seen = Elements(profile_page(found, subject, Sentence(other, 0, [HOSTILE] * 4), detailed=True))
    assert HOSTILE in seen.text, "it is shown, as text"
    assert not [tag for tag, _ in seen.elements if tag == "script"]
    assert not [attributes for tag, attributes in seen.elements if tag == "img" and attributes["src"] == "x"]


def test_page_warns_of_silent_and_saturated_nodes_and_of_spikes_at_padding():
    ones = np.ones((2, 1, 3, 4), np.uint8)
    mask = np.array([[True, True, False]])
    text = Elements(
        profile_page(profile(Trace({"dead": 0 * ones, "stuck": ones}, np.zeros((1, 2)), mask)), SUBJECT)
    ).text
    assert "Nothing ever fired in dead." in text
    assert "Every neuron always fired in stuck." in text
    assert "8 spikes stand at padding" in text


def test_tables_fit_a_terminal_and_show_markup_as_text(found):
    console = Console(width=80, record=True, file=io.StringIO())
    for table in profile_tables(found):
        console.print(table)
    text = console.export_text()
    lines = {line.split()[0]: line for line in reversed(text.splitlines()) if line.strip()}
    for name, node in found.nodes.items():
        assert f"{100 * node.firing_rate:.2f}" in lines[name], "name and rate stand in one line"
    other = profile(foreign_trace("[red]node[/]"))
    console.print(*profile_tables(other))
    assert "[red]node[/]" in console.export_text()
