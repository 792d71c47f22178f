"""Train for 200,000 steps, and see whether memory or file handles grow.

    python tests/benchmarks/long_life.py [--agent qsm] [--steps 200000]

Prints a line every twentieth of the run: step, resident memory, threads and open files. Ends with
status 1 if any of them grew once the replay buffer had wrapped.
"""

from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import psutil
import typer

from qsm_bench.experiment import Experiment, parse_agents
from qsm_bench.job_folder import JobFolder
from qsm_bench.process import configure_process
from qsm_bench.protocol import Protocol
from qsm_bench.training import Training

REPLAY_CAPACITY = 10_000
"""A small buffer: all its pages are in use early, so that only other growth is measured."""
GROWTH_MIB = 8.0
"""The allowed growth from the least memory of the second quarter to that of the last quarter."""


def main(
    agent: Annotated[str, typer.Option()] = "qsm",
    task: Annotated[str, typer.Option()] = "linear-quadratic",
    steps: Annotated[int, typer.Option(min=2000)] = 200_000,
) -> None:
    """Run one small job and watch its process."""
    configure_process()
    (job,) = Experiment(
        name="long-life",
        agents=parse_agents(f"{agent}[hidden_sizes=[16]]"),
        tasks=(task,),
        groups=((0, 1),),
        protocol=Protocol(
            steps=steps,
            warmup_steps=100,
            batch_size=16,
            replay_capacity=min(REPLAY_CAPACITY, steps // 5),
            eval_every=1000,
            eval_episodes=1,
        ),
    ).jobs
    process = psutil.Process()
    seen: list[tuple[float, int, int]] = []
    with TemporaryDirectory() as folder:
        training = Training(job, JobFolder(Path(folder)), checkpoint_every=1000)

        def watch() -> None:
            if training.step >= (len(seen) + 1) * steps // 20:
                memory = process.memory_info().rss / 2**20
                seen.append((memory, process.num_threads(), process.num_fds()))
                print(
                    f"step {training.step:>9,}  memory {memory:7.1f} MiB  "
                    f"threads {seen[-1][1]}  open files {seen[-1][2]}",
                    flush=True,
                )

        training.run(watch)
        training.close()
    second, last = np.array(seen[5:10]), np.array(seen[15:])
    growth = last[:, 0].min() - second[:, 0].min()
    print(f"memory grew by {growth:.1f} MiB from the second quarter to the last")
    steady = all(row == before for before, row in pairwise(s[1:] for s in seen[5:]))
    if growth > GROWTH_MIB or not steady:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
