"""Measures of variants of one experiment, collected by place and seed, and turned into rows with intervals."""

from collections.abc import Mapping, Sequence

from watchnext.evaluation.intervals import PerUser, bootstrap
from watchnext.studies._report import SIMULATED, Row

Measured = Mapping[str, PerUser]
"""Metric -> what it is, summed within each user."""


class Measures:
    """What variants measured, and the rows that follow.

    >>> import numpy as np
    >>> one = PerUser(np.array([1.0, 3.0]), np.array([2.0, 2.0]))
    >>> measures = Measures({"b": "a"})
    >>> measures.add("simulated", 1.0, "a", {"map": one})
    >>> measures.add("simulated", 1.0, "b", {"map": PerUser(one.totals + 1.0, one.counts)})
    >>> [(row.variant, row.against, row.estimate) for row in measures.rows()]
    [('a', '', 1.0), ('b', '', 1.5), ('b', 'a', 0.5)]
    """

    def __init__(self, against: Mapping[str, str] | Sequence[tuple[str, str]]) -> None:
        """Nothing measured yet.

        Args:
            against: variant -> the variant that it is compared with, or pairs of them.
        """
        self._against = list(against.items() if isinstance(against, Mapping) else against)
        self._measured: dict[tuple[str, float | None], dict[str, dict[str, list[PerUser]]]] = {}

    def add(self, source: str, dial: float | None, variant: str, measured: Measured) -> None:
        """Add what one training of `variant` measured at one place.

        Trainings of different variants are paired by the order in which they are added: the n-th of each have one
        seed, and in the simulated world one world.
        """
        metrics = self._measured.setdefault((source, dial), {}).setdefault(variant, {})
        for metric, value in measured.items():
            metrics.setdefault(metric, []).append(value)

    def rows(self) -> list[Row]:
        """Levels of every variant, and its paired differences from the one it is compared with."""
        rows = []
        for (source, dial), variants in self._measured.items():
            same_users = source != SIMULATED
            metrics = list(dict.fromkeys(metric for own in variants.values() for metric in own))
            for metric in metrics:
                for variant, own in variants.items():
                    if metric in own:
                        found = bootstrap(own[metric], same_users=same_users)
                        rows.append(Row(source, dial, variant, metric, found.value, found.low, found.high))
                for variant, against in self._against:
                    if metric in variants.get(variant, {}) and metric in variants.get(against, {}):
                        pairs = zip(variants[variant][metric], variants[against][metric], strict=True)
                        found = bootstrap([one.minus(two) for one, two in pairs], same_users=same_users)
                        rows.append(
                            Row(source, dial, variant, metric, found.value, found.low, found.high, against)
                        )
        return rows
