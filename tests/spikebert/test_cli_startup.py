"""Help and mistakes in the words of a command answer at once: they load click and little else.

And the packages hand out their public names without loading what is behind the others.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HEAVY = {"h5py", "lava", "matplotlib", "nir", "numpy", "onnx", "onnxruntime", "rich", "torch", "transformers"}
FEWEST_COMMANDS = 20

WALK = """
import json, sys
import click
from click.testing import CliRunner
from spikebert.cli import main

heavy, found = set(json.loads(sys.argv[1])), []


def call(*words):
    result = CliRunner().invoke(main, words)
    found.append([list(words), result.exit_code, result.output, sorted(heavy & set(sys.modules))])


def walk(command, *words):
    call(*words, "--help")
    call(*words, "--no-such-option")
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            walk(command.get_command(context, name), *words, name)
    elif any(parameter.required for parameter in command.params):
        call(*words)


walk(main)
print(json.dumps(found))
"""


def in_a_process_of_its_own(program: str, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        [sys.executable, "-c", program, *words], env=environment, check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture(scope="module")
def answers() -> list[list[Any]]:
    """What every command and group says to ``--help``, to an option it lacks, and to missing words."""
    return json.loads(in_a_process_of_its_own(WALK, json.dumps(sorted(HEAVY))))


def test_help_of_every_command_loads_nothing_heavy(answers: list[list[Any]]) -> None:
    helps = [answer for answer in answers if answer[0][-1] == "--help"]
    assert len(helps) >= FEWEST_COMMANDS
    for words, code, output, loaded in helps:
        assert code == 0, words
        assert output.startswith("Usage: "), words
        assert not loaded, f"{words} loads {loaded}"


def test_a_mistake_in_the_words_loads_nothing_heavy(answers: list[list[Any]]) -> None:
    mistakes = [answer for answer in answers if answer[0][-1:] != ["--help"]]
    assert len(mistakes) >= FEWEST_COMMANDS
    for words, code, output, loaded in mistakes:
        assert code == 2, words
        assert "No such option" in output or "Missing" in output, words
        assert not loaded, f"{words} loads {loaded}"


@pytest.mark.parametrize("name", ["spikebert", "export", "hardware"])
def test_a_package_loads_its_names_when_they_are_asked_for(name: str) -> None:
    program = f"import sys, json, {name}; print(json.dumps([dir({name}), sorted(sys.modules)]))"
    listed, loaded = json.loads(in_a_process_of_its_own(program))
    package = importlib.import_module(name)
    assert set(package.__all__) <= set(listed)
    assert not HEAVY & set(loaded)
    assert sorted(package.__all__) == sorted(package._HOMES)
    for public in package.__all__:
        assert getattr(package, public) is getattr(importlib.import_module(package._HOMES[public]), public)
    with pytest.raises(AttributeError, match="no_such_name"):
        package.no_such_name  # noqa: B018


def test_a_name_of_the_package_registers_the_model_with_transformers() -> None:
    program = """
from spikebert import default_checkpoint
from transformers import AutoModelForSequenceClassification
print(type(AutoModelForSequenceClassification.from_pretrained(default_checkpoint())).__name__)
"""
    assert in_a_process_of_its_own(program).split() == ["SpikeBertForSequenceClassification"]


def test_words_to_choose_from_are_those_that_are_known() -> None:
    from spikebert.choices import NEURONS
    from spikebert.neuron import NEURON_PRESETS

    assert tuple(NEURON_PRESETS) == NEURONS
