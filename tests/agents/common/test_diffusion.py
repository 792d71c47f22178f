"""The schedule, the forward and reverse process, and the denoiser, against closed forms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents.common.diffusion import BETA_MAX, BETA_MIN, Denoiser, DiffusionPolicy, Schedule
from agents.common.streams import SeedStreams

CPU = torch.device("cpu")


@given(st.integers(1, 50))
def test_abar_is_the_integral_of_beta(steps: int) -> None:
    # alpha_t integrates b(s) = b_min + (b_max - b_min) s over [(t-1)/T, t/T], so that abar_t is
    # exp(-(b_min u + (b_max - b_min) u^2 / 2)) at u = t / T, whatever T is.
    schedule = Schedule(steps, CPU)
    u = torch.arange(steps + 1, dtype=torch.float64) / steps
    closed = torch.exp(-(BETA_MIN * u + (BETA_MAX - BETA_MIN) * u**2 / 2))
    torch.testing.assert_close(schedule.abar.double(), closed, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(schedule.alpha + schedule.beta, torch.ones(steps + 1))


def test_the_noise_at_the_end_is_nearly_all_there_is() -> None:
    assert Schedule(5, CPU).abar[5].item() == pytest.approx(math.exp(-5.05), rel=1e-5)


def test_adding_noise_keeps_the_variance_of_unit_variance_actions() -> None:
    generator = torch.Generator().manual_seed(0)
    schedule = Schedule(5, CPU)
    n = 200_000
    action = torch.randn(1, n, 1, generator=generator)
    noise = torch.randn(1, n, 1, generator=generator)
    for t in range(1, 6):
        noisy = schedule.add_noise(action, torch.full((1, n), t), noise)
        # The standard error of a variance of n standard normals is sqrt(2 / n) = 0.003.
        assert noisy.var().item() == pytest.approx(1.0, abs=5 * math.sqrt(2 / n))


@given(st.integers(1, 20), st.data())
def test_reverse_mean_is_the_posterior_mean(steps: int, data: st.DataObject) -> None:
    # With the true noise, the step's mean is E[a^{t-1} | a^t, a^0] of the forward process.
    t = data.draw(st.integers(1, steps))
    a0, eps = (data.draw(st.floats(-1, 1)) for _ in range(2))
    schedule = Schedule(steps, CPU)
    alpha, beta, abar = (x.double() for x in (schedule.alpha, schedule.beta, schedule.abar))
    at = abar[t].sqrt() * a0 + (1 - abar[t]).sqrt() * eps
    posterior = (abar[t - 1].sqrt() * beta[t] * a0 + alpha[t].sqrt() * (1 - abar[t - 1]) * at) / (
        1 - abar[t]
    )
    mean = schedule.mean(at.float().view(1, 1, 1), torch.full((1, 1, 1), eps), t)
    assert mean.item() == pytest.approx(posterior.item(), abs=1e-4)


def test_one_step_recovers_the_action_from_its_true_noise() -> None:
    schedule = Schedule(1, CPU)
    action, noise = torch.rand(1, 8, 2) * 2 - 1, torch.randn(1, 8, 2)
    noisy = schedule.add_noise(action, torch.ones(1, 8, dtype=torch.int64), noise)
    torch.testing.assert_close(schedule.mean(noisy, noise, 1), action, rtol=0, atol=1e-4)
    assert schedule.std(1) == 0.0


def make_denoiser(steps: int, seeds: tuple[int, ...] = (0, 1)) -> Denoiser:
    return Denoiser(3, 2, (16, 16), steps, SeedStreams(seeds, "test", CPU))


def test_indexed_times_agree_with_one_time_for_all() -> None:
    denoiser = make_denoiser(4)
    observation, action = torch.randn(2, 8, 3), torch.randn(2, 8, 2)
    denoise = denoiser.at_observation(observation)
    for t in range(1, 5):
        torch.testing.assert_close(
            denoise(action, t), denoise(action, torch.full((2, 8), t)), rtol=1e-5, atol=1e-6
        )


def test_split_first_layer_is_one_layer_of_the_concatenated_input() -> None:
    denoiser = make_denoiser(4)
    observation, action = torch.randn(2, 8, 3), torch.randn(2, 8, 2)
    t = 3
    code = denoiser.time_codes()[:, t - 1 : t].expand(-1, 8, -1)
    hidden = denoiser.first(torch.cat([action, observation, code], dim=-1))
    whole = denoiser.rest(torch.nn.functional.mish(hidden))
    torch.testing.assert_close(denoiser(observation, action, t), whole, rtol=1e-4, atol=1e-5)


def test_copies_repeat_the_batch() -> None:
    denoiser = make_denoiser(4)
    observation, action = torch.randn(2, 3, 3), torch.randn(2, 6, 2)
    torch.testing.assert_close(
        denoiser.at_observation(observation, copies=2)(action, 1),
        denoiser(observation.repeat(1, 2, 1), action, 1),
    )


@given(st.integers(1, 6))
def test_samples_stay_in_the_box_and_repeat_from_their_noise(steps: int) -> None:
    denoiser = make_denoiser(steps)
    policy = DiffusionPolicy(denoiser, Schedule(steps, CPU))
    observation = torch.randn(2, 8, 3)
    noise = 5 * torch.randn(2, steps, 8, 2)
    action = policy.sample(observation, noise)
    assert action.shape == (2, 8, 2)
    assert action.abs().max() <= 1.0
    assert torch.equal(action, policy.sample(observation, noise))
