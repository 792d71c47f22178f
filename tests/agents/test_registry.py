"""Names: each stands for one agent, and a plug-in that is broken or greedy hurts nobody else."""

import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from agents import registry
from agents.registry import AgentError, find_agent, registered_agents

BUILT_IN = set(registry.built_in_agents())
SOUND = """
from agents.protocol import AgentConfig

class Sound:
    name = "{name}"
    config_class = AgentConfig
    presets = {presets}
    task_settings = {{}}
    def __init__(self, config, observation_size, action_size, seeds, device): ...
    def act(self, observation, *, explore): ...
    def update(self, batch): ...
    def state_dict(self): ...
    def load_state_dict(self, state): ...
"""


def sound(name: str, presets: dict[str, Any] | None = None) -> str:
    return SOUND.format(name=name, presets=presets or {})


Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Write modules, each announced under its own name as ``module:Sound``."""
    monkeypatch.syspath_prepend(tmp_path)
    entries: list[EntryPoint] = []

    def announced(*, group: str) -> EntryPoints:
        assert group == registry.PLUGIN_GROUP
        return EntryPoints(entries)

    def write(module: str, text: str, announce: str | None = None, attr: str = "Sound") -> None:
        (tmp_path / f"{module}.py").write_text(text)
        if announce:
            entries.append(EntryPoint(announce, f"{module}:{attr}", registry.PLUGIN_GROUP))
            registry._announced.cache_clear()

    def forget() -> None:
        registry._announced.cache_clear()
        registry._plugins.cache_clear()
        registry._warn.cache_clear()

    monkeypatch.setattr(registry, "entry_points", announced)
    forget()
    before = set(sys.modules)
    yield write
    forget()
    for module in set(sys.modules) - before:
        del sys.modules[module]


def warnings(capsys: pytest.CaptureFixture[str]) -> list[str]:
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


def test_an_installed_agent_and_its_presets_are_known_by_name(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("plug_a", sound("mine", {"mine_fast": {"n_step": 3}}), "mine")
    assert set(registered_agents()) == BUILT_IN | {"mine", "mine_fast"}
    assert find_agent("mine_fast").preset == {"n_step": 3}
    assert warnings(capsys) == []


@pytest.mark.parametrize("name", ["sac", "qsm_reference"])
def test_a_built_in_name_stays_built_in_and_the_plug_in_is_told(
    install: Install, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    install("plug_b", sound(name), name)
    assert find_agent(name).agent.__module__.startswith("agents.")
    assert warnings(capsys) == [
        f"warning: the plug-in 'plug_b:Sound' is left out: the name {name!r} is taken by a "
        "built-in agent"
    ]
    assert "plug_b" not in sys.modules, "nobody needed it"
    assert set(registered_agents()) == BUILT_IN


def test_a_preset_with_a_name_that_is_taken_leaves_its_plug_in_out(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("plug_c", sound("mine", {"td3": {}}), "mine")
    assert set(registered_agents()) == BUILT_IN
    (line,) = warnings(capsys)
    assert "'plug_c:Sound' is left out: the name 'td3' is taken by a built-in agent" in line


def test_of_two_plug_ins_of_one_name_the_first_keeps_it(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("plug_e", sound("mine"), "theirs")
    install("plug_d", sound("mine"), "mine")
    assert find_agent("mine").agent.__module__ == "plug_d"
    (line,) = warnings(capsys)
    assert "'plug_e:Sound' is left out: the name 'mine' is taken by another plug-in" in line


@pytest.mark.parametrize(
    ("text", "attr", "message"),
    [
        ("import nowhere_at_all", "Sound", "no module named 'nowhere_at_all'"),
        ("print('noise')\nraise OSError('one\\ntwo')", "Sound", "OSError: one two"),
        ("def broken(:", "Sound", "SyntaxError"),
        ("import sys; print('bye'); sys.exit(0)", "Sound", "SystemExit: 0"),
        ("raise SystemExit", "Sound", "SystemExit"),
        ("", "Sound", "has no 'Sound'"),
        (sound("broken"), "Sound.act", "of type function, and must be a class"),
        ("Sound = 3", "Sound", "it is of type int, and must be a class"),
        ("class Sound: name = 'broken'", "Sound", "it lacks config_class"),
        (sound("broken") + "    act = None", "Sound", "act is None, and must be a method"),
        (
            sound("broken") + "    promises_pure_update = True",
            "Sound",
            "it says promises_pure_update, and has no plain method pure_update",
        ),
        (sound("broken") + "    presets = [1]", "Sound", "presets must be a mapping"),
        (sound("broken", {"broken": {}}), "Sound", "its preset 'broken' has its own name"),
    ],
)
def test_a_broken_plug_in_is_one_warning_and_hurts_nobody(
    install: Install, capsys: pytest.CaptureFixture[str], text: str, attr: str, message: str
) -> None:
    install("plug_f", text, "broken", attr)
    install("plug_g", sound("mine"), "mine")
    for _ in range(2):
        assert set(registered_agents()) == BUILT_IN | {"mine"}
        assert find_agent("mine").agent.__module__ == "plug_g"
        with pytest.raises(AgentError, match="unknown agent 'broken'"):
            find_agent("broken")
    (line,) = warnings(capsys)
    assert line.startswith(f"warning: the plug-in 'plug_f:{attr}' is left out: ")
    assert message in line
    with pytest.raises(AgentError, match=f"^agent 'plug_f:{attr}': ") as refused:
        find_agent(f"plug_f:{attr}")
    assert "\n" not in str(refused.value)


def test_what_a_sound_plug_in_prints_is_kept_out_of_the_output(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("plug_h", "print('hello')\n" + sound("mine"), "mine")
    assert "mine" in registered_agents()
    assert warnings(capsys) == ["hello"]


def test_a_class_by_its_path_takes_no_name_that_is_taken(install: Install) -> None:
    install("plug_i", sound("mine"), "mine")
    install("plug_j", sound("mine"))
    install("plug_k", sound("td3"))
    assert find_agent("plug_i:Sound").name == "mine"
    with pytest.raises(AgentError, match="its name 'mine' is taken by a plug-in"):
        find_agent("plug_j:Sound")
    with pytest.raises(AgentError, match="its name 'td3' is taken by a built-in agent"):
        find_agent("plug_k:Sound")
    assert find_agent("agents.td3:TD3").name == "td3"


@pytest.mark.parametrize(
    "name",
    ["", " ", "a,b", "a[b]", "_hidden", "a\\nb", "a\\x1b[31m", "a:b", "a/b", "a=b", "$a$", " a",
     "a ", "<b>", "a|b", "..", "-a", "x" * 65],
)  # fmt: skip
def test_a_name_that_can_be_no_label_is_refused(install: Install, name: str) -> None:
    install("plug_l", sound(name))
    with pytest.raises(AgentError, match="cannot stand in a label") as refused:
        find_agent("plug_l:Sound")
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("name", ["a", "My SAC 2.0", "qsm-v2+x", "Größe_é", "x" * 64])
def test_other_names_are_labels(install: Install, name: str) -> None:
    install("plug_m", sound(name))
    assert find_agent("plug_m:Sound").name == name


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("@dataclass\nclass C:\n    lr: float = 1.0", "config_class must derive from AgentConfig"),
        ("C = 3", "config_class must derive from AgentConfig, and is 3"),
        ("class C(AgentConfig):\n    lr: float = 1.0", r"C lacks @dataclass\(frozen=True\)"),
        ("@dataclass(frozen=True, kw_only=True)\nclass C(AgentConfig):\n    x: int", "setting x"),
        (
            "@dataclass(frozen=True)\nclass C(AgentConfig):\n"
            "    x: list = field(default_factory=list)",
            "setting x of C must have a plain default",
        ),
        (
            "@dataclass(frozen=True)\nclass C(AgentConfig):\n"
            "    x: int = field(default=1, init=False)",
            "setting x of C must have a plain default",
        ),
    ],
)
def test_a_configuration_that_is_none_is_refused(
    install: Install, config: str, message: str
) -> None:
    text = f"from dataclasses import dataclass, field\n{sound('mine')}    config_class = None\n"
    text += f"{config}\nSound.config_class = C\n"
    install("plug_n", text)
    with pytest.raises(AgentError, match=message) as refused:
        find_agent("plug_n:Sound")
    assert "\n" not in str(refused.value)
