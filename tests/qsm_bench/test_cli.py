"""The command line: every wrong input is one line and status 2, every command says what it did."""

import contextlib
import io
import itertools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import Mock, patch

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qsm_bench import cli, plan
from qsm_bench import run as run_module
from qsm_bench.checkpoint import FORMAT, read_state
from qsm_bench.executors import executor, processes
from qsm_bench.experiment import Experiment
from qsm_bench.job_folder import JobFolder
from qsm_bench.results import load_results
from qsm_bench.store import ExperimentStore
from tests.envs.made_up import register
from tests.qsm_bench.jobs import make_experiment
from tests.qsm_bench.processes import ForkedJob, crowding

TINY: tuple[str, ...] = (
    "--seeds=2",
    "--steps=60",
    "--warmup-steps=10",
    "--batch-size=8",
    "--eval-every=25",
    "--seeds-per-job=2",
)
TINY += ("--eval-episodes=2", "--device=cpu")
AGENTS = "sac[hidden_sizes=[8]],td3[hidden_sizes=[8]]"


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


def call(*arguments: str) -> Outcome:
    """Run the command line in this process; it shows no traceback."""
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "argv", ["qsm_bench", *arguments]),
        patch.object(sys, "path", [*sys.path]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        cli.main()
    code = ended.value.code
    assert isinstance(code, int)
    assert "Traceback" not in err.getvalue(), err.getvalue()
    return Outcome(code, out.getvalue(), err.getvalue())


def run(*arguments: str, agents: str = "sac", tasks: str = "bimodal-bandit") -> tuple[str, ...]:
    return ("run", f"--agents={agents}", f"--tasks={tasks}", *TINY, *arguments)


class Environment(gymnasium.Env[Any, Any]):
    def __init__(self, observation_space: spaces.Space[Any] | None = None) -> None:
        self.observation_space = observation_space or spaces.Box(-1, 1, (1,))
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)


class Raises(Environment):
    def __init__(self) -> None:
        raise RuntimeError("the license\nhas expired")


class Words(Environment):
    def __init__(self) -> None:
        super().__init__(spaces.Dict({"words": spaces.Text(8)}))


register("test_cli/Raises-v0", Raises)
register("test_cli/Words-v0", Words)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def assert_refused(outcome: Outcome, message: str = "") -> None:
    assert outcome.status == 2
    assert outcome.out == ""
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert len(outcome.err.split(maxsplit=2)) > 2, "it says nothing"
    assert message in outcome.err


WRONG = {
    # Names.
    "an unknown agent": (run(agents="qms"), "unknown agent 'qms': did you mean 'qsm"),
    "an agent like no other": (run(agents="zzzz"), "it must be one of qsm"),
    "an unknown preset": (run(agents="qsm_refrence"), "did you mean 'qsm_reference'"),
    "a module that is not there": (run(agents="nowhere:Agent"), "no module named 'nowhere'"),
    "a class that is not there": (run(agents="agents.sac:Sack"), "agents.sac has no 'Sack'"),
    "a class that is no agent": (run(agents="pathlib:Path"), "does not keep the protocol"),
    "an agent of no module": (run(agents=":Agent"), "':Agent'"),
    "an agent of no class": (run(agents="agents.sac:"), "'agents.sac:'"),
    "an agent of a relative module": (run(agents=".sac:SAC"), "'.sac:SAC'"),
    "an unknown suite": (
        ("run", "--agents=sac", "--suite=dmc_esy"),
        "unknown suite 'dmc_esy': did you mean 'dmc_easy'",
    ),
    "an unknown task": (run(tasks="four-goal"), "unknown task 'four-goal': did you mean 'four-g"),
    "an unknown task of Gymnasium": (run(tasks="HalfCheeta-v5"), "did you mean 'HalfCheetah-v5"),
    "a task's missing module": (run(tasks="nowhere:Task-v0"), "'nowhere' cannot be imported"),
    "an agent twice": (run(agents="sac,sac"), "agent 'sac' is named twice"),
    "an agent's label twice": (
        run(agents="sac[polyak=0.1],sac[polyak=1e-1]"),
        "agent 'sac[polyak=0.1]' is named twice",
    ),
    "a task twice": (run(tasks="four-goals,four-goals"), "task 'four-goals' is named twice"),
    "no agents": (run(agents=" , "), "--agents is empty"),
    "no tasks": (run(tasks=","), "--tasks is empty"),
    "neither suite nor tasks": (("run", "--agents=sac"), "give either --suite"),
    "both suite and tasks": (run("--suite=small"), "give either --suite"),
    # Settings.
    "an unknown setting": (run(agents="sac[polyac=1]"), "did you mean 'polyak'"),
    "a setting of the wrong type": (run(agents="sac[polyak=soft]"), "'soft' is not right"),
    "a setting out of range": (run(agents="sac[polyak=0]"), "setting polyak of sac: 0 is not"),
    "an endless number": (run(agents="sac[learning_rate=1e999]"), "not a finite number"),
    "a number of 5000 digits": (run(agents=f"sac[learning_rate={'1' * 5000}]"), "learning_rate"),
    "lists of lists": (run(agents=f"sac[polyak={'[' * 9999}{']' * 9999}]"), "polyak"),
    "an open bracket": (run(agents="sac[polyak=1"), "name[setting=value,...]"),
    "--set of another agent": (run("--set=td3.polyak=1"), "agent 'td3' is not in --agents"),
    "--set without agent": (run("--set=alpha=1"), "every agent has no setting 'alpha'"),
    "--set of an unknown setting": (run("--set=sac.polyac=1"), "did you mean 'polyak'"),
    # Options.
    "an unknown command": (("trian",), "trian"),
    "an unknown option": (run("--sedes=3"), "--sedes"),
    "a missing option": (("run", "--tasks=four-goals"), "--agents"),
    "a missing argument": (("report",), "argument"),
    "one argument too many": (("list", "agents", "tasks"), "tasks"),
    "seeds that are none": (run("--seeds=0"), "--seeds"),
    "seeds that are no number": (run("--seeds=two"), "--seeds"),
    "seeds in part": (run("--seeds=1.5"), "--seeds"),
    "a job without seeds": (run("--seeds-per-job=0"), "--seeds-per-job '0': use auto, or"),
    "a job of many seeds": (run("--seeds-per-job=many"), "--seeds-per-job 'many': use auto, or"),
    "one step": (run("--steps=1"), "--steps"),
    "no warm-up": (run("--warmup-steps=0"), "--warmup-steps"),
    "an empty batch": (run("--batch-size=0"), "--batch-size"),
    "evaluation every no steps": (run("--eval-every=0"), "--eval-every"),
    "evaluation of no episodes": (run("--eval-episodes=-1"), "--eval-episodes"),
    "no workers": (run("--workers=0"), "--workers"),
    "checkpoints every no steps": (run("--checkpoint-every=0"), "--checkpoint-every"),
    "nothing but warm-up": (run("--warmup-steps=60"), "--steps 60 leaves nothing to learn"),
    "a device of no kind": (run("--device=abacus"), "--device 'abacus'"),
    "a device that is not there": (run("--device=cuda:99"), "--device 'cuda:99'"),
    "a device of another kind": (run("--device=meta"), "use auto, cpu or cuda"),
    "an empty device": (run("--device="), "use auto, cpu or cuda"),
    "a device of no number": (run("--device=cuda:x"), "use auto, cpu or cuda"),
    "results in a file": (run(f"--results={__file__}"), f"{__file__}"),
    # Tasks that cannot be trained on.
    "discrete actions": (run(tasks="CartPole-v1"), "action space Discrete(2) is not a Box"),
    "observations in words": (run(tasks="test_cli/Words-v0"), "cannot be flattened to a Box"),
    "a task that raises": (run(tasks="test_cli/Raises-v0"), "the license has expired"),
    # Experiments.
    **{
        f"an experiment called {name!r}": (run(f"--name={name}"), "experiment name")
        for name in ("../x", ".x", "a/b", "/tmp", "-x", " ", "a b", "a\nb", "x" * 101, "ä", "..")
    },
    "an experiment without a name": (run("--name="), "experiment name ''"),
    "the report of none": (("report", "none"), "no experiment 'none'"),
    "the report of the program's own record": (
        ("report", "record"),
        "record is a record that comes with the program; it is put beside an experiment of yours: "
        "report NAME --beside record",
    ),
    "the status of none": (("status", "none"), "no experiment 'none'"),
    "the status of a path": (("status", "../none"), "experiment name '../none'"),
    "the report of a path": (("report", "/none"), "experiment name '/none'"),
    "the evaluation of none": (
        ("evaluate", "none", "--agent=sac", "--task=four-goals"),
        "no experiment 'none'",
    ),
    "the evaluation of no agent": (("evaluate", "none", "--task=four-goals"), "--agent"),
    "a run beside no record": (run("--beside=none"), "no record 'none'"),
    "a run beside nothing": (run("--beside="), "--beside '': name a record"),
    "a run beside a file": (run(f"--beside={__file__}"), "cannot be read"),
    "a record that nobody publishes": (("export", "none", "--to=record"), "no experiment 'none'"),
    "a list of something else": (("list", "agent"), "did you mean 'agents'"),
    "a list of anything": (("list", "xyz"), "it must be one of agents, suites, tasks"),
    "the description of an unknown agent": (("describe", "sca"), "did you mean 'sac'"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_input_is_one_line_and_leaves_nothing(folder: Path, wrong: str) -> None:
    arguments, message = WRONG[wrong]
    assert_refused(call(*arguments), message)
    assert list(folder.iterdir()) == []


def test_no_command_shows_the_commands() -> None:
    outcome = call()
    assert outcome.status in (0, 2)
    assert "evaluate" in outcome.out
    assert outcome.err == ""


def test_ctrl_c_before_anything_runs_is_no_traceback(folder: Path) -> None:
    with patch("qsm_bench.run.parse_agents", side_effect=KeyboardInterrupt):
        outcome = call(*run())
    assert outcome.status == 130
    assert "Traceback" not in outcome.err


def test_an_agent_whose_module_raises_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(folder)
    (folder / "agent_that_raises.py").write_text("raise RuntimeError('no license')")
    assert_refused(call(*run(agents="agent_that_raises:Agent")), "no license")


AGENT_THAT_FAILS = """
from tests.qsm_bench.plain_agents import Plain

class Agent(Plain):
    def {method}(self, *given, **named):
        1 / 0
"""


@pytest.mark.parametrize("method", ["act", "update", "state_dict", "load_state_dict"])
def test_an_agent_that_fails_at_what_a_run_asks_for_is_one_line_and_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.syspath_prepend(folder)
    module = f"agent_that_fails_to_{method}"
    (folder / f"{module}.py").write_text(AGENT_THAT_FAILS.format(method=method))
    assert_refused(call(*run(agents=f"{module}:Agent")), f"{method}(")
    assert not (folder / "results").exists()


def test_a_label_too_long_for_a_folder_is_one_line_and_leaves_nothing(folder: Path) -> None:
    widths = ",".join(["256"] * 70)
    assert_refused(call(*run(agents=f"sac[hidden_sizes=[{widths}]]")))
    assert list(folder.iterdir()) == []


ANY_TEXT = st.text(max_size=12) | st.text(alphabet="sactd3[]=,.:/1e-_ \0\n", max_size=24)


@pytest.mark.parametrize("option", ["--agents", "--set", "--tasks", "--name"])
@settings(max_examples=25)
@given(text=ANY_TEXT)
@example(text=":")
@example(text=".:b")
@example(text="..a:b")
@example(text="\0:b")
@example(text="\ud800")
@example(text="sac.polyak=\ud800")
def test_no_text_at_all_is_a_traceback(option: str, text: str) -> None:
    """It is either right or refused in one line."""
    with patch.object(cli, "_show_plan"):
        outcome = call(*run("--dry-run", f"{option}={text}"))
    if outcome.status:
        assert_refused(outcome)


def experiment(**changes: Any) -> Experiment:
    asked = {"steps": 60, "warmup_steps": 10, "eval_every": 25} | changes
    return make_experiment(AGENTS, ("bimodal-bandit",), **asked)


@pytest.fixture
def laid_out(folder: Path) -> Path:
    """Make the folder of an experiment that was written down and never begun."""
    ExperimentStore(folder / "results", "there").prepare(experiment(), "test")
    return folder / "results" / "there"


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        (("--steps=59",), "(steps was 60 and is 59): choose"),
        (
            ("--batch-size=16", "--eval-episodes=3"),
            "batch_size was 8 and is 16; eval_episodes was 2 and is 3): choose",
        ),
    ],
)
def test_another_configuration_under_a_name_is_refused_with_the_difference(
    laid_out: Path, changes: tuple[str, ...], difference: str
) -> None:
    before = {file: file.read_bytes() for file in laid_out.rglob("*") if file.is_file()}
    outcome = call(*run("--name=there", *changes, agents=AGENTS))
    assert_refused(outcome, difference)
    after = {file: file.read_bytes() for file in laid_out.rglob("*") if file.is_file()}
    assert {file: text for file, text in after.items() if file.name[0] != "."} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("status", "ther"), "did you mean 'there'"),
        (("evaluate", "there", "--agent=sac", "--task=bimodal-bandit"), "no agent 'sac'"),
        (
            ("evaluate", "there", "--agent=td3[hidden_sizes=[8]]", "--task=four-goals"),
            "no task 'four-goals': it must be one of bimodal-bandit",
        ),
        (
            ("evaluate", "there", "--agent=td3[hidden_sizes=[8]]", "--task=bimodal-bandit"),
            "has no checkpoint yet",
        ),
    ],
)
def test_a_job_that_is_not_there_is_refused(
    laid_out: Path, arguments: tuple[str, ...], message: str
) -> None:
    assert_refused(call(*arguments), message)


@pytest.mark.parametrize(
    ("field", "value"), [("gymnasium_id", "nowhere:Task-v0"), ("agent_name", "nowhere:Agent")]
)
def test_evaluating_what_is_no_longer_installed_is_one_line(
    laid_out: Path, field: str, value: str
) -> None:
    (job_folder, _) = ExperimentStore(laid_out.parent, "there").job_folders()
    manifest = json.loads(job_folder.manifest_file.read_text())
    manifest["job"][field] = value
    if field == "gymnasium_id":
        manifest["job"]["task"] = value
    else:
        job_folder.checkpoint.mkdir()
        torch.save({"format": FORMAT, "agent": {}, "step": 0}, job_folder.checkpoint / "state.pt")
    job_folder.manifest_file.write_text(json.dumps(manifest))
    arguments = (f"--agent={manifest['job']['agent']}", "--task=bimodal-bandit")
    assert_refused(call("evaluate", "there", *arguments), "nowhere")


def test_a_checkpoint_that_is_cut_off_is_one_line(laid_out: Path) -> None:
    (job_folder, _) = ExperimentStore(laid_out.parent, "there").job_folders()
    job_folder.checkpoint.mkdir()
    (job_folder.checkpoint / "state.pt").write_bytes(b"PK\x03\x04")
    agent = job_folder.read_manifest().job.agent
    outcome = call("evaluate", "there", f"--agent={agent}", "--task=bimodal-bandit")
    assert_refused(outcome, "state.pt")


def test_a_dry_run_shows_the_jobs_and_writes_nothing(folder: Path) -> None:
    outcome = call(*run("--dry-run", "--workers=1", agents=AGENTS, tasks="four-goals"))
    assert outcome.status == 0
    assert list(folder.iterdir()) == []
    assert outcome.err == ""
    lines = outcome.out.splitlines()
    for line, agent in zip(lines[1:3], ("sac", "td3"), strict=True):
        assert line.split()[:2] == [f"{agent}[hidden_sizes=[8]]", "four-goals"]
    assert "2 jobs, 1 at a time" in outcome.out


@contextlib.contextmanager
def costing(seconds: float) -> Iterator[Mock]:
    """Let every job of a dry run take that long, 25 s of it compiling; count memory estimates."""
    cost = plan.Cost(seconds, start_seconds=25.0, disk_bytes=10)
    with (
        patch.object(run_module, "why_not_compiled", return_value=None),
        patch.object(run_module, "estimate_memory", wraps=plan.estimate_memory) as estimated,
        patch.object(plan, "calibrate", side_effect=lambda jobs: [cost for _ in jobs]),
    ):
        yield estimated


@pytest.mark.usefixtures("folder")
def test_a_dry_run_measures_memory_once_and_says_that_updates_were_timed_compiled() -> None:
    with costing(3720.0) as estimated:
        command = ("--dry-run", "--workers=1", "--compile=on")
        outcome = call(*run(*command, agents=AGENTS, tasks="four-goals"))
    assert outcome.status == 0
    estimated.assert_called_once()
    assert "Updates were timed compiled; compiling takes up to 25 s of each job." in outcome.out
    assert "2 jobs, 1 at a time" in outcome.out
    assert "about 2 h 04 min" in outcome.out


@pytest.mark.usefixtures("folder")
def test_a_run_that_would_gain_by_compiling_and_cannot_says_why() -> None:
    command = ("--workers=1", "--steps=40")
    lacking = patch.object(run_module, "why_not_compiled", return_value="there is no compiler")
    with costing(60.0), lacking, patch.object(run_module, "WORTH_COMPILING", 10):
        dry = call(*run(*command, "--dry-run", agents=AGENTS, tasks="four-goals"))
        with patch.object(run_module, "show_and_run", lambda *_, **__: executor.Outcome()):
            real = call(*run(*command, agents=AGENTS, tasks="four-goals"))
        silent = call(*run(*command, "--dry-run", "--compile=off", agents=AGENTS))
    assert "Updates will not be compiled: there is no compiler." in dry.out
    assert "updates are not compiled: there is no compiler" in real.out
    assert "not compiled" not in silent.out


def test_a_dry_run_leaves_out_what_is_finished(laid_out: Path) -> None:
    first, second = ExperimentStore(laid_out.parent, "there").job_folders()
    command = run("--name=there", "--dry-run", "--workers=1", agents=AGENTS)
    for left, folder in ((1, first), (0, second)):
        manifest = folder.read_manifest()
        manifest.status = "finished"
        folder.write_manifest(manifest)
        with costing(3720.0):
            outcome = call(*command)
        assert outcome.status == 0
        told, *plan_lines = outcome.out.splitlines()
        assert told == f"left out, as finished or damaged: {('2 jobs', '1 job')[left]}"
        assert plan_lines
        assert (plan_lines == ["nothing is left to run of there"]) == (not left)
        assert ("1 job, 1 at a time" in outcome.out) == bool(left)
        assert ("about 1 h 02 min" in outcome.out) == bool(left)


@pytest.mark.parametrize(
    ("what", "shown"),
    [
        ("agents", ["qsm", "qsm_reference", "sac", "td3", "diffusion_ql", "diffusion_pg"]),
        ("suites", ["dmc_easy_medium", "quick", "small"]),
        ("tasks", ["cartpole-swingup", "bimodal-bandit", "four-goals", "linear-quadratic"]),
    ],
)
def test_a_list_has_one_line_each(what: str, shown: list[str]) -> None:
    outcome = call("list", what)
    assert outcome.status == 0
    names = [line.split()[0] for line in outcome.out.splitlines()]
    assert set(shown) <= set(names)
    assert len(set(names)) == len(names)


def test_an_agent_without_a_docstring_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -OO` leaves none."""
    monkeypatch.setattr("inspect.getdoc", lambda _: None)
    outcome = call("list", "agents")
    assert outcome.status == 0
    assert "qsm_reference" in outcome.out


def test_a_description_has_every_setting_with_its_default() -> None:
    outcome = call("describe", "sac")
    assert outcome.status == 0
    for line in ("hidden_sizes = (256, 256)", "learning_rate = 0.0003", "polyak = 0.005"):
        assert line in outcome.out


def test_status_shows_jobs_that_wait(laid_out: Path) -> None:
    outcome = call("status", "there")
    assert outcome.status == 0
    assert outcome.out.splitlines() == [
        f"{agent}[hidden_sizes=[8]] on bimodal-bandit: pending, step 0/60"
        for agent in ("sac", "td3")
    ]


ROOT = Path(__file__).parents[2]
REAL_TASKS, REAL_AGENTS = ("linear-quadratic",), ("sac[hidden_sizes=[8]]", "td3[hidden_sizes=[8]]")
REAL: tuple[str, ...] = (
    "run",
    f"--agents={AGENTS}",
    "--tasks=linear-quadratic",
    "--name=real",
    *TINY,
)
REAL += ("--steps=240", "--eval-every=120", "--workers=2")


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start the command line as a user has it, in a separate session."""
    return subprocess.Popen(
        [sys.executable, "-m", "qsm_bench", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A test run in the background hands down that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


class Real(NamedTuple):
    folder: Path
    out: str

    @property
    def job_folders(self) -> list[JobFolder]:
        return list(ExperimentStore(self.folder / "results", "real").job_folders())


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Real:
    """Run an experiment to its end; return its folder and what it printed."""
    folder = tmp_path_factory.mktemp("real")
    process = start(folder, *REAL)
    out, err = process.communicate(timeout=120 * crowding())
    assert process.returncode == 0, err
    assert err == ""
    return Real(folder, out)


@pytest.fixture
def in_real(real: Real, monkeypatch: pytest.MonkeyPatch) -> Real:
    monkeypatch.chdir(real.folder)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return real


def test_a_run_leaves_an_evaluation_for_every_seed_step_and_episode(real: Real) -> None:
    evaluations = load_results(real.folder / "results", "real").evaluations
    found = evaluations[["agent", "task", "step", "seed", "episode"]].itertuples(index=False)
    assert sorted(map(tuple, found)) == sorted(
        itertools.product(REAL_AGENTS, REAL_TASKS, (120, 240), (0, 1), (0, 1))
    )
    assert np.isfinite(evaluations["return"]).all()
    assert (evaluations["length"] == 50).all()


def test_a_manifest_says_what_ran_and_on_what(real: Real) -> None:
    for job_folder, agent in zip(real.job_folders, REAL_AGENTS, strict=True):
        manifest = job_folder.read_manifest()
        assert manifest.status == "finished"
        assert manifest.reason is None
        assert manifest.job.agent == agent
        assert manifest.job.settings["hidden_sizes"] in ([8], (8,))
        assert (manifest.step, manifest.updates) == (240, 230)
        assert manifest.train_seconds > 0
        (stretch,) = manifest.stretches
        assert {"python", "torch", "gymnasium", "numpy"} <= stretch.versions.keys()
        assert stretch.hardware["cores"] >= 1
        assert (stretch.first_step, stretch.last_step) == (0, 240)
        assert stretch.started is not None
        assert stretch.ended is not None
        assert stretch.started <= stretch.ended
        assert stretch.command.startswith("python -m qsm_bench run ")
        assert "--steps=240" in stretch.command


def test_a_finished_job_keeps_its_policy_and_its_replay_buffer(real: Real) -> None:
    for job_folder in real.job_folders:
        left = sorted(file.name for file in job_folder.checkpoint.iterdir())
        assert left == ["replay.f32", "state.pt"]
        assert not list(job_folder.path.rglob("*.tmp"))


def test_a_log_has_plain_lines_of_every_job(real: Real) -> None:
    assert "\x1b" not in real.out
    assert real.out.isascii()
    *lines, last = real.out.splitlines()
    assert shlex.join([sys.executable, "-m", "qsm_bench", "report", "real"]) in last
    for agent in REAL_AGENTS:
        job_folder = f"{agent} on linear-quadratic: "
        # A job may be over before anybody looked, so that none of its lines need say "running".
        *earlier, end = [
            line.removeprefix(job_folder) for line in lines if line.startswith(job_folder)
        ]
        assert all(line.startswith("running, step ") for line in earlier)
        assert end.startswith("finished, step 240/240, return ")


def test_a_second_run_skips_what_is_finished(in_real: Real) -> None:
    before = {
        job_folder.path: job_folder.manifest_file.read_bytes() for job_folder in in_real.job_folders
    }
    outcome = call(*REAL)
    assert outcome.status == 0, outcome.err
    assert "skipped: 2 finished jobs" in outcome.out
    assert {
        job_folder.path: job_folder.manifest_file.read_bytes() for job_folder in in_real.job_folders
    } == before


def test_status_shows_jobs_that_finished(in_real: Real) -> None:
    outcome = call("status", "real")
    assert outcome.status == 0
    for agent, line in zip(REAL_AGENTS, outcome.out.splitlines(), strict=True):
        assert line.startswith(f"{agent} on linear-quadratic: finished, step 240/240, return ")


def test_evaluate_plays_every_seed_on_fresh_episodes(in_real: Real) -> None:
    arguments = (f"--agent={REAL_AGENTS[0]}", "--task=linear-quadratic", "--episodes=3")
    outcome = call("evaluate", "real", *arguments)
    assert outcome.status == 0, outcome.err
    lines = outcome.out.splitlines()
    assert [line.split()[:3] for line in lines] == [["seed", s, "mean"] for s in ("0", "1")]
    assert all(line.endswith("(3 episodes, step 240)") for line in lines)
    assert call("evaluate", "real", *arguments) == outcome


def test_what_was_trained_on_a_gpu_is_evaluated_without_one(real: Real, folder: Path) -> None:
    shutil.copytree(real.folder / "results", folder / "results")
    (job_folder, _) = ExperimentStore(folder / "results", "real").job_folders()
    manifest = json.loads(job_folder.manifest_file.read_text("utf-8"))
    manifest["job"]["device"] = "cuda:7"
    job_folder.manifest_file.write_text(json.dumps(manifest), "utf-8")
    arguments = (f"--agent={REAL_AGENTS[0]}", "--task=linear-quadratic", "--episodes=1")
    outcome = call("evaluate", "real", *arguments)
    assert (outcome.status, outcome.err) == (0, "")
    said, *seeds = outcome.out.splitlines()
    assert said.startswith("evaluated on the CPU: cuda")
    assert [line.split()[:2] for line in seeds] == [["seed", "0"], ["seed", "1"]]


@pytest.mark.parametrize("video", ["film.avi", "film.gif", "nowhere/film.gif"])
def test_a_film_that_cannot_be_made_is_one_line(in_real: Real, video: str) -> None:
    """The small tasks draw nothing."""
    arguments = (f"--agent={REAL_AGENTS[0]}", "--task=linear-quadratic", "--episodes=1")
    outcome = call("evaluate", "real", *arguments, f"--video={video}")
    assert outcome.status == 2
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert not list(in_real.folder.rglob("film.*"))


def test_ctrl_c_stops_soon_and_resuming_leaves_the_bytes_of_an_uninterrupted_run(
    folder: Path,
) -> None:
    # Long enough not to be over by the time that it is asked to stop.
    long = (
        "run",
        f"--agents={REAL_AGENTS[1]}",
        "--tasks=linear-quadratic",
        "--name=long",
        *TINY,
        "--steps=2000",
        "--eval-every=1000",
    )
    process = start(folder, *long)
    deadline = time.monotonic() + 60 * crowding()
    while not list(folder.rglob("progress.json")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    asked = time.monotonic()
    _, err = process.communicate(timeout=30 * crowding())
    assert time.monotonic() - asked < 5 * crowding()
    assert process.returncode == 130
    assert "Traceback" not in err
    assert f"to go on: {sys.executable} -m qsm_bench {shlex.join(long)}\n" in err
    (job_folder,) = ExperimentStore(folder / "results", "long").job_folders()
    manifest = job_folder.read_manifest()
    assert manifest.status == "interrupted"
    assert 0 < manifest.step < 2000

    with patch.object(processes, "_start", ForkedJob):
        outcomes = call(*long), call(*long, "--name=uncut")
    assert all(outcome.status == 0 for outcome in outcomes), outcomes
    (uncut,) = ExperimentStore(folder / "results", "uncut").job_folders()
    assert job_folder.evaluations_file.read_bytes() == uncut.evaluations_file.read_bytes()
    assert job_folder.read_manifest().status == "finished"
    own, other = (read_state(c.checkpoint / "state.pt")["agent"] for c in (job_folder, uncut))
    torch.testing.assert_close(own, other, rtol=0, atol=0)


def test_a_job_that_fails_is_named_with_its_log(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task can be built by one process, for the checks before the run, and by no other."""
    monkeypatch.syspath_prepend(folder)
    (folder / "built_once.py").write_text(BUILT_ONCE)
    with patch.object(processes, "_start", ForkedJob):
        outcome = call(*run("--name=fails", tasks="built_once:BuiltOnce-v0"))
    assert outcome.status == 1
    (line,) = outcome.err.splitlines()
    assert line.startswith("not finished: ")
    assert "was built before" in line
    log = Path(line.rpartition("its log: ")[2])
    assert "Traceback" in log.read_text()


BUILT_ONCE = """
import os
from pathlib import Path

import gymnasium

from envs.linear_quadratic import LinearQuadratic


class BuiltOnce(LinearQuadratic):
    def __init__(self):
        if Path("built").exists() and Path("built").read_text() != str(os.getpid()):
            raise RuntimeError("was built before")
        Path("built").write_text(str(os.getpid()))
        super().__init__()


gymnasium.register("BuiltOnce-v0", BuiltOnce, max_episode_steps=5)
"""


def test_the_precision_of_products_is_a_setting_of_every_agent(tmp_path: Path) -> None:
    refused = call(*run("--matmul-precision=tf32", f"--results={tmp_path}"))
    assert refused.status == 2
    assert "setting matmul_precision of sac: 'tf32': only GPUs have tf32" in refused.err
    assert len(refused.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())
