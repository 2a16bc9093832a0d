"""Datasets on a local disk and on an S3-compatible server of this machine."""

import hashlib
import logging
import pickle
import socket
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs

from promptdiffuser.data import storage as storage_module
from promptdiffuser.data.episodes import Episodes
from promptdiffuser.data.manifest import FILE_NAME
from promptdiffuser.data.parts import part_path
from promptdiffuser.data.storage import Storage
from promptdiffuser.data.store import DatasetWriter, open_dataset
from promptdiffuser.errors import UserError
from promptdiffuser.tasks import FAMILIES
from tests.data.synthetic import assert_equal, draw_episodes, write_dataset
from tests.killed import end_without_a_word, in_a_process

FAMILY = FAMILIES["cheetah-vel"]
TASKS = (0, 7)
PART = part_path(7, "expert", 0)
LIMIT_S = 20.0
"""A server that refuses connections is given up after six seconds of retries."""
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Start an S3-compatible server with one bucket, `bucket`, and return its host and port."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/bucket", method="PUT")).close()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION"):
            patch.delenv(name, raising=False)
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield f"{host}:{port}"
    moto.stop()


@pytest.fixture
def s3(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a fresh folder of the bucket; the server's address is in the environment, as users give it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{server}")
    return f"s3://bucket/{uuid4().hex}/dataset"


@pytest.fixture(params=["path", "file", "s3"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh place for a dataset, in each of the ways to write one."""
    folder = tmp_path / "some folder" / "dataset"
    return {
        "path": lambda: str(folder),
        "file": lambda: f"file://{str(folder).replace(' ', '%20')}",
        "s3": lambda: request.getfixturevalue("s3"),
    }[request.param]()


def replace_file(storage: Storage, name: str, content: bytes) -> None:
    with storage.filesystem.open_output_stream(storage.path(name)) as file:
        file.write(content)


def break_off_writing(storage: Storage, name: str) -> None:
    with storage.writing(name) as file:
        file.write(b"thi")
        raise KeyError("in the middle")


def names_in(storage: Storage, folder: str) -> list[str]:
    found = storage.filesystem.get_file_info(fs.FileSelector(storage.path(folder).rstrip("/")))
    return sorted(each.base_name for each in found)


def content_of(storage: Storage, name: str) -> bytes:
    with storage.open(name) as file:
        return file.read()


def test_dataset_is_written_read_and_added_to(location: str) -> None:
    drawn = write_dataset(location, FAMILY, TASKS)
    dataset = open_dataset(location)
    assert dataset.location == location
    assert_equal(dataset.read([7, 0]), Episodes.concatenate([drawn[0, "expert"], drawn[7, "expert"]]))

    first_part, more = content_of(dataset.storage, PART), draw_episodes(FAMILY, [7, 9], seed=99)
    writer = DatasetWriter(location, FAMILY, "the second")
    writer.add("expert", more)
    assert open_dataset(location).manifest == dataset.manifest
    after = writer.commit()
    assert after.manifest.commands == ("a test", "the second")
    assert_equal(after.read([7]), Episodes.concatenate([drawn[7, "expert"], more.select(slice(1))]))
    assert_equal(open_dataset(location).read([9]), more.select(slice(1, 2)))
    assert content_of(dataset.storage, PART) == first_part


def test_equal_datasets_have_equal_digests_wherever_they_lie(s3: str, tmp_path: Path) -> None:
    write_dataset(s3, FAMILY, TASKS)
    write_dataset(tmp_path, FAMILY, TASKS)
    assert open_dataset(s3).manifest == open_dataset(tmp_path).manifest


def test_damaged_and_missing_files_are_found(location: str) -> None:
    write_dataset(location, FAMILY, TASKS)
    storage = Storage.at(location)
    content = content_of(storage, PART)
    replace_file(storage, PART, content[:1000] + b"\x00" + content[1001:])
    with pytest.raises(UserError, match=f"{PART} has another digest") as refusal:
        open_dataset(location)
    assert location in str(refusal.value)
    replace_file(storage, PART, content)
    open_dataset(location)
    storage.filesystem.delete_file(storage.path(PART))
    with pytest.raises(UserError, match=f"{PART} is missing"):
        open_dataset(location)
    storage.filesystem.delete_file(storage.path(FILE_NAME))
    with pytest.raises(UserError, match=r"no manifest\.json"):
        open_dataset(location)


def test_file_is_seen_when_it_is_whole(location: str) -> None:
    storage = Storage.at(location)
    with storage.writing("a/file") as file:
        file.write(b"first")
        assert not storage.has("a/file")
    assert storage.has("a/file")
    with storage.writing("a/file") as file:
        file.write(b"second")
        assert content_of(storage, "a/file") == b"first"
    assert content_of(storage, "a/file") == b"second"
    with pytest.raises(KeyError, match="in the middle"):
        break_off_writing(storage, "a/file")
    assert content_of(storage, "a/file") == b"second"
    assert not storage.has("a")
    assert not storage.has("b")
    assert names_in(storage, "a") == ["file"], "a write that was broken off leaves nothing"


def test_two_writers_of_a_file_do_not_meet(location: str) -> None:
    storage = Storage.at(location)
    with storage.writing("a/file") as first:
        first.write(b"first")
        with storage.writing("a/file") as second:
            second.write(b"second")
        assert content_of(storage, "a/file") == b"second"
    assert content_of(storage, "a/file") == b"first"
    assert names_in(storage, "a") == ["file"]


def test_a_killed_writers_leftover_goes_with_the_next_write(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)

    def killed() -> None:
        with storage.writing("file") as file:
            file.write(b"thi")
            end_without_a_word()

    in_a_process(killed)
    assert len(names_in(storage, "")) == 1
    with storage.writing("other") as file:
        file.write(b"this")
    assert names_in(storage, "") == ["other"]


def test_large_file_has_the_checksum_of_all_of_it(location: str) -> None:
    content = b"0123456789" * 300_000
    storage = Storage.at(location)
    with storage.writing("large") as file:
        file.write(content)
    assert storage.sha256("large") == hashlib.sha256(content).hexdigest()


def test_storage_travels_to_other_processes(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rollout actors get it pickled, on machines that may know the server from it alone."""
    write_dataset(location, FAMILY, TASKS)
    pickled = pickle.dumps(Storage.at(location))
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    assert open_dataset(pickle.loads(pickled)).manifest == open_dataset(pickle.loads(pickled)).manifest


def test_server_may_be_named_in_the_address(s3: str, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(s3, FAMILY, TASKS)
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert open_dataset(f"{s3}?endpoint_override={server}&scheme=http").manifest.tasks.keys() == set(TASKS)


def test_relative_path_stays_where_it_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_dataset("dataset", FAMILY, TASKS)
    dataset = open_dataset("dataset")
    monkeypatch.chdir("/")
    assert dataset.location == "dataset"
    assert len(dataset.read([7])) == 2


# What cannot be reached


def test_missing_bucket_is_an_error_of_the_user(s3: str) -> None:
    missing = s3.replace("bucket", "no-such-bucket")
    with pytest.raises(UserError) as refusal:
        open_dataset(missing)
    assert missing in str(refusal.value)
    with pytest.raises(UserError, match="no-such-bucket"):
        write_dataset(missing, FAMILY, TASKS)


def test_folder_that_cannot_be_written_is_an_error_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way of a folder")
    with pytest.raises(UserError, match="file/dataset"):
        write_dataset(tmp_path / "file" / "dataset", FAMILY, TASKS)


def test_unreachable_server_is_an_error_of_the_user(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    started = time.monotonic()
    with pytest.raises(UserError, match="cannot be reached") as refusal:
        open_dataset(s3)
    assert time.monotonic() - started < LIMIT_S
    assert s3 in str(refusal.value)


def test_address_that_cannot_be_looked_up_is_an_error_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without AWS_ENDPOINT_URL, pyarrow asks AWS for the bucket's region, and raises OSError if it cannot."""

    def from_uri(address: str) -> None:
        raise OSError("When resolving region for bucket 'bucket': Could not resolve host")

    monkeypatch.setattr(storage_module.fs, "FileSystem", SimpleNamespace(from_uri=from_uri))
    with pytest.raises(UserError, match="s3://bucket/dataset"):
        Storage.at("s3://bucket/dataset")


@pytest.mark.parametrize("address", ["ftp://host/folder", "cloud://bucket/folder", "s3://bucket/folder?colour=red"])
def test_unknown_address_is_refused_by_name(address: str) -> None:
    with pytest.raises(UserError, match="use a path, s3:// or gs://") as refusal:
        Storage.at(address)
    assert address in str(refusal.value)


@pytest.mark.parametrize(
    "address",
    [
        "s3://NAME:SECRET@bucket/folder",
        "s3://NAME:SEC/RET@bucket/folder",  # keys of AWS may hold slashes
        "s3://NAME:SEC?RET@bucket/folder",
        "s3://NAME:SEC#RET@bucket/folder",
        "s3://bucket/folder?access_key=NAME&secret_key=SECRET",
        "s3://bucket/folder?region=here&Secret_Key=SECRET",
        "s3://bucket/folder?secret%5Fkey=SECRET",
        "s3://bucket/folder?session_token=SECRET",
        "s3://bucket/folder?endpoint_override=http://NAME:SECRET@host",
        "gs://NAME:SECRET@bucket/folder",
        "http://NAME:SECRET@host/folder",
    ],
)
def test_credentials_in_an_address_are_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(UserError) as refusal:
        Storage.at(address)
    for secret in ("NAME", "SECRET", "SEC", "RET@"):
        assert secret not in str(refusal.value).replace("AWS_SECRET_ACCESS_KEY", "")
    assert "environment" in str(refusal.value)
