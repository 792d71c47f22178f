"""The diffusion policy: noise schedule, denoiser and sampler, shared by every diffusion agent.

Time t runs from T (pure noise, a^T) down to 1; a^0 is the action. Index t here is the papers' t.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from agents.common.networks import MLP, Linear, mish, product_of_few
from agents.common.streams import SeedStreams
from agents.protocol import PLAIN, NetworkOptions

BETA_MIN, BETA_MAX = 0.1, 10.0
FREQUENCIES, TIME_CODE = 32, 128


ScheduleKind = Literal["vp", "cosine", "linear"]
Sampler = Literal["eps_clip", "x0_clip"]
Variance = Literal["beta", "posterior"]


def betas(kind: ScheduleKind, steps: int) -> Tensor:
    """Return beta_t for t = 1..T, [T] float64.

    ``vp`` is variance preserving (Xiao et al. 2022, as used for QSM). ``cosine`` has abar_t
    proportional to cos^2 of a quarter turn, shifted by 0.008, and beta_t <= 0.999 (Nichol, Dhariwal
    2021). ``linear`` is 0.8 (0.0001 .. 0.999), that of SDAC's code.
    """
    t = torch.arange(steps + 1, dtype=torch.float64)
    match kind:
        case "vp":
            slope = (BETA_MAX - BETA_MIN) * (2 * t[1:] - 1) / (2 * steps**2)
            return 1 - torch.exp(-BETA_MIN / steps - slope)
        case "cosine":
            signal = ((t / steps + 0.008) / 1.008 * (math.pi / 2)).cos().square()
            return (1 - signal[1:] / signal[:-1]).clamp(max=0.999)
        case "linear":
            return 0.8 * torch.linspace(1e-4, 0.999, steps, dtype=torch.float64)


class Schedule:
    """The noise of T diffusion steps, and the reverse process from a given denoiser's noise.

    ``alpha[t]``, ``beta[t]`` = 1 - alpha[t] and ``abar[t]`` = alpha[1] ... alpha[t] are float32
    tensors for t = 0..T; entry 0 is the noiseless action: 1, 0 and 1.

    ``sampler`` says what is clipped to the action box: every a^{t-1} (``eps_clip``), or the a^0
    that a step predicts (``x0_clip``). ``variance`` is that of a reverse step: beta_t, or that of
    the forward process given a^0, beta_t (1 - abar_{t-1}) / (1 - abar_t).
    """

    def __init__(
        self,
        steps: int,
        device: torch.device,
        kind: ScheduleKind = "vp",
        sampler: Sampler = "eps_clip",
        variance: Variance = "beta",
    ) -> None:
        beta = torch.cat([torch.zeros(1, dtype=torch.float64), betas(kind, steps)])
        alpha = 1 - beta
        abar = alpha.cumprod(0)
        self.steps = steps
        self.clips_steps = sampler == "eps_clip"
        self.alpha = alpha.to(device, torch.float32)
        self.beta = beta.to(device, torch.float32)
        self.abar = abar.to(device, torch.float32)
        # The sampler runs over whole steps, where Python numbers spare a tensor operation each.
        before = torch.cat([abar[:1], abar[:-1]])
        noise = (1 - abar).clamp(min=1e-24)
        self._noise_share = (beta / noise.sqrt()).tolist()
        self._root_alpha = alpha.sqrt().tolist()
        self._root_abar = abar.sqrt().tolist()
        self._root_noise = noise.sqrt().tolist()
        self._share_of_clean = (before.sqrt() * beta / noise).tolist()
        self._share_of_noisy = (alpha.sqrt() * (1 - before) / noise).tolist()
        spread = beta if variance == "beta" else beta * (1 - before) / noise
        self._root_variance = spread.sqrt().tolist()

    def noise_std(self, t: Tensor) -> Tensor:
        """Return the deviation sqrt(1 - abar_t) of the noise in a^t: [S, B] int64 -> [S, B, 1]."""
        out: Tensor = (1 - self.abar[t].unsqueeze(-1)).sqrt()
        return out

    def signal(self, t: Tensor) -> Tensor:
        """Return the share sqrt(abar_t) of the action in a^t: [S, B] int64 -> [S, B, 1]."""
        out: Tensor = self.abar[t].unsqueeze(-1).sqrt()
        return out

    def add_noise(self, action: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Run the forward process: a^t = sqrt(abar_t) a + sqrt(1 - abar_t) eps, not clipped.

        ``action`` and ``noise`` are [S, B, act]; ``t`` is [S, B] int64 in 1..T.
        """
        noisy: Tensor = self.signal(t) * action + self.noise_std(t) * noise
        return noisy

    def mean(self, action: Tensor, noise: Tensor, t: int) -> Tensor:
        """Return the mean of the reverse step from a^t, given its predicted noise: [S, B, act].

        With ``x0_clip`` it is that of the forward process given a^t and the clipped a^0. Without
        the clip both are equal.
        """
        if self.clips_steps:
            mean: Tensor = (action - self._noise_share[t] * noise) / self._root_alpha[t]
            return mean
        clean = self.predicted_clean(action, noise, t)
        mean = self._share_of_clean[t] * clean + self._share_of_noisy[t] * action
        return mean

    def predicted_clean(self, action: Tensor, noise: Tensor, t: int) -> Tensor:
        """Return the action a^0 that a^t and its predicted noise give, within the box."""
        clean: Tensor = (action - self._root_noise[t] * noise) / self._root_abar[t]
        return clean.clamp(-1.0, 1.0)

    def std(self, t: int) -> float:
        """Return the deviation of the reverse step from t to t - 1, 0 at t = 1."""
        return float(self._root_variance[t]) if t > 1 else 0.0


@dataclass(frozen=True, eq=False)  # torch 2.11 asks for its hash where it compiles
class DenoiserAtObservation:
    """A denoiser at fixed observations: what all diffusion steps have in common is computed."""

    denoiser: "Denoiser"
    weight: Tensor
    """The noisy action's rows of the first layer, [S, act, H]."""
    observation_part: Tensor
    """What the observation adds to the first layer's output, bias included: [S, B, H]."""
    time_part: Tensor
    """What each of the T time codes adds to it, [S, T, H]."""

    def __call__(self, action: Tensor, t: int | Tensor) -> Tensor:
        """Predict the noise eps_theta(s, a^t, t) in ``action`` [S, B, act] at ``t``.

        ``t`` is one diffusion time 1..T for the whole batch, or [S, B] int64.
        """
        if isinstance(t, int):
            time = self.time_part[:, t - 1 : t]
        else:
            # As a product: the gradient of an index adds up in no fixed order on a GPU.
            steps = torch.arange(1, 1 + self.time_part.shape[1], device=t.device)
            chosen = (t.unsqueeze(-1) == steps).to(self.time_part.dtype)
            time = torch.bmm(chosen, self.time_part)
        hidden = product_of_few(action, self.weight) + self.observation_part + time
        out: Tensor = self.denoiser.rest(mish(hidden))
        return out


class Denoiser(nn.Module):
    """The noise-prediction network eps_theta(s, a^t, t): an MLP of [a, s, time code] with mish.

    The time code is an MLP of learnable Fourier features of the index t - 1. The first layer is
    linear in its three inputs, so its products with the observation and with the T time codes are
    made once for all diffusion steps: ``at_observation`` does that.
    """

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        hidden_sizes: Sequence[int],
        steps: int,
        streams: SeedStreams,
        options: NetworkOptions = PLAIN,
    ) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(0.2 * streams.normal(1, FREQUENCIES))
        self.time_mlp = MLP(
            (2 * FREQUENCIES, TIME_CODE, TIME_CODE), streams, options, activation=mish
        )
        self.inputs = [action_size, observation_size, TIME_CODE]
        # One layer of all three inputs, for its initial weights, too.
        self.first = Linear(sum(self.inputs), hidden_sizes[0], streams, options)
        rest = *hidden_sizes, action_size
        self.rest = MLP(rest, streams, options, activation=mish, of_hidden=True)
        self.register_buffer(
            "index", torch.arange(steps, device=streams.device).float().view(1, -1, 1)
        )

    def time_codes(self) -> Tensor:
        """Return the codes of t = 1..T, [S, T, 128]."""
        index: Tensor = self.get_buffer("index")
        phase = 2 * math.pi * index * self.frequencies
        out: Tensor = self.time_mlp(torch.cat([phase.cos(), phase.sin()], dim=-1))
        return out

    def forward(self, observation: Tensor, action: Tensor, t: int | Tensor) -> Tensor:
        """Predict the noise in ``action`` [S, B, act] at ``observation`` [S, B, obs].

        ``t`` is one diffusion time 1..T for the whole batch, or [S, B] int64.
        """
        out: Tensor = self.at_observation(observation)(action, t)
        return out

    def at_observation(self, observation: Tensor, copies: int = 1) -> DenoiserAtObservation:
        """Fix the observations [S, B, obs]; the result predicts the noise in actions [S, B, act].

        With ``copies`` K it does so for K actions of each observation, [S, K B, act]: action k of
        observation b is in row k B + b.
        """
        for_action, for_observation, for_time = torch.split(self.first.weight, self.inputs, dim=1)
        observation_part = torch.bmm(observation, for_observation) + self.first.bias
        return DenoiserAtObservation(
            self,
            weight=for_action,
            observation_part=observation_part.repeat(1, copies, 1)
            if copies > 1
            else observation_part,
            time_part=torch.bmm(self.time_codes(), for_time),
        )


Draw = Callable[[Tensor, float, Tensor], Tensor]
"""A function that draws from a Gaussian: of its mean [S, B, act], standard deviation and noise."""


def reparameterized(mean: Tensor, std: float, noise: Tensor) -> Tensor:
    """Draw mean + std * noise, so that gradients run through the sample."""
    return mean + std * noise


@dataclass(frozen=True, eq=False)  # as above
class DiffusionPolicy:
    """A policy whose actions come from noise by running the reverse process of a denoiser."""

    denoiser: Denoiser
    schedule: Schedule

    def sample(self, observation: Tensor, noise: Tensor, draw: Draw = reparameterized) -> Tensor:
        """Sample K actions for each observation: [S, B, obs] -> [S, K B, act], in [-1, 1].

        ``noise`` [S, T, K B, act] is all the randomness: row 0 is a^T, the rest the z of the steps
        t = T..2. It decides K, too: action k of observation b is in row k B + b. What is clipped to
        the action box is the schedule's to say; the last a^0 always is. Gradients run through every
        step that ``draw`` lets them through.
        """
        copies = noise.shape[2] // observation.shape[1]
        predicted_noise = self.denoiser.at_observation(observation, copies)
        action = noise[:, 0]
        for row, t in enumerate(range(self.schedule.steps, 0, -1), start=1):
            action = self.schedule.mean(action, predicted_noise(action, t), t)
            if t > 1:
                action = draw(action, self.schedule.std(t), noise[:, row])
            if self.schedule.clips_steps or t == 1:
                action = action.clamp(-1.0, 1.0)
        return action
