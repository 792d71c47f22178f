"""How commands end: one line for what a user or a disk does wrong, a traceback for our own bugs."""

import errno
import os
import shlex
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from qsm_bench import cli
from qsm_bench.ending import BAD_INPUT, BUG, ending
from qsm_bench.errors import UserError, one_line
from qsm_bench.store import ExperimentStore
from tests.qsm_bench.test_cli import assert_refused, call, experiment

ROOT = Path(__file__).parents[2]
QSM_BENCH = f"{shlex.quote(sys.executable)} -m qsm_bench"
HUGE: tuple[str, ...] = (
    "1" + "0" * 30,
    "-1" + "0" * 30,
    "9" * 5000,
    "nan",
    "inf",
    "-inf",
    "1e5",
    "",
    " ",
)
HUGE += ("\x1b[31m",)


def shell(folder: Path, command: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run ``command`` as a user's shell does; QSM in it stands for the command line."""
    return subprocess.run(
        ["bash", "-c", command.replace("QSM", QSM_BENCH)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def assert_one_line(done: subprocess.CompletedProcess[str], message: str) -> None:
    assert done.returncode == BAD_INPUT, done
    assert done.stderr.startswith("error: "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr


@pytest.fixture
def laid_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    ExperimentStore(tmp_path / "results", "there").prepare(experiment(), "test")
    return tmp_path


@pytest.mark.parametrize("command", ["list suites", "describe qsm", "--help", "status there"])
def test_output_that_cannot_be_written_is_no_traceback(laid_out: Path, command: str) -> None:
    assert_one_line(shell(laid_out, f"QSM {command} > /dev/full"), "standard output")
    closed = shell(laid_out, f"QSM {command} >&-")
    assert (closed.returncode, closed.stderr) == (0, "")
    read = shell(laid_out, f"QSM {command} | head -c 1")
    assert read.stderr == ""


def test_nothing_but_one_line_is_said_where_standard_error_is_closed(tmp_path: Path) -> None:
    done = shell(tmp_path, "QSM status none 2>&-")
    assert (done.returncode, done.stdout, done.stderr) == (BAD_INPUT, "", "")


def test_an_ascii_locale_shows_what_it_can(tmp_path: Path) -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    done = shell(tmp_path, "QSM describe qsm", **ascii_only)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()
    done = shell(tmp_path, "QSM status ä --results bäh", **ascii_only)
    assert_one_line(done, "no experiment")
    done = shell(tmp_path, "QSM run --agents sac --tasks ä --name x --dry-run", **ascii_only)
    assert_one_line(done, "task")


@pytest.mark.slow
def test_a_run_under_an_ascii_locale_and_in_a_folder_that_is_none(tmp_path: Path) -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    tiny = "--seeds=1 --steps=60 --warmup-steps=20 --batch-size=8 --eval-every=60"
    run = f"QSM run --agents='sac[hidden_sizes=[8]]' --tasks=bimodal-bandit {tiny}"
    done = shell(tmp_path, f"{run} --eval-episodes=1 --results 'bäh hm'", **ascii_only)
    assert done.returncode == 0, done
    (line,) = [line for line in done.stdout.splitlines() if "the report: " in line]
    assert shell(tmp_path, line.partition("the report: ")[2].rstrip()).returncode == 0 or (
        "\\x" in line or "\\udc" in line  # what ASCII cannot show
    )
    done = shell(tmp_path, "QSM report bimodal-bandit --results 'bäh hm'", **ascii_only)
    assert done.returncode == 0, done


@pytest.mark.slow
def test_the_printed_command_writes_the_report_when_it_is_pasted(tmp_path: Path) -> None:
    tiny = "--seeds=1 --steps=60 --warmup-steps=20 --batch-size=8 --eval-every=60"
    run = f"QSM run --agents='sac[hidden_sizes=[8]]' --tasks=bimodal-bandit {tiny}"
    for options, env in (("--results 'else where[1]'", {}), ("", {"QSM_RESULTS": "from it's env"})):
        done = shell(tmp_path, f"{run} --eval-episodes=1 {options}", **env)
        assert done.returncode == 0, done
        pasted = done.stdout.partition("the report: ")[2]
        done = shell(tmp_path, pasted)
        assert done.returncode == 0, (pasted, done)
        assert (tmp_path / "reports/bimodal-bandit/index.html").exists()


def test_a_working_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    done = shell(tmp_path, "mkdir gone; cd gone; rmdir ../gone; QSM list suites")
    assert_one_line(done, "the working folder: No such file or directory")


def test_neither_home_nor_a_place_for_temporary_files_is_needed_to_list(tmp_path: Path) -> None:
    done = shell(tmp_path, "unset HOME; TMPDIR=/nowhere QSM list agents")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", ["report there", "compare there there"])
@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EROFS])
def test_a_report_that_cannot_be_written_is_one_line(
    laid_out: Path, command: str, fault: int
) -> None:
    error = OSError(fault, os.strerror(fault))
    with (
        patch("qsm_bench.report.write_report", side_effect=error),
        patch("qsm_bench.report.compare.write_comparison", side_effect=error),
    ):
        assert_refused(call(*command.split()), "reports/there")
    assert not (laid_out / "reports").exists()


@pytest.mark.parametrize("text", HUGE)
@pytest.mark.parametrize(
    "option",
    [
        *(f"run --{name}" for name in ("seeds", "steps", "warmup-steps", "batch-size", "workers")),
        *(f"run --{name}" for name in ("eval-every", "eval-episodes", "checkpoint-every")),
        *("evaluate --episodes", "regress --seeds", "regress --first-seed", "regress --workers"),
    ],
)
def test_a_number_that_is_none_or_cannot_be_meant_is_refused(
    laid_out: Path, option: str, text: str
) -> None:
    if "--workers" in option and text.isdigit():
        return  # no more are started than there are jobs
    command, name = option.split()
    rest = {
        "run": ("--agents=sac", "--tasks=four-goals", "--dry-run"),
        "evaluate": ("there", "--agent=sac", "--task=four-goals"),
        "regress": (),
    }[command]
    assert_refused(call(command, *rest, f"{name}={text}"), name)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many"])
@pytest.mark.parametrize("option", ["--steps", "--updates-per-step", "--batch-size", "--workers"])
def test_a_number_that_is_not_right_is_shown(laid_out: Path, option: str, text: str) -> None:
    refused = call("run", "--agents=sac", "--tasks=four-goals", f"{option}={text}")
    assert_refused(refused, option)
    assert repr(text) in refused.err


@pytest.mark.parametrize("text", ["", " ", "\0"])
@pytest.mark.parametrize(
    "command",
    [
        "run --agents=sac --tasks=four-goals --results",
        "report there --results",
        "report there --reports",
        "compare there there --other-results",
        "status there --results",
        "evaluate there --agent=sac --task=four-goals --video",
    ],
)
def test_a_path_that_is_none_is_refused(laid_out: Path, command: str, text: str) -> None:
    *arguments, option = command.split()
    assert_refused(call(*arguments, f"{option}={text}"), option)


@pytest.mark.parametrize("results", [f"{__file__}", f"{__file__}/x", "x" * 300, "\x1b[31m"])
@pytest.mark.parametrize(
    "command",
    [
        "report there",
        "compare there there",
        "status there",
        "status there --watch",
        "evaluate there --agent=sac --task=four-goals",
    ],
)
def test_a_results_folder_that_cannot_be_read_is_refused(
    laid_out: Path, command: str, results: str
) -> None:
    outcome = call(*command.split(), f"--results={results}")
    assert_refused(outcome)
    assert "\x1b" not in outcome.err


@pytest.mark.parametrize("name", ["\x1b[31mred", "a\nb", "ä" * 300, "\udcc3", "..", ""])
@pytest.mark.parametrize("command", ["report", "status", "describe", "list", "compare there"])
def test_a_name_is_shown_and_not_obeyed(laid_out: Path, command: str, name: str) -> None:
    outcome = call(*command.split(), "--", name)
    assert_refused(outcome)
    assert one_line(outcome.err.rstrip("\n")) == outcome.err.rstrip("\n")


def test_what_was_compiled_needs_a_compiler_to_go_on(laid_out: Path) -> None:
    ExperimentStore(laid_out / "results", "fast").prepare(
        experiment(name="fast", compiled=True), "test"
    )
    options: tuple[str, ...] = (
        "--name=fast",
        "--agents=sac[hidden_sizes=[8]],td3[hidden_sizes=[8]]",
    )
    options += ("--tasks=bimodal-bandit", "--seeds=2", "--steps=60", "--warmup-steps=10")
    options += ("--batch-size=8", "--eval-every=25", "--eval-episodes=2", "--device=cpu")
    (laid_out / "empty").mkdir()
    with patch.dict(os.environ, {"PATH": str(laid_out / "empty")}):
        os.environ.pop("CXX", None)
        for more in ((), ("--dry-run",)):
            outcome = call("run", *options, *more)
            assert_refused(outcome, "experiment 'fast' was begun with compiled updates")
            assert "g++" in outcome.err
    assert not list((laid_out / "results").rglob("log.txt"))


def test_a_bug_of_ours_is_a_traceback_and_where_to_report_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended, ending():
        raise ZeroDivisionError("of ours")
    assert ended.value.code == BUG
    first, *_, of_it, last = capsys.readouterr().err.splitlines()
    assert first.startswith("Traceback")
    assert of_it == "ZeroDivisionError: of ours"
    assert "this is a bug in qsm_bench: please report it" in last


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("a\x1b[0m\nb"), r"a\x1b[0m b"),
        (OSError(errno.ENOSPC, "No space left on device", "here"), "here: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "here"), "here: Permission denied"),
        (OSError("no place for it"), "no place for it"),
        (MemoryError(), "memory does not suffice"),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    capsys: pytest.CaptureFixture[str], error: Exception, said: str
) -> None:
    with pytest.raises(SystemExit) as ended, ending():
        raise error
    assert ended.value.code == BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line


def test_errors_are_caught_in_one_place() -> None:
    assert "except Exception" not in Path(cli.__file__).read_text("utf-8")
