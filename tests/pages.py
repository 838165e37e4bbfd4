"""README.md and the pages of docs/ as tests read them: code, commands, tables, words and links."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
_NOT_IN_ANCHORS = re.compile(r"[^\w\- ]")  # how GitHub makes an anchor of a heading


def pages() -> dict[str, str]:
    """The text of each page, by its path from the root; the README first."""
    files = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return {file.relative_to(ROOT).as_posix(): file.read_text("utf-8") for file in files}


def snippets() -> dict[str, str]:
    """The Python code of all pages, by page and number."""
    return {
        f"{page}-{number}": code
        for page, text in pages().items()
        for number, (language, code) in enumerate(_FENCE.findall(text))
        if language == "python"
    }


def commands() -> list[str]:
    """What the pages tell to type: indented lines and `code` that start with pip or python."""
    prose = "\n".join(_FENCE.sub("", text) for text in pages().values())
    typed = re.findall(r"^ {4}(.+)$|`([^`\n]+)`", prose, flags=re.MULTILINE)
    lines = [part.strip() for line in map("".join, typed) for part in line.split("&&")]
    return [line for line in dict.fromkeys(lines) if line.startswith(("pip ", "python "))]


def words() -> str:
    """All pages in one line: a sentence is found wherever its lines are broken."""
    return " ".join(" ".join(pages().values()).split())


def tables() -> dict[str, str]:
    """The tables of all pages, by their first line.

    Raises:
      ValueError: two tables have the same columns, so that these do not tell which one is meant.
    """
    found = re.findall(r"(?:^\|.*\n)+", "\n".join(pages().values()), flags=re.MULTILINE)
    by_columns = {}
    for table in map(str.strip, found):
        columns = table.splitlines()[0]
        if columns in by_columns:
            raise ValueError(f"two tables of the pages have the columns {columns}")
        by_columns[columns] = table
    return by_columns


def table_like(table) -> str:
    """The table of the pages that has the same columns.

    Raises:
      ValueError: no page has one.
    """
    columns = table.splitlines()[0]
    if columns not in (told := tables()):
        raise ValueError(f"no page has a table with the columns {columns}")
    return told[columns]


def rows_of(table) -> list[dict[str, str]]:
    """The cells of each line of a table, by the column's heading."""
    columns, _, *lines = ([cell.strip() for cell in x.split("|")[1:-1]] for x in table.splitlines())
    return [dict(zip(columns, cells, strict=True)) for cells in lines]


def links() -> list[tuple[str, str]]:
    """Page and target of all links and images."""
    found = {page: re.findall(r"\]\(([^)\s]+)\)", text) for page, text in pages().items()}
    return [(page, target) for page, targets in found.items() for target in targets]


def anchors(text) -> set[str]:
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), flags=re.MULTILINE)
    return {_NOT_IN_ANCHORS.sub("", heading.lower()).replace(" ", "-") for heading in headings}
