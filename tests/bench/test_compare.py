"""Two documents held against each other: what is a regression, and what nobody can tell."""

from __future__ import annotations

from typing import Any

import pytest

from vexport.bench.compare import Comparison, compare_documents
from vexport.errors import GateError, InputError

ROUNDS = 8


def row(
    network: str, ms: float | None, *, spread: float = 0.01, error: str | None = None, batch: int = 1, sha: str = "ab"
) -> dict[str, Any]:
    """Rounds whose medians lie within a spread of `ms`."""
    shifts = [spread * (2 * index / (ROUNDS - 1) - 1) for index in range(ROUNDS)]
    samples = [[round(ms * (1 + shift) * 1e6)] * 5 for shift in shifts] if ms else []
    return {
        "network": network,
        "label": network.title(),
        "backend": "onnxruntime CPU",
        "precision": "FP32",
        "batch": batch,
        "input_size": [3, 224, 224],
        "artifact_sha256": sha,
        "median_ms": ms,
        "error": error,
        "samples_ns": samples,
    }


def document(*rows: dict[str, Any], **changes: Any) -> dict[str, Any]:
    environment = {"cpu": "Example", "usable_cores": 2, "gpus": [], "versions": {"onnxruntime": "1"}}
    settings = {"threads": None, "own_processes": True, "duration_s": 5.0, "rounds": ROUNDS, "least_count": 50}
    return {
        "environment": environment | changes.pop("environment", {}),
        "settings": settings | changes.pop("settings", {}),
        "complete": True,
        "groups": [{"rows": list(rows)}],
        **changes,
    }


def compared(old: float, new: float, spread: float = 0.01, bound: float | None = 0.05) -> Comparison:
    return compare_documents(
        document(row("nine", old, spread=spread)), document(row("nine", new, spread=spread)), bound=bound
    )


def test_slower_beyond_the_bound_is_a_regression() -> None:
    found = compared(10, 12)
    (change,) = found.changes
    assert (change.kind, change.regressed, change.old_ms, change.new_ms) == ("slower", True, 10, 12)
    assert change.ratio is not None
    assert change.ratio.low > 1.05
    with pytest.raises(GateError) as caught:
        found.require_passed()
    assert caught.value.exit_code == 3
    assert caught.value.message == "1 of 1 rows is more than 5.0% slower"
    assert caught.value.details[0].startswith("Nine, onnxruntime CPU FP32, batch 1: slower, +20.0 % (+1")
    assert "whole interval" in caught.value.hint


def test_slower_within_the_bound_is_none() -> None:
    found = compared(10, 10.4)
    assert (found.changes[0].kind, found.passed) == ("slower", True)
    found.require_passed()


def test_what_the_interval_leaves_open_is_no_regression() -> None:
    found = compared(10, 11, spread=0.2)
    (change,) = found.changes
    assert change.ratio is not None
    assert change.ratio.value > 1.05
    assert change.ratio.low < 1.05
    assert (change.kind, change.regressed) == ("not told apart", False)
    found.require_passed()


def test_without_a_bound_nothing_is_asked() -> None:
    found = compared(10, 20, bound=None)
    assert (found.changes[0].kind, found.changes[0].regressed) == ("slower", False)
    found.require_passed()
    assert found.to_json()["passed"] is None


def test_faster() -> None:
    assert compared(10, 8).changes[0].kind == "faster"


def test_what_fails_now_is_a_regression() -> None:
    old = document(row("nine", 10), row("resnet50", 5), row("gone", 3), row("broken", None, error="no"))
    new = document(
        row("nine", None, error="hung: no answer for 120 s"),
        row("resnet50", 5),
        row("fresh", 1),
        row("broken", None, error="no"),
    )
    found = compare_documents(old, new, bound=0.05)
    assert {change.network: change.kind for change in found.changes} == {
        "Nine": "fails now",
        "Resnet50": "not told apart",
        "Fresh": "new",
        "Broken": "fails",
        "Gone": "missing",
    }
    assert [change.network for change in found.regressed] == ["Nine"]
    assert compare_documents(new, old, bound=0.05).changes[0].kind == "works now"


def test_another_artifact_is_told() -> None:
    found = compare_documents(document(row("nine", 10)), document(row("nine", 10, sha="cd")))
    assert found.changes[0].same_artifact is False


def test_rows_are_matched_by_all_that_shapes_them() -> None:
    with pytest.raises(InputError, match="share no row") as caught:
        compare_documents(document(row("nine", 10)), document(row("nine", 10, batch=8)))
    assert caught.value.details == (
        "before: nine (onnxruntime CPU FP32, batch 1)",
        "now: nine (onnxruntime CPU FP32, batch 8)",
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"environment": {"cpu": "Other"}}, "processor: Example before, Other now"),
        ({"environment": {"gpus": ["H200"]}}, "GPUs: none before, H200 now"),
        ({"settings": {"threads": 1}}, "threads: none before, 1 now"),
        ({"environment": {"cpu_quota_cores": 1.5}}, "quota of cores: none before, 1.5 now"),
        (
            {"environment": {"variables": {"OMP_NUM_THREADS": "1"}}},
            "environment variables: none before, OMP_NUM_THREADS=1 now",
        ),
        (
            {"environment": {"variables": {"NVIDIA_TF32_OVERRIDE": "0"}}},
            "environment variables: none before, NVIDIA_TF32_OVERRIDE=0 now",
        ),
        ({"recipe": {"tf32": False}}, "TF32 allowed: none before, False now"),
    ],
)
def test_another_machine_decides_nothing(changes: dict[str, Any], said: str) -> None:
    old, new = document(row("nine", 10)), document(row("nine", 20), **changes)
    found = compare_documents(old, new)
    assert found.other_machine == (said,)
    with pytest.raises(InputError, match="measured otherwise") as caught:
        compare_documents(old, new, bound=0.05)
    assert caught.value.details == (said,)


def test_an_empty_table_is_as_good_as_none() -> None:
    """Documents of other days tell no variables at all."""
    new = document(row("nine", 10), environment={"variables": {}})
    assert compare_documents(document(row("nine", 10)), new, bound=0.05).other_machine == ()


def test_other_settings_and_versions_are_notes() -> None:
    new = document(
        row("nine", 10), settings={"rounds": 5}, environment={"versions": {"onnxruntime": "2"}}, complete=False
    )
    found = compare_documents(document(row("nine", 10)), new, bound=0.05)
    assert found.other_machine == ()
    assert found.notes == (
        "rounds: 8 before, 5 now",
        "the new benchmark was interrupted: it is not complete",
        "onnxruntime: 1 before, 2 now",
    )


def test_a_second_file_of_one_name_is_told_and_not_dropped_in_silence() -> None:
    twice = document(row("nine", 10), row("nine", 99, sha="cd"), row("resnet50", 5), row("resnet50", 5))
    found = compare_documents(document(row("nine", 10), row("resnet50", 5)), twice)
    assert [change.network for change in found.changes] == ["Nine", "Resnet50"]
    assert found.notes == (
        "nine (onnxruntime CPU FP32, batch 1) is there more than once in the new benchmark: its first row counts",
    )


def runs(*factors: tuple[float, float], baseline: bool = True) -> list[dict[str, Any]]:
    """Runs of two networks, one of them the baseline: each by (how slow the machine is, how slow `nine` is besides)."""
    return [
        document(
            row("nine", 20 * machine * own),
            *([row("resnet50", 10 * machine)] if baseline else []),
            baseline="resnet50",
        )
        for machine, own in factors
    ]


def test_a_machine_that_slowed_between_two_runs_of_one_build_is_no_regression() -> None:
    """The medians of both networks grew by 11 %, and their ratio did not."""
    nine, fifty = (found := compare_documents(*runs((1, 1), (1.11, 1)), bound=0.05)).changes
    found.require_passed()
    assert nine.ratio is not None
    assert nine.ratio.low > 1.05, "the medians alone would be a false alarm"
    assert nine.by_baseline is not None
    assert nine.by_baseline.value == pytest.approx(1, abs=1e-3)
    assert nine.text.startswith("Nine, onnxruntime CPU FP32, batch 1: not told apart, ")
    assert " beside Resnet50; its median +11.0 % (" in nine.text
    assert (fifty.is_baseline, fifty.kind, fifty.regressed) == (True, "slower", False)
    assert fifty.text.endswith("the baseline, which decides nothing")
    assert fifty.by_baseline is None


@pytest.mark.parametrize("machine", [0.9, 1.0, 1.11])
def test_a_network_that_slowed_beside_its_baseline_is_a_regression(machine: float) -> None:
    found = compare_documents(*runs((1, 1), (machine, 1.12)), bound=0.05)
    (nine,) = found.regressed
    assert nine.by_baseline is not None
    assert nine.by_baseline.value == pytest.approx(1.12, rel=1e-3)
    with pytest.raises(GateError, match="1 of 2 rows") as caught:
        found.require_passed()
    assert "+12.0 % (" in caught.value.details[0]
    assert "decides nothing" in caught.value.hint


def test_medians_decide_where_there_is_no_baseline() -> None:
    old, new = runs((1, 1), (1.11, 1), baseline=False)
    (nine,) = compare_documents(old, new, bound=0.05).changes
    assert (nine.by_baseline, nine.regressed) == (None, True)
    (nine, _) = compare_documents(old, *runs((1.11, 1)), bound=0.05).changes
    assert (nine.by_baseline, nine.regressed) == (None, True), "it has to stand beside it in both runs"


def test_a_baseline_of_another_group_is_none() -> None:
    """Only what took turns cancels out."""
    old, new = runs((1, 1), (1.11, 1))
    for one in (old, new):
        nine, fifty = one["groups"][0]["rows"]
        one["groups"] = [{"rows": [nine]}, {"rows": [fifty]}]
    assert compare_documents(old, new, bound=0.05).changes[0].by_baseline is None


def test_unstable_figures_are_told() -> None:
    old, new = runs((1, 1), (1, 1))
    old["groups"][0]["rows"][1]["unstable"] = new["groups"][0]["rows"][0]["unstable"] = True
    nine, fifty = compare_documents(old, new).changes
    assert nine.text.endswith("; unstable: now, Resnet50 before")
    assert fifty.unstable == ("before",)
    assert nine.to_json()["unstable"] == ["now", "Resnet50 before"]


def test_few_rounds_widen_the_change_beside_the_baseline() -> None:
    old, new = runs((1, 1), (1.11, 1.2))
    full = compare_documents(old, new).changes[0].by_baseline
    for one in (old, new):
        for found in one["groups"][0]["rows"]:
            found["samples_ns"] = found["samples_ns"][::4]
        one["groups"][0]["rows"][0]["samples_ns"][0] = [round(v * 0.98) for v in found["samples_ns"][0]] * 2
    few = compare_documents(old, new).changes[0].by_baseline
    assert full is not None
    assert few is not None
    assert few.high / few.low > full.high / full.low
