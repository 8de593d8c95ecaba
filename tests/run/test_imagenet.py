"""ImageNet's labels: timm's own evaluation gives the same figures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from timm.data import RealLabelsImagenet

from vexport.errors import InputError
from vexport.run.imagenet import RealScore, RealTally, read_real_labels, read_synsets, require_real_names


def named(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def test_the_synsets_are_the_sorted_class_folders() -> None:
    found = read_synsets()
    assert len(found) == 1000
    assert list(found) == sorted(found)
    assert (found[0], found[-1]) == ("n01440764", "n15075141")


def test_the_same_as_timms_own_count() -> None:
    labels = read_real_labels()
    files = [named(number) for number in range(1, 50_001)]
    logits = np.random.default_rng(0).standard_normal((200, 1000)).astype(np.float32)
    for row, file in zip(logits[::2], files[:200:2], strict=True):
        if labels[file]:
            row[labels[file][-1]] = 9
    theirs = RealLabelsImagenet(files, topk=(1,))
    theirs.add_result(torch.from_numpy(logits))
    ours = RealTally(labels)
    for start in range(0, 200, 30):
        ours.add(
            logits[start : start + 30].argmax(1).tolist(), [f"a/b/{f}" for f in files[start : min(start + 30, 200)]]
        )
    score = ours.score()
    assert score.real_percent == pytest.approx(theirs.get_accuracy(1))
    assert 0 < score.left_out == sum(not labels[file] for file in files[:200])
    assert score.images + score.left_out == 200


def test_images_without_labels_alone_have_no_accuracy() -> None:
    tally = RealTally(read_real_labels())
    tally.add([5], [named(1)])
    assert tally.score() == RealScore(0, 0, 1)
    assert tally.score().real_percent is None


@pytest.mark.parametrize(
    "name", ["cat.JPEG", "ILSVRC2012_val_00000001.png", "ILSVRC2012_val_00050001.JPEG", "xILSVRC2012_val_00000001.JPEG"]
)
def test_other_files_have_no_real_labels(name: str) -> None:
    require_real_names([f"n01440764/{named(1)}"], read_real_labels())
    with pytest.raises(InputError, match=r"1 image\(s\) have no ReaL labels") as caught:
        require_real_names([named(1), name], read_real_labels())
    assert caught.value.details == (name,)
