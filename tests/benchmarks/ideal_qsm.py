"""What Q-score matching earns with an exact score: is alpha right for a task's curvature?

    python tests/benchmarks/ideal_qsm.py

No training: the sampler runs with eps = -alpha grad_a Q of a known Q. Prints the reward of the
samples and the share of them at a bound, for the bandit and for a parabola like the
linear-quadratic task's (k = R dt + discount B' P B).
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from agents.common.diffusion import Schedule
from envs import linear_quadratic as lq

SAMPLES = 4_000
OPTIMUM = 0.3


def samples(steps: int, score: Callable[[Tensor], Tensor]) -> Tensor:
    """Run the sampler with the predicted noise -score(a)."""
    torch.manual_seed(0)
    schedule = Schedule(steps, torch.device("cpu"))
    action = torch.randn(1, SAMPLES, 1)
    for t in range(steps, 0, -1):
        noise = schedule.std(t) * torch.randn_like(action)
        action = (schedule.mean(action, -score(action), t) + noise).clamp(-1.0, 1.0)
    return action


def bandit_score(alpha: float, action: Tensor) -> Tensor:
    """Return alpha times the slope of 1 - 4 (|a| - 1/2)^2."""
    return -8 * alpha * (action.abs() - 0.5) * action.sign()


def parabola_score(slope: float, action: Tensor) -> Tensor:
    """Return alpha times the slope of -k (a - OPTIMUM)^2, where 2 k alpha is `slope`."""
    return -slope * (action - OPTIMUM)


def main() -> None:
    print("bandit, reward 1 - 4 (|a| - 1/2)^2: T, alpha, mean reward, share at a bound")
    for steps in (5, 10, 20):
        for alpha in (0.1, 0.2, 0.3, 0.5, 1.0, 10.0, 50.0):
            a = samples(steps, partial(bandit_score, alpha))
            reward = (1 - 4 * (a.abs() - 0.5).square()).mean()
            print(f"{steps:3d} {alpha:5.1f} {reward:6.3f} {(a.abs() >= 1).float().mean():6.3f}")

    p = lq.riccati()[1][0]
    k = float((lq.TIME_STEP * lq.ACTION_COST + 0.99 * lq.B.T @ p @ lq.B).item())
    print(f"\nparabola, Q = -{k:.3f} (a - {OPTIMUM})^2: alpha, mean of samples, share at a bound")
    for alpha in (1.0, 2.0, 4.0, 8.0, 16.0, 50.0):
        a = samples(5, partial(parabola_score, 2 * k * alpha))
        print(f"{alpha:5.1f} {np.mean(a.numpy()):6.3f} {(a.abs() >= 1).float().mean():6.3f}")


if __name__ == "__main__":
    main()
