"""Buckets of an endpoint as their owner sees them: create, fill, list, copy, empty and remove.

Buckets are asked about through s3fs, whose words people know; bytes and keys go through ``store``. An address names
the object of that name and the folder of that name, never what merely begins alike. What was deleted is looked for
afterwards. What may be deleted is decided by whoever calls.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

from fsspec.spec import AbstractFileSystem  # type: ignore[import-untyped]  # ships no types

from plateway.checksums import PartHasher, part_size
from plateway.endpoint import Endpoint
from plateway.errors import Conflict, Damaged, Denied, NotFound, PlatewayError, Refused, Rejected, Unavailable
from plateway.keys import MARKER_FILE, MARKER_PREFIX
from plateway.names import confined
from plateway.store import Stat, filesystem
from plateway.store.contract import check_key, is_plain
from plateway.store.errors import translate_errors
from plateway.store.s3 import S3

ABREAST = 32  # objects on their way at a time
AT_ONCE = 1000  # keys that S3 deletes in one request
DELETIONS = 8  # such requests at a time; a server takes the keys of each one by one
ATTEMPTS = 3  # to remove a short-lived bucket
WINDOW = 1 << 20
MD5 = re.compile(r"[0-9a-f]{32}(-[0-9]+)?")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")  # capitals and underscores are in use
log = logging.getLogger(__name__)
T = TypeVar("T")
U = TypeVar("U")


class Address(NamedTuple):
    """A place in a bucket."""

    bucket: str
    key: str = ""  # of an object or of a folder; empty: the whole bucket

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    @property
    def folder(self) -> str:
        """What the keys below it begin with."""
        return self.key if self.key == "" or self.key.endswith("/") else f"{self.key}/"

    def below(self, name: str) -> Address:
        """Return the address of an object in this folder."""
        return Address(self.bucket, self.folder + name)

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``s3://bucket[/key]``, or the name of a bucket.

        Raises:
            Rejected: it is neither.
        """
        try:
            parts = urlsplit(text)
        except ValueError:  # brackets, which it takes for an IPv6 address
            raise Rejected(f"{text[:200]!r} is not an address like s3://bucket/key") from None
        bucket, key = (parts.netloc, text.partition("://")[2].partition("/")[2]) if parts.scheme else (text, "")
        if parts.scheme not in {"", "s3"} or not NAME.fullmatch(bucket):
            raise Rejected(f"{text[:200]!r} is not an address like s3://bucket/key")
        return cls(bucket, key)


class BucketInfo(NamedTuple):
    """A bucket as its owner sees it."""

    name: str
    created: datetime


class Version(NamedTuple):
    """One version of an object in a bucket that keeps versions, or the mark that it was deleted."""

    key: str
    id: str
    size: int  # 0 of a mark


class TransferResult(NamedTuple):
    """What became of one object; `problem` is empty where all went well."""

    address: Address
    size: int
    problem: str = ""


@dataclass(frozen=True)
class Usage:
    """Number and size of the objects below an address."""

    objects: int
    size: int  # bytes
    largest: int
    newest: datetime | None


class Buckets:
    """The buckets of one endpoint."""

    def __init__(self, endpoint: Endpoint, *, abreast: int = ABREAST) -> None:
        self._endpoint, self._abreast = endpoint, abreast
        self._stores: dict[str, S3] = {}
        self._opening, self._counting = Lock(), Lock()
        self.moved = 0  # bytes that went from or to files so far

    # ------------------------------------------------------------------------------------------------------- buckets

    def names(self) -> list[BucketInfo]:
        """List the buckets that we may see, by name."""
        found = self._ask("list_buckets", what="buckets")["Buckets"]
        return sorted(BucketInfo(one["Name"], one["CreationDate"]) for one in found)

    def make(self, bucket: str) -> None:
        """Make a bucket.

        Raises:
            Conflict: there is one of that name. Rejected: it cannot be called that. Denied, Refused: it may not be.
        """
        self._may(f"s3://{bucket}")
        if not NAME.fullmatch(bucket):
            raise Rejected(
                f"{bucket!r} is not the name of a bucket: 3 to 63 letters, digits, dots, hyphens, underscores"
            )
        if self.there(bucket):
            raise Conflict(f"bucket {bucket} is there already")
        self._ask("create_bucket", what=bucket, Bucket=bucket)

    def there(self, bucket: str) -> bool:
        """Return whether there is a bucket of that name."""
        try:
            self._ask("head_bucket", what=bucket, Bucket=bucket)
        except NotFound:
            return False
        return True

    def remove(self, bucket: str) -> None:
        """Remove an empty bucket and verify that it is removed.

        Raises:
            Refused: there is something in it, or an upload is open. NotFound: there is no such bucket.
        """
        self._may(f"s3://{bucket}")
        self.vacant(bucket)
        with translate_errors(bucket):
            try:
                self._fs.call_s3("delete_bucket", Bucket=bucket)
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise
                raise Refused(f"bucket {bucket} is not empty: it has versions or uploads that are not listed") from None
        if self.there(bucket):
            raise Unavailable(f"bucket {bucket} was deleted and is still there")

    def vacant(self, bucket: str) -> None:
        """Raise unless a bucket is empty: no objects, no versions of deleted ones, no delete markers.

        Raises:
            Refused: there is something in it. NotFound: there is no such bucket.
        """
        if left := next(iter(self.store(bucket).list()), None):
            raise Refused(f"bucket {bucket} is not empty: {left.key} and perhaps more lies in it")
        with suppress(Denied, Unavailable):  # not every endpoint lists versions, nor every key may
            if kept := next(self.versions(Address(bucket)), None):
                raise Refused(f"bucket {bucket} is not empty: version {kept.id} of {kept.key} and perhaps more is kept")

    def lifecycle(self, bucket: str) -> Sequence[dict[str, Any]]:
        """Read the rules by which a bucket deletes objects by itself."""
        return self.store(bucket).lifecycle()

    def set_lifecycle(self, bucket: str, rules: Sequence[Mapping[str, Any]]) -> None:
        """Replace those rules; none: objects stay."""
        self._may(f"s3://{bucket}")
        if rules:
            told = {"Rules": list(rules)}
            self._ask("put_bucket_lifecycle_configuration", what=bucket, Bucket=bucket, LifecycleConfiguration=told)
        else:
            self._ask("delete_bucket_lifecycle", what=bucket, Bucket=bucket)

    def clear(self, bucket: str) -> Iterator[TransferResult]:
        """Delete all that is in a bucket with all versions, and end open uploads, where the endpoint lists them."""
        if not self.versioned(bucket):  # else this would only add a mark to each
            yield from self.delete(Address(bucket), self.store(bucket).list())
        with suppress(Denied, Unavailable):
            yield from self._clear_versions(Address(bucket))
        with suppress(Unavailable):
            for upload in list(self.store(bucket).uploads()):
                self.store(bucket).abort(upload)

    # ------------------------------------------------------------------------------------------------------- objects

    def markers(self, where: Address, *, deep: bool = False) -> Iterator[str]:
        """Yield the keys of markers by which a site claims an address: in it, above it, or ``deep`` below it."""
        folders = where.folder.split("/")
        for depth in range(len(folders)):
            above = "".join(f"{one}/" for one in folders[:depth])
            for listed in islice(self.store(where.bucket).list(f"{above}{MARKER_PREFIX}"), 1):
                yield listed.key
            if self.store(where.bucket).stat(f"{above}{MARKER_FILE}") is not None:
                yield f"{above}{MARKER_FILE}"
        for listed in self.find(where) if deep else ():
            if f"/{MARKER_PREFIX}" in f"/{listed.key}" or f"/{listed.key}".endswith(f"/{MARKER_FILE}"):
                yield listed.key

    def versioned(self, bucket: str) -> bool:
        """Return whether a bucket keeps, or once kept, versions of what is deleted; no where the endpoint refuses."""
        try:
            return bool(self._ask("get_bucket_versioning", what=bucket, Bucket=bucket).get("Status"))
        except (Denied, Unavailable):
            return False

    def versions(self, where: Address) -> Iterator[Version]:
        """List all versions and marks of what `find` would list.

        Raises:
            Denied, Unavailable: this key may not list versions, or the endpoint cannot.
        """
        page: dict[str, str] = {}
        while True:
            found = self._ask(
                "list_object_versions", what=str(where), Bucket=where.bucket, Prefix=where.key.rstrip("/"), **page
            )
            for one in (*found.get("Versions", ()), *found.get("DeleteMarkers", ())):
                if where.folder == "" or one["Key"] == where.key or one["Key"].startswith(where.folder):
                    yield Version(one["Key"], one["VersionId"], one.get("Size", 0))
            if not found.get("IsTruncated"):
                return
            page = {"KeyMarker": found["NextKeyMarker"], "VersionIdMarker": found.get("NextVersionIdMarker", "")}

    def store(self, bucket: str) -> S3:
        """Open one bucket."""
        with self._opening:
            if bucket not in self._stores:
                known = next(iter(self._stores.values()), None)
                self._stores[bucket] = known.beside(bucket) if known else S3(bucket, self._endpoint)
            return self._stores[bucket]

    def find(self, where: Address) -> Iterator[Stat]:
        """List the object of that name, and what is in the folder of that name, in the endpoint's order."""
        if where.key and not where.key.endswith("/"):
            with suppress(Rejected):
                if found := self.store(where.bucket).stat(where.key):
                    yield found
        yield from self.store(where.bucket).list(where.folder)

    def level(self, where: Address) -> Iterator[Stat | str]:
        """List one level: objects, and the names of folders."""
        if where.key and not where.key.endswith("/") and (found := self.store(where.bucket).stat(where.key)):
            yield found
        yield from self.store(where.bucket).level(where.folder)

    def usage(self, where: Address) -> Usage:
        """Count the objects below an address and sum their sizes."""
        objects = size = largest = 0
        newest: datetime | None = None
        for one in self.find(where):
            objects, size, largest = objects + 1, size + one.size, max(largest, one.size)
            newest = max(newest, one.modified) if newest else one.modified
        return Usage(objects, size, largest, newest)

    def put(self, files: Iterable[tuple[Path, Address]]) -> Iterator[TransferResult]:
        """Store files, many at a time; each is compared by the ETag that its bytes must have."""
        self._may("this endpoint")
        yield from self._each(lambda pair: self._put(*pair), files)

    def get(self, objects: Iterable[tuple[Stat, Address, Callable[[], Path]]]) -> Iterator[TransferResult]:
        """Fetch objects into files, many at a time; each is written aside, compared and then given its name.

        The last of each is called for the path; one that raises is told with the object, and the others go on.
        """
        yield from self._each(lambda one: self._get(*one), objects)

    def copy(self, objects: Iterable[tuple[Stat, Address, Address]]) -> Iterator[TransferResult]:
        """Copy objects within the endpoint, which moves the bytes by itself; the copies are looked at."""
        self._may("this endpoint")
        move = self._fs.cp_file
        yield from self._each(lambda one: self._copy(move, *one), objects)

    def delete(self, where: Address, chosen: Iterable[Stat]) -> Iterator[TransferResult]:
        """Delete objects below an address, a thousand a request; those that are still listed there then come again."""
        self._may(str(where))
        sizes: dict[str, int] = {}
        stats = iter(chosen)
        batches = iter(partial(_taken, stats, AT_ONCE), [])
        for some in self._each(partial(self._delete, where.bucket), batches, abreast=DELETIONS):
            sizes |= {one.address.key: one.size for one in some if not one.problem}
            yield from some
        for stat in self.find(where) if sizes else ():
            if stat.key in sizes:
                problem = "was deleted and is still there"
                yield TransferResult(Address(where.bucket, stat.key), -sizes[stat.key], problem)

    def tags(self, where: Address) -> dict[str, str]:
        """Read an object's tags."""
        return self.store(where.bucket).tags(where.key)

    def set_tags(self, where: Address, tags: Mapping[str, str]) -> None:
        """Replace an object's tags."""
        self._may(str(where))
        told = {"TagSet": [{"Key": name, "Value": value} for name, value in tags.items()]}
        self._ask("put_object_tagging", what=str(where), Bucket=where.bucket, Key=where.key, Tagging=told)

    # ----------------------------------------------------------------------------------------------------- one of each

    def _put(self, path: Path, to: Address) -> TransferResult:
        try:
            with translate_errors(path.name), path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                parts, store = PartHasher(part_size(size)), self.store(to.bucket)
                chunks = self._passing(iter(partial(file.read, WINDOW), b""), parts.update)
                told = store.put(to.key, chunks, size=size, part_size=part_size(size), metadata={}) or _etag(store, to)
            if told and MD5.fullmatch(told) and told != parts.etag():
                raise Damaged(f"{to}: has ETag {told}, its bytes make {parts.etag()}")
        except PlatewayError as error:
            return TransferResult(to, 0, str(error))
        return TransferResult(to, size)

    def _get(self, stat: Stat, source: Address, place: Callable[[], Path]) -> TransferResult:
        try:
            path = place()
            aside = path.with_name(f".{path.name}.part-{uuid4().hex[:8]}")
            with translate_errors(path.name):
                path.parent.mkdir(parents=True, exist_ok=True)
            try:
                found, chunks = self.store(source.bucket).fetch(source.key)
                size, parts = 0, PartHasher(part_size(found.size))
                with translate_errors(path.name), aside.open("xb") as file:
                    for chunk in self._passing(chunks, parts.update):
                        size += file.write(chunk)
                compare(source, found, size, parts.etag())
                with translate_errors(path.name):
                    aside.replace(path)
            finally:
                aside.unlink(missing_ok=True)
        except PlatewayError as error:
            return TransferResult(source, 0, str(error))
        return TransferResult(source, stat.size)

    def _copy(self, move: Callable[[str, str], None], stat: Stat, source: Address, to: Address) -> TransferResult:
        try:
            check_key(to.key)
            with translate_errors(str(to)):
                if is_plain(source.key):
                    move(f"{source.bucket}/{source.key}", f"{to.bucket}/{to.key}")
                else:
                    where = {"Bucket": source.bucket, "Key": source.key}
                    self._ask("copy_object", what=str(source), Bucket=to.bucket, Key=to.key, CopySource=where)
            made = self.store(to.bucket).stat(to.key)
            if made is None or made.size != stat.size:
                raise Damaged(f"{to}: {made.size if made else 'no'} of {stat.size} bytes were copied")
        except PlatewayError as error:
            return TransferResult(to, 0, str(error))
        return TransferResult(to, stat.size)

    def _delete(self, bucket: str, stats: Sequence[Stat]) -> list[TransferResult]:
        try:
            problems = self.store(bucket).delete_all([stat.key for stat in stats])
        except PlatewayError as error:
            problems = {stat.key: str(error) for stat in stats}
        return [
            TransferResult(
                Address(bucket, stat.key), 0 if stat.key in problems else stat.size, problems.get(stat.key, "")
            )
            for stat in stats
        ]

    def _clear_versions(self, where: Address) -> Iterator[TransferResult]:
        """Delete versions and marks; those that came meanwhile as well, those that cannot be deleted once."""
        failed: set[tuple[str, str]] = set()
        while True:
            left = (one for one in self.versions(where) if one[:2] not in failed)
            batches = iter(partial(_taken, left, AT_ONCE), [])
            gone = 0
            for done in self._each(partial(self._delete_versions, where.bucket), batches, abreast=DELETIONS):
                failed |= {version[:2] for version, problem in done if problem}
                gone += sum(not problem for _, problem in done)
                yield from (TransferResult(Address(where.bucket, one.key), one.size, problem) for one, problem in done)
            if not gone:
                return

    def _delete_versions(self, bucket: str, versions: Sequence[Version]) -> list[tuple[Version, str]]:
        told = {"Objects": [{"Key": one.key, "VersionId": one.id} for one in versions], "Quiet": True}
        try:
            answer = self._ask("delete_objects", what=bucket, Bucket=bucket, Delete=told)
        except PlatewayError as error:
            return [(one, str(error)) for one in versions]
        failed = {(one["Key"], one.get("VersionId")): one.get("Code", "no code") for one in answer.get("Errors", ())}
        return [
            (one, f"version {one.id} of {one.key}: not deleted ({code})" if (code := failed.get(one[:2])) else "")
            for one in versions
        ]

    def _each(self, act: Callable[[T], U], items: Iterable[T], *, abreast: int | None = None) -> Iterator[U]:
        """Do something to many, some at a time, in their order; no more are taken than can be worked at."""
        abreast = abreast or self._abreast
        taken = iter(items)
        with ThreadPoolExecutor(abreast) as pool:
            waiting = [pool.submit(act, item) for item in islice(taken, 2 * abreast)]
            while waiting:
                yield waiting.pop(0).result()
                waiting += [pool.submit(act, item) for item in islice(taken, 1)]

    @cached_property
    def _fs(self) -> AbstractFileSystem:
        """Open what asks about buckets, which takes as long as a thousand small objects."""
        opened, _ = filesystem("s3://", self._endpoint, use_listings_cache=False, skip_instance_cache=True)
        opened.retries = 1  # of its own; its client has some already
        return opened

    def _passing(self, chunks: Iterable[bytes], tell: Callable[[bytes], None]) -> Iterator[bytes]:
        for chunk in chunks:
            tell(chunk)
            with self._counting:
                self.moved += len(chunk)
            yield chunk

    def _ask(self, operation: str, *, what: str, **how: Any) -> Any:
        with translate_errors(what):
            return self._fs.call_s3(operation, **how)

    def _may(self, what: str) -> None:
        if self._endpoint.read_only:
            raise Refused(f"{what}: the endpoint is read-only")


def _taken(items: Iterator[T], count: int) -> list[T]:
    return list(islice(items, count))


@contextmanager
def temporary(buckets: Buckets, name: str, *, keep: timedelta | None = timedelta(days=1)) -> Iterator[str]:
    """Make a bucket of a name of its own, and remove it with all that is in it when the block is left, however it is.

    Before that, those are removed that blocks which were killed have left: of the same name, older than ``keep`` unless
    that is None.

    Raises:
        Unavailable: it could not be removed; the next one of that name removes it.
    """
    if keep is not None:
        try:
            sweep(buckets, name, before=datetime.now(UTC) - keep)
        except PlatewayError as error:  # where buckets may not be listed one may still be made
            log.warning("leftovers of %s cannot be looked for: %s", name, error)
    bucket = f"{name}-{datetime.now(UTC):%Y%m%d%H%M%S}-{uuid4().hex[:6]}"
    buckets.make(bucket)
    try:
        yield bucket
    finally:
        _dissolve(buckets, bucket)


def sweep(buckets: Buckets, name: str, *, before: datetime) -> list[str]:
    """Remove short-lived buckets of a name that were made before a time, by their name and by the endpoint's word.

    Those that cannot be removed are left, with a warning in the log; the names of those that were are returned.
    """
    pattern = re.compile(re.escape(name) + r"-([0-9]{14})-[0-9a-f]{6}")
    swept = []
    for bucket in buckets.names():
        match = pattern.fullmatch(bucket.name)
        if match and bucket.created < before and _time(match[1]) < before:
            try:
                _dissolve(buckets, bucket.name)
                swept.append(bucket.name)
            except NotFound:
                continue  # another process was faster
            except PlatewayError as error:
                log.warning("leftover bucket %s stays: %s", bucket.name, error)
    return swept


def _dissolve(buckets: Buckets, bucket: str) -> None:
    """Empty and remove a bucket; objects written meanwhile are removed by another attempt."""
    for attempt in range(ATTEMPTS):
        problems = [one for one in buckets.clear(bucket) if one.problem]
        if problems:
            raise Unavailable(f"{problems[0].address}: {problems[0].problem}, and {len(problems) - 1} more")
        try:
            buckets.remove(bucket)
        except (Refused, Unavailable):
            if attempt == ATTEMPTS - 1:
                raise
        else:
            return


def _time(digits: str) -> datetime:
    try:
        return datetime.strptime(digits, "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return datetime.max.replace(tzinfo=UTC)  # no name that we gave


def landing(key: str, where: Address, directory: Path) -> Path:
    """Return the path in a directory for an object below an address.

    Raises:
        Rejected: its key cannot be the name of a file there.
    """
    name = key.removeprefix(where.folder) if key != where.key else key.rpartition("/")[2]
    return directory.joinpath(*confined(name))


def _etag(store: S3, where: Address) -> str:
    """Read the ETag that the answer to an upload did not contain."""
    found = store.stat(where.key)
    if found is None:
        raise Damaged(f"{where}: is not there after it was stored")
    return found.etag


def compare(source: Address, found: Stat, size: int, etag: str) -> None:
    """Compare bytes with the stated size and ETag; an ETag of other parts, or of no MD5, proves nothing."""
    if size != found.size:
        raise Damaged(f"{source}: {size} of {found.size} bytes came")
    comparable = MD5.fullmatch(found.etag) and found.etag.partition("-")[2] == etag.partition("-")[2] == ""
    if comparable and found.etag != etag:
        raise Damaged(f"{source}: its bytes have MD5 {etag}, its ETag is {found.etag}")
