"""A page of sections, and the folder that holds it: ``index.html``, ``report.json`` and ``items/``."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from daskcurate.report.items import Items

FORMAT = "daskcurate report"
ENTRIES = ("index.html", "report.json", "items")
NEEDED = {"jinja2": "jinja2", "matplotlib": "matplotlib", "PIL": "pillow"}


def require_extra() -> None:
    """Raise ImportError, naming the extra, if something that pages are made with is not installed."""
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ImportError(
            f'a report needs {" and ".join(missing)}, which is not installed: pip install "daskcurate[report]"'
        )


@dataclass(frozen=True)
class Table:
    """A table; columns named in ``texts`` (their numbers) hold sentences."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    texts: Sequence[int] = ()


@dataclass(frozen=True)
class Picture:
    """A picture, and how to read it."""

    title: str
    svg: str
    caption: str


@dataclass(frozen=True)
class Shown:
    """A row of the pool in a gallery."""

    row: int
    value: str = ""
    badge: str = ""
    """``kept``, ``dropped`` or nothing."""
    first: bool = False
    """Whether it is what the others are compared with."""


@dataclass(frozen=True)
class Group:
    """Rows to look at together, in named strips."""

    title: str
    strips: Sequence[tuple[str, Sequence[Shown]]]


@dataclass(frozen=True)
class Gallery:
    """Groups of rows, shown as the user's items."""

    title: str
    caption: str
    groups: Sequence[Group]
    pairs: bool = False
    """Whether groups are of two rows each."""


@dataclass
class Section:
    """A part of the page."""

    title: str
    lines: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    galleries: list[Gallery] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        """What links to it."""
        return self.title.lower().replace(" ", "-")

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.tables or self.pictures or self.galleries)


@dataclass
class Page:
    """A whole page, and the figures that go with it."""

    title: str
    subtitle: str
    tiles: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)


def checked_dest(dest: Any, overwrite: bool) -> Path:
    """Return the folder to write to, if a report may be written there; nothing is made."""
    if not isinstance(dest, str | os.PathLike) or not str(dest).strip():
        raise TypeError(f"dest={dest!r} is not allowed: give the path of a folder")
    if "://" in str(dest):
        raise ValueError(f"dest={str(dest)!r} is not allowed: a report is a local folder")
    path = Path(dest).expanduser().absolute()
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file: give the path of a folder")
    if path.is_dir() and any(path.iterdir()) and not _is_ours(path) and not overwrite:
        raise FileExistsError(
            f"{path} exists and is not a report of daskcurate: give another folder, or overwrite to put the report's "
            "files among those that are there"
        )
    return path


def _is_ours(path: Path) -> bool:
    try:
        found = json.loads((path / "report.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("format") == FORMAT


def write_page(page: Page, items: Items, dest: Path) -> Path:
    """Write the folder beside its place, then move its files there, over those of an earlier report."""
    dest.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{dest.name}-", dir=dest.parent))
    try:
        (made / "index.html").write_text(render(page, items, made / "items"), encoding="utf-8")
        figures = {"format": FORMAT, "version": 1, **page.figures}
        (made / "report.json").write_text(
            json.dumps(figures, indent=1, allow_nan=False) + "\n", encoding="utf-8"
        )
        dest.mkdir(exist_ok=True)
        for name in ENTRIES:
            old = dest / name
            if old.is_dir() and not old.is_symlink():
                shutil.rmtree(old)
            else:
                old.unlink(missing_ok=True)
            if (made / name).exists():
                os.replace(made / name, old)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return dest / "index.html"


def render(page: Page, items: Items, folder: Path) -> str:
    """Return the page's HTML; thumbnails of the rows it shows go into ``folder``."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    sections = [section for section in page.sections if not section.is_empty]
    galleries = [gallery for section in sections for gallery in section.galleries]
    rows = {one.row for g in galleries for group in g.groups for _, strip in group.strips for one in strip}
    known = items.load(sorted(rows), folder)
    notes = list(page.notes)
    if items.unreadable:
        notes.append(f"{items.unreadable} of the {len(rows)} pictures shown could not be read.")
    environment = Environment(
        loader=PackageLoader("daskcurate.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    style = files("daskcurate.report").joinpath("style.css").read_text(encoding="utf-8")
    return environment.get_template("page.html").render(
        title=page.title,
        subtitle=page.subtitle,
        tiles=page.tiles,
        notes=notes,
        style=style,
        sections=[_resolved(section, known, items.texts is not None) for section in sections],
    )


def _resolved(section: Section, known: dict[int, dict[str, Any]], texts: bool) -> dict[str, Any]:
    """Return a section with the rows of its galleries replaced by the items that stand for them."""
    galleries = []
    for gallery in section.galleries:
        groups = [
            {
                "title": group.title,
                "strips": [(name, [_item(one, known) for one in rows]) for name, rows in group.strips],
            }
            for group in gallery.groups
        ]
        galleries.append({**vars(gallery), "texts": texts, "groups": groups})
    return {**vars(section), "anchor": section.anchor, "galleries": galleries}


def _item(one: Shown, known: dict[int, dict[str, Any]]) -> dict[str, Any]:
    found = {"note": "", "tiny": False, **known[one.row]}
    return {**found, "value": one.value, "badge": one.badge, "first": one.first}
