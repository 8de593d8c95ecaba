"""`vexport doctor`"""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from vexport.cli.options import JsonOpt
from vexport.cli.render import print_json, progress, size

if TYPE_CHECKING:
    from vexport.pipeline.doctor import Diagnosis, Finding


def doctor(as_json: JsonOpt = False) -> None:
    """Show what this machine can do, and what is missing with the command that adds it."""
    from vexport.pipeline.doctor import diagnose

    with progress(as_json) as update:
        update("looking")
        found = diagnose()
    if as_json:
        print_json(found.to_json())
    else:
        render(found)


def render(found: Diagnosis) -> None:
    """Findings group by group, what the machine can do, and what to add."""
    typer.echo(f"vexport {found.vexport}, Python {found.python}")
    _group("GPU", [found.driver, found.torch, found.cuda])
    for device in found.devices:
        typer.echo(f"  yes  {device.name}, sm{device.capability}, {size(device.memory_bytes)}")
    _group("TensorRT", found.runtimes)
    _group("ONNX Runtime's providers, each tried", found.providers)
    _group("Libraries", found.libraries)
    _group("Optional", found.extras)
    _group("This machine can", found.abilities)
    if found.missing:
        typer.echo("\nTo add what is missing")
        for finding in found.missing:
            typer.echo(f"  {finding.name}: {finding.fix}")


def _group(title: str, findings: list[Finding] | tuple[Finding, ...]) -> None:
    typer.echo(f"\n{title}")
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        said = "  ".join(part for part in (finding.version, finding.detail) if part)
        typer.echo(f"  {'yes' if finding.found else 'no ':<3}  {finding.name:<{width}}  {said}".rstrip())
