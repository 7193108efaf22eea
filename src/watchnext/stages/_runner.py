"""The one shell round every stage: flags to paths, settings to sections, outputs swapped in whole, runs tracked.

    python -m watchnext.stages._runner featurize --tables data/validated --out-features data/features ...

A stage is a plain function named after its module. Its signature says what it needs:

* `Path` parameters named `out_*` are outputs. The function writes to a staging path beside the final one, and
  the runner swaps it in when the function returns: whoever kills a stage, or whatever it refuses, the outputs of
  the last good run stay whole. `out_report` is kept on failure too, because that is when it is read.
* other `Path` and `str` parameters are inputs, given as flags.
* parameters annotated with a settings section get it, checked (`params` is the stage's own); `seed` gets the seed.
* `pipeline_run` gets a function that returns the id of this pipeline execution's MLflow run, made on first call.
* `previous_metrics` gets the metrics of the last run whose outputs are all still there, or None.
* `earlier_NAME` gets the output `out_NAME` of the last run whose outputs are all still there, or None.
* `checkpoints` gets a folder outside of all outputs, which DVC does not clear away: what a killed stage left there
  it finds again. It is removed when the outputs are in place.

It returns flat metrics, or None for "there was nothing to do; the outputs of last time stand".

Of several workers that train together (`TF_CONFIG`, see `watchnext.tf_config`) the first is the chief, for whom all of this
holds. The others compute the same, write to a folder that is thrown away, and log nothing.
"""

import argparse
import contextlib
import ctypes
import importlib
import inspect
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
from filelock import FileLock, Timeout

from watchnext import config
from watchnext.console import say
from watchnext.engine_failures import full_disk_explained
from watchnext.errors import InputError
from watchnext.tf_config import Cluster, WorkerLost
from watchnext.tracking import Tracker, flatten

LAUNCHER_VARIABLE = "WATCHNEXT_LAUNCHER"
"""Process id of whoever started this worker: it ends when that process does."""

LOST_STATUS = 3
"""Exit status of a worker that could not go on because another one was gone."""

CHECKPOINTS_DIR = Path(".checkpoints")
METRICS_DIR = Path("metrics")
REPORTS_DIR = Path("reports")

_LOCK_WAIT_S = 30.0
_PARENT_POLL_S = 0.5

Metrics = Mapping[str, float | int | str]

TRAINED_TOGETHER = ("train_retrieval", "train_ranking")
"""Stages whose work several workers share."""


def load_stage(name: str) -> tuple[ModuleType, Callable[..., Metrics | None]]:
    """The module and the function of stage `name`."""
    if name not in config.STAGES:
        raise InputError(f"there is no stage `{name}`", remedy="stages: " + ", ".join(config.STAGES))
    module = importlib.import_module(f"watchnext.stages.{name}")
    return module, getattr(module, name)


@dataclass(frozen=True)
class Call:
    """One stage, ready to run: its function, its inputs and where its outputs go."""

    stage: str
    function: Callable[..., Metrics | None]
    arguments: Mapping[str, Any]
    outputs: Mapping[str, Path]
    params: Mapping[str, Any]
    metrics_path: Path


def check_settings(params_file: Path = config.PARAMS_FILE) -> None:
    """Check every section of the settings file, so that a slip in the last stage is found before the first runs.

    Raises:
        InputError: naming the section, the key and the value.
    """
    config.load_seed(params_file)
    for stage in config.STAGES:
        _, function = load_stage(stage)
        for name, annotation in inspect.get_annotations(function, eval_str=True).items():
            if _is_section(annotation):
                config.load_section(stage if name == "params" else name, annotation, params_file)


def prepare(stage: str, flags: list[str], params_file: Path = config.PARAMS_FILE) -> Call:
    """Turn a stage's name and flags into a call.

    Raises:
        InputError: a setting is unknown or of the wrong type.
        SystemExit: a flag is missing or unknown (argparse says which).
    """
    module, function = load_stage(stage)
    annotations = inspect.get_annotations(function, eval_str=True)
    annotations.pop("return", None)
    parser = argparse.ArgumentParser(prog=f"watchnext stage {stage}", description=inspect.getdoc(module))
    for name, annotation in annotations.items():
        if annotation in (Path, str):
            kind = "output" if name.startswith("out_") else "input"
            parser.add_argument(f"--{name.replace('_', '-')}", type=annotation, required=True, help=kind)
    parser.add_argument("--metrics", type=Path, default=METRICS_DIR / f"{stage}.json", help="metrics file")
    given = vars(parser.parse_args(flags))
    metrics_path = given.pop("metrics")

    check_settings(params_file)
    arguments: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    outputs = {name: path for name, path in given.items() if name.startswith("out_")}
    for name, annotation in annotations.items():
        if _is_section(annotation):
            section = config.load_section(stage if name == "params" else name, annotation, params_file)
            arguments[name] = section
            settings[stage if name == "params" else name] = section.model_dump(mode="json")
        elif name == "seed":
            arguments[name] = settings[name] = config.load_seed(params_file)
        elif name in given and name not in outputs:
            arguments[name] = given[name]
            if annotation is str:
                settings[name] = given[name]
    return Call(stage, function, arguments, outputs, settings, metrics_path)


def run(
    call: Call, tracker: Tracker, execution_id: str, checkpoints_dir: Path = CHECKPOINTS_DIR
) -> Metrics | None:
    """Run one stage: stage its outputs, swap them in, write its metrics and log them.

    Args:
        call: the stage.
        tracker: where to log it.
        execution_id: of the execution that it belongs to.
        checkpoints_dir: holds what was trained halfway, a folder per stage. Whoever trains beside the pipeline needs another
            one: a training clears away what others left in its folder.

    Raises:
        whatever the stage raises, after its outputs were discarded and the failure was logged.
    """
    started = time.monotonic()
    staged = {name: _staging(path) for name, path in call.outputs.items()}
    for path in staged.values():
        _remove(path)
        path.parent.mkdir(parents=True, exist_ok=True)
    arguments = {**call.arguments, **staged}
    if "pipeline_run" in inspect.signature(call.function).parameters:
        arguments["pipeline_run"] = lambda: tracker.pipeline_run(execution_id)
    if "previous_metrics" in inspect.signature(call.function).parameters:
        arguments["previous_metrics"] = _previous_metrics(call)
    for name in inspect.signature(call.function).parameters:
        if name.startswith("earlier_"):
            arguments[name] = _earlier_output(call, f"out_{name.removeprefix('earlier_')}")
    checkpoints = checkpoints_dir / call.stage
    if "checkpoints" in inspect.signature(call.function).parameters:
        arguments["checkpoints"] = checkpoints
    metrics: Metrics | None = None
    try:
        with full_disk_explained():
            metrics = call.function(**arguments)
        if metrics is not None:
            for name, path in call.outputs.items():
                _swap_in(staged[name], path)
            _write_json(call.metrics_path, metrics)
            if "checkpoints" in arguments:
                _remove(checkpoints)
    except BaseException:
        if "out_report" in staged and staged["out_report"].exists():
            _swap_in(staged["out_report"], call.outputs["out_report"])
        _log(call, tracker, execution_id, {}, "FAILED", time.monotonic() - started)
        raise
    finally:
        for path in staged.values():
            _remove(path)
    if metrics is not None:
        _log(call, tracker, execution_id, metrics, "FINISHED", time.monotonic() - started)
    return metrics


def run_beside_chief(call: Call, cluster: Cluster) -> None:
    """Run one stage as a worker that is not the chief: nothing stays of it but, if it is stopped, its checkpoints."""
    from watchnext.models.workers import part

    checkpoints = CHECKPOINTS_DIR / f"{call.stage}.worker-{cluster.index}"
    with tempfile.TemporaryDirectory(prefix=f"watchnext-{call.stage}-") as scratch:
        staged = {name: Path(scratch) / name for name in call.outputs}
        call.function(**{**call.arguments, **staged}, checkpoints=checkpoints)
    part()
    _remove(checkpoints)


def fill_in_cached_stages(tracker: Tracker, execution_id: str) -> None:
    """Show the metrics of every stage that came from DVC's cache under this execution's run, and close the run.

    An execution in which no stage had anything to do has no run, and gets none.
    """
    if not tracker.has_pipeline_run(execution_id):
        return
    parent = tracker.pipeline_run(execution_id)
    logged = tracker.logged_stages(parent)
    for stage in config.STAGES:
        metrics_path = METRICS_DIR / f"{stage}.json"
        if stage in logged or not metrics_path.is_file():
            continue
        report = REPORTS_DIR / stage
        tracker.log_stage(
            parent,
            stage,
            params={},
            metrics=json.loads(metrics_path.read_text(encoding="utf-8")),
            curves=_curves(report),
            report_dir=report if report.is_dir() else None,
            datasets=[],
            from_cache=True,
            status="FINISHED",
        )
    tracker.finish(parent, "FINISHED")


def _log(
    call: Call, tracker: Tracker, execution_id: str, metrics: Metrics, status: str, duration_s: float
) -> None:
    """Log what the stage did. A tracker that cannot be used loses no work: the stage's outcome stands.

    A finished stage that could not be logged is shown later, from its metrics file, like one from the cache.
    """
    report = call.outputs.get("out_report")
    try:
        parent = tracker.pipeline_run(execution_id)
        tracker.log_stage(
            parent,
            call.stage,
            params=flatten(call.params),
            metrics={**metrics, "stage_duration_s": duration_s, "stage_peak_rss_gb": _peak_rss_gb()},
            curves=_curves(report),
            report_dir=report if report is not None and report.is_dir() else None,
            datasets=_datasets(call),
            from_cache=False,
            status=status,
        )
        if status == "FAILED":
            tracker.finish(parent, "FAILED")
    except InputError as error:
        say(f"{call.stage}: its outputs stand, but MLflow could not log them: {error}")


def _datasets(call: Call) -> list[tuple[str, str, str]]:
    """The logs behind what the stage read, as (source, digest, folder), from the file that every artifact carries."""
    found = []
    for value in call.arguments.values():
        for name, key in (("source.json", "digest"), ("manifest.json", "data_digest")):
            if not (isinstance(value, Path) and (value / name).is_file()):
                continue
            content = json.loads((value / name).read_text(encoding="utf-8"))
            if key in content:
                found.append((str(content["source"]), str(content[key]), str(value)))
    return found


def _previous_metrics(call: Call) -> Metrics | None:
    if not all(path.exists() for path in (call.metrics_path, *call.outputs.values())):
        return None
    return json.loads(call.metrics_path.read_text(encoding="utf-8"))


def _earlier_output(call: Call, output: str) -> Path | None:
    return call.outputs[output] if _previous_metrics(call) is not None else None


def _curves(report: Path | None) -> dict[str, list[list[float]]]:
    if report is None or not (report / "curves.json").is_file():
        return {}
    return json.loads((report / "curves.json").read_text(encoding="utf-8"))


def _is_section(annotation: object) -> bool:
    return inspect.isclass(annotation) and issubclass(annotation, config.Section)


def _peak_rss_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


def _staging(path: Path) -> Path:
    return path.with_name(path.name + ".staging")


def _swap_in(staged: Path, final: Path) -> None:
    """Put `staged` where `final` is. Killed in between, `final` is absent, and DVC runs the stage again."""
    if not staged.exists():
        return
    retired = final.with_name(final.name + ".retired.staging")
    _remove(retired)
    if final.exists():
        final.rename(retired)
    staged.rename(final)
    _remove(retired)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sweep(root: Path) -> None:
    """Remove what killed stages left half written. Call it with the working tree's stage lock held."""
    for folder in ("data", "data/*", REPORTS_DIR, METRICS_DIR):
        for path in root.glob(f"{folder}/*.staging"):
            _remove(path)


def _write_json(path: Path, content: Metrics) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = _staging(path)
    staged.write_text(json.dumps(dict(content), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    staged.replace(path)


def execution() -> psutil.Process | None:
    """The `dvc` process that this stage belongs to, or None when it was started by hand."""
    if "DVC_STAGE" not in os.environ:
        return None
    for ancestor in psutil.Process().parents():
        with contextlib.suppress(psutil.Error):
            if any(Path(part).name in ("dvc", "dvc.exe", "__main__.py") for part in ancestor.cmdline()[:4]):
                return ancestor
    return psutil.Process().parent()


def execution_id(process: psutil.Process | None) -> str:
    """One id per pipeline execution: a process id and when that process began, since ids are used again."""
    process = process or psutil.Process()
    return f"{process.pid}-{process.create_time():.2f}"


def is_alive(identifier: str) -> bool:
    """Whether the execution that `execution_id` named is still running."""
    pid, _, began = identifier.partition("-")
    try:
        return f"{psutil.Process(int(pid)).create_time():.2f}" == began
    except (psutil.Error, ValueError):
        return False


def die_with(process: psutil.Process) -> None:
    """End this process as soon as `process` is gone, however it went.

    `kill -9` of dvc would leave the stage writing beside the next repro. The kernel's parent-death signal covers
    a dvc that is the direct parent; the watching thread covers a shell in between and other systems.
    """
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)

    def watch() -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                time.sleep(_PARENT_POLL_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="die-with-dvc", daemon=True).start()


@contextlib.contextmanager
def only_stage_here(root: Path) -> Iterator[None]:
    """Hold the working tree's stage lock; the system lets go of it when its holder dies.

    Raises:
        InputError: another stage still runs in this working tree.
    """
    folder = root / ".dvc" / "tmp"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "watchnext-stage.lock", timeout=_LOCK_WAIT_S):
            yield
    except Timeout:
        raise InputError(
            "another stage is running in this working tree",
            where=str(root),
            remedy="wait for it, or end it; one `dvc repro` per working tree at a time",
        ) from None


def main(argv: list[str]) -> int:
    """Run one stage as dvc.yaml asks for it. Returns the exit status."""
    if not argv or argv[0] not in config.STAGES:
        say("usage: python -m watchnext.stages._runner STAGE --flags; stages: " + ", ".join(config.STAGES))
        return 2
    stage, *flags = argv
    if launcher := os.environ.get(LAUNCHER_VARIABLE):
        try:
            die_with(psutil.Process(int(launcher)))
        except psutil.NoSuchProcess:
            return 1
    dvc = execution()
    if dvc is not None:
        die_with(dvc)
    identifier = execution_id(dvc)
    root = Path.cwd()
    try:
        call = prepare(stage, flags)
        cluster = Cluster.from_environment() if stage in TRAINED_TOGETHER else None
        if cluster is not None and not cluster.is_chief:
            run_beside_chief(call, cluster)
            say(
                f"{stage}: worker {cluster.index} of {len(cluster.addresses)} is done; the chief has the outputs"
            )
            return 0
        with only_stage_here(root):
            sweep(root)
            tracker = Tracker.open(root)
            tracker.close_orphans(is_alive)
            started = time.monotonic()
            with tracker.stage(identifier, stage):
                metrics = run(call, tracker, identifier)
                if cluster is not None:
                    from watchnext.models.workers import part

                    part()
            if metrics is None:
                say(f"{stage}: nothing to do")
            else:
                say(f"{stage}: done in {time.monotonic() - started:.1f} s")
            if stage == config.STAGES[-1]:
                fill_in_cached_stages(tracker, identifier)
    except InputError as error:
        say(f"\n{stage} stopped: {error}\n")
        return LOST_STATUS if isinstance(error, WorkerLost) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
