"""A peer's learner in a process of its own, set up as the peer itself would be.

It shares a core with what it is compared with, and works when it is asked to: for each line of two
numbers on standard input it makes so many calls of so many updates each, and the seconds that they
took go out.
"""

import os
import subprocess
import sys
import time
from typing import Any

OBSERVATION, ACTION, BATCH = 24, 6, 256
UPDATES = 20
"""The number of updates that are timed together."""


class Peer:
    """SAC or TD3 of stable-baselines3 or SBX, with the sizes that are compared."""

    def __init__(self, library: str, algorithm: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, library, algorithm],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.seconds_per_update()  # once it is warm

    def seconds_per_update(self, *, at_once: int = 1) -> float:
        """Time one update, replay's sample included. Raises EOFError if the process has died.

        By default each is a call of its own, as in a run of one update per environment step, which
        is what both libraries' SAC does if nothing else is said.
        """
        assert self.process.stdin
        assert self.process.stdout
        print(UPDATES // at_once, at_once, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise EOFError(f"{self.process.args!r} ended")
        return float(answer) / UPDATES

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def learner(library: str, algorithm: str) -> Any:
    """Return a learner whose replay buffer is filled with noise."""
    import importlib

    import gymnasium

    class Noise(gymnasium.Env[Any, Any]):
        observation_space = gymnasium.spaces.Box(-10, 10, (OBSERVATION,))
        action_space = gymnasium.spaces.Box(-1, 1, (ACTION,))

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, Any]:
            return self.observation_space.sample(), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, Any]:
            return self.observation_space.sample(), 0.0, False, False, {}

    model = getattr(importlib.import_module(library), algorithm)(
        "MlpPolicy",
        Noise(),
        policy_kwargs={"net_arch": [256, 256]},
        learning_rate=3e-4,
        batch_size=BATCH,
        buffer_size=10_000,
        learning_starts=1_000,
        device="cpu",
    )
    model.learn(1_010)
    return model


def main(library: str, algorithm: str) -> None:
    """Measure updates as standard input asks, until it ends."""
    import torch

    torch.set_num_threads(1)
    model = learner(library, algorithm)

    def train(updates: int) -> None:
        model.train(batch_size=BATCH, gradient_steps=updates)
        if library == "sbx":
            import jax

            # What it returns from may still be running.
            jax.block_until_ready((model.policy.qf_state.params, model.policy.actor_state.params))

    for updates in (1, UPDATES):
        train(updates)  # SBX compiles a program for each number of updates in a call
    for line in sys.stdin:
        calls, updates = map(int, line.split())
        began = time.perf_counter()
        for _ in range(calls):
            train(updates)
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    main(*sys.argv[1:])
