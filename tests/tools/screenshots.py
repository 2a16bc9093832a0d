"""Answer the three questions of docs/comparing.md in a headless Chromium, and keep what it shows.

    MLFLOW_TRACKING_URI=sqlite:///mlflow.db python -m tests.tools.screenshots RUN_A RUN_B

Drives MLflow's own pages (table of runs, charts, comparison of selected runs) and the page of analysis.compare, on two
finished experiments of one name. Fails if a table, chart or comparison does not come up, so that it is also the check
to run when MLflow is updated; it needs a minute, and `chromium`.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import tyro
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from promptdiffuser.reporting.compare import compare
from promptdiffuser.reporting.compare_page import write_comparison
from promptdiffuser.tracking.store import connect, resolve_uri

START_SECONDS = 120
WAIT_MS = 60_000
SHOWN = ("test/return", "test/return_low", "test/return_high", "test/normalised", "time/adapt_s")
SETTLE_MS = 3_000
"""What is waited before a picture: MLflow has no event that says that its charts have stopped moving, and never stops
asking its server."""
COLOURS = 256


@dataclass(frozen=True)
class Screenshots:
    """Command line of the tool."""

    run_a: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_A")]
    """Id of a finished experiment's run."""
    run_b: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_B")]
    """Id of another one of the same MLflow experiment."""
    output: Path = Path("docs")
    """Folder for the pictures."""


@contextmanager
def mlflow_server(uri: str) -> Iterator[str]:
    """Serve a store on a free port of this machine and yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    server = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", port, "--workers", "1"],
        env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_SECONDS
        while not answers(f"{address}/health"):
            assert server.poll() is None, f"MLflow's server ended with {server.returncode}"
            assert time.monotonic() < deadline, "MLflow's server does not answer"
            time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait()


def answers(address: str) -> bool:
    """Tell whether a server answers."""
    try:
        with urllib.request.urlopen(address, timeout=2):
            return True
    except OSError:
        return False


def open_runs(page: Page, address: str, stage: str, order: str) -> None:
    """Open the table of the runs of a stage, the highest first."""
    found = quote(f"tags.`promptdiffuser.stage` = '{stage}'")
    page.goto(f"{address}/runs?searchFilter={found}&orderByKey={quote(order, safe='')}&orderByAsc=false")
    expect(page.locator(".ag-center-cols-container .ag-row").first).to_be_visible()


def make_room(page: Page) -> None:
    """Close what stands beside the runs."""
    page.get_by_role("button", name="Close").click()
    page.get_by_role("button", name="Toggle sidebar").click()


def which_is_best(page: Page, folder: Path, address: str) -> None:
    """Question 1: methods sorted by their test return, as a table and as charts."""
    open_runs(page, address, "method", "metrics.`test/return`")
    make_room(page)
    page.get_by_role("button", name="Columns").click()
    for column in ("Dataset", "Source", "Models", *SHOWN):
        page.get_by_text(column, exact=True).last.click()
    page.keyboard.press("Escape")
    for column in SHOWN:
        expect(page.locator(".ag-header").get_by_text(column, exact=True)).to_be_visible()
    keep(page, folder / "mlflow-best.png")
    page.goto(f"{page.url}&compareRunsMode=CHART")
    page.get_by_placeholder("Search metric charts").fill("test/")
    expect(page.get_by_role("heading", name="test/return", exact=True)).to_be_visible()
    expect(page.locator(".js-plotly-plot .bars .point").last).to_be_visible()
    keep(page, folder / "mlflow-charts.png")


def what_differs(page: Page, folder: Path, address: str) -> None:
    """Question 2: two experiments selected, and only the parameters that are not equal."""
    open_runs(page, address, "experiment", "attributes.start_time")
    for row in range(2):
        page.get_by_role("checkbox", name="Press Space to toggle row selection").nth(row).check()
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.get_by_text("Comparing 2 Runs")).to_be_visible()
    for part in ("Visualizations", "Run details"):
        page.get_by_text(part, exact=True).click()
    page.get_by_role("switch", name="Parameters - Show diff only").check()
    expect(page.get_by_text("pretraining.optimisation.steps").last).to_be_visible()
    keep(page, folder / "mlflow-differs.png")


def is_it_significant(page: Page, folder: Path, comparison: Path) -> None:
    """Question 3: the verdict of analysis.compare."""
    page.set_viewport_size({"width": 1100, "height": 1250})
    page.goto(comparison.resolve().as_uri())
    expect(page.locator("#verdict li").first).to_contain_text("probability of improvement")
    keep(page, folder / "comparison.png")


def keep(page: Page, path: Path) -> None:
    """Take a picture and store it with few colours."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(SETTLE_MS)
    page.screenshot(path=path)
    with Image.open(path) as picture:
        picture.convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)
    print(f"{path}  {path.stat().st_size / 1000:.0f} kB")


def main(job: Screenshots) -> None:
    """Take all pictures."""
    uri = resolve_uri()
    experiment = connect(uri).get_run(job.run_a).info.experiment_id
    browser = shutil.which("chromium")
    with mlflow_server(uri) as server, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1280, "height": 640})
        page.set_default_timeout(WAIT_MS)
        expect.set_options(timeout=WAIT_MS)
        address = f"{server}/#/experiments/{experiment}"
        which_is_best(page, job.output, address)
        what_differs(page, job.output, address)
        with tempfile.TemporaryDirectory() as folder:
            comparison = compare(uri, [job.run_a, job.run_b])
            is_it_significant(page, job.output, write_comparison(comparison, uri, Path(folder)))
        chromium.close()


if __name__ == "__main__":
    main(tyro.cli(Screenshots, description=__doc__))
