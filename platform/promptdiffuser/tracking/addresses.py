"""Addresses of stores: how they are written and shown, and whether a store answers at one."""

import os
import re
import sqlite3
from pathlib import Path
from urllib.parse import quote, unquote

from mlflow.exceptions import InvalidUrlException, MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from requests import Response

from promptdiffuser.errors import UserError
from promptdiffuser.tracking import PATIENCE

_SQLITE = "sqlite:///"
_PROBE = "/api/2.0/mlflow/experiments/search"
_PROBE_TIMEOUT_S = 5
_SERVERS = ("http://", "https://")
_SHOWN = re.compile(r"(?P<scheme>[\w+.-]+://)?(?:.*@)?(?P<place>[\w.:\[\]-]*(?:/[^?#]*)?)", re.DOTALL)


def absolute(uri: str) -> str:
    """Return an address with an absolute, quoted SQLite path: Ray workers run in other folders than the driver."""
    if not is_sqlite(uri):
        return uri
    _, mark, query = uri.partition("?")
    return f"{_SQLITE}{quote(str(sqlite_path(uri)))}{mark}{query}"


def is_sqlite(uri: str) -> bool:
    """Tell whether an address names a SQLite file."""
    return uri.startswith(_SQLITE)


def sqlite_path(uri: str) -> Path:
    """Return the absolute path of a SQLite file."""
    return Path(unquote(uri.removeprefix(_SQLITE).partition("?")[0])).absolute()


def for_client(uri: str) -> str:
    """Return the address that MLflow's client gets.

    MLflow makes the folder of an address that begins with `sqlite:///` without undoing its quotes, which leaves a
    folder `what%3F` beside `what?`. It makes none for the same address with its driver.
    """
    return f"sqlite+pysqlite:///{uri.removeprefix(_SQLITE)}" if is_sqlite(uri) else uri


def shown(uri: str) -> str:
    """Return an address for messages: without a user name, a password or a query, which may hold one."""
    if is_sqlite(uri):
        return uri
    found = _SHOWN.match(uri)
    return f"{found['scheme'] or ''}{found['place']}" if found else ""


def check_answers(uri: str, create: bool = False) -> None:
    """Raise a `UserError` within seconds if a store does not answer; `create` allows a SQLite file to be missing."""
    if is_sqlite(uri):
        _check_sqlite(uri, create)
    elif uri.startswith(_SERVERS):
        _check_server(uri)
    else:
        raise UserError(
            f"MLflow store {shown(uri)} is not supported; "
            "set MLFLOW_TRACKING_URI to sqlite:///PATH/mlflow.db or http://HOST:PORT"
        )


def _check_sqlite(uri: str, create: bool) -> None:
    path = sqlite_path(uri)
    if not create and not path.is_file():
        raise UserError(f"no MLflow store at {uri}; run an experiment first, or set MLFLOW_TRACKING_URI to its store")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=_PROBE_TIMEOUT_S)
        try:
            connection.execute("BEGIN IMMEDIATE")  # needs a readable header and the right to write
            connection.rollback()
        finally:
            connection.close()
    except (OSError, sqlite3.Error) as error:
        raise UserError(
            f"MLflow store {uri} cannot be used ({error}); set MLFLOW_TRACKING_URI to a writable file or a server"
        ) from error


def _check_server(uri: str) -> None:
    """Send a request of MLflow's client, so that its credentials, certificates and proxies decide."""
    server = shown(uri)
    if "@" in uri:
        raise UserError(
            f"MLFLOW_TRACKING_URI must not hold a user name or a password (here for {server}); set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, and write an @ that belongs to the path as %40"
        )
    try:
        response = http_request(
            get_default_host_creds(uri),
            _PROBE,
            "GET",
            params={"max_results": 1},
            timeout=_set_by_user("MLFLOW_HTTP_REQUEST_TIMEOUT", _PROBE_TIMEOUT_S),
            max_retries=_set_by_user("MLFLOW_HTTP_REQUEST_MAX_RETRIES", 0),
            raise_on_status=False,
        )
    except InvalidUrlException as error:
        raise UserError(f"{server} is not an address; set MLFLOW_TRACKING_URI to http://HOST:PORT") from error
    except (MlflowException, ValueError) as error:
        raise UserError(
            f"MLflow server {server} does not answer ({_reason(error)}); "
            "start it, or set MLFLOW_TRACKING_URI to one that runs"
        ) from error
    _check_response(response, server)


def _check_response(response: Response, server: str) -> None:
    status = response.status_code
    if status in (401, 403):
        raise UserError(
            f"MLflow server {server} does not let this job in (HTTP {status}); set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, and name the host in the server's --allowed-hosts"
        )
    if status >= 500:
        raise UserError(f"MLflow server {server} is not healthy (HTTP {status}); see its log")
    try:
        is_answer = status == 200 and isinstance(response.json(), dict)
    except ValueError:
        is_answer = False
    if not is_answer:
        raise UserError(
            f"{server} does not answer like an MLflow server (HTTP {status}); set MLFLOW_TRACKING_URI to one"
        )


def _set_by_user(variable: str, otherwise: int) -> int | None:
    """Return None, with which MLflow reads the variable itself, if its value is not the platform's own."""
    return otherwise if os.environ.get(variable) == PATIENCE.get(variable) else None


def _reason(error: Exception) -> str:
    """Return what went wrong, without the whole address that MLflow and requests put around it."""
    if isinstance(error, ValueError):
        return str(error)
    cause = error.__cause__ or error.__context__ or error
    inner = cause.args[0] if cause.args else cause
    return first_line(getattr(inner, "reason", inner))


def first_line(error: object) -> str:
    """Return what an error says, without the server's traceback."""
    return (str(error).splitlines() or [type(error).__name__])[0]
