"""Options that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from vexport.workspace import DEFAULT_FOLDER, Workspace

CheckpointArg = Annotated[
    Path | None,
    typer.Argument(
        metavar="[CKPT]",
        help="A checkpoint (.pth, .pt, .ckpt, .safetensors). Without one: the newest that fits in the workspace, "
        "then the published weights of --model.",
        show_default=False,
    ),
]
ModelOpt = Annotated[
    str | None,
    typer.Option("--model", "-m", metavar="NAME", help="The network; `vexport models` lists them.", show_default=False),
]
WeightsOpt = Annotated[
    Literal["pretrained", "random"] | None,
    typer.Option(
        "--weights", help="Published or seeded random weights of --model, in place of a file.", show_default=False
    ),
]
FromOpt = Annotated[
    Literal["ema", "model"] | None,
    typer.Option(
        "--from", help="Which weights of a training checkpoint; the EMA where it has one.", show_default=False
    ),
]
WorkspaceOpt = Annotated[
    Path, typer.Option("--workspace", "-w", metavar="DIR", help="Where artifacts and their manifests live.")
]
OutputOpt = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="The file to write, in place of one in the workspace.",
        show_default=False,
    ),
]
AssumeSlopeOpt = Annotated[
    bool, typer.Option("--assume-slope-1", help="Merge although the activation slope is known to be below 1.")
]
ForceOpt = Annotated[bool, typer.Option("--force", help="Overwrite a file that vexport did not write.")]
TrustOpt = Annotated[
    bool, typer.Option("--trust", help="Open an engine that vexport did not write: it may run any code.")
]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
DEFAULT_WORKSPACE = DEFAULT_FOLDER

__all__ = [
    "DEFAULT_WORKSPACE",
    "AssumeSlopeOpt",
    "CheckpointArg",
    "ForceOpt",
    "FromOpt",
    "JsonOpt",
    "ModelOpt",
    "OutputOpt",
    "TrustOpt",
    "WeightsOpt",
    "Workspace",
    "WorkspaceOpt",
]
