"""How much of the time of one worker do two need? On a machine of two free cores.

    python tests/benchmarks/workers.py

Trains one agent with 2 seeds, then two agents with 4 seeds, each with one worker and with two, and
prints the wall time of each run and the ratio. It starts jobs as ``run`` does, start-up included.
"""

import tempfile
import time
from pathlib import Path

from qsm_bench import Local, Protocol, run_experiment

PROTOCOL = Protocol(
    steps=10_000,
    warmup_steps=1_000,
    batch_size=64,
    eval_every=5_000,
    eval_episodes=2,
    settings={"hidden_sizes": [64, 64]},
)
TASK = "Pendulum-v1"
PLANS = (("td3", 2), ("td3,sac", 4))


def seconds(agents: str, seeds: int, workers: int) -> float:
    """The wall time of a whole run; each seed is a job, so that the work is the same."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        run_experiment(
            agents,
            tasks=TASK,
            protocol=PROTOCOL,
            seeds=range(seeds),
            seeds_per_job=1,
            device="cpu",
            compiled="off",
            executor=Local(workers=workers),
            results=Path(folder),
        )
        return time.monotonic() - began


if __name__ == "__main__":
    for agents, seeds in PLANS:
        one, two = seconds(agents, seeds, 1), seconds(agents, seeds, 2)
        print(
            f"{agents} on {TASK}, {seeds} seeds: {one:.1f} s with one worker, {two:.1f} s with "
            f"two: {two / one:.2f}",
            flush=True,
        )
