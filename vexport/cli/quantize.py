"""`vexport quantize`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vexport.cli.options import (
    DEFAULT_WORKSPACE,
    ForceOpt,
    JsonOpt,
    ModelOpt,
    OutputOpt,
    WeightsOpt,
    Workspace,
    WorkspaceOpt,
)
from vexport.cli.render import figure, print_json, print_table, progress, remark, short_hash, size

if TYPE_CHECKING:
    from vexport.pipeline.quantize import QuantizeResult

LISTED = 4


def quantize(
    calib: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="Images to calibrate on: a folder, a .tar, or a .npy or .npz of prepared ones."
        ),
    ],
    graph: Annotated[
        Path | None,
        typer.Argument(
            metavar="[GRAPH]",
            help="An FP32 .onnx file, or a checkpoint to export. Without one: the newest FP32 graph of the workspace, "
            "then the published weights of --model.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        int, typer.Option(metavar="N", help="How many of them; an eighth is held out to compare on.")
    ] = 512,
    seed: Annotated[int, typer.Option(metavar="N", help="Of their choice.")] = 0,
    method: Annotated[
        Literal["auto", "minmax", "percentile", "entropy", "mse"],
        typer.Option(help="How ranges are chosen; auto tries all and keeps the best on the held-out images."),
    ] = "auto",
    equalize: Annotated[
        bool,
        typer.Option(
            "--equalize/--no-equalize", help="Rescale channels between convolutions, exactly, where INT8 gains by it."
        ),
    ] = True,
    correct_biases: Annotated[
        bool,
        typer.Option(
            "--correct-biases/--no-correct-biases", help="Let biases take up what rounding shifts, where INT8 gains."
        ),
    ] = True,
    mixed: Annotated[
        bool,
        typer.Option(
            "--mixed/--no-mixed",
            help="Leave the fewest convolutions in floating point with which the accuracy holds, if it does not hold.",
        ),
    ] = True,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NODE", help="A convolution that stays in floating point; may be repeated.", show_default=False
        ),
    ] = None,
    evaluate_on: Annotated[
        Path | None,
        typer.Option(
            "--eval",
            metavar="DIR",
            help="Images, one folder per class, on which INT8 must be as accurate as FP32; or a .npz of prepared "
            "images and labels.",
            show_default=False,
        ),
    ] = None,
    max_drop: Annotated[float, typer.Option(metavar="X", help="So many points of top-1 may be lost.")] = 0.5,
    steps: Annotated[
        bool, typer.Option("--steps", help="Measure each step on its own: FP32, FP16, naive INT8, and what follows.")
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Draw the channels' ranges, before and after equalisation.", show_default=False
        ),
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="List the scales of every convolution.")] = False,
    model: ModelOpt = None,
    weights: WeightsOpt = None,
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="Threads; one per core otherwise.", show_default=False)
    ] = None,
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Take statistics that were measured before.")
    ] = True,
    output: OutputOpt = None,
    force: ForceOpt = False,
    workspace: WorkspaceOpt = DEFAULT_WORKSPACE,
    as_json: JsonOpt = False,
) -> None:
    """Write the INT8 graph of an FP32 graph, only where it is as good; `vexport trt --int8` builds it."""
    from vexport.pipeline.calibration import QuantizeOptions
    from vexport.pipeline.quantize import quantize_graph

    options = QuantizeOptions(
        images=images,
        seed=seed,
        method=method,
        equalize=equalize,
        correct_biases=correct_biases,
        mixed=mixed,
        keep=tuple(keep or ()),
        max_drop=max_drop,
        steps=steps,
    )
    with progress(as_json) as update:
        result = quantize_graph(
            graph,
            workspace=Workspace(workspace),
            calib=calib,
            options=options,
            evaluate_on=evaluate_on,
            model=model,
            weights=weights,
            threads=threads,
            output=output,
            plot=plot,
            use_cache=cache,
            force=force,
            on_progress=update,
        )
    if as_json:
        print_json(result.to_json())
    else:
        render(result, layers=layers)


def render(result: QuantizeResult, *, layers: bool = False) -> None:
    """The images, the methods, the layers where asked for, the gate and the file."""
    graph, facts = result.artifact, result.artifact.facts
    remark(f"graph: {result.took}")
    calibration = facts["calibration"]
    remark(f"images: {calibration['prepared']}")
    for note in result.notes:
        remark(f"note: {note}")
    for image, reason in calibration["skipped"].items():
        remark(f"skipped: {image}: {reason}")
    _print_images(calibration)
    _print_tried(facts)
    if facts["steps"]:
        _print_steps(facts["steps"])
    if layers:
        _print_layers(facts["layers"])
    quantised = sum(layer["quantised"] for layer in facts["layers"])
    typer.echo(
        f"{graph.model}: {quantised} of {len(facts['layers'])} convolutions take INT8 and have INT8 weights, "
        f"{facts['int8_share_of_macs']:.1%} of the multiply-accumulates"
    )
    if facts["kept_fp32"]:
        typer.echo(f"left in floating point: {', '.join(facts['kept_fp32'])}")
    _print_gate(facts["gate"])
    state = "up to date: " if result.up_to_date else ""
    typer.echo(f"{state}{graph.path}  {size(graph.manifest.size_bytes)}  sha256 {short_hash(graph.sha256)}")


def _print_images(calibration: dict[str, Any]) -> None:
    rows = []
    for part, count in (("calibration", calibration["measured"]), ("held out", calibration["held_out"])):
        names = [entry["name"] for entry in calibration["images"] if entry["part"] == part]
        shown = ", ".join(names[:LISTED]) + (" ..." if len(names) > LISTED else "")
        rows.append([part, shown, str(count)])
    unused = calibration["found"] - calibration["measured"] - calibration["held_out"]
    rows.append(["not used", "", str(unused)])
    print_table(f"Images of {calibration['path']}", ["part", "names", "images"], rows, text_columns=2)


def _print_tried(facts: dict[str, Any]) -> None:
    from vexport.pipeline.held_out import sqnr_db

    rows = []
    written = (facts["equalised"], facts["method"], facts["bias_corrected"], list(facts["kept_fp32"]))
    for row in facts["tried"]:
        same = (row["form"] == "equalised", row["method"], row["bias_corrected"], row["left_out"])
        agreement = "-" if row["top1_agreement"] is None else f"{100 * row['top1_agreement']:.1f}"
        sqnr = "-" if row["noise"] is None else f"{sqnr_db(row['noise']):.1f}"
        left_out = f"{len(row['left_out'])} left out" if row["left_out"] else ""
        corrected = "biases corrected" if row["bias_corrected"] else ""
        how = ", ".join(filter(None, (row["form"], row["method"], corrected, left_out)))
        rows.append([how, "written" if same == written else "", sqnr, figure(row["centred_cosine"], 5), agreement])
    count = facts["tried"][0]["images"]
    columns = ["INT8", "", "SQNR dB", "cosine", "same class %"]
    print_table(f"Against FP32 on {count} held-out images", columns, rows, text_columns=2)


def _print_steps(steps: list[dict[str, Any]]) -> None:
    gates = [step["gate"] for step in steps if step["gate"]]
    labelled = gates[0]["kind"] == "accuracy"
    rows = []
    for step in steps:
        gate = step["gate"]
        if labelled:
            top1 = gates[0]["top1_percent_fp32"] if gate is None else gate["top1_percent_int8"]
            figures = [f"{top1:.2f}", "" if gate is None else f"{gate['drop_points']:.2f}"]
        else:
            same = None if gate is None else gate["top1_agreement"]
            figures = ["" if same is None else f"{100 * same:.1f}"]
            figures.append("" if gate is None else figure(gate["centred_cosine"], 5))
        rows.append([step["step"], *figures, size(step["size_bytes"])])
    columns = ["top-1 %", "drop"] if labelled else ["same class %", "cosine"]
    unit = "labelled" if labelled else "held-out"
    print_table(f"Step by step, on {gates[0]['images']} {unit} images", ["step", *columns, "size"], rows)


def _print_layers(layers: list[dict[str, Any]]) -> None:
    rows = []
    for layer in layers:
        taken = "FP32" if layer["input_scale"] is None else f"{layer['input_scale']:.3e}"
        scales = layer["weight_scales"]
        weight = ["FP32", "FP32"] if scales is None else [f"{scale:.3e}" for scale in scales]
        rows.append([layer["node"], layer["input"], taken, *weight, str(layer["channels"])])
    columns = ["convolution", "takes", "scale", "least weight scale", "largest", "scales"]
    print_table("Q/DQ", columns, rows, text_columns=2)


def _print_gate(gate: dict[str, Any]) -> None:
    if gate["kind"] == "accuracy":
        typer.echo(
            f"accuracy on {gate['images']} labelled images of {gate['folder']}: "
            f"FP32 {gate['top1_percent_fp32']:.2f} %, INT8 {gate['top1_percent_int8']:.2f} %: "
            f"a drop of {gate['drop_points']:.2f} points, 95 % interval {gate['drop_interval_points'][0]:.2f} to "
            f"{gate['drop_interval_points'][1]:.2f} ({gate['max_drop_points']:g} allowed)"
        )
        return
    typer.echo(
        f"the same class as FP32 on {gate['top1_agreement']:.1%} of {gate['images']} held-out images, cosine "
        f"{gate['centred_cosine']:.5f} ({gate['least_top1_agreement']:.0%} and {gate['least_cosine']:g} asked for)"
    )
    more = "" if gate["labelled"] else "; --eval takes labelled images"
    remark(f"note: this is agreement, not accuracy: {gate['why']}{more}")
