"""`vexport bench`"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vexport.cli.guard import INTERRUPTED
from vexport.cli.options import (
    DEFAULT_WORKSPACE,
    ForceOpt,
    JsonOpt,
    ModelOpt,
    TrustOpt,
    WeightsOpt,
    Workspace,
    WorkspaceOpt,
)
from vexport.cli.render import figure, print_json, print_table, progress, remark, short_hash
from vexport.errors import EXIT_GATE, InputError

if TYPE_CHECKING:
    from vexport.pipeline.bench import BenchOutcome
    from vexport.pipeline.bench_compare import Comparison


def bench(
    artifacts: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[RECIPE|ARTIFACT]...",
            help="A recipe (quick, paper_cpu, paper_a100, paper_gpu, throughput_gpu, or a .yaml file); graphs, engines "
            "or checkpoints; or a bench.json that is there already. Otherwise the workspace's FP32 graphs and the "
            "engines that run here.",
            show_default=False,
        ),
    ] = None,
    model: ModelOpt = None,
    weights: WeightsOpt = None,
    batch: Annotated[int, typer.Option(metavar="N", help="Images per call.")] = 1,
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="Threads; each backend's choice otherwise.", show_default=False)
    ] = None,
    duration: Annotated[
        float | None, typer.Option(metavar="S", help="Measured seconds per candidate, 5 without a recipe.")
    ] = None,
    baselines: Annotated[bool, typer.Option(help="Put ResNet-50 and Swin-T beside full-size networks.")] = True,
    eager: Annotated[bool, typer.Option(help="Put eager PyTorch beside ONNX Runtime.")] = True,
    cuda_graph: Annotated[
        bool, typer.Option("--cuda-graph", help="Let engines replay their launches as CUDA graphs.")
    ] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="FIELD=VALUE", help="Override a recipe's field, as batches=[1,8].", show_default=False
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Images by class: the accuracy of trained artifacts is measured.", show_default=False
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted benchmark stopped.")] = False,
    roofline: Annotated[
        bool | None,
        typer.Option(
            help="Hold what is measured against what its device could do; recipes do by default.", show_default=False
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the report goes; beside bench.json otherwise.", show_default=False),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(metavar="OLD.json", help="Hold the result against an earlier one.", show_default=False),
    ] = None,
    max_regression: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE",
            help="With --compare: exit 3 where a row is slower by more than this, as 5%, with its whole interval.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.json", help="The document to write.", show_default=False),
    ] = None,
    trust: TrustOpt = False,
    force: ForceOpt = False,
    workspace: WorkspaceOpt = DEFAULT_WORKSPACE,
    as_json: JsonOpt = False,
) -> None:
    """Latency beside ResNet-50 and Swin-T, measured in turns, each network in its own process; every run is new."""
    from vexport.pipeline.bench_compare import read_document, read_share, write_report

    recipe, files, document = _sort(artifacts or ())
    if max_regression is not None and compare is None:
        raise InputError("--max-regression goes with --compare", hint="name the earlier bench.json with --compare")
    bound = read_share(max_regression) if max_regression is not None else None
    old = read_document(compare) if compare is not None else None  # before it may be replaced
    kept = compare if bound is not None else None
    if document is not None:
        if files or recipe or model:
            raise InputError(f"{document} is measured already", hint="give it alone, with --compare or --report")
        found = read_document(document)
        written = write_report(found, report, force=force) if report is not None else ()
        _finish(found, None, old, bound, written, as_json)
        return
    shared: dict[str, Any] = {
        "workspace": Workspace(workspace),
        "resume": resume,
        "data": data,
        "output": output,
        "trust": trust,
        "force": force,
        "command": shlex.join(["vexport", *sys.argv[1:]]),
    }
    with _remarks() as tell, progress(as_json) as update:
        shared["tell"] = tell
        update("preparing")
        shared["on_step"] = update
        if recipe is not None:
            _refuse_with_recipe(
                model=model,
                weights=weights,
                batch=batch != 1,
                cuda_graph=cuda_graph,
                no_baselines=not baselines,
                no_eager=not eager,
            )
            outcome = _measure_recipe(recipe, files, overrides, threads, duration, roofline, report, kept, shared)
        else:
            from vexport.pipeline.bench import measure_latency

            if overrides:
                raise InputError("--set goes with a recipe", hint="name one: vexport bench quick --set batches=[1,8]")
            _require_kept(kept, output or workspace / "bench.json")
            if report is None:
                report = (output.parent if output else workspace) / "bench-report"
            outcome = measure_latency(
                files,
                model=model,
                weights=weights,
                batch=batch,
                threads=threads,
                duration_s=5.0 if duration is None else duration,
                baselines=baselines,
                eager=eager,
                cuda_graph=cuda_graph,
                own_processes=True,
                roofline=bool(roofline),
                report=report,
                **shared,
            )
    _finish(outcome.document, outcome, old, bound, outcome.files, as_json)


@contextmanager
def _remarks() -> Iterator[Callable[[str], None]]:
    """Remarks while measuring; what is told of an interrupt becomes the one line that ends the command."""
    ends: list[str] = []

    def tell(text: str) -> None:
        if text.startswith(INTERRUPTED):
            ends.append(text.removeprefix(INTERRUPTED))
        else:
            remark(text)

    try:
        yield tell
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(*(stop.args or ends[-1:])) from None


def _sort(given: Sequence[Path]) -> tuple[str | None, list[Path], Path | None]:
    """A recipe, files to measure, a document that is there already: what the arguments are."""
    recipes = [one for one in given if one.suffix in (".yaml", ".yml") or (_is_name(one) and not one.exists())]
    documents = [one for one in given if one.suffix == ".json"]
    if len(recipes) + len(documents) > 1:
        names = ", ".join(str(one) for one in (*recipes, *documents))
        raise InputError(f"one recipe or document at a time, not {names}", hint="run the command once for each")
    files = [one for one in given if one not in (*recipes, *documents)]
    return (str(recipes[0]) if recipes else None), files, (documents[0] if documents else None)


def _is_name(path: Path) -> bool:
    return len(path.parts) == 1 and not path.suffix


def _refuse_with_recipe(**given: object) -> None:
    said = [f"--{name.replace('_', '-')}" for name, value in given.items() if value]
    if said:
        raise InputError(f"{', '.join(said)} and a recipe exclude each other", hint="override the recipe with --set")


def _measure_recipe(
    name: str,
    files: Sequence[Path],
    overrides: Sequence[str] | None,
    threads: int | None,
    duration: float | None,
    roofline: bool | None,
    report: Path | None,
    kept: Path | None,
    shared: dict[str, Any],
) -> BenchOutcome:
    from vexport.pipeline.bench import load_recipe, measure_recipe

    flags = {"threads": threads, "clock.duration_s": duration, "roofline": roofline}
    more = [f"{field}={str(value).lower()}" for field, value in flags.items() if value is not None]
    loaded = load_recipe(name, [*(overrides or ()), *more])
    output: Path | None = shared["output"]
    folder: Path = output.parent if output else shared["workspace"].root / "bench" / loaded.name
    _require_kept(kept, output or folder / "bench.json")
    if report is None:
        report = folder
    return measure_recipe(loaded, files, report=report, **shared)


def _require_kept(old: Path | None, target: Path) -> None:
    """Refuse to replace what a run is gated by: after a regression, the regressed run would be the next one's bound."""
    if old is not None and old.resolve() == target.resolve():
        raise InputError(
            f"--max-regression would replace {old}, which it compares with",
            hint="give --output, or keep the earlier result elsewhere: cp bench.json baseline.json",
        )


def _finish(
    document: Mapping[str, Any],
    outcome: BenchOutcome | None,
    old: Mapping[str, Any] | None,
    bound: float | None,
    written: Sequence[Path],
    as_json: bool,
) -> None:
    """Show it, and hold it against the old one where that is asked for."""
    from vexport.pipeline.bench_compare import compare_documents

    comparison = compare_documents(old, document, bound=bound) if old is not None else None
    if as_json:
        said = outcome.to_json() if outcome else {"report": [str(path) for path in written]}
        print_json(said | ({"comparison": comparison.to_json()} if comparison else {}))
        if comparison is not None and bound is not None and not comparison.passed:
            raise typer.Exit(EXIT_GATE)
        return
    render(document)
    if outcome is not None:
        typer.echo(f"raw samples: {outcome.artifact.path}")
    if written:
        typer.echo(f"report: {written[0]}")
    if comparison is not None:
        render_comparison(comparison)
        comparison.require_passed()


def render(document: Mapping[str, Any]) -> None:
    """One table per group, the verdicts, the advice, and what was measured on."""
    from vexport.bench.report import published_clock

    for group in document["groups"]:
        rows = group["rows"]
        if not any(row["median_ms"] for row in rows):
            reasons = dict.fromkeys(str(row["error"]) for row in rows if row["error"])
            names = ", ".join(row["label"] for row in rows)
            typer.echo(f"{group['backend']}, {group['precision']}: {names}: {'; '.join(reasons)}\n")
            continue
        on_gpu = any(row["device_ms"] for row in rows)
        floats = {row["against_float"]["precision"]: None for row in rows if row["against_float"]}
        columns = ["network", "median ms", "p90", "p99", *(["GPU ms"] if on_gpu else [])]
        in_int8 = any(row.get("int8_share") is not None for row in rows)
        columns += [
            "x ResNet-50",
            *([f"x its {'/'.join(floats)}"] if floats else []),
            "images/s",
            *(["in INT8"] if in_int8 else []),
            "top-1 %",
        ]
        clock = published_clock(group["backend"], group["precision"])
        columns += [f"publ. A100 {clock} ms", "sha256"]
        size = "x".join(str(side) for side in group["input_size"])
        on = f", on {group['device']}" if group["device"] else ""
        title = f"{group['backend']}, {group['precision']}, batch {group['batch']}, {size}{on}"
        print_table(title, columns, [_cells(row, clock, on_gpu, bool(floats), in_int8) for row in rows])
        for verdict in _verdicts(document, group):
            typer.echo(verdict)
        typer.echo("")
    for line in [*document["advice"], *_throughput(document)]:
        typer.echo(line)
    notes = dict.fromkeys(note for group in document["groups"] for row in group["rows"] for note in row["notes"])
    for note in notes:
        remark(f"note: {note}")
    rows = [row for group in document["groups"] for row in group["rows"]]
    for row in rows:
        for line in (row.get("failure") or {}).get("stderr") or ():
            remark(f"{row['label']}: {line}")
    if any(row["p99_ms"] and _told(row, "p99_ms", "p99_estimate_ms") is None for row in rows):
        remark("a dash for p90 or p99: too few calls to tell it, by the rule of MLPerf's SingleStream (64 and 662)")
    environment = document["environment"]
    told = [environment.get("cpu"), f"{cores} cores" if (cores := environment.get("usable_cores")) else None]
    remark(f"measured on: {', '.join(filter(None, told)) or 'not told'}; {environment.get('os') or 'not told'}")
    if not document["complete"]:
        remark("this benchmark was interrupted: groups or rooflines are missing")


def _verdicts(document: Mapping[str, Any], group: Mapping[str, Any]) -> Sequence[str]:
    """As the document has them; drawn anew where an INT8 row did not run in INT8."""
    from vexport.bench.advice import mostly_float

    if not any(mostly_float(row.get("int8_share")) for row in group["rows"]):
        told: Sequence[str] = group["verdicts"]
        return told
    from vexport.bench.page.answers import group_verdicts
    from vexport.bench.page.document import Document, GroupPart

    typed = Document.model_construct(baseline=document["baseline"])
    return group_verdicts(typed, GroupPart.model_validate(group))


def _throughput(document: Mapping[str, Any]) -> list[str]:
    from vexport.bench.page.document import ThroughputPart
    from vexport.bench.page.words import throughputs

    return throughputs([ThroughputPart.model_validate(part) for part in document.get("throughput", ())])


def _cells(row: Mapping[str, Any], clock: str, on_gpu: bool, by_float: bool, in_int8: bool) -> list[str]:
    accuracy = row["accuracy"]
    top1 = f"{accuracy['top1_percent']:.2f} {'publ.' if accuracy['source'] == 'published' else ''}" if accuracy else "-"
    median = "failed" if row["error"] else figure(row["median_ms"], 3 if (row["median_ms"] or 9) < 1 else 2)
    return [
        row["label"],
        median + (" unstable" if row["unstable"] and row["error"] is None else ""),
        figure(_told(row, "p90_ms", "estimate_ms")),
        figure(_told(row, "p99_ms", "p99_estimate_ms")),
        *([figure(row["device_ms"]["median"], 3) if row["device_ms"] else "-"] if on_gpu else []),
        _ratio(row["ratio"]),
        *([_ratio(row["against_float"])] if by_float else []),
        figure(row["images_per_s"], 1),
        *([f"{share:.0%}" if (share := row.get("int8_share")) is not None else "-"] if in_int8 else []),
        top1.strip(),
        figure(row["published_latencies_ms"].get(clock)),
        short_hash(row["artifact_sha256"]),
    ]


def _told(row: Mapping[str, Any], percentile: str, estimate: str) -> float | None:
    """A percentile; None where the calls are too few to tell it."""
    single = row.get("single_stream")
    found: float | None = row[percentile]
    return None if single and single.get(estimate) is None else found


def _ratio(found: Mapping[str, Any] | None) -> str:
    return f"{found['value']:.2f} ({found['low']:.2f}-{found['high']:.2f})" if found else "-"


def render_comparison(comparison: Comparison) -> None:
    """One line per row, and what differs besides."""
    typer.echo("\nNow against before:")
    for change in comparison.changes:
        mark = "  slower than allowed" if change.regressed else ""
        other = "; another artifact" if change.same_artifact is False else ""
        typer.echo(f"  {change.text}{other}{mark}")
    for line in comparison.other_machine:
        remark(f"warning: measured otherwise, so a change need not be the software's: {line}")
    for line in comparison.notes:
        remark(f"note: {line}")
    if comparison.bound is not None and comparison.passed:
        typer.echo(f"no row is more than {comparison.bound:.1%} slower by the whole of its interval")
