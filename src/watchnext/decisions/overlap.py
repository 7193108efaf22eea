"""How much two slates have in common."""

from collections.abc import Sequence

from watchnext.features.history import Id

RBO_PERSISTENCE = 0.9
"""p of rank-biased overlap: how likely a reader goes on to the next place; 86 % of the weight is on the first 10."""


def rank_biased_overlap(
    first: Sequence[Id], second: Sequence[Id], persistence: float = RBO_PERSISTENCE
) -> float:
    """Extrapolated rank-biased overlap of two rankings without ties (Webber, Moffat and Zobel 2010, eq. 23).

    For rankings of one length k, with A_d the share of the first d places that both have in common:
    RBO = A_k p^k + (1 - p) / p * sum over d of A_d p^d. 1 for equal rankings, 0 for disjoint ones. Of rankings of
    different lengths the longer one is cut.

    Args:
        first: best first.
        second: best first.
        persistence: p, between 0 and 1.

    >>> rank_biased_overlap("abc", "abc"), rank_biased_overlap("abc", "xyz")
    (1.0, 0.0)
    """
    depth = min(len(first), len(second))
    if depth == 0:
        return 1.0 if len(first) == len(second) else 0.0
    seen_first: set[Id] = set()
    seen_second: set[Id] = set()
    agreement = total = 0.0
    for place in range(depth):
        seen_first.add(first[place])
        seen_second.add(second[place])
        agreement = len(seen_first & seen_second) / (place + 1)
        total += agreement * persistence ** (place + 1)
    return agreement * persistence**depth + (1 - persistence) / persistence * total


def slate_overlap(first: Sequence[Id], second: Sequence[Id]) -> float:
    """Share of places of the longer slate that are filled by videos of both; 1 for two empty slates."""
    longer = max(len(first), len(second))
    return len(set(first) & set(second)) / longer if longer else 1.0
