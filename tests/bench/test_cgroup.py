"""Limits of containers and services: found where they stand, in both versions of control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from vexport.bench import cgroup


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(cgroup, "ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(cgroup, "OWN", tmp_path / "own")
    (tmp_path / "cgroup").mkdir()
    return tmp_path / "cgroup"


def own(root: Path, text: str) -> None:
    (root.parent / "own").write_text(text, encoding="ascii")


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text, encoding="ascii")


@pytest.mark.parametrize(
    ("text", "cores"),
    [("150000 100000\n", 1.5), ("max 100000\n", None), ("nonsense", None), ("1 0", None), ("a b", None)],
)
def test_a_container_sees_its_limit_at_the_root(root: Path, text: str, cores: float | None) -> None:
    own(root, "0::/\n")
    group(root, cpu__max=text, cpu__stat="usage_usec 9\nthrottled_usec 2500000\n")
    assert cgroup.limit_cores() == cores
    assert cgroup.held_back_s() == 2.5


def test_a_service_has_its_limit_on_its_own_group_or_above(root: Path) -> None:
    """The root of a whole machine tells of no limit: who only looked there would say that there is none."""
    own(root, "0::/system.slice/bench.service\n")
    group(root, cpu__stat="usage_usec 9\n")
    group(root / "system.slice", cpu__max="400000 100000", cpu__stat="throttled_usec 1000000\n")
    group(root / "system.slice" / "bench.service", cpu__max="max 100000", cpu__stat="throttled_usec 500000\n")
    assert cgroup.limit_cores() == 4
    assert cgroup.held_back_s() == 1.5
    group(root / "system.slice" / "bench.service", cpu__max="50000 100000")
    assert cgroup.limit_cores() == 0.5


@pytest.mark.parametrize("mounted", ["cpu", "cpu,cpuacct"])
def test_version_1_is_read_too(root: Path, mounted: str) -> None:
    own(root, f"5:memory:/m\n4:{mounted}:/docker/ab\n0::/\n")
    group(root / mounted / "docker" / "ab", cpu__cfs_quota_us="250000\n", cpu__cfs_period_us="100000\n",
          cpu__stat="nr_periods 3\nthrottled_time 1500000000\n")  # fmt: skip
    group(root / mounted, cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    assert cgroup.limit_cores() == 2.5
    assert cgroup.held_back_s() == 1.5


def test_a_path_of_the_host_that_a_container_does_not_have_is_its_root(root: Path) -> None:
    own(root, "0::/kubepods/pod1/c1\n")
    group(root, cpu__max="200000 100000")
    assert cgroup.limit_cores() == 2
    own(root, "0::/../../elsewhere\n")
    assert cgroup.limit_cores() == 2


def test_systems_without_control_groups_tell_nothing(root: Path) -> None:
    assert (cgroup.limit_cores(), cgroup.held_back_s()) == (None, None)
    root.rmdir()
    assert (cgroup.limit_cores(), cgroup.held_back_s()) == (None, None)
