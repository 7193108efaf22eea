"""The forest plot: every comparison in its place, in one file."""

import math
import re
import xml.etree.ElementTree as ET

from watchnext.decisions.checks import Check
from watchnext.decisions.forest import forest_plot


def check(
    name: str, value: float, low: float, high: float, outcome: str = "passed", margin: float = 0.05
) -> Check:
    harm = {"value": value, "low": low, "high": high, "margin": margin, "detectable": 0.01}
    return Check(name, "", "", outcome, "", harm)  # type: ignore[arg-type]


def drawn(checks: list[Check]) -> ET.Element:
    svg = re.search(r"<svg.*</svg>", forest_plot(checks))
    assert svg is not None
    return ET.fromstring(svg.group())


def test_places_keep_the_order_of_harm() -> None:
    """Meant to fail with the axis turned round: better is left of 0, and a line that ends before its margin passes."""
    svg = drawn(
        [
            check("better", -0.04, -0.06, -0.02),
            check("harmed", 0.08, 0.02, 0.14, "failed"),
            check("no_number", math.nan, math.nan, math.nan, "not judged"),
            Check("digests", "", "", "passed", ""),
        ]
    )
    labels = [
        text.text for text in svg.iter("text") if text.text in ("better", "harmed", "no_number", "digests")
    ]
    assert labels == ["harmed", "better"], "worst first, and none without an interval"
    places = [float(circle.attrib["cx"]) for circle in svg.iter("circle")]
    zero = float(next(svg.iter("line")).attrib["x1"])
    assert places[1] < zero < places[0]
    margins = [float(line.attrib["x1"]) for line in svg.iter("line") if line.get("stroke-width") == "3"]
    assert zero < margins[0] < places[0]


def test_what_goes_beyond_the_axis_ends_in_an_arrow() -> None:
    svg = drawn([check("one_user", 0.3, -math.inf, math.inf, "not judged")])
    assert len(list(svg.iter("path"))) == 2
    width = float(svg.attrib["viewBox"].split()[2])
    assert all(0 <= float(line.attrib["x2"]) <= width for line in svg.iter("line"))
    assert not list(drawn([check("fine", 0.0, -0.1, 0.1)]).iter("path"))


def test_without_comparisons_there_is_no_plot() -> None:
    assert forest_plot([Check("digests", "", "", "passed", "")]) == ""


def test_names_are_text() -> None:
    assert "<b>" not in forest_plot([check("recall.surface_<b>", 0.0, -0.1, 0.1)])
