"""The `watchnext` command: what `dvc repro`, the MLflow UI and the registry do not already say themselves."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from ruamel.yaml import YAML

from watchnext import config
from watchnext.addresses import without_passwords
from watchnext.console import print_table, say
from watchnext.errors import InputError
from watchnext.tracking import UI_PORT

if TYPE_CHECKING:
    from watchnext.registry import Registry

_STATUS_METRICS = ("recall_at_100", "map", "weighted_pairwise_loss", "index_recall_at_100")
"""What the table of `status` shows; `--json` has them all."""

app = typer.Typer(
    help="Two-stage video recommendations on your own logs. The pipeline itself runs by `dvc repro`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
registry_app = typer.Typer(help="Mend the registry.", no_args_is_help=True)
app.add_typer(registry_app, name="registry")
cluster_app = typer.Typer(
    help="A Spark cluster on loopback, to try `engine.kind: spark` on.", no_args_is_help=True
)
app.add_typer(cluster_app, name="cluster")


@app.command()
def status(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of a table.")
    ] = False,
) -> None:
    """Say which versions are champion, challenger and previous: metrics, since when and why.

    Reads the registry of this project (mlruns/, or MLFLOW_TRACKING_URI and MLFLOW_REGISTRY_URI).
    """
    from watchnext.registry import Registry

    models = Registry.open(Path.cwd()).status()
    if as_json:
        sys.stdout.write(json.dumps(models, indent=2, sort_keys=True) + "\n")
        return
    if not models:
        say("no model is registered yet: run `dvc repro`")
    for model in models:
        rows = [
            (
                role,
                f"version {entry['version']}",
                "\n".join(f"{name} {metrics[name]:.4g}" for name in _STATUS_METRICS if name in metrics),
                entry["since_at"][:16].replace("T", " ") + " UTC",
                entry["reason"],
            )
            for role in ("champion", "challenger", "previous")
            if (entry := model["roles"].get(role)) is not None
            for metrics in (entry["metrics"],)
        ]
        print_table(model["name"], ("role", "version", "metrics", "since", "why"), rows)


_Model = Annotated[
    str | None,
    typer.Option("--model", help="Registered model; needed where there are several.", show_default=False),
]


def _model_named(registry: "Registry", name: str | None) -> str:
    names = registry.models()
    if name is None and len(names) == 1:
        return names[0]
    if name is not None and name in names:
        return name
    raise InputError(
        f"there is no registered model {name}"
        if name is not None
        else f"there are {len(names)} registered models",
        where=registry.where,
        offenders=names,
        remedy="run `dvc repro` first" if not names else "name one by --model",
    )


def _instant(text: str) -> datetime:
    """An instant in ISO 8601; UTC where it names no offset."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(
            f"`{text}` is no instant", where="--at", remedy="2026-05-06T18:30:00, or a date"
        ) from None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


@app.command()
def rollback(
    reason: Annotated[str, typer.Option("--reason", help="Why, in a sentence: the history keeps it.")],
    to: Annotated[
        int | None,
        typer.Option(
            "--to", help="Version number of an earlier champion; without it, `previous`.", show_default=False
        ),
    ] = None,
    model: _Model = None,
) -> None:
    """Make an earlier champion champion again, at once. Servers that follow the registry follow.

    The version that was rolled back is not promoted again by `dvc repro`; `watchnext rollback --to` it takes that back.
    """
    from watchnext.registry import Registry

    registry = Registry.open(Path.cwd())
    name = _model_named(registry, model)
    before, champion = registry.roll_back(name, to=to, reason=reason)
    say(f"{name}: champion is version {champion.number}, no longer version {before}")


@app.command()
def history(
    at: Annotated[
        str | None,
        typer.Option(
            help="Only who was champion at this instant, and by what: 2026-05-06 or 2026-05-06T18:30:00+02:00;"
            " UTC without an offset.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    model: _Model = None,
) -> None:
    """Say which version had which role when, and on what evidence."""
    from watchnext.registry import Registry

    registry = Registry.open(Path.cwd())
    name = _model_named(registry, model)
    if at is None:
        events = registry.history(name)
    else:
        crowned = registry.champion_at(name, _instant(at))
        events = [] if crowned is None else [crowned]
    if as_json:
        sys.stdout.write(json.dumps([asdict(event) for event in events], indent=2) + "\n")
    elif not events:
        say(f"{name} had no champion at {at}" if at is not None else f"{name} has no history")
    else:
        _print_events(name, [asdict(event) for event in events])
    by_hand = registry.moved_by_hand(name)
    if at is None and by_hand is not None:
        say(
            f"version {by_hand} is champion now: the alias was set outside of watchnext, which nothing here knows of"
        )


@app.command()
def explain(
    version: Annotated[int, typer.Argument(help="Version number, see `watchnext status`.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as one JSON object.")] = False,
    model: _Model = None,
) -> None:
    """Say where a version comes from and why it is what it is: runs, commit, data, settings, checks, roles."""
    from watchnext.registry import Registry
    from watchnext.tracking import Tracker

    registry = Registry.open(Path.cwd())
    name = _model_named(registry, model)
    told = registry.explain(name, version)
    stages = Tracker.open(Path.cwd()).stage_runs(told["run_id"])
    if as_json:
        sys.stdout.write(json.dumps({**told, "stages": stages}, indent=2) + "\n")
        return
    facts = {
        "roles": ", ".join(told["roles"]) or "none",
        **{key: told[key] for key in ("registered_at", "trained_until_at", "source", "git_commit")},
        **{key: told[key] for key in ("bundle_digest", "data_digest", "params_digest", "run_id")},
        "rolled back because": told["rolled_back_because"],
        "beside the champion": next(
            (one["compare_url"] for one in reversed(told["decisions"]) if one.get("compare_url")), ""
        ),
    }
    print_table(
        f"{name}, version {version}", ("what", "is"), [(key, value) for key, value in facts.items() if value]
    )
    if not told["decisions"]:
        say("no decision about it is kept")
    for decided in told["decisions"]:
        rows = [
            tuple(str(check[key]) for key in ("name", "value", "bound", "outcome", "reason"))
            for check in decided.get("checks", ())
        ]
        print_table(
            f"{_minute(decided['at'])} {decided['kind']}: {decided['verdict']}, {decided['reason']}",
            ("check", "value", "bound", "outcome", "why"),
            rows,
        )
    order = {stage: place for place, stage in enumerate(config.STAGES)}
    runs = [
        (
            run["stage"],
            "taken from the cache" if run["from_cache"] else run["status"],
            run["run_id"],
            str(len(run["params"])),
        )
        for run in sorted(stages, key=lambda run: order.get(run["stage"], len(order)))
    ]
    print_table("made by", ("stage", "status", "run in MLflow", "settings"), runs)
    _print_events("roles", told["events"])


def _print_events(title: str, events: Sequence[Mapping[str, Any]]) -> None:
    rows = [
        (
            _minute(event["at"]),
            event["role"],
            "nobody" if event["version"] is None else f"version {event['version']}",
            "" if event["before"] is None else f"version {event['before']}",
            event["evidence"],
            event["reason"],
        )
        for event in events
    ]
    print_table(title, ("since, UTC", "role", "who", "before", "evidence", "why"), rows)


def _minute(at: str) -> str:
    return at[:19].replace("T", " ")


@app.command("retrain-champion")
def retrain_champion(model: _Model = None) -> None:
    """Train the champion's settings anew on the present features, to tell a better recipe from fresher data.

    Writes data/champions_recipe/bundle, which no role is given to. With `promote.champions_recipe` naming it, the gate's
    report shows how much of the change from champion to candidate either made.
    """
    from watchnext.registry import Registry
    from watchnext.stages._retrain import BUNDLE, retrain

    registry = Registry.open(Path.cwd())
    name = _model_named(registry, model)
    champion = registry.role(name, "champion")
    if champion is None:
        raise InputError(
            f"{name} has no champion", where=registry.registry_uri, remedy="run `dvc repro` first"
        )
    retrain(registry.bundle(champion), f"version {champion.number} of {name}")
    say(f"{BUNDLE}: the settings of version {champion.number} on the features of now")
    say(f"now set promote.champions_recipe: {BUNDLE} in params.yaml, and run `dvc repro`")


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="Port on the loopback address.", min=1, max=65535)] = UI_PORT,
) -> None:
    """Open the MLflow UI on loopback, on this project's runs and registry, until Ctrl-C."""
    from watchnext.tracking import Tracker, tracking_uri

    kept_at = tracking_uri(Path.cwd())
    if kept_at.startswith(("http://", "https://")):
        say(f"runs are kept by a tracking server, which has its own page: {without_passwords(kept_at)}")
        return
    tracker = Tracker.open(Path.cwd())
    say(f"MLflow UI: http://127.0.0.1:{port}  (Ctrl-C ends it)")
    command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port)]
    # By variables: an address can hold a password, and command lines are public.
    stores = {"MLFLOW_BACKEND_STORE_URI": tracker.tracking_uri}
    if registry_uri := os.environ.get("MLFLOW_REGISTRY_URI"):
        stores["MLFLOW_REGISTRY_STORE_URI"] = registry_uri
    raise typer.Exit(subprocess.run(command, check=False, env={**os.environ, **stores}).returncode)


@app.command("train-distributed")
def train_distributed(
    stages: Annotated[
        list[str] | None,
        typer.Argument(
            help="train_retrieval, train_ranking; without any, train_retrieval.", show_default=False
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Start so many on this machine, on loopback. Without it, this process is the worker that TF_CONFIG names.",
            min=1,
            max=64,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train a stage's model by several workers, each on its own share of the examples.

    One step takes `batch_size` examples of every worker: N workers train as one would with N times the batch. On one
    machine:

        watchnext train-distributed --workers 2

    On several, with the same project and data/ in place on each, and TF_CONFIG as TensorFlow documents it:

        TF_CONFIG='{"cluster": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]}, "task": {"type": "worker", "index": 0}}' \\
            watchnext train-distributed

    Worker 0 writes the model, metrics and runs; then DVC is told that the stage is done, and `dvc repro` goes on from it.
    A worker that is lost stops the others; started again, all go on from their checkpoints. What it costs, and where it
    ends: docs/scale.md.
    """
    from watchnext.stages._runner import LAUNCHER_VARIABLE, TRAINED_TOGETHER
    from watchnext.stages._workers import record_in_dvc, stage_command, train_on_loopback
    from watchnext.tf_config import Cluster

    chosen = stages or [TRAINED_TOGETHER[0]]
    odd = [stage for stage in chosen if stage not in TRAINED_TOGETHER]
    if odd:
        raise InputError(
            "only the training of models is shared by workers",
            where="watchnext train-distributed",
            offenders=odd,
            remedy=f"name one of {', '.join(TRAINED_TOGETHER)}; `dvc repro` runs the others",
        )
    cluster = Cluster.from_environment()
    if (workers is None) == (cluster is None):
        raise InputError(
            "who trains is said twice" if cluster is not None else "nothing says who trains",
            where="--workers and TF_CONFIG",
            remedy="give --workers 2 for two on this machine, or set TF_CONFIG on each machine: one of both",
        )
    root = Path.cwd()
    for stage in chosen:
        command = stage_command(stage, root)
        if workers is not None:
            train_on_loopback(command, workers=workers, name=stage, root=root)
        else:
            status = subprocess.run(
                command, check=False, env={**os.environ, LAUNCHER_VARIABLE: str(os.getpid())}
            ).returncode
            if status:
                raise typer.Exit(status)
        if cluster is None or cluster.is_chief:
            record_in_dvc(stage, root)


@app.command("use-source")
def use_source(
    source: Annotated[str, typer.Argument(help="simulated, kuairand or files.")],
    path: Annotated[Path | None, typer.Option(help="Folder that holds the logs.")] = None,
) -> None:
    """Write the source of logs into params.yaml (comments stay), for `dvc repro` to use from then on.

    `watchnext use-source simulated` goes back to the simulated world.
    """
    from watchnext.stages.ingest import Params

    defaults = Params()
    if path is None and source != defaults.source:
        raise InputError(
            f"source `{source}` needs the folder of its logs",
            where="--path (DATA=... with make)",
            remedy=f"make repro SOURCE={source} DATA=path/to/logs",
        )
    if path is not None and not path.is_dir():
        raise InputError(
            "there is no such folder", where=str(path), remedy="give the folder that holds the logs"
        )
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 200
    yaml.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    text = config.PARAMS_FILE.read_text(encoding="utf-8")
    content = yaml.load(text)
    section = content["ingest"]
    before = (section.get("source"), section.get("path"))
    section["source"] = source
    section["path"] = path.as_posix() if path is not None else str(defaults.path)
    staged = config.PARAMS_FILE.with_suffix(".yaml.staging")
    with staged.open("w", encoding="utf-8") as file:
        yaml.dump(content, file)
    try:
        config.load_section("ingest", Params, staged)
    except InputError:
        staged.unlink()
        raise
    after = (section["source"], section["path"])
    if before == after:
        staged.unlink()
        say(f"params.yaml already says ingest.source {source}")
        return
    staged.replace(config.PARAMS_FILE)
    say(f"params.yaml: ingest.source {before[0]} -> {after[0]}, ingest.path {before[1]} -> {after[1]}")


_Store = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="WATCHNEXT_STORE",
        help="User state: an SQLite file, or a Redis that several servers share (redis://127.0.0.1:6379/0).",
    ),
]
_STORE = "state/users.db"


@app.command()
def serve(
    model: _Model = None,
    host: Annotated[
        str, typer.Option(help="Address; one that other machines reach needs the variable WATCHNEXT_API_KEY.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0: any that is free.", min=0, max=65535)] = 8080,
    store: _Store = _STORE,
    poll_s: Annotated[
        float, typer.Option(help="Seconds between two looks at the registry.", min=0.05, max=3600.0)
    ] = 2.0,
    threads: Annotated[int, typer.Option(help="Requests that are answered at once.", min=1, max=64)] = 2,
    requests_per_s: Annotated[
        int, typer.Option(help="Requests that one address may send in a second; 0: no limit.", min=0)
    ] = 0,
    shadow_share: Annotated[
        float,
        typer.Option(help="Share of the requests that the challenger gets a copy of.", min=0.0, max=1.0),
    ] = 1.0,
    explore: Annotated[
        float,
        typer.Option(
            help="Share of the slates that are drawn; impressions then have propensities.", min=0.0, max=1.0
        ),
    ] = 0.0,
    experiment: Annotated[
        Literal["ab", "interleave"] | None,
        typer.Option(
            help="Show the challenger to users: a share of them gets its slates, or slates drafted from both.",
            show_default=False,
        ),
    ] = None,
    share: Annotated[
        float, typer.Option(help="Share of users who see the challenger.", min=0.0, max=1.0)
    ] = 0.1,
    stale_after_days: Annotated[
        float, typer.Option(help="A champion whose training days ended longer ago says so.", min=0.0)
    ] = 7.0,
    settle_s: Annotated[
        float, typer.Option(help="After so long a page is compared with what was expected of it.", min=0.0)
    ] = 3600.0,
) -> None:
    """Answer requests by the champion, and follow the registry from one to the next, until Ctrl-C or SIGTERM.

    `/docs` describes what can be asked; `watchnext load-events` fills the user state.
    """
    from watchnext.registry import Registry
    from watchnext.serving.edge import Limits
    from watchnext.serving.mirror import MirrorSettings
    from watchnext.serving.monitoring import MonitorSettings
    from watchnext.serving.server import API_KEY_VARIABLE, ask_registry_briefly
    from watchnext.serving.server import serve as run
    from watchnext.serving.webhook import SECRET_VARIABLE

    ask_registry_briefly()
    run(
        Path.cwd(),
        _model_named(Registry.open(Path.cwd()), model),
        host=host,
        port=port,
        store=store,
        api_key=os.environ.get(API_KEY_VARIABLE) or None,
        webhook_secret=os.environ.get(SECRET_VARIABLE) or None,
        poll_s=poll_s,
        limits=Limits(threads=threads, requests_per_s=requests_per_s),
        mirror=MirrorSettings(share=shadow_share),
        explore=explore,
        experiment=experiment,
        experiment_share=share,
        monitoring=MonitorSettings(stale_after_days=stale_after_days, settle_s=settle_s),
    )


@app.command()
def recommend(
    user: Annotated[
        str, typer.Option("--user", help="Id of the user; somebody unknown gets what is popular.")
    ],
    how_many: Annotated[int, typer.Option(help="Length of the slate.", min=1, max=500)] = 20,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what the server would answer instead of a table.")
    ] = False,
    store: _Store = _STORE,
    model: _Model = None,
) -> None:
    """Show the slate that the champion gives a user now, as `watchnext serve` would. It is not taken for shown."""
    from watchnext.registry import Registry
    from watchnext.serving.messages import told
    from watchnext.serving.service import load

    name = _model_named(Registry.open(Path.cwd()), model)
    answer = told(load(f"models:/{name}@champion", Path.cwd(), store).recommend(user, how_many))
    if as_json:
        sys.stdout.write(json.dumps(answer, indent=2) + "\n")
        return
    rows = [
        (
            str(video["position"] + 1),
            str(video["video_id"]),
            f"{video['expected_watch_time_s']:.1f}",
            ", ".join(f"{source} {score:.3g}" for source, score in video["sources"].items()),
            (video["uploaded_at"] or "")[:10],
        )
        for video in answer["videos"]
    ]
    title = f"user {user}: {name}, version {answer['model']['version']}"
    if not answer["personal"]:
        title += "; nothing is known of this user, so it is what is popular or new"
    print_table(title, ("", "video", "expected watch time, s", "sources", "uploaded"), rows)


@app.command("load-events")
def load_events(
    tables: Annotated[Path, typer.Option(help="Folder of validated tables.")] = Path("data/validated"),
    store: _Store = _STORE,
) -> None:
    """Fill the user state of a server with what the pipeline's logs know. What it has already stays."""
    from watchnext.serving.pipeline_events import load_events as load
    from watchnext.serving.stores import open_store

    users = open_store(store)
    try:
        new = load(tables, users)
    finally:
        users.close()
    say("new events in the user state: " + ", ".join(f"{table} {count}" for table, count in new.items()))


@app.command("export-events")
def export_events(
    logs: Annotated[Path, typer.Option(help="Folder that gets the tables.")] = Path("state/logs"),
    earlier: Annotated[
        Path | None,
        typer.Option(
            help="Validated tables to write alongside (data/validated), so that `ingest` finds all in one place.",
            show_default=False,
        ),
    ] = None,
    store: _Store = _STORE,
) -> None:
    """Write what servers showed and were told as logs that `dvc repro` reads, and the live experiment's log.

    Everything in the user state is written, in place of what was written before: impressions, watches and searches to
    --logs, slates and watches of experiments to state/experiment.
    """
    from watchnext.serving.event_logs import export_events as export
    from watchnext.serving.stores import open_store

    users = open_store(store)
    try:
        rows = export(users, logs, Path("state/experiment"), earlier)
    finally:
        users.close()
    say("written: " + ", ".join(f"{table} {count}" for table, count in rows.items()))


@app.command()
def forget(
    user: Annotated[str, typer.Option("--user", help="Id of the user.")],
    store: _Store = _STORE,
) -> None:
    """Delete a user from the user state, from servers' logs and from the pipeline's tables, and say what is left.

    The team's own logs are not touched: files there that hold the user are named.
    """
    from watchnext.serving.forgetting import forget as everywhere
    from watchnext.serving.stores import is_redis, open_store
    from watchnext.stages.ingest import Params

    ingest = config.load_section("ingest", Params) if config.PARAMS_FILE.exists() else Params()
    logs = Path(ingest.path)
    is_ours = any(
        logs.resolve().is_relative_to(Path(folder).resolve()) for folder in ("state", "data/simulated")
    )
    columns, delimiters = set(), {}
    for mapping in ingest.files.tables.values():
        mapped = mapping.columns.get("user_id")
        columns.add(mapped if isinstance(mapped, str) else getattr(mapped, "column", None) or "user_id")
        delimiters[Path(mapping.path).suffix or ".csv"] = mapping.delimiter
    users = open_store(store)
    try:
        found = everywhere(user, Path.cwd(), users, None if is_ours else logs, columns, delimiters)
    finally:
        users.close()
    say(f"user state: {found.events} events deleted")
    for path, lost in found.rewritten.items():
        say(f"{path.relative_to(Path.cwd())}: {lost} rows deleted")
    if found.deleted:
        say(f"DVC's cache: {len(found.deleted)} copies of tables deleted; `dvc repro` makes what it misses")
    for path in found.theirs:
        say(f"not touched, holds the user: {path}; take the user out, or the next `dvc repro` reads it again")
    if is_redis(store):
        say("the append-only file of Redis still has the user until it is rewritten: BGREWRITEAOF")
    if Path("state/shadow").is_dir():
        say("a running challenger writes what it has answered within 30 s: run this once more then")
    say("models that were trained on the user keep what they learned until `dvc repro` has trained anew")


@app.command()
def study(
    name: Annotated[
        str | None, typer.Argument(help="Which one; without it, all of them are listed.", show_default=False)
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of KuaiRand's original files. Without it only simulated worlds are looked at."
        ),
    ] = None,
    source: Annotated[
        Literal["all", "simulated", "kuairand"], typer.Option(help="Leave out what is not named.")
    ] = "all",
    users: Annotated[int, typer.Option(help="Users of each simulated world.", min=10)] = 2_000,
    videos: Annotated[int, typer.Option(help="Videos of each simulated world.", min=100)] = 2_000,
    days: Annotated[int, typer.Option(help="Days of logs, the last three held out.", min=4)] = 14,
    seeds: Annotated[
        int, typer.Option(help="Trainings of each variant; each has a world of its own.", min=1)
    ] = 3,
    online_days: Annotated[int, typer.Option(help="Days on which each model fills the pages.", min=1)] = 5,
) -> None:
    """Put a claim of the paper to the test.

    Trains what the claim compares, on KuaiRand (--data) where its inputs exist and in simulated worlds in which the
    mechanism behind the claim is off, at half and at full strength. Writes docs/studies/NAME.md with a verdict per
    claim, a picture and a table with 95 % intervals, and logs them to MLflow (`watchnext ui`). Takes some minutes.

    `watchnext study` lists the studies; `watchnext study figure5 --data path/to/KuaiRand-Pure/data` runs one.
    """
    from watchnext.studies._lab import Settings
    from watchnext.studies._runner import load_study, run_study, study_names

    if name is None:
        print_table(
            "Studies", ("name", "what it looks at"), [(one, load_study(one).title) for one in study_names()]
        )
        return
    settings = Settings(
        data=None if source == "simulated" else data,
        simulated=source != "kuairand",
        users=users,
        videos=videos,
        days=days,
        seeds=seeds,
        online_days=online_days,
    )
    run_study(name, settings, make_features, root=Path.cwd())


def make_features(logs: Path, source: str, directory: Path, *, seed: int, examples_per_user: int) -> Path:
    """Take logs through the stages `ingest` and `featurize` for a study; see `studies._lab.MakeFeatures`."""
    from watchnext.engine import EngineParams
    from watchnext.stages.featurize import Params as FeaturizeParams
    from watchnext.stages.featurize import featurize
    from watchnext.stages.ingest import Params as IngestParams
    from watchnext.stages.ingest import ingest

    tables, features = directory / "ingested", directory / "features"
    ingest(
        IngestParams.model_validate({"source": source}),
        EngineParams(),
        logs,
        tables,
        directory / "ingest-report",
    )
    featurize(
        FeaturizeParams(examples_per_user=examples_per_user),
        EngineParams(),
        seed,
        tables,
        features,
        directory / "featurize-report",
    )
    return features


@registry_app.command("relocate")
def relocate() -> None:
    """Mend the artifact locations in mlruns/mlflow.db after the project folder was moved.

    MLflow stores them absolute. Nothing else is changed; a copy of the database is kept beside it.
    """
    from watchnext.tracking import relocate as mend

    say(mend(Path.cwd()))


@registry_app.command("prune")
def prune(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would go, and delete nothing.")
    ] = False,
) -> None:
    """Delete bundles in mlruns/bundles, which were fetched from a shared registry, that have no role there.

    A machine that follows a shared registry fetches each champion and challenger once, and keeps it. What goes is what the
    server can hand out again: bundles of versions that have an alias (champion, challenger, previous or one of your own)
    stay, and so do those whose files the server has lost. Versions in the registry are not touched.
    """
    from watchnext.registry import Registry

    found = Registry.open(Path.cwd()).prune_downloads(dry_run=dry_run)
    print_table(
        "Fetched bundles",
        ("bundle", "MB", "what becomes of it"),
        [
            (
                one.bundle_digest[:16],
                f"{one.size_bytes / 1e6:.1f}",
                f"stays: {one.kept_because}" if one.kept_because else "would go" if dry_run else "deleted",
            )
            for one in found
        ],
    )
    freed = sum(one.size_bytes for one in found if not one.kept_because)
    say(f"{freed / 1e6:.1f} MB {'would be free' if dry_run else 'are free'} again")


@cluster_app.command("up")
def cluster_up(
    workers: Annotated[int, typer.Option(help="How many workers.", min=1)] = 2,
    memory_gb: Annotated[float, typer.Option(help="Memory for the executors of each worker.", min=0.5)] = 1.0,
    cores: Annotated[int, typer.Option(help="Cores of each worker.", min=1)] = 1,
    port: Annotated[int, typer.Option(help="Port of the master.", min=1024, max=65535)] = 7077,
    scratch: Annotated[
        Path | None,
        typer.Option(
            help="Where workers spill and keep what they shuffle; without it, in .cluster.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Start a Spark master and workers on loopback, from the pyspark that is installed here. Needs Java 17.

    Only this project can use it: settings, a secret among them, are kept in .cluster, and so are logs. Then set
    `engine: {kind: spark, master: spark://127.0.0.1:7077}` in params.yaml, and `dvc repro` computes its tables there.
    """
    from watchnext import cluster

    cluster.report(cluster.up(workers=workers, memory_gb=memory_gb, cores=cores, port=port, scratch=scratch))


@cluster_app.command("down")
def cluster_down() -> None:
    """End the cluster that `watchnext cluster up` started here, and delete what it left."""
    from watchnext import cluster

    say(f"cluster: {cluster.down()} processes ended")


def main() -> None:
    """Entry point: errors that a user is meant to read are printed without a traceback."""
    try:
        app()
    except InputError as error:
        say(f"\nwatchnext: {error}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
