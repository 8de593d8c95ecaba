"""The best INT8 graph that post-training quantisation gives: each step is kept only where it lowers the error.

The error is that of the answers to held-out images, which nothing was measured on. In this order: the graph as it is
or equalised (two forms of the same function), each with thresholds by every method; then biases corrected; and, only
where the gate is missed, the fewest convolutions left in floating point with which it holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from vexport.errors import ExportError
from vexport.pipeline.calibration import Job, OnProgress, find_statistics
from vexport.pipeline.fewest import fewest_left_out
from vexport.pipeline.held_out import HeldOut, Recorded, damage
from vexport.pipeline.quantize_gate import measure_gate, measure_sensitivity, missed

if TYPE_CHECKING:
    import onnx

    from vexport.run.bias_correction import BiasCorrection
    from vexport.run.calibrate import Statistics
    from vexport.run.calibration_images import Loader
    from vexport.run.runner import Array, Runner
    from vexport.run.thresholds import Method

    # `trained`: the ranges of quantisation-aware training.
    Ranges = Method | Literal["trained"]

FormName = Literal["plain", "equalised"]
# Rescaled weights are the same function in real arithmetic: in float64 rounding alone is left, in FP32 a little more.
EXACT = 1e-9
# Measured: 64 images give nearly all of it, and with less than 16 biases take up accidents of the images.
CORRECTION_IMAGES = 64
LEAST_CORRECTION_IMAGES = 32


@dataclass(frozen=True)
class Form:
    """An FP32 graph that is the same function as the one in the file, and what its activations are like.

    Args:
        name: `plain` is the graph in the file.
        model: The graph, weights as initializers.
        statistics: Of what its convolutions take.
    """

    name: FormName
    model: onnx.ModelProto
    statistics: Statistics


@dataclass(frozen=True)
class Candidate:
    """An INT8 graph.

    Args:
        form: What was quantised.
        method: How thresholds were chosen.
        ranges: Largest magnitude that INT8 holds, by tensor.
        left_out: Convolutions that are not quantised.
        corrected: Whether biases were corrected.
        model: The graph.
        agreement: With FP32, on the held-out images.
        correction: What correcting did, layer by layer.
    """

    form: Form
    method: Ranges
    ranges: dict[str, float]
    left_out: tuple[str, ...]
    corrected: bool
    model: onnx.ModelProto
    agreement: HeldOut
    correction: tuple[BiasCorrection, ...] = ()

    @property
    def damage(self) -> float:
        return damage(self.agreement)

    def to_json(self) -> dict[str, Any]:
        """What was tried and how near it came."""
        named = {"form": self.form.name, "method": self.method, "bias_corrected": self.corrected}
        return named | {"left_out": list(self.left_out), **self.agreement.to_json()}


@dataclass(frozen=True)
class Equalised:
    """What equalisation did.

    Args:
        pairs: Neighbouring convolutions whose channels were rescaled.
        scales: Least and largest of the scales.
        float64_error: max|y - y'| / max|y| in float64, before weights are rounded to FP32.
        fp32_error: The same of the FP32 graphs on the held-out images.
        exact: Whether both errors are rounding alone.
    """

    pairs: int
    scales: tuple[float, float]
    float64_error: float
    fp32_error: float
    exact: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "pairs": self.pairs,
            "least_scale": self.scales[0],
            "largest_scale": self.scales[1],
            "float64_error": self.float64_error if math.isfinite(self.float64_error) else None,
            "fp32_error": self.fp32_error if math.isfinite(self.fp32_error) else None,
            "exact": self.exact,
        }


@dataclass(frozen=True)
class Found:
    """What a search ended with.

    Args:
        best: What is written, if the gate holds.
        tried: All that was tried on the way.
        equalised: What equalisation did; None where it was not tried or there was nothing to rescale.
        forms: The graph in the file, and the equalised one.
    """

    best: Candidate
    tried: tuple[Candidate, ...]
    equalised: Equalised | None
    forms: tuple[Form, ...]


class Search:
    """Looks for the INT8 graph with the least error.

    Args:
        job: What is quantised.
        loader: Of its images.
        reference: The FP32 answers to the held-out images.
        on_progress: Told what is tried.
    """

    def __init__(self, job: Job, loader: Loader, reference: Recorded, on_progress: OnProgress) -> None:
        self.job, self.reference = job, reference
        self._loader, self._tell = loader, on_progress
        self._images: list[Array] | None = None
        self._tried: list[Candidate] = []

    def run(self, plain: Form, use_cache: bool) -> Found:
        """The best of what lowers the error without leaving a convolution out.

        Args:
            plain: The graph in the file.
            use_cache: Whether statistics from before will do.
        """
        from vexport.graph.trained_ranges import trained_ranges
        from vexport.run.thresholds import METHODS

        method = self.job.options.method
        trained = trained_ranges(plain.model) if method == "auto" else None
        if trained is not None:
            # Weights and biases were trained with these: rescaled or corrected they would be others.
            self._tell("quantising: with the ranges that the graph was trained for", None)
            self._tried.append(self.quantized(plain, "trained", trained, self.job.options.keep))
            return Found(self._tried[-1], tuple(self._tried), None, (plain,))
        methods = METHODS if method == "auto" else (method,)
        best, forms, equalised = self.thresholds(plain, methods), [plain], None
        other = self.equalized(plain, use_cache) if self.job.options.equalize else None
        if other is not None:
            form, equalised = other
            forms.append(form)
            if equalised.exact:
                best = min(best, self.thresholds(form, methods), key=lambda each: each.damage)
        if self.job.options.correct_biases and len(self.job.split.calibration) >= LEAST_CORRECTION_IMAGES:
            best = self.try_corrected(best)
        return Found(best, tuple(self._tried), equalised, tuple(forms))

    def _best_of(self, candidate: Candidate, best: Candidate, left_out: Sequence[str]) -> Candidate:
        """With the layers known that are left out: biases as they are, as they were corrected, or corrected anew."""
        if not best.corrected:
            return candidate
        plain = self.quantized(best.form, best.method, best.ranges, (*self.job.options.keep, *left_out))
        for other in sorted((plain, self.corrected(plain)), key=lambda one: one.damage):
            if other.damage < candidate.damage and self.gate_in_memory(other.model, quietly=True)["passed"]:
                return other
        return candidate

    def gate(self, int8: Runner, held_out: HeldOut, *, quietly: bool = False) -> dict[str, Any]:
        """The figures of the gate, see `measure_gate`."""
        tell: OnProgress = (lambda _text, _share: None) if quietly else self._tell
        return measure_gate(
            self.job.subject.runner,
            int8,
            held_out,
            self.job.labelled,
            self.job.subject.classes,
            max_drop=self.job.options.max_drop,
            on_share=lambda share: tell("counting right answers of FP32 and INT8", share),
        )

    def gate_in_memory(self, model: onnx.ModelProto, *, quietly: bool = False) -> dict[str, Any]:
        """The same of a graph that is in no file yet."""
        from vexport.run.ort import OrtRunner

        with OrtRunner(model.SerializeToString(), threads=self.job.threads, name="in memory") as runner:
            return self.gate(runner, self.reference.compare(runner), quietly=quietly)

    def leave_out(self, found: Found, convs: Sequence[str], gate: dict[str, Any]) -> Found:
        """Leave as few convolutions in floating point as the gate needs.

        Args:
            found: What missed it.
            convs: The convolutions that are quantised.
            gate: The figures.

        Raises:
            AccuracyError, ParityError: not even with one convolution in INT8 does it hold, or none may be left out.
        """
        best = found.best
        sensitivity = measure_sensitivity(
            best.form.model,
            best.ranges,
            convs,
            self.reference,
            threads=self.job.threads,
            on_share=lambda share: self._tell("the gate is missed: trying each layer alone", share),
        )
        passed: dict[tuple[str, ...], Candidate] = {}

        def passes(layers: Sequence[str]) -> bool:
            candidate = self.with_left_out(best, layers)
            if holds := bool(self.gate_in_memory(candidate.model, quietly=True)["passed"]):
                passed[tuple(layers)] = candidate
            return holds

        needed, names = None, [row["node"] for row in sensitivity]
        if self.job.options.mixed:
            needed = fewest_left_out(
                names, passes, lambda count: self._tell(f"leaving {count} of {len(names)} in floating point", None)
            )
        if needed is None:
            tried = [candidate.to_json() for candidate in found.tried]
            raise missed(gate, tried, sensitivity, mixed=self.job.options.mixed, keep=self.job.options.keep)
        candidate = self._best_of(passed[tuple(needed)], best, needed)
        return replace(found, best=candidate, tried=(*found.tried, candidate))

    def equalized(self, plain: Form, use_cache: bool) -> tuple[Form, Equalised] | None:
        """The graph with rescaled channels, measured anew; None where no channel can be rescaled.

        Args:
            plain: The graph in the file.
            use_cache: Whether statistics from before will do.
        """
        from vexport.graph.blocks import find_pairs
        from vexport.graph.equalize import choose_scales, equalization_error, equalize
        from vexport.run.compare import TOLERANCES

        if not find_pairs(plain.model):
            return None
        self._tell("equalising channels", None)
        scales = choose_scales(plain.model, plain.statistics.channels.typical)
        try:
            model = equalize(plain.model, scales)
        except ExportError:  # a weight would leave FP32: as it is, then
            return None
        exact = equalization_error(plain.model, scales, self.reference.batches[0][:1])
        fp32 = self._compare(model, "equalised").max_rel
        values = [scale for each in scales.values() for scale in (each.min(), each.max())]
        found = Equalised(
            len(scales),
            (float(min(values)), float(max(values))),
            exact,
            fp32,
            exact <= EXACT and fp32 <= TOLERANCES["fp32"],
        )
        tensors = list(plain.statistics.histograms)
        statistics = find_statistics(
            self.job, model, tensors, self._loader, use_cache, self._tell, "measuring equalised activations"
        )
        return Form("equalised", model, statistics), found

    def thresholds(self, form: Form, methods: Sequence[Method]) -> Candidate:
        """Quantise a form with every method.

        Args:
            form: What is quantised.
            methods: To choose thresholds by; of equally good ones the first is kept.

        Returns:
            The one with the least noise on the held-out images.
        """
        from vexport.run.thresholds import choose_threshold

        found = []
        for index, method in enumerate(methods):
            self._tell(f"quantising: {form.name}, {method}", index / len(methods))
            ranges = {name: choose_threshold(one, method) for name, one in form.statistics.histograms.items()}
            found.append(self.quantized(form, method, ranges, self.job.options.keep))
        self._tried += found
        return min(found, key=lambda candidate: candidate.damage)

    def quantized(
        self, form: Form, method: Ranges, ranges: dict[str, float], keep: tuple[str, ...], *, per_channel: bool = True
    ) -> Candidate:
        """One way to quantise a form."""
        from vexport.graph.quantize import quantize

        model = quantize(form.model, ranges, keep=keep, per_channel=per_channel)
        return Candidate(form, method, ranges, keep, False, model, self._compare(model, method))

    def corrected(self, candidate: Candidate) -> Candidate:
        """The same with biases that take up what rounding shifts."""
        from vexport.run.bias_correction import correct_biases

        model, report = correct_biases(
            candidate.form.model,
            candidate.model,
            self._correction_images(),
            threads=self.job.threads,
            on_share=lambda share: self._tell("correcting biases", share),
        )
        return replace(
            candidate,
            corrected=True,
            model=model,
            agreement=self._compare(model, "corrected"),
            correction=tuple(report),
        )

    def try_corrected(self, candidate: Candidate) -> Candidate:
        """The better of a candidate and the same with corrected biases."""
        other = self.corrected(candidate)
        self._tried.append(other)
        return min(candidate, other, key=lambda each: each.damage)

    def with_left_out(self, best: Candidate, left_out: Sequence[str]) -> Candidate:
        """A candidate's recipe with more convolutions left in floating point."""
        from vexport.run.bias_correction import add_corrections

        keep = (*self.job.options.keep, *left_out)
        found = self.quantized(best.form, best.method, best.ranges, keep)
        if not best.corrected:
            return found
        # As they were found with all layers in INT8: finding them anew takes longer than all else.
        kept = tuple(row for row in best.correction if row.node not in keep)
        model = add_corrections(found.model, {row.node: row.correction for row in kept})
        return replace(found, corrected=True, model=model, agreement=self._compare(model, "corrected"), correction=kept)

    def _compare(self, model: onnx.ModelProto, name: str) -> HeldOut:
        from vexport.run.ort import OrtRunner

        with OrtRunner(model.SerializeToString(), threads=self.job.threads, name=name) as runner:
            return self.reference.compare(runner)

    def _correction_images(self) -> list[Array]:
        """Some of the calibration images, spread over all of them; they stay in memory."""
        if self._images is None:
            names = self.job.split.calibration
            count = min(CORRECTION_IMAGES, len(names))
            chosen = [names[index * len(names) // count] for index in range(count)]
            self._images = [batch.images for batch in self._loader.batches(chosen, varied=False)]
        return self._images
