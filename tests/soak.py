"""How much is tried: the gate has fifteen minutes, ``PLATEWAY_SOAK=1 uv run pytest`` takes the time it needs."""

import os

SOAK = "PLATEWAY_SOAK" in os.environ
