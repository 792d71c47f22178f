"""What runs tell of the machine, account and folders of who made them: it is not published."""

import re
import shlex

from qsm_bench.executors import EXECUTORS
from qsm_bench.protocol import option

_FIELDS = {name: field for cls in EXECUTORS.values() for name, field in cls.model_fields.items()}
FLAGS = {
    flag
    for name, field in _FIELDS.items()
    if field.annotation is bool
    for flag in (option(name), option(f"no_{name}"))
}
"""The options without a value that say where jobs run."""
OPTIONS = {"--results", "--reports", "--beside", "--executor", *map(option, _FIELDS)} - FLAGS
"""The options with a value that say where jobs run, or name a file or folder."""
_FOLDERS = re.compile(r"(?<![\w./:])/(?:[^\s/'\"]+/)+")


def command_without_places(command: str) -> str:
    """Return a command without the options that say where its jobs ran, or name a folder."""
    try:
        words = shlex.split(command)
    except ValueError:
        return command
    kept: list[str] = []
    skip = False
    for word in words:
        name, equals, _ = word.partition("=")
        if skip:
            skip = False
        elif name in OPTIONS:
            skip = not equals
        elif word not in FLAGS:
            kept.append(word)
    return command if len(kept) == len(words) else shlex.join(kept)


def text_without_places(text: str) -> str:
    """Return a text in which a file is named without the folders that it lies in."""
    return _FOLDERS.sub("", text)
