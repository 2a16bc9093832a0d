"""The quickstart as a newcomer runs it: seconds a stage, seconds in all, peak memory of all its processes together."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.benchmarks.entry import Value

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "python -m tests.benchmarks quickstart"
SAMPLE_SECONDS = 2.0


def run() -> list[Value]:
    """Run it in a fresh folder with a fresh MLflow store."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
        started = time.perf_counter()
        pipeline = subprocess.Popen(
            [sys.executable, "jobs/pipeline.py", "quickstart", "--outputs", folder], cwd=ROOT, env=environment
        )
        peak = _watch_memory(pipeline)
        seconds = time.perf_counter() - started
        if pipeline.returncode:
            raise SystemExit(f"the quickstart ended with status {pipeline.returncode}")
        records = {path.parent.name: json.loads(path.read_text()) for path in Path(folder).glob("*/*/stage.json")}
        summary = json.loads((Path(folder) / "quickstart" / "summary.json").read_text())
    stages = [
        Value(f"quickstart/{name.rsplit('-', 1)[0]}", record["seconds"], "s", COMMAND)
        for name, record in sorted(records.items())
    ]
    returns = [
        Value(f"quickstart/return/{method}", result["mean"], "return", COMMAND)
        for method, result in summary["methods"].items()
    ]
    return [
        *stages,
        Value("quickstart/total", seconds, "s", COMMAND),
        Value("quickstart/peak-memory", peak / 2**30, "GiB", COMMAND),
        *returns,
    ]


def _watch_memory(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process and return the highest memory of it and all its descendants together, in bytes."""
    peak = 0
    done = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(SAMPLE_SECONDS):
            peak = max(peak, sum(_proportional_memory(pid) for pid in _tree(process.pid)))

    sampler = threading.Thread(target=sample)
    sampler.start()
    process.wait()
    done.set()
    sampler.join()
    return peak


def _tree(root: int) -> set[int]:
    """Return a process and its descendants; Ray's processes are children of the driver that started the cluster."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        parents[int(path.parent.name)] = int(fields[1])
    tree = {root}
    while new := {pid for pid, parent in parents.items() if parent in tree} - tree:
        tree |= new
    return tree


def _proportional_memory(pid: int) -> int:
    """Return the proportional set size: shared pages, the object store's among them, count once over all processes."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
