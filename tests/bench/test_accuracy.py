"""When two accuracies count as equal."""

from __future__ import annotations

import pytest

from vexport.bench.accuracy import RULE, Top1, is_as_accurate, pareto_front


def test_the_margin_is_the_one_that_the_rule_states() -> None:
    assert Top1(80.0).margin_points == pytest.approx(0.351, abs=0.001)
    assert "0.35 points near 80 %" in RULE
    assert Top1(80.0, 1000).margin_points == pytest.approx(2.48, abs=0.01)
    assert Top1(100.0).margin_points == Top1(0.0).margin_points == 0


def test_less_than_the_margin_counts_as_equal_both_ways() -> None:
    one, other = Top1(79.6), Top1(79.8)
    assert is_as_accurate(one, other)
    assert is_as_accurate(other, one)
    assert not is_as_accurate(Top1(79.4), other)
    assert is_as_accurate(other, Top1(79.4))


def test_the_coarser_accuracy_sets_the_margin() -> None:
    few = Top1(78.0, 1000)
    assert is_as_accurate(few, Top1(80.0))
    assert not is_as_accurate(Top1(78.0), Top1(80.0))
    assert is_as_accurate(Top1(78.0), Top1(80.0, 1000))


def test_a_front_has_no_network_that_a_faster_one_makes_needless() -> None:
    #          beaten 4     front       front       by 1        same as 1   margin of 2  front
    points = [(3.0, 70.0), (2.0, 75.0), (5.0, 80.0), (2.5, 75.0), (2.0, 75.0), (6.0, 80.3), (9.0, 81.0)]
    assert pareto_front([(latency, Top1(top1)) for latency, top1 in points]) == [1, 2, 6]
    assert pareto_front([(1.0, Top1(50.0))]) == [0]
    assert pareto_front([]) == []
