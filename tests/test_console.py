"""Consoles that fit their tables, and the progress of stages with and without a terminal."""

import io
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from promptdiffuser.console import WIDTH, Reporter, open_console, print_table

ROWS = [
    ["prompt-dt", "-31.2 (-33.9 to -28.7)", "0.983"],
    ["prompt-diffuser-context", "-29.8 (-32.0 to -27.1)", "1.012"],
]


def table() -> Table:
    shown = Table("method", title="cheetah-vel", caption="five tasks")
    for column in ("mean return (95 % int.)", "normalised"):
        shown.add_column(column, justify="right", no_wrap=True)
    for row in ROWS:
        shown.add_row(*row)
    return shown


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_no_number_is_cut_however_narrow_the_terminal_is(width: int) -> None:
    console = Console(width=width, force_terminal=True, no_color=True, file=(shown := io.StringIO()))
    print_table(console, table())
    assert "…" not in shown.getvalue()
    for text in ["cheetah-vel", *(cell for row in ROWS for cell in row[1:])]:
        assert text in shown.getvalue()


def test_no_number_is_folded_where_columns_may_wrap() -> None:
    console = Console(width=24, force_terminal=True, no_color=True, file=(shown := io.StringIO()))
    wrapping = Table(*"abc")
    wrapping.add_row("1234.5678", "-8765.4321", "0.123456")
    print_table(console, wrapping)
    assert "-8765.4321" in shown.getvalue()


def test_a_console_without_a_terminal_is_wide_enough_for_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert open_console(file=io.StringIO()).width == WIDTH
    monkeypatch.setenv("COLUMNS", "300")
    assert open_console(file=io.StringIO()).width == 300


def test_without_a_terminal_a_stage_prints_lines() -> None:
    console = Console(file=(shown := io.StringIO()), width=150)
    reporter = Reporter("pretrain", console)
    with reporter.showing(seconds=0.05):
        reporter.expect(4000, 1000)
        reporter.advance(200)
        reporter.show_losses({"loss": 0.12345})
        time.sleep(0.2)
    first, *others = [line.split(maxsplit=1)[1] for line in shown.getvalue().splitlines()]
    assert first == "started"
    assert len(others) > 1
    assert others[0].startswith("1,200 of 4,000, ")
    assert "/s, " in others[0]
    assert others[0].endswith(" s left, loss 0.123")


def test_on_a_terminal_a_stage_shows_a_bar_and_leaves_nothing() -> None:
    console = Console(file=(shown := io.StringIO()), width=150, force_terminal=True, no_color=True)
    reporter = Reporter("pretrain", console)
    with reporter.showing(seconds=0.01):
        reporter.expect(4000, 1000)
        reporter.show_losses({"loss": 0.12345})
        time.sleep(0.3)
    assert "1000/4000" in shown.getvalue()
    assert "loss 0.123" in shown.getvalue()
    assert "started" not in shown.getvalue()


def test_lines_are_in_the_log_as_soon_as_they_are_printed(tmp_path: Path) -> None:
    script = (
        "import time; from promptdiffuser.console import Reporter, open_console\n"
        "with Reporter('adapt', open_console()).showing(): time.sleep(60)"
    )
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-c", script], stdout=log)
    try:
        deadline = time.monotonic() + 50
        while "started" not in (tmp_path / "log").read_text():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
