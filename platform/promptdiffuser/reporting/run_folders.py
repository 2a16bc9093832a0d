"""Where the models of an MLflow run lie, for those who use them."""

from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from promptdiffuser.errors import UserError
from promptdiffuser.reporting.mlflow_reader import experiment_of
from promptdiffuser.tracking.addresses import shown
from promptdiffuser.tracking.names import FOLDER_TAG, METHOD_TAG, STAGE_TAG, USED_RUN_TAG
from promptdiffuser.tracking.store import connect, resolve_uri


def adaptations_of_run(run_id: str) -> Path:
    """Return the folder that holds a method's policies of all target tasks.

    The method's run knows its experiment, whose adapt stage says which folder it wrote for the method.

    Raises:
        UserError: The run is not in the store or no method's, or its folder is not on this machine.
    """
    client = connect(resolve_uri())
    run = _run(client, run_id, "method")
    method, used = run.data.tags[METHOD_TAG], experiment_of(client, run).data.tags.get(USED_RUN_TAG + "adapt")
    adapt = client.get_run(used) if used else None
    if adapt is None or method not in adapt.data.params:
        raise UserError(f"the experiment of run {run_id} does not say where {method} was adapted; pass the folder")
    folder = Path(adapt.data.tags[FOLDER_TAG]).parent / "adaptations" / f"{method}-{adapt.data.params[method][:8]}"
    return _checked(folder, run)


def diffuser_of_run(run_id: str) -> Path:
    """Return the folder of the multi-task training of a diffuser.

    Raises:
        UserError: The run is not in the store or no such training's, or its folder is not on this machine.
    """
    run = _run(connect(resolve_uri()), run_id, "train-diffuser")
    return _checked(Path(run.data.tags[FOLDER_TAG]), run)


def _run(client: MlflowClient, run_id: str, stage: str) -> Run:
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        raise UserError(
            f"no run {run_id} in {shown(resolve_uri())}; set MLFLOW_TRACKING_URI to the store that has it"
        ) from error
    found = run.data.tags.get(STAGE_TAG, "no stage")
    if found != stage:
        raise UserError(f"run {run_id} ({run.info.run_name}) belongs to stage {found!r}; pass one of {stage!r}")
    return run


def _checked(folder: Path, run: Run) -> Path:
    if not folder.is_dir():
        raise UserError(
            f"run {run.info.run_id} left its models in {folder}, which is not there; pass the folder where they are now"
        )
    return folder
