"""The grammar of the commands' words: options with several values, options in groups, and what was once said otherwise.

An old spelling is a row of its command (``old=``), appears in no help, does what the new one does and says on standard
error what that is. An option that is gone is refused by name, with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import click

from hardware.choices import LAVA


class GroupedOption(click.Option):
    """An option that stands under a heading of its own in the help; see `Command`."""

    def __init__(self, *args: Any, group: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


@dataclass(frozen=True)
class Word:
    """A word of the command line and what it is.

    Attributes
    ----------
    text : str
    option : str or None
        Where the word is an option's name, that name; the text may hold its value too, behind ``=``.
    several : str or None
        The option with several values that the word may be one of.
    is_argument : bool
        Whether it is one of the command's own arguments.
    """

    text: str
    option: str | None = None
    several: str | None = None
    is_argument: bool = False


@dataclass(frozen=True)
class Renamed:
    """An option that is called otherwise now; with `value`, a flag that is a word of another option now."""

    old: str
    new: str
    value: str | None = None

    @property
    def takes_value(self) -> bool:
        """A flag takes none."""
        return self.value is None

    def apply(self, words: list[Word]) -> list[Word]:
        """Return the words as they are spelled now."""
        said = self.new if self.value is None else f"{self.new} {self.value}"
        if any(word.option == self.old for word in words):
            if any(word.option == self.new for word in words):
                raise click.UsageError(f"{self.old} is {said} now; give {self.new} once.")
            say_new_spelling(self.old, said)
        found: list[Word] = []
        for word in words:
            if word.option != self.old:
                found.append(word)
            elif self.value is None:
                found.append(Word(self.new + word.text.removeprefix(self.old), self.new))
            else:
                found += [Word(self.new, self.new), Word(self.value)]
        return found


@dataclass(frozen=True)
class PartOfRunner:
    """An option whose value now stands behind Lava's name, as in ``--runner lava:network``.

    Attributes
    ----------
    old, new : str
        ``--granularity``, and the option that names the runner.
    runner : str
        What that option means where it is not given.
    """

    old: str
    new: str
    runner: str
    takes_value = True

    def apply(self, words: list[Word]) -> list[Word]:
        """Return the words as they are spelled now."""
        rest: list[Word] = []
        values: list[str] = []
        remaining = iter(words)
        for word in remaining:
            if word.option != self.old:
                rest.append(word)
                continue
            value = word.text.partition("=")[2] if "=" in word.text else getattr(next(remaining, None), "text", None)
            if value is None:
                raise click.UsageError(f"Option '{self.old}' requires an argument.")
            values.append(value)
        if not values:
            return words
        places = [index for index, word in enumerate(rest) if word.option == self.new]
        if not places:
            rest = [Word(self.new, self.new), Word(self.runner), *rest]
            places = [0]
        place = places[-1] + ("=" not in rest[places[-1]].text)
        if place < len(rest):  # else the runner's own name is missing, which is refused as usual
            if rest[place].text.rpartition("=")[2].partition(":")[0] != LAVA:
                raise click.UsageError(f"{self.old} is for {self.new} lava only.")
            rest[place] = replace(rest[place], text=":".join([rest[place].text, *values]))
            said = rest[place].text if rest[place].option else f"{self.new} {rest[place].text}"
            say_new_spelling(f"{self.old} {values[-1]}", said)
        return rest


@dataclass(frozen=True)
class Gone:
    """An option that is no longer there, and why."""

    old: str
    why: str
    takes_value: bool = False

    def apply(self, words: list[Word]) -> list[Word]:
        """Return the words, or refuse the option."""
        if any(word.option == self.old for word in words):
            raise click.UsageError(f"{self.old} is gone: {self.why}")
        return words


OldSpelling = Renamed | PartOfRunner | Gone


def say_new_spelling(old: str, new: str) -> None:
    """Say on standard error how what was typed is spelled now."""
    click.echo(f"note: {old} is spelled {new} now", err=True)


class Command(click.Command):
    """A command of ours: its options may take several values and stand in groups, and it knows their old spellings.

    Options with ``multiple=True`` take several values behind one name: ``--text "one" "two"`` means ``--text "one"
    --text "two"``. Words that the command's own arguments still need are given back to them, so ``verify --text "one"
    default`` works too.

    Parameters
    ----------
    old : sequence of Renamed, PartOfRunner or Gone
        What is no longer said.
    """

    def __init__(self, *args: Any, old: Sequence[OldSpelling] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.old = tuple(old)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Spell everything as it is spelled now, repeat an option's name before each of its values, parse as usual."""
        words = self._understood(args)
        if not ctx.resilient_parsing:  # which completes words in a shell
            for spelling in self.old:
                words = spelling.apply(words)
        return super().parse_args(ctx, self._repeated(words))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under their headings, in the order in which headings first appear."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = None if isinstance(parameter, click.Argument) else parameter.get_help_record(ctx)
            if record is not None:
                groups.setdefault(getattr(parameter, "group", None) or "Options", []).append(record)
        for heading, records in groups.items():
            with formatter.section(heading):
                formatter.write_dl(records)

    def _understood(self, args: list[str]) -> list[Word]:
        """Say of each word whether it is an option's name, its value, or one of several."""
        options = [parameter for parameter in self.params if isinstance(parameter, click.Option)]
        several = {name for option in options if option.multiple for name in option.opts}
        single = {
            name
            for option in options
            if not option.multiple and not option.is_flag and not option.count
            for name in option.opts
        }
        single |= {spelling.old for spelling in self.old if spelling.takes_value}
        words: list[Word] = []
        option: str | None = None
        first_value = takes_next = only_arguments = False
        for word in args:
            if only_arguments:
                words.append(Word(word, is_argument=True))
            elif takes_next:
                words.append(Word(word))
                takes_next = False
            elif word == "--" and not first_value:
                words.append(Word(word))
                only_arguments = True
            elif word in several:
                option, first_value = word, True
                words.append(Word(word, word))
            elif word.startswith("-") and len(word) > 1 and not first_value:
                option, takes_next = None, word in single
                words.append(Word(word, word.partition("=")[0]))
            elif option is not None:
                words.append(Word(word, several=None if first_value else option))
                first_value = False
            else:
                words.append(Word(word, is_argument=True))
        return words

    def _repeated(self, words: list[Word]) -> list[str]:
        """Return the words with an option's name before each of its values, but for those that arguments still need."""
        needed = sum(1 for parameter in self.params if isinstance(parameter, click.Argument) and parameter.required)
        needed -= sum(1 for word in words if word.is_argument)
        expanded: list[str] = []
        for word in reversed(words):
            owner = word.several
            if owner is not None and needed > 0:
                needed -= 1
                owner = None
            expanded[:0] = [word.text] if owner is None else [owner, word.text]
        return expanded
