"""The only floor that imports Ray: clusters, datasets, training, rollouts, sweeps. It adds no mathematics."""

import os

# Ray reads this when it is imported. Each Train run starts a handful of helper processes, which on few cores makes the
# raylet warn, on the driver's screen, about a number that is right.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "PYTHON worker processes have been started")
