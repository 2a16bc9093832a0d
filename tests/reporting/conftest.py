"""A small experiment in a real MLflow store. Every number in it is made up here; none was measured."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from promptdiffuser.evaluation.scores import reference_scores
from promptdiffuser.evaluation.summary import SCHEMA_VERSION, EvaluationSummary, MethodSummary, TargetSummary
from promptdiffuser.reporting.benchmark import COSTS
from promptdiffuser.reporting.benchmark import write_tables as write_benchmark_tables
from promptdiffuser.reporting.benchmark_page import write_page
from promptdiffuser.reporting.compare import compare
from promptdiffuser.reporting.compare_page import write_comparison
from promptdiffuser.reporting.report import write_report
from promptdiffuser.reporting.sweep_report import Arguments, SweepTrials, write_sweep_report
from promptdiffuser.tasks import get_family
from promptdiffuser.tracking.store import RunLog, Tracker, prepare

TASKS = (2, 7, 15)
LABELS = {"2": "0.225 m/s", "7": "0.6 m/s", "15": "1.2 m/s"}
MEANS = {"prompt-dt": -40.0, "other-task-prompt": -60.0, "prompt-diffuser": -30.0, "prompt-diffuser-context": -30.5}
STEPS, STATE_ACTION_REWARD = 5, 27
PROMPTS = 6
INSIDE = {
    "prompt-diffuser": {"diversity": 0.75, "chance": None, "by_return": {"true": [1.0, 2.0, 4.0]}},
    "prompt-diffuser-context": {"diversity": 0.5, "by_return": {"true": [2.0, 3.0, 3.5]}},
}


@dataclass(frozen=True)
class SyntheticExperiment:
    """Where the synthetic experiment lies, and the summary that its report has to show."""

    uri: str
    name: str
    parent_run_id: str
    summary: EvaluationSummary


def make_episodes(rng: np.random.Generator, means: Mapping[str, float] = MEANS) -> pd.DataFrame:
    """Return 3 tasks x 6 prompts x 2 episodes for each method, around its made-up mean; no prompt is a copy."""
    rows = [
        (method, task, prompt, episode, 2 * prompt + episode, mean - task + 3.0 * rng.normal(), 200, False, 0.1)
        for method, mean in means.items()
        for task in TASKS
        for prompt in range(PROMPTS)
        for episode in range(2)
    ]
    columns = ["method", "task", "prompt", "episode", "seed", "return", "length", "success", "seconds"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.assign(prompt_source=frame["prompt"], start=frame["seed"])


def make_prompts(rng: np.random.Generator) -> pd.DataFrame:
    """Return 6 prompts a task for the expert and each method, spread around a centre of the task."""
    centres = {task: rng.normal(size=STEPS * STATE_ACTION_REWARD) for task in TASKS}
    rows = [
        (method, task, prompt, (centres[task] + 0.3 * rng.normal(size=len(centres[task]))).astype(np.float32))
        for method in ("expert", *MEANS)
        for task in TASKS
        for prompt in range(6)
    ]
    return pd.DataFrame(rows, columns=["method", "task", "prompt", "features"])


def make_summary(name: str, episodes: pd.DataFrame) -> EvaluationSummary:
    """Return a summary in the form that the evaluate stage writes."""
    methods = dict[str, MethodSummary]()
    for rank, (method, own) in enumerate(episodes.groupby("method")):
        mean = float(own["return"].mean())
        target: TargetSummary = {
            "mean": mean,
            "ci_low": mean - 2.5,
            "ci_high": mean + 2.25,
            "normalised": 0.5 + 0.1 * rank,
            "diverged": 0,
        }
        methods[str(method)] = {
            **target,
            "unit": "prompt_source",
            "units": PROMPTS,
            "per_task": {str(task): float(value) for task, value in own.groupby("task")["return"].mean().items()},
            "failed_share": 0.125 * rank,
            "success": 0.0,
            "seconds": 12.0,
            "seconds_adapt": 1.25 * rank,
            "tunable_parameters": 1234 * rank,
            "gradient_steps": 0,
            "environment_episodes": 0,
            "memory_gib": 0.5,
            "summary": f"what {method} does",
            "targets": {"0": target},
        }
    return {
        "schema_version": SCHEMA_VERSION,
        "experiment": name,
        "family": "cheetah-vel",
        "test_tasks": list(TASKS),
        "tasks": LABELS,
        "caution": "",
        "has_success": False,
        "dataset_digest": "synthetic-digest",
        "protocol": {
            "prompts": PROMPTS,
            "episodes_per_prompt": 2,
            "few_shot": {"episodes": 5, "quality": "mixed", "returns": "high"},
        },
        "references": reference_scores(get_family("cheetah-vel")),
        "command": "python jobs/pipeline.py <synthetic> --seed 7",
        "seed": 7,
        "methods": methods,
    }


def log_training(tracker: Tracker, parent: RunLog) -> None:
    """Log the two training stages with smooth made-up curves."""
    steps = range(0, 3000, 10)
    keys = {
        "pretrain": {"train/loss": 1.0},
        "train-diffuser": {"train/loss": 2.0, "train/loss_dm": 0.5, "train/loss_dt": 0.2},
    }
    for stage, scales in keys.items():
        log = tracker.run(stage, f"{parent.run_id}-{stage}", parent, {"promptdiffuser.stage": stage})
        noise = np.random.default_rng(1)
        curves = {key: scale * (0.01 + np.exp(-np.arange(300) / 40.0)) for key, scale in scales.items()}
        log.log_history(
            [{"step": s, **{k: c[i] * noise.lognormal(0, 0.1) for k, c in curves.items()}} for i, s in enumerate(steps)]
        )
        if stage == "train-diffuser":
            log.log_json("prompts_inside.json", INSIDE)
        log.finish()


@pytest.fixture(scope="session")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tracker]:
    """Return a function that opens an experiment of one shared store."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"
    return lambda name: prepare(uri, name)


@pytest.fixture(scope="session")
def experiment(tracker: Callable[[str], Tracker], tmp_path_factory: pytest.TempPathFactory) -> SyntheticExperiment:
    """Return a complete synthetic experiment."""
    name = "synthetic <&>"
    store, folder, rng = tracker(name), tmp_path_factory.mktemp("results"), np.random.default_rng(0)
    parent = store.run("experiment", "all", None, {"promptdiffuser.stage": "experiment", "torch": "2.13"})
    parent.log_params({"backbone": {"layers": 3}, "seed": 7})
    log_training(store, parent)
    evaluate = store.run("evaluate", "evaluate", parent, {"promptdiffuser.stage": "evaluate"})
    episodes = make_episodes(rng)
    summary = make_summary(name, episodes)
    write_results(evaluate, folder, episodes, make_prompts(rng), summary)
    evaluate.finish()
    parent.finish()
    return SyntheticExperiment(store.uri, name, parent.run_id, summary)


@pytest.fixture(scope="session")
def report(experiment: SyntheticExperiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the report of the synthetic experiment, into a folder that is not there yet."""
    return write_report(experiment.uri, experiment.name, tmp_path_factory.mktemp("report") / "new" / "report.html")


def log_experiment(
    store: Tracker,
    folder: Path,
    settings: Mapping[str, Any],
    means: Mapping[str, float],
    summary: Mapping[str, Any] | None = None,
    mujoco: str = "3.3.0",
) -> dict[str, str]:
    """Log an evaluated experiment with a run a method below its evaluate run; return the ids by method, and "all".

    Args:
        store: Experiment of the store.
        folder: Where its files are written first.
        settings: Parameters of the experiment, with its seed.
        means: Mean return by method.
        summary: Entries of summary.json that are not as always.
        mujoco: Version that it ran with.
    """
    identity = hashlib.sha256(repr((settings, summary, mujoco)).encode()).hexdigest()
    tags = {"promptdiffuser.stage": "experiment", "promptdiffuser.version.mujoco": mujoco}
    parent = store.run("tried", identity, None, tags)
    parent.log_params(settings)
    for stage, name in (("pretrain", "pretrain"), ("train-diffuser", "diffuser-published")):
        log = store.run(name, f"{identity}-{stage}", parent, {"promptdiffuser.stage": stage})
        log.log_history([{"step": step, "train/loss": 1 / step} for step in range(1, 6)])
        log.log_metrics({"time/stage_s": 60.0})
        log.finish()
    evaluate = store.run("evaluate", f"{identity}-evaluate", parent, {"promptdiffuser.stage": "evaluate"})
    rng = np.random.default_rng(int(settings["seed"]))
    episodes = make_episodes(rng, means)
    written = make_summary(folder.name, episodes) | dict(summary or {})
    write_results(evaluate, folder, episodes, make_prompts(rng), written)
    ids = {"all": parent.run_id}
    for number, method in enumerate(means):
        tags = {"promptdiffuser.stage": "method", "promptdiffuser.method": method}
        log = store.run(method, f"{identity}-method-{number}", evaluate, tags)
        diffuser = "published" if method == "prompt-diffuser" else None
        log.log_params({"method": {"name": method, "backbone": "prompt-dt", "diffuser": diffuser}})
        log.log_metrics({"test/return": written["methods"][method]["mean"], "cost/gradient_steps": 300.0})
        log.finish()
        ids[method] = log.run_id
    evaluate.finish()
    parent.finish()
    return ids


HOSTILE_KEY = "key with <b> and &"
"""A name of a field, which holds no slash."""
HOSTILE = """'"><script>x()</script>&"""
"""A name that ends an attribute and runs a script wherever it is not escaped."""


@pytest.fixture(scope="session")
def hostile_pages(tracker: Callable[[str], Tracker], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write every page with names of experiments, runs, methods, tasks, fields and trials that hold markup."""
    folder = tmp_path_factory.mktemp("hostile")
    store, method, family = tracker(f"named {HOSTILE}"), HOSTILE, get_family("cheetah-vel")
    means = {"prompt-dt": -40.0, method: -38.0}
    summary = {"tasks": {str(task): HOSTILE for task in TASKS}, "command": HOSTILE, "caution": HOSTILE}
    settings: list[dict[str, Any]] = [{"weight": f"{HOSTILE} {weight}", "seed": 0} for weight in (1, 2)]
    ids = [log_experiment(store, folder, each, means, summary)["all"] for each in settings]
    report = write_report(store.uri, f"named {HOSTILE}", folder / "report.html", ids[0])
    comparison = write_comparison(compare(store.uri, ids), store.uri, folder / "comparison")

    episodes = make_episodes(np.random.default_rng(0), means)
    episodes = pd.concat(
        [
            episodes.assign(arm=HOSTILE, few_shot_episodes=size, training_seed=seed)
            for size in (1, 5)
            for seed in (1, 2, 3)
        ]
    )
    episodes.to_parquet(folder / "episodes.parquet")
    cells = episodes[["arm", "few_shot_episodes", "method", "training_seed"]].drop_duplicates()
    costs = dict.fromkeys(("normalised", "failed_share", *COSTS), 0.5)
    (folder / "costs.json").write_text(cells.assign(**costs).to_json(orient="records"))
    write_benchmark_tables(folder, method)
    benchmark = write_page(folder, f"benchmark {HOSTILE}", {HOSTILE: HOSTILE}, method, family)

    values = np.arange(12.0)
    trials = pd.DataFrame({"trial": [f"{HOSTILE} {value:g}" for value in values], HOSTILE_KEY: values % 4})
    trials = trials.assign(**{"other": [HOSTILE, "plain"] * 6, "validation/return": values, "time/seconds": values + 1})
    sweep = SweepTrials(f"sweep {HOSTILE}", trials.assign(state="finished", run=HOSTILE), {}, "1")
    swept = write_sweep_report(sweep, store.uri, Arguments("", output=folder / "sweep"))
    return {"report": report, "comparison": comparison, "benchmark": benchmark, "sweep": swept}


def write_results(
    log: RunLog, folder: Path, episodes: pd.DataFrame, prompts: pd.DataFrame, summary: EvaluationSummary
) -> None:
    """Log the three artifacts of an evaluate run."""
    for name, frame in (("episodes", episodes), ("prompts", prompts)):
        frame.to_parquet(folder / f"{name}.parquet")
        log.log_artifact(folder / f"{name}.parquet")
    log.log_json("summary.json", summary)
