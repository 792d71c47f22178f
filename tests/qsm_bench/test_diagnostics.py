"""What is measured of policies and critics: closed forms, and that looking changes nothing."""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from agents.common.streams import SeedStreams
from agents.registry import built_in_trainers, find_agent
from qsm_bench import diagnostics
from qsm_bench.contract import Checked
from qsm_bench.diagnostics import measure, slice_critic
from qsm_bench.job_folder import JobFolder
from tests.qsm_bench.jobs import AGENTS, make_job, train, uncut, written
from tests.qsm_bench.plain_agents import Plain, PlainConfig

CPU = torch.device("cpu")
SEEDS, OBS, ACT, STEP = (3, 8), 3, 2, 20


def normals(states: int, size: int, std: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return std * torch.randn(1, states, diagnostics.SAMPLES, size, generator=generator)


@pytest.mark.parametrize("size", [1, 2, 6])
@pytest.mark.parametrize("std", [0.05, 0.3])
def test_the_entropy_of_normal_samples_is_the_closed_form(size: int, std: float) -> None:
    closed = size / 2 * math.log(2 * math.pi * math.e * std**2)
    # Over 500 states its standard error is 0.01; its bias grows with the dimensions.
    assert diagnostics.entropy(normals(500, size, std)).item() == pytest.approx(
        closed, abs=0.05 * size
    )


@given(st.floats(0.5, 100.0), st.integers(1, 4))
def test_scaling_the_samples_adds_the_logarithm_of_the_scale(scale: float, size: int) -> None:
    samples = normals(3, size)
    expected = diagnostics.entropy(samples) + size * math.log(scale)
    torch.testing.assert_close(diagnostics.entropy(scale * samples), expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("modes", [1, 2, 4])
def test_far_clusters_are_modes(modes: int) -> None:
    corners = torch.tensor([[-0.9, -0.9], [0.9, 0.9], [-0.9, 0.9], [0.9, -0.9]])[:modes]
    centers = corners.repeat(diagnostics.SAMPLES // modes, 1)
    samples = centers + 0.05 * normals(5, 2)
    assert diagnostics.modes(samples).tolist() == [modes]


def test_the_clipped_share_counts_entries_at_a_bound() -> None:
    samples = torch.tensor([[-1.0, 0.5], [1.0, 1.0], [0.999, 0.0], [0.0, 0.0]])
    assert diagnostics.clipped_share(samples.expand(2, 3, 4, 2)).tolist() == [3 / 8, 3 / 8]


def showing(*methods: str) -> Checked:
    """An agent that shows so much: uniform actions, Q(s, a) = a_1, and a score along it."""

    def sample_policy(self: Any, states: Tensor, count: int, streams: SeedStreams) -> Tensor:
        return streams.uniform(states.shape[1], count, ACT, low=-0.5, high=0.5)

    def action_value(self: Any, states: Tensor, action: Tensor) -> Tensor:
        return action[..., 0].clone()

    def score_and_gradient(self: Any, states: Tensor, action: Tensor, streams: Any) -> Any:
        return -2 * action, -action

    shown = {m.__name__: m for m in (sample_policy, action_value, score_and_gradient)}
    agent = type("Shown", (Plain,), {name: shown[name] for name in methods})
    return Checked(agent(PlainConfig(), OBS, ACT, SEEDS, CPU), "shown", len(SEEDS), ACT)


STATES = torch.zeros(len(SEEDS), 5, OBS)
BIAS = np.array([1.5, np.nan])


@pytest.mark.parametrize(
    ("methods", "measures"),
    [
        ((), None),
        (("score_and_gradient",), None),
        (("action_value",), {"critic_bias"}),
        (("sample_policy",), {"clipped_share", "action_entropy", "action_modes"}),
        (
            ("sample_policy", "score_and_gradient"),
            {"clipped_share", "action_entropy", "action_modes", "score_gradient_cosine"},
        ),
    ],
)
def test_an_agent_is_measured_by_what_it_shows(
    methods: tuple[str, ...], measures: set[str] | None
) -> None:
    rows = measure(showing(*methods), STATES, SEEDS, STEP, BIAS)
    assert [row["seed"] for row in rows] == ([] if measures is None else list(SEEDS))
    for row in rows:
        assert set(row) == {"seed", "step", *(measures or ())}
    assert slice_critic(showing(*methods), STATES, SEEDS, STEP) == []


def test_measures_have_their_values_and_a_bias_that_is_unknown_is_blank() -> None:
    one, two = measure(
        showing("sample_policy", "action_value", "score_and_gradient"), STATES, SEEDS, STEP, BIAS
    )
    assert (one["critic_bias"], two["critic_bias"]) == (1.5, "")
    assert one["score_gradient_cosine"] == pytest.approx(1.0)
    assert one["clipped_share"] == 0.0
    # Uniform on a square of side 1; near its border neighbors are missing.
    assert one["action_entropy"] == pytest.approx(0.0, abs=0.25)


def test_slices_are_the_critic_and_the_shares_along_the_first_action_dimension() -> None:
    rows = slice_critic(showing("sample_policy", "action_value"), STATES, SEEDS, STEP)
    assert len(rows) == len(SEEDS) * diagnostics.SLICED_STATES * diagnostics.SLICE_CELLS
    for row in rows:
        assert row["q"] == pytest.approx(row["action"], abs=1e-4)
        assert row["share"] == 0 or abs(row["action"]) < 0.5
    assert sum(row["share"] for row in rows) == pytest.approx(
        len(SEEDS) * diagnostics.SLICED_STATES
    )


def test_random_numbers_depend_on_seed_and_step_alone() -> None:
    agent = showing("sample_policy", "action_value")
    rows = measure(agent, STATES, SEEDS, STEP, BIAS)
    slices = slice_critic(agent, STATES, SEEDS, STEP)
    other = showing("sample_policy", "action_value")
    assert measure(other, STATES, SEEDS, STEP, BIAS) == rows
    assert slice_critic(other, STATES, SEEDS, STEP) == slices
    assert measure(agent, STATES, SEEDS, STEP + 1, BIAS) != rows
    swapped = measure(agent, STATES, SEEDS[::-1], STEP, BIAS[::-1])
    assert swapped == rows[::-1]


def new_agent(name: str, **settings: Any) -> Any:
    agent = find_agent(name).agent
    return agent(agent.config_class(hidden_sizes=(16,), **settings), OBS, ACT, SEEDS, CPU)


def test_sacs_entropy_is_that_of_its_own_density() -> None:
    """Where that is narrow. A wide one crowds at the bounds, where the estimate is too high."""
    sac = new_agent("sac", log_std_max=-1.5)
    states = torch.randn(len(SEEDS), 200, OBS)
    streams = SeedStreams(SEEDS, "test", CPU)
    noise = streams.normal(200 * 64, ACT)
    _, log_density = sac.policy(states.repeat_interleave(64, dim=1), noise)
    rows = measure(Checked(sac, "sac", len(SEEDS), ACT), states, SEEDS, STEP, BIAS)
    for row, entropy in zip(rows, -log_density.mean(dim=1), strict=True):
        assert row["action_entropy"] == pytest.approx(entropy.item(), abs=0.15)


def test_td3_has_one_action_a_state_and_no_entropy() -> None:
    td3 = new_agent("td3")
    states = torch.randn(len(SEEDS), 6, OBS)
    agent = Checked(td3, "td3", len(SEEDS), ACT)
    for row in measure(agent, states, SEEDS, STEP, BIAS):
        assert set(row) == {"seed", "step", "clipped_share", "critic_bias"}
    shares = [row["share"] for row in slice_critic(agent, states, SEEDS, STEP)]
    assert sorted(set(shares)) == [0.0, 1.0]


@pytest.mark.parametrize("name", built_in_trainers())
def test_every_trainer_shows_its_critic_and_its_policy(name: str) -> None:
    agent = Checked(new_agent(name), name, len(SEEDS), ACT)
    states = torch.randn(len(SEEDS), 6, OBS)
    (one, _), slices = (f(agent, states, SEEDS, STEP, *x) for f, x in LOOKS)
    assert {"clipped_share", "critic_bias"} <= set(one)
    assert slices
    assert ("score_gradient_cosine" in one) == hasattr(agent.bare, "denoiser")


LOOKS: Any = ((measure, (BIAS,)), (slice_critic, ()))


@pytest.mark.parametrize("agent", AGENTS, ids=[agent.partition("[")[0] for agent in AGENTS])
def test_looking_changes_nothing_that_is_learned(
    agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(agent)
    looked_at = uncut(job.model_dump_json())
    rows = list(csv.DictReader(looked_at["diagnostics"].decode().splitlines()))
    assert {(row["seed"], row["step"]) for row in rows} == {
        (seed, step) for seed in ("0", "1") for step in ("20", "40", "45")
    }
    for method in ("action_value", "sample_policy", "score_and_gradient"):
        monkeypatch.setattr(Checked, method, lambda *_: None)
    monkeypatch.setattr(Checked, "shows_action_value", False)
    assert train(job, tmp_path)
    unseen = written(tmp_path)
    assert unseen["evaluations"] == looked_at["evaluations"]
    assert unseen["training"] == looked_at["training"]
    assert unseen["diagnostics"] == b""
    assert not JobFolder(tmp_path).slices_file.exists()


def test_an_agent_that_shows_nothing_is_trained_and_not_measured(tmp_path: Path) -> None:
    assert train(make_job("tests.qsm_bench.plain_agents:Plain"), tmp_path)
    assert written(tmp_path)["diagnostics"] == b""
    assert not JobFolder(tmp_path).slices_file.exists()
