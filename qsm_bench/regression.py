"""``regress``: does every trainer still learn as well as the committed baseline?

All trainers learn the small tasks with small networks. The returns of a random and of the best
policy on these tasks are known. The scores of fresh seeds are compared, cell by cell, with those of
the baseline's seeds.

Each cell is tested with the exact rank test of ``qsm_bench.statistics``, at the level
FALSE_ALARMS / number of tests (Bonferroni). So the probability that unchanged code raises any alarm
is at most FALSE_ALARMS, for any dependence between tests and any distribution of the scores.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import TypeAdapter
from rich.console import Console

from agents.registry import built_in_trainers, find_agent
from agents.speed.toolchain import why_not_compiled
from qsm_bench.errors import UserError, reason_of
from qsm_bench.executors import Local
from qsm_bench.experiment import AgentEntry, Experiment, Job, settings_on
from qsm_bench.files import MIB, check_writable, read, read_json, write_atomically
from qsm_bench.job_folder import JobFolder
from qsm_bench.protocol import Protocol
from qsm_bench.provenance import describe_commit, describe_hardware, describe_versions
from qsm_bench.results import load_results
from qsm_bench.run import show_and_run
from qsm_bench.shipped import shipped
from qsm_bench.signals import ReceivedSignal
from qsm_bench.statistics.selection import normalized
from qsm_bench.statistics.significance import permutation_test
from qsm_bench.store import ExperimentStore
from qsm_bench.tables import parse_table

FALSE_ALARMS = 0.01
"""The probability that unchanged code raises any alarm is at most this, over all tests."""
BASELINE_SEEDS, SEEDS = 24, 8
FIRST_SEED = 1_000
"""The first fresh seed. Fresh seeds must not be those of the baseline: samples are independent."""
SCORES = ("end", "area")
"""The normalized scores of a run: of its last evaluation, and the mean over all evaluations."""

EVERY_AGENT = {"hidden_sizes": [64, 64], "learning_rate": 1e-3}
"""Small networks can learn these tasks; with a larger learning rate they do so in minutes."""


@dataclass(frozen=True)
class SmallTask:
    """A small task, and how long it is trained on."""

    name: str
    steps: int
    n_step: int

    def agents(self) -> tuple[AgentEntry, ...]:
        """Every built-in trainer, with its own settings for small tasks."""
        trainers = map(find_agent, built_in_trainers())
        return tuple(
            AgentEntry(t, settings_on(self.name, getattr(t.agent, "small_task_settings", {})))
            for t in trainers
        )

    def protocol(self) -> Protocol:
        """The protocol of every agent on this task."""
        return Protocol(
            steps=self.steps,
            warmup_steps=500,
            batch_size=64,
            eval_every=self.steps // 5,
            eval_episodes=20,
            settings={**EVERY_AGENT, "n_step": self.n_step},
        )


SMALL_TASKS = (
    SmallTask("bimodal-bandit", 4_000, n_step=1),
    SmallTask("four-goals", 3_000, n_step=3),
    SmallTask("linear-quadratic", 3_000, n_step=1),
)


COMPILED = frozenset({"diffusion_ql", "diffusion_pg", "sdac", "qvpo", "dpmd", "langevin"})
"""Trainers whose updates are compiled, which takes the better part of a minute of a core: those of
the others would not save as much."""


@dataclass(frozen=True)
class Finding:
    """One test: a cell's scores now against the baseline's."""

    agent: str
    task: str
    score: str
    baseline: float
    now: float
    """``baseline`` and ``now`` are means over seeds; 0 is a random policy, 1 the best."""
    p: float
    verdict: str
    """The result of the test: ok, worse, better, or failed."""
    note: str = ""

    @property
    def alarm(self) -> bool:
        """Whether something is wrong."""
        return self.verdict in ("worse", "failed")


def experiments(seeds: Sequence[int]) -> Iterator[Experiment]:
    """The regression's experiments, one for each task."""
    for task in SMALL_TASKS:
        yield Experiment(
            name=task.name,
            agents=task.agents(),
            tasks=(task.name,),
            groups=(tuple(seeds),),
            protocol=task.protocol(),
        )


@dataclass(frozen=True)
class Plan:
    """What one run of the regression trains, and the baseline that it is tested against."""

    folder: Path
    """The folder of the baseline."""
    seeds: range
    baseline: pd.DataFrame | None
    """The recorded scores; None if this run records them."""


def plan(folder: Path, seeds: int | None, first_seed: int | None, *, record: bool) -> Plan:
    """Choose the seeds, and the baseline: the one in ``folder``, or else the program's own.

    Raises UserError if the baseline has one of the seeds, or cannot be read.
    """
    if record:
        check_writable(folder)
        first = first_seed or 0
        return Plan(folder, range(first, first + (seeds or BASELINE_SEEDS)), None)
    if not os.path.lexists(folder):
        folder = shipped("regression")
    baseline = read_baseline(folder)
    first = FIRST_SEED if first_seed is None else first_seed
    fresh = range(first, first + (seeds or SEEDS))
    taken = sorted(set(baseline["seed"]))
    if set(taken) & set(fresh):
        raise UserError(
            f"--first-seed {first}: the baseline has seeds {taken[0]} to {taken[-1]}; "
            f"give {taken[-1] + 1} or above"
        )
    return Plan(folder, fresh, baseline)


def run(
    plan: Plan, workers: int | None, console: Console, received: ReceivedSignal
) -> list[Finding]:
    """Train every cell in a temporary folder; then test it, or record the baseline.

    If a signal comes, nothing is tested. Raises UserError if a cell of a new baseline fails.
    """
    with tempfile.TemporaryDirectory(prefix="qsm_bench-regress-") as temporary:
        root = Path(temporary)
        jobs = prepare(root, plan.seeds)
        outcome = show_and_run(
            Local(workers=workers),
            root,
            jobs,
            jobs,
            console,
            received,
            # Nothing is resumed here: one checkpoint, at the last step, is enough.
            checkpoint_every=max(task.steps for task in SMALL_TASKS),
            command="regress",
        )
        if received:
            return []
        failed = {
            _cell_key(job.read_manifest().job): why for job, why in outcome.unfinished.items()
        }
        scores = read_scores(root, plan.seeds)
    if plan.baseline is not None:
        return find_regressions(plan.baseline, scores, failed)
    if failed:
        raise UserError(f"the baseline is not recorded: {failed}")
    write_baseline(plan.folder, scores)
    return []


def prepare(root: Path, seeds: Sequence[int]) -> list[JobFolder]:
    """Create the folders of all jobs under ``root``."""
    return [
        job
        for results, experiment in _stored(root, seeds)
        for job in ExperimentStore(results, experiment.name).prepare(experiment, "regress")
    ]


def read_scores(root: Path, seeds: Sequence[int]) -> pd.DataFrame:
    """The scores of the cells under ``root``: agent, task, seed, end, area."""
    tables = [scores_of(results, experiment) for results, experiment in _stored(root, seeds)]
    return pd.concat(tables, ignore_index=True)


def _stored(root: Path, seeds: Sequence[int]) -> Iterator[tuple[Path, Experiment]]:
    """The experiments as they are stored under ``root``, each with the folder of its results.

    The jobs of an experiment are compiled all or none. Here some are, if this machine can compile.
    """
    chosen = COMPILED if why_not_compiled("cpu") is None else frozenset[str]()
    for experiment in experiments(seeds):
        for compiled, folder in ((True, "compiled"), (False, "plain")):
            agents = [a for a in experiment.agents if (a.registered.name in chosen) == compiled]
            if agents:
                yield root / folder, replace(experiment, agents=tuple(agents), compiled=compiled)


def find_regressions(
    baseline: pd.DataFrame, now: pd.DataFrame, failed: Mapping[tuple[str, str], str]
) -> list[Finding]:
    """Test every score of every cell of the baseline.

    ``failed`` has the reason for each cell (agent, task) that failed.
    """
    cells = list(baseline.groupby(["agent", "task"], sort=False))
    level = FALSE_ALARMS / (len(cells) * len(SCORES))
    findings = []
    for key, before in cells:
        agent, task = str(key[0]), str(key[1])
        after = now[(now["agent"] == agent) & (now["task"] == task)]
        reason = failed.get((agent, task))
        for score in SCORES:
            old, new = before[score].to_numpy(float), after[score].to_numpy(float)
            if reason or not np.isfinite(new).all():
                note = reason or "a score is not finite"
                findings.append(
                    Finding(agent, task, score, old.mean(), np.nan, 0.0, "failed", note)
                )
                continue
            p, _ = permutation_test(new[:, None], old[:, None])
            verdict = "ok" if p > level else "worse" if new.mean() < old.mean() else "better"
            findings.append(Finding(agent, task, score, old.mean(), new.mean(), p, verdict))
    return findings


def write_baseline(folder: Path, scores: pd.DataFrame) -> None:
    """Record ``scores`` as the baseline, with the protocol, versions and hardware."""
    folder.mkdir(parents=True, exist_ok=True)
    # Described before a file is written, which would leave the commit "dirty".
    about = {
        "protocol": protocol(),
        "commit": describe_commit(),
        "versions": describe_versions(),
        "hardware": describe_hardware("cpu"),
        "command": "python -m qsm_bench regress --record",
    }
    write_atomically(folder / "baseline.csv", scores.to_csv(index=False))
    write_atomically(folder / "baseline.json", json.dumps(about, indent=2) + "\n")


def read_baseline(folder: Path) -> pd.DataFrame:
    """The recorded scores. Raises UserError if there are none, or if the protocol has changed."""
    try:
        recorded = _recorded(folder / "baseline.json")
        scores = _recorded_scores(folder / "baseline.csv")
    except UserError as error:
        raise UserError(
            f"no baseline can be read from {folder} ({error}): record one with regress --record"
        ) from error
    if recorded != protocol():
        raise UserError(
            f"the baseline in {folder} was made with other settings than the regression has now: "
            "record it again with regress --record, and say why in the commit"
        )
    return scores


def _recorded(file: Path) -> list[dict[str, Any]]:
    """The protocol that a baseline was made under."""
    about = read_json(file, MIB)
    try:
        return [_what_decides(_completed(job)) for job in about["protocol"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = reason_of(error)
        raise UserError(f"{file} is damaged: {reason[:300]}") from error


def _recorded_scores(file: Path) -> pd.DataFrame:
    """The scores of a baseline, checked: finite, for every cell, with the same seeds in each."""
    text = read(file, MIB)
    cells = {(agent, task.name) for agent in built_in_trainers() for task in SMALL_TASKS}
    try:
        scores = parse_table(text, texts=("agent", "task"), whole=("seed",))
        if list(scores.columns) != ["agent", "task", "seed", *SCORES]:
            raise ValueError(f"its columns are not agent, task, seed, {', '.join(SCORES)}")
        if not np.isfinite(scores[list(SCORES)]).all(axis=None):
            raise ValueError("a score is not finite")
        seeds = {key: sorted(part["seed"]) for key, part in scores.groupby(["agent", "task"])}
        if set(seeds) != cells:
            raise ValueError(f"it is not of the {len(cells)} cells that the regression has")
        first = next(iter(seeds.values()))
        if (
            any(own != first for own in seeds.values())
            or len(set(first)) < max(2, len(first))
            or first[0] < 0
        ):
            raise ValueError("its cells are not of the same seeds, two at least, each once")
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}") from error
    return scores


def protocol() -> list[dict[str, Any]]:
    """Everything that affects the scores, except the seeds."""
    return [_what_decides(job) for experiment in experiments([0]) for job in experiment.jobs]


def _completed(job: dict[str, Any]) -> Job:
    """A recorded job. Settings that were added later get their defaults."""
    if job["agent_name"] not in built_in_trainers():  # it could name anybody's module
        raise ValueError(f"the regression has no agent {job['agent_name']!r}")
    agent = find_agent(job["agent_name"]).agent
    config = TypeAdapter(agent.config_class).validate_python(job["settings"])
    labeled = {"agent": job["agent_name"], **job}
    return Job(**{**labeled, "settings": asdict(config)}, seeds=())


def _what_decides(job: Job) -> dict[str, Any]:
    """The part of a job that affects its scores, but for rounding.

    The label and the protocol's settings are left out, since the job's own settings contain them.
    So is whether updates are compiled, since they are then the same but for rounding.
    """
    return job.model_dump(
        mode="json",
        exclude={"seeds": True, "agent": True, "compiled": True, "protocol": {"settings"}},
    )


def scores_of(root: Path, experiment: Experiment) -> pd.DataFrame:
    """Normalized scores of every run, from the store."""
    rows = []
    evaluations = load_results(root, experiment.name).evaluations
    for job in experiment.jobs:
        mine = evaluations[evaluations["agent"] == job.agent]
        returns = mine.groupby(["seed", "step"])["return"].mean().unstack("step")
        scores = normalized(returns.to_numpy(dtype=np.float64), job.score_range)
        rows += [
            (_agent(job), job.task, seed, curve[-1], curve.mean())
            for seed, curve in zip(returns.index, scores, strict=True)
        ]
    return pd.DataFrame(rows, columns=["agent", "task", "seed", *SCORES])


def _cell_key(job: Job) -> tuple[str, str]:
    """The agent, without its settings, and the task: the key of a cell in scores and findings."""
    return _agent(job), job.task


def _agent(job: Job) -> str:
    return job.agent.partition("[")[0]
