"""What a study hands over: rows with intervals, the claims they are held against, and the page that says so."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIMULATED = "simulated"
FULL = 1.0

HAND_WRITTEN = "<!-- What follows is written by hand; running the study again leaves it as it is. -->"

Direction = Literal["more", "less", "same"]


@dataclass(frozen=True)
class Row:
    """One figure with its interval.

    Attributes:
        source: `simulated`, or the name of the logs.
        dial: strength of the mechanism in the simulated world, 0 to 1; None on logs, whose strength nobody knows.
        variant: what was done.
        metric: what was measured.
        estimate: the figure; NaN where there was nothing to measure.
        low: lower end of its interval.
        high: upper end.
        against: the variant that it is the paired difference from; "" for a level.
    """

    source: str
    dial: float | None
    variant: str
    metric: str
    estimate: float
    low: float
    high: float
    against: str = ""

    @property
    def key(self) -> str:
        """The row's name in MLflow: source, dial, metric, variant."""
        place = self.source if self.dial is None else f"{self.source}/dial {self.dial:g}"
        name = f"{self.variant} - {self.against}" if self.against else self.variant
        return f"{place}/{self.metric}/{name}"


@dataclass(frozen=True)
class Claim:
    """One sentence of the paper, and the row that decides whether it holds.

    Attributes:
        text: what is claimed.
        variant: what is claimed of.
        against: the variant it is compared with; "" where a level is held against `within`.
        metric: what decides.
        expects: whether the difference is to lie above 0, below 0, or within a bound.
        within: for `same`: the largest difference that still counts as none, as a share of the level of `against`;
            without `against`: the two ends that the level has to lie between.
        vanishes: whether the effect has to be gone where the mechanism's dial is at 0.
    """

    text: str
    variant: str
    against: str
    metric: str
    expects: Direction = "more"
    within: float | tuple[float, float] = 0.0
    vanishes: bool = True


@dataclass(frozen=True)
class Judgement:
    """What the rows say of a claim.

    Attributes:
        claim: the claim.
        verdict: `reproduced` (on real logs), `mechanism check passed` (in the simulated world alone), `not shown`
            (intervals too wide), `does not hold`, or `another mechanism` (it stays where the dial is at 0).
        because: the figures that decide.
    """

    claim: Claim
    verdict: str
    because: str


@dataclass(frozen=True)
class Result:
    """What came of a study.

    Attributes:
        rows: all figures.
        notes: what a reader has to know of this run: sizes, what was absent, what was left out.
        draw: draws the study's own picture; None for differences by dial.
        dial: what the dial turns, for the page.
    """

    rows: Sequence[Row]
    notes: Sequence[str] = ()
    draw: "Callable[[Sequence[Row]], Figure] | None" = None
    dial: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


def judge(claim: Claim, rows: Sequence[Row]) -> Judgement:
    """Hold a claim against the rows.

    An effect seen on real logs is `reproduced`. One that only the simulated world shows is a check that the
    mechanism, where it is at work, does what is claimed; and only if it is gone where the mechanism is switched off.
    """
    mine = [
        row
        for row in rows
        if (row.variant, row.against, row.metric) == (claim.variant, claim.against, claim.metric)
    ]
    levels = {
        (row.source, row.dial): row.estimate
        for row in rows
        if not row.against and row.variant == claim.against and row.metric == claim.metric
    }
    on_logs = [row for row in mine if row.source != SIMULATED]
    full = [row for row in mine if row.source == SIMULATED and row.dial == FULL]
    off = [row for row in mine if row.source == SIMULATED and row.dial == 0.0]

    def outcome(row: Row) -> str:
        low, high = row.low, row.high
        if not (low == low and high == high):
            return "open"
        if claim.expects == "same" or not claim.against:
            bound = claim.within
            if isinstance(bound, float | int):
                level = abs(levels.get((row.source, row.dial), float("nan")))
                bound = (-bound * level, bound * level)
            if bound[0] <= low and high <= bound[1]:
                return "holds"
            return "fails" if low > bound[1] or high < bound[0] else "open"
        if claim.expects == "less":
            low, high = -high, -low
        return "holds" if low > 0 else "fails" if high < 0 else "open"

    said = "; ".join(f"{_place(row)}: {_span(row)}" for row in (*on_logs, *full, *off)) or "no figures"
    real, simulated = {outcome(row) for row in on_logs}, {outcome(row) for row in full}
    stays = claim.vanishes and claim.expects != "same" and any(row.low > 0 or row.high < 0 for row in off)
    if "fails" in real:
        verdict = "does not hold"
    elif real == {"holds"}:
        verdict = "reproduced"
    elif "fails" in simulated:
        verdict = "does not hold"
    elif simulated == {"holds"}:
        verdict = "another mechanism" if stays else "mechanism check passed"
    else:
        verdict = "not shown"
    if verdict == "mechanism check passed" and real:
        said += " (the logs alone leave it open)"
    if verdict == "reproduced" and stays:
        said += " (in the simulated world it stays where the dial is at 0)"
    return Judgement(claim, verdict, said)


def write_page(
    directory: Path,
    name: str,
    title: str,
    about: str,
    claims: Sequence[Claim],
    result: Result,
    settings: Mapping[str, Any],
    command: str,
) -> list[Path]:
    """Write `NAME.md`, `NAME.png` and `NAME.json` into `directory`; what stands by hand in the page is kept.

    Returns:
        The three files.
    """
    directory.mkdir(parents=True, exist_ok=True)
    page, picture, figures = (directory / f"{name}.{kind}" for kind in ("md", "png", "json"))
    judgements = [judge(claim, result.rows) for claim in claims]
    (result.draw or draw_differences)(result.rows).savefig(picture, dpi=110)
    content = {
        "study": name,
        "settings": dict(settings),
        "claims": [
            {"claim": one.claim.text, "verdict": one.verdict, "because": one.because} for one in judgements
        ],
        "rows": [asdict(row) for row in result.rows],
        "notes": list(result.notes),
        **result.extra,
    }
    figures.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    by_hand = f"{HAND_WRITTEN}\n"
    if page.exists() and HAND_WRITTEN in (before := page.read_text(encoding="utf-8")):
        by_hand = before[before.index(HAND_WRITTEN) :]
    lines = [f"# {title}", "", about.strip(), "", f"    {command}", "", "## Verdict", ""]
    lines += _table(
        ("claim", "verdict", "because"),
        [(one.claim.text, f"**{one.verdict}**", one.because) for one in judgements],
    )
    lines += ["", f"![{title}]({name}.png)", "", "## Figures", ""]
    if result.dial:
        lines += [f"The dial turns {result.dial}: 0 is off, 1 is full.", ""]
    lines += [
        "95 % intervals in brackets: bootstrap over users, and over trainings where there are several. A difference is"
        " paired: same users, same events, in the simulated world the same luck.",
        "",
    ]
    lines += _table(
        ("where", "metric", "what", "figure"),
        [
            (
                _place(row),
                row.metric,
                f"{row.variant} minus {row.against}" if row.against else row.variant,
                _span(row) + _share(row, result.rows),
            )
            for row in result.rows
        ],
    )
    lines += ["", *(f"- {note}" for note in result.notes)]
    lines += [
        "- Settings: " + ", ".join(f"{key} {value}" for key, value in settings.items()) + ".",
        "",
        "",
    ]
    page.write_text("\n".join(lines) + by_hand, encoding="utf-8")
    return [page, picture, figures]


def draw_differences(rows: Sequence[Row]) -> "Figure":
    """One panel per metric: differences with their intervals, by dial, real logs to the right of them."""
    import numpy as np
    from matplotlib.figure import Figure

    shown = [row for row in rows if row.against] or list(rows)
    metrics = list(dict.fromkeys(row.metric for row in shown))
    places = sorted({(row.source != SIMULATED, row.source, row.dial or 0.0, row.dial) for row in shown})
    position = {(source, dial): place for place, (_, source, _, dial) in enumerate(places)}
    variants = list(dict.fromkeys((row.variant, row.against) for row in shown))
    figure = Figure(figsize=(1.5 + 4.2 * len(metrics), 4.0 + 0.12 * len(variants)), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        for number, (variant, against) in enumerate(variants):
            mine = [
                row for row in shown if (row.variant, row.against, row.metric) == (variant, against, metric)
            ]
            if not mine:
                continue
            shift = 0.12 * (number - (len(variants) - 1) / 2)
            at = np.array([position[row.source, row.dial] for row in mine]) + shift
            value = np.array([row.estimate for row in mine])
            ends = np.array([[row.estimate - row.low, row.high - row.estimate] for row in mine]).T
            axes.errorbar(
                at,
                value,
                yerr=np.maximum(ends, 0.0),
                fmt="o",
                capsize=3,
                color=f"C{number}",
                label=f"{variant} minus {against}" if against else variant,
            )
        if any(row.against for row in shown):
            axes.axhline(0.0, color="grey", linewidth=0.8)
        axes.set_xticks(range(len(places)), [_tick(source, dial) for _, source, _, dial in places])
        axes.set(title=metric)
        axes.grid(axis="y", alpha=0.3)
    # Beside the panels, where it hides no interval; a variant may be missing from some of them.
    told: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        told.update(zip(labels, handles, strict=True))
    figure.legend(list(told.values()), list(told), loc="outside lower center", ncols=2, fontsize="small")
    return figure


def _tick(source: str, dial: float | None) -> str:
    return source if dial is None else f"dial {dial:g}"


def _place(row: Row) -> str:
    return row.source if row.dial is None else f"{row.source}, dial {row.dial:g}"


def _span(row: Row) -> str:
    sign = "+" if row.against else ""
    return f"{row.estimate:{sign}.4g} [{row.low:{sign}.4g}, {row.high:{sign}.4g}]"


def _share(row: Row, rows: Sequence[Row]) -> str:
    """The difference as a share of the level that it starts from."""
    if not row.against:
        return ""
    for other in rows:
        same = (other.source, other.dial, other.metric) == (row.source, row.dial, row.metric)
        if same and not other.against and other.variant == row.against and other.estimate:
            return f" ({row.estimate / other.estimate:+.1%})"
    return ""


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(header), "|" + "---|" * len(header), *(line(row) for row in rows)]
