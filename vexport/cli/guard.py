"""The one place where errors become messages and exit codes."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from typing import Any

import typer

from vexport.errors import EXIT_INTERRUPTED, VexportError

INTERRUPTED = "interrupted: "


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Wrap a command: errors are printed with their hint, an interrupt ends with a line and 130, bugs keep tracebacks.

    A KeyboardInterrupt with a text says itself what is there and how to go on.
    """

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except VexportError as error:
            _print_error(error)
            if kwargs.get("as_json"):
                said = {"message": error.message, "details": list(error.details), "hint": error.hint}
                typer.echo(json.dumps({"error": said, "exit_code": error.exit_code}, indent=2))
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt as stop:
            typer.echo(f"{INTERRUPTED}{stop.args[0] if stop.args else 'nothing was left half-written'}", err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from None

    return run


def _print_error(error: VexportError) -> None:
    colour = sys.stderr.isatty()
    typer.secho("error: ", fg="red" if colour else None, bold=colour, err=True, nl=False)
    typer.echo(error.message, err=True)
    for line in error.details:
        typer.echo(f"  {line}", err=True)
    typer.secho("hint: ", fg="cyan" if colour else None, bold=colour, err=True, nl=False)
    typer.echo(error.hint, err=True)
