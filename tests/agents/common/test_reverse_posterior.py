"""Draws of the action behind a noised one: against SciPy, and against the law they are to have."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import truncnorm
from torch import Tensor

from agents.common.diffusion import Schedule
from agents.common.reverse_posterior import Proposal, draw_clean, truncated_normal

CPU = torch.device("cpu")
COUNT = 20_000


@given(st.floats(-9, 9), st.floats(0.01, 20))
def test_a_truncated_normal_is_scipys(low: float, width: float) -> None:
    share = np.linspace(1e-4, 0.999, 50)
    ends = (torch.tensor(end, dtype=torch.float32) for end in (low, low + width))
    drawn = truncated_normal(torch.tensor(share, dtype=torch.float32), *ends)
    # As shares grow draws rise on the left of zero and fall on the right, where it is mirrored.
    if 2 * low + width > 0:
        expected = -truncnorm(-low - width, -low).ppf(share)
    else:
        expected = truncnorm(low, low + width).ppf(share)
    assert np.abs(drawn.double().numpy() - expected).max() < 1e-3


@pytest.mark.parametrize(("low", "high"), [(20.0, 21.0), (-300.0, -299.0), (-1e-6, 1e-6)])
def test_an_interval_where_nothing_ever_falls_gives_what_lies_in_it(
    low: float, high: float
) -> None:
    drawn = truncated_normal(torch.rand(1000), torch.tensor(low), torch.tensor(high))
    assert (drawn >= low).all()
    assert (drawn <= high).all()
    if min(abs(low), abs(high)) > 12:  # at the end next to zero
        assert (drawn.abs() == min(abs(low), abs(high))).all()


def draws(t: int, proposal: Proposal, copies: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Uniform actions, noised to time t, and what is drawn for them: actions and noise."""
    schedule = Schedule(5, CPU)
    generator = torch.Generator().manual_seed(t)
    action = 2 * torch.rand(1, COUNT, 1, generator=generator) - 1
    times = torch.full((1, COUNT), t)
    noisy = schedule.add_noise(action, times, torch.randn(1, COUNT, 1, generator=generator))
    uniform = torch.rand(1, copies, COUNT, 1, generator=generator)
    drawn = draw_clean(schedule, noisy, times, uniform, proposal)
    return action, noisy, drawn.clean, drawn.noise


@pytest.mark.parametrize("t", [1, 3, 5])
def test_truncated_draws_have_the_law_of_the_action_given_the_noised_one(t: int) -> None:
    """The true action is one of them: its rank among 19 of them is uniform in 0..19."""
    action, _, clean, _ = draws(t, "truncated", copies=19)
    rank = (clean < action.unsqueeze(1)).sum(dim=1).flatten()
    counts = torch.bincount(rank, minlength=20).double()
    # 20 cells of 1000: chi-squared with 19 degrees of freedom has its 0.9999 quantile at 50.8.
    assert ((counts - COUNT / 20) ** 2 / (COUNT / 20)).sum() < 50.8


@pytest.mark.parametrize("t", [1, 3, 5])
@pytest.mark.parametrize("proposal", ["truncated", "clipped"])
def test_draws_are_in_the_box_and_belong_to_their_noise(proposal: Proposal, t: int) -> None:
    _, noisy, clean, noise = draws(t, proposal, copies=3)
    assert clean.abs().max() <= 1.0
    abar = Schedule(5, CPU).abar[t]
    moved = (noisy.unsqueeze(1) + (1 - abar).sqrt() * noise) / abar.sqrt()
    outside = (moved.abs() > 1 + 1e-5).float().mean()
    assert (outside > 0.1) == (proposal == "clipped")
    torch.testing.assert_close(clean, moved.clamp(-1, 1), rtol=0, atol=1e-5)
    if proposal == "clipped":
        assert noise.mean().abs() < 5 / (3 * COUNT) ** 0.5
        assert noise.std().item() == pytest.approx(1.0, abs=0.02)
