"""What the report says first: never more than the tests on pairs bear out."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsm_bench.report.answer import _warnings, sentences
from qsm_bench.report.document import Table
from qsm_bench.report.pairs import settling
from qsm_bench.results import Beside, Results
from qsm_bench.statistics import estimates
from qsm_bench.statistics.analysis import Analysis
from qsm_bench.statistics.significance import holm, names_better, permutation_test
from tests.qsm_bench.synthetic import make_results


@pytest.fixture(scope="module", autouse=True)
def _few_replications() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimates, "REPLICATIONS", 20)
        yield


def results(levels: Mapping[str, float], tasks: str = "abc", seeds: int = 5) -> Results:
    """Make runs around each agent's level, with a deviation of 1."""

    def returns(agent: str, task: str, seed: int, step: int) -> float:
        noise = np.random.default_rng([seed, step, *f"{agent}/{task}".encode()]).normal()
        return 500 + levels[agent] + float(noise)

    return make_results(tuple(levels), tuple(tasks), seeds, 2, 1, returns)


def said(levels: Mapping[str, float], tasks: str = "abc", seeds: int = 5) -> list[str]:
    return sentences(Analysis(results(levels, tasks, seeds)))


def test_agents_with_the_same_verdicts_share_a_clause() -> None:
    assert said({"qsm": 0, "sac": 20, "td3": 10}) == [
        "sac is better than td3 and qsm at 10,000 steps; td3 is better than qsm."
    ]
    better, _ = said({"qsm": 0, "sac": 20, "td3": 20.2, "x": 0.1})
    assert re.fullmatch(
        r"(sac and td3|td3 and sac) are better than (qsm and x|x and qsm) at 10,000 steps\.", better
    )


def test_an_agent_better_than_all_of_many_is_said_in_few_words() -> None:
    levels = {name: 20.0 * i for i, name in enumerate("abcdef")}
    (sentence,) = said(levels)
    assert sentence.startswith("f is better than all others at 10,000 steps; e is better than d, c")
    assert sentence.endswith('for the others see "better than" in the table.')
    assert len(sentence) < 250


def test_one_open_pair_is_told_the_seeds_it_needs() -> None:
    analysis = Analysis(results({"qsm": 0, "sac": 20, "td3": 0.5}))
    better, still_open = sentences(analysis)
    assert re.match(r"sac is better than (td3 and qsm|qsm and td3) at 10,000 steps\.", better)
    (needed,) = analysis.settling["needed"]
    assert re.fullmatch(
        rf"(td3 and qsm|qsm and td3) cannot be told apart: with {needed:.0f} seeds instead of 5 a "
        r"difference like the one seen would be seen 4 times in 5\.",
        still_open,
    )


def test_one_open_pair_beyond_the_most_seeds_is_not_promised_any() -> None:
    nearly = results({"qsm": 0.0, "td3": 0.0})
    rows = nearly.evaluations
    rows["return"] = 5.0
    rows.loc[(rows["agent"] == "qsm") & (rows["task"] == "a") & (rows["seed"] == 0), "return"] = 6.0
    (sentence,) = sentences(Analysis(nearly))
    assert sentence == (
        "qsm and td3 cannot be told apart at 10,000 steps: even with 50 seeds instead of 5 a "
        "difference like the one seen would be seen less than 4 times in 5."
    )


def test_several_open_pairs_share_a_sentence() -> None:
    (sentence,) = said({"qsm": 0, "sac": 0.4, "td3": 0.2})
    names = "|".join(f"{a}, {b} and {c}" for a, b, c in permutations(("qsm", "sac", "td3")))
    assert re.fullmatch(
        rf"({names}) cannot be told apart at 10,000 steps: (\d+ to )?(more than )?\d+ seeds "
        r"instead of 5 would be needed to see differences like these 4 times in 5, see "
        r'"What would settle it"\.',
        sentence,
    )
    (sentence,) = said(dict.fromkeys("abcdefg", 0.0))
    assert sentence.startswith("No two of the 7 agents can be told apart at 10,000 steps: ")


def test_groups_that_overlap_are_both_named() -> None:
    better, still_open = said({"low": 0, "mid": 0.7, "top": 1.4}, "ab")
    assert better == "top is better than low at 10,000 steps."
    assert still_open.startswith("top and mid cannot be told apart; nor can low and mid: ")


def test_so_few_runs_are_said_once_and_no_pair_is_named() -> None:
    (sentence,) = said({"qsm": 0, "sac": 90, "td3": 10}, "a", 3)
    assert sentence == (
        "So few runs (3 seeds on 1 task) could not have told any two agents apart, whatever their "
        'returns. What would: see "What would settle it".'
    )
    assert said({"qsm": 0, "td3": 90}, "ab", 1)[0].startswith(
        "So few runs (1 seed on 2 tasks) could not have told the two agents apart"
    )


def test_who_wins_more_runs_with_the_lower_means_is_not_said_to_be_better() -> None:
    def returns(agent: str, task: str, seed: int, step: int) -> float:
        return 5.0 + seed / 100 if agent == "sure" else (-1000.0 if seed == 0 else 10.0 + seed)

    analysis = Analysis(make_results(("sure", "risky"), tuple("abcdef"), 5, 1, 1, returns))
    assert sentences(analysis) == [
        "risky and sure differ, but neither is better: a run of risky beats one of sure with "
        "probability 0.800, and sure has the higher mean return on 6 of 6 tasks."
    ]


def test_equal_means_are_no_lead() -> None:
    """One agent wins more runs by a little, the other fewer by a lot: both have a mean of 9."""

    def returns(agent: str, task: str, seed: int, step: int) -> float:
        return 9.0 if agent == "sure" else (0.0 if seed == 0 else 10.0)

    analysis = Analysis(make_results(("sure", "risky"), "a", 10, 1, 1, returns))
    assert sentences(analysis) == [
        "risky and sure differ, but neither is better: a run of risky beats one of sure with "
        "probability 0.900, and their mean returns are equal."
    ]


def test_where_there_is_no_difference_no_number_of_seeds_would_show_it() -> None:
    analysis = Analysis(make_results(("one", "other"), "ab", 5, 1, 1, lambda *_: 7.0))
    assert sentences(analysis)[-1].endswith(
        "cannot be told apart at 5,000 steps: their runs show no difference."
    )


def test_of_several_pairs_without_a_difference_none_is_promised_any_seeds() -> None:
    alike = Analysis(make_results(("one", "two", "three"), "ab", 5, 1, 1, lambda *_: 7.0))
    assert sentences(alike)[-1].endswith("their runs show no difference.")

    def returns(agent: str, _: str, seed: int, __: int) -> float:
        return float(seed) + (agent == "three") * 1.5

    some = Analysis(make_results(("one", "two", "three"), "ab", 5, 1, 1, returns))
    assert "seeds instead of 5 would be needed where it can be told" in sentences(some)[-1]


def test_one_seed_is_no_estimate_of_the_seeds_needed() -> None:
    analysis = Analysis(results({"qsm": 0, "sac": 9}, "a", 1))
    assert analysis.settling["needed"].isna().all()
    shown = settling(analysis).blocks[0]
    assert isinstance(shown, Table)
    (cell,) = shown.cells["seeds needed"]
    assert cell == "one seed shows no spread, so how many would do is not known"


def test_few_seeds_are_those_of_the_agents_that_have_them() -> None:
    made = results({"qsm": 0, "sac": 9}, "a", 6)
    (qsm, _) = made.cells
    made.cells[0] = {**qsm, "seeds": qsm["seeds"][:1]}
    rows = made.evaluations
    keep = (rows["agent"] != qsm["agent"]) | (rows["seed"] == qsm["seeds"][0])
    (line,) = [w for w in _warnings(Analysis(replace(made, evaluations=rows[keep]))) if "seed" in w]
    assert line == "Only 1 seed of qsm: nothing shows how much results depend on the seed."


def test_with_many_seeds_more_are_tried() -> None:
    analysis = Analysis(results({"qsm": 0, "sac": 0.3}, "a", 60))
    assert analysis.most_seeds == 120
    (sentence,) = sentences(analysis)
    found = re.search(r"(\d+) seeds instead of 60", sentence)
    assert found
    assert 60 < int(found[1]) <= 120


def without(found: Results, cells: Sequence[tuple[str, str]]) -> Results:
    """Return the same results without these cells' evaluations."""
    rows = found.evaluations
    keep = [cell not in cells for cell in zip(rows["agent"], rows["task"], strict=True)]
    found.evaluations.drop(rows.index[~np.array(keep)], inplace=True)
    return found


def beside(found: Results, *recorded: str) -> Analysis:
    """Take these agents as those of a record."""
    return Analysis(replace(found, beside=Beside("a record", recorded)))


def test_beside_a_record_the_answer_is_about_the_others() -> None:
    found = results({"mine": 10, "r1": 0, "r2": 20, "r3": 20.1})
    analysis = beside(found, "r1", "r2", "r3")
    assert {frozenset(pair) for pair in analysis.comparison.pairs} == {
        frozenset({"mine", rival}) for rival in ("r1", "r2", "r3")
    }
    text = sentences(analysis)
    assert len(text) == 1
    assert re.fullmatch(
        r"(r2 and r3|r3 and r2) are better than mine at 10,000 steps; mine is better than r1\.",
        text[0],
    )
    (sentence,) = sentences(beside(results({"mine": 0.1, "r1": 0, "r2": 0.2}), "r1", "r2"))
    assert re.match(
        r"mine cannot be told apart from (r1 and r2|r2 and r1) at 10,000 steps: .* seeds of mine ",
        sentence,
    )
    (sentence,) = sentences(beside(results({"r1": 0, "x": 0.1, "y": 0.2}), "r1"))
    assert re.match(
        r"(x and y|y and x) cannot be told apart from each other, nor from r1 at 10,000 ", sentence
    )
    (sentence,) = sentences(beside(results({"mine": 0, "r1": 0.1}), "r1"))
    assert re.match(r"mine cannot be told apart from r1 at 10,000 steps: .* of mine ", sentence)
    others = [f"r{i}" for i in range(7)]
    (sentence,) = sentences(beside(results(dict.fromkeys(["mine", *others], 0.0)), *others))
    assert sentence.startswith("mine cannot be told apart from 7 agents of the record at 10,000")


def test_pairs_of_a_record_take_no_part_in_holms_procedure() -> None:
    found = results({"mine": 0.8, "r1": 0, "r2": 0.1, "r3": 0.2})
    everyone, own = Analysis(found).pairs, beside(found, "r1", "r2", "r3").pairs
    assert (len(everyone), len(own)) == (6, 3)
    comparison = Analysis(found).comparison
    raw = [
        permutation_test(*(comparison.final_returns(a, ("a", "b", "c")) for a in pair))[0]
        for pair in own[["better", "worse"]].to_numpy().tolist()
    ]
    assert list(own["p"]) == list(holm(np.array(raw)))


def test_a_record_alone_has_no_pair() -> None:
    gone = without(results({"mine": 0, "r1": 1, "r2": 9}, "a"), [("mine", "a")])
    assert sentences(beside(gone, "r1", "r2")) == [
        'mine has no run to compare: see "What failed, diverged or is missing".',
        "The agents of a record are not compared with each other.",
    ]


def test_agents_without_a_common_task_are_not_said_to_be_compared() -> None:
    levels = {"qsm": 0, "sac": 20, "alone": 5}
    cells = [("alone", "a"), ("alone", "b"), ("alone", "c"), ("qsm", "d"), ("sac", "d")]
    assert sentences(Analysis(without(results(levels, "abcd"), cells))) == [
        "sac is better than qsm at 10,000 steps.",
        "2 pairs of agents have no task in common, and cannot be compared.",
    ]
    gone = without(results({"qsm": 0, "sac": 20, "late": 0}, "a"), [("late", "a")])
    assert sentences(Analysis(gone)) == [
        'late has no run to compare: see "What failed, diverged or is missing".',
        "sac is better than qsm at 10,000 steps.",
    ]
    apart = without(results({"qsm": 0, "sac": 20}, "ab"), [("qsm", "a"), ("sac", "b")])
    assert sentences(Analysis(apart)) == [
        "No two agents have runs on the same task: there are no pairs to compare."
    ]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0]), min_size=2, max_size=5),
    st.integers(1, 3),
    st.integers(2, 5),
)
def test_better_is_said_of_verdicts_only_and_of_every_one(
    levels: list[float], tasks: int, seeds: int
) -> None:
    named = {f"agent{i}": level for i, level in enumerate(levels)}
    analysis = Analysis(results(named, "abc"[:tasks], seeds))
    text = sentences(analysis)
    assert 1 <= len(text) <= 2
    told = {
        (better, worse)
        for clause in re.findall(r"([^;.]*) (?:is|are) better than ([^;.]*)", " ".join(text))
        for better in re.findall(r"agent\d", clause[0])
        for worse in (
            [a for a in named if a != better]
            if "all others" in clause[1]
            else re.findall(r"agent\d", clause[1])
        )
    }
    better = analysis.pairs[names_better(analysis.pairs)]
    assert told == set(zip(better["better"], better["worse"], strict=True))
    assert not re.search(r"ahead|leads", " ".join(text))
