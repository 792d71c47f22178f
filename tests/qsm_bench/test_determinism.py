"""What docs/determinism.md promises and no other test holds."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import mannwhitneyu

from envs.linear_quadratic import RANDOM_RETURN
from qsm_bench.experiment import Job
from qsm_bench.job_folder import JobFolder
from tests.qsm_bench.jobs import AGENTS, make_job, train, uncut, written

ROOT = Path(__file__).parents[2]
SEEDS = tuple(range(12))

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="it takes a GPU")


@pytest.mark.parametrize("agent", [AGENTS[0], AGENTS[-1]], ids=["qsm", "td3"])
def test_the_same_job_leaves_the_same_bytes(agent: str, tmp_path: Path) -> None:
    job = make_job(agent)
    assert train(job, tmp_path)
    assert written(tmp_path) == uncut(job.model_dump_json())


def learner(seeds: tuple[int, ...], device: str = "cpu") -> Job:
    """Return a job that comes close to its task's optimal return in a few hundred steps."""
    job = make_job(
        "td3[hidden_sizes=[32],learning_rate=0.003]",
        task="linear-quadratic",
        steps=1200,
        warmup_steps=100,
        batch_size=64,
        eval_every=1200,
        eval_episodes=5,
        device=device,
    )
    return job.model_copy(update={"seeds": seeds})


def final_returns(groups: list[tuple[int, ...]], folder: Path, device: str = "cpu") -> np.ndarray:
    """Train each group of seeds in one job; return every seed's mean return."""
    tables = []
    for number, seeds in enumerate(groups):
        job_folder = JobFolder(folder / f"{device} {len(groups)} {number}")
        job_folder.path.mkdir()
        assert train(learner(seeds, device), job_folder.path)
        tables.append(pd.read_csv(job_folder.evaluations_file))
    returns: np.ndarray = pd.concat(tables).groupby("seed")["return"].mean().to_numpy()
    return returns


def assert_same_distribution(one: np.ndarray, other: np.ndarray) -> None:
    """Check that a test at level 0.001 sees no difference, and that something was learned."""
    assert mannwhitneyu(one, other).pvalue > 0.001
    assert np.median(one) > RANDOM_RETURN / 2
    assert np.median(other) > RANDOM_RETURN / 2


@pytest.mark.slow
def test_seeds_in_other_groups_do_as_well(tmp_path: Path) -> None:
    threes = [SEEDS[k : k + 3] for k in range(0, len(SEEDS), 3)]
    assert_same_distribution(final_returns([SEEDS], tmp_path), final_returns(threes, tmp_path))


@pytest.mark.slow
@needs_cuda
def test_seeds_on_a_gpu_do_as_well(tmp_path: Path) -> None:
    assert_same_distribution(
        final_returns([SEEDS], tmp_path), final_returns([SEEDS], tmp_path, "cuda")
    )


@needs_cuda
@pytest.mark.parametrize("agent", AGENTS, ids=[agent.partition("[")[0] for agent in AGENTS])
def test_a_job_on_a_gpu_goes_on_bit_for_bit(agent: str, tmp_path: Path) -> None:
    job = make_job(agent, device="cuda")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    assert train(job, whole)
    for stop_at in (12, 18, 40):
        assert not train(job, cut, stop_at=stop_at, checkpoint_every=7)
    assert train(job, cut)
    assert written(cut) == written(whole)


def test_every_sentence_of_the_page_names_a_test_that_is_there() -> None:
    page = (ROOT / "docs" / "determinism.md").read_text()
    named = re.findall(r"`(test_\w+)`", page)
    assert len(named) > 10
    defined = set()
    for file in (ROOT / "tests").rglob("test_*.py"):
        defined |= {file.stem, *re.findall(r"^def (test_\w+)", file.read_text(), re.M)}
    assert set(named) <= defined
    for item in re.findall(r"^- (.*?)(?=^- |^#|\Z)", page, re.M | re.S):
        assert "`test_" in item, item
