"""An S3 endpoint for reading: every image of every event is an object, and so is what an operator shares.

    errors       errors of S3
    signature    what a client signed, and whether its key did (AWS Signature Version 4)
    access_keys  issue keys, and derive their secrets
    xml          the documents of S3
    listing      pages of keys, with delimiters
    views        the buckets: events, and shares
    app          requests

Nothing here writes: buckets have no other methods than listing, inspecting and reading.
"""
