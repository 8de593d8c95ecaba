"""The stream: in order, a bounded way ahead, with damaged images left out and any batch filled."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from vexport.errors import InputError
from vexport.run.accuracy import Agreement
from vexport.run.labels import Sample
from vexport.run.runner import answer
from vexport.run.stream import Counted, count_answers, load_ahead


class Mirror:
    """A network that answers with the pixels; it keeps how many images each call had."""

    name, backend = "mirror", "test"

    def __init__(self, least: int = 1, most: int | None = None, shift: int = 0) -> None:
        self.batch_range = (least, most)
        self.input_shape = (None, 1, 1, 6)
        self.shift = shift
        self.calls: list[int] = []

    def __call__(self, images: np.ndarray) -> np.ndarray:
        least, most = self.batch_range
        assert least <= len(images) <= (most or len(images))
        self.calls.append(len(images))
        return np.roll(images[:, 0, 0], self.shift, axis=1)


def samples(count: int) -> Iterator[Sample]:
    return (Sample(f"{index % 6}/{index}", index % 6) for index in range(count))


def load(sample: Sample) -> np.ndarray:
    return np.eye(6, dtype=np.float32)[sample.label][None, None]


def count(*runners: Any, of: int = 20, load: Callable[[Sample], np.ndarray] = load, **options: Any) -> Counted:
    given = {"classes": 6, "batch": 8, "workers": 2, "max_damaged": 0, **options}
    return count_answers(runners, samples(of), load, **given)


def test_all_right_and_half_right() -> None:
    found = count(Mirror(), Mirror(shift=1))
    assert [score.right for score in found.scores] == [20, 0]
    assert found.agreement == Agreement(only_a=20)
    assert found.skipped == ()
    assert count(Mirror()).agreement is None


@pytest.mark.parametrize(
    ("least", "most", "calls"), [(1, None, [8, 8, 4]), (8, 8, [8, 8, 8]), (3, 5, [5, 3] * 2 + [4])]
)
def test_whatever_batch_the_network_takes(least: int, most: int | None, calls: list[int]) -> None:
    network = Mirror(least, most)
    found = count(network)
    assert network.calls == calls
    assert (found.scores[0].images, found.scores[0].right) == (20, 20)


def test_answers_of_padding_are_dropped() -> None:
    images = np.stack([load(sample) for sample in samples(5)])
    for least, most in ((1, None), (1, 2), (4, 4), (16, 16), (2, 3)):
        np.testing.assert_array_equal(answer(Mirror(least, most), images), images[:, 0, 0])


def test_the_order_is_kept_though_threads_finish_as_they_like() -> None:
    def slow(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        return item * item

    assert list(load_ahead(range(30), slow, ahead=6, workers=4)) == [(item, item * item) for item in range(30)]


def test_never_further_ahead_than_asked() -> None:
    """Every image that is alive at once: those that wait, and a batch being filled, stacked or answered."""
    alive, most, lock = 0, 0, threading.Lock()

    def gone() -> None:
        nonlocal alive
        with lock:
            alive -= 1

    def watched(sample: Sample) -> np.ndarray:
        nonlocal alive, most
        image = load(sample).copy()
        with lock:
            alive += 1
            most = max(most, alive)
        weakref.finalize(image, gone)
        return image

    class Slow(Mirror):
        def __call__(self, images: np.ndarray) -> np.ndarray:
            time.sleep(0.005)  # the loaders get as far ahead as they may
            return super().__call__(images)

    found = count(Slow(), of=600, load=watched, batch=8, workers=3)
    assert found.scores[0].images == 600
    assert most <= (8 + 3) + 8 + 1
    assert alive == 0


def test_items_are_read_no_further_than_needed() -> None:
    taken = []

    def items() -> Iterator[int]:
        for item in range(1000):
            taken.append(item)
            yield item

    stream = load_ahead(items(), lambda item: item, ahead=5, workers=2)
    assert next(stream) == (0, 0)
    assert len(taken) == 5
    stream.close()  # type: ignore[attr-defined]
    assert len(taken) == 5
    assert not [one for one in threading.enumerate() if one.name.startswith("vexport-load")]


def damaged(*numbers: int) -> Callable[[Sample], np.ndarray]:
    def loading(sample: Sample) -> np.ndarray:
        if int(sample.path.split("/")[1]) in numbers:
            raise InputError(f"{sample.path} cannot be read", details=["cut off"], hint="copy it again")
        return load(sample)

    return loading


def test_damaged_images_are_left_out_and_named() -> None:
    seen: list[int] = []
    found = count(Mirror(), load=damaged(3, 4, 19), max_damaged=3, on_images=seen.append)
    assert (found.scores[0].images, found.scores[0].right) == (17, 17)
    assert found.skipped == (("3/3", "cut off"), ("4/4", "cut off"), ("1/19", "cut off"))
    assert seen[-1] == 20
    with pytest.raises(InputError, match=r"more than 2 image\(s\) cannot be read") as caught:
        count(Mirror(), load=damaged(3, 4, 19), max_damaged=2)
    assert caught.value.details == ("3/3: cut off", "4/4: cut off", "1/19: cut off")


def test_all_damaged() -> None:
    with pytest.raises(InputError, match="none of the images can be read"):
        count(Mirror(), of=3, load=damaged(0, 1, 2), max_damaged=10)


def test_a_bug_in_loading_is_not_a_damaged_image() -> None:
    def broken(sample: Sample) -> np.ndarray:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        count(Mirror(), load=broken, max_damaged=100)
