"""A report as data, and its two renderings: one self-contained HTML page, and Markdown.

Text in a document is plain: both renderings show every character of it as it is, and those that
cannot be seen, but would be obeyed, in writing. No cell of a CSV file is a spreadsheet's formula.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
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
    """Lines to be typed or shown as they are."""

    kind: ClassVar[str] = "code"
    text: str


@dataclass(frozen=True)
class Table:
    """A table of texts, and the numbers behind it."""

    kind: ClassVar[str] = "table"
    name: str
    """Of its file: data/<name>.csv."""
    caption: str
    cells: pd.DataFrame
    """Strings; the first column heads its row."""
    data: pd.DataFrame


@dataclass(frozen=True)
class Picture:
    """A figure, drawn already, and the numbers behind it."""

    kind: ClassVar[str] = "picture"
    name: str
    """Of its files: figures/<name>.svg, figures/<name>.png, data/<name>.csv."""
    alt: str
    """What the figure shows, for a reader who cannot see it."""
    caption: str
    svg: str
    """As an element to put into a page."""
    data: pd.DataFrame
    points: Sequence[tuple[float, float, str]] = ()
    """What can be read off: x and y as shares of the figure from its top left, and the value."""


Block = Text | Warnings | Bullets | Code | Table | Picture


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

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
    """What this is, in one or two sentences under the title."""
    sections: Sequence[Section]
    table_note: str = field(default="", kw_only=True)
    """Stands under every table."""

    def blocks(self) -> Iterator[Block]:
        """All blocks, in order."""
        for section in self.sections:
            yield from section.blocks


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
    """Write ``text`` so that Markdown shows it as it is, and no more escaped than it must be."""
    text = re.sub(r"([\\`*~$])", r"\\\1", " ".join(text.split()))
    text = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)
    text = re.sub(r"\](?=[(\[:])", r"\\]", text)
    text = re.sub(r"^([#+=-])(?=[#=\s-]|$)", r"\\\1", text)
    text = re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", text)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace("|", "\\|")


def markdown_code(text: str) -> str:
    """An indented code block: nothing in it can end it."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def _safe_csv(table: pd.DataFrame) -> pd.DataFrame:
    """The same table, its texts and headings for any reader of CSV."""
    table = table.rename(columns=lambda name: safe_csv_cell(str(name)))
    for column in table.select_dtypes(exclude=["number", "bool"]):
        values = [safe_csv_cell(cell) if isinstance(cell, str) else cell for cell in table[column]]
        table[column] = pd.Series(values, table.index, dtype=table[column].dtype)
    return table


def _shown(value: object) -> object:
    """What a template writes: nothing in it is obeyed but its line breaks."""
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
