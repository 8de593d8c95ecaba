"""The benchmark's JSON document as typed values, and the schema that says what it is.

`schema.json` beside this file is generated from these models (`document_schema`); a test holds the two together.
Fields that the report does not read may be there: they are let through.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vexport.bench.accuracy import Top1
from vexport.bench.advice import mostly_float
from vexport.errors import InputError

SCHEMA_VERSION = 2
SCHEMA_ID = "vexport-bench-2.schema.json"
SHOWN_ERRORS = 20
MOST_LAYERS_OFF = 0.2  # of the latency, by the profiled layers' sum: beyond, the profile was of another machine state

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
Nanoseconds = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Percent = Annotated[float, Field(ge=0, le=100)]
Sha256 = Annotated[str, Field(min_length=1)]


class Part(BaseModel):
    """What all parts share: frozen, open to further fields, closed to NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Interval(Part):
    """A figure and the interval that it lies in."""

    value: Positive
    low: Positive
    high: Positive
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95

    @model_validator(mode="after")
    def _ordered(self) -> Interval:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"{self.value:g} does not lie between {self.low:g} and {self.high:g}")
        return self


class AgainstFloat(Interval):
    """Time of an INT8 row by that of its network's fastest floating-point form in the same backend."""

    precision: str


class Accuracy(Part):
    """Top-1 of a network, and whose measurement that is."""

    top1_percent: Percent
    source: Literal["measured", "published"]
    images: Count | None = None
    data: str | None = None


class Rate(Part):
    """What a device reached, per second."""

    how: str = ""
    per_s: Positive


class Peaks(Part):
    """What a device can do, measured in the same run."""

    device: str
    threads: int | None = None
    operations: dict[str, Rate]
    bandwidth: Rate
    unsteady: float | None = None


class Layer(Part):
    """One layer beside its bound."""

    name: str
    operator: str = ""
    precision: str = ""
    flops: NotNegative
    bytes_moved: NotNegative
    intensity: NotNegative
    bound_ms: NotNegative
    binds: Literal["compute", "memory"]
    time_ms: NotNegative | None = None
    efficiency: NotNegative | None = None


class Profile(Part):
    """What a profiler's layers come to: the sum of their times."""

    sum_ms: NotNegative | None = None


class Roofline(Part):
    """One network beside its bounds."""

    flops: NotNegative
    layer_bytes: NotNegative
    intensity: NotNegative
    compute_ms: NotNegative
    bound_ms: NotNegative
    resident_bound_ms: NotNegative
    binds: Literal["compute", "memory"]
    measured_ms: Positive | None = None
    efficiency: NotNegative | None = None
    resident_efficiency: NotNegative | None = None
    layers: tuple[Layer, ...] = ()
    peaks: Peaks | None = None
    profile: Profile | None = None


class SingleStreamPart(Part):
    """Percentiles that hold with 99 % confidence by MLPerf's early-stopping rule; None where calls are too few."""

    estimate_ms: Positive | None = None
    p99_estimate_ms: Positive | None = None


class RunFacts(Part):
    """How the samples came about."""

    median_interval_ms: Interval | None = None
    drift: float | None = None
    spikes: tuple[tuple[int, int], ...] = ()
    warm_up: dict[str, Any] | None = None
    conditions: dict[str, Any] | None = None
    parts_ns: dict[str, tuple[tuple[Nanoseconds, ...], ...]] = {}


class RowPart(Part):
    """One network in one group: what came out, or what it failed with."""

    model_config = ConfigDict(
        json_schema_extra={  # no latency without the hash of what ran
            "if": {"properties": {"median_ms": {"type": "number"}}, "required": ["median_ms"]},
            "then": {"properties": {"artifact_sha256": {"type": "string"}}, "required": ["artifact_sha256"]},
        }
    )

    network: str
    label: str | None = None
    family: str | None = None
    depth: Count | None = None
    parameters: Count | None = None
    gmacs: NotNegative | None = None
    size_bytes: Count | None = None
    artifact: str | None = None
    artifact_sha256: Sha256 | None = None
    accuracy: Accuracy | None = None
    median_ms: Positive | None = None
    p90_ms: Positive | None = None
    p99_ms: Positive | None = None
    cv: NotNegative | None = None
    images_per_s: Positive | None = None
    count: Count = 0
    ratio: Interval | None = Field(default=None, description="median by the baseline's of the same group")
    against_float: AgainstFloat | None = Field(default=None, description="of an INT8 row; not measured in turns")
    unstable: bool = True
    unstable_because: tuple[str, ...] = ()
    error: str | None = None
    device_ms: dict[str, Any] | None = Field(default=None, description="GPU time by events: `median` and others")
    backend_name: str | None = Field(default=None, description="the same for all precisions of one backend")
    published_top1: Percent | None = Field(default=None, description="of the paper; enters no ratio of ours")
    published_a100_ms: Positive | None = Field(
        default=None, description="of the paper, on an A100 at batch 1, by the clock that is most like this backend"
    )
    published_latencies_ms: dict[str, Positive] = Field(
        default={}, description="of the paper, on an A100 at batch 1: `PyTorch`, `TensorRT FP32`, `TensorRT FP16`"
    )
    samples_ns: tuple[tuple[Nanoseconds, ...], ...] = Field(default=(), description="every call, round by round")
    run: RunFacts = RunFacts()
    single_stream: SingleStreamPart | None = Field(default=None, description="of one image after another")
    failure: dict[str, Any] | None = Field(default=None, description="`kind`, `text`, and last lines in `stderr`")
    roofline: Roofline | None = None
    int8_share: Share | None = Field(
        default=None,
        description="of the multiply-accumulates, by what the runner reads back; null: no INT8 row, not told",
    )
    weights: str | None = None
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _has_an_artifact(self) -> RowPart:
        if self.median_ms is not None and self.artifact_sha256 is None:
            raise ValueError("a latency without the hash of the artifact that it belongs to")
        if self.ratio is not None and self.median_ms is None:
            raise ValueError("a ratio without a latency")
        return self

    @property
    def name(self) -> str:
        """For people."""
        return self.label or self.network

    @property
    def kin(self) -> str:
        """Its family, where it has one."""
        return self.family or "others"

    @property
    def figures_only(self) -> bool:
        """Whether it was not to be measured: it is here for its published figures."""
        return self.median_ms is None and self.error is None and not self.samples_ns

    @property
    def measured(self) -> bool:
        """Whether there is a latency to show: a network that failed half-way has none."""
        return self.median_ms is not None and self.error is None

    @property
    def mostly_float(self) -> bool:
        """Whether it is an INT8 row whose arithmetic ran in floating point for the most part."""
        return mostly_float(self.int8_share)

    @property
    def layers_off(self) -> float | None:
        """How far the profiled layers' sum lies from the latency, as a share of it; None where either is not known."""
        profile = self.roofline.profile if self.roofline else None
        latency = self.roofline.measured_ms or self.median_ms if self.roofline else None
        if profile is None or profile.sum_ms is None or latency is None:
            return None
        return profile.sum_ms / latency - 1

    @property
    def timed_layers(self) -> tuple[Layer, ...]:
        """Layers whose times can be believed: none where their sum is not about the latency."""
        off = self.layers_off
        if self.roofline is None or (off is not None and abs(off) > MOST_LAYERS_OFF):
            return ()
        return tuple(layer for layer in self.roofline.layers if layer.time_ms is not None)

    @property
    def known_accuracy(self) -> Top1 | None:
        """As the rule of `vexport.bench.accuracy` takes it."""
        return Top1(self.accuracy.top1_percent, self.accuracy.images) if self.accuracy else None

    @property
    def top1(self) -> float | None:
        """Top-1 in per cent; None where it is not known."""
        return self.accuracy.top1_percent if self.accuracy else None

    @property
    def told_p90_ms(self) -> float | None:
        """None also where the calls are too few to tell."""
        return None if self.single_stream and self.single_stream.estimate_ms is None else self.p90_ms

    @property
    def told_p99_ms(self) -> float | None:
        """Likewise."""
        return None if self.single_stream and self.single_stream.p99_estimate_ms is None else self.p99_ms

    @property
    def device_median_ms(self) -> float | None:
        """GPU time; None where it was not told apart."""
        told = self.device_ms or {}
        found = next((told[key] for key in ("median", "median_ms", "value") if told.get(key)), None)
        return float(found) if isinstance(found, int | float) else None


class GroupPart(Part):
    """Rows that took turns with each other."""

    backend: str
    precision: str
    batch: Annotated[int, Field(ge=1)]
    input_size: tuple[int, int, int]
    mode: str = "latency"
    device: str | None = Field(default=None, description="what the group ran on")
    rows: tuple[RowPart, ...] = ()
    verdicts: tuple[str, ...] = ()
    conditions: dict[str, Any] | None = None
    part: tuple[int, int] | None = None

    @property
    def title(self) -> str:
        """As `FP32, batch 1, 224x224, onnxruntime CPU`."""
        _, height, width = self.input_size
        split = f", part {self.part[0]} of {self.part[1]}" if self.part else ""
        said = f"{self.precision}, batch {self.batch}, {height}x{width}, {self.backend}{split}"
        return said if self.mode == "latency" else f"{said}, {self.mode}"


class InsteadPart(Part):
    """What to take in place of a network that is beaten at its accuracy."""

    network: str
    device: str
    batch: int
    input_size: tuple[int, int, int]
    text: str


class BatchPart(Part):
    """Throughput at one batch size."""

    batch: int
    images_per_s: Interval
    latency_ms: Positive
    nearly_best: bool = Field(default=False, description="the smallest batch within 95 % of the best throughput")


class ThroughputPart(Part):
    """Images per second of one network over batch sizes; these did not take turns."""

    network: str
    label: str
    backend: str
    precision: str
    input_size: tuple[int, int, int]
    batches: tuple[BatchPart, ...]


class Document(Part):
    """Everything that one benchmark gave."""

    schema_version: Literal[2] = Field(alias="schema")
    tool: Literal["vexport"]
    version: str | None = None
    created: str | None = None
    command: str | None = None
    recipe: dict[str, Any] | None = None
    baseline: str
    complete: bool = True
    environment: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    peaks: Peaks | None = None
    groups: tuple[GroupPart, ...] = ()
    throughput: tuple[ThroughputPart, ...] = ()
    advice: tuple[str, ...] = ()
    instead: tuple[InsteadPart, ...] = Field(default=(), description="of the advice, by network")

    @property
    def baseline_name(self) -> str:
        """For people."""
        return next(
            (row.name for group in self.groups for row in group.rows if row.network == self.baseline), self.baseline
        )


def validate(document: Mapping[str, Any]) -> Document:
    """Hold a document against the schema.

    Args:
        document: As read from JSON.

    Returns:
        The same, typed.

    Raises:
        InputError: it does not fit; every finding is a detail.
    """
    version = document.get("schema") if isinstance(document, Mapping) else None
    if version != SCHEMA_VERSION:
        raise _refusal(version)
    try:
        return Document.model_validate(document)
    except ValidationError as error:
        found = [f"{'.'.join(map(str, one['loc'])) or 'document'}: {one['msg']}" for one in error.errors()]
        more = [f"and {len(found) - SHOWN_ERRORS} more"] if len(found) > SHOWN_ERRORS else []
        raise InputError(
            "the benchmark document does not fit its schema",
            details=[*found[:SHOWN_ERRORS], *more],
            hint="it was changed by hand or cut off; measure again: vexport bench",
        ) from error


def _refusal(version: object) -> InputError:
    """Why a document of another schema is not read, and what to do."""
    if not isinstance(version, int) or isinstance(version, bool):
        return InputError(
            f"this is no benchmark document: its schema is {version!r}, not {SCHEMA_VERSION}",
            hint="give a bench.json that `vexport bench` wrote",
        )
    if version > SCHEMA_VERSION:
        return InputError(
            f"this benchmark document is of schema {version}, and this version reads schema {SCHEMA_VERSION}",
            hint="a newer vexport wrote it: read it with that one",
        )
    return InputError(
        f"this benchmark document is of schema {version}, and this version reads schema {SCHEMA_VERSION}",
        hint="measure again with this version: vexport bench",
    )


def document_schema() -> dict[str, Any]:
    """The JSON schema of the document, draft 2020-12."""
    schema = Document.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA_ID, **schema}
