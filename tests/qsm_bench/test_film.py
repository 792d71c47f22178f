"""Films: what keeps one from being made is found before an episode is played, in one line."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gymnasium
import imageio.v2 as imageio
import numpy as np
import pytest
from gymnasium import spaces

from qsm_bench import film
from qsm_bench.errors import UserError
from qsm_bench.film import Film
from tests.envs.made_up import register

Draw = Callable[[int], Any]


def picture(step: int) -> Any:
    return np.full((61, 67, 3), min(255, 20 * step), np.uint8)  # odd sizes: codecs dislike them


class Drawn(gymnasium.Env[Any, Any]):
    """A task that ends after 5 steps; the class counts the steps of its latest environment."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)
    steps = 0

    def __init__(self, draw: Draw = picture, render_mode: str | None = None) -> None:
        self.draw, self.at = draw, 0
        self.render_mode = render_mode
        Drawn.steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.at = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.at += 1
        Drawn.steps += 1
        return np.zeros(1, np.float32), 0.0, self.at == 5, False, {}

    def render(self) -> Any:
        return self.draw(self.at)


def no_gl(step: int) -> Any:
    raise RuntimeError("an OpenGL platform library has not been loaded\ninto this process")


def no_pygame(step: int) -> Any:
    raise gymnasium.error.DependencyNotInstalled("pygame is not installed")


FAULTS: dict[str, tuple[Draw, str]] = {
    "nothing": (lambda _: None, "render() returned None"),
    "a list": (lambda step: [picture(step)], "render() returned a list"),
    "a text": (lambda _: "+-+", "render() returned a str"),
    "a gray picture": (lambda step: picture(step)[..., 0], "shape (61, 67) and type uint8"),
    "a picture of floats": (lambda step: picture(step) / 255, "type float64"),
    "an empty picture": (lambda step: picture(step)[:0], "shape (0, 67, 3)"),
    "no OpenGL": (no_gl, "set MUJOCO_GL=egl"),
    "no pygame": (no_pygame, "pygame is not installed"),
}
for fault, (draw, _) in FAULTS.items():
    register(f"test_film/{fault.replace(' ', '-')}-v0", Drawn, kwargs={"draw": draw})
register("test_film/Drawn-v0", Drawn)


@pytest.fixture(autouse=True)
def _hook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put Python's hooks back, which a film that fails silences in its own process."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)


def still(observation: Any) -> Any:
    return np.zeros(1, np.float32)


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_drawn_is_found_before_a_step(tmp_path: Path, fault: str) -> None:
    with pytest.raises(UserError) as refusal:
        Film(f"test_film/{fault.replace(' ', '-')}-v0", tmp_path / "film.gif")
    assert FAULTS[fault][1] in str(refusal.value)
    assert ("MUJOCO_GL" in str(refusal.value)) == (fault == "no OpenGL")
    assert Drawn.steps == 0
    assert list(tmp_path.iterdir()) == []


def test_a_task_that_knows_no_render_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="render_mode"):
        Film("four-goals", tmp_path / "film.gif")


@pytest.mark.parametrize("name", ["film.avi", "film", ".gif", "nowhere/film.gif", "folder.gif"])
def test_a_file_that_cannot_be_written_is_found_before_the_task_is_opened(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "folder.gif").mkdir()
    with patch.object(film, "make", side_effect=AssertionError), pytest.raises(UserError):
        Film("test_film/Drawn-v0", tmp_path / name)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    full = OSError(28, "No space left on device")
    with (
        patch("tempfile.TemporaryFile", side_effect=full),
        pytest.raises(OSError, match=str(tmp_path)),
    ):
        Film("test_film/Drawn-v0", tmp_path / "film.gif")


def test_mp4_says_which_extra_it_needs(tmp_path: Path) -> None:
    with (
        patch.object(film, "find_spec", return_value=None),
        pytest.raises(UserError, match=r"pip install 'qsm_bench\[video\]'"),
    ):
        Film("test_film/Drawn-v0", tmp_path / "film.mp4")


@pytest.mark.parametrize("name", ["film.gif", "film.GIF", "film.mp4", "film.MP4"])
def test_a_film_has_a_frame_for_every_state(tmp_path: Path, name: str) -> None:
    Film("test_film/Drawn-v0", tmp_path / name).record_episode(still, seed=0)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    frames = list(imageio.get_reader(tmp_path / name).iter_data())
    assert len(frames) == 6
    brightness = [frame.mean() for frame in frames]
    assert brightness[0] < 10
    assert brightness[-1] > 90


def test_a_film_that_breaks_off_leaves_the_older_one(tmp_path: Path) -> None:
    file = tmp_path / "film.gif"
    file.write_bytes(b"the older one")

    def diverged(observation: Any) -> Any:
        raise UserError("has diverged")

    with pytest.raises(UserError, match="diverged"):
        Film("test_film/Drawn-v0", file).record_episode(diverged, seed=0)
    assert file.read_bytes() == b"the older one"
    assert list(tmp_path.iterdir()) == [file]


def test_an_episode_without_end_is_cut(tmp_path: Path) -> None:
    with patch.object(film, "LONGEST_FILM", 3):
        Film("test_film/Drawn-v0", tmp_path / "film.gif").record_episode(still, seed=0)
    assert Drawn.steps == 3


def test_a_control_task_without_a_display_names_egl_and_nothing_else(tmp_path: Path) -> None:
    program = "import sys; from pathlib import Path; from qsm_bench.ending import ending\n"
    program += "from qsm_bench.film import Film\n"
    program += "with ending(): Film('cartpole-balance', Path('film.gif'))"
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL")
    env = {key: value for key, value in os.environ.items() if key not in hidden}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=env | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "MUJOCO_GL=egl" in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
