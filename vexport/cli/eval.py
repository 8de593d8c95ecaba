"""`vexport eval`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vexport.cli.options import ForceOpt, FromOpt, JsonOpt, ModelOpt, TrustOpt
from vexport.cli.render import figure, print_json, print_table, progress, remark, short_hash
from vexport.errors import EXIT_GATE

if TYPE_CHECKING:
    from vexport.pipeline.evaluation import EvalResult, Evaluated


def eval(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A checkpoint, a graph or an engine.")],
    data: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="Images, one folder per class; or a folder whose val, validation or test is that."
        ),
    ],
    against: Annotated[
        Path | None,
        typer.Option(metavar="OTHER", help="A second artifact on the same images.", show_default=False),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What runs ARTIFACT, as pytorch-fp16, onnxruntime or openvino; the usual one of its kind otherwise. "
            "A wrong name lists all.",
            show_default=False,
        ),
    ] = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="Class by class too.")] = False,
    real: Annotated[
        bool, typer.Option("--real", help="ImageNet ReaL accuracy too, for files named ILSVRC2012_val_*.JPEG.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="So many images only, spread evenly.", show_default=False)
    ] = None,
    min_top1: Annotated[
        float | None,
        typer.Option(metavar="X", help="Exit with 3 where the top-1 is below X per cent.", show_default=False),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(metavar="N", help="Height and width of the input; the artifact's otherwise.", show_default=False),
    ] = None,
    crop_pct: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Share of the shorter side that the crop keeps; the artifact's otherwise.",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[int, typer.Option(metavar="N", help="Images per call, as far as the artifact takes them.")] = 64,
    max_damaged: Annotated[int, typer.Option(metavar="N", help="So many damaged images are skipped.")] = 10,
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="Threads; each backend's choice otherwise.", show_default=False)
    ] = None,
    weights_from: FromOpt = None,
    model: ModelOpt = None,
    trust: TrustOpt = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.json", help="Write the result there too.", show_default=False),
    ] = None,
    force: ForceOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Top-1 and top-5 accuracy of any artifact on a folder of images."""
    from vexport.pipeline.evaluate import evaluate

    with progress(as_json) as update:
        result = evaluate(
            artifact,
            data,
            against=against,
            backend=backend,
            size=size,
            crop_pct=crop_pct,
            limit=limit,
            real=real,
            batch=batch,
            max_damaged=max_damaged,
            least_top1_percent=min_top1,
            threads=threads,
            trust=trust,
            model=model,
            weights_from=weights_from,
            output=output,
            force=force,
            on_step=update,
        )
    if as_json:
        print_json(result.to_json())
        if not result.passed:
            raise typer.Exit(EXIT_GATE)
        return
    render(result, per_class=per_class)
    result.require_passed()


def render(result: EvalResult, *, per_class: bool = False) -> None:
    """The figures, how two artifacts go together, the classes where asked for, and what was skipped."""
    remark(f"{result.prepared}; {result.labelling}")
    for note in result.notes:
        remark(f"note: {note}")
    for image, reason in result.skipped:
        remark(f"skipped: {image}: {reason}")
    _print_figures([result.subject, *([result.against] if result.against else [])], result)
    if result.against is not None:
        _print_agreement(result, result.against)
    if per_class:
        _print_classes(result)
    if result.record is not None:
        typer.echo(f"written: {result.record.path}")


def _print_figures(found: list[Evaluated], result: EvalResult) -> None:
    real = result.subject.real
    columns = ["artifact", "backend", "images", "right", "top-1 %"]
    columns += ["top-5 %"] * (result.subject.score.right_in_5 is not None)
    columns += ["ReaL %"] * (real is not None)
    rows = []
    for one in found:
        row = [one.path.name, one.backend, str(one.score.images), str(one.score.right), figure(one.score.top1_percent)]
        row += [figure(one.score.top5_percent)] if one.score.right_in_5 is not None else []
        row += [figure(one.real.real_percent)] if one.real is not None else []
        rows.append([*row, figure(one.score.cross_entropy, 4), short_hash(one.sha256)])
    print_table(f"Accuracy on {result.folder}", [*columns, "cross-entropy", "sha256"], rows, text_columns=2)
    if real is not None and real.left_out:
        typer.echo(f"ReaL: {real.images} images; {real.left_out} have no ReaL label and are left out of it")


def _print_agreement(result: EvalResult, other: Evaluated) -> None:
    found = result.agreement
    assert found is not None
    a, b = result.subject.path, other.path
    # Two files of one name stand in two folders.
    first, second = (a.name, b.name) if a.name != b.name else (str(a), str(b))
    typer.echo(f"the first answer is the same on {figure(found.agreement_percent)} % of the images")
    typer.echo(
        f"{first} is right on {found.only_a} image(s) where {second} is not, and wrong on {found.only_b} "
        f"where {second} is right; both are right on {found.both_right}, neither on {found.both_wrong}"
    )


def _print_classes(result: EvalResult) -> None:
    names = result.class_names
    rows = []
    for one in result.subject.score.by_class:
        wrong = "-" if one.confused_with is None else f"{names[one.confused_with]} ({one.confused})"
        top1 = figure(one.top1_percent) if one.images else "no images"
        rows.append([names[one.label], wrong, str(one.images), str(one.right), top1])
    columns = ["class", "most frequent wrong answer", "images", "right", "top-1 %"]
    print_table("Class by class", columns, rows, text_columns=2)
