"""The benches' scorers against cases worked by hand, and against a plain reading of the rules."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sentinel.records import Floats
from tests.bench.scoring import (
    PROFILES,
    Costs,
    Judged,
    judge,
    judge_flags,
    nab_best,
    nab_score,
    nab_sweep,
    probation,
    window_rows,
)

STANDARD = PROFILES["standard"]
ROWS, WINDOW = 100, (40, 49)  # probation 15


def detections(*rows: int) -> list[Floats]:
    score = np.zeros(ROWS)
    score[list(rows)] = 1.0
    return [score]


def final(*rows: int, costs: Costs = STANDARD) -> float:
    return nab_score([judge(ROWS, [WINDOW])], detections(*rows), costs, 1.0)


class TestNab:
    def test_probation_is_fifteen_per_cent_of_the_rows_rounded_down_and_at_most_750(self) -> None:
        assert [probation(rows) for rows in (99, 4999, 5000, 22_695)] == [14, 749, 750, 750]

    def test_a_window_runs_from_the_first_row_with_its_start_time_to_the_first_with_its_end_time(self) -> None:
        times = ["t0", "t1", "t1", "t2", "t1", "t3", "t3"]
        assert window_rows(times, [("t1.000000", "t3.000000")]) == [(1, 5)]

    def test_a_window_whose_time_no_row_has_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="t9"):
            window_rows(["t0", "t1"], [("t1.000000", "t9.000000")])

    def test_a_detection_at_the_left_edge_of_every_window_and_nothing_else_is_perfect(self) -> None:
        assert [final(40, costs=costs) for costs in PROFILES.values()] == pytest.approx([100.0] * 3)

    def test_never_firing_scores_zero(self) -> None:
        assert [final(costs=costs) for costs in PROFILES.values()] == [0.0] * 3

    def test_firing_in_the_probation_costs_nothing(self) -> None:
        assert final(0, 7, 14) == 0.0
        assert final(15) < 0.0

    def test_a_false_alarm_before_the_first_window_costs_its_full_weight(self) -> None:
        # Raw -1 - 0.11 over null -1, of 2 to perfect; with missed windows twice as dear, of 3.
        assert [final(20, costs=costs) for costs in PROFILES.values()] == pytest.approx([-5.5, -11.0, -11 / 3])

    def test_a_detection_inside_is_worth_the_sigmoid_of_its_place(self) -> None:
        # Row 45: y = -(49 - 45 + 1) / 10 = -0.5, S = 2 / (1 + e^-2.5) - 1 = 0.848284, over S(-1) = 0.986614.
        assert final(45) == pytest.approx(50 * (1 + 0.848284 / 0.986614), abs=1e-4)

    def test_more_detections_in_a_window_neither_add_nor_cost(self) -> None:
        assert final(43, 44, 49) == final(43)

    def test_a_false_alarm_after_a_window_costs_more_the_further_away(self) -> None:
        # Row 52: y = 3 / 9, S = 2 / (1 + e^(5/3)) - 1 = -0.682273; over y = 3, from row 77 on, -1.
        assert final(52) == pytest.approx(50 * 0.11 * -0.682273, abs=1e-4)
        assert final(77) == final(99) == pytest.approx(-5.5)

    def test_false_alarms_add_up(self) -> None:
        assert final(20, 21, 52) == pytest.approx(2 * final(20) + final(52))

    def test_after_a_second_window_the_distance_is_to_that_one(self) -> None:
        worth = judge(ROWS, [WINDOW, (60, 62)]).worth
        assert worth[63] == pytest.approx(2 / (1 + math.exp(5 / 2)) - 1)  # y = 1 / (3 - 1)

    def test_a_score_at_the_threshold_is_a_detection(self) -> None:
        files, scores = [judge(ROWS, [WINDOW])], [np.where(np.arange(ROWS) == 40, 0.5, 0.0)]
        assert nab_score(files, scores, STANDARD, 0.5) == pytest.approx(100.0)
        assert nab_score(files, scores, STANDARD, 0.5000001) == 0.0

    def test_the_best_threshold_gives_up_a_window_that_costs_too_many_false_alarms(self) -> None:
        score = np.zeros(ROWS)
        score[[42, 46, *range(20, 39)]] = [0.9, 0.4, *[0.5] * 19]  # 19 x 0.11 is more than the 2 that a window gives
        files = [judge(ROWS, [(42, 44), (46, 48)])]
        threshold, best = nab_best(files, [score], STANDARD)
        assert threshold == 0.9
        assert best == pytest.approx(50.0)
        assert nab_best(files, [score], Costs(1.0, 0.1, 1.0))[0] == 0.4

    def test_without_windows_there_is_no_score(self) -> None:
        assert math.isnan(nab_score([judge(ROWS, [])], detections(20), STANDARD, 1.0))


@st.composite
def corpora(draw: st.DrawFn) -> tuple[list[int], list[list[tuple[int, int]]], list[Floats]]:
    """Lengths, windows and scores with many ties of one to three files, with at least one window."""
    lengths, windows, scores = [], [], []
    for at in range(draw(st.integers(1, 3))):
        rows = draw(st.integers(20, 60))
        edges = draw(st.lists(st.integers(rows // 6 + 1, rows - 1), min_size=4 * (at == 0), max_size=6, unique=True))
        edges = sorted(edges)[: len(edges) // 2 * 2]
        lengths.append(rows)
        windows.append(list(zip(edges[::2], edges[1::2], strict=True)))
        values = draw(st.lists(st.integers(0, 6), min_size=rows, max_size=rows))
        scores.append(np.array(values) / 6)
    return lengths, windows, scores


def by_the_book(
    lengths: list[int], windows: list[list[tuple[int, int]]], scores: list[Floats], costs: Costs, threshold: float
) -> float:
    """NAB's final score, row by row as its rules are written."""

    def s(y: float) -> float:
        return -1.0 if y > 3 else 2 / (1 + math.exp(5 * y)) - 1

    raw, count = 0.0, sum(map(len, windows))
    for rows, ours, score in zip(lengths, windows, scores, strict=True):
        hits = [i for i in range(min(int(0.15 * rows), 750), rows) if score[i] >= threshold]
        for left, right in ours:
            inside = [costs.hit * s(-(right - i + 1) / (right - left + 1)) / s(-1) for i in hits if left <= i <= right]
            raw += max(inside, default=-costs.missed)
        for i in hits:
            if any(left <= i <= right for left, right in ours):
                continue
            past = [(left, right) for left, right in ours if right < i]
            raw += costs.false * (s((i - past[-1][1]) / (past[-1][1] - past[-1][0])) if past else -1.0)
    null, perfect = -count * costs.missed, count * costs.hit
    return 100 * (raw - null) / (perfect - null)


@given(corpora(), st.sampled_from(list(PROFILES.values())))
def test_the_sweep_gives_at_every_threshold_what_the_rules_give_there(
    corpus: tuple[list[int], list[list[tuple[int, int]]], list[Floats]], costs: Costs
) -> None:
    lengths, windows, scores = corpus
    files = [judge(rows, ours) for rows, ours in zip(lengths, windows, strict=True)]
    thresholds, finals = nab_sweep(files, scores, costs)
    expected = [by_the_book(lengths, windows, scores, costs, threshold) for threshold in thresholds.tolist()]
    assert finals.tolist() == pytest.approx(expected)
    assert [nab_score(files, scores, costs, at) for at in thresholds.tolist()] == pytest.approx(expected)


@given(corpora(), st.floats(-0.1, 1.1))
def test_no_threshold_beats_the_best_of_the_sweep(
    corpus: tuple[list[int], list[list[tuple[int, int]]], list[Floats]], threshold: float
) -> None:
    lengths, windows, scores = corpus
    files: list[Judged] = [judge(rows, ours) for rows, ours in zip(lengths, windows, strict=True)]
    _, best = nab_best(files, scores, STANDARD)
    assert nab_score(files, scores, STANDARD, threshold) <= best + 1e-9


class TestSkab:
    def test_rows_are_counted_over_all_files_before_any_ratio(self) -> None:
        truths = [np.array([0, 0, 1, 1], dtype=bool), np.array([0, 1, 1, 1, 1, 1], dtype=bool)]
        flags = [np.array([1, 0, 1, 1], dtype=bool), np.array([0, 0, 0, 1, 0, 0], dtype=bool)]
        judged = judge_flags(truths, flags)  # TP 3, FP 1, FN 4, TN 2
        assert (judged.f1, judged.far, judged.mar) == pytest.approx((3 / 5.5, 1 / 3, 4 / 7))

    def test_an_event_is_found_by_its_first_flagged_row_and_nothing_is_found_outside(self) -> None:
        truth = np.array([1, 1, 0, 1, 1, 1, 0, 1], dtype=bool)
        flag = np.array([0, 1, 1, 0, 0, 1, 1, 0], dtype=bool)
        judged = judge_flags([truth], [flag])
        assert (judged.events, judged.found, judged.delays) == (3, 2, (1, 2))
        assert judged.delay(0.5) == 1.5
        assert judged.delay(0.9) == pytest.approx(1.9)

    def test_an_event_that_ends_one_file_and_one_that_begins_the_next_are_two(self) -> None:
        truths = [np.array([0, 1], dtype=bool), np.array([1, 0], dtype=bool)]
        assert judge_flags(truths, truths).events == 2

    def test_nothing_found_has_no_delay(self) -> None:
        judged = judge_flags([np.array([1, 0], dtype=bool)], [np.zeros(2, dtype=bool)])
        assert (judged.f1, judged.far, judged.mar, judged.found) == (0.0, 0.0, 1.0, 0)
        assert math.isnan(judged.delay(0.5))
