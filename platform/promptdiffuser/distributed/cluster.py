"""Connecting to a Ray cluster, and refusing an experiment that does not fit it before any work starts."""

import logging
import os
import re
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import ray
import torch
from ray._common.utils import get_default_ray_temp_dir
from ray._private import services
from ray._private.grpc_utils import init_grpc_channel
from ray._private.ray_constants import GLOBAL_GRPC_OPTIONS
from ray._private.utils import validate_socket_filepath
from ray.util.state import list_nodes

from promptdiffuser.errors import UserError
from promptdiffuser.experiment import ClusterConfig
from promptdiffuser.plugins import VARIABLE as PLUGINS

# Ray Data tasks run beside the Train workers and read for them; without room for one the workers wait for ever.
CPUS_FOR_DATA = 1
LOCAL_OBJECT_STORE_BYTES = 2**30
# Ray's own default of 15 lets its two dozen idle processes, and whatever else runs, take a sixth of a training's core.
WORKER_NICENESS = 0
DASHBOARD_TIMEOUT_S = 5
PROBE_TIMEOUT_S = 8
"""Time in which a cluster must accept a connection; Ray itself waits for minutes."""
LOCAL_STARTS = 3
"""Times that a local cluster is started before it is given up; Ray allows a busy machine little time for one."""
ADDRESS = re.compile(r"(?:ray://)?(?:[\w.-]+|\[[0-9a-fA-F:.]+\]):(\d{1,5})")
SOCKETS = "session_2000-01-01_00-00-00_000000_{pid}/sockets/{longest}"
"""Path of a socket below Ray's folder; all sessions have names of this form."""
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


def connect(cluster: ClusterConfig, trials: int = 0, validates: bool = False, dashboard: bool = False) -> None:
    """Join the cluster that RAY_ADDRESS names (Ray jobs set it), or start a local one for this process.

    Args:
        cluster: What the experiment takes of it; checked for all of its stages, whichever comes first.
        trials: Tune trials that run beside the rollout actors, one CPU each.
        validates: Whether the rollout actors work beside the Train workers, on snapshots.
        dashboard: Whether Ray's dashboard must run, as Ray Train inside Ray Tune needs it.

    Raises:
        UserError: RAY_ADDRESS names no cluster or one that does not answer, a local one cannot be started, the
            experiment needs more CPUs or GPUs than there are, torch cannot use the GPUs, or there is no dashboard.
    """
    if ray.is_initialized():
        _require(cluster, trials, validates, ray.cluster_resources())
        if dashboard:
            _require_dashboard()
        return
    # The first error of several pieces of work is raised; Ray would print the tracebacks of the others.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    address = os.environ.get("RAY_ADDRESS", "")
    if address in ("", "local"):
        local = {"CPU": float(cluster.local_cpus), "GPU": float(torch.cuda.device_count())}
        _require(cluster, trials, validates, local)
        _start_local(cluster.local_cpus, dashboard)
        return
    _join(address)
    _require(cluster, trials, validates, ray.cluster_resources())
    if cluster.gpus_per_worker:
        _require_cuda(cluster.gpus_per_worker)
    if dashboard:
        _require_dashboard()


@contextmanager
def _keeping_sigterm() -> Iterator[None]:
    """Give SIGTERM its handler back after `ray.init`.

    Ray puts one in Python that exits, and one in C++ that prints the stack and aborts the process after 3 s, whatever
    Python still has to finish by then.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as error:
        signal.signal(signal.SIGTERM, before)
        if error.code == signal.SIGTERM:  # it came while Ray started
            signal.raise_signal(signal.SIGTERM)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _start_local(num_cpus: int, dashboard: bool) -> None:
    """Start a cluster for this process; one that does not come up in time is ended and started afresh."""
    folder = get_default_ray_temp_dir()
    longest = "dash_TaskEventsHead" if dashboard else "plasma_store"
    try:
        validate_socket_filepath(os.path.join(folder, SOCKETS.format(pid=os.getpid(), longest=longest)))
    except OSError as error:
        raise UserError(
            f"{folder} is too long a path for Ray's sockets; set RAY_TMPDIR to a short one, such as RAY_TMPDIR=/tmp"
        ) from error
    for attempt in range(1, LOCAL_STARTS + 1):
        others = set(psutil.Process().children())
        try:
            with _keeping_sigterm():
                ray.init(
                    "local",  # never an unrelated cluster that happens to run on this machine
                    num_cpus=num_cpus,
                    include_dashboard=dashboard,
                    object_store_memory=LOCAL_OBJECT_STORE_BYTES,
                    _system_config={"worker_niceness": WORKER_NICENESS},
                    **QUIET,
                )
            return
        except Exception as error:  # Ray raises a bare one when its node is late
            _end_failed_start(others)
            if attempt == LOCAL_STARTS:
                reason = str(error).strip().splitlines() or [type(error).__name__]
                raise UserError(
                    f"Ray did not start on this machine in {LOCAL_STARTS} attempts ({reason[0]}); try again when it is "
                    f"less busy, and see the logs in {folder}/session_latest/logs"
                ) from error


def _end_failed_start(others: set[psutil.Process]) -> None:
    """End what a failed start has left; Ray forgets the processes of a node that it did not finish."""
    ray.shutdown()
    package = str(Path(ray.__file__).parent)
    left = []
    for process in set(psutil.Process().children()) - others:
        try:
            if package in " ".join(process.cmdline()):
                left += [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
    for process in left:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(left, timeout=10)


def _join(address: str) -> None:
    """Connect to a running cluster."""
    shown = re.sub(r"//[^/]*@", "//", address)  # without a password
    match = ADDRESS.fullmatch(address)
    if address != "auto" and (match is None or not 0 < int(match[1]) < 2**16):
        raise UserError(
            f"RAY_ADDRESS={shown} is not the address of a Ray cluster; give the head as host:port (head:6379), as "
            "ray://host:port, or auto for one on this machine; a dashboard's http://... is for cluster/submit.py"
        )
    unreachable = f"no Ray cluster answers at RAY_ADDRESS={shown}; start one or unset it"
    try:
        found = address if "://" in address else str(services.canonicalize_bootstrap_address(address))
        if not _answers(found.removeprefix("ray://")):
            raise UserError(unreachable)
        with _keeping_sigterm():
            # Processes of a cluster that runs already do not inherit the variables of this one.
            plugins = {name: os.environ[name] for name in (PLUGINS,) if name in os.environ}
            ray.init(address, runtime_env={"env_vars": plugins} if plugins else None, **QUIET)
    except ConnectionError as error:
        raise UserError(unreachable) from error


def _answers(host_port: str) -> bool:
    """Return whether a server of Ray's protocol accepts a connection."""
    channel = init_grpc_channel(host_port, GLOBAL_GRPC_OPTIONS)
    try:
        grpc.channel_ready_future(channel).result(timeout=PROBE_TIMEOUT_S)
    except grpc.FutureTimeoutError:
        return False
    finally:
        channel.close()
    return True


def cores_of_overcommitted() -> int | None:
    """Return the cores of a cluster whose only node declares more CPUs than it has cores; None of any other cluster.

    A local cluster does, so that what waits fits beside what computes.
    """
    num_nodes, cores = sum(node["Alive"] for node in ray.nodes()), os.cpu_count() or 1
    return cores if num_nodes == 1 and ray.cluster_resources()["CPU"] > cores else None


def _require_dashboard() -> None:
    """Ask the dashboard for the nodes: Ray Train, inside a Tune trial that ends early, frees its place through it."""
    try:
        list_nodes(limit=1, timeout=DASHBOARD_TIMEOUT_S)
    except Exception as error:
        raise UserError(
            "trials that train with Ray Train need Ray's dashboard: without it the places of trials that end early are "
            "never freed and the sweep hangs; start the cluster with it (`ray start --head --include-dashboard=true`)"
        ) from error


def _require(cluster: ClusterConfig, trials: int, validates: bool, available: Mapping[str, float]) -> None:
    training = cluster.train_workers * cluster.cpus_per_worker + CPUS_FOR_DATA
    rollouts = cluster.rollout_actors + trials
    needed, has = max(training + cluster.rollout_actors * validates, rollouts), int(available.get("CPU", 0))
    if has < needed:
        beside = ", with the actors beside the workers to score snapshots" if validates else ""
        raise UserError(
            f"the experiment needs {needed} CPUs ({training} to train, {rollouts} to roll out{beside}), "
            f"the Ray cluster has {has}; lower --cluster.train-workers or --cluster.rollout-actors, or raise "
            "--cluster.local-cpus (logical CPUs may exceed the cores)"
        )
    train_gpus, rollout_gpus = (
        cluster.train_workers * cluster.gpus_per_worker,
        cluster.rollout_actors * cluster.gpus_per_actor,
    )
    gpus = train_gpus + rollout_gpus if validates else max(train_gpus, rollout_gpus)
    has_gpus = available.get("GPU", 0.0)
    if has_gpus < gpus:
        raise UserError(
            f"the experiment asks for {gpus:g} GPUs, the Ray cluster has {has_gpus:g}; lower "
            "--cluster.train-workers, --cluster.gpus-per-worker or --cluster.gpus-per-actor (0 computes on CPUs)"
        )


def _require_cuda(gpus_per_worker: float) -> None:
    """Let a process that holds a worker's GPUs tell whether torch sees them; a node may declare GPUs that it lacks."""
    version, sees_cuda = ray.get(ray.remote(num_cpus=0, num_gpus=gpus_per_worker)(_torch_and_cuda).remote())
    if not sees_cuda:
        raise UserError(
            f"the Ray cluster declares GPUs, but torch {version} there sees no CUDA device; install a build with CUDA "
            "on its nodes, or train on CPUs by --cluster.gpus-per-worker 0"
        )


def _torch_and_cuda() -> tuple[str, bool]:
    return torch.__version__, torch.cuda.is_available()
