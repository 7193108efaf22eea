"""What slates are ordered by: a declared function of expected watch time (paper, section 4)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from watchnext.errors import InputError

DURATION = "duration_s"
"""The input that tells how long a video is."""

SHORTEST_S = 1.0
"""Seconds: shorter videos count as this, so that a duration of nothing does not lead every slate."""


@dataclass(frozen=True)
class FinalScore:
    """score = expected_watch_time_s / max(duration_s, SHORTEST_S) ** duration_power

    Rises with expected watch time at any power, since the duration is the video's alone. 0 is expected watch time itself;
    1 is the share of the video that is expected to be watched, whose long videos no longer lead by their length alone.

    Attributes:
        duration_power: at least 0.
        typical_duration_s: what a video of unknown duration counts as, seconds.
    """

    duration_power: float = 0.0
    typical_duration_s: float = SHORTEST_S

    @classmethod
    def of(
        cls, recommend: Mapping[str, Any], quantiles: Mapping[str, npt.NDArray[np.float64]]
    ) -> "FinalScore":
        """The score that the settings `recommend` declare.

        Args:
            recommend: the section, as `Bundle.recommend` has it; one that declares no score orders by expected watch time.
            quantiles: of the inputs in training: their median duration stands for an unknown one.

        Raises:
            InputError: it wants durations, and no training example had any.
        """
        power = float(recommend.get("score", {}).get("duration_power", 0.0))
        if power == 0.0:
            return cls()
        durations = quantiles.get(DURATION, ())
        if not len(durations):
            raise InputError(
                "slates cannot be ordered by the share that is watched: the logs have no durations of videos",
                where="recommend.score.duration_power",
                offenders=[power],
                remedy="set it to 0, or give `videos.duration_s`",
            )
        return cls(power, float(np.median(durations)))

    def __call__(
        self, expected_watch_time_s: npt.NDArray[Any], duration_s: npt.NDArray[np.float64] | None
    ) -> npt.NDArray[np.float64]:
        """The score of each impression.

        Args:
            expected_watch_time_s: [num_impressions].
            duration_s: [num_impressions], NaN = unknown; None where all are.

        Returns:
            [num_impressions].
        """
        expected = expected_watch_time_s.astype(np.float64)
        if self.duration_power == 0.0:
            return expected
        known = np.full(len(expected), np.nan) if duration_s is None else duration_s
        length = np.maximum(np.where(np.isnan(known), self.typical_duration_s, known), SHORTEST_S)
        return np.asarray(expected / length**self.duration_power, np.float64)
