"""Tasks by name, suites of them, and the one-line error for what cannot be had."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from envs import TaskError, find_task, make, task_names
from tests.envs.made_up import UNIT, MadeUp, registered


def error_of(call: Callable[[], Any]) -> str:
    """Return the message of the TaskError that `call` raises; it must be one line."""
    with pytest.raises(TaskError) as caught:
        call()
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def takes_a_step(name: str) -> None:
    env = make(name)
    assert isinstance(env.action_space, spaces.Box)
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space
    observation, reward, *_ = env.step(np.ones(env.action_space.shape, np.float32))
    assert observation in env.observation_space
    assert np.isfinite(observation).all()
    assert np.isfinite(float(reward))
    env.close()


@pytest.mark.parametrize("task", ["cheetah-run", "hopper-hop", "walker-run"])
def test_a_task_of_the_suite_is_made_without_a_word(
    task: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    takes_a_step(task)
    assert caplog.messages == []
    assert capfd.readouterr() == ("", "")


class TestNames:
    def test_a_short_name_and_its_gymnasium_id_are_the_same_task(self) -> None:
        tasks = {name: find_task(name) for name in task_names()}
        assert [task.name for task in tasks.values()] == list(tasks)
        by_id = {name: find_task(task.gymnasium_id) for name, task in tasks.items()}
        assert by_id == tasks

    @pytest.mark.parametrize(
        ("name", "sizes"), [("dog-run", (223, 38)), ("humanoid-run", (67, 21))]
    )
    def test_the_largest_tasks_have_the_sizes_that_others_report(
        self, name: str, sizes: tuple[int, int]
    ) -> None:
        env = make(name)
        assert (env.observation_space.shape, env.action_space.shape) == ((sizes[0],), (sizes[1],))
        env.close()

    def test_a_known_task_says_where_its_score_range_comes_from(self) -> None:
        for task in map(find_task, ["HalfCheetah-v5", *task_names()]):
            assert task.score_range is not None
            zero, one = task.score_range
            assert zero < one, task
            assert task.source

    def test_any_registered_id_is_a_task_without_a_score_range(self) -> None:
        with registered() as name:
            task = find_task(name)
            assert (task.name, task.gymnasium_id) == (name, name)
            assert task.score_range is None
            takes_a_step(name)

    def test_a_module_may_register_a_task_when_it_is_imported(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "made_up_tasks.py").write_text(
            "import gymnasium\ngymnasium.register('FromModule-v0', 'tests.envs.made_up:MadeUp')\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        takes_a_step("made_up_tasks:FromModule-v0")
        message = error_of(lambda: find_task("made_up_tasks:FromModul-v0"))
        assert "'FromModule-v0'" in message

    @pytest.mark.parametrize(
        ("name", "meant"),
        [
            ("walker-wlk", "walker-walk"),
            ("Walker-Walk", "walker-walk"),
            ("four_goals", "four-goals"),
            ("halfcheetah-v5", "HalfCheetah-v5"),
            ("HalfCheetah", "HalfCheetah-v5"),
        ],
    )
    def test_an_unknown_one_is_refused_with_near_names(self, name: str, meant: str) -> None:
        message = error_of(lambda: make(name))
        assert repr(name) in message
        assert repr(meant) in message

    @pytest.mark.parametrize("name", ["", "xyz", "lqr-lqr_2_1", "a\nb"])
    def test_one_that_is_like_no_other_is_refused_with_the_kinds_of_names(self, name: str) -> None:
        message = error_of(lambda: make(name))
        assert repr(name) in message
        for example in ("walker-walk", "bimodal-bandit", "HalfCheetah-v5"):
            assert example in message

    @given(st.text(max_size=20).filter(lambda name: name not in gymnasium.registry))
    def test_any_text_is_a_task_or_a_one_line_error(self, name: str) -> None:
        if name not in task_names():
            assert error_of(lambda: find_task(name))

    def test_an_unknown_module_is_named(self) -> None:
        message = error_of(lambda: make("no_such_module:Some-v0"))
        assert "'no_such_module:Some-v0'" in message
        assert "'no_such_module'" in message

    def test_a_module_that_raises_is_named_with_its_reason(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "broken_tasks.py").write_text("raise RuntimeError('no\\nlicense')\n")
        monkeypatch.syspath_prepend(tmp_path)
        message = error_of(lambda: make("broken_tasks:Some-v0"))
        assert "'broken_tasks:Some-v0'" in message
        assert "no license" in message


def box(low: float | list[float], high: float | list[float], dtype: Any = np.float32) -> spaces.Box:
    return spaces.Box(np.array(low, dtype), np.array(high, dtype), dtype=dtype)


class TestSpaces:
    @pytest.mark.parametrize(
        ("space", "reason"),
        [
            (spaces.Discrete(3), "not a Box of real numbers"),
            (spaces.MultiBinary(3), "not a Box of real numbers"),
            (spaces.Dict({"a": UNIT}), "not a Box of real numbers"),
            (spaces.Box(0, 9, (2,), np.int64), "not a Box of real numbers"),
            (box([-1, -np.inf], [1, 1]), "must have bounds"),
            (box([-1, -1], [1, np.inf]), "must have bounds"),
            (box([-1e10], [1e10], np.float64), "must have bounds"),
            (box([-1, 2], [1, 2]), "must have low < high"),
            (box(-1, 1), "at least one axis and entry"),
            (spaces.Box(-1, 1, (0,)), "at least one axis and entry"),
        ],
        ids=repr,
    )
    def test_an_action_space_without_a_unit_box_is_refused(
        self, space: spaces.Space[Any], reason: str
    ) -> None:
        with registered(action_space=space) as name:
            message = error_of(lambda: make(name))
        assert repr(name) in message
        assert "action space " + " ".join(str(space).split()) in message
        assert reason in message

    @pytest.mark.parametrize(
        "space",
        [
            spaces.Text(5),
            spaces.Graph(UNIT, None),
            spaces.Sequence(UNIT),
            spaces.OneOf([UNIT, UNIT]),
        ],
        ids=lambda space: type(space).__name__,
    )
    @pytest.mark.parametrize("nested", [False, True], ids=["alone", "nested"])
    def test_an_observation_without_a_fixed_size_is_refused(
        self, space: spaces.Space[Any], nested: bool
    ) -> None:
        whole = spaces.Dict({"a": UNIT, "b": spaces.Tuple([space])}) if nested else space
        with registered(observation_space=whole) as name:
            message = error_of(lambda: make(name))
        assert repr(name) in message
        assert f"observation space {space} cannot be flattened" in message
        assert "must be made of Box" in message

    @pytest.mark.parametrize(
        "space",
        [spaces.Dict({}), spaces.Tuple([]), spaces.Box(-1, 1, (0,)), spaces.Box(-1, 1, (2, 0))],
        ids=repr,
    )
    def test_an_observation_without_entries_is_refused(self, space: spaces.Space[Any]) -> None:
        with registered(observation_space=space) as name:
            message = error_of(lambda: make(name))
        assert repr(name) in message
        assert "no entries" in message

    def test_a_refused_environment_is_closed(self) -> None:
        refused: list[MadeUp] = []

        def entry_point() -> MadeUp:
            refused.append(MadeUp(action_space=spaces.Discrete(2)))
            return refused[0]

        with registered(entry_point) as name:
            error_of(lambda: make(name))
        assert refused[0].closed


@pytest.mark.parametrize(
    ("error", "reason"),
    [(ValueError("no\nlicense"), "no license"), (NotImplementedError(), "NotImplementedError")],
    ids=["with a message", "without"],
)
def test_a_constructor_that_raises_is_named_with_its_reason(error: Exception, reason: str) -> None:
    def entry_point() -> MadeUp:
        raise error

    with registered(entry_point) as name:
        message = error_of(lambda: make(name))
    assert repr(name) in message
    assert reason in message


def test_a_render_mode_reaches_the_environment_only_when_it_is_asked_for() -> None:
    asked: list[dict[str, Any]] = []

    def entry_point(**kwargs: Any) -> MadeUp:
        asked.append(kwargs)
        env = MadeUp()
        env.metadata = {"render_modes": ["rgb_array"]}
        env.render_mode = kwargs.get("render_mode")
        return env

    with registered(entry_point) as name:
        make(name)
        make(name, render_mode="rgb_array")
    assert asked == [{}, {"render_mode": "rgb_array"}]
