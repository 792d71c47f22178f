"""Experiments in stages: the plan, the tests, the runs, and what the report says of them."""

import json
import re
import signal
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from math import comb
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pandas.testing import assert_frame_equal

from qsm_bench import Executor, Local, Protocol, UserError, load_results, run_experiment
from qsm_bench import run as run_module
from qsm_bench.executors import Outcome, Work, processes
from qsm_bench.job_folder import JobFolder
from qsm_bench.progress import read_states, summary
from qsm_bench.provenance import begin_stretch
from qsm_bench.report import staging, write_report
from qsm_bench.results import Results
from qsm_bench.stages import FALSE_ALARMS, Stages, parse_counts, refuse_counts, text_of
from qsm_bench.statistics import estimates
from qsm_bench.statistics.analysis import Analysis
from qsm_bench.statistics.selection import Comparison, Curves, FloatArray
from qsm_bench.statistics.settling import is_enough
from qsm_bench.statistics.significance import (
    check_pairs,
    compare_all_pairs,
    permutation_test,
    with_tasks,
)
from qsm_bench.statistics.stages import Look, looks, sentence, staged_pairs, verdict_texts
from qsm_bench.store import ExperimentStore
from qsm_bench.tables import CsvLog
from tests.qsm_bench.jobs import make_experiment, written
from tests.qsm_bench.processes import ForkedJob
from tests.qsm_bench.synthetic import make_results
from tests.qsm_bench.test_cli import assert_refused, call
from tests.qsm_bench.test_cli import run as cli_run

PROTOCOL = Protocol(
    steps=40,
    warmup_steps=10,
    batch_size=8,
    eval_every=20,
    eval_episodes=2,
    settings={"hidden_sizes": [8]},
)
TASK = "four-goals"


@pytest.fixture(scope="module", autouse=True)
def _few_replications() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(estimates, "REPLICATIONS", 40)
        yield


# The plan.

RISING = st.sets(st.integers(1, 40), min_size=1, max_size=5).map(sorted)


@given(RISING, st.integers(0, 50))
def test_a_plan_has_every_seed_once_and_its_shares_add_up(counts: list[int], first: int) -> None:
    seeds = range(first, first + counts[-1])
    plan = Stages.declare(seeds, counts, ["a", "b"], [TASK], 10)
    assert plan.all_seeds == tuple(seeds)
    assert plan.counts == tuple(counts)
    assert sum(plan.shares) == pytest.approx(FALSE_ALARMS)
    per_seed = [share / len(added) for share, added in zip(plan.shares, plan.seeds, strict=True)]
    assert per_seed == pytest.approx([FALSE_ALARMS / counts[-1]] * len(counts))
    assert Stages.model_validate_json(plan.model_dump_json()) == plan


@given(RISING)
def test_numbers_of_seeds_are_read_as_they_are_written(counts: list[int]) -> None:
    assert parse_counts(text_of(counts)) == tuple(counts)
    assert parse_counts(", ".join(map(str, counts))) == tuple(counts)


NO_COUNTS = (
    *("", ",", "5,", ",5", "5,,10", "0", "0,5", "-1", "5,5", "10,5", "5,10,10", "two", "5,ten"),
    *(
        "1.5",
        "1e1",
        "5;10",
        "5 10",
        "10001",
        "5,10001",
        "9" * 5000,
        "\N{SUPERSCRIPT TWO}",
        "[5,10]",
    ),
)


@pytest.mark.parametrize("text", NO_COUNTS, ids=lambda text: text[:20])
def test_what_are_no_stages_is_one_line_and_leaves_nothing(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = call(*cli_run(f"--seeds={text}"))
    assert_refused(outcome, "--seeds")
    assert len(outcome.err) < 200
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "counts",
    [[], [5, 5], [0, 5], ["5", "10"], 5, "5,10", [True, 2], [1.0, 2.0], [1, 10_001], {1: 2}],
)
def test_stages_of_a_program_are_refused_in_one_line(tmp_path: Path, counts: Any) -> None:
    with pytest.raises(UserError, match="stages") as refused:
        run_experiment("td3,sac", tasks=TASK, stages=counts, results=tmp_path)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_the_last_stage_has_all_seeds(tmp_path: Path) -> None:
    refuse_counts([1, 3], 3)
    with pytest.raises(UserError, match="the last must be the number of seeds, 3"):
        run_experiment("td3", tasks=TASK, seeds=range(3), stages=[1, 2], results=tmp_path)


# The tests.


def runs_of(scores: FloatArray, plan: Stages, asked: list[Collection[str]] | None = None) -> Any:
    """The runs of scores [agents, seeds, tasks]; notes in ``asked`` who had to be trained."""

    def runs(number: int, agents: Collection[str]) -> Comparison:
        if asked is not None:
            asked.append(agents)
        count = plan.counts[number]
        curves = {
            (agent, task): Curves(
                tuple(range(count)), np.array([1]), scores[row, :count, column, np.newaxis]
            )
            for row, agent in enumerate(plan.agents)
            for column, task in enumerate(plan.tasks)
        }
        return Comparison(plan.agents, plan.tasks, curves, dict.fromkeys(plan.tasks), ())

    return runs


def plan_of(scores: FloatArray, counts: Sequence[int]) -> Stages:
    agents, seeds, tasks = scores.shape
    names = [f"agent-{number}" for number in range(agents)]
    return Stages.declare(range(seeds), counts, names, [f"task-{n}" for n in range(tasks)], 1)


def taken_of(scores: FloatArray, counts: Sequence[int]) -> tuple[Stages, list[Look]]:
    plan = plan_of(scores, counts)
    return plan, list(looks(plan, runs_of(scores, plan)))


SCORES = arrays(
    np.float64,
    st.tuples(st.integers(2, 4), st.just(8), st.integers(1, 2)),
    elements=st.integers(0, 30),
)


@given(SCORES)
def test_one_stage_is_the_usual_test(scores: FloatArray) -> None:
    plan, taken = taken_of(scores, [8])
    (look,) = taken
    usual = compare_all_pairs(look.comparison)
    staged = staged_pairs(look.comparison, plan, taken)
    assert_frame_equal(staged.drop(columns="stage"), usual)
    assert (staged["stage"].notna() == usual["verdict"]).all()


@given(SCORES)
def test_a_verdict_stays_and_open_pairs_are_those_without(scores: FloatArray) -> None:
    plan, taken = taken_of(scores, [4, 6, 8])
    tables = [
        staged_pairs(look.comparison, plan, taken[: number + 1])
        for number, look in enumerate(taken)
    ]
    before = {*combinations(plan.agents, 2)}
    for look, table in zip(taken, tables, strict=True):
        assert {pair[:2] for pair in look.pairs} == before
        assert set(look.open) <= before
        before = set(look.open)
        without = {frozenset(pair) for pair in look.open}
        for _, row in table.iterrows():
            is_open = frozenset((row["better"], row["worse"])) in without
            assert row["verdict"] == (not is_open) == (row["p"] <= FALSE_ALARMS)
            assert np.isnan(row["stage"]) == is_open
            seeds = plan.counts[look.number] if is_open else row["stage"]
            assert row["seeds_better"] == row["seeds_worse"] == seeds
    for earlier, later in pairwise(tables):
        kept = earlier[earlier["verdict"]]
        assert_frame_equal(later.loc[kept.index], kept)
    assert len(taken) == 3 or not taken[-1].open


@given(SCORES, st.randoms())
def test_only_the_order_of_returns_within_a_task_matters(scores: FloatArray, random: Any) -> None:
    changed = np.stack(
        [
            np.exp(column / 10 * random.uniform(0.5, 2)) - random.uniform(0, 9)
            for column in np.moveaxis(scores, 2, 0)
        ],
        axis=2,
    )
    columns = ["better", "worse", "probability", "p", "verdict", "stage"]
    tables = []
    for each in (scores, changed):
        plan, taken = taken_of(each, [4, 8])
        tables.append(staged_pairs(taken[-1].comparison, plan, taken)[columns])
    assert_frame_equal(tables[0], tables[1])


def test_two_agents_that_never_overlap_have_the_p_of_a_closed_form() -> None:
    scores = np.array([np.arange(20.0) + 100, np.arange(20.0)])[:, :, np.newaxis]
    plan, taken = taken_of(scores, [5, 10, 20])
    (look,) = taken
    (row,) = staged_pairs(look.comparison, plan, taken).to_dict("records")
    assert row["stage"] == 5
    assert row["p"] == pytest.approx(2 / comb(10, 5) * 4)  # 5 % / 1.25 %
    assert row["verdict"]
    # With four seeds each the smallest p is 2/70, and no share of 1 % is met.
    plan, taken = taken_of(scores, [4, 20])
    assert [len(look.open) for look in taken] == [1, 0]
    assert not taken[0].tests["attainable"].any()


@pytest.mark.parametrize("tests", [1, 3, 6])
def test_a_pair_that_cannot_be_tested_counts_as_a_test(tests: int) -> None:
    scores = np.array([np.arange(5.0) + 100, np.arange(5.0)])[:, :, np.newaxis]
    plan = plan_of(scores, [5])
    comparison = runs_of(scores, plan)(0, plan.agents)
    pairs = with_tasks(comparison, [("agent-0", "agent-1")])
    (row,) = check_pairs(comparison, pairs, tests=tests).to_dict("records")
    assert row["p"] == pytest.approx(tests * 2 / comb(10, 5))
    one = check_pairs(comparison, pairs, level=FALSE_ALARMS / tests)["p"][0]
    assert row["p"] == pytest.approx(one)


def test_agents_whose_pairs_are_decided_are_not_trained_on() -> None:
    noise = np.random.default_rng(0).normal(size=(3, 20, 6))
    scores = noise + np.array([50.0, 0.0, 0.0])[:, np.newaxis, np.newaxis]
    plan, asked = plan_of(scores, [5, 10, 20]), list[Collection[str]]()
    taken = list(looks(plan, runs_of(scores, plan, asked)))
    assert [set(agents) for agents in asked] == [
        {"agent-0", "agent-1", "agent-2"},
        *[{"agent-1", "agent-2"}] * 2,
    ]
    assert sentence(taken[0], plan) == (
        "stage 1 of 3, 5 seeds: agent-0 is better than agent-1, agent-0 is better than agent-2; "
        "1 pair is open; agent-1 and agent-2 get 5 more seeds"
    )
    assert sentence(taken[2], plan) == "stage 3 of 3, 20 seeds: no verdict; 1 pair is open"


def test_equal_agents_get_a_verdict_in_no_more_than_the_promised_share() -> None:
    rng, alarms, count = np.random.default_rng(0), 0, 600
    for _ in range(count):
        _, taken = taken_of(rng.normal(size=(3, 8, 2)), [3, 5, 8])
        alarms += len(taken[-1].open) < 3
    # Without shares, with the usual level at each stage, it is above this.
    assert alarms / count < FALSE_ALARMS + 3 * np.sqrt(FALSE_ALARMS * (1 - FALSE_ALARMS) / count)
    naive = 0
    for _ in range(count):
        x, y = rng.normal(size=(2, 8, 2))
        naive += any(permutation_test(x[:n], y[:n])[0] <= FALSE_ALARMS for n in (3, 4, 5, 6, 7, 8))
    assert naive / count > FALSE_ALARMS + 3 * np.sqrt(FALSE_ALARMS * (1 - FALSE_ALARMS) / count)


# Runs, with an executor that makes up what the jobs learn.


class MadeUp(Executor):
    """Finishes every job at once: td3 is far better than the others, which are equal."""

    kind: ClassVar[str] = "made-up"
    trained: ClassVar[list[tuple[str, tuple[int, ...]]]] = []
    calls: ClassVar[list[int]] = []
    """The number of jobs each time that it was called."""
    end_after: int = 1_000
    """After so many jobs it is stopped."""
    fails: str = ""
    """The agent whose jobs fail."""
    queues: bool = False
    is_asked_to_stop: bool = False
    """While it runs, but after its last job."""

    def run(self, jobs: Sequence[JobFolder], work: Work) -> Outcome:
        unfinished = {}
        MadeUp.calls.append(len(jobs))
        for number, folder in enumerate(jobs):
            if self.queues:
                continue
            if number >= self.end_after:
                raise KeyboardInterrupt
            job = folder.read_manifest().job
            if job.agent == self.fails:
                folder.mark(status="failed", reason="made to fail")
                unfinished[folder] = "made to fail"
                continue
            MadeUp.trained.append((job.agent, job.seeds))
            finish(folder)
        if self.is_asked_to_stop:
            signal.raise_signal(signal.SIGTERM)
        return Outcome(unfinished, dict.fromkeys(jobs, "1_0") if self.queues else {})


def finish(folder: JobFolder, steps: Sequence[int] = (20, 40)) -> None:
    """Write what a finished job leaves, as far as statistics read it."""
    job = folder.read_manifest().job
    log = CsvLog(folder.evaluations_file)
    for step in steps:
        for seed in job.seeds:
            noise = np.random.default_rng([seed, *job.agent.encode()]).normal()
            value = (100.0 if job.agent == "td3" else 0.0) + noise
            log.append(
                {"seed": seed, "step": step, "episode": k, "return": value, "length": 30}
                for k in range(2)
            )
    log.close()
    folder.mark(status="finished", step=40, updates=30, train_seconds=1.0)


@pytest.fixture(autouse=True)
def _nothing_trained() -> None:
    MadeUp.trained.clear()
    MadeUp.calls.clear()


def go(
    folder: Path,
    agents: str = "td3,sac,qsm",
    *,
    counts: Sequence[int] | None = (5, 10),
    executor: Executor | None = None,
    **changes: Any,
) -> Results:
    arguments: dict[str, Any] = {
        "tasks": TASK,
        "protocol": PROTOCOL,
        "name": "there",
        "seeds_per_job": 3,
        "results": folder,
        "executor": executor or MadeUp(),
    }
    return run_experiment(agents, stages=counts, **(arguments | changes))


def test_the_next_stage_trains_only_agents_in_an_open_pair(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = go(tmp_path)
    firsts = [(agent, seeds) for agent in ("td3", "sac", "qsm") for seeds in ((0, 1, 2), (3, 4))]
    seconds = [(agent, seeds) for agent in ("sac", "qsm") for seeds in ((5, 6, 7), (8, 9))]
    assert MadeUp.trained == firsts + seconds
    out = capsys.readouterr().out
    assert (
        "stage 1 of 2, 5 seeds: td3 is better than sac, td3 is better than qsm; 1 pair is open; "
        "sac and qsm get 5 more seeds" in out
    )
    assert "stage 2 of 2, 10 seeds: no verdict; 1 pair is open" in out
    pairs = Analysis(results).pairs
    assert list(pairs["stage"][:2]) == [5, 5]
    assert np.isnan(pairs["stage"][2])
    assert list(pairs["seeds_better"]) == [5, 5, 10]


def test_it_ends_when_no_pair_is_open(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        results = go(tmp_path, "td3,sac")
        assert {seed for _, seeds in MadeUp.trained for seed in seeds} == {0, 1, 2, 3, 4}
        assert len(MadeUp.trained) == 4
        said = capsys.readouterr().out
        assert "stage 1 of 2, 5 seeds: td3 is better than sac; no pair is open" in said
    assert "stage 2" not in said
    assert "has not ended" not in text_of_report(results, tmp_path)


def test_the_plan_is_written_before_the_first_job(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, executor=MadeUp(end_after=0))
    plan = json.loads((tmp_path / "there" / "experiment.json").read_text())["stages"]
    assert plan == {
        "seeds": [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]],
        "shares": [0.025, 0.025],
        "agents": ["td3", "sac", "qsm"],
        "tasks": [TASK],
        "steps": 40,
    }


def test_it_goes_on_where_it_was_stopped_and_declares_nothing_anew(tmp_path: Path) -> None:
    whole = go(tmp_path / "whole")
    trained = list(MadeUp.trained)
    MadeUp.trained.clear()
    stages: tuple[int, ...] | None = (5, 10)
    while len(MadeUp.trained) + 1 < len(trained):  # stopped after each job
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path / "cut", counts=stages, executor=MadeUp(end_after=1))
        stages = None
    cut = go(tmp_path / "cut", counts=None)
    assert MadeUp.trained == trained
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    assert_frame_equal(Analysis(cut).pairs, Analysis(whole).pairs)
    go(tmp_path / "cut")
    assert MadeUp.trained == trained


def files(folder: Path) -> dict[str, bytes]:
    found = [f for f in folder.rglob("*") if f.suffix in (".json", ".csv")]
    return {str(file.relative_to(folder)): file.read_bytes() for file in found}


def test_real_jobs_stopped_between_stages_leave_the_bytes_of_one_run(tmp_path: Path) -> None:
    def train(folder: Path, *, stop_at: int | None = None) -> None:
        calls, run = [], Local.run

        def stopping(self: Local, jobs: Sequence[JobFolder], work: Work) -> Outcome:
            calls.append(jobs)
            if len(calls) == stop_at:
                raise KeyboardInterrupt
            return run(self, jobs, work)

        with patch.object(processes, "_start", ForkedJob), patch.object(Local, "run", stopping):
            go(folder, "td3,sac", counts=[1, 2], executor=Local())

    train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", stop_at=2)
    train(tmp_path / "cut")
    for name in ("whole", "cut"):
        assert len(list((tmp_path / name).rglob("manifest.json"))) == 4
    for file in (tmp_path / "whole").rglob("manifest.json"):
        job = file.parent.relative_to(tmp_path / "whole")
        assert written(tmp_path / "whole" / job) == written(tmp_path / "cut" / job)
    texts = {(tmp_path / n / "there" / "experiment.json").read_text() for n in ("whole", "cut")}
    assert len(texts) == 1


def test_a_failed_job_ends_the_stage_and_nothing_is_tested(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.warns(UserWarning, match="made to fail"):
        results = go(tmp_path, executor=MadeUp(fails="qsm"))
    assert "stage 1" not in capsys.readouterr().out
    assert MadeUp.calls == [6]
    assert all(max(seeds) < 5 for _, seeds in MadeUp.trained)
    pairs = Analysis(results).pairs
    assert not pairs["verdict"].any()
    assert pairs["p"].isna().all()
    text = text_of_report(results, tmp_path)
    assert "Stage 1, 5 seeds, has not ended" in text


def test_no_stage_begins_after_it_was_asked_to_stop(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, executor=MadeUp(is_asked_to_stop=True))
    assert MadeUp.calls == [6]
    go(tmp_path)
    assert MadeUp.calls == [6, 4]


def test_a_seed_that_diverged_has_finished_and_is_left_out(tmp_path: Path) -> None:
    results = go(tmp_path)
    evaluations = results.evaluations.copy()
    rows = (evaluations["agent"] == "td3") & (evaluations["seed"] == 0)
    evaluations.loc[rows, "return"] = np.nan
    analysis = Analysis(replace(results, evaluations=evaluations))
    assert list(analysis.looks[0].tests["verdict"]) == [False] * 3
    first, *_ = analysis.looks[0].pairs
    assert analysis.looks[0].comparison.final_returns("td3", first[2]).shape == (4, 1)


def test_slurm_gets_one_stage_and_the_next_by_the_same_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    go(tmp_path, executor=MadeUp(queues=True))
    assert MadeUp.calls == [6]
    out = capsys.readouterr().out
    assert "stage 1 of 2 is in SLURM's queue: run this command again when its jobs have" in out
    store = ExperimentStore(tmp_path, "there")
    assert {seed for folder in store.job_folders() for seed in folder.seeds or ()} == {
        0,
        1,
        2,
        3,
        4,
    }
    for folder in store.job_folders():
        finish(folder)
    go(tmp_path, executor=MadeUp(queues=True))
    out = capsys.readouterr().out
    assert "stage 1 of 2, 5 seeds: td3 is better than sac" in out
    assert "stage 2 of 2 is in SLURM's queue" in out
    stopped = [f.seeds for f in store.job_folders() if f.agent == "td3"]
    assert stopped == [(0, 1, 2), (3, 4)]


def test_an_agent_that_stopped_early_is_complete_everywhere(tmp_path: Path) -> None:
    results = go(tmp_path)
    store = ExperimentStore(tmp_path, "there")
    assert [f.seeds for f in store.job_folders_of("td3", TASK)] == [(0, 1, 2), (3, 4)]
    assert len(store.job_folders_of("sac", TASK)) == 4
    assert {state.status for state in read_states(list(store.job_folders()))} == {"finished"}
    assert summary(store).endswith("stages of 5,10 seeds; jobs: 10 finished")
    text = text_of_report(results, tmp_path)
    assert "Nothing: the statistics use all 25 runs" in text
    assert "This report is partial" not in text
    store.remove(agent="td3")
    left = load_results(tmp_path, "there")
    assert Analysis(left).pairs.shape[0] == 1
    go(tmp_path)
    assert files(tmp_path) == files(results.root)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"counts": [5, 20]}, "stages of seeds 5,10, and now has 5,20"),
        ({"counts": [5]}, "stages of seeds 5,10, and now has 5"),
        ({"seeds": range(1, 11)}, "seeds 0-9, and now has 1-10"),
        ({"agents": "td3,sac"}, "agents qsm, sac, td3, and now has sac, td3"),
        ({"agents": "td3,sac,qsm,diffusion_ql"}, "and now has diffusion_ql, qsm, sac, td3"),
        ({"tasks": "four-goals,bimodal-bandit"}, "tasks four-goals, and now has bimodal-bandit, f"),
        ({"protocol": PROTOCOL.but(steps=60)}, "steps 40, and now has 60"),
        ({"counts": None, "seeds": range(10)}, "give --seeds 5,10, or neither"),
        ({"counts": None, "seeds": range(30)}, "give --seeds 5,10, or neither"),
        ({"protocol": PROTOCOL.but(batch_size=9)}, "batch_size was 8 and is 9"),
    ],
)
def test_another_plan_than_the_declared_one_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    go(tmp_path)
    before = files(tmp_path)
    with pytest.raises(UserError) as refused:
        go(tmp_path, **changes)
    assert message in str(refused.value)
    assert "choose another --name" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert files(tmp_path) == before


def test_one_agent_of_a_plan_of_more_is_another_plan(tmp_path: Path) -> None:
    go(tmp_path)
    with pytest.raises(UserError, match="agents qsm, sac, td3, and now has td3"):
        go(tmp_path, "td3", counts=None)


def test_stages_of_one_agent_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--seeds 5,10: stages .* give --seeds 10, or a second"):
        go(tmp_path, "td3")
    assert not (tmp_path / "there").exists()


def test_an_agent_that_was_removed_is_trained_again(tmp_path: Path) -> None:
    go(tmp_path)
    ExperimentStore(tmp_path, "there").remove("sac")
    MadeUp.trained.clear()
    results = go(tmp_path)
    assert {agent for agent, _ in MadeUp.trained} == {"sac"}
    assert {cell["agent"]: len(cell["seeds"]) for cell in results.cells} == {
        "td3": 5,
        "sac": 10,
        "qsm": 10,
    }


def test_an_agent_that_was_removed_is_named_in_the_report(tmp_path: Path) -> None:
    whole = text_of_report(go(tmp_path), tmp_path)
    ExperimentStore(tmp_path, "there").remove("sac")
    text = text_of_report(load_results(tmp_path, "there"), tmp_path)
    said = "Planned and removed since: sac. Pairs with them are open and not tested."
    assert said in text
    assert "removed since" not in whole


def test_a_verdict_for_lower_means_is_not_called_better() -> None:
    pairs = pd.DataFrame(
        {"better": ["a", "c"], "worse": ["b", "d"], "verdict": True}
        | {"wins": [0, 1], "ties": 0, "tasks": 1}
    )
    assert verdict_texts(pairs) == ["a and b differ, but neither is better", "c is better than d"]


def test_stages_are_refused_once_it_has_begun_without(tmp_path: Path) -> None:
    go(tmp_path, counts=None, seeds=range(5))
    with pytest.raises(UserError, match="has begun without stages, and --seeds 5,10"):
        go(tmp_path)


DAMAGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no object": lambda _: [5, 10],
    "nothing": lambda _: None,
    "a field less": lambda plan: {k: v for k, v in plan.items() if k != "shares"},
    "a field more": lambda plan: plan | {"more": 1},
    "shares of text": lambda plan: plan | {"shares": ["0.025", "0.025"]},
    "larger shares": lambda plan: plan | {"shares": [0.05, 0.05]},
    "a negative share": lambda plan: plan | {"shares": [-0.05, 0.1]},
    "no number as a share": lambda plan: plan | {"shares": [float("nan"), 0.05]},
    "shares that are not those of the seeds": lambda plan: plan | {"shares": [0.04, 0.01]},
    "one share": lambda plan: plan | {"shares": [0.05]},
    "other seeds": lambda plan: plan | {"seeds": [[0, 1, 2, 3, 4], [5, 6, 7, 8, 10]]},
    "an empty stage": lambda plan: plan | {"seeds": [*plan["seeds"], []], "shares": [0.02] * 3},
    "a group in two stages": lambda plan: plan | {"seeds": [[0, 1], [2, 3, 4, 5, 6, 7, 8, 9]]},
    "no agents": lambda plan: plan | {"agents": []},
    "an agent twice": lambda plan: plan | {"agents": ["td3", "sac", "qsm", "qsm"]},
    "other tasks": lambda plan: plan | {"tasks": ["bimodal-bandit"]},
    "no steps": lambda plan: plan | {"steps": 0},
    "steps of text": lambda plan: plan | {"steps": "40"},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_plan_is_one_clear_line(tmp_path: Path, damage: str) -> None:
    go(tmp_path)
    store = ExperimentStore(tmp_path, "there")
    content = json.loads(store.file.read_text())
    store.file.write_text(json.dumps(content | {"stages": DAMAGES[damage](content["stages"])}))
    for read in (store.read, lambda: load_results(tmp_path, "there"), lambda: go(tmp_path)):
        with pytest.raises(UserError, match=r"experiment\.json is damaged: stages") as damaged:
            read()
        assert "\n" not in str(damaged.value)


def test_a_plan_written_anew_after_runs_says_so(tmp_path: Path) -> None:
    """The file of a plan may have been deleted, since it was damaged, or to declare another."""
    text = text_of_report(go(tmp_path), tmp_path)
    assert "Stages were declared before the first run: 5 and 10 seeds" in text
    store = ExperimentStore(tmp_path, "there")
    for file in tmp_path.rglob("manifest.json"):
        folder = JobFolder(file.parent)
        folder.change_manifest(
            folder.read_manifest(),
            folder.read_manifest().model_copy(update={"stretches": (begin_stretch("cpu", ""),)}),
        )
    store.file.unlink()
    for _ in range(2):  # it stays so
        text = text_of_report(go(tmp_path, counts=(5, 10)), tmp_path)
        assert "Stages were written when there were runs already, so nothing shows" in text


def stop_in_the_second_stage(folder: Path) -> Results:
    """Finish the first stage and one job of the second."""
    for jobs in (5, 1):  # the first stage has six
        with pytest.raises(KeyboardInterrupt):
            go(folder, executor=MadeUp(end_after=jobs))
    return load_results(folder, "there")


def test_seeds_of_a_stage_that_has_not_ended_change_nothing(tmp_path: Path) -> None:
    """Their runs may have got no farther than the first evaluation."""
    results = stop_in_the_second_stage(tmp_path)
    after = Analysis(results)
    (look,) = after.looks
    assert after.comparison.runs.keys() == look.comparison.runs.keys()
    assert {len(run.seeds) for run in after.comparison.runs.values()} == {5}
    folders = ExperimentStore(tmp_path, "there").job_folders()
    early = next(folder for folder in folders if folder.read_manifest().status != "finished")
    finish(early, steps=(20,))
    early.mark(status="interrupted", step=20)
    text = text_of_report(load_results(tmp_path, "there"), tmp_path)
    assert "td3 is better than sac and qsm at 40 steps" in text
    assert "Stage 2, 10 seeds, has not ended: its seeds are used, and it is tested, when" in text
    assert "Nothing: the statistics use" not in text


def test_a_task_that_was_removed_is_named_in_the_report(tmp_path: Path) -> None:
    go(tmp_path, tasks="four-goals,bimodal-bandit")
    ExperimentStore(tmp_path, "there").remove(task="bimodal-bandit")
    text = text_of_report(load_results(tmp_path, "there"), tmp_path)
    assert "Planned and removed since: bimodal-bandit. No stage ends without their runs." in text


def test_status_says_what_was_decided_and_which_stage_is_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stop_in_the_second_stage(tmp_path)
    lines = call("status", "there", f"--results={tmp_path}").out.splitlines()
    assert lines[-2].startswith("stage 1 of 2, 5 seeds: td3 is better than sac, td3 is better than")
    assert lines[-1].startswith("stage 2 of 2, 10 seeds, has not been tested")
    go(tmp_path)
    lines = call("status", "there", f"--results={tmp_path}").out.splitlines()
    assert lines[-1] == "stage 2 of 2, 10 seeds: no verdict; 1 pair is open"


def test_a_run_that_never_ends_a_stage_comes_to_an_end(tmp_path: Path) -> None:
    with patch.object(MadeUp, "run", lambda *_: Outcome()):
        results = go(tmp_path)
    assert {cell["status"] for cell in results.cells} == {"pending"}


# The report.


def text_of_report(results: Results, folder: Path) -> str:
    return write_report(results, folder / "report").with_name("report.md").read_text()


def test_the_report_says_what_was_declared_and_when_each_verdict_fell(tmp_path: Path) -> None:
    text = text_of_report(go(tmp_path), tmp_path)
    for said in (
        "5 and 10 seeds, tested at 2.5% and 2.5%, together 5%",
        "Stage 1, 5 seeds: td3 is better than sac; td3 is better than qsm. 1 pair is open.",
        "Stage 2, 10 seeds: no verdict. 1 pair is open.",
        "td3 stopped after 5 seeds: no pair with it was open.",
        "better | 5 seeds |",
        "cannot tell | open |",
        "Some pairs were decided before the last stage",
    ):
        assert said in text
    assert "seeds were added" not in text.lower()


def test_before_the_first_test_no_two_agents_are_said_to_be_alike(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, executor=MadeUp(end_after=3))
    text = text_of_report(load_results(tmp_path, "there"), tmp_path)
    first, _ = text.split("## Learning curves")
    assert "No pair of agents was tested yet: the first stage has not ended." in first
    assert "cannot be told apart:" not in first
    assert "A line at the right joins agents that cannot be told apart, or were not tested" in first
    assert "No pair was tested yet: what would settle it is known after the first" in text


def test_what_would_settle_it_is_a_stage_to_come(tmp_path: Path) -> None:
    for jobs in (5, 1):  # the first stage has six
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path, counts=(5, 10, 20), executor=MadeUp(end_after=jobs))
    analysis = Analysis(load_results(tmp_path, "there"))
    pairs, (look,) = analysis.settling.to_dict("records"), analysis.looks
    assert len(pairs) == len(look.open)
    levels = [(10, 0.0125 / len(pairs)), (20, 0.025 / len(pairs))]
    assert analysis.stages_to_come == levels
    for pair in pairs:
        agents = pair["first"], pair["second"]
        x, y = (analysis.comparison.final_returns(agent, [TASK]) for agent in agents)
        enough = [n for n, level in levels if is_enough(x, y, n, level, (True, True))]
        np.testing.assert_equal(pair["needed"], enough[0] if enough else np.nan)
    assert {10, 20} & {*analysis.settling["needed"]}
    text = text_of_report(analysis.results, tmp_path)
    assert "Tried were the stages to come (10 and 20 seeds), each at its share" in text


def test_after_the_last_stage_no_seeds_are_said_to_be_needed(tmp_path: Path) -> None:
    text = text_of_report(go(tmp_path), tmp_path)
    assert re.search("(sac and qsm|qsm and sac) cannot be told apart: no seeds are to come", text)
    assert "The last stage has ended, so no seeds are to come." in text
    assert "| none to come |" in text


def test_without_stages_nothing_is_said_of_them() -> None:
    analysis = Analysis(make_results())
    assert staging.sentences(analysis) == staging.warnings(analysis) == []
    assert "stage" not in analysis.pairs


def test_seeds_that_were_added_after_a_job_began_are_told(tmp_path: Path) -> None:
    store = ExperimentStore(tmp_path, "there")
    go(tmp_path, counts=None, seeds=range(3))
    assert "seeds_asked" not in store.read()
    for folder in store.job_folders():
        folder.write_manifest(begun(folder))
    for asked in ([3, 5], [3, 5, 9]):
        for count in (asked[-1], 2, 4, asked[-1]):  # to ask again, or for fewer, adds nothing
            results = go(tmp_path, counts=None, seeds=range(count))
            assert store.read()["seeds_asked"] == asked
    text = text_of_report(results, tmp_path)
    assert "Seeds were added after the first 3 (3, then 5, then 9), and no stages were" in text
    for wrong in ([3], [5, 3], [0, 3], "3", [3, True]):
        store.file.write_text(json.dumps(store_content(store) | {"seeds_asked": wrong}))
        with pytest.raises(UserError, match="seeds_asked must be rising numbers"):
            store.read()


def test_steps_that_were_added_after_a_job_began_are_told(tmp_path: Path) -> None:
    for steps in (1_000, 2_000, 4_000):
        store = ExperimentStore(tmp_path, "there")
        (folder,) = store.prepare(make_experiment(steps=steps), "a command")
        folder.write_manifest(begun(folder))
    made = make_results()
    cells = [cell | {"lengths": folder.read_manifest().lengths} for cell in made.cells]
    (told,) = staging.warnings(Analysis(replace(made, cells=cells)))
    assert told.startswith("Runs were given more steps after 1,000 and 2,000, and no stages")


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("compiled", "yes", "compiled must be true or false"),
        ("declared_after_runs", 1, "declared_after_runs must be true or false"),
    ],
)
def test_what_was_asked_for_is_checked(tmp_path: Path, key: str, value: Any, fault: str) -> None:
    store = ExperimentStore(tmp_path, "there")
    go(tmp_path, counts=None, seeds=range(3))
    store.file.write_text(json.dumps(store_content(store) | {key: value}))
    with pytest.raises(UserError, match=f"is damaged: {fault}"):
        store.read()


def store_content(store: ExperimentStore) -> Any:
    return json.loads(store.file.read_text())


def begun(folder: JobFolder) -> Any:
    """The manifest of a job that has been at work."""
    manifest = folder.read_manifest()
    return manifest.model_copy(update={"stretches": (begin_stretch("cpu", "a command"),)})


def test_seeds_that_were_added_before_a_job_began_are_not_told(tmp_path: Path) -> None:
    for seeds in (range(3), range(5)):
        with patch.object(MadeUp, "run", lambda *_: Outcome()):
            go(tmp_path, counts=None, seeds=seeds)
    assert "seeds_asked" not in ExperimentStore(tmp_path, "there").read()


# The command line.


def test_the_command_line_declares_and_keeps_to_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = cli_run("--name=there", agents="td3,sac", tasks=TASK)
    command = tuple(c for c in command if not c.startswith("--seeds="))
    with patch.object(run_module, "show_and_run", lambda *_, **__: Outcome()):
        outcome = call(*command, "--seeds=2,4,8", "--first-seed=3")
    assert outcome.status == 0, outcome.err
    too_few = "No outcome of stages 1 to 2 can tell the two agents apart: begin with more than 4"
    assert outcome.out.startswith(too_few)
    plan = ExperimentStore(tmp_path / "results", "there").stages
    assert plan is not None
    assert (plan.counts, plan.all_seeds) == ((2, 4, 8), tuple(range(3, 11)))
    with patch.object(run_module, "show_and_run", lambda *_, **__: Outcome()):
        assert call(*command).status == 0
    assert_refused(call(*command, "--seeds=8"), "give --seeds 2,4,8, or neither")
    assert_refused(call(*command, "--first-seed=0"), "give --seeds 2,4,8, or neither")
    assert_refused(call(*command, "--seeds=2,4,8"), "seeds 3-10, and now has 0-7")
    assert_refused(call(*command, "--seeds=2,4", "--first-seed=3"), "stages of seeds 2,4,8")
    dry = call(*command, "--dry-run")
    assert dry.status == 0, dry.err
    assert "This is the most that stages of 2,4,8 seeds can take. Stage 1 alone: 2 jobs" in dry.out
    assert too_few in dry.out
