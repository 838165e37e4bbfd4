"""One HTML page that holds its pictures: nothing to fetch, no script."""

import base64
import html

from evals.data.notices import printable
from evals.jobs.analysis.results import COUNT_HEADINGS, count_rows

TITLE = "What attention does to the tokens"
STYLE = """
:root { color: #222; background: #fff; font: 1rem/1.5 system-ui, sans-serif }
body { max-width: 62rem; margin: 0 auto; padding: 1rem 1rem 4rem }
h1 { font-size: 1.6rem; line-height: 1.2 }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .25rem }
p, li, dd { max-width: 46rem }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 0 }
dt { color: #666 } dd { margin: 0; overflow-wrap: anywhere }
.words { grid-template-columns: 7rem 1fr; font-size: .95rem }
.wide { overflow-x: auto }
.wide img { display: block; max-width: max(100%, 30rem); height: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child { text-align: left; padding-left: 0 }
th { font-weight: 600; color: #666 }
"""


def render(facts, numbers, pictures) -> str:
    """The page.

    Args:
      facts: what was analysed, texts by name.
      numbers: of `results.summarize`, with their `summary` in words.
      pictures: pairs of a `pictures.Picture` and its PNG.
    """
    sections = [
        f'<section id="{_text(picture.name)}"><h2>{_text(picture.heading)}</h2>'
        f"<p>{_text(picture.look_for)}</p>"
        f'<div class="wide"><img alt="{_text(picture.alt)}" '
        f'src="data:image/png;base64,{base64.b64encode(png).decode()}"></div></section>'
        for picture, png in pictures
    ]
    parts = [
        f"<h1>{TITLE}</h1>",
        _definitions(facts),
        "<h2>In short</h2>",
        "<ul>"
        + "".join(f"<li>{_text(sentence)}</li>" for sentence in numbers["summary"])
        + "</ul>",
        "<h2>Words used below</h2>",
        _definitions(_words(numbers), 'class="words"'),
        '<section id="counts"><h2>How many there are</h2>',
        f'<div class="wide">{_table(COUNT_HEADINGS, count_rows(numbers))}</div></section>',
        *sections,
        _skipped(numbers["skipped"]),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{TITLE}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _words(numbers):
    """What the groups of tokens are."""
    reader = "class token" if numbers["has_class_token"] else "average token"
    words = {
        "patch": "a small square of the image; one token of the model.",
        "class token": "a token of no place in the image, in which the model gathers what it sees.",
        "registers": "further tokens of no place in the image, for the model's own use.",
        "massive": "a patch whose state grows far beyond the others' and then draws attention.",
        "sink": f"a patch that draws more of the {reader}'s attention than that gives itself.",
        "artifact": "a sink that is not massive: it takes over where stronger ones are masked.",
        "normal": "any other patch.",
    }
    return {
        name: text for name, text in words.items() if name in ("patch", "sink", *numbers["groups"])
    }


def _definitions(entries, attributes=""):
    rows = [f"<dt>{_text(name)}</dt><dd>{_text(text)}</dd>" for name, text in entries.items()]
    return f"<dl {attributes}>{''.join(rows)}</dl>"


def _table(headings, rows):
    row = lambda tag, cells: "".join(f"<{tag}>{_text(cell)}</{tag}>" for cell in cells)
    body = "".join(f"<tr>{row('td', cells)}</tr>" for cells in rows)
    return f"<table><tr>{row('th', headings)}</tr>{body}</table>"


def _skipped(skipped):
    if not skipped:
        return ""
    items = [f"<li>{_text(one['file'])}: {_text(one['reason'])}</li>" for one in skipped]
    heading = "<h2>Images that did not open</h2>"
    return f'<section id="skipped">{heading}<ul>{"".join(items)}</ul></section>'


def _text(value):
    return html.escape(printable(value))
