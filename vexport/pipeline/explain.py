"""Attention maps of networks side by side, on images that are named or found: pictures, and how large the maps are."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vexport.deps import needs, tool_versions
from vexport.errors import InputError
from vexport.pipeline.explain_files import require_clear_folder, write_folder
from vexport.pipeline.explain_looks import MEASURES, Row, Summary, look_at, summarize
from vexport.pipeline.explain_network import Network, open_networks
from vexport.pipeline.explain_notes import collect_notes
from vexport.pipeline.explain_samples import Choice, Group, resolve_class, take_given, take_samples
from vexport.pipeline.resolve import Weights, stem_of
from vexport.workspace import Workspace

SHEET, RECORD = "sheet.png", "explain.json"
LIBRARIES = ("torch", "timm", "grad-cam", "matplotlib", "pillow", "numpy")
# Pictures are drawn in memory: a sheet of more rows than this is no picture to look at.
MOST_DRAWN = 32


@dataclass(frozen=True)
class Explanation:
    """Maps, their figures and the files that show them.

    Args:
        folder: Where the files are.
        files: Their names in it: the sheet, one picture per image that is drawn, the record.
        networks: The columns.
        choice: The images, and how they were chosen.
        rows: What each network makes of each image.
        summaries: The measures by group and network.
        explains: `predicted`, `true`, or the name of a class.
        request: The options.
        notes: What the reader should know.
    """

    folder: Path
    files: tuple[str, ...]
    networks: tuple[Network, ...]
    choice: Choice
    rows: tuple[Row, ...]
    summaries: tuple[Summary, ...]
    explains: str
    request: dict[str, Any]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"folder": str(self.folder), **_document(self)}


def explain(
    network: str,
    images: Sequence[Path] = (),
    *,
    workspace: Workspace,
    beside: Sequence[str] = (),
    data: Path | None = None,
    samples: int = 4,
    measured: int | None = None,
    layers: Sequence[str] = (),
    label: str = "predicted",
    seed: int = 0,
    weights: Weights | None = None,
    weights_from: Literal["ema", "model"] | None = None,
    out: Path | None = None,
    force: bool = False,
    on_step: Callable[[str, float | None], None] = lambda _text, _share: None,
) -> Explanation:
    """Make GradCAM++ maps of one or several networks on the same images.

    Args:
        network: A checkpoint in either form, or a network's name with `weights`; it chooses samples.
        images: Image files; or none, with `data`.
        workspace: Where the folder goes, unless `out` says otherwise.
        beside: Further networks.
        data: Images by class: so many that `network` answers rightly, and so many wrongly.
        samples: How many of each to draw.
        measured: How many of each to measure; None measures those that are drawn.
        layers: Names of layers: none, one for all networks, or one for each; `default` is a network's last map.
        label: The class whose maps to make: `predicted`, `true`, or a class by name or number.
        seed: Of the choice of samples.
        weights: `pretrained` or `random`, of networks given by name.
        weights_from: `ema` or `model`; None prefers the EMA.
        out: The folder to write.
        force: Overwrite files that vexport did not write.
        on_step: Told what is going on, and the share that is done where it is known.

    Raises:
        VexportError: see the tree in errors.py; nothing has been written then.
    """
    with needs("explain"):
        import matplotlib  # noqa: F401
        import pytorch_grad_cam  # noqa: F401
    _require_options(images, data, samples, measured, seed)
    folder = out or workspace.root / f"{stem_of(Path(network))}.explain"
    require_clear_folder(folder, [SHEET, RECORD], force=force)
    on_step("opening the networks", None)
    networks = open_networks([network, *beside], layers, weights=weights, weights_from=weights_from)
    if data is None:
        choice = take_given(images, networks)
    else:
        choice = take_samples(data, networks, max(samples, measured or 0), seed, on_step)
    wanted = _wanted_class(label, choice)
    drawn = samples if data is not None else len(choice.images)
    rows = tuple(look_at(choice.images, networks, label=wanted, drawn=drawn, on_step=on_step))
    request = {
        "data": str(data) if data is not None else None,
        "samples": samples if data is not None else None,
        "seed": seed if data is not None else None,
        "weights": weights,
        "from": weights_from,
    }
    found = Explanation(
        folder=folder,
        files=(),
        networks=tuple(networks),
        choice=choice,
        rows=rows,
        summaries=tuple(summarize(rows, networks)),
        explains=label if isinstance(wanted, str) else choice.class_names[wanted],
        request=request,
        notes=tuple(collect_notes(networks, choice, rows)),
    )
    on_step("drawing", None)
    pictures = _draw(found, drawn)
    record = json.dumps(_document(found, list(pictures)), indent=2) + "\n"
    written = write_folder(folder, {**pictures, RECORD: record.encode()}, force=force)
    return replace(found, files=tuple(path.name for path in written))


def _require_options(images: Sequence[Path], data: Path | None, samples: int, measured: int | None, seed: int) -> None:
    if bool(images) == (data is not None):
        problem = "images and --data exclude each other" if images else "there is nothing to explain"
        raise InputError(problem, hint="name images, or give --data DIR with images by class")
    if not 1 <= samples <= MOST_DRAWN:
        raise InputError(
            f"--samples {samples} is not within 1 and {MOST_DRAWN}", hint="--measure N takes more without drawing them"
        )
    if len(images) > MOST_DRAWN:
        raise InputError(
            f"{len(images)} images are too many for one sheet: at most {MOST_DRAWN}",
            hint="name fewer, or give a folder with --data and --measure N",
        )
    if measured is not None and (data is None or measured < samples):
        raise InputError(
            f"--measure {measured} does not fit",
            hint="it needs --data, and counts at least the --samples that are drawn",
        )
    if seed < 0:
        raise InputError(f"--seed {seed} is negative", hint="give 0 or more")


def _wanted_class(label: str, choice: Choice) -> int | str:
    if label == "predicted":
        return label
    if label != "true":
        return resolve_class(label, choice.class_names)
    unknown = [image.shown for image in choice.images if image.label is None]
    if unknown:
        raise InputError(
            f"the true class of {len(unknown)} image(s) is not known",
            details=unknown[:10],
            hint="put them into folders that are called as their classes, or give the class: --class NAME",
        )
    return label


_TITLES: dict[Group, str] = {"given": "Images", "correct": "Correct", "misclassified": "Misclassified"}


def _draw(found: Explanation, drawn: int) -> dict[str, bytes]:
    """The sheet and one picture per image, by file name."""
    from vexport.pipeline.explain_pictures import Block, Column, draw

    columns = [Column(one.name, f"{one.layer.name}, {one.layer.height}x{one.layer.width}") for one in found.networks]
    names, first = found.choice.class_names, found.networks[0].name
    groups: list[Group] = ["given"] if found.request["data"] is None else ["correct", "misclassified"]
    blocks, single = [], {}
    for group in groups:
        rows = tuple(row for row in found.rows if row.image.group == group)[:drawn]
        title = _TITLES[group] + ("" if group == "given" else f" by {first}")
        blocks.append(Block(title, rows, f"none of {found.choice.looked_at} images"))
        for number, row in enumerate(rows, 1):
            stem = "".join(char if char.isalnum() or char in "-_." else "-" for char in Path(row.image.shown).stem)
            single[f"{group}-{number:02d}-{stem[:60]}.png"] = draw([Block(title, (row,))], columns, names)
    return {SHEET: draw(blocks, columns, names), **single}


def _document(found: Explanation, pictures: Sequence[str] | None = None) -> dict[str, Any]:
    names = found.choice.class_names
    return {
        "method": "GradCAM++",
        "class": found.explains,
        "request": found.request,
        "networks": [
            {
                "name": one.name,
                "model": one.subject.facts.model,
                "weights": {"name": one.parent.name, "sha256": one.parent.sha256},
                "layer": one.layer.name,
                "map": [one.layer.height, one.layer.width],
                "preprocessing": one.preprocessing.to_json(),
            }
            for one in found.networks
        ],
        "labelling": found.choice.labelling,
        "looked_at": found.choice.looked_at,
        "measures": list(MEASURES),
        "summary": [one.to_json() for one in found.summaries],
        "images": [
            {
                "image": row.image.shown,
                "sha256": row.sha256,
                "group": row.image.group,
                "true": names[row.image.label] if row.image.label is not None else None,
                "networks": [look.to_json(names) for look in row.looks],
            }
            for row in found.rows
        ],
        "notes": list(found.notes),
        "pictures": list(pictures if pictures is not None else [name for name in found.files if name != RECORD]),
        "versions": tool_versions(*LIBRARIES),
    }
