"""Slates that are drawn, so that logs say what a model would not have shown, and how likely each of them was.

With probability `share` the slate of a request is drawn: from the candidates that the ranker puts first, with
probability `uniform_share` uniformly without replacement, else by Plackett-Luce, in which the candidate of rank r, from
0, has the weight 1 / (1 + r). Otherwise the slate is the ranking itself.

**The propensity** of an impression is the probability, given the request, that its video stands at its position, over
all slates that have it there (and not given what stands before it):

    P(i at k) = (1 - share) [i has rank k] + share ((1 - uniform_share) PL(i at k) + uniform_share / candidates)

It is what the simulator logs (`data.slates.SlateSampler`), and what `evaluation.counterfactual` divides by: the reward
of an impression is taken to depend on the request, the video and its position. Who asks for the slate (the version, the
arm of an experiment, the candidates) belongs to what is given. Every impression has it, those of slates that are not
drawn too: to leave them out would choose by what was drawn.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from watchnext.data.slates import plackett_luce_marginals
from watchnext.errors import InputError

MOST_SLOTS = 50
"""Longer slates are not drawn."""

MOST_CANDIDATES = 256
"""A slate is drawn from so many at most: their weights lie within a factor that the marginals are exact for."""


@dataclass(frozen=True)
class Exploration:
    """How slates are drawn.

    Attributes:
        share: of the slates that are drawn.
        uniform_share: of these, drawn uniformly.

    Raises:
        InputError: on making it: a share that is none.
    """

    share: float
    uniform_share: float = 0.1

    def __post_init__(self) -> None:
        for name in ("share", "uniform_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InputError("a share lies between 0 and 1", where=name, offenders=[getattr(self, name)])

    def of(self, request_id: str, how_many: int) -> "Draw | None":
        """What is drawn for a request: the same again for the same id. None where nothing ever is."""
        return Draw(self, request_id) if self.share > 0 and how_many <= MOST_SLOTS else None

    def propensities(self, candidates: int, slots: int) -> npt.NDArray[np.float64]:
        """P(i at k) by rank i and position k, float64 [candidates, slots]; columns sum to 1."""
        pool = max(slots, min(candidates, MOST_CANDIDATES))
        drawn = np.zeros((candidates, slots))
        drawn[:pool] = (1 - self.uniform_share) * _marginals(pool, slots) + self.uniform_share / pool
        return (1 - self.share) * np.eye(candidates, slots) + self.share * drawn


class Draw:
    """The draw of one request.

    Args:
        exploration: how slates are drawn.
        request_id: 32 hexadecimal digits, the seed.

    Attributes:
        is_drawn: whether the slate is drawn; else it is the ranking.
    """

    def __init__(self, exploration: Exploration, request_id: str) -> None:
        self._exploration = exploration
        self._luck = np.random.default_rng(int(request_id, 16))
        self.is_drawn = bool(self._luck.random() < exploration.share)

    def __call__(self, candidates: int, slots: int) -> tuple[Sequence[int], Sequence[float]]:
        """Ranks of the slate's videos in its order, and their propensities.

        Args:
            candidates: how many there are, by rank.
            slots: at most as many.
        """
        ranks = np.arange(slots)
        if self.is_drawn:
            pool = max(slots, min(candidates, MOST_CANDIDATES))
            weights = (
                np.ones(pool) if self._luck.random() < self._exploration.uniform_share else _weights(pool)
            )
            # The order of arrival at these rates is Plackett-Luce.
            ranks = np.argsort(self._luck.exponential(size=pool) / weights)[:slots]
        table = self._exploration.propensities(candidates, slots)
        return ranks.tolist(), table[ranks, np.arange(slots)].tolist()


def _weights(candidates: int) -> npt.NDArray[np.float64]:
    return 1.0 / np.arange(1, candidates + 1, dtype=np.float64)


@functools.lru_cache(maxsize=256)
def _marginals(candidates: int, slots: int) -> npt.NDArray[np.float64]:
    """Weights are ranks, so the marginals of all requests with so many candidates are one table."""
    return plackett_luce_marginals(_weights(candidates)[None], slots)[0]
