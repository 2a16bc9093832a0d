"""Where the models of an MLflow run lie, for those who use them."""

from pathlib import Path

from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from promptdiffuser.errors import UserError
from promptdiffuser.tracking.addresses import shown
from promptdiffuser.tracking.names import FOLDER_TAG, STAGE_TAG
from promptdiffuser.tracking.store import connect, resolve_uri


def adaptations_of_run(run_id: str) -> Path:
    """Return the folder that holds a method's policies of all target tasks.

    Raises:
        UserError: The run is not in the store or no method's, or its folder is not on this machine.
    """
    return _folder(_run(run_id, "method"))


def diffuser_of_run(run_id: str) -> Path:
    """Return the folder of the multi-task training of a diffuser.

    Raises:
        UserError: The run is not in the store or no such training's, or its folder is not on this machine.
    """
    return _folder(_run(run_id, "train-diffuser"))


def _run(run_id: str, stage: str) -> Run:
    try:
        run = connect(resolve_uri()).get_run(run_id)
    except MlflowException as error:
        raise UserError(
            f"no run {run_id} in {shown(resolve_uri())}; set MLFLOW_TRACKING_URI to the store that has it"
        ) from error
    found = run.data.tags.get(STAGE_TAG, "no stage")
    if found != stage:
        raise UserError(f"run {run_id} ({run.info.run_name}) belongs to stage {found!r}; pass one of {stage!r}")
    return run


def _folder(run: Run) -> Path:
    if FOLDER_TAG not in run.data.tags:
        raise UserError(f"run {run.info.run_id} does not say where its models are; pass their folder")
    folder = Path(run.data.tags[FOLDER_TAG])
    if not folder.is_dir():
        raise UserError(
            f"run {run.info.run_id} left its models in {folder}, which is not there; pass the folder where they are now"
        )
    return folder
