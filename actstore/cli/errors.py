"""What the command line says, and returns, when something goes wrong: the only such place.

Exit codes: 2 for bad usage, bad input or a machine that cannot do it; 130 after an interruption;
141, as a shell would say, when the reader of stdout went away; for other errors of the package
the error's own `exit_code`; 1 for a bug. Everything is one line on stderr, or one line per fault.
"""

from __future__ import annotations

import errno
import os
import select
import sys
import traceback
from contextlib import suppress

import click

from actstore.errors import ActstoreError
from actstore.option import did_you_mean

__all__ = ["report_error"]

_FULL = (errno.ENOSPC, errno.EDQUOT)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_LONGEST_BUG = 300


def report_error(error: BaseException, *, debug: bool) -> int:
    """Print what went wrong on stderr and return the exit code."""
    if isinstance(error, BrokenPipeError) and _reader_is_gone():
        return 141
    if debug:
        traceback.print_exception(error)
    lines, code = _explain(error)
    for line in lines:
        print(line, file=sys.stderr)
    return code


def _explain(error: BaseException) -> tuple[list[str], int]:
    match error:
        case ActstoreError():
            texts = [str(error), *getattr(error, "__notes__", [])]
            return [f"error: {_one_line(text)}" for text in texts], error.exit_code
        case KeyboardInterrupt() | click.Abort():
            return ["error: interrupted"], 130
        case click.exceptions.NoArgsIsHelpError():
            return [error.format_message()], 2
        case click.ClickException():
            return [f"error: {_usage(error)}"], 2
        case MemoryError():
            return ["error: out of memory: use fewer workers, layers or probes at a time"], 2
        case OSError(errno=number) if number in _FULL:
            remedy = "free some space and run the same command again"
            return [f"error: no space left on device{_file(error)}: {remedy}"], 2
        case OSError(errno=number) if number in _DENIED:
            return [f"error: {str(error.strerror).lower()}{_file(error)}"], 2
    text = _one_line(f"{type(error).__name__}: {error}")
    if len(text) > _LONGEST_BUG:
        text = f"{text[: _LONGEST_BUG // 2]} ... {text[-_LONGEST_BUG // 2 :]}"
    return [f"internal error: {text} (run with --debug for the traceback)"], 1


def _one_line(text: str) -> str:
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def _file(error: OSError) -> str:
    return f" ({error.filename})" if error.filename else ""


def _usage(error: click.ClickException) -> str:
    """Click's complaint in our form, with the command whose help to read."""
    text = _one_line(error.format_message()).removesuffix(".")
    if isinstance(error, click.NoSuchOption):
        known = error.ctx.command.params if error.ctx else []
        flags = [flag for param in known for flag in [*param.opts, *param.secondary_opts]]
        text = f"no such option: {error.option_name}{did_you_mean(error.option_name, flags)}"
    context = getattr(error, "ctx", None)
    return f"{text} (see '{context.command_path} --help')" if context else text


def _reader_is_gone() -> bool:
    """Whether stdout or stderr is the pipe that broke, and not one of a library. A broken one is
    replaced, so that Python does not complain about it once more at exit."""
    gone = False
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # a stream in memory has no descriptor
            poller = select.poll()
            poller.register(stream.fileno(), 0)
            if any(event & (select.POLLERR | select.POLLHUP) for _, event in poller.poll(0)):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
                gone = True
    return gone
