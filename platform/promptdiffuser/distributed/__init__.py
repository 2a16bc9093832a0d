"""The only floor that imports Ray: clusters, datasets, training, rollouts, sweeps. It adds no mathematics."""

import os

# Ray reads these when it is imported. Each Train run starts a handful of helper processes, which on few cores makes the
# raylet warn, on the driver's screen, about a number that is right.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "PYTHON worker processes have been started")
# Tune's own handler of Ctrl-C would end a sweep as if it were complete.
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
# Ray Train's controller takes a worker's report when it looks, every 2 s by default, and a report waits for the one
# before: with checkpoints close together trainings would wait for most of their time.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
# Under `uv run` Ray would copy the working folder, data and outputs included, to every worker and make each an
# environment. The processes of a local cluster stand in the same folder and environment already.
if os.environ.get("RAY_ADDRESS", "") in ("", "local"):
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
