"""The command line: one file per command, torch imported only by those that compute."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import typer
from click import Context
from click.exceptions import ClickException, UsageError
from typer.core import TyperArgument, TyperGroup
from typer.utils import get_params_from_function

COMMANDS = {
    "import": "Bring a published data set, as downloaded, into a layout that check reads.",
    "check": "Find what is wrong with a folder of scans, and say which method fits.",
    "plan": "Choose spacing, patch, network depth, folds from the training cases.",
    "prepare": "Write the preprocessed cases that training reads.",
    "train": "Train a model; runs check, plan and prepare first where they are missing.",
    "federate": "Train one model over many sites whose data stay where they are.",
    "generate": "Make synthetic labelled volumes of a site from a data factory and its label branch.",
    "adapt": "Learn to segment a site without labels, from a data factory and a site that has them.",
    "predict": "Segment scans with one or more trained models.",
    "refine": "Predict again after a slice was corrected by hand, without training; can be undone.",
    "evaluate": "Score predictions against reference labels.",
    "attack": "Measure what attacks or corruptions leave of a model's Dice.",
    "compare": "Compare the scores, or the robustness, of several runs with paired tests.",
    "bench": "Compare ways to segment: accuracy, time, peak memory and operations of each.",
    "report": "Write one offline HTML page about a run.",
    "demo": "Go the whole way on a dozen made subjects in a few minutes.",
    "doctor": "Say what this machine and installation can do.",
}
GROUPS = {
    "federate": {
        "simulate": "Train over sites on this machine: the same as over real ones, without a network.",
        "provision": "Make certificates, keys and a start-up folder for the server and for each site.",
        "server": "Run a federation over a network, as its server.",
        "site": "Take part in a federation over a network, as a site.",
    },
}
"""Commands that have commands of their own, each in a file `<group>_<command>.py`."""
FILES = {"import": "imports"}
"""Files and functions of commands that cannot be named as the command."""
EXIT_USAGE, EXIT_DATA, EXIT_INTERNAL = 1, 2, 3


class _Lazy(TyperGroup):
    """Imports a command's file only when that command is called or its own help is asked for."""

    @property
    def table(self) -> dict[str, str]:
        """Commands of this group and what they do."""
        return GROUPS.get(self.name or "", COMMANDS)

    def list_commands(self, ctx: Context) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: Context, cmd_name: str) -> Any:
        if cmd_name not in self.table:
            return None
        if self.table is COMMANDS and cmd_name in GROUPS:
            group = typer.Typer(cls=_Lazy, name=cmd_name, add_completion=False, no_args_is_help=True)
            group.callback(help=COMMANDS[cmd_name])(_root)
            return typer.main.get_command(group)
        name = FILES.get(cmd_name, cmd_name)
        inner = self.table is not COMMANDS
        module = importlib.import_module(f"seguro.cli.{self.name}_{name}" if inner else f"seguro.cli.{name}")
        function = getattr(module, name)
        app = typer.Typer(add_completion=False)
        app.command(name=cmd_name, help=module.__doc__)(function)
        command = typer.main.get_command(app)
        told = get_params_from_function(function)
        for parameter in command.params:
            if isinstance(parameter, TyperArgument):  # typer before 0.21 loses its help with click 8.5
                parameter.help = told[str(parameter.name)].default.help
        return command

    def format_commands(self, ctx: Context, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(self.table.items()))

    def format_help(self, ctx: Context, formatter: Any) -> None:
        inner = self.table is not COMMANDS
        formatter.write_text(
            COMMANDS[str(self.name)]
            if inner
            else "seguro segments medical images when the textbook setting fails."
        )
        formatter.write_paragraph()
        command = f"seguro {self.name} COMMAND" if inner else "seguro COMMAND"
        formatter.write_text(f"Usage: {command} [OPTIONS] ...   ({command} --help)")
        self.format_commands(ctx, formatter)
        formatter.write_paragraph()
        formatter.write_text("Exit codes: 0 ok, 1 usage, 2 data, 3 internal.")


app = typer.Typer(cls=_Lazy, add_completion=False, no_args_is_help=True)


@app.callback()
def _root() -> None:
    """Keep the group a group."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    from seguro.core.errors import SeguroError

    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments == ["--version"]:
        from seguro import __version__

        print(__version__)
        return 0
    try:
        # without standalone mode a typer.Exit is not raised, it comes back as its code
        code = app(args=arguments, prog_name="seguro", standalone_mode=False)
    except SeguroError as error:
        _complain(str(error))
        return error.exit_code
    except UsageError as error:
        command = arguments[0] if arguments else ""
        _complain(f"{error.format_message()} (seguro {command} --help lists the options)")
        return EXIT_USAGE
    except ClickException as error:
        _complain(error.format_message())
        return EXIT_USAGE
    except typer.Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        _complain("stopped by the user")
        return 130
    except Exception as error:  # noqa: BLE001  the last resort: said plainly, with the trace for a bug report
        import traceback

        traceback.print_exc()
        _complain(f"internal error, please report it with the lines above: {type(error).__name__}: {error}")
        return EXIT_INTERNAL
    return code if isinstance(code, int) else 0


def _complain(message: str) -> None:
    from rich.console import Console
    from rich.markup import escape

    Console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]error:[/] {escape(message)}")


def run() -> None:
    """Entry point of the `seguro` script."""
    sys.exit(main())
