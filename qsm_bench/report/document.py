"""A report as data, and its two renderings: one self-contained HTML page, and Markdown.

Text in a document is plain text: both renderings show every character as it is, and control
characters as escape sequences. In CSV files, no cell is a formula for a spreadsheet.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from qsm_bench.visible import safe_csv_cell, visible

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Warnings:
    """Sentences that a reader must not miss."""

    kind: ClassVar[str] = "warnings"
    items: Sequence[str]


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    kind: ClassVar[str] = "bullets"
    items: Sequence[str]


@dataclass(frozen=True)
class Code:
    """Lines that are shown as they are, such as commands."""

    kind: ClassVar[str] = "code"
    text: str


@dataclass(frozen=True)
class Table:
    """A table of texts, and the numbers behind it."""

    kind: ClassVar[str] = "table"
    name: str
    """The name of its file, data/<name>.csv."""
    caption: str
    cells: pd.DataFrame
    """The table as strings; the first column has the headings of the rows."""
    data: pd.DataFrame


@dataclass(frozen=True)
class Picture:
    """A finished figure, and the numbers behind it."""

    kind: ClassVar[str] = "picture"
    name: str
    """The name of its files: figures/<name>.svg, figures/<name>.png, data/<name>.csv."""
    alt: str
    """What the figure shows, for a reader who cannot see it."""
    caption: str
    svg: str
    """The figure as an element for an HTML page."""
    data: pd.DataFrame
    points: Sequence[tuple[float, float, str]] = ()
    """The values that the page shows at the pointer: x and y as shares of the figure's width and
    height, from the top left, and the text."""


@dataclass(frozen=True)
class Fold:
    """Blocks that a reader opens to see."""

    kind: ClassVar[str] = "fold"
    title: str
    blocks: "Sequence[Block]"


Block = Text | Warnings | Bullets | Code | Table | Picture | Fold


@dataclass(frozen=True)
class Section:
    """A heading and the blocks under it."""

    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        """The section's id in the page."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True)
class Document:
    """A whole report."""

    title: str
    lead: str
    """One or a few sentences under the title that say what the report is."""
    sections: Sequence[Section]

    def blocks(self) -> Iterator[Block]:
        """All blocks, in order; a fold comes before the blocks in it."""
        for section in self.sections:
            yield from _with_folded(section.blocks)


def _with_folded(blocks: Sequence[Block]) -> Iterator[Block]:
    for block in blocks:
        yield block
        if isinstance(block, Fold):
            yield from _with_folded(block.blocks)


def write_document(document: Document, folder: Path) -> None:
    """Write index.html, report.md and the numbers, data/*.csv, into ``folder``."""
    (folder / "data").mkdir(exist_ok=True)
    for block in document.blocks():
        if isinstance(block, Table | Picture):
            _safe_csv(block.data).to_csv(folder / "data" / f"{block.name}.csv", index=False)
    for template, name in (("report.html.j2", "index.html"), ("report.md.j2", "report.md")):
        text = _environment().get_template(template).render(document=document)
        (folder / name).write_text(text, encoding="utf-8")


def markdown_text(text: str) -> str:
    """Escape ``text`` so that Markdown shows it as it is, and escape no more than necessary."""
    text = re.sub(r"([\\`*~$])", r"\\\1", " ".join(text.split()))
    text = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)
    text = re.sub(r"\](?=[(\[:])", r"\\]", text)
    text = re.sub(r"^([#+=-])(?=[#=\s-]|$)", r"\\\1", text)
    text = re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", text)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace("|", "\\|")


def markdown_code(text: str) -> str:
    """``text`` as an indented code block, which no text can end."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def _safe_csv(table: pd.DataFrame) -> pd.DataFrame:
    """The table with texts and headings that are safe in any reader of CSV files."""
    table = table.rename(columns=lambda name: safe_csv_cell(str(name)))
    for column in table.select_dtypes(exclude=["number", "bool"]):
        values = [safe_csv_cell(cell) if isinstance(cell, str) else cell for cell in table[column]]
        table[column] = pd.Series(values, table.index, dtype=table[column].dtype)
    return table


def _shown(value: object) -> object:
    """The value as a template writes it: control characters are escaped, except line breaks."""
    if isinstance(value, str):
        return type(value)(visible(value, keep="\n"))
    return value


def _picture_element(picture: Picture) -> Markup:
    label = f'<svg role="img" aria-label="{escape(picture.alt)}" '
    return Markup(picture.svg.replace("<svg ", label, 1))


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "markdown": markdown_text,
        "markdown_code": markdown_code,
        "element": _picture_element,
    }
    return environment
