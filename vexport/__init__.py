"""vexport: from a trained VanillaNet checkpoint to a proven, plain ONNX graph and TensorRT engines.

The names below are the public surface; each is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from vexport._timm_hook import install as _register_with_timm

_WHERE = {
    "BuildOptions": "vexport.engine.build",
    "DeepConv2d": "vexport.model.techniques",
    "SeriesActivation": "vexport.model.vanillanet",
    "VARIANTS": "vexport.model.variants",
    "VexportError": "vexport.errors",
    "Workspace": "vexport.workspace",
    "apply_techniques": "vexport.model.techniques",
    "build_engine": "vexport.pipeline.build",
    "check_parity": "vexport.pipeline.check",
    "evaluate": "vexport.pipeline.evaluate",
    "export_graph": "vexport.pipeline.export",
    "fuse_checkpoint": "vexport.pipeline.fuse",
    "inspect_artifact": "vexport.pipeline.inspect",
    "load_network": "vexport.model.checkpoint",
    "make_spec": "vexport.model.variants",
    "measure_latency": "vexport.pipeline.bench",
    "merge_and_prove_network": "vexport.model.prove_techniques",
    "merge_techniques": "vexport.model.techniques",
    "open_runner": "vexport.run",
    "quantize_graph": "vexport.pipeline.quantize",
    "set_slope": "vexport.model.techniques",
    "train_recipe": "vexport.pipeline.train",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'vexport' has no attribute '{name}'")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return __all__


_register_with_timm()
