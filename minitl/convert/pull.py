"""Fetch weights for ImageNet from their official sources by name, and convert them once.

    from minitl.convert.pull import pull

    path = pull("resnet50.torchvision_v2")

The sources, with hash, licence and preprocessing, are in weights/catalogue.toml; where it knows no hash, the
server is asked for it first. A file is downloaded under another name, compared with its hash, and only then
takes its place in the cache; the weights file made of it stays beside it. So what is there is whole, also
where two programs pull at once, and nothing is fetched twice.
"""

import difflib
import hashlib
import os
import re
import secrets
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from minitl.convert.presets import preset
from minitl.errors import UserError, WeightsFileError
from minitl.files import advice, user_folder
from minitl.text import shown
from minitl.weights import CATALOGUE, IMAGENET_CLASSES

TIMEOUT = 30.0  # seconds that a server may be silent
RETRIES = 2  # after a connection that broke
_HASHES = {"sha256": (8, 64), "md5": (32, 32)}  # fewest and most hexadecimal digits
_STATED = "stated by the hub"  # in place of a hash
# The Hugging Face hub's answer for a large file redirects to where it is stored, and this header of the same
# answer is the file's SHA-256 (source: weights/README.md). For small files, kept in git, it is another,
# shorter hash.
_STATED_IN = "X-Linked-ETag"
_HOPS = 5  # redirects within the hub: what was renamed has its old name for ever
_IN_NAMES = 16  # digits of the hash in the names of files


@dataclass(frozen=True)
class Entry:
    """A line of the catalogue.

    name: of the weights, ARCHITECTURE.SOURCE. arch: minitl's name of the network. url: of the file.
    algorithm, digits: its hash, "sha256" (at least the first 8 digits) or "md5"; no digits where only the
    server knows them. stated: whether that is so. preprocessing: complete, as in weights files. license: as
    the source states it. megabytes, top1: size, and accuracy on ImageNet in percent; None where the source
    does not say.
    """

    name: str
    arch: str
    url: str
    algorithm: str
    digits: str
    stated: bool
    preprocessing: dict[str, Any]
    license: str
    megabytes: int | None
    top1: float | None

    @property
    def file(self) -> str:
        """Name of the source file in the cache, its hash in it."""
        ending = Path(urlsplit(self.url).path).suffix
        return f"{self.name}-{self.digits[:_IN_NAMES]}.source{ending}"

    @property
    def weights(self) -> str:
        """Name of the converted file in the cache, the source's hash in it."""
        return f"{self.name}-{self.digits[:_IN_NAMES]}.h5"


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
    algorithm, digits = _hash_of(name, row["hash"])
    window = dict(row["preprocessing"])
    values = preset(window.pop("values"))[1]
    return Entry(
        name=name,
        arch=row["arch"],
        url=row["url"],
        algorithm=algorithm,
        digits=digits,
        stated=not digits,
        preprocessing=Preprocessing.from_dict(window | values).to_dict(),
        license=licenses[row["license"]],
        megabytes=row.get("megabytes"),
        top1=row.get("top1"),
    )


def _hash_of(name: str, text: str) -> tuple[str, str]:
    """Return algorithm and digits; no digits where the hub states them."""
    if text == _STATED:
        return "sha256", ""
    algorithm, _, digits = text.partition(":")
    fewest, most = _HASHES[algorithm]
    if not re.fullmatch(rf"[0-9a-f]{{{fewest},{most}}}", digits):
        raise ValueError(f"{name}: {text!r} is not a hash")
    return algorithm, digits


def cache_folder() -> Path:
    """Return where downloads are kept."""
    return user_folder() / "weights"


def to_stderr(line: str) -> None:
    """Say something where it is no part of a result, which may be JSON on standard output."""
    print(line, file=sys.stderr)


def is_cached(entry: Entry) -> bool:
    """Whether the weights file of an entry is in the cache."""
    folder = cache_folder()
    entry = _with_kept_hash(entry, folder)
    return bool(entry.digits) and (folder / entry.weights).is_file()


def _with_kept_hash(entry: Entry, folder: Path) -> Entry:
    """Complete an entry whose hash the server states with that of the files in the cache, if any."""
    if not entry.stated:
        return entry
    ending = Path(entry.file).suffix
    ours = re.compile(
        rf"{re.escape(entry.name)}-([0-9a-f]{{{_IN_NAMES}}})\.(h5|source{re.escape(ending)})"
    )
    found = [
        match for path in folder.glob(f"{entry.name}-*") if (match := ours.fullmatch(path.name))
    ]
    # A weights file before a source, and always the same one.
    found.sort(key=lambda match: (match[2] != "h5", match[1]))
    return replace(entry, digits=found[0][1]) if found else entry


def pull(
    name: str,
    *,
    offline: bool = False,
    check: bool = False,
    say: Callable[[str], object] = to_stderr,
) -> Path:
    """Return the weights file of a name of the catalogue, fetched and converted if it is not there yet.

    offline: use what is in the cache and nothing else; the environment variable MINITL_OFFLINE asks for
    it everywhere. check: read the weights file too, and make it anew if it is damaged (else whoever loads
    it finds out). say: gets a line for each thing done.

    Raises UserError in one line for an unknown name and for whatever stops the download: no network, no
    such file, no hash stated where it should be, a silent server, a broken connection, other bytes than
    expected, no space.
    """
    entries = catalogue()
    if name not in entries:
        raise UserError(_unknown(name, entries))
    folder = cache_folder()
    entry = _with_kept_hash(entries[name], folder)
    target = folder / entry.weights
    if entry.digits and target.is_file() and not (check and _is_damaged(target, say)):
        return target
    source = folder / entry.file
    found = {source, target}  # what is there of them is damaged if it is not used below
    if not (source.is_file() and _matches(entry, _hash(source, entry.algorithm))):
        if offline or _is_offline():
            switch = "--offline" if offline else "MINITL_OFFLINE set"
            raise UserError(f"{name} is not in {folder}; run minitl pull {name} without {switch}")
        if entry.stated:
            entry = _with_stated_hash(entry, say)
            source, target = folder / entry.file, folder / entry.weights
        size = f" ({entry.megabytes} MB)" if entry.megabytes else ""
        say(f"{name}: downloading {entry.url}{size}")
        _download(entry, folder)
    _convert(entry, source, target, say)
    for path in found - {source, target}:  # the hub has another file by now, and so another hash
        path.unlink(missing_ok=True)
    return target


def _is_offline() -> bool:
    return os.environ.get("MINITL_OFFLINE", "0") not in ("", "0")


def _unknown(name: str, entries: dict[str, Entry]) -> str:
    choices = [n for n, entry in entries.items() if name in (entry.arch, n.split(".")[0])]
    if choices:
        return f"{name} comes from several sources; say which: {', '.join(choices)}"
    copy = re.fullmatch(r"(\w+)\.tv(2?)_in1k", name)  # timm's names for torchvision's weights
    if copy and (original := f"{copy[1]}.torchvision_v{copy[2] or 1}") in entries:
        return f"{name} is timm's copy of torchvision's weights; take the original, {original}"
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
    return bool(entry.digits) and found.startswith(entry.digits)


# ---------------------------------------------------------------------------- downloading


def _with_stated_hash(entry: Entry, say: Callable[[str], object]) -> Entry:
    """Complete an entry with the SHA-256 that its server states, or raise UserError."""
    import requests

    try:
        answer = _ask(entry.url)
        answer.raise_for_status()
    except requests.HTTPError as error:
        raise UserError(_refusal(entry, error)) from error
    except requests.RequestException as error:
        raise UserError(_broken(entry, error)) from error
    host, stated = urlsplit(entry.url).hostname, answer.headers.get(_STATED_IN)
    if stated is None:
        raise UserError(
            f"{entry.url}: {host} states no hash of the file ({_STATED_IN}), so a download could not be "
            "verified; try again later, or fetch the file yourself and run minitl convert"
        )
    digits = stated.strip().removeprefix("W/").strip('"').lower()
    if not re.fullmatch("[0-9a-f]{64}", digits):
        raise UserError(
            f"{entry.url}: what {host} states as hash of the file is no SHA-256 ({shown(stated[:80])}), so a "
            "download could not be verified; nothing was fetched"
        )
    say(
        f"{entry.name}: {host} states sha256 {digits}; this is the server's own word: it shows a broken "
        "download, not a file that was changed there"
    )
    return replace(entry, digits=digits)


def _ask(url: str) -> Any:
    """Return the server's answer about a file, before it sends one elsewhere: only that carries the hash."""
    import requests

    with requests.Session() as session:
        for scheme in ("http://", "https://"):
            session.mount(scheme, requests.adapters.HTTPAdapter(max_retries=RETRIES))
        for _ in range(_HOPS):
            answer = session.head(url, allow_redirects=False, timeout=TIMEOUT)
            if _STATED_IN in answer.headers or not answer.is_redirect:
                break
            target = urljoin(url, answer.headers["Location"])
            if urlsplit(target)[:2] != urlsplit(url)[:2]:  # no longer the hub, whose word it is
                break
            url = target
        return answer


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
            expected = "it states itself" if entry.stated else "the catalogue expects"
            raise UserError(
                f"{url} gave other bytes than {expected} ({entry.algorithm} {found}, expected "
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
            f"cannot keep the download in {folder}: {error.strerror or error}; {advice(error)}; "
            "MINITL_CACHE names another folder"
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
    status = error.response.status_code  # 401: the hub's answer for what does not exist
    advice = "the file has moved or is gone" if status in (401, 404, 410) else "try again later"
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


__all__ = [
    "Entry",
    "cache_folder",
    "catalogue",
    "is_cached",
    "pull",
    "to_stderr",
]
