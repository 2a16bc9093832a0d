"""Reports of sweeps: importance against what is known of a function, fronts by trying all, pages from real stores."""

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from promptdiffuser.cli.main import main
from promptdiffuser.errors import UserError
from promptdiffuser.reporting.importance import field_importance
from promptdiffuser.reporting.sweep_report import (
    Arguments,
    SweepTrials,
    conclusions,
    heat_table,
    load_sweep,
    write_sweep_report,
)
from promptdiffuser.statistics.pareto import on_front
from promptdiffuser.tracking.store import Tracker

WEIGHTS, SCHEDULES = (0.0, 1.0, 5.0, 10.0), ("vp", "cosine", "linear")
RETURN = "validation/return"
CONFIRMED = {"trial": "trial-0022", "seed": 9, "test/return": -24.5, "test/normalised": 0.9375}
CONFIRMED |= {"test/return_low": -26.0, "test/return_high": -23.0}


def made_up_trials() -> pd.DataFrame:
    """Return a grid of 4 weights x 3 schedules x 2 step counts whose best and worst cells are known."""
    rows = []
    for number, (weight, schedule, steps) in enumerate(itertools.product(WEIGHTS, SCHEDULES, (3, 5))):
        value = -40.0 + weight + 4.0 * SCHEDULES.index(schedule)
        stopped = weight == 0.0 and schedule == "vp"
        rows.append(
            {
                "trial": f"trial-{number:04d}",
                "guidance.weight": weight,
                "diffusion.schedule": schedule,
                "diffusion.steps": steps,
                RETURN: value,
                f"{RETURN}_low": value - 1.5,
                f"{RETURN}_high": value + 1.5,
                "time/seconds": 10.0 + number,
                "state": "stopped" if stopped else "finished",
                "run": f"{number:032x}",
            }
        )
    diverged = rows[-1] | {"trial": "trial-0024", RETURN: None, f"{RETURN}_low": None, f"{RETURN}_high": None}
    return pd.DataFrame([*rows, diverged | {"state": "diverged"}])


@pytest.fixture(scope="module")
def sweep_run(tracker: Callable[[str], Tracker], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Log a sweep with its table and its confirmation, and return the store and the run."""
    store, folder = tracker("swept"), tmp_path_factory.mktemp("sweep")
    run = store.run("guidance", "sweep", None, {"promptdiffuser.stage": "sweep"})
    made_up_trials().to_parquet(folder / "results.parquet")
    run.log_artifact(folder / "results.parquet")
    run.log_json("confirmed.json", CONFIRMED)
    return store.uri, run.run_id


def test_importance_of_an_additive_function() -> None:
    """On a full grid a field's share is the variance of its means; what has no effect, or never varied, has none."""
    trials = made_up_trials().assign(**{"guidance.batch_size": 32})
    fields = ["diffusion.steps", "guidance.batch_size", "diffusion.schedule", "guidance.weight"]
    found = field_importance(trials, fields, RETURN)
    known = trials.dropna(subset=[RETURN])
    for field in fields:
        share = known.groupby(field)[RETURN].mean().var(ddof=0) / known[RETURN].var(ddof=0)
        assert found.loc[field, "alone"] == pytest.approx(share, abs=0.1)
        assert found.loc[field, "total"] == pytest.approx(share, abs=0.1)
    assert found.index[0] == "guidance.weight"
    assert found.attrs["explained"] > 0.8


def test_importance_of_an_interaction() -> None:
    """Of a function that is large only where both fields are, neither explains much alone, and each half with both."""
    rng = np.random.default_rng(0)
    trials = pd.DataFrame(rng.uniform(-1, 1, size=(300, 3)), columns=["a.x", "a.y", "a.z"])
    found = field_importance(trials.assign(v=np.sign(trials["a.x"] * trials["a.y"])), ["a.x", "a.y", "a.z"], "v")
    assert (found["alone"] < 0.1).all()
    assert (found.loc[["a.x", "a.y"], "total"] > 0.4).all()
    assert found.loc["a.z", "total"] < 0.1
    with pytest.raises(UserError, match="needs 8 trials with a result, there are 7"):
        field_importance(trials.head(7).assign(v=1.0), ["a.x"], "v")


def test_importance_of_equal_results_and_without_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing explains what does not vary; without Optuna the error says what to install."""
    trials = made_up_trials()
    assert (field_importance(trials.assign(**{RETURN: 1.0}), ["guidance.weight"], RETURN) == 0.0).all(axis=None)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(
        UserError, match=r"importance needs optuna; install it by pip install 'promptdiffuser\[search\]'"
    ):
        field_importance(trials, ["guidance.weight"], RETURN)


def test_front_is_what_nothing_beats() -> None:
    """Compared with every other trial, ties in cost and in return among them."""
    rng = np.random.default_rng(1)
    trials = pd.DataFrame(rng.integers(0, 6, size=(40, 2)).astype(float), columns=["cost", "value"])
    trials.loc[3, "value"] = np.nan
    unique = trials.drop_duplicates()
    beaten = [
        (
            (unique["cost"] <= cost)
            & (unique["value"] >= value)
            & ((unique["cost"] < cost) | (unique["value"] > value))
        ).any()
        for cost, value in unique.to_numpy()
    ]
    expected = set(map(tuple, unique[~np.array(beaten) & unique["value"].notna()].to_numpy()))
    assert set(map(tuple, trials[on_front(trials, "cost", "value")].to_numpy())) == expected


def test_heat_table_holds_means_of_cells() -> None:
    """Two trials a cell; a field of many values is binned."""
    sweep = SweepTrials("made-up", made_up_trials())
    heat = heat_table(sweep, "guidance.weight", "diffusion.schedule", RETURN)
    assert heat.loc[10.0, "linear"] == pytest.approx(-22.0)
    assert heat.shape == (4, 3)
    many = sweep.trials.assign(**{"guidance.weight": np.linspace(0, 1, len(sweep.trials))})
    assert heat_table(SweepTrials("many", many), "guidance.weight", "diffusion.schedule", RETURN).shape == (6, 3)


def test_conclusions_name_the_best_and_what_is_not_told_apart() -> None:
    """Of two equal best trials the first is named, the other one's interval reaches it; nothing finished is refused."""
    sweep = SweepTrials("made-up", made_up_trials())
    counts, best, close, luck = conclusions(sweep, RETURN)
    assert counts == "25 trials: 22 finished, 2 stopped, 1 diverged."
    assert best == (
        "trial-0022 is best: validation/return -22.00 [-23.50, -20.50] with guidance.weight 10.0, diffusion.schedule "
        "linear, diffusion.steps 3."
    )
    assert "intervals of 1 of the 21 other finished trials reach its own or are unknown" in close
    assert luck.startswith("It is the highest of 25")
    with pytest.raises(UserError, match="no trial of made-up was trained to its end"):
        conclusions(SweepTrials("made-up", sweep.trials.assign(state="stopped")), RETURN)


def test_report_from_the_store_and_from_a_folder(sweep_run: tuple[str, str], tmp_path: Path) -> None:
    """The same tables both ways; from the store trials are links; the best two fields span the heat map."""
    uri, run_id = sweep_run
    made_up_trials().to_parquet(tmp_path / "results.parquet")
    for source in (run_id, str(tmp_path)):
        sweep = load_sweep(source, uri)
        text = write_sweep_report(sweep, uri, Arguments(source, output=tmp_path / source[-4:])).read_text()
        assert "guidance.weight × diffusion.schedule" in text
        confirmed = (
            "trial-0022 was confirmed once on the test tasks, with fresh seeds: test/return -24.50 [-26.00, -23.00]"
        )
        assert (confirmed in text) == (source == run_id)
        assert text.count("<img alt=") == 4
        assert (f"/runs/{22:032x}" in text) == (source == run_id)
        written = tmp_path / source[-4:]
        assert {path.stem for path in written.glob("*.parquet")} == {"trials", "importance", "heat"}
        assert pd.read_csv(written / "trials.csv")["trial"].iloc[0] == "trial-0022"
    chosen = Arguments(run_id, rows="diffusion.steps", output=tmp_path / "chosen")
    assert "diffusion.steps × guidance.weight" in write_sweep_report(sweep, uri, chosen).read_text()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "optuna", None)
        text = write_sweep_report(sweep, uri, Arguments(run_id, output=tmp_path / "without")).read_text()
    assert "Not computed: importance needs optuna" in text
    assert text.count("<img alt=") == 3
    few = SweepTrials("few", sweep.trials.tail(5))
    text = write_sweep_report(few, uri, Arguments(run_id, output=tmp_path / "few")).read_text()
    assert "Not computed: importance needs 8 trials" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nothing"], "nothing is no folder, and no run in"),
        ([".", "--rows", "x"], "has no results.parquet"),
        (["RUN", "--rows", "guidance.wait"], "--rows guidance.wait: the sweep has guidance.weight"),
        (["RUN", "--cost", "money"], "--cost money: the sweep has validation/return"),
    ],
)
def test_command_line_refuses_by_name(
    sweep_run: tuple[str, str],
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line and status 2."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sweep_run[0])
    given = [sweep_run[1] if option == "RUN" else option for option in options]
    with pytest.raises(SystemExit, match="2"):
        main(["sweep-report", *given, "--output", str(tmp_path / "out")])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
