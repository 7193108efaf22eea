"""Causal evidence of a live experiment: did the users who were served the challenger watch for longer?

The server keeps a row per slate that it served under the experiment, and a row per watch of its users, whatever led to it
(`watchnext export-events`). What is compared is the watch time per user-day, from each user's first slate on, with an
interval that may be looked at any day (`evaluation.sequential`): every `dvc repro` is a look, and looking does no harm.

Of an A/B experiment users are the units, each in one arm for good, and the sizes of the arms are held to the coin that
was to assign them. Of an interleaved one every user sees both: what counts is, per user-day, the watch time of the
places that the challenger filled less that of the champion's. That says which is preferred where both are on one page,
and not how much longer people would watch: as evidence it counts alike, as a figure it does not.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from watchnext.decisions.checks import Check
from watchnext.decisions.live_log import read_parts
from watchnext.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from watchnext.decisions.checks import Outcome
    from watchnext.evaluation.sequential import Difference

CHECK = "watch_time_s_per_user_day"
REASON = "a challenger has to be worth more to users, not to itself"

Mode = Literal["ab", "interleave"]

_SERVED = (
    "experiment_id",
    "mode",
    "challenger_share",
    "at",
    "user_id",
    "arm",
    "champion_version",
    "challenger_version",
    "request_id",
    "video_ids",
    "teams",
)
_WATCHED = ("experiment_id", "at", "user_id", "video_id", "request_id", "watch_time_s")
_SECOND_US = 1_000_000
_DAY_US = 86_400 * _SECOND_US


@dataclass(frozen=True)
class Experiment:
    """What an experiment has seen so far.

    Attributes:
        mode: `ab`, or `interleave`.
        challenger: float64 [num_users], watch time in seconds per day of each user of the challenger's arm; interleaved,
            of the challenger's places of every user's pages.
        champion: float64 [num_users of this arm]; interleaved [num_users], in the same order.
        challenger_share: of users that was meant to get the challenger; interleaved, of first places, a half.
        arms: how many users are in the challenger's and in the champion's arm; interleaved, first places of each.
        user_days: how many days of users were watched.
    """

    mode: Mode
    challenger: "np.ndarray"
    champion: "np.ndarray"
    challenger_share: float
    arms: tuple[int, int]
    user_days: float


def experiment_check(
    experiment: Experiment, *, planned_users: int, error_rate: float = 0.05
) -> tuple[Check, dict[str, float]]:
    """Whether users of the challenger watch for longer, so far.

    Passed where the always-valid interval is above 0, failed where it is below; else, and where the arms or the values
    allow no conclusion, not judged.

    Args:
        experiment: what was seen.
        planned_users: of both arms together, when the interval is to be narrowest.
        error_rate: over all looks.

    Returns:
        The check, and its figures by name; none of a refusal.
    """
    from watchnext.evaluation import sequential

    try:
        if sequential.sample_ratio_is_off(*experiment.arms, challenger_share=experiment.challenger_share):
            raise InputError(
                f"{experiment.arms[0]} and {experiment.arms[1]} are not the arms that a coin of"
                f" {experiment.challenger_share:g} gives: users are missing from one of them",
                where="the experiment",
            )
        if experiment.mode == "ab":
            found = sequential.sequential_difference(
                experiment.challenger,
                experiment.champion,
                planned_users=planned_users,
                error_rate=error_rate,
            )
        else:
            found = sequential.sequential_mean(
                experiment.challenger - experiment.champion,
                planned_users=planned_users,
                error_rate=error_rate,
            )
    except InputError as error:
        return not_told(error, error_rate), {}
    outcome: Outcome = "not judged"
    if found.low > 0:
        outcome = "passed"
    elif found.high < 0:
        outcome = "failed"
    return Check(CHECK, _told(experiment, found), _bound(error_rate), outcome, REASON), {
        "experiment_s": found.value,
        "experiment_s_low": found.low,
        "experiment_s_high": found.high,
        "experiment_champion_s": float(experiment.champion.mean()),
        "experiment_users": float(len(experiment.champion))
        + (len(experiment.challenger) if experiment.mode == "ab" else 0),
        "experiment_user_days": experiment.user_days,
    }


def not_told(error: InputError, error_rate: float) -> Check:
    """The check of an experiment that says nothing, and why."""
    offenders = ", ".join(str(offender) for offender in error.offenders)
    value = error.what + (f" ({offenders})" if offenders else "")
    return Check(CHECK, value, _bound(error_rate), "not judged", REASON)


def _bound(error_rate: float) -> str:
    return f"above 0 at every look, by an always-valid interval of {1 - error_rate:.0%} over users"


def _told(experiment: Experiment, found: "Difference") -> str:
    users = len(experiment.champion) + (len(experiment.challenger) if experiment.mode == "ab" else 0)
    how = "" if experiment.mode == "ab" else ", interleaved"
    return (
        f"{found.value:+.2f} s [{found.low:+.2f}, {found.high:+.2f}]; {users} users,"
        f" {experiment.user_days:.0f} user-days{how}"
    )


def read_experiment(directory: Path, *, champion: int, challenger: int) -> Experiment:
    """What the experiment between two versions has seen so far.

    Args:
        directory: holds `served/` and `watched/`, as the server exports them.
        champion: number of the version.
        challenger: number of the version.

    Raises:
        InputError: there is no log, it is of other versions, users are in both arms, watch times are no seconds, or
            watches began before the page that led to them.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    served = read_parts(directory / "served", _SERVED)
    ids = served.filter(_is(served, champion, challenger))["experiment_id"].unique().to_pylist()
    if not ids:
        versions = sorted(
            {
                (row["challenger_version"], row["champion_version"])
                for row in served.select(["challenger_version", "champion_version"]).to_pylist()
            }
        )
        raise InputError(
            f"the experiment's log is not of version {challenger} against version {champion}",
            where=str(directory),
            offenders=[f"version {one} against version {other}" for one, other in versions[:3]],
            remedy="serve an experiment of these two",
        )
    # The last one between the two: an experiment that was begun anew has users of its own.
    begun = {one: pc.min(served.filter(pc.equal(served["experiment_id"], one))["at"]).as_py() for one in ids}
    newest = max(ids, key=lambda one: begun[one])
    served = served.filter(pc.equal(served["experiment_id"], newest))
    mixed = pc.sum(pc.invert(_is(served, champion, challenger))).as_py()
    if mixed:
        raise InputError(
            f"{mixed} of {served.num_rows} slates of the experiment {newest} are of other versions",
            where=str(directory / "served"),
            remedy="an experiment has to end when a version of it does",
        )
    watched = read_parts(directory / "watched", _WATCHED)
    watched = watched.filter(pc.equal(watched["experiment_id"], newest))
    seconds = pc.fill_null(watched["watch_time_s"].cast(pa.float64()), np.nan).to_numpy()
    wrong = np.flatnonzero(~(np.isfinite(seconds) & (seconds >= 0)))
    if len(wrong):
        raise InputError(
            f"{len(wrong)} of {len(seconds)} watch times are no numbers of seconds",
            where=str(directory / "watched"),
            offenders=[f"row {row}: {seconds[row]}" for row in wrong[:3]],
        )
    _forwards(served, watched, directory)
    mode: Mode = "ab" if served["mode"][0].as_py() == "ab" else "interleave"
    # What the log names is the share of users; interleaved, a fair coin says whose video stands first.
    share = float(served["challenger_share"][0].as_py()) if mode == "ab" else 0.5
    firsts = served.group_by("user_id").aggregate([("at", "min")])
    user_ids = firsts["user_id"].combine_chunks()
    first_us = _us(firsts["at_min"])
    ends_us = max(int(_us(served["at"]).max()), int(_us(watched["at"]).max(initial=0)))
    days = np.maximum((ends_us - first_us) / _DAY_US, 1.0)
    user = pc.fill_null(pc.index_in(watched["user_id"], value_set=user_ids), -1).to_numpy()
    counted = (user >= 0) & (_us(watched["at"]) >= first_us[user])
    if mode == "ab":
        arms = served.group_by("user_id").aggregate([("arm", "min"), ("arm", "max")])
        both = arms.filter(pc.not_equal(arms["arm_min"], arms["arm_max"]))["user_id"]
        if len(both):
            raise InputError(
                f"{len(both)} users were served by both arms",
                where=str(directory / "served"),
                offenders=both.to_pylist()[:3],
                remedy="assign a user for good",
            )
        total = np.bincount(user[counted], weights=seconds[counted], minlength=len(user_ids)) / days
        place = pc.index_in(user_ids, value_set=arms["user_id"].combine_chunks())
        is_challenger = pc.equal(arms["arm_min"].take(place), "challenger").to_numpy()
        one, other = total[is_challenger], total[~is_challenger]
        return Experiment(mode, one, other, share, (len(one), len(other)), float(days.sum()))
    one, other = (
        np.bincount(user[mine], weights=seconds[mine], minlength=len(user_ids)) / days
        for mine in (counted & (_teams(served, watched) == team) for team in ("challenger", "champion"))
    )
    heads = [teams[0] for teams in served["teams"].to_pylist() if teams]
    arms_of_places = (heads.count("challenger"), heads.count("champion"))
    return Experiment(mode, one, other, share, arms_of_places, float(days.sum()))


def _is(served: "pa.Table", champion: int, challenger: int) -> Any:
    import pyarrow.compute as pc

    return pc.and_(
        pc.equal(served["champion_version"], champion), pc.equal(served["challenger_version"], challenger)
    )


def _us(at: "pa.ChunkedArray") -> "np.ndarray":
    import pyarrow as pa

    return at.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy()


def _forwards(served: "pa.Table", watched: "pa.Table", directory: Path) -> None:
    """A watch begins after the page that led to it, or some clock went backwards."""
    import numpy as np
    import pyarrow.compute as pc

    page = pc.fill_null(
        pc.index_in(watched["request_id"], value_set=served["request_id"].combine_chunks()), -1
    )
    of = page.to_numpy()
    early = np.flatnonzero((of >= 0) & (_us(watched["at"]) + _SECOND_US < _us(served["at"])[of]))
    if len(early):
        raise InputError(
            f"{len(early)} of {watched.num_rows} watches began before the page that led to them: a clock went backwards",
            where=str(directory / "watched"),
            offenders=[f"row {row}" for row in early[:3]],
            remedy="mend the clocks of server and clients; what they logged meanwhile cannot be used",
        )


def _teams(served: "pa.Table", watched: "pa.Table") -> "np.ndarray":
    """Whose place each watch came from: object [num_watches], `challenger`, `champion`, or "" for no page."""
    import numpy as np

    whose = {
        (request_id, video_id): team
        for request_id, videos, teams in zip(
            served["request_id"].to_pylist(),
            served["video_ids"].to_pylist(),
            served["teams"].to_pylist(),
            strict=True,
        )
        for video_id, team in zip(videos or (), teams or (), strict=True)
    }
    pairs = zip(watched["request_id"].to_pylist(), watched["video_id"].to_pylist(), strict=True)
    return np.array([whose.get(pair, "") for pair in pairs], dtype=object)
