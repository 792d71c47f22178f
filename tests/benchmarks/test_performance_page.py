"""The page that ``make bench`` writes: what it says of the core, and the rows that it is given."""

from tests.benchmarks import performance
from tests.benchmarks.core import describe_core

ROW = {"work": "an update", "measured": "7 ms", "ratio": 0.5, "of": "of a step", "goal": "0.4"}


def test_every_table_of_the_page_says_which_core_it_is_of() -> None:
    page = performance.page([{"extra_info": {"rows": [ROW]}}, {"extra_info": {}}])
    assert "| an update | 7 ms | 0.50 | of a step | 0.4 |\n" in page
    tables = page.split("|---|---|---|")[:-1]
    cores = [before.rpartition("One core: ")[2].splitlines()[0] for before in tables]
    assert cores == [describe_core(), "not stated"]


def test_what_others_have_published_stands_apart_from_what_is_measured() -> None:
    measured, published = performance.page([]).split("## What others have published")
    for figure in ("62.8", "28.6", "35.2", "6.3 "):
        assert figure in published
        assert figure not in measured
