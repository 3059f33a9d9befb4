"""`rtp COMMAND --help` as text: usage with names, one example, the flags in groups, as wide as the window.

The flags come from tyro's parser of the command's dataclasses. tyro's own page calls every positional STR, has no
example, and its boxes break lines in the middle of a sentence.
"""

from __future__ import annotations

import re
import shutil
import textwrap
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

_INDENT, _COLUMN, _WIDEST = 2, 26, 100  # columns
_KINDS = "kinds of component, each with the settings named after it below"
_STORES = "STORE ..."
_VALUES = {
    "--detector": "owlvit:PATH|boxes:FILE",
    "--data": _STORES,
    "--validation": _STORES,
    "--output": "DIR",
    "--html": "FILE",
    "--config": "FILE",
    "--name": "NAME",
}


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One line of the page: `--name VALUE  text`. A positional argument has no name."""

    name: str
    value: str
    text: str
    group: str
    required: bool = False

    @property
    def is_positional(self) -> bool:
        return not self.name


Choices = Mapping[str, tuple[Sequence[str], str]]
"""Settings that are config classes: --flag -> (names of the classes, the present one)."""


def page(
    parser: ArgumentParser,
    *,
    prog: str,
    description: str,
    example: str = "",
    first: Sequence[str] = (),
    choices: Choices,
) -> str:
    """The help of tyro's `parser`; the flags named in `first` stand before all others."""
    width = min(_WIDEST, shutil.get_terminal_size((80, 24)).columns)
    kinds = [
        Flag(name=name, value="CLASS", text=f"{' or '.join(classes)} [{present}]", group=_KINDS)
        for name, (classes, present) in choices.items()
    ]
    flags, about = [*kinds, *_flags(parser)], {group.title: group.description or "" for group in parser._action_groups}
    lines = [*_usage(prog, flags, width), "", *_paragraphs(description, width)]
    if example:
        lines += ["", "Example:", *_command(example, width)]
    for title, members in _groups(flags, first).items():
        lines += ["", f"{title}:", *_wrapped(_plain(about.get(title, "")), width, indent=_INDENT)]
        lines += [line for flag in members for line in _entry(flag, width)]
    return "\n".join(lines)


def missing(parser: ArgumentParser, complaint: str) -> list[str]:
    """The required arguments that tyro's `complaint` reports as missing."""
    if "Missing from" in complaint:
        listed = complaint.partition("Missing from")[2]
        required = [flag.name or flag.value for flag in _flags(parser) if flag.required]
        return [name for name in required if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", listed)]
    value = re.search(r"Missing value for argument '([^'-][^']*)'", complaint)  # a positional
    return [value[1].upper()] if value else []


def _flags(parser: ArgumentParser) -> Iterator[Flag]:
    for group in parser._action_groups:
        for action in group._group_actions:
            names = [name for name in action.option_strings if name != "-h"]
            text, default = _text_and_default(str(action.help or "").replace("%%", "%"))
            if len(names) == 2 and default == "False":  # --x, --no-x
                names, default = names[:1], ""
            shown = f" [{default}]" if default not in ("", "None") else ""
            yield Flag(
                name=", ".join(names),
                value=_value("".join(names), str(action.metavar or "")),
                text=f"{_plain(text)}{shown}".strip(),
                group=group.title or "",
                required=bool(action.required),
            )


def _text_and_default(text: str) -> tuple[str, str]:
    """tyro's "... (default: x)" or "... (required)" taken apart."""
    match = re.fullmatch(r"(.*?)\s*\((?:default: (.*)|required)\)", text, flags=re.DOTALL)
    return (match[1], match[2] or "") if match else (text, "")


def _value(name: str, metavar: str) -> str:
    """`{None}|STR` and `[STR [STR ...]]` in short: STR, STR ..."""
    if name in _VALUES:
        return _VALUES[name]
    text = re.sub(r"\{None\}\|", "", metavar).replace("{None,", "{")
    return re.sub(r"\[(\S+) \[\1 \.\.\.\]\]", r"\1 ...", text)


def _plain(text: str) -> str:
    return " ".join(text.replace("`", "").split())


def _usage(prog: str, flags: Sequence[Flag], width: int) -> list[str]:
    words = [flag.value for flag in flags if flag.is_positional]
    words += [f"{flag.name} {flag.value}" for flag in flags if flag.required and not flag.is_positional]
    return _wrapped(
        f"usage: {prog} {' '.join(words)} [OPTIONS] [--json]".replace("  ", " "), width, hang=len("usage: ")
    )


def _groups(flags: Sequence[Flag], first: Sequence[str]) -> dict[str, list[Flag]]:
    """The page's headings in order, each with its flags."""
    by_name = {flag.name.partition(",")[0]: flag for flag in flags}
    chosen = [by_name[name] for name in first if name in by_name]
    groups: dict[str, list[Flag]] = {"the flags that matter first": chosen} if chosen else {}
    for flag in sorted(flags, key=lambda flag: not flag.is_positional):
        if flag not in chosen:
            groups.setdefault("arguments" if flag.is_positional else flag.group, []).append(flag)
    return {("more options" if chosen and title == "options" else title): group for title, group in groups.items()}


def _entry(flag: Flag, width: int) -> list[str]:
    head = " " * _INDENT + f"{flag.name} {flag.value}".strip()
    text = _wrapped(flag.text, width, indent=_COLUMN)
    if not text or len(head) > _COLUMN - 2:
        return [head, *text]
    return [head.ljust(_COLUMN) + text[0].lstrip(), *text[1:]]


def _paragraphs(text: str, width: int) -> list[str]:
    """Wrap the paragraphs, which blank lines separate; each item of a list begins a line."""
    lines: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text.strip().replace("`", "")):
        pieces = re.split(r"\n(?=- |  )", paragraph.strip("\n"))
        lines += ["", *(line for piece in pieces for line in _piece(piece, width))]
    return lines[1:]


def _piece(piece: str, width: int) -> list[str]:
    indent = len(piece) - len(piece.lstrip())
    return _wrapped(" ".join(piece.split()), width, indent=indent, hang=2 if piece.startswith("- ") else 0)


def _wrapped(text: str, width: int, *, indent: int = 0, hang: int = 0) -> list[str]:
    lead = " " * indent
    return textwrap.wrap(
        text,
        max(width, indent + 30),
        initial_indent=lead,
        subsequent_indent=lead + " " * hang,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _command(line: str, width: int) -> list[str]:
    """A command line to copy, broken before flags if it is too long for one line."""
    kept = re.sub(r" (?!-)", "\0", line.strip())
    pieces = [piece.replace("\0", " ") for piece in _wrapped(kept, width - 2, indent=_INDENT, hang=4)]
    return [*(f"{piece} \\" for piece in pieces[:-1]), pieces[-1]]
