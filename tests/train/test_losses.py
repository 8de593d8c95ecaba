"""The losses against computations by hand, and the teachers: what they may be, and that they stay what they are."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vexport.artifacts import Preprocessing
from vexport.errors import RecipeError
from vexport.model.build import expected_shapes
from vexport.model.checkpoint import load_network
from vexport.model.variants import NetworkSpec
from vexport.pipeline.train import TrainResult, train_recipe
from vexport.recipe import load_recipe
from vexport.train.losses import Distilled, Plain, Renormalised, make_loss
from vexport.workspace import Workspace

LOGITS = [[2.0, -1.0, 0.5], [0.0, 1.0, -2.0]]
TAUGHT = [[1.0, 0.0, -1.0], [0.5, 2.0, 0.0]]
IMAGES = torch.zeros(2, 3, 32, 32)
DIGITS = (1, 32, 32)
# A network of a few thousand numbers that timm has for tests.
TIMM = "test_resnet"


def made(tiny: Path, *overrides: str, classes: int = 3, size: tuple[int, int, int] = (3, 32, 32), mixes: bool = False):
    images = Preprocessing(size, (0.5,) * size[0], (0.25,) * size[0])
    return make_loss(load_recipe(tiny, overrides), classes, images, mixes_labels=mixes)


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def cross_entropy(targets: list[list[float]]) -> float:
    rows = zip(targets, map(softmax, LOGITS), strict=True)
    return sum(-t * math.log(p) for row, shares in rows for t, p in zip(row, shares, strict=True)) / len(LOGITS)


def binary_cross_entropy(targets: list[list[float]]) -> float:
    """Mean over images and classes, each class with a sigmoid of its own."""
    pairs = [
        (t, 1 / (1 + math.exp(-x)))
        for row, logits in zip(targets, LOGITS, strict=True)
        for t, x in zip(row, logits, strict=True)
    ]
    return sum(-t * math.log(p) - (1 - t) * math.log(1 - p) for t, p in pairs) / len(pairs)


def soft(temperature: float) -> float:
    """T^2 times the divergence of the student from the teacher, mean over images."""
    total = 0.0
    for student, teacher in zip(LOGITS, TAUGHT, strict=True):
        pairs = zip(softmax(student, temperature), softmax(teacher, temperature), strict=True)
        total += sum(q * math.log(q / p) for p, q in pairs)
    return temperature**2 * total / len(LOGITS)


SMOOTHED = [[0.1, 0.8, 0.1], [0.8, 0.1, 0.1]]  # classes 1 and 0, with a smoothing of 0.3
MIXED = [[0.2, 0.5, 0.3], [0.6, 0.4, 0.0]]


@pytest.mark.parametrize(("name", "by_hand"), [("bce", binary_cross_entropy), ("ce", cross_entropy)])
def test_losses_by_hand(tiny: Path, name: str, by_hand) -> None:
    """Classes are smoothed by the loss; soft targets are not, since mixing has smoothed them."""
    chosen = [f"loss.name={name}", "loss.label_smoothing=0.3"]
    logits = torch.tensor(LOGITS)
    hard = made(tiny, *chosen)(logits, torch.tensor([1, 0]), IMAGES)
    assert float(hard) == pytest.approx(by_hand(SMOOTHED), rel=1e-5)
    mixed = made(tiny, *chosen, mixes=True)(logits, torch.tensor(MIXED), IMAGES)
    assert float(mixed) == pytest.approx(by_hand(MIXED), rel=1e-5)


class Told(nn.Module):
    """A teacher with one answer, which counts in training mode what it should not."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = nn.Parameter(torch.tensor(TAUGHT))
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        self.norm(images)
        return self.answer


@pytest.mark.parametrize(("weight", "temperature"), [(1.0, 2.0), (1.0, 1.0), (0.25, 2.0)])
def test_distillation_by_hand(weight: float, temperature: float) -> None:
    logits = torch.tensor(LOGITS, requires_grad=True)
    teacher = Told()
    loss = Distilled(nn.CrossEntropyLoss(), teacher, weight, temperature)
    found = loss(logits, torch.tensor([1, 0]), IMAGES)
    hard = cross_entropy([[0, 1, 0], [1, 0, 0]])
    assert found.item() == pytest.approx((1 - weight) * hard + weight * soft(temperature), rel=1e-5)
    found.backward()
    assert logits.grad is not None
    assert teacher.answer.grad is None
    assert int(teacher.norm.num_batches_tracked) == 0


def test_a_student_that_answers_as_its_teacher_has_nothing_to_learn() -> None:
    logits = torch.tensor(TAUGHT, requires_grad=True)
    Distilled(nn.CrossEntropyLoss(), Told(), 1.0, 3.0)(logits, torch.tensor([1, 0]), IMAGES).backward()
    torch.testing.assert_close(logits.grad, torch.zeros(2, 3))


# Teachers


@pytest.fixture
def teacher(tiny: Path, tmp_path: Path) -> TrainResult:
    """A VanillaNet that was trained for two epochs on the digits."""
    chosen = ["epochs=2", "deep_training.decay_epochs=0"]
    result = train_recipe(tiny, workspace=Workspace(tmp_path / "teacher"), overrides=chosen)
    assert result is not None
    return result


@pytest.fixture
def timm_weights(tmp_path: Path) -> Path:
    """Random weights of a timm network of three classes."""
    import timm

    torch.manual_seed(5)
    path = tmp_path / "teacher.pth"
    torch.save(timm.create_model(TIMM, num_classes=3).state_dict(), path)
    return path


def test_a_vanillanet_teaches_another(
    tiny: Path, teacher: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It shapes the student, stays as it was, and is no part of what the student leaves behind."""
    from vexport.train import fit

    losses: list[nn.Module] = []
    honest = fit.make_loss

    def watched(*args, **options):
        losses.append(honest(*args, **options))
        return losses[-1]

    monkeypatch.setattr(fit, "make_loss", watched)
    chosen = ["name=student", "epochs=2", "deep_training.decay_epochs=0", "seed=1"]
    workspace = Workspace(tmp_path / "out")
    alone = train_recipe(tiny, workspace=workspace, overrides=chosen)
    distill = [f"distill.teacher={teacher.best.path}", "distill.weight=1", "distill.temperature=2"]
    taught = train_recipe(tiny, workspace=workspace, overrides=[*chosen, "name=taught", *distill])
    assert alone is not None
    assert taught is not None

    (before, after) = losses
    assert isinstance(before, Plain)
    assert isinstance(after, Distilled)
    assert (after.weight, after.temperature) == (1.0, 2.0)
    assert not after.teacher.training
    original, _ = load_network(teacher.best.path)
    state = after.teacher.state_dict()
    assert state.keys() == original.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in original.state_dict().items())
    assert all(parameter.grad is None for parameter in after.teacher.parameters())

    content = [torch.load(result.last.path, weights_only=True) for result in (alone, taught)]
    assert content[0]["state_dict"].keys() == content[1]["state_dict"].keys()
    spec = NetworkSpec.from_json(taught.last.facts["network"])
    assert set(content[1]["model"]) == set(expected_shapes(spec, "training"))
    weights = [one["model"]["stem1.0.weight"] for one in content]
    assert not torch.equal(*weights)


def test_a_timm_model_teaches_with_the_weights_of_a_file(tiny: Path, timm_weights: Path) -> None:
    """Also under its full name, whose tag is no file's suffix."""
    import timm

    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = timm.create_model(TIMM, num_classes=3, checkpoint_path=str(timm_weights)).eval()(images)
    for name in (TIMM, f"{TIMM}.r160_in1k"):
        loss = made(tiny, f"distill.teacher={name}", f"distill.checkpoint={timm_weights}")
        assert isinstance(loss, Distilled)
        assert isinstance(loss.teacher, Renormalised)
        torch.testing.assert_close(loss.teacher.teacher(images), expected)


def test_a_pretrained_timm_model_is_asked_for_by_name(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    honest, asked = timm.create_model, []

    def create_model(name, **options):
        asked.append((name, options))
        return honest(TIMM, num_classes=3)

    monkeypatch.setattr(timm, "create_model", create_model)
    for name in ("resnet50.a1_in1k", "hf-hub:owner/model"):
        assert isinstance(made(tiny, f"distill.teacher={name}"), Distilled)
    assert asked == [("resnet50.a1_in1k", {"pretrained": True}), ("hf-hub:owner/model", {"pretrained": True})]
    with pytest.raises(RecipeError, match="tells 3 classes apart, the data have 4") as caught:
        made(tiny, "distill.teacher=resnet50", classes=4)
    assert "same classes" in caught.value.hint


def test_a_teacher_of_other_classes(tiny: Path, teacher: TrainResult, timm_weights: Path) -> None:
    with pytest.raises(RecipeError, match="tells 10 classes apart, the data have 3"):
        made(tiny, f"distill.teacher={teacher.best.path}", size=DIGITS)
    with pytest.raises(RecipeError) as caught:
        made(tiny, f"distill.teacher={TIMM}", f"distill.checkpoint={timm_weights}", classes=5)
    assert caught.value.message == f"the weights of distill.teacher {TIMM} cannot be had from {timm_weights}"
    assert any("size mismatch" in line for line in caught.value.details)
    assert caught.value.hint == "a file of this model's weights, with 5 classes"


def test_a_teacher_of_other_images(tiny: Path, teacher: TrainResult, timm_weights: Path) -> None:
    """Three channels where the data have one; sides that shrink to nothing."""
    with pytest.raises(RecipeError, match="does not take images of 1x32x32"):
        made(tiny, f"distill.teacher={TIMM}", f"distill.checkpoint={timm_weights}", size=DIGITS)
    with pytest.raises(RecipeError, match="does not take images of 1x16x16") as caught:
        made(tiny, f"distill.teacher={teacher.best.path}", size=(1, 16, 16))
    assert "shrinks to nothing" in caught.value.details[0]


def test_an_unknown_teacher(tiny: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        made(tiny, "distill.teacher=test_resnot")
    assert caught.value.message == "distill.teacher test_resnot is neither a file nor a model of timm's"
    assert TIMM in caught.value.hint


@pytest.mark.parametrize("name", ["missing.ckpt", "some/folder", "text.pth"])
def test_a_teacher_that_is_no_checkpoint(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.pth").write_text("no weights")
    with pytest.raises(RecipeError, match=f"distill.teacher {name} cannot be loaded") as caught:
        made(tiny, f"distill.teacher={name}")
    assert caught.value.details


def test_without_a_connection_there_is_a_way(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    def create_model(name, **options):
        raise ConnectionError("huggingface.co cannot be reached\nand more")

    monkeypatch.setattr(timm, "create_model", create_model)
    with pytest.raises(RecipeError) as caught:
        made(tiny, f"distill.teacher={TIMM}")
    assert caught.value.message == f"the weights of distill.teacher {TIMM} cannot be had"
    assert caught.value.details == ("ConnectionError: huggingface.co cannot be reached", "and more")
    assert "distill.checkpoint=FILE" in caught.value.hint


def test_a_file_of_weights_that_is_not_there(tiny: Path) -> None:
    with pytest.raises(RecipeError, match=r"cannot be had from /no/weights.pth"):
        made(tiny, f"distill.teacher={TIMM}", "distill.checkpoint=/no/weights.pth")


def test_a_teacher_sees_images_as_it_knows_them() -> None:
    """Normalised by mean 0.5 and deviation 0.25, the teacher knows mean 0.1 and deviation 2."""

    class Mean(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean((2, 3))

    pixels = torch.rand(2, 3, 4, 4)
    teacher = Renormalised(Mean(), ((0.5,) * 3, (0.25,) * 3), ((0.1, 0.2, 0.3), (2.0, 1.0, 0.5)))
    expected = (pixels.mean((2, 3)) - torch.tensor([0.1, 0.2, 0.3])) / torch.tensor([2.0, 1.0, 0.5])
    torch.testing.assert_close(teacher((pixels - 0.5) / 0.25), expected)


def test_a_timm_teacher_is_renormalised_only_where_it_has_to_be(
    tiny: Path, timm_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [f"distill.teacher={TIMM}", f"distill.checkpoint={timm_weights}"]
    import timm

    honest = timm.create_model

    known: dict[str, tuple[float, ...]] = {"mean": (0.5, 0.5, 0.5)}

    def create_model(*args, **kwargs):
        model = honest(*args, **kwargs)
        model.pretrained_cfg = known
        return model

    monkeypatch.setattr(timm, "create_model", create_model)
    for std, wrapped in (((0.25, 0.25, 0.25), False), ((0.2, 0.25, 0.25), True)):
        known["std"] = std
        loss = made(tiny, *overrides)
        assert isinstance(loss, Distilled)
        assert isinstance(loss.teacher, Renormalised) is wrapped
