"""What a person reads about a validation: Data Docs, one offline page, the failures on the terminal.

It stands apart from `validate` because that module decides and this one only words the decision.
"""

import html
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from watchnext.console import print_table, say
from watchnext.data.validate import Judge, Report, TableReport, Verdict
from watchnext.data.validation_rules import Within
from watchnext.errors import InputError

SUMMARY = "summary.html"
DATA_DOCS = "data_docs"


def write_report(report: Report, judge: Judge, out_report: Path) -> None:
    """Write `summary.html`, `data_docs/` and `curves.json` (rows by day) to the folder `out_report`."""
    out_report.mkdir(parents=True, exist_ok=True)
    judge.write_docs(out_report / DATA_DOCS)
    (out_report / SUMMARY).write_text(summary_page(report), encoding="utf-8")
    curves = {
        f"{table.name}_rows_by_day": [[step, int(rows)] for step, rows in enumerate(table.days["rows"])]
        for table in report.tables
        if table.days is not None
    }
    (out_report / "curves.json").write_text(json.dumps(curves) + "\n", encoding="utf-8")


def tell(report: Report, tables: Path, out_report: Path) -> None:
    """Say on the terminal what was set aside and what was noticed; refuse logs that failed.

    Raises:
        InputError: at least one expectation failed.
    """
    # The runner hands a staging folder and moves it into place, also after a failure: name the final one.
    page = out_report.with_name(out_report.name.removesuffix(".staging")) / SUMMARY
    for verdict in report.warnings:
        if not verdict.rule.name.endswith("_all_null"):
            say(f"validate: warning: {verdict.rule.table}: {_sentence(verdict)}")
    for table in report.tables:
        if table.newly_absent:
            say(f"validate: {table.name} has no rows: what is made of it will be absent from the models")
        for column in table.newly_absent_columns:
            say(f"validate: {table.name}.{column} is null in every row: treated as absent")
        if table.quarantined and not report.failures:
            reasons = ", ".join(f"{name} {count:,}" for name, count in table.reasons.items())
            aside = f"{table.quarantined:,} of {table.rows:,} rows"
            say(f"validate: {table.name}: {aside} quarantined ({reasons})")
    if not report.failures:
        say(f"validate: {len(report.verdicts)} expectations hold; report: {page}")
        return
    print_table(
        f"{len(report.failures)} of {len(report.verdicts)} expectations failed",
        ("table", "column", "expectation", "broken by", "first offenders"),
        (
            (
                verdict.rule.table,
                verdict.rule.column or "(all)",
                verdict.rule.name,
                _broken_by(verdict),
                "\n".join(verdict.offenders[:3]),
            )
            for verdict in report.failures
        ),
    )
    raise InputError(
        f"the logs failed validation: {len(report.failures)} of {len(report.verdicts)} expectations",
        where=str(tables),
        offenders=[
            f"{verdict.rule.table}.{verdict.rule.column or '(all)'} {verdict.rule.name}: {_broken_by(verdict)}"
            + (f" [{verdict.offenders[0]}]" if verdict.offenders else "")
            for verdict in report.failures
        ],
        remedy=(
            f"open {page}; mend the logs, or, where they are right, widen the threshold in params.yaml, "
            "section validate"
        ),
    )


def _unit(verdict: Verdict) -> str:
    return {"structure": "columns", "row": "rows", "day": "days", "table": "tables"}[verdict.rule.scope]


def _broken_by(verdict: Verdict) -> str:
    if verdict.rule.scope in ("structure", "table"):
        return "the column" if verdict.rule.column else "the table"
    share = verdict.broken_by / max(verdict.judged, 1)
    text = f"{verdict.broken_by:,} of {verdict.judged:,} {_unit(verdict)} ({_percent(share)})"
    if verdict.rule.scope == "row":
        text += f"; allowed {_percent(verdict.rule.max_bad_share)}"
    return text


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _sentence(verdict: Verdict) -> str:
    offenders = f" ({'; '.join(verdict.offenders)})" if verdict.offenders else ""
    return f"{verdict.rule.name}: expected that {verdict.rule.meaning}{offenders}"


_STYLE = """
:root {
  --ink: #1d2733; --soft: #5b6775; --line: #dde3ea; --card: #fff; --page: #f4f6f9; --bar: #5b8def;
  --bad: #c62f3b; --warn: #b26a00; --good: #1d7d46; --badbg: #fdecee; --warnbg: #fff4e0; --goodbg: #e6f5ec;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6ebf1; --soft: #9aa7b5; --line: #323c48; --card: #1c232c; --page: #12171d; --bar: #6f9cf2;
    --bad: #ff7b85; --warn: #f0b357; --good: #63cf92; --badbg: #3a1d21; --warnbg: #382b14; --goodbg: #16301f;
  }
}
* { box-sizing: border-box }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 60px }
h1 { font-size: 24px; margin: 0 0 2px }
h2 { font-size: 18px; margin: 34px 0 10px }
h3 { font-size: 15px; margin: 0 0 6px }
p { margin: 4px 0 }
a { color: var(--bar) }
.soft { color: var(--soft) }
.banner { border-radius: 10px; padding: 14px 18px; margin: 18px 0; font-size: 17px; font-weight: 600 }
.banner p { font-weight: 400; font-size: 15px }
.failed { background: var(--badbg); color: var(--bad) }
.passed { background: var(--goodbg); color: var(--good) }
.warning, .below { background: var(--warnbg); color: var(--warn) }
.tag { border-radius: 6px; padding: 0 8px; font-size: 13px; font-weight: 600; white-space: nowrap }
.card {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 14px 18px; margin: 12px 0; overflow-x: auto;
}
table { border-collapse: collapse; width: 100% }
th, td { padding: 6px 18px 6px 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top }
th { font-size: 13px; color: var(--soft); font-weight: 600 }
tr:last-child td { border-bottom: 0 }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
code { font: 13px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace }
ul.offenders { margin: 0; padding-left: 16px; min-width: 24em }
ul.offenders code { overflow-wrap: anywhere; font-size: 12px }
details summary { cursor: pointer; color: var(--soft); padding: 4px 0 }
svg { width: 100%; height: auto; display: block }
svg text { fill: var(--soft); font-size: 11px }
"""


def summary_page(report: Report) -> str:
    """One self-contained HTML page: the verdict, what failed, what was set aside, every expectation."""
    source = report.source
    period = _period(report)
    digest = str(source.get("digest", "?"))[:16]
    lead = f"Source <b>{_e(source.get('source', '?'))}</b>, {_e(period)}"
    parts = [
        "<h1>Validation of the logs</h1>",
        f"<p class='soft'>{lead}. Digest of the ingested tables: <code>{_e(digest)}…</code></p>",
        _banner(report),
    ]
    if report.failures:
        parts += ["<h2>What failed</h2>", _findings(report.failures)]
    if report.warnings:
        parts += ["<h2>Warnings</h2>", _findings(report.warnings)]
    parts += ["<h2>Tables</h2>", _tables(report)]
    reasons = [(table, name, count) for table in report.tables for name, count in table.reasons.items()]
    if reasons:
        parts += ["<h2>Quarantine by reason</h2>", _quarantine(report, reasons)]
    by_day = [table for table in report.tables if table.days is not None]
    if by_day:
        parts += [
            "<h2>Volume and drift by day</h2>",
            "<p class='soft'>Bars: rows a day. Drift: share of a day's rows that would have to change "
            "category to match the days before; “–” where too few rows or days to compare.</p>",
            *(_days(table) for table in by_day),
        ]
    parts += ["<h2>Every expectation</h2>", *(_expectations(table) for table in report.tables)]
    body = "\n".join(parts)
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>Validation of the logs</title><style>{_STYLE}</style></head>\n<body><main>\n{body}\n"
        f"<p class='soft'>Full record: <a href='{DATA_DOCS}/index.html'>Great Expectations Data Docs</a> "
        "of the rows that it was given in this run: those of days that were as they had been are counted here, and were not "
        "judged again (its pages fetch their styles from the net).</p>\n</main></body></html>\n"
    )


def _e(value: object) -> str:
    return html.escape(str(value))


def _meaning(text: str) -> str:
    """A rule's sentence with its `code` set as such."""
    return re.sub("`([^`]*)`", r"<code>\1</code>", _e(text))


def _period(report: Report) -> str:
    days = [day for table in report.tables if table.days is not None for day in table.days["day"]]
    zone = report.source.get("time_zone", "UTC")
    return f"{min(days)} to {max(days)} (days of {zone})" if days else f"days of {zone}"


def _banner(report: Report) -> str:
    count = len(report.verdicts)
    rows = sum(table.rows for table in report.tables)
    aside = sum(table.quarantined for table in report.tables)
    if report.failures:
        return (
            f"<div class='banner failed'>{len(report.failures)} of {count} expectations failed"
            "<p>The pipeline stopped here. Nothing downstream has run; earlier outputs are untouched."
            "</p></div>"
        )
    notes = f"; {len(report.warnings)} warnings" if report.warnings else ""
    return (
        f"<div class='banner passed'>All {count} expectations hold{notes}"
        f"<p>{rows:,} rows judged, {aside:,} set aside in the quarantine, {rows - aside:,} passed on.</p>"
        "</div>"
    )


def _findings(verdicts: Sequence[Verdict]) -> str:
    rows = []
    for verdict in verdicts:
        offenders = "".join(f"<li><code>{_e(text)}</code></li>" for text in verdict.offenders)
        where = ", ".join(verdict.failed_in[:3]) + (" …" if len(verdict.failed_in) > 3 else "")
        rows.append(
            (
                f"<code>{_e(verdict.rule.table)}</code>",
                f"<code>{_e(verdict.rule.column or '(all)')}</code>",
                f"<b>{_e(verdict.rule.name)}</b><br>{_meaning(verdict.rule.meaning)}",
                f"{_e(_broken_by(verdict))}<br><span class='soft'>in {_e(where)}</span>",
                f"<ul class='offenders'>{offenders}</ul>" if offenders else "",
            )
        )
    return _card(_table(("table", "column", "expectation", "broken by", "first offenders"), rows))


def _tables(report: Report) -> str:
    rows: list[tuple[str, ...]] = []
    for table in report.tables:
        described = report.source.get("tables", {}).get(table.name, {})
        absent = [
            *described.get("absent_columns", []),
            *(f"{name} (all null)" for name in table.newly_absent_columns),
        ]
        rows.append(
            (
                f"<code>{_e(table.name)}</code>",
                f"{table.rows:,}",
                f"{table.quarantined:,}",
                f"{table.clean:,}",
                _e(", ".join(absent))
                if not table.newly_absent
                else "no rows: the table is treated as absent",
            )
        )
    absent_tables = report.source.get("absent_tables", [])
    note = f"<p class='soft'>The source has no {_e(', '.join(absent_tables))}.</p>" if absent_tables else ""
    header = ("table", "rows in", "quarantined", "clean", "columns that the source lacks")
    return _card(_table(header, rows, numbers={1, 2, 3}) + note)


def _quarantine(report: Report, reasons: Sequence[tuple[TableReport, str, int]]) -> str:
    rules = {(verdict.rule.table, verdict.rule.name): verdict.rule for verdict in report.verdicts}
    rows = [
        (
            f"<code>{_e(table.name)}</code>",
            f"<code>{_e(name)}</code>",
            f"{count:,}",
            _e(_percent(count / max(table.rows, 1))),
            "expected: " + _meaning(rules[table.name, name].meaning),
        )
        for table, name, count in reasons
    ]
    note = "<p class='soft'>A row with several reasons counts under each.</p>"
    return _card(_table(("table", "reason", "rows", "share", ""), rows, numbers={2, 3}) + note)


def _days(table: TableReport) -> str:
    days = table.days
    assert days is not None
    failing = {
        text.split(":", 1)[0]
        for verdict in table.verdicts
        if verdict.rule.scope == "day" and verdict.failed
        for text in verdict.offenders
    }
    drifts = [name for name in days.columns if str(name).startswith("drift of ")]
    ratio = "rows over the median of the days before"
    header = ("day", "rows", "over the median before", *drifts)
    body = [
        (
            (f"<b class='tag failed'>{_e(row['day'])}</b>" if row["day"] in failing else _e(row["day"])),
            f"{row['rows']:,}",
            *(_figure(row[name]) for name in (ratio, *drifts)),
        )
        for row in days.to_dict("records")
    ]
    detail = _table(header, body, numbers=set(range(1, len(header))))
    return _card(
        f"<h3><code>{_e(table.name)}</code></h3>{_bars(days, failing)}"
        f"<details><summary>figures of {len(days)} days</summary>{detail}</details>"
    )


def _figure(value: float) -> str:
    return "–" if pd.isna(value) else f"{value:.3f}"


def _bars(days: pd.DataFrame, failing: set[str]) -> str:
    """Rows by day as an inline drawing, so that the page needs nothing beside it."""
    width, height, foot, head = 1000.0, 150.0, 18.0, 16.0
    most = max(int(days["rows"].max()), 1)
    step = width / len(days)
    labelled = max(1, -(-len(days) // 10))
    drawn = []
    for index, (day, rows) in enumerate(zip(days["day"], days["rows"], strict=True)):
        tall = max((height - foot - head) * int(rows) / most, 1.0)
        colour = "var(--bad)" if day in failing else "var(--bar)"
        left = index * step
        drawn.append(
            f"<rect x='{left + 0.1 * step:.1f}' y='{height - foot - tall:.1f}' width='{0.8 * step:.1f}' "
            f"height='{tall:.1f}' rx='2' fill='{colour}'><title>{_e(day)}: {int(rows):,} rows</title></rect>"
        )
        if index % labelled == 0:
            drawn.append(
                f"<text x='{left + step / 2:.1f}' y='{height - 4:.1f}' text-anchor='middle'>"
                f"{_e(str(day)[5:])}</text>"
            )
    drawn.append(f"<text x='2' y='11'>at most {most:,} rows a day</text>")
    return (
        f"<svg viewBox='0 0 {width:g} {height:g}' role='img' aria-label='rows by day'>{''.join(drawn)}</svg>"
    )


def _expectations(table: TableReport) -> str:
    classes = {"failed": "failed", "warning": "warning", "below threshold": "below", "passed": "passed"}
    rows = [
        (
            f"<span class='tag {classes[verdict.status]}'>{verdict.status}</span>",
            f"<code>{_e(verdict.rule.column or '(all)')}</code>",
            f"<code>{_e(verdict.rule.name)}</code><br><span class='soft'>{_meaning(_wording(verdict))}</span>",
            f"{verdict.broken_by:,} of {verdict.judged:,} {_unit(verdict)}",
            _percent(verdict.rule.max_bad_share) if verdict.rule.scope == "row" else "none",
        )
        for verdict in table.verdicts
    ]
    held = sum(verdict.status in ("passed", "below threshold") for verdict in table.verdicts)
    header = ("", "column", "expectation", "broken by", "allowed")
    opened = " open" if held < len(table.verdicts) else ""
    return _card(
        f"<details{opened}><summary><code>{_e(table.name)}</code>: "
        f"{held} of {len(table.verdicts)} hold</summary>{_table(header, rows, numbers={3, 4})}</details>"
    )


def _wording(verdict: Verdict) -> str:
    rule = verdict.rule
    if isinstance(rule.check, Within):
        return f"{rule.meaning} ({rule.judged_column} {rule.check})"
    return rule.meaning


def _card(content: str) -> str:
    return f"<div class='card'>{content}</div>"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: set[int] | None = None) -> str:
    """A table of cells that are HTML already; `numbers` are the columns to align right."""
    right = numbers or set()

    def cells(tag: str, values: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=n' if index in right else ''}>{value}</{tag}>"
            for index, value in enumerate(values)
        )

    head = cells("th", [_e(name) for name in header])
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
