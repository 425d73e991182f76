"""What the site has beyond the files of this folder, for mkdocs.

The pages under reference/ are made of the code, and never written down, so they cannot be stale.
README and ARCHITECTURE.md stay where readers of the repository look for them.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from flows.reference import PAGES

ROOT = Path(__file__).parent.parent
COPIES = {"index.md": "README.md", "explanation/architecture.md": "ARCHITECTURE.md"}
# Links of those two to pages of the site, and of pages to files that are not on it.
TO_PAGE = re.compile(r"\]\(docs/([^)]+)\)")
OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)*(?!https?:)([\w/.-]+)(#[\w-]+)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are no files of docs/."""
    for name, make in PAGES.items():
        files.append(File.generated(config, f"reference/{name}.md", content=make()))
    for name, source in COPIES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        up = "../" * name.count("/")
        text = TO_PAGE.sub(lambda found, up=up: f"]({up}{found[1]})", text)
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **others: Any) -> str:
    """Leave the names of files that the site does not have, without a link to nowhere."""

    def shown(found: re.Match[str]) -> str:
        target = found[2]
        if target.endswith("ARCHITECTURE.md"):
            return (
                f"[{found[1]}]({'../' * page.file.src_uri.count('/')}explanation/architecture.md)"
            )
        outside = (ROOT / target).exists() and not (ROOT / "docs" / target).exists()
        return found[1] if outside and not target.endswith((".png", ".svg")) else found[0]

    return OUTSIDE.sub(shown, markdown)
