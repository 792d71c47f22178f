"""Train stable-baselines3's SAC or TD3 as a peer, under this project's protocol, into its store.

    python tests/benchmarks/peers.py sac --task cartpole-swingup --name NAME

The cell it writes stands beside the agents' own in the report of NAME, as ``sb3_sac`` or
``sb3_td3``. Networks, step size, batch, warm-up, discount, Polyak rate and evaluation are ours;
everything else is the library's default.
"""

import time
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import NormalActionNoise
from torch import Tensor

from agents.protocol import AgentConfig
from envs import Lockstep, find_task, make
from qsm_bench.evaluation import evaluate
from qsm_bench.experiment import Job
from qsm_bench.process import settle
from qsm_bench.provenance import begin_stretch, now
from qsm_bench.store import ExperimentStore, Manifest
from qsm_bench.tables import CsvLog


class Algorithm(StrEnum):
    sac = "sac"
    td3 = "td3"


class PeerAgent:
    """A stable-baselines3 model behind the part of the agent protocol that evaluation uses."""

    def __init__(self, model: Any, *, deterministic: bool) -> None:
        self.model = model
        self.deterministic = deterministic

    def act(self, observation: Tensor, *, explore: bool) -> Tensor:
        assert not explore
        action, _ = self.model.predict(observation[0].numpy(), deterministic=self.deterministic)
        return torch.from_numpy(action).unsqueeze(0)


class Evaluation(BaseCallback):
    """Evaluates as ``qsm_bench`` does, at the same steps, and writes the same rows."""

    def __init__(self, job: Job, seed: int, log: CsvLog, environments: Lockstep) -> None:
        super().__init__()
        self.job, self.seed, self.log, self.environments = job, seed, log, environments
        self.seconds = 0.0

    def _on_step(self) -> bool:
        if self.num_timesteps % self.job.eval_every == 0:
            began = time.perf_counter()
            agent: Any = PeerAgent(self.model, deterministic=self.job.agent == "sb3_td3")
            played = evaluate(
                agent,
                self.environments,
                (self.seed,),
                self.job.eval_episodes,
                self.num_timesteps,
                torch.device("cpu"),
            )
            self.log.append(
                {
                    "seed": self.seed,
                    "step": self.num_timesteps,
                    "episode": k,
                    "return": float(played.returns[0, k]),
                    "length": int(played.length[0, k]),
                }
                for k in range(self.job.eval_episodes)
            )
            self.seconds += time.perf_counter() - began
            print(
                f"seed {self.seed} step {self.num_timesteps}: {played.returns.mean():.1f}",
                flush=True,
            )
        return True


def build(algorithm: Algorithm, environment: Any, job: Job, seed: int) -> Any:
    """The library's model with this project's shared settings."""
    shared = AgentConfig()
    common: dict[str, Any] = {
        "learning_rate": shared.learning_rate,
        "buffer_size": job.replay_capacity,
        "learning_starts": job.warmup_steps,
        "batch_size": job.batch_size,
        "tau": shared.polyak,
        "gamma": shared.discount,
        "train_freq": 1,
        "gradient_steps": 1,
        "policy_kwargs": {"net_arch": list(shared.hidden_sizes)},
        "seed": seed,
        "device": "cpu",
    }
    if algorithm is Algorithm.sac:
        return SAC("MlpPolicy", environment, **common)
    size = environment.action_space.shape[0]
    noise = NormalActionNoise(np.zeros(size), 0.1 * np.ones(size))
    return TD3("MlpPolicy", environment, action_noise=noise, **common)


def main(
    algorithm: Algorithm,
    task: Annotated[str, typer.Option()],
    name: Annotated[str, typer.Option(help="An experiment that has been run.")],
    results: Annotated[Path, typer.Option()] = Path("results"),
) -> None:
    """Train and evaluate the peer on one task, with the protocol of the experiment NAME."""
    settle()
    store = ExperimentStore(results, name)
    asked = store.read()
    found = find_task(task)
    job = Job(
        agent=f"sb3_{algorithm.value}",
        agent_name=f"stable_baselines3:{algorithm.value.upper()}",
        settings=asdict(AgentConfig()),
        task=task,
        gymnasium_id=found.gymnasium_id,
        action_repeat=found.action_repeat,
        score_range=found.score_range,
        **{key: asked[key] for key in asked if key in Job.model_fields},
    )
    cell = store.cell(job.agent, job.task)
    store.add_column(job.agent)
    if cell.manifest_file.exists() and cell.read_manifest().status == "finished":
        print(f"{job.agent} on {task} is there already: {cell.folder}")
        return
    manifest = Manifest(
        job=job,
        status="running",
        stretches=(
            begin_stretch(
                "cpu",
                f"python tests/benchmarks/peers.py {algorithm.value} --task {task} --name {name}",
            ),
        ),
    )
    cell.write_manifest(manifest)
    log = CsvLog(cell.evaluations_file)
    environments = Lockstep(task, job.eval_episodes)
    for seed in job.seeds:
        began = time.perf_counter()
        callback = Evaluation(job, seed, log, environments)
        environment = make(task)
        build(algorithm, environment, job, seed).learn(job.steps, callback=callback)
        environment.close()
        manifest.evaluation_seconds += callback.seconds
        manifest.train_seconds += time.perf_counter() - began - callback.seconds
    manifest.status = "finished"
    manifest.step, manifest.updates = job.steps, job.steps - job.warmup_steps
    manifest.stretches[0].ended, manifest.stretches[0].last_step = now(), job.steps
    cell.write_manifest(manifest)


if __name__ == "__main__":
    typer.run(main)
