"""What slates are made of: how much of the catalogue, how old, how much of what is new and of small channels.

These figures judge nothing. They are shown beside what does, because a model can gain watch time by showing everybody the
same few videos, and nothing that counts watches would say so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from watchnext.features.history import Id, to_microseconds

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from watchnext.features.ranking_features import VideoStatistics

SMALL_CHANNELS_SHARE = 0.2
"""Small are the channels that together had this share of all past impressions, counted from the smallest."""

_DAY_US = 86_400_000_000


@dataclass(frozen=True)
class Catalogue:
    """What is known of the videos that slates are made of.

    Attributes:
        video_ids: [num_videos].
        uploaded_us: float64 [num_videos], microseconds since 1970 UTC; NaN where unknown. None: nothing says when.
        of_small_channel: bool [num_videos]. None: nothing says whose videos are.
    """

    video_ids: "pa.Array"
    uploaded_us: "np.ndarray | None"
    of_small_channel: "np.ndarray | None"

    @classmethod
    def of(cls, features: Path, statistics: "VideoStatistics") -> "Catalogue":
        """Of the videos that featurize knows, with the impressions of their channels as of a day.

        Args:
            features: outputs of featurize.
            statistics: of that day.
        """
        import pyarrow as pa

        from watchnext.features.ranking_features import COUNTS
        from watchnext.models.candidate_sources import read_videos

        videos = read_videos(features / "videos")
        uploaded = of_small = None
        if "uploaded_at" in videos.column_names:
            at = videos["uploaded_at"].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
            uploaded = at.cast(pa.float64(), safe=False).fill_null(float("nan")).to_numpy()
        if "channel_id" in videos.column_names:
            ids = videos["video_id"].combine_chunks()
            impressions = statistics.videos.of(ids)[:, COUNTS.index("impressions")]
            of_small = small_channels(videos["channel_id"].combine_chunks(), impressions)
        return cls(videos["video_id"].combine_chunks(), uploaded, of_small)


def small_channels(channel_ids: "pa.Array", impressions: "np.ndarray") -> "np.ndarray":
    """Which videos are of small channels; see `SMALL_CHANNELS_SHARE`. A video of no known channel is of none that is small.

    Args:
        channel_ids: [num_videos].
        impressions: int64 [num_videos], how often each was shown.

    Returns:
        bool [num_videos].
    """
    import numpy as np
    import pyarrow.compute as pc

    codes = pc.fill_null(pc.dictionary_encode(channel_ids).indices, -1).to_numpy(zero_copy_only=False)
    known = codes >= 0
    sizes = np.bincount(codes[known], weights=impressions[known], minlength=codes.max(initial=-1) + 1)
    order = np.argsort(sizes, kind="stable")
    is_small = np.zeros(len(sizes), bool)
    is_small[order] = np.cumsum(sizes[order]) <= SMALL_CHANNELS_SHARE * sizes.sum()
    return known & np.append(is_small, False)[codes]


def assortment(
    slates: Sequence[Sequence[Id]], asked_at: Sequence[datetime], catalogue: Catalogue
) -> dict[str, float]:
    """Figures of one model's slates; those that the logs cannot give are left out.

    Args:
        slates: [num_requests], best first; empty for an error.
        asked_at: [num_requests].
        catalogue: of all videos.

    Returns:
        `catalogue_coverage`, the share of the videos there by the last request that stand in any slate; of the places,
        `video_age_p50_days`, `new_videos_share` (uploaded less than 7 days before the request) and `small_channels_share`.
        Empty where no slate has a video.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from watchnext.evaluation.offline import FRESH_S

    shown = pa.array([video for slate in slates for video in slate], catalogue.video_ids.type)
    if not len(shown):
        return {}
    at_us = np.repeat([to_microseconds(at) for at in asked_at], [len(slate) for slate in slates])
    rows = pc.fill_null(pc.index_in(shown, value_set=catalogue.video_ids), -1).to_numpy(zero_copy_only=False)
    known = rows >= 0
    there = len(catalogue.video_ids)
    found: dict[str, float] = {}
    if catalogue.uploaded_us is not None:
        # A video of unknown age is there, and is neither old nor new.
        there = int((~(catalogue.uploaded_us >= at_us.max())).sum())
        age_us = at_us[known] - catalogue.uploaded_us[rows[known]]
        age_us = age_us[np.isfinite(age_us)]
        if len(age_us):
            found["video_age_p50_days"] = float(np.median(age_us)) / _DAY_US
            found["new_videos_share"] = float((age_us < 1e6 * FRESH_S).mean())
    if catalogue.of_small_channel is not None:
        found["small_channels_share"] = float(catalogue.of_small_channel[rows[known]].sum()) / len(shown)
    return {"catalogue_coverage": len(shown.unique()) / max(there, 1), **found}
