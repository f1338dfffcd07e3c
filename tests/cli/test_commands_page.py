"""docs/commands.md says what --help says. Written by `python tests/cli/test_commands_page.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from click import Context, Parameter

from seguro.cli.main import COMMANDS, GROUPS, app

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"
HEADINGS = {
    "Scans": ("check", "plan", "prepare"),
    "Learning": ("train",),
    "Over many sites": ("federate", "generate", "adapt"),
    "Using a model": ("predict", "refine"),
    "Judging it": ("evaluate", "attack", "compare", "report"),
}
"""Heading -> commands; those that are in no group come last."""
LAST = "Around it"
SAID = COMMANDS | {f"{g} {c}": text for g, inner in GROUPS.items() for c, text in inner.items()}
NAMES = [n for n in SAID if n not in GROUPS]
"""Commands with options, those of a group after its name."""
COMMON = {"--dry-run", "--json", "--help"}
HEAD = """# Commands

`seguro COMMAND --help` says the same on the terminal. Every command takes `--help` and `--json` (one JSON
object on standard output, text on standard error); those that write take `--dry-run`. They end by printing
the next command. Exit codes: 0 ok, 1 usage, 2 data, 3 internal.
[Where things go](../README.md#where-things-go).
"""


def parameters(name: str) -> list[Parameter]:
    command = typer.main.get_command(app)
    for word in name.split():
        command = command.get_command(Context(command), word)
    return command.params


def grouped() -> dict[str, list[str]]:
    known = {c for names in HEADINGS.values() for c in names}
    groups = {title: [c for c in names if c in COMMANDS] for title, names in HEADINGS.items()}
    return groups | {LAST: [c for c in COMMANDS if c not in known]}


def page() -> str:
    """Return the whole page."""
    parts = [HEAD]
    for title, names in grouped().items():
        parts.append(f"## {title}\n")
        for name in (n for c in names for n in ([f"{c} {i}" for i in GROUPS[c]] if c in GROUPS else [c])):
            found = parameters(name)
            words = [_argument(p) for p in found if p.param_type_name == "argument"]  # they come first
            said = [f"{w}: {_cell(p.help)}" for w, p in zip(words, found, strict=False)]
            parts.append(f"### `{' '.join(['seguro', name, *words])}`\n")
            parts.append("  \n".join([SAID[name], *said]) + "\n")
            rows = [
                f"| `{' / '.join([*p.opts, *p.secondary_opts])}` | {_cell(p.help)} |"
                for p in found
                if p.param_type_name == "option" and not COMMON & set(p.opts)
            ]
            if rows:
                parts.append("\n".join(["| option | |", "|---|---|", *rows]) + "\n")
    return "\n".join(parts)


def _argument(parameter: Parameter) -> str:
    word = (parameter.metavar or parameter.name or "").upper()
    return word if parameter.nargs == 1 else f"{word} ..."


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|").replace("<", "&lt;")


def test_the_page_is_what_the_commands_say():
    assert PAGE.read_text() == page(), "write it again: python tests/cli/test_commands_page.py"


@pytest.mark.parametrize("name", NAMES)
def test_every_command_and_option_is_on_the_page(name):
    text = PAGE.read_text()
    section = text.split(f"### `seguro {name}")[1].split("\n##")[0]
    for parameter in parameters(name):
        assert parameter.help, f"{name} {parameter.opts} has no help"
        if parameter.param_type_name == "argument":
            assert _cell(parameter.help) in section
        else:
            where = text if COMMON & set(parameter.opts) else section
            assert all(f"{option}" in where for option in (*parameter.opts, *parameter.secondary_opts))


def test_a_reader_finds_the_page():
    assert "docs/commands.md" in (PAGE.parents[1] / "README.md").read_text()


if __name__ == "__main__":
    PAGE.write_text(page())
