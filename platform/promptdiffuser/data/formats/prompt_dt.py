"""The pickles that Prompt-DT and its followers publish: `data/ENV/ENV-ID-MODE.pkl`, a list of dicts of numpy arrays.

A pickle is a program, so these are not run as one. The unpickler below knows the few names that pickled numpy arrays
call and puts inert stand-ins of our own in their place; any other name ends the reading when it is first mentioned,
before anything can be called. numpy's own functions are not reached either: `dtype.__setstate__` believes whatever
layout it is told, and an array with a false layout reads and writes memory that is not its own.

**Time and memory are bounded by the size of the file.** A pickle of a hundred bytes can build a tuple of itself that
takes years to hash, compare or print. So only text is a key, sets are refused, and nothing that a file builds is
printed. Python's own unpickler is used and not its twin in C, which allocates whatever a file claims to need and cannot
be told what to refuse. Numbers are decoded when they are asked for, and episodes may not hold more of them than the
file.
"""

import io
import math
import pickle
import pickletools
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn

import numpy as np

from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.formats.trajectories import Numbers, Trajectory, assemble
from promptdiffuser.errors import UserError
from promptdiffuser.tasks.family import TaskFamily

MAX_FILE_BYTES = 1 << 30
"""The largest published file holds some 50 MB."""
MAX_EPISODES = 20_000
"""Episodes of a file; published files hold up to 1,000. Bounds what a small file can make us allocate."""
MAX_OPERATIONS = 5_000_000
"""Operations of a pickle; an episode of numpy arrays takes some 100."""
MAX_DIMENSIONS = 8
"""Axes of an array, and arguments of a call."""
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

    The format knows neither seeds nor success: seeds are derived (`assemble`), success is False. Episodes
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
            size = file.tell()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except _RefusedError as error:
        raise UserError(f"{path} is refused: {error}. Nothing in it was run") from error
    except Exception as error:  # bytes that are no pickle raise nearly anything
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{path} is not a pickle of numpy arrays ({what})") from error
    if not isinstance(document, list) or not all(isinstance(item, dict) for item in document):
        raise UserError(f"{path} does not hold a list of dicts, one an episode")
    if len(document) > MAX_EPISODES:
        raise UserError(f"{path} holds {len(document)} episodes, at most {MAX_EPISODES} are read from one file")
    episodes = [_arrays(path, number, item) for number, item in enumerate(document)]
    if sum(arrays[key].num_bytes for arrays in episodes for key in KEYS) > size:
        raise UserError(f"{path} is refused: its episodes hold more numbers than the file, so they repeat each other")
    trajectories = [_trajectory(path, number, arrays) for number, arrays in enumerate(episodes)]
    return assemble(str(path), family, task, trajectories)


def _arrays(path: Path, number: int, item: dict[Any, Any]) -> "dict[str, _Array]":
    """Return the arrays of an episode: `KEYS`, and `terminals` under whichever name it has."""
    arrays = {key: item.get(key) for key in KEYS} | {
        "terminals": next((item[key] for key in END_KEYS if isinstance(item.get(key), _Array)), None)
    }
    for key, array in arrays.items():
        if not isinstance(array, _Array):
            known = "neither of the arrays `terminals` and `dones`" if key == "terminals" else f"no array `{key}`"
            raise UserError(f"{path}, episode {number}: it has {known}")
    return {key: array for key, array in arrays.items() if isinstance(array, _Array)}


def _trajectory(path: Path, number: int, arrays: "dict[str, _Array]") -> Trajectory:
    rewards = arrays["rewards"].array
    # (L, 1), as some of the followers' files have it, is the same as (L,).
    flat = rewards.reshape(-1) if rewards.shape[1:] == (1,) else rewards
    if arrays["terminals"].shape not in ((len(flat),), (len(flat), 1)) or arrays["terminals"].array[:-1].any():
        raise UserError(f"{path}, episode {number}: its terminals are not one a step, true at the last step at most")
    return Trajectory(number, arrays["observations"].array, arrays["actions"].array, flat)


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

    __slots__ = ("order", "type")

    def __init__(self, code: object, *flags: object) -> None:
        if not isinstance(code, str) or not _PLAIN_NUMBERS.fullmatch(code):
            shown = repr(code[:40]) if isinstance(code, str) else f"a {type(code).__name__}"
            raise _RefusedError(f"it holds an array of type {shown}, only plain numbers are data")
        self.order, self.type = "", code.lstrip("<>|=")

    def __setstate__(self, state: object) -> None:
        """Take the byte order out of numpy's (version, byte order, subtype, names, fields, ...)."""
        if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise _RefusedError("it holds an array of a structured type, only plain numbers are data")
        if not isinstance(state[1], str) or state[1] not in ("<", ">", "|", "="):
            raise _RefusedError("it holds an array of unknown byte order")
        self.order = state[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.type)


class _Array:
    """Stands for `numpy.ndarray`: its bytes, and how they are laid out."""

    __slots__ = ("_axes", "_content", "_dtype", "_order", "_stored")

    def __init__(self) -> None:
        self._lay_out(b"", np.dtype("f8"), (0,))

    def _lay_out(
        self,
        content: bytes | str,
        dtype: np.dtype[Any],
        shape: tuple[int, ...],
        order: Literal["C", "F"] = "C",
        axes: tuple[int, ...] | None = None,
    ) -> None:
        self._content, self._dtype, self._stored, self._order, self._axes = content, dtype, shape, order, axes

    def fill(self, content: object, dtype: object, shape: object, order: object, axes: object = None) -> "_Array":
        """Take the bytes and their layout; every argument may be anything that a pickle can build.

        Args:
            content: The bytes; text is those of Python 2, a character each.
            dtype: A `_DType`.
            shape: The shape of the bytes.
            order: C or F; K lays them out as C and then permutes the axes.
            axes: The axes in their order, for K.
        """
        if not isinstance(content, bytes | str) or not isinstance(dtype, _DType):
            raise _RefusedError("it holds an array of objects, only plain numbers are data")
        if not isinstance(shape, tuple) or len(shape) > MAX_DIMENSIONS or not _are_sizes(shape):
            raise _RefusedError("it holds an array without a shape")
        if math.prod(shape) * dtype.dtype.itemsize != len(content):
            raise _RefusedError(f"it holds an array of shape {shape} whose {len(content)} bytes do not fill it")
        if isinstance(order, str) and order == "K" and axes is not None:
            if not (isinstance(axes, tuple) and _are_sizes(axes) and sorted(axes) == [*range(len(shape))]):
                raise _RefusedError("it holds an array whose axes are in no order")
            self._lay_out(content, dtype.dtype, shape, axes=axes)
        else:
            self._lay_out(content, dtype.dtype, shape, "F" if isinstance(order, str) and order == "F" else "C")
        return self

    def __setstate__(self, state: object) -> None:
        """Take numpy's (version, shape, type, whether in Fortran order, bytes)."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise _RefusedError("it holds an array in an unknown form")
        _, shape, dtype, in_fortran_order, content = state
        self.fill(content, dtype, shape, "F" if in_fortran_order else "C")

    @property
    def shape(self) -> tuple[int, ...]:
        return self._stored if self._axes is None else tuple(self._stored[axis] for axis in self._axes)

    @property
    def num_bytes(self) -> int:
        return len(self._content)

    @property
    def array(self) -> Numbers:
        """The numbers, decoded each time."""
        content = self._content.encode("latin1") if isinstance(self._content, str) else self._content
        array: Numbers = np.frombuffer(content, self._dtype)
        laid_out = array.reshape(self._stored, order=self._order)
        return laid_out if self._axes is None else laid_out.transpose(self._axes)


def _are_sizes(values: tuple[object, ...]) -> bool:
    """Tell whether all values are whole numbers that can be the length of an axis."""
    return all(type(value) is int and 0 <= value <= MAX_FILE_BYTES for value in values)


def _array_to_fill(*args: object) -> _Array:
    """Stand for `_reconstruct(numpy.ndarray, (0,), b"b")`: the content comes with `__setstate__`."""
    return _Array()


def _array_from_buffer(content: object, dtype: object, shape: object, order: object, axes: object = None) -> _Array:
    """Stand for `_frombuffer`, which protocol 5 uses."""
    return _Array().fill(content, dtype, shape, order, axes)


def _scalar(dtype: object, content: object) -> Any:
    """Stand for numpy's `scalar`: return the number."""
    return _Array().fill(content, dtype, (), "C").array.item()


def _encode(text: object, encoding: object) -> str:
    """Stand for `_codecs.encode`, with which protocols 0 to 2 spell bytes, for the one encoding that they use.

    The text stays as it is until the array is decoded.
    """
    if not isinstance(text, str) or not isinstance(encoding, str) or encoding not in ("latin1", "latin-1"):
        raise _RefusedError("it encodes text, only bytes of arrays are data")
    return text


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


class _Record(dict[str, Any]):
    """A dict whose keys are text, which nobody can make slow to hash."""

    __slots__ = ()  # so that a pickle can set no attribute on it

    def __setitem__(self, key: object, value: object) -> None:
        if type(key) is not str:
            raise _RefusedError(f"it holds a dict with a {type(key).__name__} as a key, only text is one")
        super().__setitem__(key, value)


class _ArrayUnpickler(pickle._Unpickler):
    """Knows the names that arrays of numbers need, stand-ins only, and the operations that build them."""

    stack: list[Any]
    append: Callable[[object], None]
    read: Callable[[int], bytes]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: BinaryIO) -> None:
        # In memory, where a read takes what is there and not what is asked for.
        super().__init__(io.BytesIO(file.read()), encoding="latin1")
        self.dispatch = _Operations()  # type: ignore[misc]  # counted for this file, where Python's are every file's

    def find_class(self, module: str, name: str) -> _StandIn:
        """Return the stand-in of a name, or refuse it."""
        if (module, name) not in _NAMES:
            raise _RefusedError(f"it names {module[:80]}.{name[:80]}, which is no array of numbers")
        return _StandIn(_NAMES[module, name])

    def load_empty_dict(self) -> None:
        self.append(_Record())

    def load_dict(self) -> None:
        items, record = self.pop_mark(), _Record()
        for key, value in zip(items[::2], items[1::2], strict=True):
            record[key] = value
        self.append(record)

    def load_bytearray8(self) -> None:
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(self.read(length))

    def load_reduce(self) -> None:
        arguments = self.stack[-1]
        if not isinstance(arguments, tuple) or len(arguments) > MAX_DIMENSIONS:
            raise _RefusedError("it calls a name with too many arguments")
        pickle._Unpickler.dispatch[pickle.REDUCE[0]](self)  # type: ignore[arg-type]


_REFUSED = (
    *(pickle.PERSID, pickle.BINPERSID, pickle.EXT1, pickle.EXT2, pickle.EXT4),
    *(pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX),
    *(pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET),
)
"""Operations that make other objects and sets."""


def _refuse_outside(unpickler: _ArrayUnpickler) -> NoReturn:
    raise _RefusedError("its numbers lie outside of it, in out-of-band buffers; pickle it without buffer_callback")


_KNOWN: dict[int, Callable[[Any], None]] = {
    code: load for code, load in pickle._Unpickler.dispatch.items() if bytes([code]) not in _REFUSED
} | {
    pickle.EMPTY_DICT[0]: _ArrayUnpickler.load_empty_dict,
    pickle.DICT[0]: _ArrayUnpickler.load_dict,
    pickle.BYTEARRAY8[0]: _ArrayUnpickler.load_bytearray8,
    pickle.REDUCE[0]: _ArrayUnpickler.load_reduce,
    pickle.NEXT_BUFFER[0]: _refuse_outside,
    pickle.READONLY_BUFFER[0]: _refuse_outside,
}


class _Operations(dict[int, Callable[[Any], None]]):
    """The operations of a pickle by their codes, for one file: each use is counted."""

    def __init__(self) -> None:
        super().__init__(_KNOWN)
        self._left = MAX_OPERATIONS

    def __getitem__(self, code: int) -> Callable[[Any], None]:
        self._left -= 1
        if self._left < 0:
            raise _RefusedError(f"it takes more than {MAX_OPERATIONS} operations to build")
        return super().__getitem__(code)

    def __missing__(self, code: int) -> NoReturn:
        names = {ord(operation.code): operation.name for operation in pickletools.opcodes}
        raise _RefusedError(f"it uses the operation {names.get(code, code)}, which arrays of numbers do not need")
