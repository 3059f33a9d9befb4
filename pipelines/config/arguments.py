"""Command lines derived from dataclass types by tyro, with its error boxes shortened to one sentence."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import tyro

from pipelines.config.serialization import did_you_mean
from pipelines.terminal import help_page
from pipelines.terminal.commands import COMMANDS
from pipelines.terminal.plain_words import plain_words

T = TypeVar("T")

_MARKERS = (tyro.conf.AvoidSubcommands, tyro.conf.PositionalMetavarFromFieldName)
_HELP = ("-h", "--help")


class UsageError(ValueError):
    """The command line cannot be understood; the message is one sentence with the remedy."""


def parse(
    kind: type[T],
    arguments: Sequence[str],
    *,
    prog: str,
    default: T | None = None,
    description: str = "",
    first: Sequence[str] = (),
    choices: help_page.Choices = MappingProxyType({}),
    example: str = "",
) -> T:
    """Build `kind` from command-line arguments; `--help` prints the flags with their units and exits.

    `first` names the flags that the help page begins with, `choices` those that `take` has read already; `example` is
    shown instead of the command's.
    """
    options: dict[str, Any] = {"prog": prog, "config": _MARKERS}
    if default is not None:
        options["default"] = default
    if any(word in _HELP for word in arguments):
        command = COMMANDS.get(prog.split()[1])
        example = example or (command.example if command else "")
        parser = _parser(kind, options)
        print(help_page.page(parser, prog=prog, description=description, example=example, first=first, choices=choices))
        raise SystemExit(0)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            parsed = tyro.cli(kind, args=list(arguments), **options)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
    else:
        _require_texts(arguments, prog)
        _require_values(parsed, default, arguments, prog)
        return parsed
    sentence = _sentence(complaint.getvalue(), arguments, _parser(kind, options), choices)
    raise UsageError(f"{prog}: {plain_words(sentence)}")


def _require_texts(arguments: Sequence[str], prog: str) -> None:
    """Raise UsageError for an empty text, which nothing can be called and no setting means."""
    for before, word in pairwise(["", *arguments]):
        name, equals, value = word.partition("=")
        if word.startswith("--") and equals and not value.strip():
            named = name
        elif not word.strip():
            named = before if before.startswith("--") else "an argument"
        else:
            continue
        raise UsageError(f"{prog}: {named} is empty: give a value, or leave it out (a shell variable may be unset)")


def _require_values(parsed: object, default: object, arguments: Sequence[str], prog: str) -> None:
    """Raise UsageError for a flag of several values that is given without any, and so says nothing. Over a recipe's own
    values it says: none."""
    given = {_dashed(word[2:]): word for word, after in pairwise([*arguments, "--"]) if after.startswith("--")}
    if flag := next((given[name] for name in _left_empty(parsed, default) if name in given), None):
        raise UsageError(f"{prog}: {flag} needs at least one value; leave it out for its default")


def _left_empty(config: object, default: object, prefix: str = "") -> Iterator[str]:
    """The flags of several values that have none, as by default; those of a nested config with and without its name."""
    for each in fields(config) if is_dataclass(config) and not isinstance(config, type) else ():
        value, before = getattr(config, each.name), getattr(default, each.name, each.default)
        if is_dataclass(value):
            yield from _left_empty(value, before)
            yield from _left_empty(value, before, f"{prefix}{_dashed(each.name)}.")
        elif value == () == before:
            yield prefix + _dashed(each.name)


def _parser(kind: type, options: dict[str, Any]) -> Any:
    """What tyro would parse with, as argparse has it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return tyro.extras.get_parser(kind, **options)


def take(flags: list[str], name: str) -> str | None:
    """The value of the flag `name`, given as two words or with =, which is taken out of `flags`; None without it.

    Raises UsageError if it has no value, or several.
    """
    places = [place for place, word in enumerate(flags) if word == name or word.startswith(f"{name}=")]
    if not places:
        return None
    first, _, value = flags[places[0]].partition("=")
    apart = first == flags[places[0]]
    if apart:
        value = flags[places[0] + 1] if places[0] + 1 < len(flags) else ""
    if len(places) > 1 or not value or (apart and value.startswith("--")):
        raise UsageError(f"{name} needs one value{', and is given twice' if len(places) > 1 else ''}")
    del flags[places[0] : places[0] + 1 + apart]
    return value


def absolute(path: str) -> str:
    """A local path made absolute, since workers run in other folders; URLs stay as they are. UsageError for nothing."""
    if not path.strip():
        raise UsageError("a path is empty: give a folder or a URL (a shell variable may be unset)")
    return path if "://" in path else str(Path(path).absolute())


def require_local(path: str, what: str) -> str:
    """`path`, which this command writes on this machine's disk. Raises UsageError for an address, which would become a
    folder of that name."""
    if "://" in path:
        raise UsageError(
            f"{what} {path} is an address, and this command writes to a local disk: copy it there afterwards"
        )
    return path


def _sentence(complaint: str, arguments: Sequence[str], parser: Any, choices: help_page.Choices) -> str:
    """One sentence from tyro's box: an unknown flag before all else, then what is missing."""
    known = [name for action in parser._actions for name in action.option_strings if name != "-h"]
    for word in arguments:
        name = word.partition("=")[0]
        if name.startswith("--") and name != "--" and _dashed(name) not in map(_dashed, [*known, *choices]):
            return f"there is no option {name}{_hint(name, [*known, *choices, '--json', '--help'], choices)}"
    # The box is drawn in dashes where the locale has no other characters.
    lines = [re.sub(r"[\u2500-\u257f]|^[-+| ]+$", "", line.strip()).strip() for line in complaint.splitlines()]
    text = " ".join(line for line in lines[1:] if line and "full helptext" not in line and not line.endswith("--help"))
    missing = help_page.missing(parser, text)
    if missing:
        return f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing; --help says what is meant"
    valueless = re.search(r"Missing value for argument '([^']+)'", text)
    if valueless:
        return f"{valueless[1]} needs a value; --help says which"
    unknown = re.search(r"Unrecognized options?: (.+?)(?:$| \()", text)
    if unknown:
        return f"{unknown[1].split()[0]!r} is one word too many; --help lists what it takes"
    choice = re.search(r"invalid choice '(.*)' for argument '([^']+)'\. Expected one of \((.+?),?\)", text)
    if choice:
        given = choice[3].replace("'", "").split(", ")
        if "None" in given:  # tyro has them in no order then
            given = sorted({*given} - {"None"})
        return f"{choice[2]} cannot be {choice[1]!r}: give one of {', '.join(given)}"
    value = re.search(r"Error parsing (\S+): (.*?)(?: Argument helptext: .*)?$", text)
    if value:
        is_class = not value[1].startswith("-") and not value[1].isupper()  # what its flags together cannot be
        return value[2].strip() if is_class else f"{value[1]}: {value[2].strip()}"
    return f"{text.split('Perhaps you meant')[0].strip() or 'cannot read the arguments'}; --help says more"


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _hint(flag: str, known: list[str], choices: help_page.Choices) -> str:
    """The nearest of the known flags; below a setting that is a config class, of those of this class."""
    owner = max((f"{name}." for name in choices if flag.startswith(f"{name}.")), key=len, default="--")
    hint = did_you_mean(
        flag.removeprefix(owner), [name.removeprefix(owner) for name in known if name.startswith(owner)]
    )
    if "did you mean" in hint:
        return re.sub(r"'(.*)'", rf"'{owner}\1'", hint)
    if owner == "--":
        return "; --help lists them"
    classes, present = choices[owner[:-1]]
    others = ", ".join(name for name in classes if name != present)
    return f": {owner[:-1]} is {present}, which has none; it may also be {others}"
