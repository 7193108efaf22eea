"""A live experiment: champion and challenger answer real users, and what was shown to whom is recorded.

**ab**: a user belongs to one arm, by a hash of the user's id salted with the experiment's, and keeps it on every server and
after every restart. The challenger's share of users gets the challenger's slates, everybody else the champion's. Who is in
an arm stays in it where the challenger fails and the champion answers instead: to move users by what happened to
them would compare different people.

**interleave**: of the same share of users each slate is drafted from both rankings: round by round a coin says who picks
first, and each model adds its best video that is not there yet (team draft). A user sees both models at once, so far
fewer of them tell which one they prefer.

An experiment is named by what it is about: another challenger, champion or share is another one, with other users.

Sources: F. Radlinski, M. Kurup and T. Joachims, How does clickthrough data reflect retrieval quality?, CIKM 2008 (team
draft); R. Kohavi, D. Tang and Y. Xu, Trustworthy Online Controlled Experiments (2020), chapter 21 (sample ratio).
"""

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np

from watchnext.errors import InputError
from watchnext.evaluation.sequential import sample_ratio_is_off
from watchnext.features.history import Id
from watchnext.serving.served import Served

Mode = Literal["ab", "interleave"]
Arm = Literal["champion", "challenger"]


@dataclass(frozen=True)
class ExperimentId:
    """What an experiment is about; as text it is its name, and the salt of its users.

    Attributes:
        model: registered model.
        mode: how users see the challenger.
        share: of users who see it.
        champion: number of the version.
        challenger: number of the version.

    >>> str(ExperimentId("watchnext", "ab", 0.1, 3, 4))
    'watchnext:ab:0.1:3:4'
    """

    model: str
    mode: Mode
    share: float
    champion: int
    challenger: int

    def __str__(self) -> str:
        return f"{self.model}:{self.mode}:{self.share:g}:{self.champion}:{self.challenger}"

    @classmethod
    def parse(cls, text: str) -> "ExperimentId":
        """What `str` made."""
        model, mode, share, champion, challenger = text.rsplit(":", 4)
        return cls(model, cast(Mode, mode), float(share), int(champion), int(challenger))

    def sees_challenger(self, user_id: str) -> bool:
        """Whether a user belongs to the share; the same everywhere and always."""
        digest = hashlib.sha256(f"{self}\0{user_id}".encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") < self.share * 2.0**64


@dataclass(frozen=True)
class Exposure:
    """What a request is to be answered by.

    Attributes:
        experiment: which one.
        arm: of the user; None: the slate is drafted from both.
        challenger: the version.
    """

    experiment: ExperimentId
    arm: Arm | None
    challenger: Served


class Experiment:
    """Says who sees the challenger, and keeps count. Safe to be used by several threads.

    Args:
        model: registered model.
        mode: how users see the challenger.
        share: of users who see it.

    Attributes:
        challenger: the version; None while there is none to be served, and so no experiment.
        failures: requests that the champion answered because the challenger could not, since the server started.
        why_not: says why there is no challenger, while there is none.

    Raises:
        InputError: there is no such mode, or the share leaves one side empty.
    """

    def __init__(self, model: str, mode: str, share: float) -> None:
        if mode not in get_args(Mode):
            raise InputError(
                "there is no such experiment",
                where="--experiment",
                offenders=[mode],
                remedy=" or ".join(get_args(Mode)),
            )
        if not 0.0 < share < 1.0:
            raise InputError(
                "a share of users lies between 0 and 1, both excluded", where="--share", offenders=[share]
            )
        self.challenger: Served | None = None
        self.failures = 0
        self.why_not: Callable[[], str] = str
        self._model = model
        self._mode = cast(Mode, mode)
        self._share = share
        self._lock = threading.Lock()
        self._of: ExperimentId | None = None
        self._seen: dict[bool, set[str]] = {True: set(), False: set()}

    def exposure(self, user_id: str, champion: Served) -> Exposure | None:
        """How a user's slate is made while `champion` is that; None: by the champion, outside of any experiment."""
        challenger = self.challenger
        if challenger is None or challenger.version.number == champion.version.number:
            return None
        one = ExperimentId(
            self._model, self._mode, self._share, champion.version.number, challenger.version.number
        )
        sees = one.sees_challenger(user_id)
        with self._lock:
            if one != self._of:
                self._of, self._seen = one, {True: set(), False: set()}
            self._seen[sees].add(user_id)
        if self._mode == "interleave":
            return Exposure(one, None, challenger) if sees else None
        return Exposure(one, "challenger" if sees else "champion", challenger)

    def failed(self) -> None:
        """The challenger could not answer."""
        with self._lock:
            self.failures += 1

    def told(self) -> dict[str, Any]:
        """For operators: which experiment, users of both sides since this server started, and whether they are as meant."""
        with self._lock:
            of, users = self._of, {sees: len(found) for sees, found in self._seen.items()}
        return {
            "id": None if of is None else str(of),
            "mode": self._mode,
            "share": self._share,
            "challenger_loaded": None if self.challenger is None else self.challenger.version.number,
            "why_not": self.why_not() if self.challenger is None else "",
            "users_with_challenger": users[True],
            "users_without": users[False],
            "sample_ratio_is_off": sample_ratio_is_off(
                users[True], users[False], challenger_share=self._share
            ),
            "challenger_failures": self.failures,
        }


def team_draft(
    rankings: tuple[Sequence[Id], Sequence[Id]], how_many: int, request_id: str
) -> list[tuple[int, int]]:
    """A slate that both models pick in turns.

    Args:
        rankings: of the champion and of the challenger, best first.
        how_many: length of the slate.
        request_id: 32 hexadecimal digits, the seed: the same id drafts the same again.

    Returns:
        Per place which ranking it is from, 0 or 1, and the video's place there.

    >>> team_draft(([1, 2], [1, 2]), 5, "0" * 32)
    [(1, 0), (0, 1)]
    """
    coin = np.random.default_rng(int(request_id, 16))
    drafted: list[tuple[int, int]] = []
    taken: set[Id] = set()
    places = [0, 0]
    while len(drafted) < how_many:
        before = len(drafted)
        first = int(coin.integers(2))
        for team in (first, 1 - first):
            ranking = rankings[team]
            while places[team] < len(ranking) and ranking[places[team]] in taken:
                places[team] += 1
            if places[team] < len(ranking) and len(drafted) < how_many:
                taken.add(ranking[places[team]])
                drafted.append((team, places[team]))
        if len(drafted) == before:
            break
    return drafted
