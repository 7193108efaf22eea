"""What the benchmarks on logs share: the validated tables, one process per model, each on one core, and how they answer."""

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks import CannotMeasure
from watchnext import config
from watchnext.console import say
from watchnext.engine import EngineParams
from watchnext.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
PEERS_PYTHON = ROOT / "benchmarks" / ".venv" / "bin" / "python"


def validated_tables(source: str, path: Path | None, work: Path) -> Path:
    """Simulate (where there is no `path`), ingest and validate, by the stages' own functions and params.yaml."""
    from watchnext.stages import ingest, simulate, validate

    engine = config.load_section("engine", EngineParams)
    if path is None:
        path = work / "logs"
        simulate.simulate(
            config.load_section("simulate", simulate.Params),
            config.load_seed(),
            source,
            path,
            work / "truth",
            work / "report-simulate",
        )
    params = config.load_section("ingest", ingest.Params)
    # Not `model_copy`: a source that there is not has to be refused.
    params = ingest.Params.model_validate({**params.model_dump(), "source": source, "path": str(path)})
    ingest.ingest(params, engine, path, work / "ingested", work / "report-ingest")
    validate.validate(
        config.load_section("validate", validate.Params),
        engine,
        work / "ingested",
        work / "validated",
        work / "quarantine",
        work / "report-validate",
    )
    return work / "validated"


def print_measured(name: str, measure: Callable[[Path], Mapping[str, Any]], work: Path | None) -> int:
    """Measure in a folder, and print what came of it as one JSON object on the last line of standard output.

    Args:
        name: of the benchmark, for people.
        measure: takes the folder that everything it makes goes into.
        work: that folder, made where there is none; None: a temporary one.

    Returns:
        The exit code: 1, and nothing printed, where it could not measure.
    """
    try:
        if work is not None:
            work.mkdir(parents=True, exist_ok=True)
            result = measure(work.resolve())
        else:
            with tempfile.TemporaryDirectory(prefix=f"{name}-") as folder:
                result = measure(Path(folder))
    except (InputError, CannotMeasure) as error:
        say(f"{name} could not measure: {error}")
        return 1
    sys.stdout.write(json.dumps(_with_nulls(result), allow_nan=False) + "\n")
    return 0


def _with_nulls(value: Any) -> Any:
    """Null for what is infinite or no number, which JSON cannot say: the latency where requests failed, say."""
    if isinstance(value, Mapping):
        return {name: _with_nulls(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_with_nulls(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def run(name: str, command: Sequence[str], cores: int = 1) -> None:
    """Run one model in its environment, with threads for so many cores; its own progress passes through.

    Raises:
        CannotMeasure: it failed.
    """
    threads = {f"{library}_NUM_THREADS": str(cores) for library in ("OMP", "OPENBLAS", "MKL")}
    threads |= {"TF_NUM_INTRAOP_THREADS": str(cores), "TF_NUM_INTEROP_THREADS": "1"}
    # The peers' environment lacks the project; its metrics need NumPy alone.
    threads["PYTHONPATH"] = str(ROOT / "src")
    quiet = {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2", "TQDM_DISABLE": "1"}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **threads, **quiet},
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        check=False,
    )
    if done.returncode:
        raise CannotMeasure(f"{name} ended with exit code {done.returncode}; what it said is above")
    say(f"{name}: done")


def run_all(commands: Mapping[str, Sequence[str]], slowest_first: Sequence[str], processes: int) -> None:
    """`run` each of `commands`, `processes` of them side by side; those named in `slowest_first` begin.

    Raises:
        CannotMeasure: one failed; those that had not begun are not begun.
    """
    order = sorted(
        commands,
        key=lambda name: slowest_first.index(name) if name in slowest_first else len(slowest_first),
    )
    with ThreadPoolExecutor(processes) as pool:
        running = [pool.submit(run, name, commands[name]) for name in order]
        try:
            for one in as_completed(running):
                one.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
