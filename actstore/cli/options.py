"""Turn a run dataclass into a click command.

Click only splits the arguments. The texts of the options go, with those of the environment and of
the run file, through one validation (`actstore.request`), imported only when a command runs.
"""

from __future__ import annotations

import os
import textwrap
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from actstore.config import COMMANDS, Run
from actstore.option import OptionSpec, did_you_mean, option_specs, panels

if TYPE_CHECKING:
    from actstore.request import Fault, Given

__all__ = ["HELP_WIDTH", "RunCommand", "env_prefix", "write_wrapped"]

HELP_WIDTH = 100
_CONFIG_HELP = "Run file with the same options; what is given here is stronger."
_PRINT_HELP = "Print all settings as a run file and stop."
_DEBUG_HELP = "Show Python's traceback of an error."


def env_prefix(command: str) -> str:
    """What the environment variables of a command begin with: `ACTSTORE_PROBE_`."""
    return f"ACTSTORE_{command.upper()}_"


def write_wrapped(formatter: click.HelpFormatter, text: str, before: str = "") -> None:
    """Write text in lines that start below each other, never broken at a hyphen."""
    margin = " " * formatter.current_indent
    lines = textwrap.wrap(
        text,
        formatter.width,
        initial_indent=margin + before,
        subsequent_indent=margin + " " * len(before),
        break_on_hyphens=False,
        break_long_words=False,
    )
    formatter.write("\n".join(lines) + "\n")


class RunCommand(click.Command):
    """The click command of one run class.

    Invoking it returns the validated run, or None after `--print-config`, and raises InputError
    with all faults otherwise.
    """

    def __init__(self, command: str) -> None:
        self.run_class = COMMANDS[command]
        self.prefix = env_prefix(command)
        self.specs = {spec.name: spec for spec in option_specs(self.run_class)}
        general = [click.Option(["--debug"], is_flag=True, help=_DEBUG_HELP)]
        if self.run_class.takes_config:
            config = click.Option(
                ["--config"], metavar="FILE", type=_Value(path="file"), help=_CONFIG_HELP
            )
            show = click.Option(["--print-config"], is_flag=True, help=_PRINT_HELP)
            general = [config, show, *general]
        self.general = general
        super().__init__(
            command,
            params=[*map(_parameter, self.specs.values()), *general],
            callback=self._build,
            help=self.run_class.__doc__,
            context_settings={"max_content_width": HELP_WIDTH},
        )

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options under the headings of their panels, in one pair of columns."""
        sections = {
            panel: [(_left_column(spec), spec.describe()) for spec in specs]
            for panel, specs in panels(self.run_class).items()
        }
        records = [
            param.get_help_record(ctx)
            for param in self.get_params(ctx)
            if param.name not in self.specs
        ]
        sections["General"] = [record for record in records if record is not None]
        width = max(len(left) for rows in sections.values() for left, _ in rows)
        for title, rows in sections.items():
            with formatter.section(title):
                for left, right in rows:
                    write_wrapped(formatter, right, before=f"{left:{width}}  ")

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """An example, and where else options can be set."""
        with formatter.section("Example"):
            write_wrapped(formatter, self.run_class.example)
        also = f"Options can also be set in the environment: {self.prefix}OPTION."
        if self.run_class.takes_config:
            also += (
                " And in a run file, as OPTION: VALUE with _ in place of -. The command line is "
                "stronger than the environment, which is stronger than the run file; --no-FLAG "
                "switches a flag off."
            )
        formatter.write_paragraph()
        write_wrapped(formatter, also)

    def _build(
        self,
        config: str | None = None,
        print_config: bool = False,
        debug: bool = False,
        **typed: Any,
    ) -> Run | None:
        # Here, not above: pydantic and PyYAML would treble the time of --help.
        from actstore.request import build_run
        from actstore.runfile import dump_run, read_run_file

        from_file: dict[str, Given] = {}
        faults: list[Fault] = []
        if self.run_class.takes_config:
            config = config or os.environ.get(self.prefix + "CONFIG")
        if config:
            from_file, faults = read_run_file(config)
        from_environment, more_faults = self._environment()
        run = build_run(
            self.run_class,
            [from_file, from_environment, self._typed(typed)],
            faults + more_faults,
            run_file=config or None,
        )
        if print_config:
            click.echo(dump_run(run), nl=False)
            return None
        return run

    def _environment(self) -> tuple[dict[str, Given], list[Fault]]:
        """Options from variables that are set and not empty; other names are faults."""
        from actstore.request import Fault, from_text

        names = {self.prefix + name.upper(): spec for name, spec in self.specs.items()}
        known = [*names, self.prefix + "CONFIG"] if self.run_class.takes_config else [*names]
        given, faults = {}, []
        for place, variable in enumerate(sorted(os.environ)):
            text, order = os.environ[variable], (1, place, 0)
            if not text or not variable.startswith(self.prefix):
                continue
            if variable in names:
                spec = names[variable]
                given[spec.name] = from_text(spec, [text], variable, order)
            elif variable not in known:
                hint = did_you_mean(variable, known)
                faults.append(Fault(order, f"{variable}: {self.name} has no such option{hint}"))
        return given, faults

    def _typed(self, typed: dict[str, Any]) -> dict[str, Given]:
        from actstore.request import Given, from_text

        given = {}
        for place, (name, spec) in enumerate(self.specs.items()):
            value, order = typed[name], (2, place, 0)
            if isinstance(value, bool):
                given[name] = Given(value, spec.flag, "", order)
            elif value not in (None, ()):
                texts = list(value) if spec.many else [value]
                given[name] = from_text(spec, texts, spec.flag, order)
        return given


class _Value(click.ParamType):  # type: ignore[type-arg]
    """Any text; knows what shell completion can offer for it."""

    name = "text"

    def __init__(
        self, choices: tuple[str, ...] = (), *, many: bool = False, path: str | None = None
    ) -> None:
        self.choices = choices
        self.many = many
        self.path = path

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Choices, also after a comma, or the shell's own completion of paths."""
        if self.path:
            return [CompletionItem(incomplete, type=self.path)]
        done, comma, last = incomplete.rpartition(",") if self.many else ("", "", incomplete)
        return [
            CompletionItem(done + comma + choice)
            for choice in self.choices
            if choice.startswith(last) and choice not in done.split(",")
        ]


def _parameter(spec: OptionSpec) -> click.Parameter:
    """The click parameter that collects an option's texts; None or () when it is not given."""
    value = _Value(spec.choices, many=spec.many, path=spec.about.path)
    if spec.about.positional:
        # Not required for click: the environment may give it, and absence is our own message.
        return click.Argument([spec.name], type=value, required=False, metavar=spec.metavar)
    if spec.kind is bool:
        off = spec.flag.replace("--", "--no-", 1)
        return click.Option([f"{spec.flag}/{off}", spec.name], default=None)
    return click.Option([spec.flag, spec.name], type=value, multiple=spec.many, default=None)


def _left_column(spec: OptionSpec) -> str:
    if spec.about.positional or spec.kind is bool:
        return spec.flag
    return f"{spec.flag} {spec.metavar}"
