"""The forest plot of a decision: every comparison with its interval and its margin, as one inline SVG."""

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from watchnext.decisions.checks import Check

_COLOURS = {"passed": "#0a6b2d", "failed": "#a40000", "not judged": "#8a6d00"}
_LABEL, _PLOT, _VALUE, _ROW, _TOP = 280, 430, 190, 26, 34
_WIDEST = 0.6
"""Harm that the axis ends at, at most; what goes on beyond it ends in an arrow."""


def forest_plot(checks: Sequence["Check"]) -> str:
    """SVG of the checks that have an interval, worst harm first; empty without any.

    A row is a comparison: the dot is the harm, as a share of the champion's value, the line its interval, the bar its
    margin. Left of 0 the candidate is better.
    """
    shown = [(check, check.harm) for check in checks if check.harm and _is_number(check.harm.get("value"))]
    if not shown:
        return ""
    shown.sort(key=lambda row: -row[1]["value"])
    reach = max(
        abs(harm[end])
        for _, harm in shown
        for end in ("value", "low", "high", "margin")
        if _is_number(harm.get(end))
    )
    reach = min(max(1.1 * reach, 0.02), _WIDEST)
    height = _TOP + _ROW * len(shown) + 30
    width = _LABEL + _PLOT + _VALUE

    def x(share: float) -> float:
        return round(_LABEL + _PLOT * (min(max(share, -reach), reach) + reach) / (2 * reach), 1)

    bottom = _TOP + _ROW * len(shown)
    parts = [
        f'<svg role="img" viewBox="0 0 {width} {height}" style="max-width:100%;font:13px system-ui,sans-serif">',
        "<title>Harm of each comparison with its interval and margin</title>",
        f'<text x="{x(0) - 8}" y="16" text-anchor="end">better than the champion</text>',
        f'<text x="{x(0) + 8}" y="16">worse</text>',
        f'<line x1="{x(0)}" x2="{x(0)}" y1="22" y2="{bottom}" stroke="#888"/>',
    ]
    for tick in _ticks(reach):
        share = f"{tick:+.1%}" if tick else "0"
        parts.append(
            f'<text x="{x(tick)}" y="{bottom + 18}" text-anchor="middle" fill="#555">{share}</text>'
            f'<line x1="{x(tick)}" x2="{x(tick)}" y1="{bottom}" y2="{bottom + 4}" stroke="#888"/>'
        )
    for number, (check, harm) in enumerate(shown):
        y = _TOP + _ROW * number + _ROW / 2
        colour = _COLOURS[check.outcome]
        low, high = (harm[end] if _is_number(harm.get(end)) else harm["value"] for end in ("low", "high"))
        margin = x(harm["margin"])
        arrows = "".join(
            f'<path d="M{x(end)} {y - 5} l{7 * side} 5 l{-7 * side} 5 z" fill="{colour}"/>'
            for end, side in ((low, -1), (high, 1))
            if abs(end) > reach
        )
        parts.append(
            f'<text x="{_LABEL - 12}" y="{y + 4}" text-anchor="end">{html.escape(check.name)}</text>'
            f'<line x1="{x(low)}" x2="{x(high)}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="2"/>{arrows}'
            f'<circle cx="{x(harm["value"])}" cy="{y}" r="4" fill="{colour}"/>'
            f'<line x1="{margin}" x2="{margin}" y1="{y - 9}" y2="{y + 9}" stroke="#1a1a1a" stroke-width="3"/>'
            f'<text x="{_LABEL + _PLOT + 14}" y="{y + 4}" fill="{colour}">'
            f"{_signed(harm['value'])} [{_signed(low)}, {_signed(high)}]</text>"
        )
    parts.append("</svg>")
    return (
        "<h2>Harm beside the champion</h2><p>Dot and line: the change for the worse and its interval over users. Bar: the"
        " margin that the line has to end before.</p>" + "".join(parts)
    )


def _ticks(reach: float) -> list[float]:
    step = next(step for step in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if reach / step <= 4)
    most = math.floor(reach / step)
    return [round(number * step, 6) for number in range(-most, most + 1)]


def _signed(share: float) -> str:
    """
    >>> _signed(-0.0), _signed(-0.0004), _signed(-0.021)
    ('+0.0%', '+0.0%', '-2.1%')
    """
    return f"{round(share, 3) + 0.0:+.1%}"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not math.isnan(value)
