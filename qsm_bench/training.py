"""The training loop: all seeds of one (agent, task) cell in lockstep, resumable at every step."""

import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.common.streams import SeedStreams, derive_seed
from agents.protocol import Agent
from agents.registry import find_agent
from agents.speed.acceleration import accelerate
from envs import Environments, Lockstep, ParallelLockstep, TaskError, repeats_itself
from qsm_bench.checkpoint import Checkpoint
from qsm_bench.contract import Checked, checked, rehearse
from qsm_bench.counters import read_counters
from qsm_bench.diagnostics import STATES, measure, slice_critic, spread_states
from qsm_bench.errors import UserError
from qsm_bench.evaluation import Interrupted, evaluate
from qsm_bench.experiment import Job
from qsm_bench.files import write_atomically
from qsm_bench.metrics import Means
from qsm_bench.replay import ReplayBuffer
from qsm_bench.settings import validated
from qsm_bench.store import Cell, SeedFailure
from qsm_bench.tables import CsvLog, as_csv

LOG_EVERY = 1_000
"""Steps between rows of training.csv; metrics in a row are means over them."""


def build_agent(job: Job, observation_size: int, action_size: int) -> Checked:
    """The job's agent, freshly initialized from the job's seeds; its promises are checked.

    Raises AgentError if it cannot be built, UserError if its settings are not right.
    """
    agent = find_agent(job.agent_name).agent
    config = validated(job.agent, agent.config_class, job.settings)
    device = torch.device(job.device)

    def bare() -> Agent:
        return agent(config, observation_size, action_size, job.seeds, device)

    return checked(bare, job.agent, len(job.seeds), action_size)


class Training:
    """One job, from its last checkpoint or from the start, to its last step.

    The state between two steps is: agent, replay buffer, random streams, counters. Environments
    hold none that matters: an episode is rebuilt from its reset seed and its replayed actions, so
    a checkpoint may be taken after any step, and going on from it is bit for bit going on.
    """

    def __init__(
        self,
        job: Job,
        cell: Cell,
        *,
        checkpoint_every: int,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.job = job
        self.stop = stop
        self.checkpoint_every = checkpoint_every
        self.device = torch.device(job.device)
        self.environments = self._environments(len(job.seeds))
        episodes = len(job.seeds) * job.protocol.eval_episodes
        self.evaluation_environments = self._environments(episodes)
        sizes = self.environments.observation_size, self.environments.action_size
        self.agent = build_agent(job, *sizes)
        accelerate(self.agent.bare, self.device, seeds=len(job.seeds), compiled=job.compiled)
        self.replay = ReplayBuffer(
            job.protocol.replay_size,
            *sizes,
            job.seeds,
            self.device,
            n_step=job.settings["n_step"],
            discount=job.settings["discount"],
        )
        self.warmup_stream = SeedStreams(job.seeds, "warm-up", self.device)

        seeds = len(job.seeds)
        self.step = 0
        self.saved: int | None = None
        """The step of the last checkpoint, if there is one."""
        self.episode = np.zeros(seeds, dtype=np.int64)
        """Each seed's running episode, counted from 0."""
        self.episode_start = np.zeros(seeds, dtype=np.int64)
        """The step at which it began."""
        self.episode_before = np.full(seeds, -1)
        """The step at which the episode before began; -1 if there was none."""
        self.episode_return = np.zeros(seeds)
        self.finished_returns: list[list[float]] = [[] for _ in job.seeds]
        """Returns of the training episodes that ended since the last row of training.csv."""
        self.metrics = Means()
        self.train_seconds = 0.0
        self.evaluation_seconds = 0.0
        self.checkpoint_seconds = 0.0
        self.sound = torch.ones(seeds, dtype=torch.bool, device=self.device)
        """Of each seed: losses and actions were finite so far."""
        self.diverged: dict[int, int] = {}
        """Seeds that were not sound any more, each with the step at which."""
        self.going = np.ones(seeds, dtype=bool)
        """Of each seed: its environments have not failed."""
        self.failed: dict[int, SeedFailure] = {}
        """Seeds whose environments failed; they stand still, and the others go on."""
        self.warnings: tuple[str, ...] = ()
        """What the user should know of this run, a line each."""
        self.last_return: float | None = None
        self.watched: Tensor | None = None
        """States that the agent is measured at, [S, STATES, obs]; None during the warm-up."""

        self.cell = cell
        self.checkpoint = Checkpoint(cell.checkpoint, job.identity)
        state = self.checkpoint.load(self.replay, self._open_tables)
        if state:
            self._restore(state)
        else:
            build = partial(build_agent, job, *sizes)
            rehearse(build, sizes[0], job.protocol.batch_size, self.device)
            self.observation = np.stack([self._reset(row) for row in range(seeds)])
            self._note_failed(self.environments.faults)
            self._open_tables({})
            if not repeats_itself(self.environments.task):
                self.warnings = (
                    f"task {job.task!r} does not repeat itself from the same seed and actions: "
                    "this run cannot be resumed",
                )

    @property
    def updates(self) -> int:
        """Gradient updates of each seed so far."""
        return self.job.protocol.updates_by(self.step)

    def run(self, watch: Callable[[], None] = lambda: None) -> None:
        """Train to the end, calling ``watch`` after every step and evaluation step.

        Raises Interrupted, with a checkpoint on disk, soon after ``stop()`` turns true.
        """
        job = self.job
        while True:
            if job.protocol.is_evaluated(self.step):
                self._evaluate(watch)
            if self.step == job.protocol.steps:
                return
            began = time.perf_counter()
            self._take_step()
            self.train_seconds += time.perf_counter() - began
            watch()
            if self.stop():
                self.save()
                raise Interrupted
            # After the warm-up updates may be compiled, which takes a minute and cannot be saved.
            due = self.step % self.checkpoint_every == 0
            if due or self.step in (job.protocol.warmup_steps, job.protocol.steps):
                self.save()

    def _take_step(self) -> None:
        """One environment step and, after the warm-up, the gradient updates of every seed."""
        observation = torch.from_numpy(self.observation).to(self.device)
        if self.step < self.job.protocol.warmup_steps:
            action = self.warmup_stream.uniform(self.environments.action_size, low=-1.0)
        else:
            action = self.agent.act(observation.unsqueeze(1), explore=True).squeeze(1)
            self.sound &= action.isfinite().all(dim=-1)
            self._note_diverged()
        # A seed that diverged or failed stands still: no environment is given what is no action.
        still = ~self.sound | ~torch.from_numpy(self.going).to(self.device)
        action = torch.where(still.unsqueeze(-1), 0.0, action)
        self.environments.begin(action.cpu().numpy(), self.going)
        # Between the two a GPU's update and the environments, in processes of their own, run at
        # once; so that it makes no difference to the numbers where they do not, an update draws
        # from the transitions before this step everywhere.
        if self.step >= self.job.protocol.warmup_steps:
            self._update()
        result = self.environments.finish()
        if self.replay.added - self.checkpoint.saved == self.replay.capacity:
            self.checkpoint.keep(self.replay)
        self.replay.add(
            observation,
            action,
            *(
                torch.from_numpy(value).to(self.device)
                for value in (
                    result.reward,
                    result.observation,
                    result.terminated,
                    result.truncated,
                )
            ),
        )
        self.step += 1
        self.episode_return += result.reward
        self.observation = result.observation
        for row in np.flatnonzero(result.terminated | result.truncated).tolist():
            self.finished_returns[row].append(float(self.episode_return[row]))
            self.episode[row] += 1
            self.episode_before[row] = self.episode_start[row]
            self.episode_start[row] = self.step
            self.episode_return[row] = 0.0
            self.observation[row] = self._reset(row)
        self._note_failed(self.environments.faults)
        if self.step == self.job.protocol.warmup_steps:
            self.watched = spread_states(self.replay)
        if self.step % min(LOG_EVERY, self.job.protocol.eval_every) == 0 and self.updates:
            self._log()

    def _update(self) -> None:
        for _ in range(self.job.protocol.updates_per_step):
            metrics = self.agent.update(self.replay.sample(self.job.protocol.batch_size))
            for name, value in metrics.items():
                if "loss" in name:
                    self.sound &= value.isfinite()
            self.metrics.add(metrics)

    def _environments(self, count: int) -> Environments:
        """In this process where it computes the updates too; on a GPU, in as many as have cores."""
        if self.device.type == "cpu":
            return Lockstep(self.job.environment, count)
        processes = min(count, len(os.sched_getaffinity(0)))
        return ParallelLockstep(self.job.environment, count, processes)

    def _note_diverged(self) -> None:
        for row in (~self.sound).nonzero().flatten().tolist():
            if self.going[row]:
                self.diverged.setdefault(self.job.seeds[row], self.step)

    def _note_failed(self, faults: Mapping[int, str]) -> None:
        """Let the seeds stand still whose environments, by row, have failed.

        Raises TaskError if no seed is left.
        """
        for row, reason in faults.items():
            if self.going[row]:
                self.going[row] = False
                self.failed[self.job.seeds[row]] = SeedFailure(step=self.step, reason=reason)
                self.observation[row] = 0.0
        if faults and not self.going.any():
            if self.step:
                self.save()
            raise self._all_failed()

    def _all_failed(self) -> TaskError:
        last = max(self.failed.values(), key=lambda failure: failure.step)
        if not last.step:
            return TaskError(last.reason)
        return TaskError(f"{last.reason}; by step {last.step:,} every seed had failed")

    def _reset(self, row: int, back: int = 0) -> NDArray[np.float32]:
        """Begin a seed's running episode, or one so many before it."""
        number = int(self.episode[row]) - back
        seed = derive_seed(self.job.seeds[row], "episode", number, bits=31)
        return self.environments.reset(row, seed)

    def _log(self) -> None:
        means = self.metrics.take()
        self.log.append(
            {
                "seed": seed,
                "step": self.step,
                "wall_clock": round(self.train_seconds + self.evaluation_seconds, 2),
                "training_return": float(np.mean(finished)) if finished else "",
                **{name: values[row] for name, values in means.items()},
            }
            for row, (seed, finished) in enumerate(
                zip(self.job.seeds, self.finished_returns, strict=True)
            )
            if self.going[row]
        )
        self.finished_returns = [[] for _ in self.job.seeds]

    def _evaluate(self, watch: Callable[[], None]) -> None:
        began = time.perf_counter()
        job = self.job
        state = self._state()
        try:
            played = evaluate(
                self.agent,
                self.evaluation_environments,
                job.seeds,
                job.protocol.eval_episodes,
                self.step,
                self.device,
                self.stop,
                watch,
                self.sound.cpu().numpy() & self.going,
            )
        except Interrupted:
            # The evaluation will come again, from before it drew any noise.
            self._save(state)
            raise
        returns = played.returns
        fine = np.isfinite(returns).all(axis=1) | ~self.going
        fine[list(played.faults)] = True
        self.sound &= torch.from_numpy(fine).to(self.device)
        self._note_diverged()
        self.evaluations.append(
            {
                "seed": seed,
                "step": self.step,
                "episode": k,
                "return": float(returns[row, k]),
                "length": int(played.length[row, k]),
            }
            for row, seed in enumerate(job.seeds)
            for k in range(job.protocol.eval_episodes)
        )
        finite = returns[np.isfinite(returns)]
        self.last_return = float(finite.mean()) if finite.size else None
        self._note_failed(played.faults)
        if self.watched is not None:
            self._diagnose(self.watched, played.critic_bias(job.settings["discount"]))
        self.evaluation_seconds += time.perf_counter() - began

    def _diagnose(self, states: Tensor, critic_bias: NDArray[Any]) -> None:
        going = {seed for seed, goes in zip(self.job.seeds, self.going, strict=True) if goes}
        about = self.agent, states, self.job.seeds, self.step
        measures = [row for row in measure(*about, critic_bias) if row["seed"] in going]
        slices = [row for row in slice_critic(*about) if row["seed"] in going]
        if measures:
            self.diagnostics.append(measures)
        if slices:
            write_atomically(self.cell.slices_file, as_csv(slices))

    def save(self) -> None:
        """Write a checkpoint of the moment after step ``self.step``, before its evaluation."""
        self._save(self._state())

    def _save(self, state: dict[str, Any]) -> None:
        began = time.perf_counter()
        self.sync()
        self.checkpoint.save(self.replay, state)
        self.saved = state["step"]
        self.checkpoint_seconds += time.perf_counter() - began

    def sync(self) -> None:
        """Wait until every row is on the disk: before anything counts on it."""
        for table in self._tables.values():
            table.sync()

    @property
    def _tables(self) -> dict[str, CsvLog]:
        return {
            "evaluations": self.evaluations,
            "training": self.log,
            "diagnostics": self.diagnostics,
        }

    def _open_tables(self, state: dict[str, Any]) -> None:
        """Cut the tables back to where ``state`` has them. Raises UserError if they do not fit."""
        # Up to November 2026 a table's columns were not noted: they are those of its header.
        checksums, columns = state.get("checksums", {}), state.get("columns", {})

        def table(name: str, file: Path) -> CsvLog:
            size, known = state.get(f"{name}_size", 0), columns.get(name)
            return CsvLog(file, size, checksums.get(name), known)

        self.evaluations = table("evaluations", self.cell.evaluations_file)
        self.log = table("training", self.cell.training_file)
        self.diagnostics = table("diagnostics", self.cell.diagnostics_file)

    def _state(self) -> dict[str, Any]:
        self._note_diverged()
        return {
            "agent": self.agent.state_dict(),
            "replay_stream": self.replay.stream.state_dict(),
            "warmup_stream": self.warmup_stream.state_dict(),
            "step": self.step,
            "episode": self.episode.tolist(),
            "episode_start": self.episode_start.tolist(),
            "episode_before": self.episode_before.tolist(),
            "observation": torch.from_numpy(self.observation.copy()),
            "episode_return": self.episode_return.tolist(),
            "finished_returns": self.finished_returns,
            "metrics": self.metrics.state_dict(),
            "train_seconds": self.train_seconds,
            "evaluation_seconds": self.evaluation_seconds,
            "checkpoint_seconds": self.checkpoint_seconds,
            "diverged": self.diverged,
            "failed_seeds": {seed: failure.model_dump() for seed, failure in self.failed.items()},
            "last_return": self.last_return,
            "watched": self.watched,
            **{f"{name}_size": table.size for name, table in self._tables.items()},
            "checksums": {name: table.checksum for name, table in self._tables.items()},
            "columns": {name: list(table.columns) for name, table in self._tables.items()},
        }

    def _restore(self, state: dict[str, Any]) -> None:
        try:
            self._restore_parts(state)
        except Exception as error:  # a state may be anything
            raise UserError(
                f"{self.checkpoint.folder} does not fit its job ({type(error).__name__}): delete "
                f"{self.cell.folder} to start the cell anew"
            ) from error
        if not self.going.any():
            raise self._all_failed()
        rows = range(len(self.job.seeds))
        self.observation = np.stack([self._play_again(row, state) for row in rows])

    def _restore_parts(self, state: dict[str, Any]) -> None:
        counters = read_counters(state, self.job)
        self.agent.load_state_dict(state["agent"])
        self.replay.stream.load_state_dict(state["replay_stream"])
        self.warmup_stream.load_state_dict(state["warmup_stream"])
        self.step = self.saved = counters.step
        self.episode = np.array(counters.episode)
        self.episode_start = np.array(counters.episode_start)
        self.episode_before = np.array(counters.episode_before)
        self.episode_return = np.array(counters.episode_return)
        self.finished_returns = counters.finished_returns
        if "metrics" in state:
            self.metrics.load_state_dict(state["metrics"], self.device)
        else:  # of November 2026 or earlier: it counted no metric by itself
            counts = dict.fromkeys(state["metric_sums"], state["metric_updates"])
            old = {"sums": state["metric_sums"], "updates": counts}
            self.metrics.load_state_dict(old, self.device)
        self.train_seconds = counters.train_seconds
        self.evaluation_seconds = counters.evaluation_seconds
        self.checkpoint_seconds = counters.checkpoint_seconds
        self.diverged = counters.diverged
        self.sound = torch.tensor(
            [seed not in self.diverged for seed in self.job.seeds], device=self.device
        )
        self.failed = counters.failed_seeds
        self.going = np.array([seed not in self.failed for seed in self.job.seeds])
        self.last_return = counters.last_return
        watched = state["watched"]
        self.watched = None if watched is None else watched.to(self.device)
        self._refuse_other_shapes(state)

    def _refuse_other_shapes(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError if tensors of a state are not of the shapes that this job saves."""
        seeds, size = len(self.job.seeds), self.environments.observation_size
        over = self.step >= self.job.protocol.warmup_steps
        expected: list[tuple[Tensor | None, tuple[int, ...] | None]]
        expected = [(self.watched, (seeds, STATES, size) if over else None)]
        if "observation" in state:
            expected.append((state["observation"], (seeds, size)))
        expected += [(total, (seeds,)) for total in self.metrics.sums.values()]
        for tensor, shape in expected:
            if (None if tensor is None else tuple(tensor.shape)) != shape:
                raise ValueError(f"a tensor is not of shape {shape}")

    def _play_again(self, row: int, state: Mapping[str, Any]) -> NDArray[np.float32]:
        """Bring a seed's environment to where its episode was: reset it and repeat its actions.

        So is the episode before, since the running one may have no step to compare yet. Raises
        UserError if any observation, reward or flag is another than it was.
        """
        if not self.going[row]:
            return np.zeros(self.environments.observation_size, np.float32)
        if self.episode_before[row] >= 0:
            episode = int(self.episode_before[row]), int(self.episode_start[row])
            self._repeat(row, self._reset(row, back=1), *episode)
        observation = self._repeat(row, self._reset(row), int(self.episode_start[row]), self.step)
        if "observation" in state:
            self._refuse_unless(np.array_equal(state["observation"][row].numpy(), observation))
        return observation

    def _repeat(
        self, row: int, observation: NDArray[np.float32], first: int, last: int
    ) -> NDArray[np.float32]:
        """Take a seed's steps ``first``..``last`` - 1 again; return the observation after them."""
        only = np.arange(len(self.job.seeds)) == row
        for fields in self.checkpoint.records(self.replay, first, last):
            seen, _, reward, terminated, ended, after = (field[row].numpy() for field in fields)
            self._refuse_unless(np.array_equal(seen, observation))
            step = self.environments.step(fields[1].numpy(), only)
            observation = step.observation[row]
            self._refuse_unless(
                np.array_equal(after, observation)
                and reward[0] == step.reward[row]
                and terminated[0] == step.terminated[row]
                and ended[0] == (step.terminated[row] | step.truncated[row])
            )
        return observation

    def _refuse_unless(self, repeated: bool) -> None:
        if faults := self.environments.faults:
            raise UserError(
                f"{next(iter(faults.values()))}; so the run could not be resumed, and is as it was"
            )
        if not repeated:
            raise UserError(
                f"task {self.job.task!r} does not repeat itself from the same seed and actions, so "
                "its run cannot be resumed: start it anew under another --name"
            )

    def close(self) -> None:
        """Release environments and files."""
        self.environments.close()
        self.evaluation_environments.close()
        for table in self._tables.values():
            table.close()
