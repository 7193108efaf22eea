"""A Spark standalone cluster on this machine: a master and workers on loopback, from the Spark that pip installed.

For trying out `engine.kind: spark` with a `spark://` master, and for its tests. It is Spark's own master and worker; a
team's cluster runs the same two programs on machines of its own.
"""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from watchnext.console import say
from watchnext.engine import CLUSTER_DIR, CLUSTER_MASTER
from watchnext.errors import InputError

HOST = "127.0.0.1"
MASTER_PORT = 7077
OLDEST_JAVA = 17

# What Spark's own launcher, a Java of its own that would have to start first, gives its daemons on Java 17.
_OPENED = tuple(
    f"--add-opens=java.base/{package}=ALL-UNNAMED"
    for package in ("java.lang", "java.lang.invoke", "java.net", "java.nio", "java.util", "sun.nio.ch")
)
# They compute nothing: quick to start and small is all that they should be.
_JAVA_OPTIONS = ("-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", *_OPENED)

_MASTER = "org.apache.spark.deploy.master.Master"
_WORKER = "org.apache.spark.deploy.worker.Worker"
_STATE = "processes.json"
_START_WAIT_S = 180.0
_STOP_WAIT_S = 15.0
_POLL_S = 0.2


@dataclass(frozen=True)
class Daemon:
    """A process of the cluster: what it is, its id, and when it began, since ids are used again."""

    name: str
    pid: int
    began: float

    def process(self) -> psutil.Process | None:
        """The process, if it still runs."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.began) < 1.0
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


@dataclass(frozen=True)
class Cluster:
    """A running cluster.

    Attributes:
        folder: its settings, logs and the work of its workers. `conf/` is readable by its owner alone.
        master: what `engine.master` is to be.
        web: the master's page.
        daemons: its processes, the master first.
    """

    folder: Path
    master: str
    web: str
    daemons: tuple[Daemon, ...]

    def alive_workers(self) -> int:
        """How many workers the master counts on. Raises OSError when it does not answer."""
        with urllib.request.urlopen(f"{self.web}/json/", timeout=5.0) as answer:
            return int(json.load(answer)["aliveworkers"])

    def start_worker(
        self, memory_gb: float, cores: int = 1, scratch: Path | None = None, conf: Path | None = None
    ) -> "Cluster":
        """The cluster with one more worker, whose registration is not waited for. Workers that have died are forgotten.

        Args:
            memory_gb: of its executors together.
            cores: of its executors together.
            scratch: where its executors spill and keep what they shuffle; None: in the cluster's folder.
            conf: folder of Spark settings; None: the cluster's own.
        """
        name = f"worker-{1 + max((int(one.name.split('-')[1]) for one in self.daemons[1:]), default=0)}"
        arguments = [
            *("--cores", str(cores), "--memory", f"{int(memory_gb * 1024)}M", "--host", HOST, "--port", "0"),
            *("--webui-port", "0", "--work-dir", str(self.folder / "work" / name), self.master),
        ]
        spills = scratch or self.folder / "scratch" / name
        daemon = _start(self.folder, name, _WORKER, arguments, spills, conf)
        running = (one for one in self.daemons if one.process() is not None)
        grown = Cluster(self.folder, self.master, self.web, (*running, daemon))
        grown._remember()
        return grown

    def wait_for_workers(self, number: int) -> None:
        """Wait until the master counts on so many workers.

        Raises:
            InputError: it does not within three minutes, or one of the processes has ended.
        """

        def enough() -> bool:
            try:
                return self.alive_workers() == number
            except (urllib.error.URLError, OSError):
                return False

        self._wait(enough, f"{number} workers at the master")

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _START_WAIT_S
        while not condition():
            ended = [daemon.name for daemon in self.daemons if daemon.process() is None]
            if ended or time.monotonic() > deadline:
                log = self.folder / "logs" / f"{(ended or [self.daemons[0].name])[0]}.log"
                raise InputError(
                    f"{ended[0]} ended at once" if ended else f"no {what} after {_START_WAIT_S:.0f} s",
                    where=str(log),
                    offenders=_complaints(log),
                    remedy="the log tells more; `watchnext cluster down` clears what has started",
                )
            time.sleep(_POLL_S)

    def _remember(self) -> None:
        state = {
            "master": self.master,
            "web": self.web,
            "daemons": [asdict(daemon) for daemon in self.daemons],
        }
        (self.folder / _STATE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


def up(
    folder: Path = CLUSTER_DIR,
    *,
    workers: int = 2,
    memory_gb: float = 1.0,
    cores: int = 1,
    port: int = MASTER_PORT,
    scratch: Path | None = None,
) -> Cluster:
    """Start a master and workers, and wait until all of them know each other.

    Only processes that know the secret in `folder`/conf can use it: on a machine with other users anybody else's job
    would run as this user.

    Args:
        folder: gets its settings, logs and work.
        workers: how many.
        memory_gb: of the executors of each worker.
        cores: of each worker.
        port: of the master.
        scratch: where executors spill and keep what they shuffle, a folder for each worker; None: in `folder`.

    Raises:
        InputError: pyspark or Java is not there, the port is taken, a cluster runs already, or a process ended.
    """
    running = find(folder)
    if running is not None and any(daemon.process() for daemon in running.daemons):
        raise InputError(
            f"a cluster is running here already: {running.master}",
            where=str(folder),
            remedy="use it, or end it by `watchnext cluster down` first",
        )
    _java()
    _check_free(port)
    shutil.rmtree(folder, ignore_errors=True)
    conf = folder / "conf"
    conf.mkdir(parents=True, mode=0o700)
    defaults = conf / "spark-defaults.conf"
    defaults.touch(mode=0o600)
    defaults.write_text(
        f"spark.authenticate true\nspark.authenticate.secret {secrets.token_urlsafe(32)}\n"
        "spark.ui.killEnabled false\n",
        encoding="utf-8",
    )
    master = f"spark://{HOST}:{port}"
    web_port = _free_port()
    arguments = ["--host", HOST, "--port", str(port), "--webui-port", str(web_port)]
    daemon = _start(folder, "master", _MASTER, arguments, folder / "scratch" / "master")
    cluster = Cluster(folder, master, f"http://{HOST}:{web_port}", (daemon,))
    cluster._remember()
    (folder / CLUSTER_MASTER).write_text(master, encoding="utf-8")
    try:
        cluster._wait(lambda: _answers(port), f"answer of the master on port {port}")
        for number in range(1, workers + 1):
            cluster = cluster.start_worker(memory_gb, cores, scratch and scratch / f"worker-{number}")
        cluster.wait_for_workers(workers)
    except BaseException:
        _stop(cluster.daemons)
        raise
    return cluster


def find(folder: Path = CLUSTER_DIR) -> Cluster | None:
    """The cluster that was started in `folder`, whether it still runs or not; None without one."""
    path = folder / _STATE
    if not path.is_file():
        return None
    state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    daemons = tuple(Daemon(**daemon) for daemon in state["daemons"])
    return Cluster(folder, state["master"], state["web"], daemons)


def down(folder: Path = CLUSTER_DIR) -> int:
    """End the cluster of `folder`, wait for its processes and delete the folder.

    Returns:
        How many processes were running.
    """
    cluster = find(folder)
    if cluster is None:
        return 0
    ended = _stop(cluster.daemons)
    shutil.rmtree(folder)
    return ended


def _stop(daemons: Sequence[Daemon]) -> int:
    running = [process for daemon in daemons if (process := daemon.process()) is not None]
    # Executors are children of workers, and do not always outlive them by little.
    executors = [child for process in running for child in _children(process)]
    for process in running:
        process.terminate()
    _, left = psutil.wait_procs([*running, *executors], timeout=_STOP_WAIT_S)
    for process in left:
        process.kill()
    psutil.wait_procs(left)
    return len(running)


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _start(
    folder: Path,
    name: str,
    main: str,
    arguments: Sequence[str],
    scratch: Path,
    conf: Path | None = None,
) -> Daemon:
    home, settings = _spark_home(), (conf or folder / "conf").absolute()
    (folder / "logs").mkdir(exist_ok=True)
    scratch.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "SPARK_HOME": str(home),
        # Without it a worker takes this for a build of Spark's own sources, and starts no executor.
        "SPARK_SCALA_VERSION": next((home / "jars").glob("spark-core_*.jar"))
        .name.split("_")[1]
        .split("-")[0],
        "SPARK_CONF_DIR": str(settings),
        "SPARK_LOCAL_IP": HOST,
        "SPARK_LOCAL_DIRS": str(scratch.absolute()),
        "PYSPARK_PYTHON": sys.executable,
    }
    with (folder / "logs" / f"{name}.log").open("wb") as log:
        started = subprocess.Popen(
            [_java(), "-cp", f"{settings}:{home / 'jars'}/*", *_JAVA_OPTIONS, main, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    process = psutil.Process(started.pid)
    return Daemon(name, started.pid, process.create_time())


def _spark_home() -> Path:
    try:
        import pyspark
    except ImportError:
        raise InputError(
            "pyspark is not installed, and Spark comes with it",
            remedy="pip install 'watchnext[spark]' (and Java 17)",
        ) from None
    return Path(pyspark.__file__).parent


def _java() -> str:
    """Java's program.

    Raises:
        InputError: there is none, or it is too old for Spark.
    """
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    remedy = f"install Java {OLDEST_JAVA} or later (Debian: openjdk-17-jre-headless), or set JAVA_HOME"
    if java is None or not Path(java).exists():
        raise InputError("there is no Java, which Spark runs on", where=java or "PATH", remedy=remedy)
    told = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', told)
    if version is None or int(version[1]) < OLDEST_JAVA:
        found = told.splitlines()[0] if told else "no answer"
        raise InputError(
            f"Spark needs Java {OLDEST_JAVA} or later", where=java, offenders=[found], remedy=remedy
        )
    return java


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        # As Java binds: what a cluster before left in TIME_WAIT is no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise InputError(
                f"port {port} cannot be taken: {error.strerror}",
                where=HOST,
                remedy="end what listens there, or choose another by --port (and in engine.master)",
            ) from None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=1.0).close()
    except OSError:
        return False
    return True


def _complaints(log: Path) -> list[str]:
    """The first lines of a log that tell of an error; the last line where none does."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    found = [line.strip()[:300] for line in lines if re.search(r"ERROR|Exception|Error:", line)]
    return found or lines[-1:]


def report(cluster: Cluster) -> None:
    """Say what was started and how to use it."""
    say(f"cluster: {len(cluster.daemons) - 1} workers at {cluster.master}, page of the master: {cluster.web}")
    say(
        f"cluster: to use it set `engine: {{kind: spark, master: {cluster.master}}}` in params.yaml, then `dvc repro`"
    )
