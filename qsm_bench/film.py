"""A film of one episode. Everything that could prevent it is checked before the episode starts."""

import os
import re
import sys
import warnings
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np

from agents.common.streams import derive_seed
from envs import Task, TaskError, make
from qsm_bench.errors import UserError, naming
from qsm_bench.files import check_writable

FRAMES_PER_SECOND = 30
LONGEST_FILM = 10_000
"""The most frames of a film. Of a longer episode, only the beginning is filmed."""


class Film:
    """Films an episode of a task into a file. The file appears when the film is complete."""

    def __init__(self, task: str | Task, file: Path) -> None:
        """Open the task for drawing. Raises UserError if it cannot be drawn or written."""
        self.task, self.file = task if isinstance(task, str) else task.name, file
        self._check_file()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the first frame, or its error, shows whether it works
            try:
                self.environment = make(task, render_mode="rgb_array")
            except TaskError as error:
                raise UserError(_with_hint(str(error))) from error
            try:
                self.environment.reset(seed=0)
                self.frame()
                return
            except UserError as error:
                # A window or context that was not made may complain when it is freed.
                sys.unraisablehook = lambda _: None
                self.close()
                fault = str(error)
        warnings.simplefilter("ignore")  # as above, to the process's end
        raise UserError(fault)

    def _check_file(self) -> None:
        kind = self.file.suffix.lower()
        if kind not in (".mp4", ".gif"):
            raise UserError(f"--video {self.file}: the name must end in .mp4 or .gif")
        if kind == ".mp4" and not find_spec("imageio_ffmpeg"):
            raise UserError(
                f"--video {self.file}: .mp4 needs imageio-ffmpeg (pip install 'qsm_bench[video]'); "
                ".gif does not"
            )
        if not self.file.parent.is_dir():
            raise UserError(f"--video {self.file}: there is no folder {self.file.parent}")
        if self.file.is_dir():
            raise UserError(f"--video {self.file}: a folder has that name")
        check_writable(self.file.parent)

    def frame(self) -> Any:
        """An image of the task, [height, width, 3] of uint8. Raises UserError if there is none."""
        try:
            frame = self.environment.render()
        except Exception as error:  # whatever a third party's drawing raises
            reason = f"{type(error).__name__}: {error}"
            raise UserError(
                _with_hint(f"task {self.task!r} cannot be drawn here: {reason}")
            ) from error
        if not (
            isinstance(frame, np.ndarray)
            and frame.dtype == np.uint8
            and frame.ndim == 3
            and frame.shape[-1] == 3
            and frame.size
        ):
            raise UserError(
                f"task {self.task!r} cannot be filmed: render() returned {_described(frame)}; it "
                "must return an image of shape (height, width, 3) and type uint8"
            )
        return frame

    def record_episode(self, policy: Any, seed: int) -> None:
        """Play an episode with ``policy`` (observation -> action), and write the film.

        ``seed`` determines the episode. Raises UserError if the film cannot be made; an older file
        of that name then stays.
        """
        temporary = self.file.with_name(
            f".{os.getpid()}.{self.file.stem}{self.file.suffix.lower()}"
        )
        options: dict[str, Any] = {"duration": 1000 / FRAMES_PER_SECOND}
        if temporary.suffix == ".mp4":
            # The encoder needs even sizes.
            options = {"fps": FRAMES_PER_SECOND, "macro_block_size": 2}
        try:
            with naming(self.file):
                observation, _ = self.environment.reset(seed=derive_seed(seed, "video", bits=31))
                writer: Any
                with imageio.get_writer(temporary, **options) as writer:
                    writer.append_data(self.frame())
                    for _ in range(LONGEST_FILM):
                        action = policy(observation)
                        observation, _, terminated, truncated, _ = self.environment.step(action)
                        writer.append_data(self.frame())
                        if terminated or truncated:
                            break
                temporary.replace(self.file)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            self.close()

    def close(self) -> None:
        """Close the task, whatever it raises."""
        with suppress(Exception):
            self.environment.close()


def _with_hint(fault: str) -> str:
    """The fault, with advice if OpenGL is missing."""
    if not re.search(r"(?i:OpenGL|EGL|OSMesa|GLFW|GLContext)|\bgl[A-Z]", fault):
        return fault
    return (
        f"{fault}; without a display, set MUJOCO_GL=egl (it is {os.environ.get('MUJOCO_GL', '')!r})"
    )


def _described(frame: object) -> str:
    if isinstance(frame, np.ndarray):
        return f"an array of shape {frame.shape} and type {frame.dtype}"
    return "None" if frame is None else f"a {type(frame).__name__}"
