"""The only door to MLflow runs: one parent run per pipeline execution, one child run per stage.

Runs are kept in `mlruns/mlflow.db` and their artifacts in `mlruns/artifacts`, both in the project's folder;
`MLFLOW_TRACKING_URI` puts them elsewhere. MLflow takes more than a second to import, so nothing here imports
it until there is something to log: what a stage with nothing to do asks is answered from the small files in
`mlruns/executions/`, one per pipeline execution.
"""

import contextlib
import json
import logging
import math
import os
import re
import shutil
import sqlite3
import subprocess
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from watchnext import config
from watchnext.addresses import check_answers, is_lost, unanswered, without_passwords
from watchnext.errors import InputError

EXPERIMENT = "watchnext"
DATABASE = Path("mlruns/mlflow.db")
ARTIFACTS = Path("mlruns/artifacts")
EXECUTIONS = Path("mlruns/executions")

UI_PORT = 5000
"""Where `watchnext ui` opens the MLflow UI unless it is told another port."""

EXECUTION_TAG = "watchnext.execution_id"
STAGE_TAG = "watchnext.stage"
STUDY_TAG = "watchnext.study"
FROM_CACHE_TAG = "watchnext.from_cache"
DATA_DIGEST_TAG = "watchnext.data_digest"

SETTINGS_OF_MODELS = (
    "featurize",
    "training",
    "train_retrieval",
    "build_index",
    "nominate",
    "train_ranking",
    "recommend",
    "evaluate",
)
"""Sections of params.yaml that make models what they are, and the figures that `evaluate` gives of them."""

_PARENT_TAG = "mlflow.parentRunId"
_METRICS_PER_CALL = 1000  # limits of MLflow's log_batch
_PARAMS_PER_CALL = 100
_DIGEST_CHARACTERS = 36  # limit of an MLflow dataset's digest; the whole digest is kept in a tag
_BUSY_TIMEOUT_S = 10.0

T = TypeVar("T")


@dataclass(frozen=True)
class Execution:
    """What is known of one pipeline execution without asking MLflow.

    Attributes:
        identifier: what the runner calls this execution.
        run_id: its parent run; None while nothing was logged, "" while the run is being made.
        status: the status that the parent run was closed with; None while it is open.
        stage: the stage at work; None between stages.
        stages_are_told: whether stages say when they begin and end, so that `stage` can be trusted.
    """

    identifier: str
    run_id: str | None = None
    status: str | None = None
    stage: str | None = None
    stages_are_told: bool = False


class Tracker:
    """The runs of the project in one folder."""

    def __init__(self, root: Path, tracking_uri: str) -> None:
        self.root = root
        self.home = config.project_folder(root)
        self.tracking_uri = tracking_uri
        self._mlflow_client: Any = None
        self._experiment_id: str | None = None

    @classmethod
    def open(cls, root: Path) -> "Tracker":
        """The tracker of the project in `root`. Imports nothing heavy and writes nothing.

        Raises:
            InputError: the project was moved and MLflow's stored locations still name the old place, or the
                database cannot be read.
        """
        root = root.resolve()
        tracker = cls(root, tracking_uri(root))
        tracker.check_location()
        return tracker

    @property
    def is_local(self) -> bool:
        """Whether runs are kept in the project's own folder."""
        return self.tracking_uri == _local_uri(self.home)

    def check_location(self) -> None:
        """See that a tracking server or database answers, and that locations stored in this folder are this folder's.

        MLflow stores them absolute: a moved project would otherwise fail to load its models and write into a new copy
        of its old folder.

        Raises:
            InputError: they name another folder; or the database is locked or no database, or nothing answers.
        """
        if not self.is_local:
            check_answers(self.tracking_uri)
            return
        stored = _stored_artifacts(self.home)
        if stored is not None and stored != str(self.home / ARTIFACTS):
            raise InputError(
                "this project was moved or copied here, and MLflow still writes to where it was",
                where=str(self.home / DATABASE),
                offenders=[stored],
                remedy="watchnext registry relocate  (rewrites them; or move the project back)",
            )

    # --- executions, without MLflow ---

    def has_pipeline_run(self, execution_id: str) -> bool:
        """Whether this execution has a parent run. Does not import MLflow."""
        execution = self._execution(execution_id)
        return execution is not None and bool(execution.run_id)

    @contextlib.contextmanager
    def stage(self, execution_id: str, stage: str) -> Iterator[None]:
        """Note that `stage` is at work while the block runs. Does not import MLflow.

        Without the note nobody could tell, afterwards, an execution that was killed within a stage from one
        that was asked for a few stages and did them.
        """
        execution = self._execution(execution_id) or Execution(execution_id)
        self._write(replace(execution, stage=stage, stages_are_told=True))
        try:
            yield
        finally:
            execution = self._execution(execution_id) or Execution(execution_id)
            if execution.run_id is None:
                self._file(execution_id).unlink(missing_ok=True)
            else:
                self._write(replace(execution, stage=None))

    def close_orphans(self, is_alive: Callable[[str], bool]) -> None:
        """Close the runs that ended executions left open; imports MLflow only if there are any.

        A run whose execution was killed in the middle is marked KILLED, its half-logged stages too. An
        execution that ended between two stages (`dvc repro` of some stages only) is FINISHED.
        """
        for execution in self._executions():
            if is_alive(execution.identifier):
                continue
            if execution.run_id is not None and execution.status is None:
                between_stages = execution.stages_are_told and execution.stage is None
                self._close(execution.identifier, "FINISHED" if between_stages else "KILLED")
            self._file(execution.identifier).unlink(missing_ok=True)

    # --- runs ---

    def pipeline_run(
        self,
        execution_id: str,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> str:
        """The id of this execution's parent run, made on the first call.

        Args:
            execution_id: the execution; the run carries it as a tag.
            params: settings to log with a new run; None for the project's params.yaml, flattened.
            tags: further tags of a new run.
        """
        execution = self._execution(execution_id) or Execution(execution_id)
        if execution.run_id:
            return execution.run_id
        self._write(replace(execution, run_id=""))
        with said_plainly(self.tracking_uri):
            found = self._search(f"tags.`{EXECUTION_TAG}` = '{execution_id}'")
            if found:
                run_id = found[0].info.run_id
            else:
                started = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
                commit = git_commit(self.root)
                run = self._client().create_run(
                    self._experiment(),
                    run_name=f"repro {started}",
                    tags={
                        EXECUTION_TAG: execution_id,
                        "mlflow.source.name": "dvc repro",
                        "mlflow.source.type": "PROJECT",
                        **({"mlflow.source.git.commit": commit} if commit else {}),
                        **(tags or {}),
                    },
                )
                run_id = run.info.run_id
                self._log(run_id, params=_settings(self.root) if params is None else params)
        self._write(replace(execution, run_id=run_id))
        return run_id

    def log_stage(
        self,
        parent_run_id: str,
        stage: str,
        *,
        params: Mapping[str, Any],
        metrics: Mapping[str, float | int | str],
        curves: Mapping[str, Sequence[Sequence[float]]],
        report_dir: Path | None,
        datasets: Sequence[tuple[str, str, str]],
        from_cache: bool,
        status: str,
    ) -> str:
        """Log one stage as a child run of its execution's run and return the child's id.

        Args:
            parent_run_id: run of the execution.
            stage: name of the stage, and of the run.
            params: settings that the stage read, flat.
            metrics: flat; numbers become metrics, strings become tags `watchnext.<name>`. The numbers are
                shown in the parent run too, as `<stage>/<name>`, so that two executions line up in the
                compare view.
            curves: name -> [[step, value], ...].
            report_dir: folder logged as artifacts, without its `curves.json`, which the curves show.
            datasets: (name, digest, where) of the tables that the stage read.
            from_cache: whether DVC took the stage's outputs from its cache, so that nothing ran.
            status: FINISHED, FAILED or KILLED.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        numbers = {name: float(value) for name, value in metrics.items() if not isinstance(value, str)}
        words = {f"watchnext.{name}": value for name, value in metrics.items() if isinstance(value, str)}
        with said_plainly(self.tracking_uri):
            client = self._client()
            tags = {
                _PARENT_TAG: parent_run_id,
                STAGE_TAG: stage,
                FROM_CACHE_TAG: str(from_cache).lower(),
                **words,
            }
            if datasets:
                tags[DATA_DIGEST_TAG] = datasets[0][1]
            run_id = client.create_run(self._experiment(), run_name=stage, tags=tags).info.run_id
            self._log(run_id, params=params, metrics=numbers, curves=curves)
            self._log(parent_run_id, metrics={f"{stage}/{name}": value for name, value in numbers.items()})
            if datasets:
                inputs = [
                    DatasetInput(
                        Dataset(
                            name=name,
                            digest=digest[:_DIGEST_CHARACTERS],
                            source_type="local",
                            source=json.dumps({"uri": where}),
                            profile=json.dumps({"sha256": digest}),
                        ),
                        tags=[InputTag("mlflow.data.context", stage)],
                    )
                    for name, digest, where in datasets
                ]
                client.log_inputs(run_id, inputs)
            if report_dir is not None:
                self._log_report(run_id, report_dir)
            client.set_terminated(run_id, status)
        return run_id

    def log_study(
        self,
        study: str,
        *,
        params: Mapping[str, Any],
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        files: Sequence[Path],
    ) -> str:
        """Log a study of the paper as a run of its own, outside of any pipeline execution, and return its id.

        Args:
            study: its name; the run carries it as a tag.
            params: its settings.
            metrics: its figures. Signs that MLflow takes in no name become spaces.
            tags: further tags, without `watchnext.`.
            files: its page and pictures, kept as artifacts.
        """
        with said_plainly(self.tracking_uri):
            client = self._client()
            commit = git_commit(self.root)
            run_id = client.create_run(
                self._experiment(),
                run_name=f"study {study}",
                tags={
                    STUDY_TAG: study,
                    **{f"watchnext.{name}": value for name, value in tags.items()},
                    **({"mlflow.source.git.commit": commit} if commit else {}),
                },
            ).info.run_id
            named = {re.sub(r"[^\w\-. /]", " ", name): value for name, value in metrics.items()}
            self._log(run_id, params=params, metrics=named)
            for path in files:
                client.log_artifact(run_id, str(path))
            client.set_terminated(run_id, "FINISHED")
        return str(run_id)

    def logged_stages(self, parent_run_id: str) -> set[str]:
        """Names of the stages whose runs under this parent are complete (finished or failed)."""
        with said_plainly(self.tracking_uri):
            children = self._search(f"tags.`{_PARENT_TAG}` = '{parent_run_id}'")
        return {
            run.data.tags.get(STAGE_TAG, "") for run in children if run.info.status in ("FINISHED", "FAILED")
        }

    def stage_runs(self, parent_run_id: str) -> list[dict[str, Any]]:
        """What is kept of the stages of an execution, in the order in which they ran.

        Returns:
            For each: `stage`, `run_id`, `status`, `from_cache` (DVC had its outputs, so that nothing ran) and its settings
            `params`; of what came from the cache those of its own section, with which it had run. Empty if the
            execution's runs are gone.
        """
        with said_plainly(self.tracking_uri):
            children = self._search(f"tags.`{_PARENT_TAG}` = '{parent_run_id}'")
            settings = dict(self._client().get_run(parent_run_id).data.params) if children else {}

        def params_of(run: Any) -> dict[str, str]:
            if run.data.tags.get(FROM_CACHE_TAG) != "true":
                return dict(run.data.params)
            section = f"{run.data.tags.get(STAGE_TAG, '')}."
            return {name: value for name, value in settings.items() if name.startswith(section)}

        return [
            {
                "stage": run.data.tags.get(STAGE_TAG, ""),
                "run_id": run.info.run_id,
                "status": run.info.status,
                "from_cache": run.data.tags.get(FROM_CACHE_TAG) == "true",
                "params": params_of(run),
            }
            for run in sorted(children, key=lambda run: run.info.start_time)
        ]

    def over_seeds(
        self, parent_run_id: str, data_digest: str, metrics: Sequence[str]
    ) -> list[dict[str, float]]:
        """What `evaluate` measured in the executions that differ from this one in nothing but the seed: itself, and others.

        The same are the data and all settings of `SETTINGS_OF_MODELS`. Executions whose `evaluate` came from DVC's cache are
        left out: it ran in another one.

        Args:
            parent_run_id: run of the execution.
            data_digest: of the logs.
            metrics: names.

        Returns:
            By seed, of its last execution: `seed`, and each metric. Empty where this execution's settings are not kept.
        """
        with said_plainly(self.tracking_uri):
            client = self._client()
            own = client.get_run(parent_run_id).data.params
            runs = self._search(
                f"tags.`{STAGE_TAG}` = 'evaluate' and tags.`{DATA_DIGEST_TAG}` = '{data_digest}'"
            )
            found: dict[str, dict[str, float]] = {}
            for run in sorted(runs, key=lambda run: run.info.start_time):
                parent = run.data.tags.get(_PARENT_TAG)
                if parent is None or run.info.status != "FINISHED" or not own:
                    continue
                settings = client.get_run(parent).data.params
                if "seed" in settings and _of_models(settings) == _of_models(own):
                    measured = {name: run.data.metrics[name] for name in metrics if name in run.data.metrics}
                    found[settings["seed"]] = {"seed": float(settings["seed"]), **measured}
        return [found[seed] for seed in sorted(found, key=float)]

    def compare_url(self, run_ids: Sequence[str]) -> str:
        """Address of the MLflow UI's page that shows runs side by side.

        On the tracking server where runs are kept by one; else where `watchnext ui` opens the UI, on loopback.
        """
        with said_plainly(self.tracking_uri):
            experiments = [self._experiment()]
        address = urllib.parse.urlsplit(self.tracking_uri)
        base = f"http://127.0.0.1:{UI_PORT}"
        if address.scheme in ("http", "https"):
            # Without the name and password that may stand before the host.
            base = address._replace(netloc=address.netloc.rpartition("@")[2]).geturl().rstrip("/")
        runs, within = (
            urllib.parse.quote(json.dumps(list(dict.fromkeys(ids)), separators=(",", ":")))
            for ids in (run_ids, experiments)
        )
        return f"{base}/#/compare-runs?runs={runs}&experiments={within}"

    def finish(self, parent_run_id: str, status: str) -> None:
        """Close an execution's run as FINISHED or FAILED. A run that failed stays failed."""
        for execution in self._executions():
            if execution.run_id == parent_run_id:
                if execution.status == "FAILED":
                    return
                with said_plainly(self.tracking_uri):
                    self._client().set_terminated(parent_run_id, status)
                self._write(replace(execution, status=status))
                return
        with said_plainly(self.tracking_uri):
            self._client().set_terminated(parent_run_id, status)

    def _close(self, execution_id: str, status: str) -> None:
        with said_plainly(self.tracking_uri):
            for parent in self._search(f"tags.`{EXECUTION_TAG}` = '{execution_id}'"):
                for child in self._search(f"tags.`{_PARENT_TAG}` = '{parent.info.run_id}'"):
                    if child.info.status == "RUNNING":
                        self._client().set_terminated(child.info.run_id, "KILLED")
                if parent.info.status == "RUNNING":
                    self._client().set_terminated(parent.info.run_id, status)

    def _log(
        self,
        run_id: str,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        curves: Mapping[str, Sequence[Sequence[float]]] | None = None,
    ) -> None:
        from mlflow.entities import Metric, Param

        client = self._client()
        now_ms = int(time.time() * 1000)
        points = [Metric(name, value, now_ms, 0) for name, value in (metrics or {}).items()]
        for name, curve in (curves or {}).items():
            points += [
                Metric(name, float(value), now_ms, int(step)) for step, value in curve if math.isfinite(value)
            ]
        for some_points in _chunks(points, _METRICS_PER_CALL):
            client.log_batch(run_id, metrics=some_points)
        settings = [Param(name, str(value)) for name, value in (params or {}).items()]
        for some_settings in _chunks(settings, _PARAMS_PER_CALL):
            client.log_batch(run_id, params=some_settings)

    def _log_report(self, run_id: str, report_dir: Path) -> None:
        client = self._client()
        for path in sorted(report_dir.iterdir()):
            if path.name == "curves.json":
                continue
            if path.is_dir():
                client.log_artifacts(run_id, str(path), path.name)
            else:
                client.log_artifact(run_id, str(path))

    def _search(self, filter_string: str) -> list[Any]:
        return list(self._client().search_runs([self._experiment()], filter_string, max_results=1000))

    def _client(self) -> Any:
        if self._mlflow_client is None:
            if self.is_local:
                (self.home / DATABASE).parent.mkdir(parents=True, exist_ok=True)
            self._mlflow_client = open_client(self.tracking_uri, self.tracking_uri)
        return self._mlflow_client

    def _experiment(self) -> str:
        if self._experiment_id is None:
            experiment = self._client().get_experiment_by_name(EXPERIMENT)
            if experiment is not None:
                self._experiment_id = experiment.experiment_id
            else:
                location = str(self.home / ARTIFACTS) if self.is_local else None
                self._experiment_id = self._client().create_experiment(EXPERIMENT, artifact_location=location)
        assert self._experiment_id is not None
        return self._experiment_id

    # --- the files of executions ---

    def _file(self, execution_id: str) -> Path:
        return self.home / EXECUTIONS / f"{execution_id}.json"

    def _execution(self, execution_id: str) -> Execution | None:
        try:
            return Execution(**json.loads(self._file(execution_id).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None

    def _executions(self) -> list[Execution]:
        found = [self._execution(path.stem) for path in sorted((self.home / EXECUTIONS).glob("*.json"))]
        return [execution for execution in found if execution is not None]

    def _write(self, execution: Execution) -> None:
        path = self._file(execution.identifier)
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_suffix(".json.staging")
        staged.write_text(json.dumps(asdict(execution)) + "\n", encoding="utf-8")
        staged.replace(path)


def tracking_uri(root: Path) -> str:
    """Where runs are kept: `MLFLOW_TRACKING_URI`, or the database in the project's folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or _local_uri(config.project_folder(root))


def open_client(tracking: str, registry: str) -> Any:
    """An `MlflowClient`, with MLflow quiet and its telemetry off unless the user has asked for either."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # 14 s; MLflow's own 7 are four minutes
    for address in {tracking, registry}:
        check_answers(address)
    with said_plainly(tracking):
        from mlflow import MlflowClient

        # It prints a stack of a database that went away, which is told in plain words here.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        return MlflowClient(tracking_uri=tracking, registry_uri=registry)


@contextlib.contextmanager
def said_plainly(uri: str) -> Iterator[None]:
    """Say "the store is locked, unusable or gone" so that a user can act on it; let other errors through.

    Raises:
        InputError: the store is locked by another process, cannot be opened, or does not answer.
    """
    try:
        yield
    except Exception as error:
        text = str(error)
        if "database is locked" in text:
            raise InputError(
                "MLflow's database is locked by another process",
                where=without_passwords(uri),
                remedy="end or wait for what writes to it (another pipeline, a hanging MLflow UI), then run"
                " again; for several writers set MLFLOW_TRACKING_URI to PostgreSQL or a tracking server",
            ) from error
        signs = (
            "is not a database",
            "unable to open database",
            "readonly database",
            "out-of-date database schema",
        )
        if any(sign in text for sign in signs):
            raise InputError(
                "MLflow cannot use its database",
                where=without_passwords(uri),
                offenders=[text.splitlines()[0]],
                remedy="restore the file, or move it away (the next `dvc repro` registers the last bundle"
                " anew); a database of another MLflow version is mended by `mlflow db upgrade`",
            ) from error
        if is_lost(error):
            raise unanswered(error, uri) from error
        raise


def git_commit(root: Path) -> str | None:
    """The commit checked out in `root`, with `-dirty` for uncommitted changes; None outside of git."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--match="],
            cwd=root,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def relocate(root: Path) -> str:
    """Make MLflow's stored locations name the folder where the project is now.

    Returns:
        what was done, for the user to read. The database as it was is kept beside it.

    Raises:
        InputError: runs are not kept in this folder, or the database is locked or no database.
    """
    root = root.resolve()
    if tracking_uri(root) != _local_uri(root):
        raise InputError(
            "MLFLOW_TRACKING_URI is set: runs are not kept in this folder",
            where=without_passwords(tracking_uri(root)),
        )
    stored = _stored_artifacts(root)
    wanted = str(root / ARTIFACTS)
    if stored is None:
        return "there are no runs here yet: nothing to mend"
    if stored == wanted:
        return f"nothing to mend: {wanted} is where the project is"
    database = root / DATABASE
    copy = database.with_suffix(".db.before-relocate")
    shutil.copy2(database, copy)
    columns = (
        ("experiments", "artifact_location"),
        ("runs", "artifact_uri"),
        ("logged_models", "artifact_location"),
        ("model_versions", "source"),
        ("model_versions", "storage_location"),
    )
    changed = 0
    with (
        said_plainly(str(database)),
        contextlib.closing(sqlite3.connect(database, timeout=_BUSY_TIMEOUT_S)) as connection,
        connection,
    ):
        for table, column in columns:
            # The old folder may stand behind `file://` and is always at the start.
            for prefix in ("", "file://"):
                old, new = prefix + stored, prefix + wanted
                cursor = connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?)"
                    f" WHERE substr({column}, 1, ?) = ?",
                    (new, len(old) + 1, len(old), old),
                )
                changed += cursor.rowcount
    kept = copy.relative_to(root)
    return f"{changed} locations changed from {stored} to {wanted}; the database as it was is {kept}"


def _local_uri(root: Path) -> str:
    return f"sqlite:///{root / DATABASE}"


def _stored_artifacts(root: Path) -> str | None:
    """Where the local database says that artifacts are; None when there is no experiment yet.

    Read past MLflow, whose import takes longer than a stage that has nothing to do.
    """
    database = root / DATABASE
    if not database.is_file():
        return None
    with said_plainly(str(database)):
        uri = f"{database.as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_TIMEOUT_S)) as connection:
            try:
                row = connection.execute(
                    "SELECT artifact_location FROM experiments WHERE name = ?", (EXPERIMENT,)
                ).fetchone()
            except sqlite3.OperationalError as error:
                if "no such table" in str(
                    error
                ):  # killed while MLflow was making it; MLflow goes on from there
                    return None
                raise
    return None if row is None else str(row[0]).removeprefix("file://")


def _settings(root: Path) -> dict[str, Any]:
    path = root / config.PARAMS_FILE
    return flatten(config.read_params(path)) if path.is_file() else {}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level, keys joined by dots: what MLflow's params and its compare view take."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _of_models(settings: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in settings.items() if name.partition(".")[0] in SETTINGS_OF_MODELS}


def _chunks(items: Sequence[T], size: int) -> Iterable[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
