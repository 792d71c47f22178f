"""Print the memory that a process has before it makes an agent, and at most as the agent learns.

    python -m tests.qsm_bench.update_memory AGENT [compiled]

In bytes; two updates, an action in training and one of 10 evaluation episodes, for 5 seeds, 78
observations, 12 actions and a batch of 256. Linux only.
"""

import re
import sys
from pathlib import Path
from typing import Any

import psutil
import torch

from agents.speed.acceleration import accelerate
from qsm_bench.experiment import Job
from qsm_bench.process import configure_process
from qsm_bench.timing import ready_to_learn
from tests.qsm_bench.jobs import make_job

SIZES = (78, 12)
SEEDS, BATCH = 5, 256


def large_job(agent: str, **changes: Any) -> Job:
    """Return a job of an agent, as large as the common protocol's."""
    return make_job(agent, **{"seeds": SEEDS, "batch_size": BATCH, **changes})


def main(name: str, *, compiled: bool) -> None:
    configure_process()
    job = large_job(name)
    before = psutil.Process().memory_info().rss
    agent, replay = ready_to_learn(job, SIZES)
    accelerate(agent.bare, torch.device("cpu"), seeds=SEEDS, compiled=compiled)
    for _ in range(2):
        agent.update(replay.sample(BATCH))
    for episodes in (1, 10):
        agent.act(torch.zeros(SEEDS, episodes, SIZES[0]), explore=episodes == 1)
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    print(before, int(peak) * 1024)


if __name__ == "__main__":
    main(sys.argv[1], compiled=sys.argv[2:] == ["compiled"])
