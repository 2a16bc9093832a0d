"""Folders on any filesystem that pyarrow knows: local paths, s3://bucket/folder, gs://bucket/folder."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from promptdiffuser import files
from promptdiffuser.errors import UserError

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Storage:
    """One folder and everything below it; names are relative to it, with `/` between their parts."""

    location: str
    """As it was given; safe to print and to log, as it holds no secret."""
    filesystem: fs.FileSystem
    root: str
    """The folder's path in the filesystem."""

    @staticmethod
    def at(location: str | Path) -> "Storage":
        """Return the folder at a local path or URI.

        Raises:
            UserError: The URI names no known filesystem, or holds a password or key, which then would end up in logs;
                credentials belong in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
                GOOGLE_APPLICATION_CREDENTIALS), the address of an S3-compatible server in AWS_ENDPOINT_URL.
        """
        text = str(location)
        if "://" not in text:
            return Storage(text, fs.LocalFileSystem(), str(Path(text).resolve()))
        if any(mark in text.lower() for mark in ("@", "key=", "token=")):
            raise UserError(
                f"the address {text.split('://')[0]}://... holds credentials; put them in the environment instead "
                "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or GOOGLE_APPLICATION_CREDENTIALS)"
            )
        try:
            filesystem, root = fs.FileSystem.from_uri(text)
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(
                f"{text} is not an address that can be read ({error}); use a path, s3:// or gs://"
            ) from error
        return Storage(text, filesystem, root.rstrip("/"))

    def path(self, name: str) -> str:
        """Return the path of a file in the filesystem."""
        return f"{self.root}/{name}"

    def has(self, name: str) -> bool:
        """Tell whether a file exists; raises `UserError` if the filesystem cannot be reached."""
        try:
            return bool(self.filesystem.get_file_info(self.path(name)).is_file)
        except OSError as error:
            raise UserError(f"{self.location} cannot be reached: {error}") from error

    def open(self, name: str) -> pa.NativeFile:
        """Open a file for reading at any position."""
        return self.filesystem.open_input_file(self.path(name))

    def sha256(self, name: str) -> str:
        """Return the checksum of a file, read in pieces."""
        digest = hashlib.sha256()
        with self.filesystem.open_input_stream(self.path(name)) as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()

    @contextmanager
    def writing(self, name: str) -> Iterator[pa.NativeFile]:
        """Write a file under a temporary name that becomes its own in the end: it is never seen half-written.

        A write that fails leaves nothing; what a killed process leaves on an object store stays there.
        """
        folder, _, last = self.path(name).rpartition("/")
        try:
            self.filesystem.create_dir(folder, recursive=True)
        except OSError as error:
            raise UserError(f"{self.location} cannot be written: {error}") from error
        put = files.writing(Path(folder, last)) if self._is_local else self._uploading(folder, last)
        with put as temporary, self.filesystem.open_output_stream(str(temporary)) as file:
            yield file

    @property
    def _is_local(self) -> bool:
        return isinstance(self.filesystem, fs.LocalFileSystem)

    @contextmanager
    def _uploading(self, folder: str, name: str) -> Iterator[str]:
        temporary = f"{folder}/{files.temporary_name(name)}"
        try:
            yield temporary
            self.filesystem.move(temporary, f"{folder}/{name}")
        except BaseException:
            with suppress(OSError):
                self.filesystem.delete_file(temporary)
            raise
