"""A job that `uv run` starts on a local cluster uploads nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.test_submit import clean_environment

PROGRAM = """
from promptdiffuser.distributed.cluster import connect  # as in every job, before Ray is imported
import ray
from promptdiffuser.experiment import ClusterConfig

connect(ClusterConfig())
print("uploads", dict(ray.get_runtime_context().runtime_env), "works", ray.get(ray.remote(lambda: 42).remote()))
"""


@pytest.mark.ray
def test_a_local_cluster_under_uv_run_uploads_nothing(tmp_path: Path) -> None:
    """Ray looks for an ancestor process whose command line begins with `uv run`; a shell stands in for it here."""
    (tmp_path / "run").write_text('"$@"\nexit $?\n')
    with (tmp_path / "big.parquet").open("wb") as file:
        file.truncate(700 * 2**20)
    ended = subprocess.run(
        ["uv", "run", sys.executable, "-c", PROGRAM],
        executable="/bin/bash",
        cwd=tmp_path,
        env=clean_environment(HOME=str(tmp_path)),  # Ray leaves a token there
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert "uploads {} works 42" in ended.stdout, ended.stdout + ended.stderr
