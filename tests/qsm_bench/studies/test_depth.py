"""The study of depth: the gradients along the chain, the counted bytes, and what decides."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from agents.diffusion_ql import DiffusionQL, DiffusionQLConfig
from qsm_bench.cli import app
from qsm_bench.studies import chain, depth, update_cost
from qsm_bench.studies.chain import TRAINED, chain_gradients, cut_shares, norms, watching
from qsm_bench.studies.depth import QL, QSM
from tests.agents.fixed_critics import (
    CPU,
    doubled,
    fix_critic,
    in_float64,
    make_batch,
    plain_mean,
    plain_schedule,
)

TIMES = 1, 5, 20


def wave(observation: Tensor, action: Tensor) -> Tensor:
    return (2 * action + observation[..., :1]).sin().sum(dim=-1)


def build(steps: int, action_size: int = 2) -> DiffusionQL:
    config = DiffusionQLConfig(hidden_sizes=(16, 16), diffusion_steps=steps)
    agent = in_float64(DiffusionQL(config, 3, action_size, (0, 1), CPU))
    fix_critic(agent, wave, wave)
    return agent


def loss_from(
    agent: DiffusionQL, observation: Tensor, action: Tensor, noise: Tensor, t: int
) -> Tensor:
    """The losses [S] if the chain goes on from a^t, written out."""
    steps = agent.config.diffusion_steps
    alpha, _ = plain_schedule(steps)
    for step in range(t, 0, -1):
        action = plain_mean(action, agent.denoiser(observation, action, step), step, steps)
        if step > 1:
            action = action + (1 - alpha[step]) ** 0.5 * noise[:, steps + 1 - step]
        action = action.clamp(-1, 1)
    return -wave(observation, action).mean(dim=-1)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_gradient_at_each_step_is_the_central_difference_of_the_rest_of_the_chain(
    steps: int,
) -> None:
    agent, batch = build(steps), make_batch(2, 16, 3, 2, torch.float64)
    noise = doubled(agent.draw_actor_noise(16))
    actions, gradients = chain_gradients(agent, batch, noise)
    assert len(actions) == len(gradients) == steps + 1
    assert 0 < float(cut_shares(actions).mean()) < 1
    h = 1e-6
    with torch.no_grad():
        for t, action, gradient in zip(range(steps, -1, -1), actions, gradients, strict=True):
            direction = torch.randn_like(action)
            above, below = (
                loss_from(agent, batch.observation, action + s * direction, noise.chain, t)
                for s in (h, -h)
            )
            along = (gradient * direction).sum(dim=(1, 2))
            torch.testing.assert_close(along, (above - below) / (2 * h), rtol=1e-5, atol=1e-8)


@given(st.integers(1, 60))
def test_a_constant_denoiser_without_clip_has_one_factor_at_every_length(steps: int) -> None:
    agent, batch = build(steps), make_batch(2, 4, 3, 2, torch.float64)
    with torch.no_grad():
        for parameter in agent.denoiser.rest.layers[-1].parameters():
            parameter.zero_()
    noise = doubled(agent.draw_actor_noise(4))
    # So small that nothing reaches a bound.
    actions, gradients = chain_gradients(agent, batch, noise._replace(chain=1e-3 * noise.chain))
    assert float(cut_shares(actions).max()) == 0
    norm = norms(gradients)
    expected = torch.full_like(norm[0], plain_schedule(steps)[1][steps] ** -0.5)
    torch.testing.assert_close(norm[0] / norm[-1], expected)
    assert float(expected[0]) == pytest.approx(np.exp(5.05 / 2))


def test_nothing_passes_a_clipped_step() -> None:
    agent, batch = build(4, action_size=1), make_batch(2, 64, 3, 1, torch.float64)
    actions, gradients = chain_gradients(agent, batch, doubled(agent.draw_actor_noise(64)))
    cut_later = torch.zeros_like(actions[0], dtype=torch.bool)
    for action, gradient in zip(reversed(actions), reversed(gradients), strict=True):
        assert torch.equal(gradient == 0, cut_later)
        cut_later |= action.abs() == 1
    assert cut_later.any()
    assert not cut_later.all()


def test_who_watches_changes_nothing() -> None:
    agent, batch = build(3), make_batch(2, 8, 3, 2, torch.float64)
    policy, noise = agent.policy, doubled(agent.draw_actor_noise(8))
    expected = policy.sample(batch.observation, noise.chain)
    with watching(agent) as actions:
        for _ in range(2):  # the list has the last chain alone
            torch.testing.assert_close(
                agent.policy.sample(batch.observation, noise.chain), expected
            )
    assert agent.policy is policy
    assert len(actions) == 4
    assert torch.equal(actions[0], noise.chain[:, 0])
    assert torch.equal(actions[-1], expected)


def test_the_share_of_clipped_entries_is_that_of_each_step() -> None:
    inside, bound = torch.zeros(2, 4, 1), torch.ones(2, 4, 1)
    half = torch.cat([inside[:, :2], -bound[:, :2]], dim=1)
    # The first is noise, which is not clipped.
    assert cut_shares([bound, half, inside]).tolist() == [[0.5, 0.5], [0.0, 0.0]]


@pytest.mark.parametrize("trainer", [QSM, QL])
def test_the_saved_bytes_are_those_written_down(trainer: str) -> None:
    """A step more: the denoiser's activations for Diffusion-QL, and a time code for both."""
    memory = update_cost.measure_memory([trainer], [1, 2, 5, 7])
    batch, hidden, action = update_cost.BATCH, 256, update_cost.ACTION
    # Its index, phases, features, what mish keeps of the hidden layer, its output, and the code.
    time_code = 1 + 32 + 2 * 32 + 3 * 128 + 128 + 128
    # For each hidden layer what mish keeps and its output; a^t before and after the clip.
    step = {QL: 2 * 4 * batch * hidden + 2 * batch * action, QSM: batch}[trainer]
    grown = memory["saved"].diff() / memory["T"].diff()
    assert grown[1:].tolist() == [4 * (time_code + step)] * 3
    assert (memory["peak"] > memory["saved"]).all()


def test_times_are_relative_to_the_first_trainers_update_of_the_same_round() -> None:
    times = update_cost.measure_times([QSM, QL], [1, 2], rounds=2)
    assert len(times) == 2 * 2 * 2 * 2
    unit = times[(times["agent"] == QSM) & (times["T"] == 1) & (times["measure"] == "whole update")]
    assert unit["ratio"].tolist() == [1.0, 1.0]
    assert (times["ratio"] > 0).all()


def make_times(ql: list[float], qsm: list[float], qsm_actor: list[float]) -> pd.DataFrame:
    """Times with these slopes over T, one a round."""
    slopes = {
        (QL, "whole update"): ql,
        (QSM, "whole update"): qsm,
        (QL, "actor's part"): ql,
        (QSM, "actor's part"): qsm_actor,
    }
    return pd.DataFrame(
        [
            {"agent": agent, "T": t, "round": turn, "measure": measure, "ratio": 1 + slope * t}
            for (agent, measure), rounds in slopes.items()
            for turn, slope in enumerate(rounds)
            for t in TIMES
        ]
    )


@pytest.mark.parametrize(
    ("ql", "qsm", "qsm_actor", "outcome"),
    [
        ([4.0, 4.0], [1.0, 1.0], [0.1, -0.1], "holds"),
        ([4.0, 4.0], [1.0, 3.0], [0.1, 0.1], "cannot tell"),
        ([4.0, 4.0], [3.0, 3.0], [0.1, 0.1], "does not hold"),
        ([4.0, 4.0], [1.0, 1.0], [1.0, 1.0], "does not hold"),
    ],
)
def test_the_verdict_on_time(
    ql: list[float], qsm: list[float], qsm_actor: list[float], outcome: str
) -> None:
    assert depth.decide_time(make_times(ql, qsm, qsm_actor)).outcome == outcome


@pytest.mark.parametrize(
    ("ql", "qsm", "outcome"),
    [
        ([10, 50, 200], [10.0, 10.2, 10.9], "holds"),
        ([10, 50, 400], [10.0, 10.2, 10.9], "does not hold"),  # not linear
        ([10, 50, 200], [10.0, 14.0, 29.0], "does not hold"),
        ([10, 10, 10], [10.0, 10.0, 10.0], "does not hold"),
    ],
)
def test_the_verdict_on_memory(ql: list[float], qsm: list[float], outcome: str) -> None:
    table = pd.DataFrame({"T": TIMES * 2, "agent": [QL] * 3 + [QSM] * 3, "saved": ql + qsm})
    assert depth.decide_memory(table).outcome == outcome


def make_runs(factors: list[list[float]]) -> pd.DataFrame:
    """Runs of trained agents with these factors, [seeds, T]."""
    return pd.DataFrame(
        [
            {"agent": QL, "when": TRAINED, "seed": seed, "T": t, "factor": factor}
            for seed, row in enumerate(factors)
            for t, factor in zip(TIMES, row, strict=True)
        ]
    )


@pytest.mark.parametrize(
    ("factors", "outcome"),
    [
        ([[1.0, 2.0, 8.0]] * 4, "holds"),  # explodes
        ([[1.0, 0.5, 0.0]] * 4, "holds"),  # vanishes
        ([[1.0, 0.5, 0.1], [1.0, 2.0, 9.0]] * 2, "holds"),  # either
        ([[9.0, 3.0, 1.0]] * 4, "does not hold"),
        ([[1.0, 2.0, 8.0]], "cannot tell"),
        ([[0.0, 0.0, 0.0]] * 4, "cannot tell"),
        ([[np.nan, 2.0, 8.0]] * 4, "cannot tell"),
        ([[1.0, 2.0, 8.0]] * 4 + [[np.nan, 2.0, 1.0]], "holds"),
    ],
)
def test_the_verdict_on_gradients(factors: list[list[float]], outcome: str) -> None:
    assert depth.decide_gradients(make_runs(factors)).outcome == outcome


LOW, HIGH = [1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]


@pytest.mark.parametrize(
    ("qsm", "ql", "outcome"),
    [
        ((HIGH, HIGH), (HIGH, LOW), "holds"),
        ((LOW, HIGH), (HIGH, LOW), "holds"),
        ((HIGH, HIGH), (HIGH, HIGH), "cannot tell"),
        ((HIGH, LOW), (HIGH, LOW), "does not hold"),
        ((HIGH, HIGH), (HIGH, []), "cannot tell"),  # diverged at the largest T
        ((HIGH, HIGH), (LOW, HIGH), "does not hold"),
    ],
)
def test_the_verdict_on_returns(qsm: Any, ql: Any, outcome: str) -> None:
    rows = [
        {"agent": agent, "T": t, "return": value}
        for agent, found in ((QSM, qsm), (QL, ql))
        for t, values in zip((5, 20), found, strict=True)
        for value in values
    ]
    assert depth.decide_returns(pd.DataFrame(rows)).outcome == outcome


@pytest.mark.slow
def test_the_study_runs_and_what_is_finished_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(depth, "ROUNDS", 1)
    monkeypatch.setattr(chain, "STATES", 32)
    told = []
    for _ in range(2):
        app(["study", "depth", "--budget", "tiny"], standalone_mode=False)
        told.append(capsys.readouterr().out)
    assert "skipped: 4 finished jobs" not in told[0]
    assert "skipped: 4 finished jobs" in told[1]
    assert all("depth: cannot tell. The tiny budget only shows" in text for text in told)
    folder = tmp_path / "reports" / "studies" / "depth"
    # The trained agents are the same, so are their returns and gradients; times are not.
    names = {file.stem for file in (folder / "data").glob("*.csv")}
    assert names >= {"parts", "returns", "time", "memory", "gradients", "chain-ends", "clipped"}
    ends = pd.read_csv(folder / "data" / "chain-ends.csv")
    assert len(ends) == 2 * 2 * 2  # T, before and after, seeds
