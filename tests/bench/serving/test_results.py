import pytest

from tests.bench.serving.report import markdown, plain, ratio_table, tables
from tests.bench.serving.results import DOCUMENT_TOKENS, Cell, Result, Tally, ratios
from tests.bench.serving.wrk import Load


def result(per_second: float, p50_ms: float = 1.0) -> Result:
    return Result(per_second, p50_ms, 2 * p50_ms, 0.5, 100.0, 0)


RESULTS = {
    Cell("typing", "ours", 16): result(4000),
    Cell("typing", "plain", 16): result(100),
    Cell("typing", "litserve-torch", 16): result(400),
    Cell("typing", "ray-torch", 16): result(500),
    Cell("typing", "ray-int8", 16): result(2500),
    Cell("typing", "echo", 16): result(8000),
    Cell("typing", "ours", 1): result(1000, 0.5),
    Cell("typing", "plain", 1): result(60, 10.0),
    Cell("scoring", "ours", 16): result(100),
}
LIMITS = {"int8": {"scoring": 40 * DOCUMENT_TOKENS}, "torch": {"scoring": 10 * DOCUMENT_TOKENS}}


def test_ratios_are_against_the_best_of_each_kind() -> None:
    expected = {
        "typing, 16 connections: plain FastAPI with torch": (40, True),
        "typing, 16 connections: the best peer with torch": (8, True),
        "typing, 16 connections: the best peer with our graph": (1.6, False),
        "typing, 16 connections: the echo limit": (0.5, True),
        "typing, 1 connection, p50: plain FastAPI with torch": (0.05, True),
        "scoring, tokens: eager torch in a loop": (10, True),
        "scoring, tokens: the bare engine": (2.5, True),
    }
    found = {each.what: (each.found, each.met) for each in ratios(RESULTS, LIMITS) if each.found is not None}
    assert found == expected


def test_an_unmeasured_ratio_is_neither_met_nor_missed() -> None:
    assert all(each.found is None and each.met is None for each in ratios({}, {}))


def test_slices_are_combined_into_one_result() -> None:
    tally = Tally()
    tally.add(Load(answered=100, failed=1, seconds=1.0, p50_ms=1, p99_ms=5), cpu_s=0.2, pss_mib=90)
    tally.add(Load(answered=300, failed=0, seconds=1.0, p50_ms=3, p99_ms=9), cpu_s=0.2, pss_mib=80)
    assert tally.result() == Result(per_second=200, p50_ms=2, p99_ms=7, cpu_ms=1, pss_mib=90, failed=1)


def test_a_slice_without_answers_counts_in_the_rate_only() -> None:
    tally = Tally()
    tally.add(Load(answered=0, failed=0, seconds=1.0, p50_ms=0, p99_ms=0), cpu_s=0.5, pss_mib=1)
    tally.add(Load(answered=10, failed=0, seconds=1.0, p50_ms=3, p99_ms=9), cpu_s=0.5, pss_mib=1)
    assert tally.result() == Result(per_second=5, p50_ms=3, p99_ms=9, cpu_ms=100, pss_mib=1, failed=0)


def test_a_table_has_a_row_per_contender_ours_first() -> None:
    rows = tables(dict(reversed(RESULTS.items())))["typing"]
    assert rows[1][0] == "ours"
    assert sorted(row[0] for row in rows[2:]) == ["echo", "litserve-torch", "plain", "ray-int8", "ray-torch"]
    assert all(len(row) == len(rows[0]) for row in rows)


@pytest.mark.parametrize(
    ("what", "expected"), [("plain FastAPI", "met"), ("our graph", "not met"), ("digits", "not measured")]
)
def test_the_ratio_table_marks_met_ratios(what: str, expected: str) -> None:
    rows = ratio_table(ratios(RESULTS, LIMITS))
    assert next(row for row in rows if what in row[0])[-1] == expected


def test_tables_are_formatted_for_terminals_and_markdown() -> None:
    table = [["", "b"], ["longer", "1"]]
    assert plain(table) == "        b\nlonger  1"
    assert markdown(table) == "|  | b |\n| --- | ---: |\n| longer | 1 |"
