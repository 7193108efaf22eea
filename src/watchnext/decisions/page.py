"""A report as one HTML page that needs no other file."""

import html
from collections.abc import Sequence
from typing import get_args

from watchnext.decisions.checks import Outcome

Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]
"""A table of a report: caption, header, rows."""


def html_page(
    title: str,
    verdict: str,
    tables: Sequence[Table],
    body: str = "",
    *,
    before: str = "",
) -> str:
    """One page that reads well offline: title, verdict, `before`, tables, and `body`, both as they are."""
    style = (
        "body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a}"
        "table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.35rem .6rem;"
        "border-bottom:1px solid #ddd;vertical-align:top}td.failed{color:#a40000;font-weight:600}"
        "td.passed{color:#0a6b2d}td.not{color:#8a6d00}td.failed,td.passed,td.not{white-space:nowrap}p.verdict{font-size:1.2rem;font-weight:600}img{max-width:100%}"
    )
    parts = [f"<h1>{html.escape(title)}</h1>", f'<p class="verdict">{html.escape(verdict)}</p>', before]
    for caption, header, rows in tables:
        heads = "".join(f"<th>{html.escape(name)}</th>" for name in header)
        lines = "".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in rows)
        parts.append(f"<h2>{html.escape(caption)}</h2><table><tr>{heads}</tr>{lines}</table>")
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{style}</style><body>{''.join(parts)}{body}</body></html>\n"
    )


def _cell(text: str) -> str:
    shade = f' class="{text.split()[0]}"' if text in get_args(Outcome) else ""
    return f"<td{shade}>{html.escape(text)}</td>"
