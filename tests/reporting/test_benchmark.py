"""The tables and the page of a benchmark, against scipy and against made-up returns whose answer is known."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from promptdiffuser.errors import UserError
from promptdiffuser.evaluation.scores import reference_scores
from promptdiffuser.reporting.benchmark import CELL, by_cell, cell_return, table, write_tables
from promptdiffuser.reporting.benchmark_page import conclusions, write_page
from promptdiffuser.tasks import get_family

FAMILY = get_family("cheetah-vel")
FLOORS = reference_scores(FAMILY)
SEEDS, TASKS, PROMPTS = (1, 2, 3, 4), (2, 7), 3
GAIN = {"plain": 0.0, "better": 2.0, "worse": -5.0}


@pytest.fixture
def episodes() -> pd.DataFrame:
    """Every method's return is the seed's and the prompt's own plus its gain, so that differences are exact."""
    noise = np.random.default_rng(0).normal(size=(len(SEEDS), len(TASKS), PROMPTS))
    rows = [
        {
            "arm": arm,
            "few_shot_episodes": size,
            "method": method,
            "training_seed": seed,
            "task": task,
            "prompt": prompt,
            "prompt_source": prompt,
            "episode": 0,
            "seed": 100 * seed + prompt,
            "start": 100 * seed + prompt,
            "return": gain + size + 10 * (arm == "b") + noise[s, j, prompt],
        }
        for arm in ("a", "b")
        for size in (1, 5)
        for method, gain in GAIN.items()
        for s, seed in enumerate(SEEDS)
        for j, task in enumerate(TASKS)
        for prompt in range(PROMPTS)
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def costs(episodes: pd.DataFrame) -> pd.DataFrame:
    cells = episodes[["arm", "few_shot_episodes", "method", "training_seed"]].drop_duplicates()
    of_all = {"normalised": 0.9, "failed_share": 0.1, "gradient_steps": 60, "environment_episodes": 0}
    cells = cells.assign(**of_all, memory_gib=0.5, seconds_adapt=cells["training_seed"] * 1.0)
    return cells.assign(tunable_parameters=np.where(cells["method"] == "better", 220, 0))


def test_the_interval_is_students_over_seeds(episodes: pd.DataFrame) -> None:
    own = by_cell(episodes)["a", 1, "better"]
    of_seed = own.groupby("training_seed")["return"].mean()
    found, expected = cell_return(own), stats.ttest_1samp(of_seed, 0).confidence_interval(0.95)
    assert found.estimate == pytest.approx(of_seed.mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    for few in (1, 2):
        assert not cell_return(own[own["training_seed"] <= few]).is_known


def test_a_seeds_return_weighs_tasks_and_prompts_alike(episodes: pd.DataFrame) -> None:
    # Episodes more of one prompt, and a diverged one, change nothing.
    once_more = pd.concat([episodes, episodes[episodes["prompt"] == 0].assign(episode=1)])
    diverged = episodes[episodes["prompt"] == 1].assign(episode=2, **{"return": np.nan})
    whole = pd.concat([once_more.assign(diverged=False), diverged.assign(diverged=True)], ignore_index=True)
    for cell, own in by_cell(whole).items():
        assert vars(cell_return(own)) == pytest.approx(vars(cell_return(by_cell(episodes)[cell])))


@pytest.mark.parametrize(("reference_arm", "shift"), [(None, 0.0), ("a", 10.0)], ids=["within-arms", "across-arms"])
def test_differences_pair_equal_seeds(
    episodes: pd.DataFrame, costs: pd.DataFrame, reference_arm: str | None, shift: float
) -> None:
    found = table(episodes, costs, "plain", reference_arm).set_index(["arm", "few_shot_episodes", "method"])
    assert len(found) == 12
    for (arm, _, method), row in found.iterrows():
        if method == "plain" and arm == (reference_arm or arm):
            assert np.isnan(row["difference"])
            continue
        expected = GAIN[method] + (shift if arm == "b" else 0.0)
        assert row["difference"] == pytest.approx(expected)
    assert (found["return_high"] > found["return"]).all()
    assert found.loc[("a", 1, "better"), "tunable"] == 220
    assert found.loc[("a", 1, "better"), "adapt_s"] == 2.5
    assert found.loc["a"].loc[1].index.tolist() == ["better", "plain", "worse"], "the best comes first"


def test_a_reference_without_episodes_is_refused(episodes: pd.DataFrame, costs: pd.DataFrame) -> None:
    with pytest.raises(UserError, match="no episodes of the reference method 'other'"):
        table(episodes, costs, "other")


def test_tables_are_written_as_csv_and_parquet(episodes: pd.DataFrame, costs: pd.DataFrame, tmp_path: Path) -> None:
    episodes.to_parquet(tmp_path / "episodes.parquet")
    (tmp_path / "costs.json").write_text(json.dumps(costs.to_dict("records")))
    files = write_tables(tmp_path, "plain")
    assert [path.name for path in files] == ["table.csv", "table.parquet", "per_task.csv", "per_task.parquet"]
    for name in ("table", "per_task"):
        pd.testing.assert_frame_equal(
            pd.read_csv(tmp_path / f"{name}.csv"), pd.read_parquet(tmp_path / f"{name}.parquet")
        )
    of_task = pd.read_csv(tmp_path / "per_task.csv").set_index(["arm", "few_shot_episodes", "method"])
    means = episodes.groupby(["arm", "few_shot_episodes", "method", "task"])["return"].mean()
    assert of_task.loc[("b", 5, "worse"), "7"] == pytest.approx(means["b", 5, "worse", 7])


def written_page(episodes: pd.DataFrame, costs: pd.DataFrame, folder: Path) -> str:
    episodes.to_parquet(folder / "episodes.parquet")
    (folder / "costs.json").write_text(json.dumps(costs.to_dict("records")))
    write_tables(folder, "plain")
    return write_page(folder, "bench <family>", {"Dataset": "0123abcd"}, "plain", FAMILY).read_text(encoding="utf-8")


def test_the_page_holds_every_row_figure_and_fact(episodes: pd.DataFrame, costs: pd.DataFrame, tmp_path: Path) -> None:
    text = written_page(episodes, costs, tmp_path)
    assert "<h1>bench &lt;family&gt;</h1>" in text
    assert "0123abcd" in text
    # Two arms of three methods: rows of two sizes of the few-shot set, then of the tasks, both sizes again.
    assert text.count("a better</th>") == 4
    for section in ("conclusions", "sizes", "cost-1", "returns-1", "cost-5", "returns-5", "tasks", "facts"):
        assert f'<section id="{section}"' in text
    assert text.count("data:image/svg+xml;base64") == 5
    # A single seed has no interval, and the page says so.
    alone = written_page(episodes[episodes["training_seed"] == 1], costs[costs["training_seed"] == 1], tmp_path)
    assert "over one seed" in alone
    assert "nan" not in alone.split("<script>")[0].replace("data:image", "")


def test_the_conclusions_name_who_is_level_with_the_best_and_cheap(episodes: pd.DataFrame, costs: pd.DataFrame) -> None:
    of_size = (episodes["arm"] == "a") & (episodes["few_shot_episodes"] == 5)
    # Another method is as good as the best but for noise of its own, and so are the differences from the reference.
    rng = np.random.default_rng(1)
    frame = episodes[of_size].copy()
    frame["return"] += 0.05 * rng.normal(size=len(frame))
    noise = rng.normal(size=int((frame["method"] == "better").sum()))
    level = frame[frame["method"] == "better"].assign(method="level")
    level["return"] += noise - noise.mean() - 0.01
    cost = costs[(costs["arm"] == "a") & (costs["few_shot_episodes"] == 5)]
    cheap = cost[cost["method"] == "better"].assign(method="level", seconds_adapt=0.25)
    both, paid = pd.concat([frame, level], ignore_index=True), pd.concat([cost, cheap])
    rows = table(both, paid, "plain")
    found = conclusions(rows, both, FLOORS)
    assert found[0].startswith("Of 4 methods, better has the highest mean return:")
    assert found[1].startswith("On equal seeds 1 of the other 3 are not significantly worse: level. Of these")
    assert "level is the cheapest, 0.2 s for all tasks (the best takes 2.5 s); its return could be up to" in found[1]
    assert found[2].startswith("Compared with the reference, 3 in all: 2 better than it, 1 worse")
    assert (rows["p_value"].dropna() < 0.05).all()
    # Without it the best is better than all.
    found = conclusions(table(frame, cost, "plain"), frame, FLOORS)
    assert found[1] == "On equal seeds it is better than all 2 others."
    # Two seeds are too few, whatever the differences.
    few = frame[frame["training_seed"] < 3]
    found = conclusions(table(few, cost, "plain"), few, FLOORS)
    assert found[1] == "Seeds are too few to say which others it is better than (2 of 3)."
    assert found[2] == "Compared with the reference, 2 in all: 2 with too few seeds for a verdict."


def test_no_significant_difference_is_told_with_its_worst_case(episodes: pd.DataFrame, costs: pd.DataFrame) -> None:
    frame = episodes[(episodes["arm"] == "a") & (episodes["few_shot_episodes"] == 5)].copy()
    frame["return"] += 20 * np.random.default_rng(1).normal(size=len(frame))
    cells = costs[CELL].eq(["a", 5, "plain"]).all(axis=1) | costs["method"].ne("plain")
    rows = table(frame, costs[cells], "plain")
    undecided = rows[rows["verdict"] == "undecided"]
    (sentence,) = [
        text for text in conclusions(rows, frame, FLOORS) if text.startswith("No significant difference does not")
    ]
    assert f"{-undecided['difference_low'].min():.1f} below the reference" in sentence
    assert f"{undecided['difference_high'].max():.1f} above the reference" in sentence


def test_a_task_whose_episodes_all_diverged_costs_no_other_number(episodes: pd.DataFrame, costs: pd.DataFrame) -> None:
    """The method has no difference and no mean; the others keep theirs, and the page is written."""
    frame = episodes[(episodes["arm"] == "a") & (episodes["few_shot_episodes"] == 5)].assign(diverged=False)
    lost = (frame["method"] == "worse") & (frame["training_seed"] == 2) & (frame["task"] == 7)
    frame = frame.assign(**{"diverged": lost, "return": frame["return"].mask(lost)})
    rows = table(frame, costs, "plain").set_index("method")
    assert rows.loc["worse", "verdict"] == "no pairs"
    assert np.isnan(rows.loc["worse", "return"])
    assert rows.loc["better", "difference"] == pytest.approx(2.0)
    text = " ".join(conclusions(rows.reset_index(), frame, FLOORS))
    assert "1 without pairs on every task and seed" in text
