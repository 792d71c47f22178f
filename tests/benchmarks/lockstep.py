"""Is training S seeds in one job faster than S jobs of one seed in turn? On one thread.

    python tests/benchmarks/lockstep.py [--seeds 4] [--task cartpole-swingup]

Blocks of whole training steps (act, environment, replay, update) of the two are measured in turn,
so that whatever else the machine does meets both alike. Prints, for each agent, the median over
blocks of time(S jobs of one seed) / time(one job of S seeds): above 1, lockstep is faster. Start-up
and evaluation, which lockstep saves too, are not counted.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from qsm_bench.experiment import Experiment, parse_agents
from qsm_bench.job_folder import JobFolder
from qsm_bench.process import configure_process
from qsm_bench.protocol import Protocol
from qsm_bench.training import Training

WARMUP, BLOCK = 300, 100


def prepared(
    agent: str,
    task: str,
    seeds: int,
    first_seed: int,
    folder: Path,
    *,
    warmup: int = WARMUP,
    device: str = "cpu",
    compiled: bool = False,
    cores: int | None = None,
    eval_episodes: int = 1,
    **protocol: Any,
) -> Training:
    """Return a training that is through its warm-up and has made its first updates."""
    experiment = Experiment(
        name="lockstep",
        agents=parse_agents(agent),
        tasks=(task,),
        groups=(tuple(range(first_seed, first_seed + seeds)),),
        protocol=Protocol(
            steps=100_000,
            warmup_steps=warmup,
            eval_every=100_000,
            eval_episodes=eval_episodes,
            **protocol,
        ),
        device=device,
        compiled=compiled,
    )
    folder.mkdir()
    job = experiment.jobs[0]
    training = Training(job, JobFolder(folder), checkpoint_every=100_000, cores=cores)
    take_steps(training, warmup + 10)
    return training


def take_steps(training: Training, steps: int) -> float:
    """Return the seconds that so many training steps take."""
    began = time.perf_counter()
    for _ in range(steps):
        training._take_step()
    return time.perf_counter() - began


def main(
    agents: Annotated[str, typer.Option()] = "qsm,sac,td3",
    task: Annotated[str, typer.Option()] = "cartpole-swingup",
    seeds: Annotated[int, typer.Option()] = 4,
    blocks: Annotated[int, typer.Option()] = 12,
) -> None:
    """Measure and print the ratios."""
    configure_process()
    for agent in agents.split(","):
        with tempfile.TemporaryDirectory() as temporary:
            root = Path(temporary)
            together = prepared(agent, task, seeds, 0, root / "together")
            alone = [prepared(agent, task, 1, seed, root / f"{seed}") for seed in range(seeds)]
            times = [
                (sum(take_steps(one, BLOCK) for one in alone), take_steps(together, BLOCK))
                for _ in range(blocks)
            ]
        ratios = sorted(one / lockstep for one, lockstep in times)
        rate = seeds * BLOCK / statistics.median(lockstep for _, lockstep in times)
        print(
            f"{agent} on {task}: {seeds} jobs of one seed take {statistics.median(ratios):.2f} "
            f"times as long as one job of {seeds} seeds (blocks: {ratios[0]:.2f} to "
            f"{ratios[-1]:.2f}); {rate:.0f} seed-steps/s in lockstep",
            flush=True,
        )


if __name__ == "__main__":
    typer.run(main)
