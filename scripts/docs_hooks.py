"""Add the pages outside of docs/ to the documentation site, and rewrite links between the two (a hook of mkdocs)."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/RESULTS.md": "benchmarks.md",
}
DEPLOYMENTS = ("compose.yaml", "Dockerfile", "site.example.env", "secrets.example.env")
FILES = {f"deployments/{name}": f"deployments/{name}.txt" for name in DEPLOYMENTS}  # .txt: browsers show it
LINK = re.compile(r"(?<=\]\()([^)\s#]+)(?=[#)])")


def on_files(files: Any, config: Any) -> Any:
    """Add the files of the repository that pages link to."""
    for path, uri in {**PAGES, **FILES}.items():
        files.append(File.generated(config, uri, content=(ROOT / path).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite relative links, which are right in the repository, to what they are in the site."""
    uri = page.file.src_uri
    source = next((path for path, name in PAGES.items() if name == uri), f"docs/{uri}")

    def rewritten(match: re.Match[str]) -> str:
        if "://" in match[1]:
            return match[1]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        target = {**PAGES, **FILES}.get(path, path.removeprefix("docs/"))
        return posixpath.relpath(target, posixpath.dirname(uri) or ".")

    return LINK.sub(rewritten, markdown)
