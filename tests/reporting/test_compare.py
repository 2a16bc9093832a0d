"""Comparisons of real runs in a real store say what the episodes say, and refuse what cannot be compared."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from promptdiffuser.cli.main import main
from promptdiffuser.errors import UserError
from promptdiffuser.reporting.compare import compare
from promptdiffuser.reporting.compare_page import write_comparison
from promptdiffuser.reporting.mlflow_reader import load_experiment, scored_episodes
from promptdiffuser.statistics.paired import paired_difference
from promptdiffuser.tracking.store import Tracker
from tests.reporting.conftest import log_experiment

GAIN = 2.5
NAME = "compared"
METHODS = {"prompt-dt": -40.0, "prompt-diffuser": -38.0}


@dataclass(frozen=True)
class Runs:
    """Ids by method of experiments with two guidance weights, two seeds each, and of incomparable ones."""

    uri: str
    weak: list[dict[str, str]]
    strong: list[dict[str, str]]
    other: dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def runs(tracker: Callable[[str], Tracker], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Log them all."""
    store, folder = tracker(NAME), tmp_path_factory.mktemp(NAME)
    better = METHODS | {"prompt-diffuser": METHODS["prompt-diffuser"] + GAIN}

    def log(weight: float, seed: int, means: dict[str, float], **changed: object) -> dict[str, str]:
        settings = {"guidance": {"weight": weight}, "seed": seed, "methods": list(means)}
        return log_experiment(store, folder, settings, means, **changed)

    return Runs(
        store.uri,
        weak=[log(5.0, seed, METHODS) for seed in (0, 1)],
        strong=[log(10.0, seed, better) for seed in (0, 1)],
        other={
            "dataset digest": log(10.0, 0, better, summary={"dataset_digest": "another"}),
            "physics": log(10.0, 0, better, mujoco="4.0.0"),
            "protocol: prompts": log(10.0, 0, better, summary={"protocol": {"prompts": 4}}),
        },
    )


def test_experiments_are_compared_method_by_method(runs: Runs) -> None:
    """The same noise makes the gain exact; what differs is one setting; costs come from the methods' runs too."""
    comparison = compare(runs.uri, [runs.weak[0]["all"], runs.strong[0]["all"]])
    assert comparison.settings.to_dict("index") == {"guidance.weight": {"A": "5.0", "B": "10.0"}}
    pairs = comparison.differences.set_index("method")
    assert pairs.loc["prompt-diffuser", "difference"] == pytest.approx(GAIN)
    assert comparison.verdicts == [
        "prompt-dt: B and A have equal returns on all 3 tasks",
        f"prompt-diffuser: B minus A is +{GAIN:.2f} (interval not known) over 6 different prompts per task, better on "
        "3 of 3 tasks; not enough trainings for a verdict (1 of 3); "
        f"probability of improvement {pairs.loc['prompt-diffuser', 'probability_of_improvement']:.2f} "
        f"[{pairs.loc['prompt-diffuser', 'probability_of_improvement_low']:.2f}, "
        f"{pairs.loc['prompt-diffuser', 'probability_of_improvement_high']:.2f}]",
    ]
    turned = compare(runs.uri, [runs.strong[0]["all"], runs.weak[0]["all"]])
    assert turned.verdicts[1].startswith("prompt-diffuser: B minus A is -2.50")
    costs = comparison.costs.loc["A", "prompt-diffuser"]
    assert (costs["time/pretrain_s"], costs["time/diffuser_s"], costs["cost/gradient_steps"]) == (60.0, 60.0, 300.0)
    assert pd.isna(comparison.costs.loc[("A", "prompt-dt"), "time/diffuser_s"])
    assert comparison.curves.groupby("side").size().to_dict() == {"A": 10, "B": 10}


def test_two_methods_of_one_experiment(runs: Runs) -> None:
    """Their runs are enough; the numbers are those of the paired difference of the experiment's episodes."""
    ids = runs.weak[0]
    comparison = compare(runs.uri, [ids["prompt-dt"], ids["prompt-diffuser"]])
    episodes = scored_episodes(load_experiment(runs.uri, NAME, ids["all"]))
    expected = paired_difference(episodes, "prompt-diffuser", "prompt-dt")
    [row] = comparison.differences.to_dict("records")
    assert (row["difference"], row["difference_low"], row["difference_high"]) == (
        expected.on_these_tasks.estimate, expected.on_these_tasks.low, expected.on_these_tasks.high
    )  # fmt: skip
    assert comparison.settings.loc["method.name"].to_list() == ["prompt-dt", "prompt-diffuser"]
    assert set(comparison.sides[0].curves["run"]) == {"pretrain"}


def test_seeds_are_trainings_of_one_side(runs: Runs) -> None:
    """A filter finds four runs of two configurations; their trainings are paired, two are too few for a verdict."""
    found = "tags.`promptdiffuser.method` = 'prompt-diffuser' and tags.`promptdiffuser.stage` = 'method'"
    ids = [ids["prompt-diffuser"] for ids in (*runs.weak, *runs.strong)]
    comparison = compare(runs.uri, ids)
    assert comparison.returns["trainings"].to_list() == [2, 2]
    assert comparison.settings.index.to_list() == ["guidance.weight"]
    assert comparison.differences["over"].to_list() == ["2 trainings"]
    assert comparison.differences["verdict"].to_list() == ["too few trainings"]
    assert comparison.differences["difference"].item() == pytest.approx(GAIN)
    # The filter finds runs of other physics as well.
    with pytest.raises(UserError, match="physics differs"):
        compare(runs.uri, [found])


def test_seed_draw_start_states_and_dataset_are_one_replicate(
    tracker: Callable[[str], Tracker], tmp_path: Path
) -> None:
    """Trainings that differ in all of them are one side; those of two sides have to agree in each."""
    store = tracker("replicates")

    def log(weight: float, seed: int, digest: str) -> str:
        few_shot = {"episodes": 5, "draw": seed}
        settings = {
            "guidance": {"weight": weight},
            "seed": seed,
            "evaluation": {"seed": seed, "few_shot": few_shot},
            "collection": {"seed": seed},
        }
        summary = {"dataset_digest": digest, "protocol": {"prompts": 6, "seed": seed, "few_shot": few_shot}}
        return log_experiment(store, tmp_path, settings, METHODS, summary=summary)["prompt-diffuser"]

    weak, strong = ([log(weight, seed, f"digest {seed}") for seed in (1, 2, 3)] for weight in (5.0, 10.0))
    comparison = compare(store.uri, [*weak, *reversed(strong)])
    assert comparison.returns["trainings"].to_list() == [3, 3]
    assert comparison.settings.index.to_list() == ["guidance.weight"]
    assert comparison.verdicts == ["prompt-diffuser: B and A have equal returns on all 3 tasks"]
    other = log(10.0, 4, "digest 4"), log(10.0, 5, "digest 5")
    with pytest.raises(UserError, match="no episodes of 'B' and 'A' agree in training_seed"):
        compare(store.uri, [*weak, *other])
    recollected = [log(20.0, 1, "digest 1"), log(20.0, 2, "another digest")]
    with pytest.raises(UserError, match="dataset digest of training 2 differs: A digest 2, B another digest"):
        compare(store.uri, [*weak, *recollected])


@pytest.mark.parametrize("condition", ["dataset digest", "physics", "protocol: prompts"])
def test_other_conditions_are_refused_or_flagged(runs: Runs, condition: str) -> None:
    """The error names what differs and both values; forced, the same text is a warning."""
    selections = [runs.weak[0]["prompt-diffuser"], runs.other[condition]["prompt-diffuser"]]
    with pytest.raises(UserError, match=f"not comparable, {condition} differs: A .*, B .*--force"):
        compare(runs.uri, selections)
    forced = compare(runs.uri, selections, force=True)
    assert any(warning.startswith(f"not comparable, {condition} differs") for warning in forced.warnings)
    assert ("mujoco" in forced.settings.index) == (condition == "physics")
    assert forced.differences["difference"].item() == pytest.approx(GAIN)


def test_unusable_selections_are_refused_by_name(runs: Runs, tracker: Callable[[str], Tracker]) -> None:
    """A run that is missing, alone, or a trial; a filter that finds nothing or is none; no method in common."""
    first = runs.weak[0]
    trial = tracker(NAME).run("trial", "a trial", None, {"promptdiffuser.stage": "trial"})
    for selections, message in (
        (["0" * 32], "no run '0"),
        ([first["all"]], "needs two configurations, found A = "),
        ([first["all"], trial.run_id], r"\(trial, trial\) is not part of an experiment"),
        (["params.seed = 'none'"], "finds no run"),
        (["not a filter"], "neither a run id nor a filter"),
    ):
        with pytest.raises(UserError, match=message):
            compare(runs.uri, selections)


def test_command_line_writes_page_and_tables(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Text on the terminal, index.html with links to the runs, every table in two formats that read back equal."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", runs.uri)
    ids = [runs.weak[0]["all"], runs.strong[0]["all"]]
    with pytest.raises(SystemExit, match="2"):
        main(["compare", ids[0], "--output", str(tmp_path / "none")])
    assert capsys.readouterr().err.startswith("error: a comparison needs two configurations")
    main(["compare", *ids, "--output", str(tmp_path)])
    assert "prompt-diffuser: B minus A is +2.50" in capsys.readouterr().out
    text = (tmp_path / "index.html").read_text()
    assert all(f"/runs/{run}" in text for run in ids)
    names = {"settings", "returns", "differences", "tasks", "costs", "curves"}
    assert {path.stem for path in tmp_path.glob("*.csv")} == names
    for name in names:
        one, other = pd.read_csv(tmp_path / f"{name}.csv"), pd.read_parquet(tmp_path / f"{name}.parquet")
        assert list(one.columns) == list(other.columns)
        assert len(one) == len(other) > 0


def test_page_holds_warnings_escaped(runs: Runs, tmp_path: Path) -> None:
    """What makes the runs incomparable is said where the verdict is."""
    selections = [runs.weak[0]["all"], runs.other["dataset digest"]["all"]]
    comparison = compare(runs.uri, selections, force=True)
    text = write_comparison(comparison, runs.uri, tmp_path).read_text()
    assert '<p class="warning">not comparable, dataset digest differs: A synthetic-digest, B another</p>' in text
