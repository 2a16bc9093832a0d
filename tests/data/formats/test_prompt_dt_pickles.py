"""The published pickles are read as data; as programs they get nowhere."""

import os
import pickle
import pickletools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from promptdiffuser.data.formats import prompt_dt
from promptdiffuser.data.formats.prompt_dt import file_task, read_prompt_dt_pickle
from promptdiffuser.errors import UserError
from tests.data.formats.samples import FAMILY, draw_steps


def write(folder: Path, content: bytes) -> Path:
    path = folder / "cheetah_vel-7-expert.pkl"
    path.write_bytes(content)
    return path


def refusal(folder: Path, content: bytes) -> str:
    with pytest.raises(UserError) as caught:
        read_prompt_dt_pickle(write(folder, content), FAMILY, 7)
    return str(caught.value)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_episodes_of_every_protocol_are_read(protocol: int, tmp_path: Path) -> None:
    items = [draw_steps(200, seed=1), draw_steps(150, seed=2)]
    path = write(tmp_path, pickle.dumps(items, protocol=protocol))
    episodes = read_prompt_dt_pickle(path, FAMILY, 7)
    assert episodes.lengths.tolist() == [200, 150]
    assert len(set(episodes.seeds.tolist())) == 2
    assert set(episodes.tasks.tolist()) == {7}
    assert not episodes.successes.any()
    for row, item in enumerate(items):
        length = len(item["rewards"])
        np.testing.assert_array_equal(episodes.observations[row, :length], item["observations"].astype(np.float32))
        np.testing.assert_array_equal(episodes.actions[row, :length], item["actions"].astype(np.float32))
        np.testing.assert_array_equal(episodes.rewards[row, :length], item["rewards"].astype(np.float32))
        assert not episodes.observations[row, length:].any()


@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_old_and_new_names_of_numpy_are_known(core: str, tmp_path: Path) -> None:
    content = pickle.dumps([draw_steps(200)], protocol=2)
    new = b"numpy._core.multiarray\n"
    assert new in content
    path = write(tmp_path, content.replace(new, core.encode() + b".multiarray\n"))
    assert read_prompt_dt_pickle(path, FAMILY, 7).lengths.tolist() == [200]


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_layouts_and_number_types_are_kept(protocol: int, tmp_path: Path) -> None:
    steps = draw_steps(200)
    steps["observations"] = np.asfortranarray(steps["observations"].astype(">f4"))
    steps["actions"] = np.repeat(steps["actions"], 2, axis=0)[::2].astype(np.float16)
    steps["rewards"] = steps["rewards"][:, None]
    steps["dones"] = steps.pop("terminals")
    extra = {"return": steps["rewards"].sum(), "env": "cheetah_vel", "timeouts": np.arange(3)}
    episodes = read_prompt_dt_pickle(write(tmp_path, pickle.dumps([steps | extra], protocol=protocol)), FAMILY, 7)
    np.testing.assert_array_equal(episodes.observations[0], steps["observations"].astype(np.float32))
    np.testing.assert_array_equal(episodes.actions[0], steps["actions"].astype(np.float32))
    np.testing.assert_array_equal(episodes.rewards[0], steps["rewards"][:, 0].astype(np.float32))


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_order_of_axes_is_kept(protocol: int, order: tuple[int, ...], tmp_path: Path) -> None:
    steps = draw_steps(200)
    whole = np.stack([steps["observations"].T, -steps["observations"].T])
    steps["observations"] = np.ascontiguousarray(whole.transpose(order)).transpose(np.argsort(order))[0].T
    steps["frames"] = np.ascontiguousarray(whole.transpose(order)).transpose(np.argsort(order))
    path = write(tmp_path, pickle.dumps([steps], protocol=protocol))
    with path.open("rb") as file:
        (item,) = prompt_dt._ArrayUnpickler(file).load()
    np.testing.assert_array_equal(item["frames"].array, whole)
    assert item["frames"].shape == whole.shape
    episodes = read_prompt_dt_pickle(path, FAMILY, 7)
    np.testing.assert_array_equal(episodes.observations[0], steps["observations"].astype(np.float32))


@pytest.mark.parametrize("is_writable", [True, False])
def test_numbers_that_lie_outside_of_the_file_are_refused_by_name(is_writable: bool, tmp_path: Path) -> None:
    steps = draw_steps(200)
    for array in steps.values():
        array.flags.writeable = is_writable
    content = pickle.dumps([steps], protocol=5, buffer_callback=[].append)
    assert "buffer_callback" in refusal(tmp_path, content)


def test_actions_are_clipped_as_environments_clip_them(tmp_path: Path) -> None:
    steps = draw_steps(200)
    steps["actions"][3] = 7.5
    path = write(tmp_path, pickle.dumps([steps]))
    assert (read_prompt_dt_pickle(path, FAMILY, 7).actions[0, 3] == 1.0).all()


def test_pickles_of_python_2_are_read(tmp_path: Path) -> None:
    # Python 2 spells bytes as its str: opcodes BINSTRING and SHORT_BINSTRING instead of _codecs.encode.
    raw = np.arange(3.0).tobytes()
    content = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x03\x85cnumpy\n"
        b"dtype\nU\x02f8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U"
        + bytes([len(raw)])
    )
    with (tmp_path / "array").open("w+b") as file:
        file.write(content + raw + b"tb.")
        file.seek(0)
        assert prompt_dt._ArrayUnpickler(file).load().array.tolist() == [0.0, 1.0, 2.0]


class Calls:
    """Pickles as a call."""

    def __init__(self, function: object, *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> object:
        return self.call


CALLS = {
    "os.system": (Calls(os.system, "touch proof"), "system"),
    "builtins.eval": (Calls(eval, "open('proof', 'w')"), "eval"),
    "builtins.exec": (Calls(exec, "open('proof', 'w')"), "exec"),
    "builtins.getattr": (Calls(getattr, "", "join"), "getattr"),
    "subprocess": (Calls(subprocess.Popen, ["touch", "proof"]), "Popen"),
    "numpy.load": (Calls(np.load, "proof", None, True), "numpy.load"),
    "numpy.frombuffer": (Calls(np.frombuffer, b"12345678"), "numpy.frombuffer"),
    "numpy.memmap": (Calls(np.memmap, "proof", "u1", "w+", 0, (1,)), "memmap"),
    "ndarray called with a buffer": (Calls(np.ndarray, (3,), np.dtype("u1"), b"abc"), "by hand"),
    "object array": (np.array([None, 1], object), "'O8'"),
    "array of calls": (np.array([Calls(os.system, "touch proof")], object), "'O8'"),
    "structured array": (np.zeros(2, [("a", "f8"), ("b", "O")]), "'V16'"),
    "text array": (np.array(["a"]), "'U1'"),
    "dates": (np.zeros(1, "M8[s]"), "'M8'"),
    "dtype with fields": (Calls(np.dtype, [("a", "O")]), "plain numbers"),
    "encoding other than latin1": (Calls(pickle.codecs.encode, "abc", "rot13"), "encodes"),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", CALLS)
def test_programs_are_refused_by_name(
    name: str, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    payload, word = CALLS[name]
    message = refusal(tmp_path, pickle.dumps([draw_steps(200) | {"observations": payload}], protocol=protocol))
    assert "cheetah_vel-7-expert.pkl" in message
    assert word in message, message
    assert not Path("proof").exists()


# Written by hand, as no pickler writes them.
BY_HAND = {
    # numpy believes what a type's state says of its layout: here 8 bytes that are no pointer, called an object.
    "false layout of a type": b"cnumpy\ndtype\n(S'V8'\nK\x00K\x01tR(K\x03S'|'\nN(S'a'\nt}S'a'\n"
    b"(cnumpy\ndtype\n(S'O'\nK\x00K\x01tRK\x00tsK\x08K\x01K\x00tb.",
    "state of a plain type with a subtype": b"cnumpy\ndtype\n(S'f8'\nK\x00K\x01tR(K\x03S'<'\n(S'f8'\n(K\x02tt"
    b"NNK\x08K\x01K\x00tb.",
    "type as the class of an object": b"cnumpy\ndtype\n)\x81.",
    "attributes of a function": b"\x80\x02cnumpy.core.multiarray\nscalar\nN}S'__defaults__'\nNs\x86b.",
    "class of the old protocol": b"(ios\nsystem\nS'touch proof'\no.",
    "INST": b"(S'touch proof'\nios\nsystem\n.",
    "registered extension": b"\x82\x01.",
    "persistent name": b"Pproof\n.",
    "module of a module": b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93.",
    "attribute of an allowed name": b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.",
    "array without bytes": b"cnumpy.core.multiarray\n_reconstruct\n(tR(K\x01(K\x02tcnumpy\ndtype\n(S'f8'\ntRI00\n]tb.",
    "array larger than its bytes": b"\x80\x03cnumpy.core.multiarray\n_reconstruct\n(tR(K\x01(J\xff\xff\xff\x7ft"
    b"cnumpy\ndtype\n(X\x02\x00\x00\x00f8tRK\x00C\x08abcdefghtb.",
    "array of negative size": b"\x80\x03cnumpy.core.multiarray\n_reconstruct\n(tR(K\x01(J\xff\xff\xff\xfft"
    b"cnumpy\ndtype\n(X\x02\x00\x00\x00f8tRK\x00C\x08abcdefghtb.",
    "bytes that are not there": b"\x80\x04\x8e\xff\xff\xff\xff\xff\x00\x00\x00.",
    "nothing": b"",
    "no pickle": b"PK\x03\x04 this is a zip file",
    "cut off": pickle.dumps([draw_steps(20)])[:-100],
}


@pytest.mark.parametrize("name", BY_HAND)
def test_pickles_made_by_hand_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "cheetah_vel-7-expert.pkl" in refusal(tmp_path, BY_HAND[name])
    assert not Path("proof").exists()


TOWER = b")" + b"2\x86" * 50
"""A tuple that holds twice what holds twice what ...: 2**50 empty tuples for whoever hashes, compares or prints it."""
DTYPE = b"cnumpy\ndtype\n"
FLOATS = DTYPE + b"(X\x02\x00\x00\x00f8tR"
FROM_BUFFER = b"cnumpy._core.numeric\n_frombuffer\n"
COSTLY = {
    "key": b"}" + TOWER + b"K\x01s.",
    "key among several": b"}(" + TOWER + b"K\x01u.",
    "key of the old protocol": b"(" + TOWER + b"K\x01d.",
    "keys that are equal": b"}" + TOWER + b"K\x01s" + TOWER + b"K\x01s.",
    "element of a set": b"\x8f(" + TOWER + b"\x90.",
    "element of a frozen set": b"(" + TOWER + b"\x91.",
    "set as a key": b"}(" + TOWER + b"\x91K\x01s.",
    "type": DTYPE + b"(" + TOWER + b"tR.",
    "subtype": FLOATS + b"(K\x03X\x01\x00\x00\x00<" + TOWER + b"NNtb.",
    "byte order": FLOATS + b"(K\x03" + TOWER + b"NNNtb.",
    "encoding": b"c_codecs\nencode\n(X\x01\x00\x00\x00a" + TOWER + b"tR.",
    "shape": FROM_BUFFER + b"(C\x00" + FLOATS + TOWER + b"X\x01\x00\x00\x00CtR.",
    "order": FROM_BUFFER + b"(C\x00" + FLOATS + b"K\x00\x85" + TOWER + b"tR.",
    "axes": FROM_BUFFER + b"(C\x00" + FLOATS + b"K\x00\x85X\x01\x00\x00\x00K" + TOWER + b"tR.",
    "state of a name": DTYPE + TOWER + b"b.",
    "state of a dict": b"}" + TOWER + b"b.",
    "name": TOWER + TOWER + b"\x93.",
    "number of a memo": b"\x80\x04]r\xff\xff\xff\x7f.",
    "bytes of an array that are not there": b"\x80\x05\x96\x00\x00\x00\x00\x10\x00\x00\x00.",
    "arguments": FROM_BUFFER + b"(" + b"K\x00" * 100_000 + b"tR.",
    "operations": b"N0" * 3_000_000,
    "depth": b"(" * 1_000_000,
    "document": TOWER + b".",
}


READ_ALL = """
import resource, sys, time
from pathlib import Path
from promptdiffuser.data.formats.prompt_dt import read_prompt_dt_pickle
from promptdiffuser.errors import UserError
from promptdiffuser.tasks import FAMILIES

for path in map(Path, sys.argv[1:]):
    memory, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        read_prompt_dt_pickle(path, FAMILIES["cheetah-vel"], 7)
    except UserError as error:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
        print(path.name, time.process_time() - started, memory, len(str(error)), flush=True)
"""


@pytest.fixture(scope="module")
def costs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """Return (seconds, KiB, length of the message) of every file that is refused, all read in one process."""
    folder = tmp_path_factory.mktemp("costly")
    paths = [folder / name.replace(" ", "-") for name in COSTLY]
    for path, content in zip(paths, COSTLY.values(), strict=True):
        path.write_bytes(content)
    try:
        output = subprocess.run(
            [sys.executable, "-c", READ_ALL, *map(str, paths)], capture_output=True, timeout=120, check=True
        ).stdout
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
    rows = [line.split() for line in output.decode().splitlines()]
    return {name: [float(number) for number in numbers] for name, *numbers in rows}


@pytest.mark.parametrize("name", COSTLY)
def test_small_file_costs_little_time_and_memory(name: str, costs: dict[str, list[float]]) -> None:
    seconds, kilobytes, length = costs[name.replace(" ", "-")]
    size = len(COSTLY[name])
    assert seconds < 4 + size * 1e-6  # of the processor, on a busy machine; without the bound it is more than 30
    assert kilobytes < 50_000 + size / 10
    assert length < 400


def test_stand_ins_cannot_be_changed_for_the_next_file(tmp_path: Path) -> None:
    refusal(tmp_path, BY_HAND["attributes of a function"])
    assert prompt_dt._scalar.__defaults__ is None


def test_malicious_file_runs_nothing_in_a_fresh_process(tmp_path: Path) -> None:
    content = pickle.dumps([draw_steps(200), Calls(os.system, f"touch {tmp_path}/proof")], protocol=4)
    assert "system" in {arg for _, arg, _ in pickletools.genops(content) if isinstance(arg, str)}
    (tmp_path / "bad.pkl").write_bytes(content)
    code = (
        "import sys; from pathlib import Path; from promptdiffuser.tasks import FAMILIES\n"
        "from promptdiffuser.data.formats.prompt_dt import read_prompt_dt_pickle\n"
        "read_prompt_dt_pickle(Path(sys.argv[1]), FAMILIES['cheetah-vel'], 7)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "bad.pkl")], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 1
    assert "posix.system" in result.stderr
    assert "Nothing in it was run" in result.stderr
    assert not (tmp_path / "proof").exists()
    # The same file does run where it is unpickled as Python does: the test tests something.
    pickle.loads(content)
    assert (tmp_path / "proof").exists()


def changed(**values: object) -> dict[str, object]:
    return draw_steps(200) | values


NOT_OURS = {
    "no list": ({"observations": 1}, "list of dicts"),
    "a list of arrays": ([np.zeros(3)], "list of dicts"),
    "no episode": ([], "no complete episode"),
    "no rewards": ([{k: v for k, v in draw_steps(200).items() if k != "rewards"}], "rewards"),
    "a list for an array": ([changed(rewards=[0.0] * 200)], "no array `rewards`"),
    "no ends": ([{k: v for k, v in draw_steps(200).items() if k != "terminals"}], "terminals"),
    "two episodes in one": ([changed(terminals=np.arange(200) % 100 == 99)], "terminals"),
    "other observations": ([changed(observations=np.zeros((200, 27)))], "needs (200, 20)"),
    "other actions": ([changed(actions=np.zeros((200, 8)))], "needs (200, 6)"),
    "not finite": ([draw_steps(200), changed(rewards=np.full(200, np.inf))], "episode 1: rewards are not finite"),
    "beyond single precision": ([changed(rewards=np.full(200, 1e300))], "not finite"),
    "too long": ([draw_steps(201)], "201 steps"),
    "empty": ([draw_steps(0)], "0 steps"),
}


@pytest.mark.parametrize("name", NOT_OURS)
def test_episodes_that_do_not_fit_are_named(name: str, tmp_path: Path) -> None:
    document, word = NOT_OURS[name]
    assert word in refusal(tmp_path, pickle.dumps(document))


def test_task_must_be_the_familys(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no task 40"):
        read_prompt_dt_pickle(write(tmp_path, pickle.dumps([draw_steps(200)])), FAMILY, 40)


def test_small_file_cannot_ask_for_much_memory(tmp_path: Path) -> None:
    steps = draw_steps(1)
    assert "at most 20000" in refusal(tmp_path, pickle.dumps([steps] * 100_000))


@pytest.mark.parametrize("key", ["observations", "actions", "rewards"])
def test_episodes_that_repeat_an_array_are_refused(key: str, tmp_path: Path) -> None:
    shared = draw_steps(200)
    content = pickle.dumps([draw_steps(1) | shared for _ in range(1_000)])
    assert len(content) < 1_000_000
    assert "more numbers than the file" in refusal(tmp_path, content)


def test_large_and_missing_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_prompt_dt_pickle(tmp_path / "none.pkl", FAMILY, 7)
    monkeypatch.setattr(prompt_dt, "MAX_FILE_BYTES", 100)
    assert "larger" in refusal(tmp_path, pickle.dumps([draw_steps(200)]))


def test_names_of_published_files() -> None:
    assert file_task("cheetah_vel-7-expert.pkl") == (7, "expert")
    assert file_task("ML1-pick-place-v2-41-medium.pkl") == (41, "medium")
    assert file_task("cheetah_vel-7-prompt-expert.pkl") is None
    assert file_task("config_cheetah_vel_task7.pkl") is None
