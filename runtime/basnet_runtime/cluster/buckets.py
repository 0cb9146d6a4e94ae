"""Objects of buckets as files: list, fetch to scratch, upload in one step.

The only module that imports fsspec.

    path = path_of("s3://bucket/photos/a.jpg")       # //s3/bucket/photos/a.jpg, which no local file is called
    fetch(path, scratch); put(result, path_of("s3://bucket/masks/a.mask.png"), replace=False)

An object appears whole, when the last byte has come. Nothing is written through `open`: an exception inside the block
publishes what was written so far. Credentials come from the environment alone and are in no message.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from basnet_torch.errors import BackendUnavailable, MediaError

__all__ = [
    "fetch",
    "is_bucket",
    "is_prefix",
    "is_whole",
    "listed",
    "matching_objects",
    "path_of",
    "put",
    "put_text",
    "read_text",
    "remove",
    "shown",
    "url_of",
]

Value = TypeVar("Value")
_URL = re.compile(r"(s3|gs|gcs|az|abfs|abfss)://(.+)", re.DOTALL)
_PATH = re.compile(r"//(s3|gs|gcs|az|abfs|abfss)/(.+)", re.DOTALL)
_PACKAGES = {"s3": "basnet-deploy[s3]", "gs": "gcsfs", "gcs": "gcsfs"}
_TRIES = 5
_PAUSE_SECONDS = 0.5  # before the second try, twice as long before each further one
_PASSING = (
    "ConnectionError",
    "ConnectError",
    "ConnectionClosedError",
    "TimeoutError",
    "HTTPClientError",
    "IncompleteRead",
)
_MD5 = re.compile(r"[0-9a-f]{32}")


def is_bucket(text: str) -> bool:
    """Whether this names a bucket.

    >>> is_bucket("s3://photos/2026"), is_bucket("photos"), is_bucket("rtsp://camera")
    (True, False, False)
    """
    return _URL.fullmatch(text) is not None


def path_of(url: str) -> Path:
    """Return an object's or prefix's URL as a path.

    Parts that a path cannot have are escaped.

    >>> path_of("s3://b/a//x y.jpg")
    PosixPath('//s3/b/a/%/x y.jpg')
    >>> url_of(path_of("s3://b/a//../%41.jpg"))
    's3://b/a//../%41.jpg'
    """
    found = _URL.fullmatch(url)
    if found is None:
        raise MediaError(f"{url}: no bucket's address; write s3://BUCKET/PREFIX")
    parts = found[2].rstrip("/").split("/")
    escaped = (f"%{part}" if part in ("", ".", "..") or part.startswith("%") else part for part in parts)
    return Path(f"//{found[1]}/{'/'.join(escaped)}")


def url_of(path: Path) -> str | None:
    """The URL that a path stands for; None of a local file."""
    found = _PATH.fullmatch(str(path))
    if found is None:
        return None
    return f"{found[1]}://{'/'.join(part.removeprefix('%') for part in found[2].split('/'))}"


def shown(path: Path) -> Any:
    """A path for display: the URL, or the path itself."""
    return url_of(path) or path


@cache
def _file_system(scheme: str) -> Any:
    try:
        import fsspec

        # Tries are counted here: the library's own would multiply them.
        options = {"config_kwargs": {"retries": {"total_max_attempts": 1}}} if scheme == "s3" else {}
        made = fsspec.filesystem(scheme, use_listings_cache=False, **options)
    except (ImportError, ValueError) as error:
        package = _PACKAGES.get(scheme, "adlfs")
        raise BackendUnavailable(f"{scheme}://: cannot be read ({error}); pip install '{package}'") from error
    if scheme == "s3":
        made.retries = 1
    return made


def _call(path: Path, function: Callable[[Any, str], Value]) -> Value:
    """Call a file system with the object's name; up to five times where that may help.

    Raises:
        FileNotFoundError: There is no such object or bucket.
        FileExistsError: It is there already.
        MediaError: Anything else that the store says, without what only the store should know.
    """
    url = url_of(path) or ""
    scheme, _, name = url.partition("://")
    system = _file_system(scheme)
    for attempt in range(_TRIES):
        try:
            return function(system, name)
        except (FileNotFoundError, FileExistsError):
            raise
        except Exception as error:  # noqa: BLE001 - each store has errors of its own
            if attempt == _TRIES - 1 or not _may_pass(error):
                raise MediaError(f"{url}: {_clean(error)}") from None
        time.sleep(_PAUSE_SECONDS * 2**attempt)
    raise AssertionError


def _may_pass(error: BaseException | None) -> bool:
    """Whether the store was overloaded or the connection broke."""
    while error is not None:
        response = getattr(error, "response", None)
        metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
        status = metadata.get("HTTPStatusCode") or getattr(error, "status_code", None) or getattr(error, "code", None)
        if (isinstance(status, int) and status >= 500) or isinstance(error, ConnectionError | TimeoutError):
            return True
        if type(error).__name__.endswith(_PASSING):
            return True
        error = error.__cause__ or error.__context__
    return False


def _clean(error: BaseException) -> str:
    """One line without query strings and keys."""
    line = " ".join(str(error).split()) or type(error).__name__
    line = re.sub(r"\?[^\s'\")]*", "", line)
    return re.sub(
        r"(?i)\b((?:\w*(?:secret|token|signature|credential|accesskeyid|access_key)\w*)\s*[=:]\s*)\S+", r"\1...", line
    )[:300]


def listed(path: Path, *, recursive: bool) -> Iterator[tuple[Path, int, str]]:
    """List objects below a prefix, or the object itself: path, size and ETag.

    Another mark of the version stands in for an ETag.

    Raises:
        FileNotFoundError: There is no such bucket.
        MediaError: The store does not answer.
    """
    scheme = (url_of(path) or "").partition("://")[0]

    def find(system: Any, name: str) -> dict[str, Any]:
        found = system.find(name, maxdepth=None if recursive else 1, detail=True)
        return dict(found)

    for name, info in _call(path, find).items():
        if info.get("type") == "file" and not name.endswith("/"):
            yield path_of(f"{scheme}://{name}"), int(info["size"]), _identity(info)


def is_whole(path: Path) -> bool:
    """Whether this is a bucket without a prefix.

    >>> is_whole(path_of("s3://photos.2026/")), is_whole(path_of("s3://photos/2026"))
    (True, False)
    """
    return (url_of(path) or "").count("/") == 2


def is_prefix(path: Path) -> bool:
    """Whether this is a bucket, or something lies below it; errors as of `_call`."""
    return bool(_call(path, lambda system, name: system.isdir(name)))


def matching_objects(path: Path) -> Iterator[tuple[Path, int, str]]:
    """Objects whose name matches a pattern, as `listed`."""
    scheme = (url_of(path) or "").partition("://")[0]
    found: dict[str, Any] = _call(path, lambda system, name: dict(system.glob(name, detail=True)))
    for name, info in sorted(found.items()):
        if info.get("type") == "file":
            yield path_of(f"{scheme}://{name}"), int(info["size"]), _identity(info)


def _identity(info: dict[str, Any]) -> str:
    """The ETag, or what else tells another version."""
    known = (info.get(key) for key in ("ETag", "etag", "LastModified", "last_modified"))
    return str(next(filter(None, known), "")).strip('"')


def fetch(path: Path, local: Path, *, most: int | None = None) -> None:
    """Copy an object, or its first bytes, into a local file.

    Raises:
        MediaError: It is not there, or the store does not give it.
    """

    def get(system: Any, name: str) -> None:
        if most is None:
            system.get_file(name, str(local))
        else:
            local.write_bytes(system.cat_file(name, start=0, end=most))

    try:
        _call(path, get)
    except FileNotFoundError:
        raise MediaError(f"{url_of(path)}: no such object") from None


def put(local: Path, path: Path, *, replace: bool) -> None:
    """Copy a file into an object.

    Raises:
        MediaError: It is there already and is not to be replaced, or the store refuses.
    """
    tries = 0

    def send(system: Any, name: str) -> None:
        nonlocal tries
        tries += 1
        try:
            system.put_file(str(local), name, mode="overwrite" if replace else "create")
        except FileExistsError:  # by a try before whose answer was lost? The HTTP library tries by itself, too
            if not _holds(system.info(name), local, certain=tries == 1):
                raise

    try:
        _call(path, send)
    except FileExistsError:
        raise MediaError(f"{url_of(path)} exists already; --overwrite replaces it") from None
    except FileNotFoundError as error:
        raise MediaError(f"{url_of(path)}: no such bucket ({_clean(error)})") from None


def _holds(info: dict[str, Any], local: Path, *, certain: bool) -> bool:
    """Whether an object holds a file's bytes, by its ETag; of one in parts, whose ETag is another, by its size."""
    etag = str(info.get("ETag", "")).strip('"')
    if info["size"] != local.stat().st_size:
        return False
    if not _MD5.fullmatch(etag):
        return not certain
    import hashlib  # OpenSSL, which a start that writes nothing need not load

    with local.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest() == etag


def put_text(path: Path, text: str, *, replace: bool = True) -> None:
    """Write a small object.

    Raises:
        FileExistsError: It is there already and is not to be replaced.
        MediaError: The store refuses.
    """
    mode = "overwrite" if replace else "create"
    try:
        _call(path, lambda system, name: system.pipe_file(name, text.encode(), mode=mode))
    except FileNotFoundError as error:
        raise MediaError(f"{url_of(path)}: no such bucket ({_clean(error)})") from None


def read_text(path: Path) -> str:
    """Read a small object; errors as of `_call`."""
    return _call(path, lambda system, name: bytes(system.cat_file(name)).decode(errors="replace"))


def remove(path: Path) -> None:
    """Remove an object; errors as of `_call`."""
    _call(path, lambda system, name: system.rm_file(name))
