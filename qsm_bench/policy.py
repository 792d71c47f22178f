"""A trained policy, out of a checkpoint, for a user's own script or notebook."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from agents.registry import AgentError
from envs import make
from qsm_bench.arguments import refusing_wrong_types
from qsm_bench.checkpoint import Checkpoint
from qsm_bench.contract import Checked
from qsm_bench.errors import UserError, as_user_error
from qsm_bench.experiment import Job
from qsm_bench.groups import seeds_text
from qsm_bench.job_folder import JobFolder
from qsm_bench.results import Results
from qsm_bench.store import ExperimentStore
from qsm_bench.training import build_agent
from qsm_bench.user_modules import refuse_unnamed_modules


class Policy:
    """The policy that one seed of an agent has learned on a task; call it with an observation.

    It acts as it does when it is evaluated: it draws a sample without exploration noise, or takes
    what the agent's settings say. ``make_environment`` makes the environment that it knows, with
    flat observations and actions in [-1, 1].
    """

    def __init__(
        self, agent: Checked, job: Job, observation_size: int, seed: int, step: int
    ) -> None:
        self._agent, self._job, self._size = agent, job, observation_size
        self.seed = seed
        self.step = step
        """Training steps behind it."""

    @as_user_error()
    def __call__(self, observation: NDArray[Any]) -> NDArray[np.float32]:
        """One action for each observation: [obs] -> [act], or [N, obs] -> [N, act].

        Raises UserError if the observation has another size, or the policy has diverged: its
        action is not finite.
        """
        size = self._size
        if observation.ndim not in (1, 2) or observation.shape[-1] != size:
            raise UserError(
                f"an observation of shape {observation.shape}: {self._job.task} has observations "
                f"of shape ({size},), or (N, {size}) for N at once"
            )
        rows = torch.from_numpy(np.atleast_2d(observation).astype(np.float32))
        # An agent acts for all its seeds at once: one of them is asked for.
        batch = rows.expand(len(self._job.seeds), *rows.shape).to(self._job.device)
        actions: NDArray[np.float32] = (
            self._agent.act(batch, explore=False)[self._job.seeds.index(self.seed)].cpu().numpy()
        )
        if not np.isfinite(actions).all():
            raise UserError(
                f"seed {self.seed} of {self._job.agent} on {self._job.task} has diverged: its "
                "actions are not finite"
            )
        return actions if observation.ndim == 2 else actions[0]

    @as_user_error()
    def make_environment(
        self, *, render_mode: str | None = None
    ) -> gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]:
        """Make an environment of the task that the policy was trained on, action repeat included.

        Raises UserError if it cannot be constructed.
        """
        return make(self._job.environment, render_mode=render_mode)


@as_user_error()
@refusing_wrong_types
def load_policy(
    results: Results, agent: str, task: str, seed: int, *, modules: Collection[str] = ()
) -> Policy:
    """Load a trained policy: one seed's, of its last checkpoint.

    ``agent`` is the label in the report, such as ``"qsm[alpha=10]"``. An agent or task of your own
    is imported only if its module is among ``modules``. Raises UserError if there is no such job,
    seed or checkpoint, or if the seed failed.
    """
    folders = ExperimentStore(results.root, results.name).job_folders_of(agent, task)
    folder = next((folder for folder in folders if seed in (folder.seeds or ())), None)
    if folder is None:
        seeds = seeds_text([s for folder in folders for s in folder.seeds or ()])
        raise UserError(f"{agent} on {task} has no seed {seed!r}: its seeds are {seeds}")
    manifest = folder.read_manifest()
    refuse_unnamed_modules(manifest.job, modules)
    if seed in manifest.failed_seeds:
        reason = manifest.failed_seeds[seed].reason
        raise UserError(f"seed {seed} of {agent} on {task} failed: {reason}")
    return policy_of(folder, manifest.job, seed)


EVALUATION_SETTINGS = "evaluation", "candidates_evaluate"
"""The settings that decide how a policy is evaluated, and nothing of what it learns."""


def policy_of(
    folder: JobFolder, trained: Job, seed: int, settings: Mapping[str, Any] | None = None
) -> Policy:
    """The policy of one seed of a job's last checkpoint: see ``load_agent``."""
    job = on_this_machine(trained)
    environment = make(job.environment)
    spaces = environment.observation_space, environment.action_space
    environment.close()
    observation_size, action_size = (int(np.prod(space.shape or ())) for space in spaces)
    agent, step = load_agent(folder, job, observation_size, action_size, settings)
    return Policy(agent, job, observation_size, seed, step)


def jobs_of(results: Results) -> Iterator[tuple[JobFolder, Job]]:
    """The jobs of an experiment as they can be loaded here, each with its folder."""
    for folder in ExperimentStore(results.root, results.name).job_folders():
        yield folder, on_this_machine(folder.read_manifest().job)


def on_this_machine(job: Job) -> Job:
    """The job on its own device, or on the CPU where this machine has none such."""
    device = torch.device(job.device)
    missing = device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    return job.model_copy(update={"device": "cpu"}) if missing else job


def load_agent(
    folder: JobFolder,
    job: Job,
    observation_size: int,
    action_size: int,
    settings: Mapping[str, Any] | None = None,
) -> tuple[Checked, int]:
    """An agent as a job's last checkpoint has it, and the checkpoint's step.

    ``settings`` are evaluated instead of those that it was trained with. Raises UserError if there
    is no checkpoint, if it does not fit the job, or for a setting that decides more than how a
    policy is evaluated.
    """
    settings = settings or {}
    for name in settings:
        if name not in EVALUATION_SETTINGS:
            raise UserError(
                f"setting {name} of {job.agent} decides what is learned, too: only "
                f"{' and '.join(EVALUATION_SETTINGS)} can be changed after the training"
            )
    state = Checkpoint(folder.checkpoint, job.identity, job.earlier_identity).load_state()
    if state is None:
        raise UserError(f"{job.agent} on {job.task} has no checkpoint yet: run it first")
    try:
        evaluated = job.model_copy(update={"settings": {**job.settings, **settings}})
        agent = build_agent(evaluated, observation_size, action_size)
        agent.load_state_dict(state["agent"])
        return agent, int(state["step"])
    except (AgentError, UserError):
        raise
    except Exception as error:  # a state, and a manifest's settings, may be anything
        raise UserError(
            f"{folder.checkpoint} does not fit its job ({type(error).__name__}); {folder.advice}"
        ) from error
