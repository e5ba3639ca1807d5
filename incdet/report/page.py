"""The parts of a self-contained HTML page: style, tables, figures, nested values. Everything is escaped here."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape
from string import Template
from typing import Any

from incdet.report.plots import INK

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
<h1>$title</h1>
$body
<footer>Made by incdet $version. This page is one file and loads nothing from elsewhere.</footer>
</main>
</body>
</html>
""")

STYLE = """
:root { --ink: #1b1f24; --soft: #57606a; --paper: #ffffff; --panel: #f5f7f9; --line: #d5dae0; --link: #0b5cad;
  --warn: #7a4b00; --warn-paper: #fff4dc; --alarm: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --soft: #a5afba; --paper: #12161b; --panel: #1b2128;
  --line: #343c46; --link: #7ab8ff; --warn: #ffd58a; --warn-paper: #33270f; --alarm: #c9362c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 1.5rem 1.25rem 3rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .5rem; }
p { margin: .6rem 0; max-width: 74ch; }
.lead { font-size: 1.1rem; background: var(--panel); border-left: 4px solid var(--link); border-radius: 4px;
  padding: .9rem 1.1rem; max-width: none; }
.soft, figcaption, footer { color: var(--soft); font-size: .88rem; }
.warning { background: var(--warn-paper); color: var(--warn); border-radius: 4px; padding: .6rem .9rem;
  max-width: none; }
.badge { display: inline-block; background: var(--alarm); color: #fff; font-weight: 700; font-size: .72rem;
  letter-spacing: .06em; padding: .1em .55em; border-radius: 3px; vertical-align: .1em; white-space: nowrap; }
figcaption { margin-top: .4rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .38rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
thead th { border-bottom: 2px solid var(--line); white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; }
td.number small { display: block; color: var(--soft); font-size: .78em; line-height: 1.1; }
table.dense th, table.dense td { padding: .3rem .45rem; }
table.dense thead th { white-space: normal; vertical-align: bottom; }
table.dense tbody th { min-width: 10rem; line-height: 1.3; }
th.group { text-align: center; }
figure { margin: .8rem 0; }
figure.plot svg { width: 100%; height: auto; max-width: 860px; min-width: 480px; display: block; }
.side-by-side { display: flex; flex-wrap: wrap; gap: 1.5rem; }
.side-by-side figure.plot { flex: 0 1 auto; max-width: 440px; }
.side-by-side figure.plot svg { min-width: 0; max-width: 100%; }
table.examples { font-size: .85rem; }
.bleed { width: min(96vw, 1700px); margin-left: calc(50% - min(48vw, 850px)); }
table.examples { margin: 0 auto; }
table.examples td { border: 0; padding: .3rem; width: 16rem; }
table.examples th { border: 0; padding: .3rem; font-weight: 600; white-space: normal; vertical-align: bottom; }
table.examples img { width: 100%; min-width: 13.5rem; height: auto; display: block; border-radius: 4px; }
table.heat td { padding: .25rem .3rem; border: 1px solid var(--paper); text-align: center; vertical-align: middle;
  min-width: 2.6rem; line-height: 1.15; }
table.heat td small { display: block; font-size: .72em; }
table.heat tbody th { position: sticky; left: 0; background: var(--paper); padding: .25rem .7rem .25rem 0;
  min-width: 9rem; font-weight: 600; vertical-align: middle; }
table.heat .soft { font-weight: 400; }
table.heat thead th { padding: .25rem .3rem; text-align: center; vertical-align: bottom; }
table.heat thead th.upright > span { writing-mode: vertical-rl; transform: rotate(180deg); }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: 1rem .8rem; }
.panels figure { margin: 0; }
.panels figcaption { line-height: 1.3; overflow-wrap: anywhere; }
.panels img { width: 100%; height: auto; display: block; border-radius: 4px; }
details { margin: .6rem 0; border: 1px solid var(--line); border-radius: 4px; padding: .5rem .9rem; }
summary { cursor: pointer; font-weight: 600; }
summary:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
pre { overflow-x: auto; background: var(--panel); padding: .8rem; border-radius: 4px; font-size: .82rem; }
code { overflow-wrap: anywhere; }
footer { margin-top: 3rem; border-top: 1px solid var(--line); padding-top: .8rem; }
@media print { :root { --ink: #000; --paper: #fff; --panel: #f5f5f5; --line: #bbb; --soft: #333; }
  main { max-width: none; padding: 0; } .bleed { width: auto; margin: 0; }
  table.examples img { min-width: 0; } .scroll { overflow: visible; } figure, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; } .badge { border: 2px solid #000; print-color-adjust: exact; } }
"""


def page(title: str, body: str, version: str) -> str:
    """The whole document; ``body`` is HTML, the other two are text."""
    return PAGE.substitute(title=escape(title), style=STYLE, body=body, version=escape(version))


def badges(stamps: Sequence[str]) -> str:
    """A loud badge per stamp, to stand beside every mention of a run."""
    return "".join(f' <strong class="badge">{escape(stamp.upper())}</strong>' for stamp in stamps)


def loud(text: str, stamps: Sequence[str]) -> str:
    """Escaped text in which a stamp in brackets, as ``Run.title`` writes it, becomes a badge."""
    for_html = escape(text)
    for stamp in stamps:
        for_html = for_html.replace(escape(f" [{stamp.upper()}]"), badges([stamp]))
    return for_html


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    caption: str = "",
    groups: Sequence[tuple[str, int]] = (),
    dense: bool = False,
) -> str:
    """A table of HTML cells whose first column names the row.

    ``groups`` puts a row of (title, columns) above the headers. Cells that look like numbers are set to the right.
    ``dense`` is for tables of many columns.
    """
    top = "".join(f'<th class="group" scope="colgroup" colspan="{span}">{text}</th>' for text, span in groups)
    head = "".join(f'<th scope="col"{_align(rows, index)}>{text}</th>' for index, text in enumerate(headers))
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>'
        + "".join(f"<td{_number_class(cell)}>{cell}</td>" for cell in row[1:])
        + "</tr>\n"
        for row in rows
    )
    # Not a <caption>: that would scroll sideways with the columns on a phone.
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    above = f"<tr>{top}</tr>" if groups else ""
    kind = ' class="dense"' if dense else ""
    return (
        f'<figure><div class="scroll" tabindex="0"><table{kind}><thead>{above}<tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}</tbody></table></div>{below}</figure>"
    )


def heat_table(
    headers: Sequence[str],
    rows: Sequence[tuple[str, Sequence[tuple[str, str, str]]]],
    caption: str,
    groups: Sequence[tuple[str, int]] = (),
) -> str:
    """A table of shaded cells.

    Args:
        headers: texts of the columns; long ones are turned upright.
        rows: an HTML name, and of each cell its text, the CSS of its colours and its small print.
        caption: HTML.
        groups: (text, columns) above the headers.
    """
    upright = ' class="upright"' if max(map(len, headers), default=0) > 4 else ""
    top = "".join(f'<th scope="colgroup" colspan="{span}">{escape(text)}</th>' for text, span in groups)
    head = "".join(f'<th scope="col"{upright}><span>{escape(text)}</span></th>' for text in headers)
    body = "".join(
        f'<tr><th scope="row">{name}</th>'
        + "".join(
            f'<td style="{css}">{text}{f"<small>{small}</small>" if small else ""}</td>' for text, css, small in cells
        )
        + "</tr>\n"
        for name, cells in rows
    )
    above = f"<tr><td></td>{top}</tr>" if groups else ""
    return (
        f'<figure><div class="scroll" tabindex="0"><table class="heat"><thead>{above}<tr><td></td>{head}</tr></thead>\n'
        f"<tbody>\n{body}</tbody></table></div><figcaption>{caption}</figcaption></figure>"
    )


def figure(svg: bytes, name: str, description: str, heading: str = "") -> str:
    """An SVG of matplotlib inside the page: in the page's text colour, described for those who cannot see it.

    ``name`` is a word that no other figure of the page has; it keeps their ids apart. ``heading`` is HTML.
    """
    drawing = svg.decode()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", drawing)
    drawing = drawing.replace(INK, "currentColor")
    drawing = drawing.replace("<svg ", f'<svg role="img" aria-label="{escape(description)}" ', 1)
    above = f"<figcaption>{heading}</figcaption>" if heading else ""
    return f'<figure class="plot">{above}<div class="scroll" tabindex="0">{drawing}</div></figure>'


def image(jpeg: bytes, alt: str) -> str:
    """A JPEG inside the page."""
    return f'<img alt="{escape(alt)}" src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}">'


def warning(text: str) -> str:
    return f'<p class="warning" role="note"><strong>Careful:</strong> {escape(text)}</p>'


def details(summary: str, body: str) -> str:
    """A part that is folded away; both arguments are HTML."""
    return f"<details><summary>{summary}</summary>{body}</details>"


def value(content: Any) -> str:
    """Any JSON value as HTML: mappings of like mappings as a table, other mappings as rows, lists in a line."""
    if isinstance(content, Mapping):
        rows = list(content.values())
        if rows and all(isinstance(row, Mapping) and row for row in rows) and _all_flat(rows):
            keys = list(dict.fromkeys(key for row in rows for key in row))
            cells = [[escape(str(name)), *(value(row.get(key)) for key in keys)] for name, row in content.items()]
            return table(["", *(escape(str(key)) for key in keys)], cells)
        return _pairs(content) if content else "–"
    if isinstance(content, list | tuple):
        if any(isinstance(inner, list | tuple | Mapping) for inner in content):
            return "<br>".join(f"{index}: {value(inner)}" for index, inner in enumerate(content, start=1))
        return ", ".join(value(inner) for inner in content) or "–"
    if content is None or content == "":
        return "–"
    if isinstance(content, bool):
        return "yes" if content else "no"
    return f"{content:.4g}" if isinstance(content, float) else f"<code>{escape(str(content))}</code>"


def _pairs(content: Mapping[str, Any]) -> str:
    """A name and its value per row; small mappings inside take one line per entry."""
    rows = []
    for key, inner in content.items():
        flat = isinstance(inner, Mapping) and inner and _all_flat([inner])
        shown = "<br>".join(f"{escape(str(k))}: {value(v)}" for k, v in inner.items()) if flat else value(inner)
        rows.append(f'<tr><th scope="row">{escape(str(key))}</th><td>{shown}</td></tr>')
    return f'<div class="scroll" tabindex="0"><table>{"".join(rows)}</table></div>'


def _all_flat(rows: Sequence[Mapping[str, Any]]) -> bool:
    return all(not isinstance(inner, Mapping | list | tuple) for row in rows for inner in row.values())


def _number_class(cell: str) -> str:
    number = r"(<code>)?[-+−]?[\d.,]+( %)?(</code>)?(<small>± [\d.]+</small>)?|–"
    return ' class="number"' if re.fullmatch(number, cell) else ""


def _align(rows: Sequence[Sequence[str]], column: int) -> str:
    """A header stands over its numbers."""
    return ' class="number"' if column and rows and all(_number_class(row[column]) for row in rows) else ""
