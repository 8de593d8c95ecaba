"""`vexport ablate`"""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from vexport.cli.options import DEFAULT_WORKSPACE, JsonOpt, Workspace, WorkspaceOpt
from vexport.cli.render import print_json, print_table, progress, remark
from vexport.errors import EXIT_REFUSED, InputError

if TYPE_CHECKING:
    from vexport.pipeline.ablate import AblationOutcome


def ablate(
    ablation: Annotated[
        str,
        typer.Argument(
            metavar="SET", help="techniques, techniques_lecun, shortcuts, series_terms, slope, maps, or a .yaml file."
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Where the images are: a folder with train/ and val/, wds/DIR, hfds/NAME. Short for data.source.",
            show_default=False,
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Override a field of the training recipe in every run, unless the run sets it, as epochs=5.",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="N,N...", help="In place of the recipe's, as 0,1,2.", show_default=False)
    ] = None,
    runs: Annotated[
        list[str] | None,
        typer.Option(
            "--runs",
            metavar="NAME",
            help="Only this run, or those of a pattern, as 'alexnet_*'; may be given again.",
            show_default=False,
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(metavar="N", help="Runs at once; they share the processor's cores.")] = 1,
    export: Annotated[
        bool, typer.Option("--export/--no-export", help="Merge, export and evaluate each trained network.")
    ] = True,
    force: Annotated[
        bool,
        typer.Option("--force", help="Train the chosen runs anew, and write over files that vexport did not write."),
    ] = False,
    workspace: WorkspaceOpt = DEFAULT_WORKSPACE,
    as_json: JsonOpt = False,
) -> None:
    """Train what differs in one thing, with several seeds, and tell what makes a difference; goes on where it stopped.

    Finished runs are kept while their recipe is the same. Needs the extra `train`.
    """
    from vexport.pipeline.ablate import run_ablation

    chosen = [*(overrides or ()), *([f"data.source={_quoted(data)}"] if data is not None else [])]
    # Where there is no bar, as in a cluster's log, each epoch is a line.
    lines = sys.stderr is not None and not sys.stderr.isatty() and not as_json
    with progress(as_json) as update:
        update("preparing")
        outcome = run_ablation(
            ablation,
            workspace=Workspace(workspace),
            overrides=chosen,
            seeds=_read_seeds(seeds) if seeds is not None else None,
            runs=[name for given in runs or () for name in given.split(",")],
            jobs=jobs,
            export=export,
            force=force,
            command=shlex.join(["vexport", *sys.argv[1:]]),
            on_step=update,
            on_epoch=remark if lines else lambda _line: None,
            tell=remark,
        )
    if as_json:
        print_json(outcome.to_json())
        if outcome.failures:
            raise typer.Exit(EXIT_REFUSED)
        return
    render(outcome)
    outcome.require_complete()


def _quoted(path: str) -> str:
    """A path as a YAML string, whatever is in it."""
    return "'" + path.replace("'", "''") + "'"


def _read_seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise InputError(f"--seeds {text} are not whole numbers", hint="as in --seeds 0,1,2") from error


def render(outcome: AblationOutcome) -> None:
    """The table, what it shows, what to know of it, and the files."""
    from vexport.pipeline.ablate_document import table_cells

    columns, cells = table_cells(outcome.rows)
    document = outcome.document
    text_columns = 2 if columns[0] == "" else 1
    print_table(document["title"] or document["name"], columns, cells, text_columns=text_columns)
    for verdict in document["verdicts"]:
        typer.echo(verdict)
    for note in document["notes"]:
        remark(f"note: {note}")
    typer.echo(f"figures: {outcome.files[0]}, table: {outcome.files[1]}"
               + (f", picture: {outcome.files[-1]}" if len(outcome.files) > 2 else ""))  # fmt: skip
