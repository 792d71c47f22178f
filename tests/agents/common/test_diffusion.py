"""The schedule, the forward and reverse process, and the denoiser, against closed forms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents.common.diffusion import (
    BETA_MAX,
    BETA_MIN,
    Denoiser,
    DiffusionPolicy,
    Schedule,
    ScheduleKind,
)
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


def test_the_cosine_schedule_is_a_squared_cosine_but_for_its_last_step() -> None:
    schedule = Schedule(20, CPU, "cosine")
    quarter = [math.cos((t / 20 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(21)]
    closed = torch.tensor([each / quarter[0] for each in quarter])
    torch.testing.assert_close(schedule.abar[:-1], closed[:-1], rtol=1e-5, atol=1e-7)
    # There the cosine is 0, so that nothing would be left of the action.
    assert schedule.beta[-1].item() == pytest.approx(0.999)
    assert schedule.abar[-1].item() == pytest.approx(quarter[19] / quarter[0] / 1000, rel=1e-4)


def test_the_linear_schedule_leaves_5_millionths_of_the_action() -> None:
    schedule = Schedule(20, CPU, "linear")
    assert schedule.abar[-1].item() == pytest.approx(5e-6, rel=0.1)
    steps = schedule.beta[2:] - schedule.beta[1:-1]
    torch.testing.assert_close(steps, torch.full((19,), 0.8 * 0.9989 / 19), rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", ["vp", "cosine", "linear"])
@given(st.integers(1, 20), st.data())
def test_the_clipped_action_gives_the_mean_of_the_noise_where_it_is_in_the_box(
    kind: ScheduleKind, steps: int, data: st.DataObject
) -> None:
    t = data.draw(st.integers(1, steps))
    clean, eps = (data.draw(st.floats(-1, 1)) for _ in range(2))
    by_noise, by_action = (
        Schedule(steps, CPU, kind, sampler) for sampler in ("eps_clip", "x0_clip")
    )
    abar = by_noise.abar[t].double()
    noisy = (abar.sqrt() * clean + (1 - abar).sqrt() * eps).view(1, 1, 1)
    predicted = torch.full((1, 1, 1), eps, dtype=torch.float64)
    expected = by_noise.mean(noisy, predicted, t)
    # The noiseless action is known to float32's digits of abar, divided by its root.
    error = 1e-6 / float(abar.sqrt())
    torch.testing.assert_close(by_action.mean(noisy, predicted, t), expected, rtol=0, atol=error)
    # Noise that puts it far outside gives the mean of the forward process from the bound.
    alpha, beta = float(by_noise.alpha[t]), float(by_noise.beta[t])
    before = float(by_noise.abar[t - 1])
    from_bound = before**0.5 * beta + alpha**0.5 * (1 - before) * noisy
    beyond = by_action.mean(noisy, predicted - 1e6, t)
    torch.testing.assert_close(beyond, from_bound / (1 - abar), rtol=1e-4, atol=1e-4)


@given(st.integers(2, 20), st.data())
def test_the_posterior_variance_is_that_of_two_gaussians(steps: int, data: st.DataObject) -> None:
    """a^{t-1} given a^0 is N(., 1 - abar_{t-1}), and a^t given a^{t-1} adds beta_t."""
    t = data.draw(st.integers(2, steps))
    schedule = Schedule(steps, CPU, variance="posterior")
    alpha, beta, abar = (x.double() for x in (schedule.alpha, schedule.beta, schedule.abar))
    precision = 1 / (1 - abar[t - 1]) + alpha[t] / beta[t]
    assert schedule.std(t) == pytest.approx(float(precision) ** -0.5, rel=1e-4)
    assert schedule.std(1) == 0.0


def test_with_clipped_actions_no_step_but_the_last_is_clipped() -> None:
    policy = DiffusionPolicy(make_denoiser(3), Schedule(3, CPU, sampler="x0_clip"))
    observation, noise = torch.randn(2, 64, 3), torch.randn(2, 3, 64, 2)
    action = noise[:, 0]
    for row, t in ((1, 3), (2, 2), (None, 1)):
        action = policy.schedule.mean(action, policy.denoiser(observation, action, t), t)
        if row is not None:
            action = action + policy.schedule.std(t) * noise[:, row]
            assert action.abs().max() > 1.0
    assert action.abs().max() <= 1.0
    torch.testing.assert_close(policy.sample(observation, noise), action, rtol=1e-5, atol=1e-6)


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
