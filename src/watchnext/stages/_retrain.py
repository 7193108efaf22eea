"""The champion's recipe on the candidate's window: its settings, trained anew on the features of now.

A retrained challenger is better for its recipe or for its fresher data, and one comparison cannot say for which. With the
bundle that this makes beside both (`promote.champions_recipe`) the gate shows each step for itself.

What is retrained is what the champion's bundle says of itself: the settings of `train_retrieval`, `build_index`, `nominate`,
`train_ranking` and `recommend`. The features are those of the candidate, and so are the code and the seed.
"""

from pathlib import Path

from ruamel.yaml import YAML

from watchnext import config
from watchnext.bundle import Bundle
from watchnext.console import say
from watchnext.errors import InputError
from watchnext.stages._runner import CHECKPOINTS_DIR, execution_id, only_stage_here, prepare, run
from watchnext.tracking import Tracker, flatten

FOLDER = Path("data/champions_recipe")
BUNDLE = FOLDER / "bundle"
CHECKPOINTS = CHECKPOINTS_DIR / FOLDER.name
"""Its own: in those of the pipeline it would clear away a candidate that was trained halfway, and be cleared away by it."""

_SECTIONS = {
    "train_retrieval": "retrieval",
    "build_index": "index",
    "nominate": "sources",
    "train_ranking": "ranking",
    "recommend": "recommend",
}
"""Section of params.yaml -> where a bundle's manifest has what it was made with."""

_FLAGS = {
    "choose_start": {
        "warm-start": "{warm_start}",
        "model-name": "{model_name}",
        "features": "{data}/features",
        "out-start": "{made}/start",
    },
    "train_retrieval": {
        "features": "{data}/features",
        "start": "{made}/start",
        "out-model": "{made}/retrieval",
    },
    "build_index": {"features": "{data}/features", "model": "{made}/retrieval", "out-index": "{made}/index"},
    "nominate": {
        "tables": "{data}/validated",
        "features": "{data}/features",
        "retrieval": "{made}/retrieval",
        "index": "{made}/index",
        "out-sources": "{made}/sources",
    },
    "train_ranking": {
        "features": "{data}/features",
        "sources": "{made}/sources",
        "out-model": "{made}/ranking",
    },
    "package": {
        "features": "{data}/features",
        "retrieval": "{made}/retrieval",
        "index": "{made}/index",
        "sources": "{made}/sources",
        "ranking": "{made}/ranking",
        "out-bundle": "{made}/bundle",
    },
}


def retrain(champion: Bundle, called: str) -> Bundle:
    """Train a bundle's settings on the project's present features, in `FOLDER`, as an execution of its own in MLflow.

    Args:
        champion: whose settings.
        called: what to call it in MLflow.

    Raises:
        InputError: the bundle does not say what it was made with, this version does not know one of its settings, the
            project has no features yet, or another stage is running.
    """
    made = champion.manifest["params"]
    missing = [section for section, part in _SECTIONS.items() if not made.get(part)]
    if missing:
        raise InputError(
            "the champion's bundle does not say what it was made with",
            where=str(champion.path),
            offenders=missing,
            remedy="it was packaged by an older version: retrain once, and compare from then on",
        )
    root = Path.cwd()
    tracker = Tracker.open(root)
    with only_stage_here(root):
        FOLDER.mkdir(parents=True, exist_ok=True)
        settings = config.read_params()
        settings |= {section: made[part] for section, part in _SECTIONS.items()}
        values = {
            "data": "data",
            "made": FOLDER,
            # A bundle of before there was a choice began at random.
            "warm_start": settings["train_retrieval"].get("warm_start", "none"),
            "model_name": settings["promote"]["model_name"],
        }
        params_file = FOLDER / "params.yaml"
        with params_file.open("w", encoding="utf-8") as file:
            YAML(typ="safe").dump(settings, file)
        calls = [
            prepare(
                stage,
                [
                    *(
                        word
                        for flag, value in flags.items()
                        for word in (f"--{flag}", value.format_map(values))
                    ),
                    "--out-report",
                    str(FOLDER / "reports" / stage),
                    "--metrics",
                    str(FOLDER / "metrics" / f"{stage}.json"),
                ],
                params_file,
            )
            for stage, flags in _FLAGS.items()
        ]
        identifier = execution_id(None)
        parent = tracker.pipeline_run(
            identifier, params=flatten(settings), tags={"watchnext.champions_recipe": called}
        )
        for call in calls:
            say(f"the champion's recipe: {call.stage}")
            run(call, tracker, identifier, CHECKPOINTS)
        tracker.finish(parent, "FINISHED")
    return Bundle.open(BUNDLE)
