"""Everything that vexport refuses, and why.

    VexportError                    exit 1   a message, details, and a hint that says what to do
    ├── InputError (ValueError)              what the user gave does not fit
    │   ├── CheckpointError                  a file is not a checkpoint of the network asked for
    │   └── RecipeError                      a recipe has errors; every one is listed
    ├── FusionError                          the network cannot be merged exactly
    ├── ExportError                          the graph cannot be written as asked
    ├── WorkspaceError (OSError)             a file is in the way, the disk is full, no permission
    ├── EngineError                          an engine cannot be built, trusted or run here
    ├── DownloadError                        published weights cannot be fetched
    ├── MissingDependencyError (ImportError) an optional package is not installed
    ├── TrainingError                        training cannot go on
    └── GateError                   exit 3   the work was done and did not hold
        ├── ParityError                      an artifact disagrees with its parent
        ├── PrecisionError                   a layer does not compute in the precision asked for
        └── AccuracyError                    an artifact answers worse than its parent, or than asked, on data

Errors of other libraries are mapped to these where they arise; what is not mapped is a bug and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence

EXIT_REFUSED = 1
EXIT_USAGE = 2
EXIT_GATE = 3
EXIT_INTERRUPTED = 130


class VexportError(Exception):
    """A refusal or failure that the user can act on.

    Args:
        message: What is wrong, in one line.
        hint: What to do about it, in one line.
        details: Further lines, one finding each.
    """

    exit_code = EXIT_REFUSED

    def __init__(self, message: str, *, hint: str, details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = tuple(details)

    def __str__(self) -> str:
        return "\n".join([self.message, *(f"  {line}" for line in self.details), f"hint: {self.hint}"])


class InputError(VexportError, ValueError):
    """What the user gave does not fit."""


class CheckpointError(InputError):
    """A file is not a checkpoint of the network asked for."""


class RecipeError(InputError):
    """A recipe has errors; `details` lists every one with its line."""


class FusionError(VexportError):
    """The network cannot be merged exactly."""


class ExportError(VexportError):
    """The graph cannot be written as asked."""


class WorkspaceError(VexportError, OSError):
    """A file is in the way, the disk is full or a folder may not be written."""


class EngineError(VexportError):
    """An engine cannot be built, trusted or run here."""


class DownloadError(VexportError):
    """Published weights cannot be fetched."""


class MissingDependencyError(VexportError, ImportError):
    """An optional package is not installed; the hint is the pip command."""


class TrainingError(VexportError):
    """Training cannot go on."""


class GateError(VexportError):
    """The work was done and its result did not hold."""

    exit_code = EXIT_GATE


class ParityError(GateError):
    """An artifact disagrees with its parent."""


class PrecisionError(GateError):
    """A layer does not compute in the precision asked for; `details` names it."""


class AccuracyError(GateError):
    """An artifact answers worse than its parent, or than asked, on data."""
