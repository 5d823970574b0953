"""One way to read an object whole, in a process of its own: bare, or as a purge proves it.

The arguments are the way and a JSON file with the export's columns; the last line of output is what it took.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import obstore
from obstore.store import S3Store

from benchmarks.measure import worked
from plateway.pipeline.verify import inspect_object
from plateway.records import Export
from plateway.settings import load
from plateway.store import open_store
from plateway.store.per_file import PerFile


def main(way: str, path: str) -> None:
    """Read the object once, everything imported and a connection open."""
    settings, export = load(), Export(**json.loads(Path(path).read_text()))
    store = PerFile(open_store(settings.bucket_url, settings.endpoint))
    store.stat(export.key)
    bare = _open_bare(settings.bucket_url.removeprefix("s3://"))
    obstore.head(bare, export.key)
    with worked() as spent:
        if way == "proof":
            inspect_object(store, export, read_back=True)
            size = export.size
        else:
            size = sum(len(chunk) for chunk in obstore.get(bare, export.key).stream(min_chunk_size=1 << 20))
    if size != export.size:
        raise SystemExit(f"{size:,} of {export.size:,} bytes came")
    print(json.dumps(spent))


def _open_bare(bucket: str) -> S3Store:
    """Open the bucket as obstore does without us."""
    where = load().endpoint
    assert where.secret_access_key is not None
    return S3Store(
        bucket,
        endpoint=where.url,
        access_key_id=where.access_key_id,
        secret_access_key=where.secret_access_key.get_secret_value(),
        region=where.region,
        virtual_hosted_style_request=False,
        client_options={"allow_http": True, "timeout": "1d"},
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
