"""Checkpoints of a run on an object store (``checkpoint.url``), through fsspec; no torch, no ranks.

Below ``<url>/<run.name>/``:

==========================  =====================================================================
``step_0001000/``           the files of a checkpoint; complete if ``manifest.json`` is there, which
                            is written last and deleted first, since a store cannot rename
``latest.json``             step and folder of the newest one, for people and scripts; never read
``lock.json``               the job that may write here
``config.yaml``             configuration of that job, for a start that has lost its run folder
==========================  =====================================================================

Only rank 0 talks to the store: one process needs the network and credentials, and the order of the
objects needs no exchange. Packages of protocols are imported by fsspec, when a URL names them.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import known_implementations

from glm_dist.checkpoint.folders import MANIFEST_NAME, step_name, step_of
from glm_dist.checkpoint.manifest import MOST_BYTES
from glm_dist.errors import CheckpointError, ConfigError

BLOCK_BYTES = 32 << 20
"""Bytes of one read from the store."""

LATEST = "latest.json"
CONFIG = "config.yaml"
REWOUND_MANIFEST = "rewound-manifest.json"
"""Name of the manifest of a checkpoint that the run has gone back behind."""

_HAVE_FOLDERS = {"file", "local", "memory", "sftp", "ssh", "ftp", "hdfs", "webhdfs", "smb"}
"""Protocols that want a folder before a file. On the others, making one may create a bucket."""

_SECRET_NAMES = re.compile("SECRET|TOKEN|PASSWORD|PASSPHRASE|ACCESS_KEY|API_KEY|SAS|CONNECTION_STR")


class StoreError(CheckpointError):
    """Error for a store that did not do what was asked; local checkpoints are intact."""


class MissingObjectError(StoreError):
    """Error for an object that is not there."""


def open_store(url: str, run: str) -> "RemoteStore":
    """Load the protocol's package.

    Args:
        url: ``checkpoint.url``, checked for its form.
        run: ``run.name``.

    Raises:
        ConfigError: There is no such protocol, its package is not installed, or the URL is not one
            of its.
    """
    protocol = url.partition("://")[0].lower()
    try:
        fsspec.get_filesystem_class(protocol)
        # Another job may write there, so nothing that was listed before is remembered.
        options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
        system, root = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        package = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}.get(protocol)
        if package is not None:
            fix = "pip install 'glm-dist[remote]'"
        else:
            fix = str(known_implementations.get(protocol, {}).get("err", error)).rstrip(".")
        raise ConfigError(
            f"checkpoint.url={url} needs {package or 'a package'} for {protocol}://, which is not"
            f" installed or cannot be imported ({without_secrets(str(error))}).\n  {fix}",
            key="checkpoint.url",
            value=url,
            fix=fix,
        ) from error
    except Exception as error:  # a protocol that fsspec does not know, or the package's own checks
        raise ConfigError(
            f"checkpoint.url={url} cannot be opened: {_reason(error)}.\n"
            "  Check its spelling: s3://<bucket>/<folder>, for example.",
            key="checkpoint.url",
            value=url,
            fix="checkpoint.url=s3://<bucket>/<folder>",
        ) from error
    return RemoteStore(system, f"{root.rstrip('/')}/{run}", url=f"{url.rstrip('/')}/{run}")


class RemoteStore:
    """One run's folder on a store. Every method may raise ``StoreError``, whatever the backend."""

    def __init__(self, system: Any, root: str, *, url: str) -> None:
        """Use an open file system of fsspec.

        Args:
            system: fsspec's file system.
            root: Path of the run's folder in it.
            url: The same, for messages.
        """
        self._system = system
        self._root = root
        self.url = url

    def steps(self) -> tuple[list[int], list[int]]:
        """List complete checkpoints, and folders without a manifest; both newest first."""
        complete: list[int] = []
        incomplete: list[int] = []
        for step in sorted(filter(None, map(_step, self._list(""))), reverse=True):
            there = complete if self.exists(f"{step_name(step)}/{MANIFEST_NAME}") else incomplete
            there.append(step)
        return complete, incomplete

    def names(self, step: int) -> list[str]:
        """List the objects of a step by their last part; none if there are none."""
        return self._list(step_name(step))

    def exists(self, name: str) -> bool:
        """Return True if there is an object."""
        with self._explained("look for", name):
            return bool(self._system.exists(self._path(name)))

    def size(self, name: str) -> int:
        """Return the bytes of an object, as the store says."""
        with self._explained("look at", name):
            return int(self._system.info(self._path(name))["size"])

    def sha256(self, name: str) -> str:
        """Read an object whole and hash it."""
        digest = hashlib.sha256()
        with self._explained("read", name):
            options = {"block_size": BLOCK_BYTES}
            with self._system.open(self._path(name), "rb", **options) as stream:
                while block := stream.read(BLOCK_BYTES):
                    digest.update(block)
        return digest.hexdigest()

    def read(self, name: str) -> bytes:
        """Return a small object, such as a manifest."""
        num_bytes = self.size(name)
        if num_bytes > MOST_BYTES:
            raise self.error("read", name, f"it has {num_bytes} bytes, more than {MOST_BYTES}")
        with self._explained("read", name):
            return bytes(self._system.cat_file(self._path(name)))

    def write(self, name: str, content: bytes) -> None:
        """Write a small object, and read it back."""
        with self._explained("write", name):
            self._make_folder(name)
            self._system.pipe_file(self._path(name), content)
            self._sync(name)
        if self.size(name) != len(content) or self.read(name) != content:
            raise self.error("write", name, "it holds something else than was written")

    def put(self, path: Path, name: str, *, num_bytes: int, sha256: str) -> None:
        """Copy a local file to an object, then compare its size, read it back and hash it.

        Args:
            path: The file.
            name: The object.
            num_bytes: Size of the file.
            sha256: Its hash.
        """
        with self._explained("write", name):
            self._make_folder(name)
            self._system.put_file(str(path), self._path(name))
            self._sync(name)
        found = self.size(name)
        if found != num_bytes:
            raise self.error("write", name, f"it has {found} of {num_bytes} bytes")
        if self.sha256(name) != sha256:
            raise self.error("write", name, "its SHA-256 is not the file's")

    def get(self, name: str, path: Path) -> None:
        """Copy an object to a local file."""
        with self._explained("read", name):
            self._system.get_file(self._path(name), str(path))

    def remove(self, step: int) -> None:
        """Delete a step, the manifest first, so that a part of it is no checkpoint."""
        self._remove(f"{step_name(step)}/{MANIFEST_NAME}")
        for name in self.names(step):
            self._remove(f"{step_name(step)}/{name}")
        if self._has_folders:
            with self._explained("remove", step_name(step)):
                if self._system.isdir(self._path(step_name(step))):
                    self._system.rmdir(self._path(step_name(step)))

    def set_aside(self, step: int) -> None:
        """Keep a step's objects, but not as a checkpoint: its manifest gets another name."""
        manifest = f"{step_name(step)}/{MANIFEST_NAME}"
        self.write(f"{step_name(step)}/{REWOUND_MANIFEST}", self.read(manifest))
        self._remove(manifest)

    def probe(self, name: str) -> None:
        """Check that objects can be written and deleted."""
        self.write(name, b"{}\n")
        self._remove(name)

    def error(self, task: str, name: str, reason: str) -> StoreError:
        """Build the error for one object."""
        return StoreError(
            f"{self.url}/{name}: could not {task} it: {reason}.\n"
            "  Local checkpoints are intact. Check the store, its permissions and its quota.",
            key=f"{self.url}/{name}",
            value=reason,
            fix="check the store",
        )

    @property
    def _has_folders(self) -> bool:
        protocols = self._system.protocol
        named = {protocols} if isinstance(protocols, str) else set(protocols)
        return bool(named & _HAVE_FOLDERS)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}".rstrip("/")

    def _list(self, folder: str) -> list[str]:
        with self._explained("list", folder):
            try:
                found: Sequence[str] = self._system.ls(self._path(folder), detail=False)
            except FileNotFoundError:
                return []
            return [str(path).rstrip("/").rpartition("/")[2] for path in found]

    def _remove(self, name: str) -> None:
        with self._explained("remove", name):
            if self._system.exists(self._path(name)):
                self._system.rm_file(self._path(name))

    def _make_folder(self, name: str) -> None:
        if self._has_folders:
            self._system.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)

    def _sync(self, name: str) -> None:
        """Make a file durable where the store is a file system of this machine."""
        if isinstance(self._system, LocalFileSystem):
            descriptor = os.open(self._path(name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    @contextmanager
    def _explained(self, task: str, name: str) -> Iterator[None]:
        """Turn whatever a backend raises into an error that names the object.

        Raises:
            StoreError: Instead.
        """
        try:
            yield
        except FileNotFoundError:
            wrapped = self.error(task, name, "there is no such object or bucket")
            raise MissingObjectError(
                str(wrapped), key=wrapped.key, value=wrapped.value, fix=wrapped.fix
            ) from None
        except Exception as error:
            # Without its cause: a traceback of the backend may show what authorized a request.
            raise self.error(task, name, _reason(error)) from None


def without_secrets(text: str) -> str:
    """Mask what may authorize a request: parameters and users of URLs, and secret variables."""
    text = re.sub(r"://[^/\s@]+@", "://***@", text)
    text = re.sub(r"(://[^\s?]+)\?\S+", r"\1?***", text)
    for name, value in os.environ.items():
        if len(value) >= 8 and _SECRET_NAMES.search(name.upper()):
            text = text.replace(value, "***")
    return text


def _reason(error: Exception) -> str:
    text = " ".join(without_secrets(str(error)).split())[:500].rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _step(name: str) -> int | None:
    return step_of(Path(name)) if name.startswith("step_") else None
