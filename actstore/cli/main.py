"""The `actstore` command."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from actstore.cli.errors import report_error
from actstore.cli.options import HELP_WIDTH, RunCommand, write_wrapped
from actstore.config import COMMANDS, Run, command_of
from actstore.option import did_you_mean

__all__ = ["main"]

_GROUPS = {
    "Activations": ("extract", "info", "verify"),
    "Probes": ("probe", "report", "predict"),
    "First steps": ("demo",),
}
_NOTES = (
    "A model, a dataset or a probe is a local path or a hub id.",
    "Exit codes: 0 done; 1 done, but something is damaged or missing; 2 bad usage or input; 130 "
    "interrupted.",
    'Completion: eval "$(_ACTSTORE_COMPLETE=bash_source actstore)"; also zsh_source, fish_source.',
)


class _Commands(click.Group):
    """The commands, each built from its run class when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return RunCommand(cmd_name) if cmd_name in COMMANDS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            hint = did_you_mean(name, COMMANDS) or f"; use one of {', '.join(COMMANDS)}"
            raise click.UsageError(f"no such command: {name}{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands in groups."""
        for title, names in _GROUPS.items():
            with formatter.section(title):
                for name in names:
                    write_wrapped(formatter, str(COMMANDS[name].__doc__), before=f"{name:9}")

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """What holds for all commands."""
        for note in _NOTES:
            formatter.write_paragraph()
            write_wrapped(formatter, note)


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        import actstore

        click.echo(f"actstore {actstore.__version__}")
        ctx.exit()


def _commands() -> click.Group:
    options: list[click.Parameter] = [
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_print_version,
            help="Show the version and exit.",
        ),
        click.Option(["--debug"], is_flag=True, help="Show Python's traceback of an error."),
    ]
    return _Commands(
        "actstore",
        params=options,
        callback=lambda debug: None,
        help="Store a language model's activations once; train and evaluate many probes on them.",
        context_settings={"max_content_width": HELP_WIDTH},
    )


def main(args: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors become one line on stderr.

    The run is handed to `actstore.app.<command>.run`, imported only now. `--debug`, or
    ACTSTORE_DEBUG in the environment, adds the traceback.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in arguments or bool(os.environ.get("ACTSTORE_DEBUG"))
    try:
        answer: Any = _commands().main(arguments, prog_name="actstore", standalone_mode=False)
        code = _call(answer) if isinstance(answer, Run) else int(answer or 0)
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        return report_error(error, debug=debug)
    return code


def _call(run: Run) -> int:
    app = importlib.import_module(f"actstore.app.{command_of(type(run))}")
    return int(app.run(run))
