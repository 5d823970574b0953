"""The bucket: a small contract, kept by S3, a directory and memory.

obstore moves the bytes; botocore, another client with another connection and no cache, inspects what arrived. So
evidence never comes from the code path that uploaded. Other behaviour is added by wrapping a store: `ReadOnly`,
`Prefixed`, `per_file.PerFile`. Backends know nothing of what the bytes mean, and are imported when one is opened.

    contract            what every store does             s3, directory, memory   the backends
    errors              error translation                 wrappers                read-only, a prefix as a bucket
    opening             a store by its URL                per_file                bundles whose files are objects
    admin               buckets as their owner sees them  object_metadata         what an object says of its event
    read_only_fsspec    s3fs that cannot write
"""

from plateway.store.contract import Objects as Objects
from plateway.store.contract import Stat as Stat
from plateway.store.contract import Store as Store
from plateway.store.contract import Upload as Upload
from plateway.store.opening import filesystem as filesystem
from plateway.store.opening import open_store as open_store
