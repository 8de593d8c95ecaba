"""`vexport trt`"""

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
from vexport.cli.render import print_json, progress, remark, short_hash, size

if TYPE_CHECKING:
    from vexport.pipeline.build import BuildResult
    from vexport.pipeline.ready import Precision

# Layers whose weights suffer: as many are shown.
LISTED = 8


def trt(
    graph: Annotated[
        Path | None,
        typer.Argument(
            metavar="[GRAPH]",
            help="An .onnx file, or a checkpoint to export. Without one: the newest FP32 graph of the workspace, then "
            "the published weights of --model; with --int8 the newest INT8 graph, or that of the newest FP32 graph.",
            show_default=False,
        ),
    ] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="Compute in FP16 (this is what happens bare).")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="Compute in BF16.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Convolutions in INT8, the rest in FP16.")] = False,
    fp32: Annotated[bool, typer.Option("--fp32", help="Compute in FP32, without TF32.")] = False,
    calib: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="With --int8: images to quantise an FP32 graph on, as `vexport quantize` does.",
            show_default=False,
        ),
    ] = None,
    int8_depthwise: Annotated[
        Literal["on", "off", "auto"] | None,
        typer.Option(
            help="With --int8: whether depthwise convolutions compute in INT8. auto builds and times both on the GPU "
            "at hand; off where none can be timed. [default: auto]",
            show_default=False,
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="GPU",
            help="current, a100, h100 ... or sm80,sm86. The GPU at hand; the A100 where there is none.",
            show_default=False,
        ),
    ] = None,
    runtime: Annotated[Literal["auto", "tensorrt", "tensorrt-rtx"], typer.Option(help="Which TensorRT.")] = "auto",
    model: ModelOpt = None,
    weights: WeightsOpt = None,
    min_batch: Annotated[
        int | None, typer.Option(metavar="N", help="Least batch that the engine takes: 1.", show_default=False)
    ] = None,
    opt_batch: Annotated[
        int | None, typer.Option(metavar="N", help="Batch that it is tuned for: the least one.", show_default=False)
    ] = None,
    max_batch: Annotated[
        int | None,
        typer.Option(metavar="N", help="Largest batch that it takes: 8, or what is tuned for.", show_default=False),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            "--size", metavar="PX", help="Height and width, for a graph that leaves them open.", show_default=False
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Images on which activations are measured for FP16 and BF16.", show_default=False
        ),
    ] = None,
    memory_mb: Annotated[
        int | None, typer.Option(metavar="MIB", help="Limit of the builder's workspace pool.", show_default=False)
    ] = None,
    opt_level: Annotated[
        int | None, typer.Option(metavar="0-5", help="The builder's optimisation level.", show_default=False)
    ] = None,
    tf32: Annotated[bool, typer.Option("--tf32", help="Let FP32 layers round to TF32.")] = False,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="For newer versions of TensorRT too.")
    ] = False,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="For every GPU from Ampere on.")
    ] = False,
    refit: Annotated[
        bool, typer.Option("--refit", help="Its weights can be replaced, by TensorRT's Refitter.")
    ] = False,
    strip: Annotated[
        bool, typer.Option("--strip", help="Leave the weights out, to be refitted from the graph.")
    ] = False,
    triton: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write a Triton model repository there too.", show_default=False),
    ] = None,
    cache: Annotated[bool, typer.Option("--cache/--no-cache", help="Take an engine that was built before.")] = True,
    output: OutputOpt = None,
    force: ForceOpt = False,
    workspace: WorkspaceOpt = DEFAULT_WORKSPACE,
    as_json: JsonOpt = False,
) -> None:
    """Build a TensorRT engine for this GPU, or for another from any machine; makes the FP16 graph first."""
    precision = _precision(fp16=fp16, bf16=bf16, int8=int8, fp32=fp32)
    from vexport.engine.build import BuildOptions
    from vexport.pipeline.build import build_engine
    from vexport.pipeline.serve import write_triton

    options = BuildOptions(
        precision=precision,
        min_batch=min_batch,
        opt_batch=opt_batch,
        max_batch=max_batch,
        size=image_size,
        memory_mb=memory_mb,
        level=opt_level,
        tf32=tf32,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        refit=refit,
        strip=strip,
    )
    with progress(as_json) as update:
        result = build_engine(
            graph,
            workspace=Workspace(workspace),
            precision=precision,
            model=model,
            weights=weights,
            target=target,
            runtime=runtime,
            options=options,
            images=images,
            calib=calib,
            int8_depthwise=int8_depthwise,
            output=output,
            use_cache=cache,
            force=force,
            on_progress=update,
        )
        served = write_triton(result.artifact, result.graph, triton, force=force) if triton else None
    if as_json:
        print_json(result.to_json() | {"triton": str(served[0]) if served else None})
        return
    render(result)
    if served is not None:
        for note in served[1]:
            remark(f"note: {note}")
        typer.echo(f"Triton model: {served[0]}")


def _precision(**flags: bool) -> Precision:
    asked = [name for name, given in flags.items() if given]
    if len(asked) > 1:
        raise typer.BadParameter(f"--{' and --'.join(asked)} exclude each other")
    chosen: Precision = asked[0] if asked else "fp16"  # type: ignore[assignment]
    return chosen


def render(result: BuildResult) -> None:
    """The 16-bit graph, the engine, and what was proven of each."""
    engine, facts = result.artifact, result.artifact.facts
    remark(f"graph: {result.took}")
    for note in result.notes:
        remark(f"note: {note}")
    if result.quantised is not None:
        _render_quantised(result)
    if result.converted is not None:
        _render_converted(result)
    if gate := facts.get("int8_graph", {}).get("gate"):
        _render_gate(gate, facts.get("gate_of_rest"))
    if "int8_depthwise" in facts:
        _render_depthwise(facts)
    build = facts["build"]
    runtime = facts["runtime"]
    targets = ", ".join(f"sm{target}" for target in facts["targets"])
    profile = " / ".join("x".join(str(side) for side in facts["profile"][key]) for key in ("min", "opt", "max"))
    typer.echo(f"{facts['model']} engine for {targets}: {runtime['name']} {runtime['version']}, batches {profile}")
    counts = "; ".join(
        f"{kind.replace('_', ' ')} {', '.join(f'{count} {name.upper()}' for name, count in by.items())}"
        for kind, by in build["precision_network"].items()
    )
    binding = "binding for the builder" if build["strongly_typed"] else "asked of the builder"
    typer.echo(f"precision in the network, {binding}: {counts}")
    if (read_back := build.get("precision_built")) and read_back["nodes_seen"]:
        seen, nodes = read_back["nodes_seen"], read_back["nodes"]
        typer.echo(f"precision in the engine, as the builder tells: {seen} of {nodes} layers as in the graph")
    if others := build.get("other_fp32"):
        typer.echo(f"in FP32 all the same, made so by TensorRT's parser or by the graph: {', '.join(others[:LISTED])}")
    _render_proof(result)
    how = "up to date: " if result.up_to_date else "from the cache: " if result.from_cache else ""
    seconds = "" if how else f", built in {build['build_s']:.1f} s"
    typer.echo(f"{how}{engine.path}  {size(engine.manifest.size_bytes)}  sha256 {short_hash(engine.sha256)}{seconds}")


def _render_converted(result: BuildResult) -> None:
    assert result.converted is not None
    graph, facts = result.converted.artifact, result.converted.artifact.facts
    values = sum(row["values"] for row in facts["weights"])
    lost = {what: sum(row[what] for row in facts["weights"]) for what in ("overflow", "underflow", "subnormal")}
    kind = "FP16" if graph.facts.get("rest") else graph.precision.upper()
    typer.echo(
        f"{kind} weights: {values} values, {lost['overflow']} overflow, "
        f"{lost['underflow']} become 0, {lost['subnormal']} lose bits; largest activation {facts['max_activation']:.4g}"
    )
    hurt = [row for row in facts["weights"] if row["overflow"] or row["underflow"]]
    for row in sorted(hurt, key=lambda row: (row["overflow"], row["underflow"]), reverse=True)[:LISTED]:
        typer.echo(
            f"  {row['node'] or row['tensor']}: of {row['values']} values {row['overflow']} overflow, "
            f"{row['underflow']} become 0; the largest is {row['max_abs']:.4g}"
        )
    if len(hurt) > LISTED:
        typer.echo(f"  and {len(hurt) - LISTED} more layers: {graph.path.name}.json lists them all")
    for node, reason in facts["kept_fp32"].items():
        typer.echo(f"  kept in FP32: {node}: {reason}")
    for entry in graph.manifest.parity:
        _render_parity(entry, "INT8" if graph.facts.get("rest") else "FP32")
    state = "up to date: " if result.converted.up_to_date else ""
    typer.echo(f"{state}{graph.path}  {size(graph.manifest.size_bytes)}  sha256 {short_hash(graph.sha256)}")


def _cosine(entry: dict[str, Any]) -> float:
    """Without what all answers have in common; manifests of before know only that of all."""
    cosine: float = entry.get("centred_cosine", entry["cosine"])
    return cosine


def _render_gate(gate: dict[str, Any], rest: dict[str, Any] | str | None) -> None:
    """What the INT8 graph was held to when it was quantised, and what was counted again on the graph that is built."""
    if gate["kind"] != "accuracy":
        typer.echo(
            f"gate of the INT8 graph: agreement, not accuracy: the same class as FP32 on {gate['top1_agreement']:.1%} "
            f"of {gate['images']} held-out images, cosine {gate['centred_cosine']:.5f}"
        )
        return
    built = "not counted with FP16 around it"
    if isinstance(rest, dict):
        built = f"with FP16 around it {rest['top1_percent']:.2f} %, a drop of {rest['drop_points']:.2f} points"
    typer.echo(
        f"gate of the INT8 graph: top-1 of {gate['images']} labelled images: FP32 {gate['top1_percent_fp32']:.2f} %, "
        f"INT8 {gate['top1_percent_int8']:.2f} %, {built} ({gate['max_drop_points']:g} allowed)"
    )


def _render_parity(entry: dict[str, Any], reference: str) -> None:
    images = f"{entry['images']} {'random' if entry['inputs'] == 'random' else 'given'} images"
    held = [f"tolerance {entry['tolerance']:.0e}"] if "tolerance" in entry else []
    if "least_cosine" in entry:
        held.append(f"cosine {_cosine(entry):.5f}, at least {entry['least_cosine']:g}")
    agreement = f", top-1 agreement {entry['top1_agreement']:.0%}" if "top1_agreement" in entry else ""
    error = f"error {entry['max_rel']:.1e} ({'; '.join(held)})"
    typer.echo(f"against {reference} on {images}: {error}{agreement}  [{entry['how']}]")


def _render_quantised(result: BuildResult) -> None:
    assert result.quantised is not None
    graph = result.quantised.artifact
    for note in result.quantised.notes:
        remark(f"note: {note}")
    state = "up to date: " if result.quantised.up_to_date else ""
    typer.echo(f"{state}{graph.path}  {size(graph.manifest.size_bytes)}  sha256 {short_hash(graph.sha256)}")


def _render_depthwise(facts: dict[str, Any]) -> None:
    told = facts["int8_depthwise"]
    typer.echo(f"INT8 layers: {len(facts['int8_layers'])} of {len(facts['layers'])} convolutions")
    if told["measured"]:
        typer.echo(
            f"depthwise convolutions at batch {told['batch']}: {told['on_ms']:.3f} ms in INT8, {told['off_ms']:.3f} ms "
            f"in FP16; taken: {'INT8' if told['chosen'] == 'on' else 'FP16'}"
            + (" (unstable: measure again on a quiet machine)" if told["unstable"] else "")
        )
        return
    how = "as asked" if told["asked"] != "auto" else f"not measured: {told['reason']}"
    typer.echo(f"depthwise convolutions in {'INT8' if told['chosen'] == 'on' else 'FP16'} ({how})")


def _render_proof(result: BuildResult) -> None:
    for entry in result.artifact.manifest.parity:
        if entry["result"] == "not run":
            typer.echo(f"built, not run here: {entry['reason']}; parity: not run")
        else:
            held = (
                f"tolerance {entry['tolerance']:.0e}"
                if "tolerance" in entry
                else f"cosine {_cosine(entry):.5f}, at least {entry['least_cosine']:g}"
            )
            typer.echo(
                f"against {entry['with']} on {entry['images']} random images: error {entry['max_rel']:.1e} "
                f"({held}), top-1 agreement {entry['top1_agreement']:.0%}"
            )
