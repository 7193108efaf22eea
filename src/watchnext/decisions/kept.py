"""Decisions as they are kept: as JSON, under the digests of who was judged by what."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from watchnext.decisions.checks import Check
from watchnext.registry import Version


def judged_triple(
    challenger: str, champion: Version | None, features: Path, rules: Mapping[str, object]
) -> dict[str, str | None]:
    """Digests of who is judged, against whom, and by what evidence: the data of these features, and the rules."""
    data = json.loads((features / "manifest.json").read_text(encoding="utf-8"))["data_digest"]
    return {
        "challenger": challenger,
        "champion": None if champion is None else champion.bundle_digest,
        "evidence": digest_of({"data": data, **rules}),
    }


def digest_of(content: Mapping[str, object]) -> str:
    """sha256 of JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def checks_of(kept: Mapping[str, Any]) -> tuple[Check, ...]:
    """The checks of a decision that was kept as JSON."""
    return tuple(Check(**check) for check in kept["checks"])


def metrics_of(kept: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a decision that was kept as JSON, which has no NaN."""
    return {name: math.nan if value is None else value for name, value in kept["metrics"].items()}


def finite(content: Any) -> Any:
    """JSON has no NaN: null instead."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite(value) for value in content]
    return content
