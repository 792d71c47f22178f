"""Trained agents at the first state of an episode: their policy, their critic, and what follows.

For the study of action modes, on a task with one action dimension. All that is measured starts in
one state, that of a reset with a fixed seed: it is the same for all agents, runs and trajectories.
A job's slices.csv would not do: it has the last evaluation alone, and few samples.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.common.streams import SeedStreams
from envs import Lockstep
from qsm_bench import diagnostics
from qsm_bench.contract import Checked
from qsm_bench.experiment import Job
from qsm_bench.job_folder import JobFolder
from qsm_bench.policy import jobs_of, load_agent, policy_of
from qsm_bench.results import Results
from qsm_bench.statistics.selection import FloatArray, IntArray

STATE_SEED = 0
"""The seed of the reset that leads to the state."""
SAMPLES = 4_000
"""Actions that are drawn there from each policy."""
AXIS: FloatArray = np.linspace(-1.0, 1.0, 81)
"""Where the critic, and the density of the samples, are taken; both bounds included."""
WIDTH = 0.2
"""The deviation of the normal kernels of the samples' density."""
EDGE = 0.05
"""An action so near to a bound counts as at it: no squashed normal is exactly there."""
PROMINENT = 0.1
"""So far a maximum rises above the valley that separates it from a higher one: as a share of the
range of Q, or of the highest density."""
NEAR = 0.2
"""A mode so near to a maximum of Q is that maximum's."""
LOW = 0.25
"""Q is low where it is farther below its maximum than this share of its range."""
TRAJECTORIES = 64
BOTH_SIDES = 0.1
"""Both sides occur if the less frequent one has at least this share of the trajectories."""
COMMITTED = 0.25
"""Trajectories commit to a side if their commitment is at least that of three pushes of four."""
STEP_SECONDS = 0.01
"""Seconds of the task's own time step."""
SECONDS, WINDOW = 1.0, 0.5
"""How long trajectories are followed, and how long their side is decided. A pole that hangs down
swings with a period of 1.6 s, so that no reversal of the pushes falls into the window."""


@dataclass(frozen=True)
class Look:
    """One policy and its critic at the state."""

    samples: FloatArray
    """Actions, [SAMPLES]."""
    q: FloatArray
    """The critic on AXIS."""

    @cached_property
    def height(self) -> FloatArray:
        """Q on AXIS, from 0 where it is lowest to 1 where it is highest; 1 if it is constant."""
        spread = float(np.ptp(self.q))
        height: FloatArray = 1.0 - (self.q.max() - self.q) / (spread or 1.0)
        return height

    @cached_property
    def maxima(self) -> FloatArray:
        """The places of the maxima of Q, [maxima]. A constant has none."""
        return peaks(self.height) if np.ptp(self.q) > 0 else np.array([])

    @cached_property
    def modes(self) -> FloatArray:
        """The places of the modes of the samples' density, [modes]."""
        found = density(self.samples)
        return peaks(found / found.max())

    @property
    def followed(self) -> int:
        """How many maxima of Q have a mode of the samples."""
        apart = np.abs(self.maxima[:, np.newaxis] - self.modes)
        return int((apart <= NEAR).any(axis=1).sum())

    @property
    def at_bounds(self) -> float:
        """The share of the samples at a bound."""
        return float((np.abs(self.samples) >= 1 - EDGE).mean())

    @property
    def overshoot(self) -> float:
        """The share of the samples at a bound at which Q is ``LOW``."""
        low = self.height[[0, -1]] < 1 - LOW
        at_bound = self.samples <= EDGE - 1, self.samples >= 1 - EDGE
        return float(sum(at.mean() for at, is_low in zip(at_bound, low, strict=True) if is_low))

    @property
    def measures(self) -> dict[str, float]:
        """All of it in numbers."""
        return {
            "modes": len(self.modes),
            "maxima": len(self.maxima),
            "followed": self.followed,
            "at_bounds": self.at_bounds,
            "overshoot": self.overshoot,
            "right": float((self.samples > 0).mean()),
            "q_range": float(np.ptp(self.q)),
        }


def peaks(values: FloatArray) -> FloatArray:
    """The places of the ``PROMINENT`` maxima of values on AXIS, [peaks]; a bound may be one."""
    from scipy.signal import find_peaks

    # Beyond the bounds is nothing, so that a slope that ends there has a maximum.
    padded = np.pad(values, 1, constant_values=values.min() - 1.0)
    found, _ = find_peaks(padded, prominence=PROMINENT)
    places: FloatArray = AXIS[found - 1]
    return places


def density(samples: FloatArray) -> FloatArray:
    """The density of ``samples`` on AXIS, by normal kernels that are reflected at the bounds.

    Without that, the density of uniform samples would fall at the bounds. The mean shift of
    ``diagnostics.modes`` would not do, for it takes any number of dimensions and stops early: of
    uniform samples it finds two to three modes.
    """
    mirrored = np.concatenate([-2.0 - samples, samples, 2.0 - samples])
    far = (AXIS[:, np.newaxis] - mirrored) / WIDTH
    kernels = np.exp(-0.5 * far**2) / (WIDTH * np.sqrt(2 * np.pi))
    found: FloatArray = kernels.sum(axis=1) / len(samples)
    return found


def look_at(agent: Checked, job: Job, state: Tensor) -> list[Look]:
    """A look at each seed of a job's agent at the ``state`` [obs]."""
    seeds = len(job.seeds)
    here = state.to(job.device).expand(seeds, 1, -1)
    stream = SeedStreams(job.seeds, "initial state", here.device)
    samples = agent.sample_policy(here, SAMPLES, stream)
    axis = torch.from_numpy(AXIS).float().to(here.device).view(1, -1, 1).expand(seeds, -1, 1)
    q = agent.action_value(here.expand(-1, axis.shape[1], -1), axis)
    # The study's agents show both.
    assert samples is not None
    assert q is not None
    drawn, value = (found.reshape(seeds, -1).cpu().double().numpy() for found in (samples, q))
    return [Look(*row) for row in zip(drawn, value, strict=True)]


@dataclass(frozen=True)
class Play:
    """Trajectories of one policy from the state."""

    actions: FloatArray
    """[TRAJECTORIES, decisions]"""
    positions: FloatArray
    """The first entry of the observation, the cart's position in meters, before each decision."""
    seconds: float
    """Of a decision."""

    @property
    def pushes(self) -> FloatArray:
        """The actions within the window, [TRAJECTORIES, decisions]."""
        return self.actions[:, : round(WINDOW / self.seconds)]

    @property
    def to_the_right(self) -> NDArray[np.bool_]:
        """Whether a trajectory's mean push is positive, [TRAJECTORIES]."""
        right: NDArray[np.bool_] = self.pushes.mean(axis=1) > 0
        return right

    @property
    def smaller_side(self) -> float:
        """The share of the trajectories on the side that fewer of them take."""
        right = float(self.to_the_right.mean())
        return min(right, 1 - right)

    @property
    def commitment(self) -> float:
        """See ``commitment``."""
        return commitment(self.pushes)


def commitment(pushes: FloatArray) -> float:
    """How far the pushes [trajectories, decisions] of a trajectory go together.

    It is the covariance of two decisions over trajectories, averaged over all pairs of different
    decisions, divided by the mean variance of a decision. It is 1 if each trajectory keeps one
    push, and 0 in the mean if all pushes are drawn independently, whatever their distribution at
    each decision. If three of four pushes are of a trajectory's own side, and the sides are equally
    frequent, it is 1/4. NaN if all trajectories are the same.
    """
    decisions = pushes.shape[1]
    each = pushes.var(axis=0, ddof=1).mean()
    if each == 0:
        return np.nan
    of_mean = pushes.mean(axis=1).var(ddof=1)
    return float((decisions * of_mean / each - 1) / (decisions - 1))


def play(folder: JobFolder, job: Job, seed: int, environments: Lockstep) -> Play:
    """Follow one seed's last policy in all of the ``environments``, from the state."""
    policy, seconds = policy_of(folder, job, seed), STEP_SECONDS * job.protocol.action_repeat
    observation = np.stack([environments.reset(i, STATE_SEED) for i in range(environments.count)])
    actions, positions = [], []
    for _ in range(round(SECONDS / seconds)):
        positions.append(observation[:, 0])
        actions.append(policy(observation))
        observation = environments.step(actions[-1]).observation
    taken = np.concatenate(actions, axis=1).astype(float)
    return Play(taken, np.stack(positions, axis=1).astype(float), seconds)


Run = tuple[str, int]
"""The name of a trainer, and a seed."""


def look_into(results: Results, runs: Collection[Run]) -> dict[Run, Look]:
    """A look at each of the ``runs`` of an experiment, as its checkpoints have them."""
    looks: dict[Run, Look] = {}
    for folder, job in jobs_of(results):
        environments = Lockstep(job.environment, 1)
        state = torch.from_numpy(environments.reset(0, STATE_SEED))
        agent, _ = load_agent(folder, job, environments.observation_size, environments.action_size)
        environments.close()
        found = look_at(agent, job, state)
        looks |= {(job.agent_name, s): look for s, look in zip(job.seeds, found, strict=True)}
    return {run: looks[run] for run in runs}


def play_all(results: Results, runs: Collection[Run]) -> dict[Run, Play]:
    """Trajectories of each of the ``runs`` of an experiment, of its last checkpoints."""
    plays: dict[Run, Play] = {}
    for folder, job in jobs_of(results):
        environments = Lockstep(job.environment, TRAJECTORIES)
        for seed in job.seeds:
            if (job.agent_name, seed) in runs:
                plays[job.agent_name, seed] = play(folder, job, seed, environments)
        environments.close()
    return {run: plays[run] for run in runs}


def shares(look: Look) -> FloatArray:
    """The share of the samples in each of ``diagnostics.SLICE_CELLS`` cells of the axis."""
    cells = np.linspace(-1.0, 1.0, diagnostics.SLICE_CELLS + 1)
    found: IntArray = np.histogram(look.samples, cells)[0]
    return found / len(look.samples)
