"""Options made of the fields of a dataclass, and the dataclass made of what they were given."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import click

from spikebert.cli.application import Function
from spikebert.cli.grammar import GroupedOption
from spikebert.distillation.settings import OPTION, SettingOption

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)

Settings = TypeVar("Settings")


def setting_options(defaults: Any, *names: str, without: Sequence[str] = ()) -> Callable[[Function], Function]:
    """Return a decorator that adds an option for each field of a dataclass made by `setting`.

    Parameters
    ----------
    defaults : dataclass
        An instance: its values are the defaults.
    *names : str
        Only these fields.
    without : sequence of str
        Not these fields.
    """
    kind = type(defaults)
    types = typing.get_type_hints(kind)
    asked = {name: o for name, o in _options(kind) if (name in names or not names) and name not in without}
    for name, word in asked.items():
        if word.word_of is not None:
            option = asked[word.word_of]
            said = f"{option.help.removesuffix('.')}; {word.help}"
            asked[word.word_of] = replace(option, help=said, choices=(*option.choices, name))

    def add(function: Function) -> Function:
        for name, option in reversed(asked.items()):
            if option.word_of is None:
                function = _option(name, option, types[name], getattr(defaults, name))(function)
        return function

    return add


def take_settings(kind: type[Settings], options: dict[str, Any], **given: Any) -> Settings:
    """Return a dataclass made of what its options were given, which is taken out of `options`, and of `given`."""
    asked = dict(_options(kind))
    values = {name: options.pop(name) for name in asked if name in options}
    for name, option in asked.items():
        if option.word_of is not None and values.get(option.word_of) == name:
            del values[option.word_of]
            values[name] = True
        elif option.unit != 1 and name in values:
            values[name] *= option.unit
    return kind(**values, **given)


def option_name(kind: type, field: str) -> str:
    """Return the option that asks for a field, with its dashes."""
    return f"--{dict(_options(kind))[field].name or field.replace('_', '-')}"


def _options(kind: Any) -> Iterator[tuple[str, SettingOption]]:
    """Yield the fields that have options, in their order."""
    for entry in fields(kind):
        if OPTION in entry.metadata:
            yield entry.name, entry.metadata[OPTION]


def _option(name: str, option: SettingOption, annotation: Any, default: Any) -> Callable[[Function], Function]:
    alternatives = [each for each in typing.get_args(annotation) if each is not type(None)] or [annotation]
    kind: Any = alternatives[0]  # of "int | None", of "Sequence[Path]", or of itself
    more: dict[str, Any] = {"default": default if option.unit == 1 else default / option.unit}
    if kind is bool:
        more["is_flag"] = True
    elif option.choices:
        more["type"] = click.Choice(option.choices)
    elif kind is Path:
        more["type"] = FILE if option.reads_file else FOLDER
    elif option.least is not None:
        more["type"] = click.IntRange(min=option.least)
    else:
        more["type"] = kind
    said = option.help
    if typing.get_origin(annotation) is Sequence:
        more["multiple"] = True
    elif option.unset is not None:
        said += f"  [default: {option.unset}]"
    elif kind is not bool and default is not None:
        more["show_default"] = True
    spelling = f"--{option.name or name.replace('_', '-')}"
    return click.option(spelling, name, cls=GroupedOption, group=option.group, help=said, **more)
