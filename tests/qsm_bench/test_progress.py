"""What is shown of the jobs: a line in a log, a row on a terminal, hours in words."""

import io
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from qsm_bench import heartbeat, progress, worker
from qsm_bench.counting import duration
from qsm_bench.heartbeat import Heartbeat
from qsm_bench.job_folder import JobFolder
from qsm_bench.manifest import Manifest
from qsm_bench.plan import makespan
from qsm_bench.progress import Display, JobState, job_state, states_view
from qsm_bench.protocol import Protocol
from qsm_bench.store import ExperimentStore
from tests.qsm_bench.jobs import make_experiment, make_job


@pytest.fixture
def folders(tmp_path: Path) -> list[JobFolder]:
    experiment = make_experiment(
        "sac,qsm[alpha=10]", name="test", steps=3000, warmup_steps=10, eval_episodes=1
    )
    return ExperimentStore(tmp_path, "test").prepare(experiment, "a command")


def update(folder: JobFolder, **changes: Any) -> None:
    folder.write_manifest(folder.read_manifest().model_copy(update=changes))


def sign(folder: JobFolder, **told: Any) -> None:
    """Write a sign of life of this process, with these entries."""
    Heartbeat(folder.progress_file, lambda: told).write()


def tell(folder: JobFolder, step: int, last_return: float | None = None) -> None:
    told = {"step": step, "return": last_return, "updates_per_second": 50.4, "seconds_left": 80.0}
    sign(folder, **told)


@pytest.mark.parametrize("updates_per_step", [1, 20])
def test_the_time_left_is_at_the_pace_of_steps_with_updates(
    updates_per_step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warm-up, and the minute of compiling behind it, say nothing of what is left."""
    protocol = Protocol(
        steps=10_000, warmup_steps=1_000, updates_per_step=updates_per_step, eval_every=1_000
    )
    training: Any = SimpleNamespace(
        job=SimpleNamespace(seeds=(0, 1), protocol=protocol),
        saved=0,
        last_return=None,
        status=SimpleNamespace(diverged={}, failed={}),
    )

    def stand(at: float, step: int) -> None:
        monkeypatch.setattr(time, "monotonic", lambda: at)
        training.step, training.updates = step, protocol.updates_by(step)
        training.train_seconds = at

    told = worker.Progress()
    assert told() == {}
    stand(0.0, 0)
    told.follow(training)
    assert told()["seconds_left"] is None
    stand(2.0, 1_000)
    assert told()["seconds_left"] == 18.0  # nothing is known but the pace of the warm-up
    stand(62.0, 1_010)  # a minute of compiling
    assert told()["step"] == 1_010
    stand(72.0, 1_510)
    assert told()["seconds_left"] == pytest.approx((10_000 - 1_510) / 50)
    assert told()["updates_per_second"] == pytest.approx(2 * 50 * updates_per_step)
    told.follow(training)  # as one that goes on there
    stand(73.0, 1_530)
    stand(83.0, 2_030)
    assert told()["seconds_left"] == pytest.approx((10_000 - 2_030) * 11 / 520)
    stand(183.0, 10_000)
    assert told()["seconds_left"] == 0.0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (360_000, "100 h 00 min"),
    ],
)
def test_a_duration_is_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@given(st.floats(0, 1e6))
def test_a_duration_in_words_is_right_to_a_minute(seconds: float) -> None:
    units = {"h": 3600, "min": 60, "s": 1}
    words = duration(seconds).split()
    told = sum(int(n) * units[unit] for n, unit in zip(words[::2], words[1::2], strict=True))
    assert abs(told - seconds) <= (60 if "h" in words else 0.5)
    assert all(int(n) < 60 for n in words[2::2])


def test_a_line_tells_what_is_known(folders: list[JobFolder]) -> None:
    sac, qsm = folders
    assert job_state(sac).line == "sac on four-goals: pending, step 0/3,000"
    update(sac, status="running")
    sign(sac)
    assert job_state(sac).line == "sac on four-goals: running, step 0/3,000"
    tell(sac, 1200, -3.25)
    assert job_state(sac).line == (
        "sac on four-goals: running, step 1,200/3,000, return -3.2, 50 updates/s, 1 min 20 s left"
    )
    update(sac, status="finished", step=3000)
    assert job_state(sac).line == "sac on four-goals: finished, step 3,000/3,000, return -3.2"
    update(qsm, status="failed", reason="ValueError: no", step=7)
    assert job_state(qsm).line == (
        "qsm[alpha=10] on four-goals: failed, step 7/3,000, ValueError: no"
    )


def test_a_seed_that_diverged_is_told_while_its_job_runs_and_after(
    folders: list[JobFolder],
) -> None:
    line = "sac on four-goals: running, step 1,200/3,000, seed 1 diverged at step 1,100"
    update(folders[0], status="running")
    sign(folders[0], step=1200, diverged={1: 1100})
    assert job_state(folders[0]).line == line
    update(folders[0], status="finished", step=3000, diverged={1: 1100})
    folders[0].progress_file.unlink()
    assert job_state(folders[0]).line == line.replace("running, step 1,200", "finished, step 3,000")
    display, out = shown(folders, terminal=True)
    with display.context():
        display.show()
    assert "sac on four-goals: seed 1 diverged at step 1,100" in out.getvalue()


def shown(folders: list[JobFolder], *, terminal: bool) -> tuple[Display, io.StringIO]:
    out = io.StringIO()
    return Display(lambda: folders, Console(file=out, force_terminal=terminal, width=120)), out


def test_a_log_gets_a_line_for_news_and_none_for_no_news(
    folders: list[JobFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    display, out = shown(folders, terminal=False)
    display.show()
    assert out.getvalue() == ""
    update(folders[1], status="running")
    sign(folders[1])
    display.show()
    assert out.getvalue() == "qsm[alpha=10] on four-goals: running, step 0/3,000\n"
    tell(folders[1], 500)
    display.show()
    assert out.getvalue().count("\n") == 1
    tell(folders[1], 1000, 1.5)
    display.show()
    display.show()
    assert out.getvalue().count("\n") == 2
    assert "return 1.5" in out.getvalue()
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    display.show()
    assert out.getvalue().count("\n") == 3


def test_a_job_that_comes_later_is_shown(folders: list[JobFolder]) -> None:
    """In stages, jobs of a later one appear when it begins."""
    there, out = folders[:1], io.StringIO()
    display = Display(lambda: there, Console(file=out, width=120))
    update(folders[0], status="finished", step=3000)
    display.show()
    assert not display.working
    update(folders[1], status="running")
    sign(folders[1])
    there = folders
    display.show()
    assert display.working
    assert "qsm[alpha=10] on four-goals: running" in out.getvalue()


def test_what_is_refreshed_often_is_shown_once_a_second(
    folders: list[JobFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    display, _ = shown(folders, terminal=False)
    times = []
    monkeypatch.setattr(display, "show", lambda: times.append(now))
    for _ in range(35):
        display.refresh()
        now += 0.1
    assert len(times) in (3, 4)


def test_a_terminal_gets_a_table_of_all_jobs(folders: list[JobFolder]) -> None:
    update(folders[0], status="running")
    tell(folders[0], 1500, 2.0)
    update(folders[1], status="failed", reason="MemoryError: [bold]none[/bold] left")
    display, out = shown(folders, terminal=True)
    with display.context():
        display.show()
    text = out.getvalue()
    for part in ("1,500/3,000", "2.0", "1 min 20 s", "qsm[alpha=10]", "[bold]none[/bold] left"):
        assert part in text


KEYS = st.sampled_from(
    [
        "step",
        "return",
        "updates_per_second",
        "seconds_left",
        "diverged",
        "saved",
        "place",
        "pid",
        "born",
        "time",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inside: st.lists(inside, max_size=2) | st.dictionaries(st.text(max_size=2), inside),
    max_leaves=3,
)


@given(told=st.dictionaries(KEYS, VALUES), status=st.sampled_from(["running", "finished"]))
def test_whatever_progress_says_it_is_a_line(
    tmp_path_factory: pytest.TempPathFactory, told: dict[str, Any], status: Any
) -> None:
    folder = JobFolder(tmp_path_factory.getbasetemp() / "told")
    folder.write_manifest(Manifest(job=make_job(), status=status))
    sign(folder, **told)
    assert job_state(folder).line.startswith("td3[hidden_sizes=[8]] on four-goals: ")
    Console(file=io.StringIO()).print(states_view([job_state(folder)], 80))


STATES = st.builds(
    JobState,
    agent=st.text(max_size=9),
    task=st.text(max_size=9),
    status=st.sampled_from(["pending", "running", "finished", "failed", "interrupted"]),
    step=st.integers(0, 10**7),
    steps=st.integers(1, 10**7),
    last_return=st.none() | st.floats(),
    updates_per_second=st.none() | st.floats(0, 1e6),
    seconds_left=st.none() | st.floats(0, 1e9),
    reason=st.none() | st.text(max_size=9),
    diverged=st.dictionaries(st.integers(0, 99), st.integers(0, 10**7), max_size=2),
    log_tail=st.lists(st.text(max_size=9), max_size=2).map(tuple),
)


@given(st.lists(STATES, max_size=3))
def test_any_states_can_be_shown(states: list[JobState]) -> None:
    Console(file=io.StringIO()).print(states_view(states, 80))
    for state in states:
        assert state.status in state.line


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=9), st.integers(1, 9))
def test_a_makespan_is_between_its_bounds(seconds: list[float], workers: int) -> None:
    span = makespan(seconds, workers)
    tolerance = 1e-6 * sum(seconds)
    assert span >= max(max(seconds), sum(seconds) / workers) - tolerance
    assert span <= sum(seconds) / workers + max(seconds) + tolerance


def test_one_worker_takes_the_sum_and_enough_take_the_longest() -> None:
    assert makespan([3.0, 1.0, 2.0], 1) == 6.0
    assert makespan([3.0, 1.0, 2.0], 3) == 3.0
    assert makespan([1.0, 1.0, 2.0], 2) == 3.0


@pytest.mark.parametrize("width", [30, 40, 60, 80, 120, 200])
def test_names_and_steps_are_whole_on_a_terminal_of_any_width(width: int) -> None:
    states = [
        JobState(
            agent=f"qsm[alpha={alpha}]",
            task="cartpole-swingup",
            seeds=(),
            status="running",
            step=123_456,
            steps=1_000_000,
            last_return=512.5,
            updates_per_second=150.0,
            seconds_left=7500.0,
            reason=None,
        )
        for alpha in (10, 20)
    ]
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    with console.capture() as shown:
        console.print(states_view(states, width))
    lines = shown.get().splitlines()
    assert max(map(len, lines)) <= width
    text = shown.get().replace("\n", "")
    whole = "".join(text.split())
    for number in ("123,456/1,000,000", "512.5", "running"):
        assert whole.count(number) == 2
    assert "…" not in text
    if width >= 120:
        assert all(f"qsm[alpha={alpha}]" in text for alpha in (10, 20))
    # Of a name in several lines each line is a part: that which tells them apart is there.
    assert all(f"{alpha}]" in whole for alpha in (10, 20))


@pytest.mark.parametrize("beat", [0.001, 1e9])
def test_a_job_that_is_seen_to_be_over_is_seen_with_its_last_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beat: float
) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", beat)  # all the time, or never
    folder = JobFolder(tmp_path)
    folder.write_manifest(Manifest(job=make_job()))
    seen = []
    write = JobFolder.write_manifest

    def look(self: JobFolder, manifest: Manifest) -> None:
        write(self, manifest)
        seen.append(job_state(self))

    monkeypatch.setattr(JobFolder, "write_manifest", look)
    worker.work(tmp_path, checkpoint_every=1000)
    after = job_state(folder)
    over = [state for state in seen if state.status == "finished"]
    assert over
    assert after.last_return is not None
    assert {state.line for state in over} == {after.line}
