"""What the machine does while a run works: MLflow's own measurements, logged like every other metric.

MLflow's `SystemMetricsMonitor` writes to the store itself and ends when that is away; this goes through the journal.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec

from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

from promptdiffuser.background import beside
from promptdiffuser.tracking.store import RunLog

SECONDS_BETWEEN = 10.0
"""MLflow's default."""


@contextmanager
def system_metrics(run: RunLog, seconds_between: float = SECONDS_BETWEEN) -> Iterator[None]:
    """Log use of CPUs, memory, disk, network and NVIDIA GPUs of this machine while the body runs, as `system/...`.

    The step is the Unix time in seconds, so that a resumed run goes on. GPUs need the package nvidia-ml-py.
    """
    monitors = _monitors()

    def measure() -> dict[str, float]:
        measured: dict[str, float] = {}
        for monitor in monitors:
            monitor.collect_metrics()
            measured |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        return {f"system/{name}": value for name, value in measured.items()}

    def watch(stop: threading.Event) -> None:
        measure()  # use of CPUs is counted from the same thread's measurement before
        at_end = False
        while not at_end:
            at_end = stop.wait(seconds_between)
            run.log_metrics(measure(), int(time.time()))

    with beside(watch, "system-metrics"):
        yield


def _monitors() -> list[BaseMetricsMonitor]:
    monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    if find_spec("pynvml"):
        with suppress(RuntimeError):  # the package is there, a GPU is not
            monitors.append(GPUMonitor())
    return monitors
