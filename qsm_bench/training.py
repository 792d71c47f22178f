"""The training loop: all seeds of one job in lockstep, resumable at every step."""

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.common.streams import SeedStreams
from agents.protocol import Agent
from agents.registry import find_agent
from agents.speed import precision
from agents.speed.acceleration import accelerate
from envs import Environments, Lockstep, ParallelLockstep, StepResult, is_deterministic
from qsm_bench.checkpoint import Checkpoint
from qsm_bench.checkpoint_state import gather, restore
from qsm_bench.contract import Checked, checked
from qsm_bench.diagnostics import measure, slice_critic, spread_states
from qsm_bench.errors import UserError
from qsm_bench.evaluation import Interrupted, evaluate
from qsm_bench.experiment import Job
from qsm_bench.job_folder import JobFolder
from qsm_bench.job_tables import JobTables
from qsm_bench.machine import usable_cores
from qsm_bench.metrics import Means
from qsm_bench.rehearsal import rehearse
from qsm_bench.replay import ReplayBuffer
from qsm_bench.seed_status import SeedStatus
from qsm_bench.settings import validated
from qsm_bench.training_episodes import TrainingEpisodes

LOG_EVERY = 1_000
"""How many steps lie between rows of training.csv; metrics in a row are means over them."""
AT_ONCE = 32
"""The most updates whose batches and noise are drawn together: they are in memory together."""


def build_agent(job: Job, observation_size: int, action_size: int) -> Checked:
    """Return the job's agent, freshly initialized from the job's seeds; its promises are checked.

    Raises AgentError if it cannot be built, UserError if its settings are not right.
    """
    agent = find_agent(job.agent_name).agent
    config = validated(job.agent, agent.config_class, job.settings)
    device = torch.device(job.device)

    def bare() -> Agent:
        return agent(config, observation_size, action_size, job.seeds, device)

    precision.use(config.matmul_precision)
    agent_as_checked = checked(bare, job.agent, len(job.seeds), action_size)
    if config.matmul_precision == "bfloat16" and not precision.rounds(agent_as_checked.bare):
        raise UserError(
            f"setting matmul_precision of {job.agent}: 'bfloat16' changes nothing: it is for "
            "products between two hidden layers of agents.common.networks, and this agent has none"
        )
    return agent_as_checked


def portions(updates: int) -> Iterator[int]:
    """Yield how many of a step's updates are made at once, first to last."""
    for made in range(0, updates, AT_ONCE):
        yield min(AT_ONCE, updates - made)


class Training:
    """One job, from its last checkpoint or from the start, to its last step.

    The state between two steps is: agent, replay buffer, random streams, counters. Environments
    hold none that matters, so a checkpoint may be taken after any step, and going on from it is
    bit for bit going on.
    """

    def __init__(
        self,
        job: Job,
        folder: JobFolder,
        *,
        checkpoint_every: int,
        stop: Callable[[], bool] = lambda: False,
        cores: int | None = None,
    ) -> None:
        """Go on from the job's checkpoint, if it has one.

        With a GPU, environments step in processes of their own, one for each of ``cores`` at most.

        Raises UserError if it cannot be resumed, TaskError or AgentError for what the task or
        the agent does wrong.
        """
        self.job = job
        self.folder = folder
        self.stop = stop
        self.checkpoint_every = checkpoint_every
        self.device = torch.device(job.device)
        self.cores = cores or usable_cores()
        self.environments = self._environments(len(job.seeds))
        episodes = len(job.seeds) * job.protocol.eval_episodes
        self.evaluation_environments = self._environments(episodes)
        sizes = self.environments.observation_size, self.environments.action_size
        kind = job.settings.get("matmul_precision", "float32")
        if reason := precision.lacks(kind, self.device.type):
            raise UserError(f"setting matmul_precision of {job.agent}: {kind!r}: {reason}")
        build = partial(build_agent, job, *sizes)
        self.agent = build()
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
        self.episodes = TrainingEpisodes(self.environments, job.seeds)
        self.status = SeedStatus(job.seeds, self.device)
        self.metrics = Means()
        self.step = 0
        """How many steps were taken so far."""
        self.saved: int | None = None
        """The step of the last checkpoint, if there is one."""
        self.train_seconds = 0.0
        self.evaluation_seconds = 0.0
        self.checkpoint_seconds = 0.0
        self.last_return: float | None = None
        """The mean return of the last evaluation, over seeds and episodes."""
        self.measured_states: Tensor | None = None
        """States that the agent is measured at, [S, STATES, obs]; None during the warm-up."""
        self.warnings: tuple[str, ...] = ()
        """What the user should know of this run, a line each."""

        self.checkpoint = Checkpoint(folder.checkpoint, job.identity, job.earlier_identity)
        state = self.checkpoint.load(self.replay, self._open_tables)
        if state:
            self._resume(state)
        else:
            rehearse(build, sizes[0], job.protocol, self.device)
            self._begin()

    def _environments(self, count: int) -> Environments:
        """Make the environments: in this process, or with a GPU in one for each core it may use."""
        if self.device.type == "cpu":
            return Lockstep(self.job.environment, count)
        return ParallelLockstep(self.job.environment, count, min(count, self.cores))

    def _open_tables(self, state: Mapping[str, Any]) -> None:
        self.tables = JobTables(self.folder, self.job.seeds, state)

    def _begin(self) -> None:
        """Begin the job's first step."""
        self.episodes.begin_all()
        self._note_failed(self.environments.faults)
        self._open_tables({})
        if not is_deterministic(self.environments.task):
            self.warnings = (
                f"task {self.job.task!r} does not repeat itself from the same seed and actions: "
                "this run cannot be resumed",
            )

    def _resume(self, state: Mapping[str, Any]) -> None:
        """Go on from where ``state`` was saved."""
        try:
            restore(self, state)
        except Exception as error:  # a state may be anything
            raise UserError(
                f"{self.checkpoint.folder} does not fit its job ({type(error).__name__}): delete "
                f"{self.folder.path} to train it again from the start"
            ) from error
        if failure := self.status.all_failed():
            raise failure
        self.episodes.play_again(
            self.step,
            self.status.running,
            partial(self.checkpoint.records, self.replay),
            state["observation"].numpy() if "observation" in state else None,
        )

    @property
    def updates(self) -> int:
        """How many gradient updates each seed has made so far."""
        return self.job.protocol.updates_by(self.step)

    def run(self, on_step: Callable[[], None] = lambda: None) -> None:
        """Train to the end, calling ``on_step`` after every step of training or evaluation.

        Raises Interrupted, with a checkpoint on disk, soon after ``stop()`` turns true.
        """
        protocol = self.job.protocol
        while True:
            if protocol.is_evaluated(self.step):
                self._evaluate(on_step)
            if self.step == protocol.steps:
                return
            self._take_step()
            on_step()
            if self.stop():
                self.save()
                raise Interrupted
            # After the warm-up updates may be compiled, which takes a minute and cannot be saved.
            due = self.step % self.checkpoint_every == 0
            if due or self.step in (protocol.warmup_steps, protocol.steps):
                self.save()

    def _take_step(self) -> None:
        """Take one step and, after the warm-up, make the gradient updates of every seed."""
        began = time.perf_counter()
        protocol = self.job.protocol
        warming_up = self.step < protocol.warmup_steps
        observation = torch.from_numpy(self.episodes.observation).to(self.device)
        action = self._choose_action(observation, at_random=warming_up)
        self.environments.begin(action.cpu().numpy(), self.status.running)
        # Between the two a GPU's update and the environments, in processes of their own, run at
        # once; so that it makes no difference to the numbers where they do not, an update draws
        # from the transitions before this step everywhere.
        if not warming_up:
            self._update()
        result = self.environments.finish()
        self._remember(observation, action, result)
        self.step += 1
        self.episodes.advance(result, self.step)
        self._note_failed(self.environments.faults)
        if self.step == protocol.warmup_steps:
            self.measured_states = spread_states(self.replay)
        if self.step % min(LOG_EVERY, protocol.eval_every) == 0 and self.updates:
            self._log()
        self.train_seconds += time.perf_counter() - began

    def _choose_action(self, observation: Tensor, *, at_random: bool) -> Tensor:
        """Return every seed's action [S, act] for its observation [S, obs].

        A seed that has diverged or failed stands still: no environment is given what is no action.
        """
        if at_random:
            action = self.warmup_stream.uniform(self.environments.action_size, low=-1.0)
        else:
            action = self.agent.act(observation.unsqueeze(1), explore=True).squeeze(1)
            self.status.finite &= action.isfinite().all(dim=-1)
            self.status.note_diverged(self.step)
        return torch.where(self.status.learning.unsqueeze(-1), action, 0.0)

    def _update(self) -> None:
        """Make the updates of a step: batches are drawn together, and so is noise."""
        protocol = self.job.protocol
        for count in portions(protocol.updates_per_step):
            batches = self.replay.sample_several(protocol.batch_size, count)
            for metrics in self.agent.update_several(batches):
                for name, value in metrics.items():
                    if "loss" in name:
                        self.status.finite &= value.isfinite()
                self.metrics.add(metrics)

    def _remember(self, observation: Tensor, action: Tensor, result: StepResult) -> None:
        """Store every seed's transition; what it overwrites is in the replay log by then."""
        if self.replay.added - self.checkpoint.saved == self.replay.capacity:
            self.checkpoint.keep(self.replay)
        came = (result.reward, result.observation, result.terminated, result.truncated)
        self.replay.add(
            observation, action, *(torch.from_numpy(value).to(self.device) for value in came)
        )

    def _note_failed(self, faults: Mapping[int, str]) -> None:
        """Let the seeds stand still whose environments, by row, have failed.

        Raises TaskError if no seed is left.
        """
        self.status.note_failed(faults, self.step)
        self.episodes.observation[~self.status.running] = 0.0
        if failure := self.status.all_failed():
            if self.step:
                self.save()
            raise failure

    def _log(self) -> None:
        self.tables.add_metrics(
            self.step,
            self.train_seconds + self.evaluation_seconds,
            self.episodes.take_finished_returns(),
            self.metrics.take(),
            self.status.running,
        )

    def _evaluate(self, on_step: Callable[[], None]) -> None:
        began = time.perf_counter()
        job, status = self.job, self.status
        # A copy: an evaluation changes the agent's streams in place where they are tensors.
        state = copy.deepcopy(gather(self))
        try:
            played = evaluate(
                self.agent,
                self.evaluation_environments,
                job.seeds,
                job.protocol.eval_episodes,
                start_key=self.step,
                device=self.device,
                stop=self.stop,
                on_step=on_step,
                playing=status.learning.cpu().numpy(),
            )
        except Interrupted:
            # The evaluation will come again, from before it drew any noise.
            self._save(state)
            raise
        finite = np.isfinite(played.returns)
        healthy = finite.all(axis=1) | ~status.running
        healthy[list(played.faults)] = True
        status.finite &= torch.from_numpy(healthy).to(self.device)
        status.note_diverged(self.step)
        self.tables.add_evaluation(self.step, played)
        self.last_return = float(played.returns[finite].mean()) if finite.any() else None
        self._note_failed(played.faults)
        if self.measured_states is not None:
            self._diagnose(self.measured_states, played.critic_bias(job.settings["discount"]))
        self.evaluation_seconds += time.perf_counter() - began

    def _diagnose(self, states: Tensor, critic_bias: NDArray[np.float64]) -> None:
        """Measure the agent at ``states`` [S, STATES, obs], and write down what it shows."""
        about = self.agent, states, self.job.seeds, self.step
        self.tables.add_diagnostics(
            measure(*about, critic_bias), slice_critic(*about), self.status.running
        )

    def save(self) -> None:
        """Write a checkpoint of the moment after step ``self.step``, before its evaluation."""
        self._save(gather(self))

    def _save(self, state: dict[str, Any]) -> None:
        began = time.perf_counter()
        self.tables.sync()
        self.checkpoint.save(self.replay, state)
        self.saved = state["step"]
        self.checkpoint_seconds += time.perf_counter() - began

    def close(self) -> None:
        """Release environments and files."""
        self.environments.close()
        self.evaluation_environments.close()
        self.tables.close()
