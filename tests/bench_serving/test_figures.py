import pytest

from tests.bench.serving.figures import DOCUMENT_TOKENS, Cell, Figure, Tally, ratios
from tests.bench.serving.report import markdown, plain, ratio_table, tables
from tests.bench.serving.wrk import Load


def figure(per_second: float, p50_ms: float = 1.0) -> Figure:
    return Figure(per_second, p50_ms, 2 * p50_ms, 0.5, 100.0, 0)


FIGURES = {
    Cell("typing", "ours", 16): figure(4000),
    Cell("typing", "plain", 16): figure(100),
    Cell("typing", "litserve-torch", 16): figure(400),
    Cell("typing", "ray-torch", 16): figure(500),
    Cell("typing", "ray-int8", 16): figure(2500),
    Cell("typing", "echo", 16): figure(8000),
    Cell("typing", "ours", 1): figure(1000, 0.5),
    Cell("typing", "plain", 1): figure(60, 10.0),
    Cell("scoring", "ours", 16): figure(100),
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
    found = {each.what: (each.found, each.met) for each in ratios(FIGURES, LIMITS) if each.found is not None}
    assert found == expected


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    assert all(each.found is None and each.met is None for each in ratios({}, {}))


def test_slices_are_one_figure() -> None:
    tally = Tally()
    tally.add(Load(answered=100, failed=1, seconds=1.0, p50_ms=1, p99_ms=5), cpu_s=0.2, pss_mib=90)
    tally.add(Load(answered=300, failed=0, seconds=1.0, p50_ms=3, p99_ms=9), cpu_s=0.2, pss_mib=80)
    assert tally.figure() == Figure(per_second=200, p50_ms=2, p99_ms=7, cpu_ms=1, pss_mib=90, failed=1)


def test_a_slice_without_an_answer_counts_in_the_rate_alone() -> None:
    tally = Tally()
    tally.add(Load(answered=0, failed=0, seconds=1.0, p50_ms=0, p99_ms=0), cpu_s=0.5, pss_mib=1)
    tally.add(Load(answered=10, failed=0, seconds=1.0, p50_ms=3, p99_ms=9), cpu_s=0.5, pss_mib=1)
    assert tally.figure() == Figure(per_second=5, p50_ms=3, p99_ms=9, cpu_ms=100, pss_mib=1, failed=0)


def test_a_table_has_a_row_for_each_contender_ours_first() -> None:
    rows = tables(dict(reversed(FIGURES.items())))["typing"]
    assert rows[1][0] == "ours"
    assert sorted(row[0] for row in rows[2:]) == ["echo", "litserve-torch", "plain", "ray-int8", "ray-torch"]
    assert all(len(row) == len(rows[0]) for row in rows)


@pytest.mark.parametrize(
    ("what", "told"), [("plain FastAPI", "met"), ("our graph", "not met"), ("digits", "not measured")]
)
def test_the_table_of_ratios_says_what_is_met(what: str, told: str) -> None:
    rows = ratio_table(ratios(FIGURES, LIMITS))
    assert next(row for row in rows if what in row[0])[-1] == told


def test_tables_are_aligned_in_a_terminal_and_ruled_on_a_page() -> None:
    table = [["", "b"], ["longer", "1"]]
    assert plain(table) == "        b\nlonger  1"
    assert markdown(table) == "|  | b |\n| --- | ---: |\n| longer | 1 |"
