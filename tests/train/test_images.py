"""Training on image files: folders, tar files, shards, Hugging Face sets; random moves, damage, and what is refused."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vexport.errors import InputError, RecipeError
from vexport.pipeline.fuse import fuse_checkpoint
from vexport.pipeline.train import TrainResult, train_recipe
from vexport.recipe import load_recipe
from vexport.train.data import UNREADABLE, TrainingData, load_data
from vexport.train.images import HeldOutImages, TrainImages
from vexport.train.sampling import Pick
from vexport.train.streams import ImageStream
from vexport.workspace import Workspace

COLOURS = {"blue": (30, 30, 200), "green": (30, 200, 30), "red": (200, 30, 30)}
PER_CLASS = {"train": 8, "val": 4}
STEPS = 3  # of 8 images, in an epoch

RECIPE = """\
epochs: 2
batch_size: 8
device: cpu
network: {{model: vanillanet_5, width: 0.015625, act_num: 1, stem_stride: 2}}
deep_training: {{decay_epochs: 1, per: step}}
data: {{name: images, source: {source}, image_size: 32, workers: 0, augment: {{scale: [0.5, 1.0]}}}}
optimizer: {{name: adamw, lr: 3.0e-3}}
schedule: {{warmup_epochs: 0}}
ema: {{decay: 0.9}}
"""
EVERY_MOVE = [
    "data.augment.mixup=0.8",
    "data.augment.cutmix=1.0",
    "data.augment.auto_augment=rand-m7-mstd0.5-inc1",
    "data.augment.color_jitter=0.4",
    "data.augment.random_erasing=0.5",
]


def picture(colour: tuple[int, int, int], seed: int) -> Image.Image:
    noise = np.random.RandomState(seed).randint(-30, 30, (32, 32, 3))
    return Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes that differ by colour, as PNG files: 24 to train on, 12 held out."""
    root = tmp_path / "images"
    for split, count in PER_CLASS.items():
        for number, (name, colour) in enumerate(COLOURS.items()):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                picture(colour, 100 * number + 10 * i + len(split)).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture
def recipe(tmp_path: Path, folder: Path) -> Path:
    path = tmp_path / "pictures.yaml"
    path.write_text(RECIPE.format(source=folder))
    return path


@pytest.fixture
def tars(tmp_path: Path, folder: Path) -> Path:
    """The same images as train.tar and val.tar, a folder per class inside."""
    root = tmp_path / "tars"
    root.mkdir()
    for split in PER_CLASS:
        with tarfile.open(root / f"{split}.tar", "w") as archive:
            for name in COLOURS:
                archive.add(folder / split / name, arcname=name)
    return root


@pytest.fixture
def shards(tmp_path: Path, folder: Path) -> Path:
    """The same images as WebDataset shards: two to train on, one held out, and timm's list of them."""
    webdataset = pytest.importorskip("webdataset")
    root = tmp_path / "shards"
    root.mkdir()
    splits = {}
    for split, files in (("train", 2), ("val", 1)):
        found = [
            (number, path) for number, name in enumerate(COLOURS) for path in sorted((folder / split / name).iterdir())
        ]
        names = [f"{split}-{i:04d}.tar" for i in range(files)]
        for i, name in enumerate(names):
            with webdataset.TarWriter(str(root / name)) as writer:
                for number, path in found[i::files]:
                    writer.write({"__key__": f"{number}_{path.stem}", "png": path.read_bytes(), "cls": number})
        lengths = [len(found[i::files]) for i in range(files)]
        splits[split] = {"name": split, "filenames": names, "shard_lengths": lengths, "num_samples": len(found)}
    (root / "_info.json").write_text(json.dumps({"splits": splits}))
    return root


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hugging Face's libraries, without a network and with a cache of their own."""
    datasets = pytest.importorskip("datasets")
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def train(recipe: Path, tmp_path: Path) -> Callable[..., TrainResult]:
    """Train the recipe into a workspace of its own."""
    runs = iter(range(100))

    def trained(*overrides: str, **options: object) -> TrainResult:
        result = train_recipe(
            recipe, workspace=Workspace(tmp_path / f"run{next(runs)}"), overrides=overrides, **options
        )  # type: ignore[arg-type]
        assert result is not None
        return result

    return trained


@pytest.fixture
def open_data(recipe: Path) -> Callable[..., TrainingData]:
    return lambda *overrides: load_data(load_recipe(recipe, overrides))


def weights(path: Path) -> dict[str, Tensor]:
    content = torch.load(path, weights_only=True)
    return {f"{key}.{name}": tensor for key in ("model", "model_ema") for name, tensor in content[key].items()}


def same(one: TrainResult, other: TrainResult) -> bool:
    mine, theirs = weights(one.last.path), weights(other.last.path)
    return all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


def labels(data: TrainingData) -> list[int]:
    return [data.held_out[index][1] for index in range(len(data.held_out))]  # type: ignore[arg-type]


# Every kind trains, and to the same weights where the order is the same


def test_a_folder_trains_to_a_checkpoint_that_fuses(train: Callable[..., TrainResult], tmp_path: Path) -> None:
    """Twenty epochs tell three colours apart; the checkpoint knows classes and preparation, and fuses."""
    result = train("epochs=20", "optimizer.lr=2e-2", "loss.name=ce", "ema.decay=0.8")
    facts = result.best.facts
    assert facts["classes"] == list(COLOURS)
    assert facts["total"] == 12
    assert facts["correct"] == 12, "the labels follow the folders on both sides"
    assert facts["preprocessing"]["input_size"] == [3, 32, 32]
    assert result.damaged == ()
    fused = fuse_checkpoint(result.best.path, workspace=Workspace(tmp_path / "fused"))
    assert fused.artifact.facts["class_names"] == list(COLOURS)
    assert fused.artifact.manifest.parent == result.best.as_parent()


def test_all_moves_draw_the_same_with_and_without_workers(train: Callable[..., TrainResult]) -> None:
    """Mixup, cutmix, RandAugment and random erasing: the weights do not depend on who reads the images."""
    alone, with_workers = train(*EVERY_MOVE), train(*EVERY_MOVE, "data.workers=2")
    assert same(alone, with_workers)
    assert not same(alone, train(*EVERY_MOVE[1:])), "without mixup they are others"


@pytest.mark.parametrize("kind", ["tar", "hugging face"])
def test_other_kinds_train_to_the_weights_of_a_folder(
    kind: str,
    train: Callable[..., TrainResult],
    request: pytest.FixtureRequest,
    folder: Path,
    capfd: pytest.CaptureFixture,
) -> None:
    """The same images in the same order, from tar files and from a Hugging Face set read by two workers."""
    if kind == "tar":
        chosen = [f"data.source={request.getfixturevalue('tars')}"]
    else:
        request.getfixturevalue("offline")
        chosen = [f"data.source=hfds/{folder}", "data.held_out_split=validation"]
    result = train(*chosen, "data.workers=2")
    assert capfd.readouterr().err == "", "no progress bar of another library"
    assert result.best.facts["classes"] == list(COLOURS)
    assert same(result, train())


def test_the_moves_of_an_image_follow_from_its_place_alone(open_data: Callable[..., TrainingData]) -> None:
    """Whatever was drawn before, an image of an epoch is moved the same way, and another way in the next epoch."""
    images = open_data(*EVERY_MOVE).train
    first, label, _ = images[Pick(20, 1)]
    torch.manual_seed(7)
    np.random.seed(7)
    assert torch.equal(images[Pick(20, 1)][0], first)
    assert not torch.equal(images[Pick(20, 2)][0], first)
    assert (label, tuple(first.shape)) == (2, (3, 32, 32))


def test_mixed_images_have_soft_targets_smoothed_once(open_data: Callable[..., TrainingData]) -> None:
    """Each target is a mixture of two smoothed classes; without mixing, classes stay numbers."""
    data = open_data("data.augment.mixup=0.8", "loss.label_smoothing=0.3")
    np.random.seed(0)
    pictures, targets = data.mix(torch.randn(4, 3, 32, 32), torch.tensor([0, 0, 1, 2]))
    assert data.mixes_labels
    torch.testing.assert_close(targets.sum(1), torch.ones(4))
    assert targets.min() == pytest.approx(0.1), "a class that is in neither image has a third of the smoothing"
    assert 0.1 < targets[0, 2] < 0.8, "the first is mixed with the last"
    plain = open_data()
    assert not plain.mixes_labels
    _, same_labels = plain.mix(pictures, torch.tensor([0, 0, 1, 2]))
    assert same_labels.tolist() == [0, 0, 1, 2]


def test_held_out_images_are_prepared_as_for_deployment(open_data: Callable[..., TrainingData], folder: Path) -> None:
    from vexport.run.images import load_image

    data = open_data("data.crop_pct=0.5")
    assert isinstance(data.held_out, HeldOutImages)
    expected = load_image(folder / "val" / "red" / "3.png", data.preprocessing)
    torch.testing.assert_close(data.held_out[11][0], torch.from_numpy(expected))


# Shards


def test_shards_train_and_resume_between_epochs(
    shards: Path, train: Callable[..., TrainResult], recipe: Path, tmp_path: Path
) -> None:
    """Named by timm's list. Stopped after an epoch and resumed: the weights of an uninterrupted run."""
    chosen = [f"data.source=wds/{shards}", "data.classes=3"]

    def stop(epoch: int, *_: object) -> None:
        if epoch == 1:
            raise KeyboardInterrupt

    workspace = Workspace(tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        train_recipe(recipe, workspace=workspace, overrides=chosen, on_progress=stop)
    resumed = train_recipe(recipe, workspace=workspace, overrides=chosen, resume=True)
    straight = train(*chosen)
    assert resumed is not None
    assert resumed.resumed_from == 1
    assert same(resumed, straight)
    assert straight.best.facts["total"] == 12
    assert straight.best.facts["classes"] == ["0", "1", "2"]
    fused = fuse_checkpoint(straight.best.path, workspace=Workspace(tmp_path / "fused"))
    assert fused.artifact.manifest.parent == straight.best.as_parent()


def test_a_stream_gives_each_image_once_an_epoch_in_another_order(
    shards: Path, open_data: Callable[..., TrainingData]
) -> None:
    """Shards and count in the split's name, without timm's list; more workers than shards are not started."""
    (shards / "_info.json").unlink()
    data = open_data(
        f"data.source=wds/{shards}",
        "data.classes=3",
        "data.workers=8",
        "data.train_split='train-{0000..0001}.tar|24'",
        "data.held_out_split='val-{0000..0000}.tar|12'",
    )
    assert data.workers == 2
    assert data.streamed
    orders = []
    for epoch in (0, 1):
        assert isinstance(data.train, ImageStream)
        data.train.share(0, 1, workers=1)
        data.train.set_epoch(epoch)
        assert data.train.reader.epoch_count.value == epoch, "the order of the shards follows from it"
        orders.append([label for _, label, _ in data.train])
    assert [sorted(order) for order in orders] == [[0] * 8 + [1] * 8 + [2] * 8] * 2
    assert orders[0] != orders[1]
    assert [label for _, label, _ in data.held_out] == [0] * 4 + [1] * 4 + [2] * 4


def test_shards_that_devices_cannot_share_are_refused(shards: Path, open_data: Callable[..., TrainingData]) -> None:
    data = open_data(f"data.source=wds/{shards}", "data.classes=3")
    assert isinstance(data.train, ImageStream)
    with pytest.raises(RecipeError, match="2 shards cannot be shared by 4 devices"):
        data.train.share(0, 4, workers=1)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ([], "does not name its classes"),
        (["data.classes=3", "checkpoint.every_steps=2"], "checkpoint.every_steps needs images that can be found again"),
        (["data.classes=3", "data.train_split=test"], "cannot be read, split test"),
        (["data.classes=3", "data.train_split='train-{0000..0003}.tar|48'"], "2 of the WebDataset shards of split"),
        (["data.classes=3", "data.held_out_split='val-{0000..0000}.tar'"], "how many images there are"),
        (["data.classes=3", "data.source=wds//no/where"], "shards in /no/where cannot be read"),
    ],
)
def test_what_shards_cannot_do(
    shards: Path, open_data: Callable[..., TrainingData], overrides: list[str], says: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        open_data(f"data.source=wds/{shards}", *overrides)
    assert says in caught.value.message


def test_a_class_that_shards_should_not_have_stops_the_run(shards: Path, train: Callable[..., TrainResult]) -> None:
    """Only the reading worker sees it; the error comes out whole all the same."""
    with pytest.raises(InputError) as caught:
        train(f"data.source=wds/{shards}", "data.classes=2")
    assert caught.value.message == "an image has the class 2, data.classes says 2"
    assert caught.value.hint == "classes are numbers from 0 to 1: correct data.classes"


def test_shards_with_fewer_images_than_they_say_stop_the_run(shards: Path, train: Callable[..., TrainResult]) -> None:
    """timm skips what it cannot read; a training shard in which nothing can be read is an error, not a short epoch."""
    for name in ("train-0000.tar", "train-0001.tar"):
        tarfile.open(shards / name, "w").close()
    with pytest.raises(InputError, match=f"training shards gave 0 of the {STEPS} batches"):
        train(f"data.source=wds/{shards}", "data.classes=3")


# Damage


def rewrite(shard: Path, spoil: Callable[[str, bytes], bytes]) -> None:
    """The same shard with other contents."""
    with tarfile.open(shard) as archive:
        members = [(member.name, archive.extractfile(member).read()) for member in archive]  # type: ignore[union-attr]
    with tarfile.open(shard, "w") as archive:
        for name, content in members:
            made = tarfile.TarInfo(name)
            content = spoil(name, content)
            made.size = len(content)
            archive.addfile(made, io.BytesIO(content))


def test_damaged_images_in_shards_are_named_and_replaced(shards: Path, train: Callable[..., TrainResult]) -> None:
    """timm would skip them without a word, and fill the epoch with the others."""
    for split in ("train-0000", "val-0000"):
        rewrite(shards / f"{split}.tar", lambda name, content: content[:50] if name == "0_0.png" else content)
    told: list[str] = []
    result = train(f"data.source=wds/{shards}", "data.classes=3", tell=told.append)
    assert sorted(result.damaged) == [f"{shards / split}.tar: 0_0" for split in ("train-0000", "val-0000")]
    assert {f"damaged, skipped: {name}" for name in result.damaged} <= set(told)
    assert result.best.facts["total"] == 11
    with pytest.raises(InputError, match="1 images cannot be read, 0 are skipped"):
        train(f"data.source=wds/{shards}", "data.classes=3", "data.max_damaged=0")


@pytest.mark.parametrize("place", range(8))
def test_wherever_it_lies_a_damaged_image_in_a_shard_costs_no_batch(
    shards: Path, open_data: Callable[..., TrainingData], place: int
) -> None:
    """The last good one takes its place, moved anew."""
    seen = iter(range(100))

    def spoil(name: str, content: bytes) -> bytes:
        return content[:50] if name.endswith(".png") and next(seen) == place else content

    rewrite(shards / "train-0000.tar", spoil)
    stream = open_data(f"data.source=wds/{shards}", "data.classes=3").train
    assert isinstance(stream, ImageStream)
    samples = list(stream)
    assert len(samples) == 24
    assert len([name for _, _, found in samples for name in found]) == 1


def test_a_shard_that_breaks_off_is_named(shards: Path, train: Callable[..., TrainResult]) -> None:
    broken = shards / "val-0000.tar"
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2 + 300])
    result = train(f"data.source=wds/{shards}", "data.classes=3")
    assert len(result.damaged) >= 1
    assert all("val-0000.tar" in name for name in result.damaged)
    assert result.best.facts["total"] < 12


def test_a_damaged_training_image_is_named_and_replaced_by_the_next(
    folder: Path, train: Callable[..., TrainResult], open_data: Callable[..., TrainingData]
) -> None:
    broken = folder / "train" / "blue" / "7.png"
    broken.write_bytes(broken.read_bytes()[:200])
    images = open_data().train
    assert isinstance(images, TrainImages)
    _, label, damaged = images[Pick(7, 0)]
    assert (label, damaged) == (1, [str(broken)]), "the next one is green"
    assert images[Pick(6, 0)][1:] == (0, [])
    result = train()
    assert result.damaged == (str(broken),)
    assert result.to_json()["damaged"] == [str(broken)]


def test_a_damaged_held_out_image_is_named_and_not_counted(folder: Path, train: Callable[..., TrainResult]) -> None:
    broken = folder / "val" / "green" / "1.png"
    broken.write_bytes(b"not an image")
    result = train("data.max_damaged=1")
    assert result.damaged == (str(broken),)
    assert result.best.facts["total"] == 11


def test_an_image_with_16_bits_would_be_white_and_counts_as_damaged(
    folder: Path, open_data: Callable[..., TrainingData]
) -> None:
    """As where images prove a checkpoint, or are answered: nothing is clipped in silence."""
    for split in PER_CLASS:
        Image.fromarray(np.full((32, 32), 20000, np.uint16)).save(folder / split / "red" / "0.png")
    data = open_data()
    assert data.train[Pick(16, 0)][2] == [str(folder / "train" / "red" / "0.png")]
    assert data.held_out[8][1] == UNREADABLE


def test_more_damaged_images_than_the_limit_stop_the_run(folder: Path, train: Callable[..., TrainResult]) -> None:
    broken = [folder / "train" / "red" / f"{i}.png" for i in (1, 4, 5)]
    for path in broken:
        path.write_bytes(b"")
    with pytest.raises(InputError) as caught:
        train("data.max_damaged=2", "data.workers=1")
    assert caught.value.message == "3 images cannot be read, 2 are skipped"
    assert sorted(caught.value.details) == [str(path) for path in broken]
    assert "data.max_damaged" in caught.value.hint
    assert sorted(train("data.max_damaged=3").damaged) == [str(path) for path in broken]


def test_where_no_image_can_be_read_no_limit_helps(folder: Path, train: Callable[..., TrainResult]) -> None:
    """There is no neighbour to take; a worker process finds out, and the error is one that a user can read."""
    for path in (folder / "train").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match="24 images in a row cannot be read"):
        train("data.max_damaged=1000", "data.workers=1")


def test_damaged_files_in_a_tar_are_told_apart_by_their_tar(
    folder: Path, tars: Path, train: Callable[..., TrainResult]
) -> None:
    """Both splits have a blue/0.png; a truncated tar file loses its last images."""
    for split in PER_CLASS:
        (folder / split / "blue" / "0.png").write_bytes(b"broken")
        with tarfile.open(tars / f"{split}.tar", "w") as archive:
            for name in COLOURS:
                archive.add(folder / split / name, arcname=name)
    result = train(f"data.source={tars}")
    assert sorted(result.damaged) == [f"{tars}/{split}.tar/blue/0.png" for split in PER_CLASS]


def test_a_tar_that_lost_its_end_after_it_was_opened(tars: Path, open_data: Callable[..., TrainingData]) -> None:
    data = open_data(f"data.source={tars}")
    archive = tars / "val.tar"
    os.truncate(archive, archive.stat().st_size // 2)
    found = labels(data)
    assert found[:3] == [0, 0, 0]
    assert found[-3:] == [UNREADABLE] * 3


@pytest.mark.usefixtures("offline")
def test_images_without_files_are_named_by_their_number(tmp_path: Path, train: Callable[..., TrainResult]) -> None:
    """A Hugging Face set in one file: rows have no names, and two damaged ones are two."""
    import datasets

    def png(row: int) -> bytes:
        with io.BytesIO() as stream:
            picture(COLOURS["red"], row).save(stream, "PNG")
            return stream.getvalue()

    root = tmp_path / "rows"
    root.mkdir()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    for split, count in (("train", 8), ("test", 4)):
        rows = [{"bytes": png(row), "path": None} for row in range(count)]
        if split == "train":
            rows[2]["bytes"] = rows[5]["bytes"] = b"broken"
        columns = {"image": rows, "label": [row % 2 for row in range(count)]}
        datasets.Dataset.from_dict(columns, features=features).to_parquet(root / f"{split}-00000.parquet")
    chosen = [f"data.source=hfds/{root}", "data.held_out_split=test"]
    result = train(*chosen, "data.classes=2")
    assert sorted(result.damaged) == ["image 2 of train", "image 5 of train"]
    assert result.best.facts["classes"] == ["0", "1"]
    with pytest.raises(RecipeError, match="does not name its classes"):
        train(*chosen)


# What is refused before training


def refusal(open_data: Callable[..., TrainingData], *overrides: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        open_data(*overrides)
    return caught.value


def test_a_recipe_without_a_source_says_how_to_give_one(open_data: Callable[..., TrainingData]) -> None:
    error = refusal(open_data, "data.source=null")
    assert "pictures does not say where its images are" in error.message
    assert error.hint.startswith("--data DIR")


def test_a_source_that_is_no_folder(open_data: Callable[..., TrainingData], recipe: Path) -> None:
    missing = refusal(open_data, "data.source=/no/where")
    assert missing.message == "data.source /no/where does not exist"
    assert "train/ and val/" in missing.hint
    assert "hfds/..." in missing.hint
    assert "is a file, not a folder" in refusal(open_data, f"data.source={recipe}").message
    assert "data.source tfds/mnist does not exist" in refusal(open_data, "data.source=tfds/mnist").message


def test_a_split_that_is_not_there_lists_what_is(open_data: Callable[..., TrainingData], folder: Path) -> None:
    (folder / "val").rename(folder / "test")
    error = refusal(open_data)
    assert error.message == f"there is no split 'val' in {folder}"
    assert error.details == ("there is: test, train",)
    assert labels(open_data("data.held_out_split=test")) == [0] * 4 + [1] * 4 + [2] * 4


def test_one_class_is_nothing_to_learn(open_data: Callable[..., TrainingData], folder: Path) -> None:
    for name in ("blue", "green"):
        shutil.rmtree(folder / "train" / name)
    assert "has one class, red" in refusal(open_data).message


def test_another_class_count_than_the_recipe_says(open_data: Callable[..., TrainingData]) -> None:
    error = refusal(open_data, "data.classes=10")
    assert "has 3 classes, data.classes says 10" in error.message
    assert error.details == ("classes: blue, green, red",)


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_a_held_out_class_that_training_has_not(
    kind: str, open_data: Callable[..., TrainingData], folder: Path, tars: Path
) -> None:
    (folder / "val" / "green").rename(folder / "val" / "lime")
    with tarfile.open(tars / "val.tar", "w") as archive:
        archive.add(folder / "val", arcname=".")
    error = refusal(open_data, f"data.source={folder if kind == 'folder' else tars}")
    assert "has classes that the training images have not: lime" in error.message
    assert error.details == ("3 classes in training: blue, green, red",)


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_a_class_without_held_out_images_shifts_no_label(
    kind: str, open_data: Callable[..., TrainingData], folder: Path, tars: Path
) -> None:
    shutil.rmtree(folder / "val" / "blue")
    with tarfile.open(tars / "val.tar", "w") as archive:
        archive.add(folder / "val", arcname=".")
    data = open_data(f"data.source={folder if kind == 'folder' else tars}")
    assert labels(data) == [1] * 4 + [2] * 4
    assert data.class_names == tuple(COLOURS)


def test_classes_are_the_folders_right_below(open_data: Callable[..., TrainingData], folder: Path) -> None:
    """As `eval` has it: folders within a class are part of it, hidden ones are nothing."""
    for name in ("blue", "red"):
        for number, inside in enumerate(("indoor", "outdoor")):
            (folder / "train" / name / inside).mkdir()
            moved = sorted((folder / "train" / name).glob("*.png"))[number]
            moved.rename(folder / "train" / name / inside / moved.name)
    for hidden in (folder / "train" / ".thumbnails", folder / "train" / "red" / "@eaDir"):
        hidden.mkdir()
        picture((0, 0, 0), 0).save(hidden / "small.png")
    before = len(open_data().train)
    data = open_data()
    assert data.class_names == tuple(COLOURS)
    assert before == len(data.train) == len(COLOURS) * PER_CLASS["train"]
    assert sorted(labels(data)) == [0] * 4 + [1] * 4 + [2] * 4


def test_nested_held_out_images_count_where_a_class_has_none(
    open_data: Callable[..., TrainingData], folder: Path
) -> None:
    """The classes are those of the training images, in their order; numbers are in theirs, as timm has it."""
    for split in PER_CLASS:
        for old, new in zip(COLOURS, ("2", "10", "1"), strict=True):
            (folder / split / old).rename(folder / split / new)
    shutil.rmtree(folder / "val" / "1")
    (folder / "val" / "10" / "inside").mkdir()
    (folder / "val" / "10" / "0.png").rename(folder / "val" / "10" / "inside" / "0.png")
    data = open_data()
    assert data.class_names == ("1", "2", "10")
    assert sorted(labels(data)) == [1] * 4 + [2] * 4


def test_every_kind_of_image_is_taken(open_data: Callable[..., TrainingData], folder: Path) -> None:
    """timm alone would leave out what `eval` counts."""
    from timm.data import get_img_extensions

    known = get_img_extensions()
    whole = len(open_data().train)
    for suffix in (".webp", ".bmp", ".tif"):
        picture((200, 0, 0), 1).save(folder / "train" / "red" / f"another{suffix}")
    assert len(open_data().train) == whole + 3
    assert get_img_extensions() == known, "timm is left as it was"


def test_an_empty_class_folder_is_a_class_that_was_meant(open_data: Callable[..., TrainingData], folder: Path) -> None:
    (folder / "train" / "white").mkdir()
    (folder / "train" / ".thumbnails").mkdir()
    (folder / "train" / "white" / "1.txt").write_bytes(b"")
    error = refusal(open_data)
    assert error.message == f"{folder / 'train'} has folders without images: white"
    assert "put images there" in error.hint


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_images_outside_of_class_folders_are_no_class(
    kind: str, open_data: Callable[..., TrainingData], folder: Path, tars: Path
) -> None:
    stray = folder / "train" / "stray.png"
    picture((0, 0, 0), 0).save(stray)
    with tarfile.open(tars / "train.tar", "w") as archive:
        archive.add(folder / "train", arcname=".")
    error = refusal(open_data, f"data.source={folder if kind == 'folder' else tars}")
    assert "has images that are in no class's folder" in error.message
    assert error.details[0].startswith("as ")
    assert error.details[0].endswith("stray.png")


def test_a_folder_without_images(open_data: Callable[..., TrainingData], folder: Path) -> None:
    shutil.rmtree(folder / "train")
    (folder / "train").mkdir()
    error = refusal(open_data)
    assert error.message == f"there are no labelled images in {folder / 'train'}"
    assert "a folder per class" in error.hint


@pytest.mark.parametrize("content", ["empty", "nonsense"])
def test_a_tar_without_images(open_data: Callable[..., TrainingData], tars: Path, content: str) -> None:
    if content == "empty":
        tarfile.open(tars / "train.tar", "w").close()
    else:
        (tars / "train.tar").write_bytes(b"nonsense" * 100)
    assert "there are no labelled images in" in refusal(open_data, f"data.source={tars}").message


def test_a_policy_that_timm_does_not_know(open_data: Callable[..., TrainingData]) -> None:
    error = refusal(open_data, "data.augment.auto_augment=rnad-m7")
    assert error.message == "data.augment.auto_augment rnad-m7 is no policy of timm's"


@pytest.mark.usefixtures("offline")
def test_an_unknown_hugging_face_set_is_no_traceback(open_data: Callable[..., TrainingData], folder: Path) -> None:
    error = refusal(open_data, "data.source=hfds/nobody/nothing")
    assert error.message == "the Hugging Face data set nobody/nothing cannot be read, split train"
    assert "connection" in error.hint
    split = refusal(open_data, f"data.source=hfds/{folder}")
    assert split.message.endswith("cannot be read, split val")
    assert "'train', 'validation'" in split.details[0]
    assert "cannot be read" in refusal(open_data, "data.source=hfds/").message


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("image", "label", "values", "says"),
    [
        ("img", "label", [0, 1], "has no column image"),
        ("image", "fine", [0, 1], "has no column label"),
        ("image", "label", [0, -1], "has images without one of its 2 classes"),
        ("image", "label", [0, 2], "has images without one of its 2 classes"),
        ("image", "label", ["red", "blue"], "has images without one of its 2 classes"),
    ],
)
def test_a_hugging_face_set_of_another_make(
    tmp_path: Path, open_data: Callable[..., TrainingData], image: str, label: str, values: list[object], says: str
) -> None:
    """Other columns, labels that are no class numbers: found when it is opened, not image by image."""
    import datasets

    root = tmp_path / "set"
    root.mkdir()
    columns = {image: [picture((9, 9, 9), row) for row in range(2)], label: values}
    kinds = {image: datasets.Image(), label: datasets.Value("string" if "red" in values else "int64")}
    datasets.Dataset.from_dict(columns, features=datasets.Features(kinds)).to_parquet(root / "train-0.parquet")
    error = refusal(open_data, f"data.source=hfds/{root}", "data.held_out_split=train", "data.classes=2")
    assert says in error.message
