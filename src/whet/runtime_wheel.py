"""The TVM runtime as a wheel of its own: one library of 3 MB and its licenses, out of TVM's wheel of 100 MB.

A device installs it beside whet, and gets neither the compiler nor torch. It is made from an installed apache-tvm or
from a downloaded one, also of another platform, and from the same library come the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from email.message import Message
from email.parser import Parser
from importlib.metadata import Distribution, PackagePath, distributions
from pathlib import Path
from typing import Final

from packaging.metadata import Metadata
from packaging.tags import Tag, parse_tag
from wheel.wheelfile import WheelFile

from whet._version import __version__
from whet.errors import TargetError
from whet.runtime import pins

NAME: Final = "whet_runtime"
_SOURCE: Final = "apache-tvm"
_LIBRARIES: Final = ("tvm/lib/libtvm_runtime.so", "tvm/lib/libtvm_runtime.dylib", "tvm/lib/tvm_runtime.dll")
# What is compiled into the runtime, of all that TVM's wheel has licenses for: TVM, and conversions of half precision.
_LICENSES: Final = ("tvm/LICENSE", "tvm/NOTICE", "tvm/licenses/LICENSE.builtin_fp16.txt")
# The least date that a zip file can hold, in seconds since 1970: dates would make bytes differ.
_DATE: Final = "315532800"
_PACKAGE: Final = f'"""The runtime library of Apache TVM {pins.TVM}; whet finds it as a file."""\n'
_DESCRIPTION: Final = """\
The runtime library of Apache TVM, without TVM's compiler: what `whet.load` needs on a device besides whet itself.
Where apache-tvm is installed, whet takes the library from there and not from here.
"""


def make_runtime_wheel(folder: Path, source: Path | None = None, platform: str | None = None) -> Path:
    """Write the wheel into `folder` and return its path.

    `source` is a wheel of apache-tvm, or the site-packages folder where one is installed. `platform` (as pip names it,
    `manylinux_2_28_aarch64`) downloads one with pip. Without either the apache-tvm of this Python is taken. Raises
    TargetError where there is none, or it is of another version than Whet's, damaged or incomplete.
    """
    if source is not None and platform is not None:
        raise TargetError("give a source or a platform, not both: a platform names what pip downloads")
    if platform is None:
        return _write(_open(source), folder)
    with tempfile.TemporaryDirectory(prefix="whet-") as downloads:
        return _write(_open(_download(platform, Path(downloads))), folder)


def _open(source: Path | None) -> Distribution:
    found = next(iter(distributions(name=_SOURCE, path=sys.path if source is None else [str(source)])), None)
    if found is None:
        where = "this Python" if source is None else str(source)
        raise TargetError(f"{where} has no {_SOURCE}: name its wheel, or the folder where it is installed")
    return found


def _download(platform: str, folder: Path) -> Path:
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--platform", platform, "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, f"{_SOURCE}=={pins.TVM}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise TargetError(f"pip found no {_SOURCE}=={pins.TVM} for {platform}: {' '.join(errors) or done.stderr}")
    (wheel,) = folder.glob("*.whl")
    return wheel


def _write(tvm: Distribution, folder: Path) -> Path:
    if tvm.version != pins.TVM:
        raise TargetError(f"{_SOURCE} {tvm.version} is not the {pins.TVM} that this whet runs with")
    library = _only(tvm, _LIBRARIES)
    licenses = [_only(tvm, (path,)) for path in _LICENSES]
    tags = _tags(tvm)
    base = f"{NAME}-{pins.TVM}"
    contents = {
        f"{NAME}/__init__.py": _PACKAGE.encode(),
        f"{NAME}/lib/{library.name}": _read(tvm, library),
        **{f"{base}.dist-info/licenses/{file.name}": _read(tvm, file) for file in licenses},
        f"{base}.dist-info/METADATA": bytes(_metadata([file.name for file in licenses]).as_rfc822()),
        f"{base}.dist-info/WHEEL": bytes(_wheel_file(tags)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{base}-py3-none-{'.'.join(tag.platform for tag in tags)}.whl"
    with _fixed_date(), WheelFile(path, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return path


def _only(tvm: Distribution, paths: Sequence[str]) -> PackagePath:
    """The file that lies in one of these places. Raises TargetError unless there is exactly one."""
    found = [file for file in tvm.files or () if str(file) in paths]
    if len(found) != 1:
        raise TargetError(f"{_SOURCE} {tvm.version} has {len(found)} of the files {', '.join(paths)}, not one")
    return found[0]


def _read(tvm: Distribution, file: PackagePath) -> bytes:
    """The file, held against the checksum in the record. Raises TargetError where they differ, or it is gone."""
    try:
        data: bytes = tvm.locate_file(file).read_bytes()  # type: ignore[attr-defined]
    except (FileNotFoundError, KeyError) as error:
        raise TargetError(f"{file} of {_SOURCE} is missing: install it again") from error
    digest = file.hash
    if digest is None:
        raise TargetError(f"the record of {_SOURCE} has no checksum of {file}: install it from a wheel")
    actual = urlsafe_b64encode(hashlib.new(digest.mode, data).digest()).rstrip(b"=").decode()
    if actual != digest.value:
        raise TargetError(f"{file} of {_SOURCE} is damaged: install it again")
    return data


def _tags(tvm: Distribution) -> list[Tag]:
    """The platforms that TVM's wheel was made for, which are the library's."""
    fields = Parser().parsestr(tvm.read_text("WHEEL") or "")
    tags = {tag for text in fields.get_all("Tag", []) for tag in parse_tag(text)}
    if not tags or any((tag.interpreter, tag.abi) != ("py3", "none") for tag in tags):
        shown = ", ".join(sorted(map(str, tags))) or "none"
        raise TargetError(f"{_SOURCE} {tvm.version} was to be for any Python 3; its tags are: {shown}")
    return sorted(tags, key=lambda tag: tag.platform)


def _metadata(licenses: Sequence[str]) -> Metadata:
    return Metadata.from_raw(
        {
            "metadata_version": "2.4",
            "name": NAME.replace("_", "-"),
            "version": pins.TVM,
            "summary": "The runtime library of Apache TVM, for whet on a device",
            "license_expression": "Apache-2.0",
            "license_files": list(licenses),
            "requires_python": ">=3.11",
            "requires_dist": [f"apache-tvm-ffi=={pins.TVM_FFI}"],
            "description_content_type": "text/markdown",
            "description": _DESCRIPTION,
        }
    )


def _wheel_file(tags: list[Tag]) -> Message:
    fields = Message()
    fields["Wheel-Version"] = "1.0"
    fields["Generator"] = f"whet {__version__}"
    # Installed among what depends on the platform.
    fields["Root-Is-Purelib"] = "false"
    for tag in tags:
        fields["Tag"] = str(tag)
    return fields


@contextmanager
def _fixed_date() -> Iterator[None]:
    """The variable by which `wheel` is told the date of everything it writes."""
    before = os.environ.get("SOURCE_DATE_EPOCH")
    os.environ["SOURCE_DATE_EPOCH"] = _DATE
    try:
        yield
    finally:
        if before is None:
            del os.environ["SOURCE_DATE_EPOCH"]
        else:
            os.environ["SOURCE_DATE_EPOCH"] = before
