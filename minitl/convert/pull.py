"""Fetch weights for ImageNet from their official sources by name, and convert them once.

    from minitl.convert.pull import pull

    path = pull("resnet50.torchvision_v2")

The sources, with hash, licence and preprocessing, are in weights/catalogue.toml. A file is downloaded
under another name, compared with its hash, and only then takes its place in the cache; the weights file made
of it stays beside it. So what is there is whole, also where two programs pull at once, and nothing is
fetched twice.
"""

import difflib
import hashlib
import os
import re
import secrets
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from minitl.convert.presets import preset
from minitl.errors import UserError, WeightsFileError
from minitl.text import shown
from minitl.weights import CATALOGUE, IMAGENET_CLASSES

TIMEOUT = 30.0  # seconds that a server may be silent
RETRIES = 2  # after a connection that broke
_HASHES = {"sha256": (8, 64), "md5": (32, 32)}  # fewest and most hexadecimal digits


@dataclass(frozen=True)
class Entry:
    """A line of the catalogue.

    name: of the weights, ARCHITECTURE.SOURCE. arch: minitl's name of the network. url: of the file.
    algorithm, digits: its hash, "sha256" (at least the first 8 digits) or "md5". preprocessing: complete,
    as in weights files. license: as the source states it. megabytes, top1: size, and accuracy on ImageNet
    in percent; None where the source does not say.
    """

    name: str
    arch: str
    url: str
    algorithm: str
    digits: str
    preprocessing: dict[str, Any]
    license: str
    megabytes: int | None
    top1: float | None

    @property
    def file(self) -> str:
        """Name of the source file in the cache, its hash in it."""
        ending = Path(urlsplit(self.url).path).suffix
        return f"{self.name}-{self.digits[:16]}.source{ending}"

    @property
    def weights(self) -> str:
        """Name of the converted file in the cache, the source's hash in it."""
        return f"{self.name}-{self.digits[:16]}.h5"


def catalogue(path: Path | None = None) -> dict[str, Entry]:
    """Read the catalogue, minitl's own by default. Raises UserError for one that is not valid."""
    path = CATALOGUE if path is None else path
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        licenses = tables["licenses"]
        return {name: _entry(name, row, licenses) for name, row in tables["weights"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UserError) as error:
        reason = ascii(error) if isinstance(error, KeyError) else shown(f"{error}")
        raise UserError(f"{path} is not a valid catalogue: {reason}") from error
    except RecursionError:
        raise UserError(f"{path} is not a valid catalogue: it is nested too deep") from None


def _entry(name: str, row: dict[str, Any], licenses: dict[str, str]) -> Entry:
    from minitl.data.preprocessing import Preprocessing

    if not re.fullmatch(r"[a-z0-9_]+\.[a-z0-9_]+", name):  # it becomes the name of a file
        raise ValueError(f"{name!r} is not ARCHITECTURE.SOURCE")
    for field in ("arch", "url", "hash", "license"):
        if not isinstance(row[field], str):
            raise TypeError(f"{name}: {field} is no text")
    algorithm, _, digits = row["hash"].partition(":")
    fewest, most = _HASHES[algorithm]
    if not re.fullmatch(rf"[0-9a-f]{{{fewest},{most}}}", digits):
        raise ValueError(f"{name}: {row['hash']!r} is not a hash")
    window = dict(row["preprocessing"])
    values = preset(window.pop("values"))[1]
    return Entry(
        name=name,
        arch=row["arch"],
        url=row["url"],
        algorithm=algorithm,
        digits=digits,
        preprocessing=Preprocessing.from_dict(window | values).to_dict(),
        license=licenses[row["license"]],
        megabytes=row.get("megabytes"),
        top1=row.get("top1"),
    )


def cache_folder() -> Path:
    """Return where downloads are kept."""
    return user_folder() / "weights"


def user_folder() -> Path:
    """Return the folder for all that can be made or fetched again: $MINITL_CACHE, or the user's own."""
    import platformdirs

    chosen = os.environ.get("MINITL_CACHE")
    return Path(chosen) if chosen else platformdirs.user_cache_path("minitl")


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)  # results, which may be JSON, go to standard output


def find_weights(text: str | os.PathLike[str], say: Callable[[str], object] = _to_stderr) -> Path:
    """Return the weights file that a user means: a file, a run folder's best, or a name of the catalogue.

    Raises UserError where it is none of these, or cannot be fetched. A file is not opened here.
    """
    path = Path(text)
    if path.is_dir():
        if not (path / "best.h5").is_file():
            raise UserError(f"{path} is not a run folder: it has no best.h5")
        return path / "best.h5"
    if path.exists() or path.suffix == ".h5" or len(path.parts) > 1:
        return path
    return pull(str(text), say=say)


def is_name(text: str) -> bool:
    """Whether a text names weights of the catalogue, and no file or folder."""
    return not Path(text).exists() and text in catalogue()


def pull(
    name: str,
    *,
    offline: bool = False,
    check: bool = False,
    say: Callable[[str], object] = _to_stderr,
) -> Path:
    """Return the weights file of a name of the catalogue, fetched and converted if it is not there yet.

    offline: use what is in the cache and nothing else; the environment variable MINITL_OFFLINE asks for
    it everywhere. check: read the weights file too, and make it anew if it is damaged (else whoever loads
    it finds out). say: gets a line for each thing done.

    Raises UserError in one line for an unknown name and for whatever stops the download: no network, no
    such file, a silent server, a broken connection, other bytes than expected, no space.
    """
    entries = catalogue()
    if name not in entries:
        raise UserError(_unknown(name, entries))
    entry, folder = entries[name], cache_folder()
    target = folder / entry.weights
    if target.is_file() and not (check and _is_damaged(target, say)):
        return target
    source = folder / entry.file
    if not (source.is_file() and _matches(entry, _hash(source, entry.algorithm))):
        if offline or _is_offline():
            switch = "--offline" if offline else "MINITL_OFFLINE set"
            raise UserError(f"{name} is not in {folder}; run minitl pull {name} without {switch}")
        size = f" ({entry.megabytes} MB)" if entry.megabytes else ""
        say(f"{name}: downloading {entry.url}{size}")
        _download(entry, folder)
    _convert(entry, source, target, say)
    return target


def _is_offline() -> bool:
    return os.environ.get("MINITL_OFFLINE", "0") not in ("", "0")


def _unknown(name: str, entries: dict[str, Entry]) -> str:
    choices = [n for n, entry in entries.items() if name in (entry.arch, n.split(".")[0])]
    if choices:
        return f"{name} comes from several sources; say which: {', '.join(choices)}"
    near = difflib.get_close_matches(name, entries, n=3, cutoff=0.6)
    guess = f"; is it {' or '.join(near)}?" if near else ""
    return (
        f"{name[:80]} does not exist, and is no name of the catalogue (minitl pull --list){guess}"
    )


def _is_damaged(target: Path, say: Callable[[str], object]) -> bool:
    from minitl import hdf5

    try:
        hdf5.read(target)
        return False
    except WeightsFileError as error:
        say(f"{error}")
        return True


def _hash(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _matches(entry: Entry, found: str) -> bool:
    return found.startswith(entry.digits)


# ---------------------------------------------------------------------------- downloading


def _download(entry: Entry, folder: Path) -> None:
    """Put the entry's file into the folder, whole and verified, or raise UserError."""
    import pooch
    import requests

    def fetch(url: str, output: str, _: object) -> None:
        bar = sys.stderr.isatty()
        try:
            pooch.HTTPDownloader(progressbar=bar, timeout=TIMEOUT)(url, output, None)
        except requests.HTTPError as error:  # an answer, which trying again would not change
            raise UserError(_refusal(entry, error)) from error
        found = _hash(Path(output), entry.algorithm)
        if not _matches(entry, found):
            raise UserError(
                f"{url} gave other bytes than the catalogue expects ({entry.algorithm} {found}, expected "
                f"{entry.digits}): altered on the way, or replaced at the source; nothing was kept"
            )

    pooch.get_logger().setLevel("WARNING")  # what happens is said here
    # Under a name of its own first: another process may be reading the file of this name.
    name = f"{entry.file}.{secrets.token_hex(4)}"
    registry, urls = {name: None}, {name: entry.url}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        getter = pooch.create(folder, "", registry=registry, urls=urls, retry_if_failed=RETRIES)
        Path(getter.fetch(name, downloader=fetch)).replace(folder / entry.file)
    except requests.RequestException as error:
        raise UserError(_broken(entry, error)) from error
    except OSError as error:
        raise UserError(
            f"cannot keep the download in {folder}: {error.strerror or error}; free some space, or choose "
            "another folder with MINITL_CACHE"
        ) from error


def _broken(entry: Entry, error: Exception) -> str:
    """Explain a connection that could not be made, or broke every time."""
    import requests

    host = urlsplit(entry.url).hostname
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return f"{entry.url} was cut off {RETRIES + 1} times; nothing was kept, try again later"
    if "timed out" in str(error):
        return (
            f"{host} was silent for {TIMEOUT:g} s ({entry.url}); nothing was kept, try again later"
        )
    return (
        f"cannot reach {host} ({_reason(error)}); {entry.name} needs the network once: connect, or set "
        "HTTPS_PROXY if there is a proxy"
    )


def _refusal(entry: Entry, error: Any) -> str:
    status = error.response.status_code
    advice = "the file has moved or is gone" if status in (404, 410) else "try again later"
    return f"{entry.url} answers {status} {error.response.reason}; {advice}"


def _reason(error: BaseException) -> str:
    """Return the innermost cause of a failed connection, in a few words."""
    found = re.search(r"\[Errno -?\d+\] ([\w ]+)", str(error))
    return found[1] if found else type(error).__name__


# ---------------------------------------------------------------------------- converting


def _convert(entry: Entry, source: Path, target: Path, say: Callable[[str], object]) -> None:
    from minitl.convert import convert

    report = convert(
        source,
        target,
        class_names=IMAGENET_CLASSES.read_text(encoding="utf-8").splitlines(),
        preprocessing=entry.preprocessing,
        source=f"{entry.name}: {entry.url}",
        license=entry.license,
        overwrite=True,
    )
    if report.arch != entry.arch:
        target.unlink()
        raise UserError(f"{entry.url} holds a {report.arch}, the catalogue says {entry.arch}")
    say(f"{entry.name}: converted to {target}")


__all__ = ["Entry", "cache_folder", "catalogue", "find_weights", "is_name", "pull"]
