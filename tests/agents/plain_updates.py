"""Whole updates of every trainer as the equations say them: one seed, float64, no tricks.

Written from the papers' equations and apart from ``agents``: a network is a list of (W, b), a
minibatch is stepped through its diffusion one time at a time, Adam is the textbook's. A learner's
parameters are read once, at the start, out of the agent that it is to be compared with.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from scipy.special import ndtri
from scipy.stats import truncnorm
from torch import Tensor
from torch.nn import functional

from agents.protocol import Batch
from tests.agents.fixed_critics import plain_mean, plain_schedule

Layers = list[tuple[Tensor, Tensor]]


def own(parameter: Tensor, member: int) -> Tensor:
    return parameter[member].detach().cpu().double().clone().requires_grad_()


def layers_of(mlp: Any, member: int) -> Layers:
    return [(own(x.weight, member), own(x.bias, member)) for x in mlp.layers]


def run(layers: Layers, x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    for weight, bias in layers[:-1]:
        x = activation(x @ weight + bias)
    return x @ layers[-1][0] + layers[-1][1]


def flat(network: Any) -> list[Tensor]:
    """Return a network's parameters, in torch's order."""
    if isinstance(network, Tensor):
        return [network]
    return [tensor for part in network for tensor in flat(part)]


def truncated(share: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return quantiles of the standard normal law in [low, high]; from above, if more is right."""
    below = truncnorm.ppf(share.numpy(), low.numpy(), high.numpy())
    above = truncnorm.isf(share.numpy(), low.numpy(), high.numpy())
    return torch.where(low + high > 0, torch.from_numpy(above), torch.from_numpy(below))


class PlainAdam:
    """Kingma and Ba's algorithm 1; the step size may fall to 0 along a half cosine."""

    def __init__(self, network: Any, step_size: float, decay_updates: int = 0) -> None:
        self.parameters = flat(network)
        self.step_size, self.decay_updates, self.t = step_size, decay_updates, 0
        self.m = [torch.zeros_like(p) for p in self.parameters]
        self.v = [torch.zeros_like(p) for p in self.parameters]

    def step(self, loss: Tensor) -> None:
        rate = self.step_size
        if self.decay_updates:
            rate *= 0.5 * (1 + math.cos(math.pi * min(1.0, self.t / self.decay_updates)))
        self.t += 1
        gradients = torch.autograd.grad(loss, self.parameters)
        with torch.no_grad():
            for p, g, m, v in zip(self.parameters, gradients, self.m, self.v, strict=True):
                m.copy_(0.9 * m + 0.1 * g)
                v.copy_(0.999 * v + 0.001 * g**2)
                corrected = m / (1 - 0.9**self.t), v / (1 - 0.999**self.t)
                p -= rate * corrected[0] / (corrected[1].sqrt() + 1e-8)


class PlainDenoiser:
    """eps_theta(s, a^t, t): mish layers of [a, s, time code]."""

    def __init__(self, denoiser: Any, seed: int) -> None:
        self.frequencies = own(denoiser.frequencies, seed)
        self.time = layers_of(denoiser.time_mlp, seed)
        first = own(denoiser.first.weight, seed), own(denoiser.first.bias, seed)
        self.layers = [first, *layers_of(denoiser.rest, seed)]

    def __iter__(self) -> Iterator[Any]:
        return iter((self.frequencies, self.time, self.layers))

    def __call__(self, state: Tensor, action: Tensor, t: int) -> Tensor:
        phase = 2 * math.pi * (t - 1) * self.frequencies
        code = run(self.time, torch.cat([phase.cos(), phase.sin()], dim=-1), functional.mish)
        x = torch.cat([action, state, code.expand(len(action), -1)], dim=-1)
        return run(self.layers, x, functional.mish)


class PlainLearner:
    """What all share: twin critics, their targets, and the regression to y."""

    def __init__(self, agent: Any, seed: int, seeds: int) -> None:
        self.config = agent.config
        members = (seed, seeds + seed)
        self.critics = [layers_of(agent.critic.mlp, m) for m in members]
        self.target_critics = [layers_of(agent.target_critic.mlp, m) for m in members]
        self.critic_adam = PlainAdam(self.critics, self.config.learning_rate)

    def networks(self) -> dict[str, Any]:
        return {"critic": self.critics, "target_critic": self.target_critics}

    def q(self, critics: Sequence[Layers], state: Tensor, action: Tensor) -> list[Tensor]:
        x = torch.cat([state, action], dim=-1)
        return [run(critic, x, torch.relu).squeeze(-1) for critic in critics]

    def mean_q(self, state: Tensor, action: Tensor) -> Tensor:
        one, two = self.q(self.critics, state, action)
        return (one + two) / 2

    def learn_critics(self, batch: Batch, next_action: Tensor, bonus: Tensor | float = 0.0) -> None:
        one, two = self.q(self.target_critics, batch.next_observation, next_action)
        y = (batch.reward + batch.discount * (torch.minimum(one, two) + bonus)).detach()
        values = self.q(self.critics, batch.observation, batch.action)
        self.critic_adam.step(torch.stack([((q - y) ** 2).mean() for q in values]).sum())

    def follow(self, target: Any, online: Any) -> None:
        with torch.no_grad():
            for slow, fast in zip(flat(target), flat(online), strict=True):
                slow.copy_((1 - self.config.polyak) * slow + self.config.polyak * fast)


class PlainDiffusion(PlainLearner):
    """What the diffusion trainers share: the sampler, best actions, the order of an update."""

    def __init__(self, agent: Any, seed: int, seeds: int) -> None:
        super().__init__(agent, seed, seeds)
        c = self.config
        self.T = c.diffusion_steps
        self.denoiser = PlainDenoiser(agent.denoiser, seed)
        rate = c.actor_learning_rate or c.learning_rate
        self.actor_adam = PlainAdam(self.denoiser, rate, c.actor_decay_updates)

        self.average = PlainDenoiser(agent.target_denoiser, seed)
        self.alpha, self.abar = plain_schedule(self.T, c.schedule)

    def networks(self) -> dict[str, Any]:
        mine = {**super().networks(), "denoiser": self.denoiser}
        averages = self.config.ema_target or self.config.ema_acts
        return mine | {"target_denoiser": self.average} if averages else mine

    def chain(self, denoiser: PlainDenoiser, state: Tensor, noise: Tensor) -> Tensor:
        c, action = self.config, noise[0]
        for t in range(self.T, 0, -1):
            alpha, abar, before = self.alpha[t], self.abar[t], self.abar[t - 1]
            predicted = denoiser(state, action, t)
            if c.sampler == "x0_clip":
                clean = ((action - math.sqrt(1 - abar) * predicted) / math.sqrt(abar)).clamp(-1, 1)
                action = math.sqrt(before) * (1 - alpha) * clean + (
                    math.sqrt(alpha) * (1 - before) * action
                )
                action = action / (1 - abar)
            else:
                action = action - (1 - alpha) / math.sqrt(1 - abar) * predicted
                action = action / math.sqrt(alpha)
            if t > 1:
                shrunk = (1 - before) / (1 - abar) if c.variance == "posterior" else 1.0
                action = action + math.sqrt((1 - alpha) * shrunk) * noise[self.T + 1 - t]
            if c.sampler == "eps_clip":
                action = action.clamp(-1, 1)
        return action

    def candidates(self, denoiser: PlainDenoiser, state: Tensor, noise: Tensor) -> list[Tensor]:
        """Sample several actions for each state; those of candidate k are together."""
        return [self.chain(denoiser, state, z) for z in noise.split(len(state), dim=1)]

    def best(self, critics: Sequence[Layers], state: Tensor, candidates: list[Tensor]) -> Tensor:
        """Choose for each state the candidate that the less favorable critic likes best."""
        values = [torch.minimum(*self.q(critics, state, action)) for action in candidates]
        chosen = [
            max(range(len(values)), key=lambda k: values[k][i].item()) for i in range(len(state))
        ]
        return torch.stack([candidates[k][i] for i, k in enumerate(chosen)])

    def noised(self, action: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        abar = torch.tensor(self.abar, dtype=torch.float64)[t].unsqueeze(-1)
        return abar.sqrt() * action + (1 - abar).sqrt() * noise

    def predicted(self, state: Tensor, action: Tensor, t: Tensor) -> Tensor:
        rows = [self.denoiser(state[[i]], action[[i]], int(t[i])) for i in range(len(t))]
        return torch.cat(rows)

    def update(self, batch: Batch, noise: Any) -> None:
        state = batch.next_observation
        candidates = self.candidates(self.behavior(), state, noise.critic.chain)
        next_action = self.best(self.choosing_critics(), state, candidates)
        next_action = next_action + self.config.exploration_noise * noise.critic.exploration
        next_action = next_action.clamp(-1, 1)
        self.learn_critics(batch, next_action, self.bonus(state, next_action, noise.critic))
        self.follow(self.target_critics, self.critics)
        self.actor_adam.step(self.actor_loss(batch, noise.actor))
        self.follow(self.average, self.denoiser)

    def behavior(self) -> PlainDenoiser:
        return self.average if self.config.ema_target else self.denoiser

    def choosing_critics(self) -> list[Layers]:
        return self.target_critics

    def bonus(self, state: Tensor, action: Tensor, noise: Any) -> Tensor | float:
        return 0.0

    def actor_loss(self, batch: Batch, noise: Any) -> Tensor:
        raise NotImplementedError


class PlainQSM(PlainDiffusion):
    def actor_loss(self, batch: Batch, noise: Any) -> Tensor:
        c = self.config
        at = self.noised(batch.action, noise.t, noise.noise).requires_grad_()
        one, two = self.q(self.critics, batch.observation, at)
        value = (one + two) / 2 if c.gradient_of == "mean" else torch.minimum(one, two)
        (gradient,) = torch.autograd.grad(value.sum(), at)
        abar = torch.tensor(self.abar, dtype=torch.float64)[noise.t]
        root = (1 - abar).sqrt().unsqueeze(-1)
        score = {
            "alpha": c.alpha * gradient,
            "noised": c.alpha * root * gradient,
            "normalized": root * gradient / (c.temperature * gradient.abs().mean()),
        }[c.target_scale]
        predicted = self.predicted(batch.observation, at.detach(), noise.t)
        loss: Tensor = ((predicted + score) ** 2).mean()
        return loss


class PlainDiffusionQL(PlainDiffusion):
    def actor_loss(self, batch: Batch, noise: Any) -> Tensor:
        c = self.config
        action = self.chain(self.denoiser, batch.observation, noise.chain)
        critics = self.critics if c.climbed_critics == "online" else self.target_critics
        one, two = self.q(critics, batch.observation, action)
        if c.climbed == "min":
            value = torch.minimum(one, two)
        else:
            picked, other = (one, two) if noise.pick == 0 else (two, one)
            value = picked / other.detach().abs().mean()
        loss = -value.mean()
        if c.cloning_weight:
            at = self.noised(batch.action, noise.t, noise.cloning)
            error = self.predicted(batch.observation, at, noise.t) - noise.cloning
            loss = loss + c.cloning_weight * (error**2).mean()
        return loss


class PlainDiffusionPG(PlainDiffusion):
    def actor_loss(self, batch: Batch, noise: Any) -> Tensor:
        c, size = self.config, len(batch.action)
        alpha, _ = plain_schedule(self.T)
        values, densities = [], []
        for k in range(c.chains):
            z = noise[:, k * size : (k + 1) * size]
            action, density = z[0], torch.zeros(size, dtype=torch.float64)
            for t in range(self.T, 0, -1):
                mean = self.denoiser(batch.observation, action, t)
                mean = plain_mean(action, mean, t, self.T)
                std = math.sqrt(1 - alpha[t])
                if t == 1:
                    mean, std = mean.clamp(-1, 1), c.exploration_noise
                drawn = (mean + std * z[self.T + 1 - t]).detach()
                density = density - (((drawn - mean) / std) ** 2).sum(dim=-1) / 2
                action = drawn.clamp(-1, 1)
            values.append(torch.minimum(*self.q(self.critics, batch.observation, action)).detach())
            densities.append(density)
        advantages = []
        for k, value in enumerate(values):
            others = [other for j, other in enumerate(values) if j != k]
            alone = c.baseline == "none"
            advantages.append(value if alone else value - sum(others) / len(others))
        scale = torch.cat(advantages).std() if c.scale_advantage else 1.0
        pairs = zip(advantages, densities, strict=True)
        return -torch.cat([a / scale * d for a, d in pairs]).mean()


class PlainSDAC(PlainDiffusion):
    def weighing_critics(self) -> list[Layers]:
        return self.critics if self.config.weight_critics == "online" else self.target_critics

    choosing_critics = weighing_critics

    def bonus(self, state: Tensor, action: Tensor, noise: Any) -> Tensor | float:
        c, size = self.config, action.shape[1]
        if not c.entropy_draws:
            return 0.0
        total = torch.zeros(len(state), dtype=torch.float64)
        for t in range(1, self.T + 1):
            abar, before = self.abar[t], self.abar[t - 1]
            draws = noise.density[t - 1].split(len(state))
            error = torch.zeros(len(state), dtype=torch.float64)
            for e in draws:
                noisy = math.sqrt(abar) * action + math.sqrt(1 - abar) * e
                predicted = self.behavior()(state, noisy, t)
                clean = ((noisy - math.sqrt(1 - abar) * predicted) / math.sqrt(abar)).clamp(-1, 1)
                predicted = (noisy - math.sqrt(abar) * clean) / math.sqrt(1 - abar)
                error = error + ((e - predicted) ** 2).sum(dim=1) / len(draws)
            total = total + (before - abar) / (2 * abar * (1 - abar)) * (size * abar - error)
        bonus: Tensor = -c.temperature * (total - size / 2 * math.log(2 * math.pi * math.e))
        return bonus

    def actor_loss(self, batch: Batch, noise: Any) -> Tensor:
        c, state, action = self.config, batch.observation, batch.action
        if c.noised_actions == "policy":
            own = self.candidates(self.denoiser, state, noise.chain)
            action = self.best(self.weighing_critics(), state, own).detach()
        noisy = self.noised(action, noise.t, noise.noise)
        abar = torch.tensor(self.abar, dtype=torch.float64)[noise.t].unsqueeze(-1)
        signal, deviation = abar.sqrt(), (1 - abar).sqrt()
        targets, values = [], []
        for uniform in noise.uniform:
            e = torch.from_numpy(ndtri(uniform.numpy()))
            if c.proposal == "truncated":
                low, high = ((bound * signal - noisy) / deviation for bound in (-1, 1))
                e = truncated(uniform, low, high)
            place = noisy.detach().requires_grad_()
            clean = (place + deviation * e) / signal
            if c.proposal == "clipped":
                clean = clean.clamp(-1, 1)
            value = torch.minimum(*self.q(self.weighing_critics(), state, clean)) / c.temperature
            (gradient,) = torch.autograd.grad(value.sum(), place)
            values.append(value.detach())
            targets.append((-e, -deviation * gradient))
        shares = torch.stack(values).softmax(dim=0).unsqueeze(-1)
        x, y = (torch.stack(of) for of in zip(*targets, strict=True))
        if c.estimator == "mixture":
            mean, difference = (shares * x).sum(dim=0), (shares * (x - y)).sum(dim=0)
            spread = shares**2 * (x - y - difference)
            variance = (spread * (x - y - difference)).sum(dim=0).clamp(min=1e-12)
            eta = ((spread * (x - mean)).sum(dim=0) / variance).clamp(0, 1)
            target = (1 - eta) * mean + eta * (shares * y).sum(dim=0)
        else:
            target = (shares * (x if c.estimator == "noise" else y)).sum(dim=0)
        predicted = self.predicted(state, noisy, noise.t)
        loss: Tensor = ((predicted - target) ** 2).mean()
        return loss


class PlainQVPO(PlainDiffusion):
    def actor_loss(self, batch: Batch, noise: Any) -> Tensor:
        c, state, size = self.config, batch.observation, len(batch.action)
        own = [a.detach() for a in self.candidates(self.denoiser, state, noise.chain)]
        values = torch.stack([torch.minimum(*self.q(self.critics, state, a)) for a in own]).detach()
        weight = (values.max(dim=0).values - values.mean(dim=0)).clamp(min=0)
        omega = c.uniform_weight
        if c.uniform_decay_updates:
            left = 1 - self.actor_adam.t / c.uniform_decay_updates
            omega = max(omega * left, c.uniform_weight_end)
        total = torch.zeros((), dtype=torch.float64)
        for k in range(1 + c.uniform_samples):
            rows = slice(k * size, (k + 1) * size)
            if k == 0:
                action, scale = self.best(self.critics, state, own), weight
            else:
                action, scale = noise.uniform[(k - 1) * size : k * size], omega * weight
            t, e = noise.t[rows], noise.noise[rows]
            error = self.predicted(state, self.noised(action, t, e), t) - e
            total = total + (scale * (error**2).mean(dim=1)).sum()
        loss: Tensor = total / (size * (1 + c.uniform_samples))
        return loss


class PlainDPMD(PlainDiffusion):
    def __init__(self, agent: Any, seed: int, seeds: int) -> None:
        super().__init__(agent, seed, seeds)
        self.copy = PlainDenoiser(agent.copied_denoiser, seed)
        self.log_temperature = own(agent.temperature["log"], seed)
        self.temperature_adam = PlainAdam(self.log_temperature, self.config.learning_rate)

    def networks(self) -> dict[str, Any]:
        mine = {"copied_denoiser": self.copy, "temperature": self.log_temperature}
        return {**super().networks(), **mine}

    def actor_loss(self, batch: Batch, noise: Any) -> Tensor:
        c, state, size = self.config, batch.observation, len(batch.action)
        own = [a.detach() for a in self.candidates(self.copy, state, noise.chain)]
        shifts = noise.widening.split(size)
        own = [a + c.sample_noise * z for a, z in zip(own, shifts, strict=True)]
        values = torch.stack([self.mean_q(state, a) for a in own]).detach()
        shares = (values / self.log_temperature.detach().exp()).softmax(dim=0)
        self.excess = math.log(c.samples) + (shares * shares.log()).sum(dim=0).mean() - c.target_kl
        total = torch.zeros((), dtype=torch.float64)
        for k, (action, share) in enumerate(zip(own, shares, strict=True)):
            rows = slice(k * size, (k + 1) * size)
            t, e = noise.t[rows], noise.noise[rows]
            error = (self.predicted(state, self.noised(action, t, e), t) - e) ** 2
            if c.error_limit:
                error = error.clamp(max=c.error_limit)
            total = total + (share * error.mean(dim=1)).mean()
        return total

    def update(self, batch: Batch, noise: Any) -> None:
        super().update(batch, noise)
        self.temperature_adam.step(-(self.log_temperature.exp() * self.excess).sum())
        if self.actor_adam.t % self.config.copy_updates == 0:
            with torch.no_grad():
                for old, new in zip(flat(self.copy), flat(self.denoiser), strict=True):
                    old.copy_(new)


class PlainLangevin(PlainLearner):
    def coded(self, state: Tensor, level: Sequence[int]) -> Tensor:
        count = self.config.noise_levels
        if count == 1:
            return state
        return torch.cat([state, torch.eye(count, dtype=torch.float64)[level]], dim=1)

    def sample(self, state: Tensor, noise: Any) -> Tensor:
        c = self.config
        action, at = noise.start, 0
        for level in range(c.noise_levels):
            left = (c.noise_levels - 1 - level) / max(c.noise_levels - 1, 1)
            eta = c.step_size * (c.largest_noise / c.smallest_noise) ** (2 * left)
            for _ in range(c.langevin_steps):
                action = action.detach().requires_grad_()
                one, two = self.q(self.critics, self.coded(state, [level] * len(state)), action)
                value = (one + two) / 2 if c.gradient_of == "mean" else torch.minimum(one, two)
                (gradient,) = torch.autograd.grad(value.sum(), action)
                if c.normalize_gradient:
                    gradient = functional.normalize(gradient, dim=1)
                action = (
                    action + eta * gradient + math.sqrt(2 * eta * c.temperature) * (noise.steps[at])
                )
                action, at = action.clamp(-1, 1), at + 1
        sample: Tensor = action.detach()
        return sample

    def update(self, batch: Batch, noise: Any) -> None:
        c, last = self.config, [self.config.noise_levels - 1] * len(batch.action)
        state, next_state = (
            self.coded(s, last) for s in (batch.observation, batch.next_observation)
        )
        wanted = self.mean_q(state, batch.action).detach()
        next_action = self.sample(batch.next_observation, noise.next_action)
        next_state = self.coded(batch.next_observation, last)
        self.learn_critics(
            batch._replace(observation=state, next_observation=next_state), next_action
        )
        if c.noise_levels > 1:
            left = 1 - noise.level / (c.noise_levels - 1)
            std = c.smallest_noise * (c.largest_noise / c.smallest_noise) ** left
            moved = batch.action + std.unsqueeze(1) * noise.perturbation
            values = self.q(self.critics, self.coded(batch.observation, noise.level), moved)
            losses = [((q - wanted) ** 2).mean() for q in values]
            self.critic_adam.step(torch.stack(losses).sum())
        self.follow(self.target_critics, self.critics)


class PlainDIPO(PlainDiffusion):
    def actor_loss(self, batch: Batch, noise: Any) -> Tensor:
        c, state = self.config, batch.observation
        action = (batch.action if noise.start is None else noise.start).clone().requires_grad_()
        adam = torch.optim.Adam([action], lr=c.action_step_size, eps=1e-5)
        for _ in range(c.action_steps):
            value = torch.minimum(*self.q(self.critics, state, action))
            (action.grad,) = torch.autograd.grad(-value.sum(), action)
            if c.action_norm:
                torch.nn.utils.clip_grad_norm_([action], c.action_norm * action.shape[1])
            adam.step()
            action.data.clamp_(-1, 1)
        noisy = self.noised(action.detach(), noise.t, noise.noise)
        error = self.predicted(state, noisy, noise.t) - noise.noise
        loss: Tensor = (error**2).mean()
        return loss


class PlainDACER(PlainDiffusion):
    def __init__(self, agent: Any, seed: int, seeds: int) -> None:
        super().__init__(agent, seed, seeds)
        self.spread = [own(agent.critic_spread["mean"], m).detach() for m in (seed, seeds + seed)]
        self.log_alpha = own(agent.alpha["log"], seed).detach()

    def networks(self) -> dict[str, Any]:
        learned = super().networks()
        return {**learned, "critic_spread": self.spread, "alpha": self.log_alpha}

    def laws(self, critics: Sequence[Layers], state: Tensor, action: Tensor) -> list[Any]:
        x, unit = torch.cat([state, action], dim=-1), self.config.reward_unit
        outputs = [run(critic, x, torch.relu) for critic in critics]
        return [(unit * out[:, 0], unit * torch.log1p(out[:, 1].exp())) for out in outputs]

    def q(self, critics: Sequence[Layers], state: Tensor, action: Tensor) -> list[Tensor]:
        return [mean for mean, _ in self.laws(critics, state, action)]

    def noisy(self, action: Tensor, noise: Tensor) -> Tensor:
        scale: Tensor = self.config.exploration_noise * self.log_alpha.exp()
        return (action + scale * noise).clamp(-1, 1)

    def update(self, batch: Batch, noise: Any, moves_actor: bool = True) -> None:
        state, c = batch.next_observation, self.config
        candidates = self.candidates(self.behavior(), state, noise.critic.chain)
        best = self.best(self.target_critics, state, candidates)
        action = self.noisy(best, noise.critic.exploration)
        (one, its), (two, other) = self.laws(self.target_critics, state, action)
        z = noise.critic.value.clamp(-3, 3)
        value = torch.minimum(one, two)
        drawn = torch.where(one < two, one + its * z, two + other * z)
        y, y_drawn = (
            (batch.reward + batch.discount * future).detach() for future in (value, drawn)
        )
        losses = []
        laws = self.laws(self.critics, batch.observation, batch.action)
        for i, (mean, deviation) in enumerate(laws):
            now, before = deviation.detach().mean(), self.spread[i]
            s = before + c.polyak * (now - before) if before > 0 else now.view(1)
            before.copy_(s)
            m, sd = mean.detach(), deviation.detach()
            d = torch.maximum(torch.minimum(y_drawn - m, 3 * s), -3 * s)
            square, cube = 0.1 * c.reward_unit**2, 0.1 * c.reward_unit**3
            for_mean = mean * (y - m) / (sd**2 + square)
            for_deviation = deviation * (d**2 - sd**2) / (sd**3 + cube)
            losses.append(-(s**2 + square) * (for_mean + for_deviation).mean())
        self.critic_adam.step(torch.stack(losses).sum())
        if moves_actor:
            self.follow(self.target_critics, self.critics)
            self.actor_adam.step(self.actor_loss(batch, noise.actor))
            self.follow(self.average, self.denoiser)

    def actor_loss(self, batch: Batch, noise: Any) -> Tensor:
        action = self.noisy(
            self.chain(self.denoiser, batch.observation, noise.chain), noise.exploration
        )
        return -torch.minimum(*self.q(self.critics, batch.observation, action)).mean()


class PlainSAC(PlainLearner):
    def __init__(self, agent: Any, seed: int, seeds: int) -> None:
        super().__init__(agent, seed, seeds)
        self.actor = layers_of(agent.actor, seed)
        self.log_temperature = own(agent.temperature["log"], seed)
        rate = self.config.learning_rate
        self.actor_adam = PlainAdam(self.actor, self.config.actor_learning_rate or rate)
        self.temperature_adam = PlainAdam(self.log_temperature, rate)

    def networks(self) -> dict[str, Any]:
        return {**super().networks(), "actor": self.actor, "temperature": self.log_temperature}

    def policy(self, state: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        c, size = self.config, noise.shape[-1]
        out = run(self.actor, state, torch.relu)
        mean, log_std = out[:, :size], out[:, size:].clamp(c.log_std_min, c.log_std_max)
        u = mean + log_std.exp() * noise
        density = torch.distributions.Normal(mean, log_std.exp()).log_prob(u)
        # log(1 - tanh(u)^2) = -2 log cosh(u)
        log_cosh = u.abs() + torch.log1p((-2 * u.abs()).exp()) - math.log(2)
        return u.tanh(), (density + 2 * log_cosh).sum(dim=-1)

    def update(self, batch: Batch, noise: Any) -> None:
        c = self.config
        tau = self.log_temperature.exp().detach()
        next_action, log_density = self.policy(batch.next_observation, noise.next_action)
        self.learn_critics(batch, next_action, -tau * log_density)
        action, log_density = self.policy(batch.observation, noise.action)
        one, two = self.q(self.critics, batch.observation, action)
        value = torch.minimum(one, two) if c.actor_critic == "min" else (one + two) / 2
        self.actor_adam.step((tau * log_density - value).mean())
        surplus = -log_density.detach().mean() - c.entropy_per_action * batch.action.shape[-1]
        log_tau = self.log_temperature
        multiplier = log_tau if c.temperature_loss == "log_tau" else log_tau.exp()
        self.temperature_adam.step((multiplier * surplus).sum())
        self.follow(self.target_critics, self.critics)


class PlainTD3(PlainLearner):
    def __init__(self, agent: Any, seed: int, seeds: int) -> None:
        super().__init__(agent, seed, seeds)
        c = self.config
        self.actor = layers_of(agent.actor, seed)
        self.target_actor = layers_of(agent.target_actor, seed)
        self.actor_adam = PlainAdam(self.actor, c.actor_learning_rate or c.learning_rate)

    def networks(self) -> dict[str, Any]:
        return {**super().networks(), "actor": self.actor, "target_actor": self.target_actor}

    def update(self, batch: Batch, noise: Tensor, moves_actor: bool) -> None:
        c = self.config
        limit = c.target_noise_clip
        smoothing = (c.target_noise * noise).clamp(-limit, limit)
        next_action = run(self.target_actor, batch.next_observation, torch.relu).tanh() + smoothing
        if c.clip_next_action:
            next_action = next_action.clamp(-1, 1)
        self.learn_critics(batch, next_action)
        if c.delayed_targets == "actor" or moves_actor:
            self.follow(self.target_critics, self.critics)
        if moves_actor:
            action = run(self.actor, batch.observation, torch.relu).tanh()
            one, two = self.q(self.critics, batch.observation, action)
            value = one if c.actor_critic == "first" else (one + two) / 2
            self.actor_adam.step(-value.mean())
            self.follow(self.target_actor, self.actor)


PLAIN: dict[str, Callable[..., Any]] = {
    "qsm": PlainQSM,
    "diffusion_ql": PlainDiffusionQL,
    "diffusion_pg": PlainDiffusionPG,
    "sdac": PlainSDAC,
    "qvpo": PlainQVPO,
    "dpmd": PlainDPMD,
    "langevin": PlainLangevin,
    "dipo": PlainDIPO,
    "dacer": PlainDACER,
    "sac": PlainSAC,
    "td3": PlainTD3,
}
