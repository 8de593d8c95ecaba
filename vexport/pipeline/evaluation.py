"""What an evaluation found: figures per artifact, how two of them go together, what was skipped, and the gate."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vexport.artifacts import Evaluation, Preprocessing
from vexport.errors import AccuracyError

if TYPE_CHECKING:
    from vexport.run.accuracy import Agreement, Score
    from vexport.run.imagenet import RealScore


@dataclass(frozen=True)
class Evaluated:
    """One artifact's answers.

    Args:
        path: The artifact.
        sha256: Its hash.
        backend: What ran it.
        score: The figures.
        real: Those against ImageNet's ReaL labels, where asked for.
    """

    path: Path
    sha256: str
    backend: str
    score: Score
    real: RealScore | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "sha256": self.sha256,
            "backend": self.backend,
            **self.score.to_json(),
            "real": self.real.to_json() if self.real else None,
        }


@dataclass(frozen=True)
class EvalResult:
    """The accuracy of an artifact on a folder of images.

    Args:
        subject: The artifact and its figures.
        against: A second one on the same images, where asked for.
        agreement: How the two go together; the subject is A.
        folder: The folder that holds the class folders.
        class_names: One per class.
        labelling: How folders became classes, in words.
        preprocessing: How the images were prepared.
        prepared: The same in words, with where it is known from.
        batch: Images per call, at most.
        skipped: Images that cannot be read, relative to `folder`, each with the reason.
        notes: What the reader should know.
        least_top1_percent: What was asked for, if anything.
        record: The file that was written, where asked for.
    """

    subject: Evaluated
    against: Evaluated | None
    agreement: Agreement | None
    folder: Path
    class_names: tuple[str, ...]
    labelling: str
    preprocessing: Preprocessing
    prepared: str
    batch: int
    skipped: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    least_top1_percent: float | None = None
    record: Evaluation | None = field(default=None, compare=False)

    @property
    def passed(self) -> bool:
        """Whether the top-1 is at least what was asked for."""
        score = self.subject.score
        # Counts: 76.36 % of 50,000 images are 38,180, whatever the last bit of 76.36 says.
        return self.least_top1_percent is None or 100 * score.right >= self.least_top1_percent * score.images - 1e-6

    def require_passed(self) -> None:
        """Raise where the top-1 is below what was asked for.

        Raises:
            AccuracyError: with the figures.
        """
        if self.passed:
            return
        score = self.subject.score
        raise AccuracyError(
            f"{self.subject.path.name} is right on {score.top1_percent:.2f} %, {self.least_top1_percent:g} % are asked",
            details=[f"{score.right} of {score.images} images", self.prepared],
            hint="compare it with its parent on the same images: --against",
        )

    def to_json(self) -> dict[str, Any]:
        names = self.class_names
        gate = None
        if self.least_top1_percent is not None:
            gate = {"least_top1_percent": self.least_top1_percent, "passed": self.passed}
        return {
            "artifact": self.subject.to_json(),
            "against": self.against.to_json() if self.against else None,
            "agreement": self.agreement.to_json() if self.agreement else None,
            "data": str(self.folder),
            "labelling": self.labelling,
            "preprocessing": self.preprocessing.to_json(),
            "prepared": self.prepared,
            "batch": self.batch,
            "per_class": [
                {
                    "class": names[one.label],
                    "images": one.images,
                    "right": one.right,
                    "top1_percent": one.top1_percent,
                    "confused_with": names[one.confused_with] if one.confused_with is not None else None,
                    "confused": one.confused,
                }
                for one in self.subject.score.by_class
            ],
            "skipped": [{"image": image, "reason": reason} for image, reason in self.skipped],
            "notes": list(self.notes),
            "gate": gate,
        }
