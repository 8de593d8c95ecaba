"""What every run of an ablation would refuse is refused before the first: unknown networks, packages, images."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

from vexport.deps import EXTRAS, needs
from vexport.errors import InputError
from vexport.model.variants import VARIANTS, unknown_model
from vexport.pipeline.ablate_kept import STREAMED, Key
from vexport.recipe import ImagesSection, Recipe
from vexport.recipe.checks import ABLATION_ONLY

EXTRA = "train"


def require_networks(file: Path, plans: Mapping[Key, Recipe]) -> None:
    """Refuse names of networks that there are not.

    Args:
        file: The ablation recipe's.
        plans: The training recipe of each run.

    Raises:
        InputError: with the nearest name.
    """
    known = [*VARIANTS, *ABLATION_ONLY]
    for (run, _), plan in plans.items():
        if plan.network.model not in known:
            error = unknown_model(plan.network.model, known)
            raise InputError(f"{file}: run {run}: {error.message}", details=error.details, hint=error.hint)


def require_packages() -> None:
    """Look for the packages that training needs, without importing them.

    Raises:
        MissingDependencyError: one is not installed.
    """
    with needs(EXTRA):
        for name in EXTRAS[EXTRA]:
            if importlib.util.find_spec(name) is None:
                raise ModuleNotFoundError(name=name)


def require_images(plans: Sequence[Recipe]) -> None:
    """Open the images once as each training will: both splits, with the same classes.

    Raises:
        InputError: they are not named, not there, or not what can be trained on.
        MissingDependencyError: a package that reads them is not installed.
    """
    seen = set()
    for plan in plans:
        section = plan.data
        if not isinstance(section, ImagesSection):
            continue
        source = section.source
        if source is None:
            raise InputError(
                "the ablation does not say where its images are",
                hint="--data DIR: a folder with train/ and val/, each with a folder per class",
            )
        if source.partition("/")[0] not in STREAMED and not Path(source).expanduser().is_dir():
            raise InputError(f"there are no images at {source}", hint="--data DIR: a folder with train/ and val/")
        which = (source, section.train_split, section.held_out_split, section.classes)
        if which not in seen:
            from vexport.train.data import load_data

            load_data(plan)
            seen.add(which)
