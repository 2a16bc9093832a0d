"""Experiment tracking: the one place that writes to MLflow. `analysis/` reads what is written here."""

import logging
import os

# Read by MLflow when it is imported or calls; a value that the user has set wins.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

_DEFAULTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
"""MLflow's own (7 retries, 120 s each) would hold a delivery up for minutes when the server is gone."""
PATIENCE = {name: value for name, value in _DEFAULTS.items() if name not in os.environ}
"""Variables that the user has not set, and what they are set to."""
os.environ.update(PATIENCE)
# Its warning of every retry quotes the whole address, a password in its query included.
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
