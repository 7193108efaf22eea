"""How fast `watchnext serve` answers over a million videos, on this machine, load generator included.

python -m benchmarks.serve [--work DIR] [--videos N] [--users N] [--seconds S]

A world of that size is made once and kept in DIR (see `benchmarks.serve.world`): real files, a real registry, a real store.
One JSON object stands on the last line:

    p50_ms, p99_ms                  of POST /v1/recommend at 50 requests per second, Poisson arrivals, slates recorded
    max_rps_p99_under_50ms          the highest tried rate at which nothing failed and p99 was below 50 ms
    two_servers_...                 the same of two servers with one store, asked in turn as by a proxy
    rss_gb                          resident memory of the server afterwards
    state_ms ... encoding_ms        median time by step at 50 requests per second
    shadow_p99_ratio                p99 with the challenger's shadow at full sampling, over p99 without, medians of
                                    alternating runs
    mlflow_serve_trivial_p50_ms     a pyfunc that does nothing under `mlflow models serve`: the floor of that way
    matmul_floor_ms                 the ranker's arithmetic at the peak of this machine's matrix product
"""

import argparse
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import CannotMeasure
from benchmarks.programs import ROOT, print_measured
from benchmarks.serve import world
from watchnext.console import say

RATE = 50.0
FEW = 10.0
"""Requests per second at which hardly any waits for another, on a slow machine as well."""
STEPS = ("state", "tower", "index", "features", "ranker", "slate", "record", "encoding")
TRIED_RATES = (20.0, 30.0, 40.0, 50.0, 75.0, 100.0, 150.0, 200.0, 250.0, 300.0, 400.0)
P99_BELOW_MS = 50.0
SHADOW_ROUNDS = 5
_START_S = 600.0
_END_S = 60.0

_NOTHING = '''"""A model that does nothing."""

from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class Nothing(PythonModel):
    def predict(self, context, model_input, params=None):
        return [0]


set_model(Nothing())
'''


class Server:
    """A server process, and the log that it writes."""

    def __init__(self, command: Sequence[str], folder: Path, log: Path) -> None:
        self.log = log
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"}
        environment |= {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )

    def wait_for(self, pattern: str) -> re.Match[str]:
        """What a regular expression finds in the log, as soon as it does.

        Raises:
            CannotMeasure: the process has ended, or it takes too long.
        """
        until = time.monotonic() + _START_S
        while time.monotonic() < until and self.process.poll() is None:
            found = re.search(pattern, self.log.read_text(encoding="utf-8", errors="replace"))
            if found:
                return found
            time.sleep(0.2)
        raise CannotMeasure(f"a server did not start; its log: {self.log}")

    def rss_gb(self) -> float:
        """Resident memory of the process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        return int(found[1]) / 1e6 if found else float("nan")

    def end(self) -> None:
        """Let it end."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def watchnext_server(project: Path, log: Path, *options: str) -> tuple[Server, str]:
    """A server of the project that is ready, and its URL."""
    command = [sys.executable, "-m", "watchnext.cli", "serve", "--port", "0", "--model", world.NAME, *options]
    server = Server(command, project, log)
    url = server.wait_for(r'"url": "(http://[^"]+)"')[1]
    server.wait_for(r'"message": "serving"')
    return server, url


def loaded(urls: Sequence[str], rate: float, seconds: float, bodies: Path, seed: int) -> dict[str, Any]:
    """One run of the generator in a process of its own: p50_ms, p99_ms, failed, late_p99_ms, requests."""
    out = bodies.with_name("answered.json")
    command = [sys.executable, "-m", "benchmarks.serve.load", "--url", *urls, "--rate", str(rate)]
    command += ["--seconds", str(seconds), "--bodies", str(bodies), "--seed", str(seed), "--out", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    return summarised(json.loads(out.read_text(encoding="utf-8")))


def summarised(answered: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Percentiles of one run; a request that failed has waited for ever."""
    latency_ms = np.array(answered["latency_ms"], float)
    failed = int(np.isnan(latency_ms).sum())
    waited_ms = np.sort(np.where(np.isnan(latency_ms), np.inf, latency_ms))
    if len(waited_ms) == 0:
        raise CannotMeasure("no request came: the run was too short for its rate")
    # The smallest latency that so many are not above: nothing is interpolated to infinity.
    p50_ms, p99_ms = (float(waited_ms[int(np.ceil(share * len(waited_ms))) - 1]) for share in (0.5, 0.99))
    return {
        "p50_ms": p50_ms,
        "p99_ms": p99_ms,
        "failed": failed,
        "requests": len(waited_ms),
        "late_p99_ms": float(np.percentile(answered["late_ms"], 99)),
    }


def steps_of(log: str) -> dict[str, float]:
    """Step -> median milliseconds over the answers that a log tells of."""
    lines = [
        json.loads(line) for line in log.splitlines() if line.startswith("{") and '"/v1/recommend"' in line
    ]
    return {
        f"{step}_ms": round(
            float(np.median([line[f"{step}_ms"] for line in lines if f"{step}_ms" in line])), 3
        )
        for step in STEPS
        if any(f"{step}_ms" in line for line in lines)
    }


def measure(work: Path, size: world.Size, seconds: float) -> dict[str, Any]:
    """All figures of the benchmark."""
    began = time.monotonic()
    project = world.make(work / "world", size, versions=2)
    say(
        f"serve: a world of {size.videos} videos and {size.users} users, after {time.monotonic() - began:.0f} s"
    )
    world.give_role(project, "challenger", None)
    bodies = write_bodies(work / "bodies.jsonl", size)
    result: dict[str, Any] = {"videos": size.videos, "users": size.users, "candidates": world.CANDIDATES}
    server, url = watchnext_server(project, work / "server.log")
    try:
        urls = [f"{url}/v1/recommend"]
        loaded(urls, RATE, seconds / 2, bodies, seed=1)
        alone = loaded(urls, FEW, seconds, bodies, seed=7)
        result |= {f"{name}_at_few": round(alone[name], 3) for name in ("p50_ms", "p99_ms")}
        say(f"serve: at {FEW:g} requests/s {alone}")
        mark = server.log.stat().st_size
        at_rate = loaded(urls, RATE, seconds, bodies, seed=2)
        say(f"serve: at {RATE:g} requests/s {at_rate}")
        result |= {name: round(at_rate[name], 3) for name in ("p50_ms", "p99_ms", "late_p99_ms")}
        result |= steps_of(server.log.read_text(encoding="utf-8")[mark:])
        result["max_rps_p99_under_50ms"] = highest_rate(
            urls, seconds / 3, bodies, {FEW: alone, RATE: at_rate}
        )
        result["rss_gb"] = round(server.rss_gb(), 3)
        result |= with_another(project, work, urls, seconds, bodies)
    finally:
        server.end()
    result |= shadow(project, work, bodies, seconds / 2)
    result["mlflow_serve_trivial_p50_ms"] = round(mlflow_trivial(work, seconds / 2), 3)
    result |= matmul_floor(project)
    result["took_s"] = round(time.monotonic() - began)
    return result


def with_another(
    project: Path, work: Path, urls: Sequence[str], seconds: float, bodies: Path
) -> dict[str, Any]:
    """Beside the server of `urls` a second one, on the same store: an interpreter for each core."""
    other, url = watchnext_server(project, work / "other.log")
    try:
        both = [*urls, f"{url}/v1/recommend"]
        loaded(both, RATE, seconds / 2, bodies, seed=8)
        at_rate = loaded(both, RATE, seconds, bodies, seed=9)
        say(f"serve: two servers at {RATE:g} requests/s {at_rate}")
        highest = highest_rate(both, seconds / 3, bodies, {RATE: at_rate})
    finally:
        other.end()
    return {
        "two_servers_p50_ms": round(at_rate["p50_ms"], 3),
        "two_servers_p99_ms": round(at_rate["p99_ms"], 3),
        "two_servers_max_rps_p99_under_50ms": highest,
    }


def write_bodies(path: Path, size: world.Size, number: int = 20_000) -> Path:
    """Requests of users that are drawn evenly: as good as nobody asks twice, so no cache of users helps."""
    users = np.random.default_rng(11).integers(1, size.users + 1, number)
    bodies = [
        json.dumps({"user_id": str(user), "context": {"surface": "home", "device": "tv"}}) for user in users
    ]
    path.write_text("\n".join(bodies) + "\n", encoding="utf-8")
    return path


def in_time(run: Mapping[str, Any]) -> bool:
    """Whether a run was answered as `max_rps_p99_under_50ms` asks."""
    return not run["failed"] and bool(run["p99_ms"] < P99_BELOW_MS)


def highest_rate(
    urls: Sequence[str], seconds: float, bodies: Path, known: Mapping[float, Mapping[str, Any]]
) -> float:
    """The highest rate that is answered in time; the next tried one that is not ends the search, at two tries.

    Args:
        urls: of the slates, of each server.
        seconds: of a run.
        bodies: of the requests.
        known: what was measured already, by rate.
    """
    good = max((rate for rate, run in known.items() if in_time(run)), default=0.0)
    for number, rate in enumerate(TRIED_RATES):
        if rate <= good:
            continue
        for again in range(2):
            run = loaded(urls, rate, seconds, bodies, seed=1000 * len(urls) + 2 * number + again)
            say(f"serve: at {rate:g} requests/s {run}")
            if in_time(run):
                good = rate
                break
        else:
            break
    return good


def shadow(project: Path, work: Path, bodies: Path, seconds: float) -> dict[str, Any]:
    """Two servers, one of which copies every request to the challenger, asked in turn."""
    world.give_role(project, "challenger", 2)
    without, url_without = watchnext_server(project, work / "without.log", "--shadow-share", "0")
    shadowed, url_with = watchnext_server(project, work / "with.log", "--shadow-share", "1")
    p99_ms: dict[str, list[float]] = {"without": [], "with": []}
    try:
        until = time.monotonic() + _START_S
        while not (told := _shadow_of(url_with))["answered"]:
            if time.monotonic() > until:
                raise CannotMeasure(f"the challenger does not answer: {told}; its log: {shadowed.log}")
            loaded([f"{url_with}/v1/recommend"], RATE, 1.0, bodies, seed=3)
        loaded([f"{url_without}/v1/recommend"], RATE, seconds / 2, bodies, seed=4)
        before = _shadow_of(url_with)
        for number in range(SHADOW_ROUNDS):
            for name, url in (("without", url_without), ("with", url_with)):
                run = loaded([f"{url}/v1/recommend"], RATE, seconds, bodies, seed=100 + number)
                p99_ms[name].append(run["p99_ms"])
        say(f"serve: p99 without and with the shadow {p99_ms}")
        told = _shadow_of(url_with)
    finally:
        without.end()
        shadowed.end()
        world.give_role(project, "challenger", None)
    medians = {name: float(np.median(values)) for name, values in p99_ms.items()}
    return {
        "without_shadow_p99_ms": round(medians["without"], 3),
        "with_shadow_p99_ms": round(medians["with"], 3),
        "shadow_p99_ratio": round(medians["with"] / medians["without"], 3),
        **{f"shadow_{name}": told[name] - before[name] for name in ("offered", "dropped", "failed")},
    }


def _shadow_of(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/v1/models", timeout=10) as response:
        told: dict[str, Any] = json.load(response)["shadow"]
    return told


def mlflow_trivial(work: Path, seconds: float) -> float:
    """p50 in milliseconds of a model that does nothing, served by MLflow, at the same rate."""
    import mlflow

    script, model, bodies = work / "nothing.py", work / "nothing", work / "nothing.jsonl"
    script.write_text(_NOTHING, encoding="utf-8")
    if not model.exists():
        mlflow.pyfunc.save_model(str(model), python_model=str(script))
    bodies.write_text('{"inputs": [0]}\n', encoding="utf-8")
    port = _free_port()
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "models",
        "serve",
        "--model-uri",
        str(model),
        "--port",
        str(port),
    ]
    server = Server([*command, "--env-manager", "local"], work, work / "mlflow.log")
    try:
        server.wait_for(r"Uvicorn running|startup complete|Listening at")
        urls = [f"http://127.0.0.1:{port}/invocations"]
        loaded(urls, RATE, seconds / 2, bodies, seed=5)
        return float(loaded(urls, RATE, seconds, bodies, seed=6)["p50_ms"])
    finally:
        server.end()


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def matmul_floor(project: Path) -> dict[str, float]:
    """How long the ranker's products of one request take at the peak of this machine, one query and CANDIDATES videos."""
    code = "from benchmarks.ranking.speed import matmul_peak; print(matmul_peak())"
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    done = subprocess.run([sys.executable, "-c", code], env=quiet, capture_output=True, text=True, check=True)
    peak = float(done.stdout.split()[-1])
    operations = world.ranker_operations(project)
    return {
        "matmul_peak_gflops": round(peak / 1e9, 1),
        "matmul_floor_ms": round(1000.0 * operations / peak, 3),
    }


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = world.Size()
    parser.add_argument(
        "--work", type=Path, help="keeps the world for further runs; else it is made anew and deleted"
    )
    parser.add_argument("--videos", type=int, default=size.videos)
    parser.add_argument("--users", type=int, default=size.users)
    parser.add_argument(
        "--seconds", type=float, default=30.0, help="of the run at 50 requests/s; others take a part of it"
    )
    arguments = parser.parse_args()
    size = dataclasses.replace(size, videos=arguments.videos, users=arguments.users)
    return print_measured("bench-serve", lambda work: measure(work, size, arguments.seconds), arguments.work)


if __name__ == "__main__":
    sys.exit(main())
