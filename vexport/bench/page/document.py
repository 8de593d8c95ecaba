"""The benchmark's JSON document as typed values, and the schema that says what it is.

`schema.json` beside this file is generated from these models (`document_schema`); a test holds the two together.
Fields that the report does not read may be there: they are let through.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vexport.errors import InputError

SCHEMA_VERSION = 2
SCHEMA_ID = "vexport-bench-2.schema.json"
SHOWN_ERRORS = 20

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
Nanoseconds = Annotated[int, Field(ge=0)]
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


class RunFacts(Part):
    """How the samples came about."""

    median_interval_ms: Interval | None = None
    drift: float | None = None
    spikes: tuple[tuple[int, int], ...] = ()
    warm_up: dict[str, Any] | None = None
    conditions: dict[str, Any] | None = None


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
    unstable: bool = True
    unstable_because: tuple[str, ...] = ()
    error: str | None = None
    device_ms: dict[str, Any] | None = Field(default=None, description="GPU time by events: `median` and others")
    published_top1: Percent | None = Field(default=None, description="of the paper; enters no ratio")
    published_a100_ms: Positive | None = Field(default=None, description="of the paper, on an A100; enters no ratio")
    samples_ns: tuple[tuple[Nanoseconds, ...], ...] = Field(default=(), description="every call, round by round")
    run: RunFacts = RunFacts()
    roofline: Roofline | None = None
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
    def top1(self) -> float | None:
        """Top-1 in per cent; None where it is not known."""
        return self.accuracy.top1_percent if self.accuracy else None

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

    @property
    def title(self) -> str:
        """As `FP32, batch 1, 224x224, onnxruntime CPU`."""
        _, height, width = self.input_size
        said = f"{self.precision}, batch {self.batch}, {height}x{width}, {self.backend}"
        return said if self.mode == "latency" else f"{said}, {self.mode}"


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
    advice: tuple[str, ...] = ()

    def baseline_of(self, group: GroupPart) -> RowPart | None:
        """The row that a group's ratios refer to; None where it is missing."""
        return next((row for row in group.rows if row.network == self.baseline), None)

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
        raise InputError(
            f"this is no benchmark document of schema {SCHEMA_VERSION}: its schema is {version!r}",
            hint="measure again with this version: vexport bench",
        )
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


def document_schema() -> dict[str, Any]:
    """The JSON schema of the document, draft 2020-12."""
    schema = Document.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA_ID, **schema}
