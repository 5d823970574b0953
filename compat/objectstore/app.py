"""The application, for ``uvicorn objectstore.app:app``."""

from objectstore.config import read_parts
from plateway.gateway import create_app

app = create_app(read_parts())
