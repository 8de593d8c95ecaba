"""The Typer application and its commands."""

from __future__ import annotations

from typing import Annotated

import typer

from vexport.cli import (
    ablate,
    bench,
    check,
    doctor,
    eval,
    explain,
    fuse,
    inspect,
    models,
    onnx,
    quantize,
    quickstart,
    train,
    trt,
)
from vexport.cli.guard import guarded

app = typer.Typer(
    name="vexport",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # a bug keeps Python's traceback
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from vexport.deps import installed_version

        typer.echo(f"vexport {installed_version('vexport')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """From a trained VanillaNet checkpoint to a proven, plain ONNX graph, with latency beside ResNet-50 and Swin."""


_COMMANDS = (
    quickstart.quickstart,
    models.models,
    train.train,
    fuse.fuse,
    onnx.onnx,
    quantize.quantize,
    trt.trt,
    check.check,
    eval.eval,
    explain.explain,
    inspect.inspect,
    doctor.doctor,
    bench.bench,
    ablate.ablate,
)
for _command in _COMMANDS:
    app.command(_command.__name__)(guarded(_command))
