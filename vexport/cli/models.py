"""`vexport models`"""

from __future__ import annotations

from vexport.cli.options import JsonOpt
from vexport.cli.render import figure, print_json, print_table, progress


def models(as_json: JsonOpt = False) -> None:
    """The networks: parameters and GMACs as counted, beside the published figures."""
    from vexport.pipeline.models import list_models

    with progress(as_json) as update:
        update("counting")
        rows = list_models()
    if as_json:
        print_json([row.to_json() for row in rows])
        return
    cells = [
        [
            row.name,
            str(row.depth or "-"),
            figure(row.params_m, 1),
            figure(row.published.params_m, 1),
            figure(row.gmacs),
            figure(row.published.gmacs, 1),
            figure(row.published.top1),
            figure(row.published.real),
            figure(row.published.a100_pytorch_ms),
            figure(row.published.a100_trt_fp32_ms),
            figure(row.published.a100_trt_fp16_ms),
        ]
        for row in rows
    ]
    columns = ["network", "depth", "params M", "(publ.)", "GMACs", "(publ.)", "top-1 %", "ReaL %"]
    columns += ["PyTorch ms", "TRT FP32 ms", "TRT FP16 ms"]
    print_table("Deployed form at 224x224. Accuracy and A100 latency at batch 1 are published figures.", columns, cells)
