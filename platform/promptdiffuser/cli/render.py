"""Film one episode of a demonstrator as MP4 or GIF.

    python jobs/render.py cheetah-vel --task 7 --quality expert --seed 0 --output episode.gif

Draws without a screen: EGL where it works (GPU or CPU), else OSMesa; MUJOCO_GL overrides. The film is also logged to
MLflow, as a run of its own in the experiment "render" or with an existing run (--run-id). MP4 needs the extra `render`.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from promptdiffuser.errors import UserError
from promptdiffuser.paths import local_path
from promptdiffuser.rollout.opengl import choose_backend

# Nothing else of the platform is imported here: it would import MuJoCo before MUJOCO_GL is chosen.

GIF_FRAMES_PER_SECOND = 25
"""Most that a GIF shows: its clock ticks in hundredths of a second, and viewers slow down fast pictures."""
MP4_FRAMES_PER_SECOND = 60
PIXEL_BLOCK = 16
"""Video codecs cut pictures into blocks of so many pixels."""


@dataclass(frozen=True)
class Render:
    """Command line of the job."""

    family: Annotated[str, tyro.conf.Positional]
    """Task family."""
    output: Path
    """Film to write: a name that ends in .mp4 or .gif."""
    task: int = 0
    """Task id."""
    quality: Literal["expert", "medium", "random"] = "expert"
    """Whose episode: the expert's, the medium policy's, or uniformly random actions."""
    seed: int = 0
    """Seed of the simulator's reset and of what is random in the policy."""
    size: int = 480
    """Width and height, pixels; a multiple of 16."""
    run_id: str | None = None
    """MLflow run that receives the film; without it a run of its own does."""

    def __post_init__(self) -> None:
        local_path(self.output)
        if self.output.suffix not in (".mp4", ".gif"):
            raise UserError(f"--output {self.output} must end in .mp4 or .gif")
        if self.size < PIXEL_BLOCK or self.size % PIXEL_BLOCK:
            raise UserError(f"--size must be a multiple of {PIXEL_BLOCK}, got {self.size}")
        if self.seed < 0:
            raise UserError(f"--seed must not be negative, got {self.seed}")


def write_film(path: Path, images: Iterable[Any], frames_per_second: float) -> None:
    """Write pictures (H, W, 3) as a film; the file appears once it is complete."""
    import imageio.v2 as imageio

    options: dict[str, Any]
    if path.suffix == ".gif":
        options = {"duration": 1000 / frames_per_second, "loop": 0}
    else:
        try:
            import imageio_ffmpeg  # noqa: F401  imageio's own error names another package
        except ImportError as error:
            raise UserError(
                "MP4 needs imageio-ffmpeg: `pip install 'promptdiffuser[render]'`; or write a .gif, which needs nothing"
            ) from error
        options = {"fps": frames_per_second, "macro_block_size": PIXEL_BLOCK}
    unfinished = path.with_name(f".writing-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with imageio.get_writer(unfinished, mode="I", **options) as writer:
            for image in images:
                writer.append_data(image)  # type: ignore[attr-defined]  # imageio declares its readers alone
        unfinished.rename(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def render(job: Render) -> dict[str, float]:
    """Write the film and return the episode's return, length and success."""
    from promptdiffuser.rollout.rendering import Camera, demonstration_policy
    from promptdiffuser.tasks import get_family

    family = get_family(job.family)
    policy = demonstration_policy(family, job.quality)
    camera = Camera(family, job.task, job.size)
    fastest = GIF_FRAMES_PER_SECOND if job.output.suffix == ".gif" else MP4_FRAMES_PER_SECOND
    every = ceil(camera.frames_per_second / fastest)
    result = {"return": 0.0, "length": 0.0, "success": 0.0}

    def images() -> Iterable[Any]:
        for frame in camera.film(policy, job.seed, every):
            result["return"] += frame.reward
            result["length"] += frame.steps
            result["success"] = max(result["success"], float(frame.success))
            yield frame.image

    try:
        write_film(job.output, images(), camera.frames_per_second / every)
    finally:
        camera.close()
    return result if family.has_success else {key: result[key] for key in ("return", "length")}


def main(job: Render) -> None:
    """Run the job."""
    choose_backend()
    from promptdiffuser.keys import fingerprint
    from promptdiffuser.tracking.names import COMMAND_TAG, FAMILY_TAG, SEED_TAG, STAGE_TAG, TASK_TAG
    from promptdiffuser.tracking.provenance import typed_command
    from promptdiffuser.tracking.store import RunLog, Tracker, connect, prepare, resolve_uri

    # The store is looked at first: a film that cannot be logged should fail before it is made.
    uri = resolve_uri()
    settings = {key: str(value) for key, value in dataclasses.asdict(job).items() if key not in ("output", "run_id")}
    if job.run_id is None:
        tracker = prepare(uri, "render")
    else:
        connect(uri)
        if not Tracker(uri, "", {}).has_run(job.run_id):
            raise UserError(f"no MLflow run {job.run_id} in {uri}; see `make ui` for run ids")
    result = render(job)
    if job.run_id is None:
        tags = {
            STAGE_TAG: "render",
            FAMILY_TAG: job.family,
            SEED_TAG: str(job.seed),
            TASK_TAG: str(job.task),
            COMMAND_TAG: typed_command(),
        }
        name = f"{job.family}-task-{job.task}-{job.quality}-seed-{job.seed}"
        run = tracker.run(name, fingerprint(["render", settings]), None, tags)
        run.log_params(settings)
        run.log_metrics({f"episode/{key}": value for key, value in result.items()})
        run.log_artifact(job.output)
        run.finish()
    else:
        run = RunLog(uri, job.run_id)
        run.log_artifact(job.output, "renders")
    print(", ".join(f"{key} {value:.2f}" for key, value in result.items()))
    print(f"{job.output}  (MLflow run {run.run_id})")
