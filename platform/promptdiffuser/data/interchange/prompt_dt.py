"""The pickles that Prompt-DT and its followers publish: `data/ENV/ENV-ID-MODE.pkl`, a list of dicts of numpy arrays.

A pickle is a program, so these are not run as one. The unpickler below knows the few names that pickled numpy arrays
call and puts inert stand-ins of our own in their place; any other name ends the reading when it is first mentioned,
before anything can be called. numpy's own functions are not reached either: `dtype.__setstate__` believes whatever
layout it is told, and an array with a false layout reads and writes memory that is not its own.
"""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.interchange.trajectories import Numbers, Trajectory, assemble
from promptdiffuser.errors import UserError
from promptdiffuser.tasks.family import TaskFamily

MAX_FILE_BYTES = 1 << 30
"""The largest published file holds some 50 MB."""
MAX_EPISODES = 20_000
"""Episodes of a file; published files hold up to 1,000. Bounds what a small file can make us allocate."""
KEYS = ("observations", "actions", "rewards")
END_KEYS = ("terminals", "dones")
_FILE_NAME = re.compile(r"(?P<env>.+)-(?P<task>\d+)-(?P<mode>[a-z]+)\.pkl")
_PLAIN_NUMBERS = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")


def file_task(name: str) -> tuple[int, str] | None:
    """Return the task id and the mode (expert, medium, random) in a file's name; none for prompt and other files."""
    found = _FILE_NAME.fullmatch(name)
    return (int(found["task"]), found["mode"]) if found else None


def read_prompt_dt_pickle(path: Path, family: TaskFamily, task: int) -> Episodes:
    """Read the episodes of one task without running anything that the file asks for.

    The format knows neither seeds nor success: seeds are the episodes' numbers in the file, success is False. Episodes
    must end where their `terminals` (or `dones`) are true, and nowhere before.

    Raises:
        UserError: The file cannot be read, is too large, names anything but plain numeric arrays, or its episodes are
            not the family's (`assemble`).
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB; published files are far smaller")
        with path.open("rb") as file:
            document = _ArrayUnpickler(file).load()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except _RefusedError as error:
        raise UserError(f"{path} is refused: {error}. Nothing in it was run") from error
    except Exception as error:  # bytes that are no pickle raise nearly anything
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{path} is not a pickle of numpy arrays ({what})") from error
    if not isinstance(document, list) or not all(isinstance(item, dict) for item in document):
        raise UserError(f"{path} does not hold a list of dicts, one an episode")
    if len(document) > MAX_EPISODES:
        raise UserError(f"{path} holds {len(document)} episodes, at most {MAX_EPISODES} are read from one file")
    return assemble(str(path), family, task, [_trajectory(path, number, item) for number, item in enumerate(document)])


def _trajectory(path: Path, number: int, item: dict[Any, Any]) -> Trajectory:
    arrays: dict[str, Numbers] = {key: value.array for key, value in item.items() if isinstance(value, _Array)}
    for key in KEYS:
        if key not in arrays:
            raise UserError(f"{path}, episode {number}: it has no array `{key}`")
    rewards = arrays["rewards"]
    ends = next((arrays[key] for key in END_KEYS if key in arrays), None)
    if ends is None:
        raise UserError(f"{path}, episode {number}: it has neither of the arrays `terminals` and `dones`")
    if ends.shape[:1] != rewards.shape[:1] or ends[:-1].any():
        raise UserError(f"{path}, episode {number}: its terminals are not one a step, true at the last step at most")
    # (L, 1), as some of the followers' files have it, is the same as (L,).
    flat = rewards.reshape(-1) if rewards.shape[1:] == (1,) else rewards
    return Trajectory(number, arrays["observations"], arrays["actions"], flat)


class _RefusedError(pickle.UnpicklingError):
    """The pickle asks for something that data does not need."""


class _StandIn:
    """What stands for a name of numpy. A pickle can call it, but not set attributes on it."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __setstate__(self, state: object) -> NoReturn:
        raise _RefusedError("it tries to change what its names stand for")


class _DType:
    """Stands for `numpy.dtype`: a plain number type and its byte order."""

    __slots__ = ("code",)

    def __init__(self, code: object, *flags: object) -> None:
        if not isinstance(code, str) or not _PLAIN_NUMBERS.fullmatch(code):
            raise _RefusedError(f"it holds an array of type {str(code)[:40]!r}, only plain numbers are data")
        self.code = code.lstrip("<>|=")

    def __setstate__(self, state: object) -> None:
        """Take the byte order out of numpy's (version, byte order, subtype, names, fields, ...)."""
        if not isinstance(state, tuple) or len(state) < 5 or state[2:5] != (None, None, None):
            raise _RefusedError("it holds an array of a structured type, only plain numbers are data")
        if not isinstance(state[1], str) or state[1] not in ("<", ">", "|", "="):
            raise _RefusedError("it holds an array of unknown byte order")
        self.code = state[1] + self.code

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.code)


class _Array:
    """Stands for `numpy.ndarray` while it is unpickled."""

    __slots__ = ("array",)

    def __init__(self) -> None:
        self.array: Numbers = np.zeros(0)

    def __setstate__(self, state: object) -> None:
        """Take numpy's (version, shape, type, whether in Fortran order, bytes)."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise _RefusedError("it holds an array in an unknown form")
        _, shape, dtype, fortran, content = state
        self.array = _decode(content, dtype, shape, "F" if fortran else "C")


def _decode(content: object, dtype: object, shape: object, order: object) -> Numbers:
    """Return numbers from their bytes; every argument may be anything that a pickle can build."""
    if isinstance(content, str):  # of Python 2 pickles
        content = content.encode("latin1")
    if not isinstance(content, bytes | bytearray) or not isinstance(dtype, _DType):
        raise _RefusedError("it holds an array of objects, only plain numbers are data")
    if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
        raise _RefusedError("it holds an array without a shape")
    array: Numbers = np.frombuffer(content, dtype.dtype).reshape(shape, order="F" if order == "F" else "C")
    return array


def _array_to_fill(*args: object) -> _Array:
    """Stand for `_reconstruct(numpy.ndarray, (0,), b"b")`: the content comes with `__setstate__`."""
    return _Array()


def _array_from_buffer(content: object, dtype: object, shape: object, order: object) -> _Array:
    """Stand for `_frombuffer`, which protocol 5 uses."""
    made = _Array()
    made.array = _decode(content, dtype, shape, order)
    return made


def _scalar(dtype: object, content: object) -> Any:
    """Stand for numpy's `scalar`: return the number."""
    return _decode(content, dtype, (), "C").item()


def _encode(text: object, encoding: object) -> bytes:
    """Stand for `_codecs.encode`, with which protocols 0 to 2 spell bytes, for the one encoding that they use."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise _RefusedError("it encodes text, only bytes of arrays are data")
    return text.encode("latin1")


def _no_call(*args: object) -> NoReturn:
    raise _RefusedError("it makes an array by hand")


_NUMPY: dict[str, dict[str, Callable[..., Any]]] = {
    "multiarray": {"_reconstruct": _array_to_fill, "scalar": _scalar},
    "numeric": {"_frombuffer": _array_from_buffer},
}
_NAMES: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _no_call,  # only ever an argument of _reconstruct
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _encode,
    # numpy 2 renamed numpy.core to numpy._core.
    **{
        (f"numpy.{core}.{module}", name): call
        for core in ("core", "_core")
        for module, names in _NUMPY.items()
        for name, call in names.items()
    },
}


class _ArrayUnpickler(pickle.Unpickler):
    """Knows the names that arrays of numbers need, and stand-ins only."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="latin1")

    def find_class(self, module: str, name: str) -> _StandIn:
        """Return the stand-in of a name, or refuse it."""
        if (module, name) not in _NAMES:
            raise _RefusedError(f"it names {module}.{name}, which is no array of numbers")
        return _StandIn(_NAMES[module, name])
