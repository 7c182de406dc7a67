"""One grammar of options: runners by one name, settings as options, and old spellings that do what the new ones do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
import pytest
from click.testing import CliRunner

from spikebert.cli import main
from spikebert.cli.grammar import Command, Gone, GroupedOption
from spikebert.cli.runners import parse_runner
from spikebert.cli.setting_options import option_name, take_settings
from spikebert.distillation.settings import (
    GENERAL_WEIGHTS,
    TEACHER_SETTINGS,
    AugmentationSettings,
    Keeping,
    LossWeights,
    StudentSettings,
    TeacherUse,
    Texts,
    TrainingSettings,
)
from spikebert.errors import ConfigurationError

TASK = "distill task --teacher bert --task sst2 -o out"
GENERAL = "distill general --teacher bert --corpus text.txt -o out"
# what was said once, what is said now, and what is said about it
OLD_SPELLINGS = [
    ("verify default --text a --report page.html", "verify default --text a --html page.html", "--html"),
    ("verify default --text a --report=page.html", "verify default --text a --html page.html", "--html"),
    ("compare a.npz b.npz --report page.html", "compare a.npz b.npz --html page.html", "--html"),
    ("verify default --granularity network", "verify default --against lava:network", "--against lava:network"),
    ("verify default --timing hardware --against lava", "verify default --against lava:hardware", "lava:hardware"),
    (
        "verify default --against=lava:hardware --granularity=operator --text a",
        "verify default --against lava:hardware:operator --text a",
        "--against=lava:hardware:operator",
    ),
    ("simulate m.nir --runner lava --granularity block", "simulate m.nir --runner lava:block", "--runner lava:block"),
    ("simulate m.nir --timing hardware --runner lava", "simulate m.nir --runner lava:hardware", "lava:hardware"),
    ("demo --granularity operator", "demo --runner lava:operator", "--runner lava:operator"),
    ("evaluate default --task sst2 --integer", "evaluate default --task sst2 --precision integer", "integer"),
    (f"{TASK} --integer --epochs 2", f"{TASK} --precision integer --epochs 2", "--precision integer"),
    ("import-published f.pt -o d --tau 3", "import published f.pt -o d --tau 3", "spikebert import published"),
]
GONE = [
    ("quantize m.nir -o i.nir --calibration sst2 --power-of-two", "--power-of-two is gone"),
    ("quantize m.nir -o i.nir --calibration sst2 --rounding floor-even", "--rounding is gone"),
    ("quantize m.nir -o i.nir --calibration sst2 --rounding=nearest", "--rounding is gone"),
]
REFUSED = [
    ("evaluate default --task sst2 --integer --precision float32", "give --precision once"),
    ("verify default --html a.html --report b.html", "give --html once"),
    ("verify default --against reference --granularity block", "--granularity is for --against lava only"),
    ("simulate m.nir --granularity block", "--granularity is for --runner lava only"),
    ("verify default --granularity", "'--granularity' requires an argument"),
    ("verify default --granularity nonsense", "'nonsense' is not known"),
    ("verify default --against lava:block --granularity operator", "give one granularity"),
    ("verify default --report", "requires an argument"),
    ("simulate m.nir --runner torch", "runs models"),
    ("simulate m.nir --runner chip.npz", "is a recorded trace"),
    ("check default --runner chip", "is not a runner"),
    ("demo --runner reference", "is not one of lava"),
]


def parsed(line: str) -> tuple[click.Command, dict[str, Any]]:
    """Return the command that some words call, and what its function would be given."""
    command: click.Command = main
    words, name = line.split(), None
    while isinstance(command, click.Group):
        context = click.Context(command, info_name=name or "spikebert")
        name, found, words = command.resolve_command(context, words)
        assert found is not None
        command = found
    return command, command.make_context(name, words).params


def commands(command: click.Command = main, *words: str) -> Iterator[tuple[str, click.Command]]:
    yield " ".join(words), command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from commands(found, *words, name)


@pytest.mark.parametrize(("old", "new", "said"), OLD_SPELLINGS)
def test_an_old_spelling_means_the_new_one_and_says_so(
    old: str, new: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = parsed(new)
    assert capsys.readouterr().err == ""
    assert parsed(old) == expected
    output, hint = capsys.readouterr()
    assert output == ""
    assert hint.startswith("note: ")
    assert said in hint


def test_every_old_spelling_is_tested_and_in_no_help() -> None:
    said = [line for line, *_ in (*OLD_SPELLINGS, *GONE)]
    rows = [(name, spelling.old) for name, command in commands() for spelling in getattr(command, "old", ())]
    assert rows
    for name, old in rows:
        assert any(line.startswith(f"{name} ") and f" {old}" in line for line in said), f"{name} {old} is not tested"
        assert old not in CliRunner().invoke(main, [*name.split(), "--help"]).output
    for name, command in commands():
        for old in getattr(command, "old_commands", ()):
            assert any(line.startswith(f"{name} {old} ".lstrip()) for line in said), f"{old} is not tested"
            assert old not in CliRunner().invoke(main, [*name.split(), "--help"]).output


@pytest.mark.parametrize(("line", "said"), [*GONE, *REFUSED])
def test_what_is_gone_or_contradicts_itself_is_refused(line: str, said: str) -> None:
    result = CliRunner().invoke(main, line.split())
    assert result.exit_code == 2
    assert said in result.stderr


def test_words_that_are_no_options_are_left_alone() -> None:
    _, given = parsed("verify default --text --report --text -- a")
    assert given["texts"] == ("--report", "--", "a")
    assert given["page_file"] is None
    command, _ = parsed("info --dt 1e-4 x.nir")
    assert command.make_context("info", ["--", "--dt"]).params["path"] == "--dt"


def test_several_values_stand_behind_one_name_in_every_command() -> None:
    _, given = parsed("compare a.npz --nodes block00_* output b.npz")
    assert (given["nodes"], str(given["trace_a"]), str(given["trace_b"])) == (("block00_*", "output"), "a.npz", "b.npz")
    for name, command in commands():
        assert isinstance(command, Command | click.Group), name


def test_a_runner_is_named_alike_everywhere() -> None:
    assert parse_runner("lava:operator:hardware") == ("lava", {"granularity": "operator", "timing": "hardware"})
    assert parse_runner("lava:hardware,operator") == ("lava", {"timing": "hardware", "granularity": "operator"})
    for wrong in ("loihi", "lava:chip", "reference:block", "lava:block:network"):
        with pytest.raises(ConfigurationError, match=wrong):
            parse_runner(wrong)
    named = {
        name: option
        for name, command in commands()
        for option in command.params
        if option.name in ("runner", "against", "expected")
    }
    assert set(named) == {"demo", "simulate", "verify", "check", "profile", "energy"}
    for name, option in named.items():
        assert option.type.name == "runner", name


def test_settings_of_training_are_the_dataclasses_own() -> None:
    _, given = parsed(TASK)
    assert take_settings(TrainingSettings, given) == TrainingSettings()
    assert take_settings(LossWeights, given) == LossWeights()
    assert take_settings(AugmentationSettings, given) == AugmentationSettings(copies=0)
    assert take_settings(Texts, given) == Texts()
    assert take_settings(TeacherUse, given) == TeacherUse()
    assert take_settings(StudentSettings, given) == StudentSettings()
    assert take_settings(Keeping, given) == Keeping()
    assert (given["teacher_epochs"], given["teacher_learning_rate"]) == (
        TEACHER_SETTINGS.epochs,
        TEACHER_SETTINGS.learning_rate,
    )
    _, given = parsed(GENERAL)
    assert take_settings(TrainingSettings, given) == TrainingSettings(epochs=1)
    assert take_settings(LossWeights, given, logits=0.0, label=0.0) == GENERAL_WEIGHTS
    _, given = parsed("distill teacher --teacher bert --task sst2 -o out")
    assert take_settings(TrainingSettings, given) == TEACHER_SETTINGS


def test_settings_are_taken_as_they_are_given() -> None:
    _, given = parsed(
        f"{TASK} --precision integer --batch-size 7 --patience 5 --weight-features 2 --ignore-front-blocks 1 "
        "--feature-cache-gb 2 --augment 3 --unlabelled a.txt b.txt --spans 2 --blocks 3 --positions --norm batch "
        "--vocabulary-size 9 --save-every 5 --resume"
    )
    training = take_settings(TrainingSettings, given)
    assert (training.integer, training.precision) == (True, "bfloat16")
    assert (training.batch_size, training.patience) == (7, 5)
    weights = take_settings(LossWeights, given)
    assert (weights.features, weights.ignored_front_blocks) == (2, 1)
    assert take_settings(TeacherUse, given).largest_features == 2e9
    assert take_settings(AugmentationSettings, given).copies == 3
    texts = take_settings(Texts, given)
    assert ([path.name for path in texts.unlabelled], texts.spans) == (["a.txt", "b.txt"], 2)
    student = take_settings(StudentSettings, given)
    assert student.given == ("num_hidden_layers", "norm", "positions", "vocabulary_size")
    assert student.configuration == {
        "num_hidden_layers": 3,
        "norm": "batch",
        "position_embedding_type": "absolute",
    }
    keeping = take_settings(Keeping, given)
    assert (keeping.save_every, keeping.resume) == (5, True)
    assert option_name(StudentSettings, "num_hidden_layers") == "--blocks"
    assert option_name(StudentSettings, "vocabulary_size") == "--vocabulary-size"


@pytest.mark.parametrize("line", [TASK, GENERAL, "distill teacher --teacher bert --task sst2 -o out"])
def test_the_help_of_a_training_is_in_groups_and_in_sentences(line: str) -> None:
    command, _ = parsed(line)
    output = CliRunner().invoke(main, [*line.split()[:2], "--help"]).output
    headings = {option.group for option in command.params if isinstance(option, GroupedOption)}
    assert "Training" in headings
    for heading in headings:
        assert f"\n{heading}:\n" in output, heading
    for option in command.params:
        assert isinstance(option, click.Option)
        sentence = str(option.help).partition("  [default:")[0].removesuffix(".")
        assert sentence[0].isupper(), option.name
        assert len(sentence.split()) > 2, option.name
        assert "." in str(option.help), option.name
        assert output.count(f"{option.opts[-1]} ") or output.count(f"{option.opts[-1]}\n"), option.name


def test_a_gone_option_says_where_it_was_measured() -> None:
    rows = [spelling for _, command in commands() for spelling in getattr(command, "old", ())]
    gone = [spelling for spelling in rows if isinstance(spelling, Gone)]
    assert {spelling.old for spelling in gone} == {"--power-of-two", "--rounding"}
    for spelling in gone:
        assert "docs/integers.md" in spelling.why
