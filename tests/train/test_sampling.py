"""Which images come when: the same on one device and on many, and the same after a resume."""

from __future__ import annotations

import pytest

from vexport.errors import RecipeError
from vexport.train.sampling import Layout, MicroBatches


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    sampler = MicroBatches(50, Layout(5, 1), seed=3)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    sampler.set_epoch(0)
    assert first == list(sampler)
    assert [pick.number for batch in first for pick in batch] != [pick.number for batch in second for pick in batch]
    assert sorted(pick.number for batch in second for pick in batch) == list(range(50))
    assert {pick.epoch for batch in second for pick in batch} == {1}


@pytest.mark.parametrize(("world", "accumulate"), [(1, 4), (2, 2), (4, 1)])
def test_a_step_takes_the_same_images_however_it_is_shared(world: int, accumulate: int) -> None:
    layout = Layout(3, accumulate, world)
    devices = [list(MicroBatches(40, layout, seed=7, rank=rank)) for rank in range(world)]
    together: dict[int, list[object]] = {}
    for rank, batches in enumerate(devices):
        for batch_idx, batch in enumerate(batches):
            together[layout.place(batch_idx, rank)] = batch
    alone = list(MicroBatches(40, Layout(3, 4), seed=7))
    assert len(alone) == 12, "three steps of twelve images; four are left out"
    assert [together[place] for place in sorted(together)] == alone


def test_a_start_within_an_epoch_counts_for_that_epoch_alone() -> None:
    layout = Layout(4, 1)
    whole = MicroBatches(20, layout, seed=1, epoch=2)
    rest = MicroBatches(20, layout, seed=1, epoch=2, start=3)
    assert list(rest) == list(whole)[3:] == list(rest), "asked for twice, it starts there twice"
    assert len(rest) == 5
    for sampler in (whole, rest):
        sampler.set_epoch(3)
    assert list(rest) == list(whole)
    assert len(list(rest)) == 5


@pytest.mark.parametrize(
    ("batch", "micro", "world", "layout"),
    [(64, None, 1, Layout(64, 1, 1)), (64, None, 4, Layout(16, 1, 4)), (64, 8, 2, Layout(8, 4, 2))],
)
def test_how_a_step_is_shared(batch: int, micro: int | None, world: int, layout: Layout) -> None:
    assert Layout.of(batch, micro, world) == layout
    assert layout.step_images == batch


@pytest.mark.parametrize(
    ("batch", "micro", "world", "says"),
    [(10, None, 3, "cannot be shared by 3"), (64, 24, 2, "no multiple of"), (4, None, 4, "needs two")],
)
def test_what_cannot_be_shared(batch: int, micro: int | None, world: int, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        Layout.of(batch, micro, world)


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(RecipeError, match="more than the 1438 training images"):
        MicroBatches(1438, Layout(2000, 1), seed=0)
