"""Advice over groups: what to pick, what to take instead, and INT8 that does not pay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vexport.bench.accuracy import Top1
from vexport.bench.advice import Option, advise, conclude, front
from vexport.bench.clock import Samples

GROUPS: dict[tuple[str, str, int], int] = {}


def option(
    name: str,
    ms: float,
    top1: float | None,
    *,
    family: str = "ResNet",
    precision: str = "FP32",
    backend: str = "onnxruntime CPU",
    spread: float = 0.01,
    error: str | None = None,
    batch: int = 1,
) -> Option:
    rounds = tuple((int(ms * (1 + spread * shift) * 1e6),) * 5 for shift in (-1, -0.6, -0.2, 0.2, 0.6, 1))
    return Option(
        network=name,
        title=name,
        family=family,
        device="Example",
        backend=backend.split()[0],
        backend_title=backend,
        precision=precision,
        batch=batch,
        input_size=(3, 224, 224),
        samples=Samples(name, () if error else rounds, error),
        group=GROUPS.setdefault((backend, precision, batch), len(GROUPS)),
        accuracy=None if top1 is None else Top1(top1),
    )


def said_of(*options: Option) -> list[str]:
    return list(advise(options).sentences)


def vanilla(name: str, ms: float, top1: float | None, **more: object) -> Option:
    return option(name, ms, top1, family="VanillaNet", **more)  # type: ignore[arg-type]


FIVE, NINE = vanilla("VanillaNet-5", 25, 72.49), vanilla("VanillaNet-9", 62, 79.87)
FIFTY, SWIN = option("ResNet-50", 31, 79.8), option("Swin-T", 55, 81.18, family="Swin")


def test_the_front_has_what_nothing_beats_at_about_its_accuracy() -> None:
    assert front([NINE, FIVE, SWIN, FIFTY]) == [FIVE, FIFTY, SWIN]
    assert front([NINE, option("unknown", 1, None)]) == [NINE]


def test_accuracies_that_so_many_images_do_not_tell_apart_are_equal() -> None:
    near, far = option("near", 62, 79.8 + 0.3), option("far", 62, 79.8 + 0.4)
    assert front([FIFTY, near]) == [FIFTY]
    assert front([FIFTY, far]) == [FIFTY, far]


def test_what_to_take_instead() -> None:
    picks, less, same = said_of(FIVE, NINE, FIFTY, SWIN, option("fast", 20, 75))
    assert picks == (
        "On Example, batch 1, 224x224: pick by accuracy and latency: "
        "fast (onnxruntime CPU FP32, 75.00 %, 20 ms); ResNet-50 (onnxruntime CPU FP32, 79.80 %, 31 ms); "
        "Swin-T (onnxruntime CPU FP32, 81.18 %, 55 ms)."
    )
    assert less == (
        "Instead of VanillaNet-5 (onnxruntime CPU FP32, 72.49 %, 25 ms) take fast (onnxruntime CPU FP32, 75.00 %, "
        "20 ms): VanillaNet-5 has less accuracy and is 1.25x slower (1.25 to 1.25), measured in turns."
    )
    assert same == (
        "Instead of VanillaNet-9 (onnxruntime CPU FP32, 79.87 %, 62 ms) take ResNet-50 (onnxruntime CPU FP32, "
        "79.80 %, 31 ms): VanillaNet-9 has its accuracy and is 2.00x slower (2.00 to 2.00), measured in turns."
    )


def test_published_accuracies_are_marked() -> None:
    marked = replace(FIFTY, published=True)
    assert "ResNet-50 (onnxruntime CPU FP32, 79.80 % published, 31 ms)" in said_of(FIVE, marked)[0]


def test_several_places_are_named_with_every_sentence() -> None:
    eight = [vanilla("VanillaNet-9", 500, 79.87, batch=8), option("ResNet-50", 250, 79.8, batch=8)]
    found = said_of(NINE, FIFTY, *eight)
    assert all(line.startswith(("On Example, batch 1, ", "On Example, batch 8, ")) for line in found)
    assert sum("Instead of" in line for line in found) == 2


def document_groups() -> list[dict[str, Any]]:
    """VanillaNet-9 and ResNet-50 in FP32 and INT8, as a document has them."""
    groups = []
    for precision, latencies in (("FP32", (62.0, 31.0)), ("INT8", (20.0, 40.0))):
        rows = [
            {
                "network": name,
                "label": label,
                "family": family,
                "accuracy": {"top1_percent": top1, "source": "published"} if precision == "FP32" else None,
                "samples_ns": [[round(ms * 1e6 * (1 + 0.001 * turn))] * 5 for turn in range(6)],
                "error": None,
            }
            for (name, label, family, top1), ms in zip(
                (("vanillanet_9", "VanillaNet-9", "VanillaNet", 79.87), ("resnet50", "ResNet-50", "ResNet", 79.8)),
                latencies,
                strict=True,
            )
        ]
        groups.append({"backend": "cpu", "precision": precision, "batch": 1, "input_size": [3, 224, 224], "rows": rows})
    return groups


def test_the_conclusions_of_a_document() -> None:
    """They are drawn from its groups alone, and again from what was concluded before."""
    found = conclude(document_groups())
    nine, fifty = (row["against_float"] for row in found["groups"][1]["rows"])
    assert (nine["precision"], round(nine["value"], 2), round(fifty["value"], 2)) == ("FP32", 0.32, 1.29)
    assert [row["against_float"] for row in found["groups"][0]["rows"]] == [None, None]
    (instead,) = found["instead"]
    assert (instead["network"], instead["batch"], instead["input_size"]) == ("vanillanet_9", 1, [3, 224, 224])
    assert instead["text"] in found["advice"]
    assert "INT8 in cpu is slower than floating point, so there is no reason for it: ResNet-50 1.29x" in " ".join(
        found["advice"]
    )
    assert conclude(found["groups"]) == found


def test_a_vanillanet_that_wins_is_not_replaced() -> None:
    fast = vanilla("VanillaNet-9", 10, 79.87)
    assert [line for line in said_of(fast, FIFTY) if "Instead" in line] == []
    shaky = vanilla("VanillaNet-9", 32, 79.87, spread=0.3)
    assert [line for line in said_of(shaky, FIFTY) if "Instead" in line] == [], "not told apart"


def test_the_fastest_form_of_each_counts() -> None:
    """In another backend ResNet-50 is faster still; the two took no turns with each other."""
    other = option("ResNet-50", 20, 79.8, backend="openvino CPU")
    (instead,) = [line for line in said_of(NINE, FIFTY, other) if "Instead" in line]
    assert "take ResNet-50 (openvino CPU FP32, 79.80 %, 20 ms)" in instead
    assert "measured one after the other" in instead


def test_int8_that_is_no_faster_is_said_and_never_picked() -> None:
    slow = option("ResNet-50", 33, 79.7, precision="INT8")
    said = said_of(FIVE, FIFTY, slow)
    assert said[-1].startswith("INT8 in onnxruntime is slower than floating point, so there is no reason for it: ")
    assert "INT8" not in said[0]
    open_question = option("ResNet-50", 30.9, 79.7, precision="INT8", spread=0.2)
    (*picks, not_told) = said_of(FIVE, FIFTY, open_question)
    assert not_told.startswith("INT8 in onnxruntime is not shown to be faster than floating point, nor to be slower")
    assert "no reason" not in not_told, "an open interval is no ground to dismiss it"
    assert "INT8" not in picks[0]


def test_int8_that_pays_is_an_option_where_its_accuracy_is_known() -> None:
    fast = option("ResNet-50", 15, 79.7, precision="INT8")
    said = said_of(FIVE, FIFTY, fast)
    assert "ResNet-50 (onnxruntime CPU INT8, 79.70 %, 15 ms)" in said[0]
    assert not any("no reason" in line for line in said)
    unproven = option("ResNet-50", 15, None, precision="INT8")
    picks, faster = said_of(FIVE, FIFTY, unproven)
    assert "INT8" not in picks
    assert faster.startswith("INT8 in onnxruntime is faster, but its accuracy is not known, so it is not picked")
    assert "ResNet-50 0.48x the time of FP32" in faster


def test_int8_is_held_against_its_own_backend() -> None:
    """Another backend's FP32 may be faster still: that is another sentence."""
    int8 = option("ResNet-50", 15, None, precision="INT8")
    other = option("ResNet-50", 10, 79.8, backend="openvino CPU FP32")
    said = said_of(FIVE, FIFTY, int8, other)
    assert said[0].endswith("ResNet-50 (openvino CPU FP32, 79.80 %, 10 ms).")
    assert "INT8 in onnxruntime is faster" in said[-1]


def test_int8_slower_than_fp16_does_not_pay_although_it_beats_fp32() -> None:
    half = option("ResNet-50", 10, 79.8, precision="FP16")
    int8 = option("ResNet-50", 15, 79.7, precision="INT8")
    assert "1.50x the time of FP16 (" in said_of(FIFTY, half, int8)[-1]


def test_nothing_is_said_of_one_network_or_of_failures() -> None:
    assert said_of(FIFTY) == []
    assert said_of(option("ResNet-50", 1, 79.8, error="crashed"), option("x", 1, 1, error="hung")) == []


def test_without_accuracy_there_is_nothing_to_pick_by() -> None:
    said = said_of(option("a", 1, None), option("b", 2, None))
    assert said == ["On Example, batch 1, 224x224: no accuracy is known, so there is nothing to pick by."]


def test_int8_that_did_not_run_is_neither_judged_nor_picked() -> None:
    """A file with INT8 in it whose convolutions ran in floating point says nothing of INT8, slow or fast."""
    for ms in (15, 33):
        shallow = replace(option("ResNet-50", ms, 79.7, precision="INT8"), int8_share=0.0)
        picks, why = said_of(FIVE, FIFTY, shallow)
        assert "INT8" not in picks
        assert why == (
            "INT8 in onnxruntime is not judged where most of the arithmetic ran in floating point; shares that ran "
            "in INT8: ResNet-50 0%."
        )
    deep = replace(option("ResNet-50", 33, 79.7, precision="INT8"), int8_share=0.97)
    assert "is slower than floating point" in said_of(FIVE, FIFTY, deep)[-1]


def test_doubt_goes_along() -> None:
    """What is marked unstable in its table is so in the advice."""
    shaky, int8 = replace(NINE, unstable=True), option("ResNet-50", 33, 79.7, precision="INT8")
    picks, instead, slower = said_of(shaky, FIFTY, replace(int8, unstable=True))
    assert "VanillaNet-9 (onnxruntime CPU FP32, 79.87 %, 62 ms, unstable) take ResNet-50" in instead
    assert slower.endswith(", unstable).")
    assert "unstable" not in picks
    assert not any("unstable" in line for line in said_of(NINE, FIFTY, int8))


def test_what_to_take_instead_names_its_place_where_there_are_several() -> None:
    eight = [vanilla("VanillaNet-9", 500, 79.87, batch=8), option("ResNet-50", 250, 79.8, batch=8)]
    found = advise([NINE, FIFTY, *eight]).instead
    assert [one.text.partition(" Instead")[0] for one in found] == [
        "On Example, batch 1, 224x224:",
        "On Example, batch 8, 224x224:",
    ]
    assert advise([NINE, FIFTY]).instead[0].text.startswith("Instead of")
