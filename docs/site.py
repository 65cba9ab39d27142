"""What the site has beyond the pages in docs/: mkdocs calls these functions.

The README is its first page; the README of each component and the API, from docstrings, are sections of their own.
Links between files of the checkout become links between pages, or to the file in the
repository where there is none.
"""

from __future__ import annotations

import posixpath
import re
from typing import Any

from mkdocs.structure.files import File, Files

from docs.generate import ROOT, components

# Modules that a program or a plug-in of somebody else builds on, by section.
API = {
    "Tiles and imagery": ["tiles", "tileset", "images", "rasters", "splits", "storage", "locations"],
    "Features and masks": ["features", "polygons", "metrics"],
    "Networks": [
        "learning.models", "learning.card", "learning.checkpoint", "learning.inference", "learning.windows",
    ],
    "Configuration and errors": ["config", "recipe", "plugins", "errors"],
}  # fmt: skip
LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?(\))")
CODE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)


def pages() -> dict[str, str]:
    """Return the page that each file of the checkout is: both as paths, of the checkout and of the site."""
    found = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
    found |= {f"components/{name}/README.md": f"components/{name}.md" for name in components()}
    return found | {f"docs/{path.name}": path.name for path in (ROOT / "docs").glob("*.md")}


def api() -> dict[str, tuple[str, str]]:
    """Return the title and the text of each page of the API, by its path."""
    functions = "\n".join(
        f"::: rsp.components.{name}.tool.{name}\n    options: {{heading_level: 2}}\n" for name in components()
    )
    text = f"# Tools as functions\n\nWhat the command line and the components call.\n\n{functions}"
    found = {"api/functions.md": ("Tools as functions", text)}
    for title, modules in API.items():
        parts = "\n".join(f"::: rsp.shared.{name}\n    options: {{heading_level: 2}}\n" for name in modules)
        found[f"api/{title.lower().replace(' ', '-')}.md"] = (title, f"# {title}\n\n{parts}")
    return found


def on_config(config: Any) -> Any:
    """Add the sections whose pages follow from the code."""
    if config.nav[-1].keys() != {"API"}:  # `mkdocs serve` calls this again
        config.nav.append({"Components": [{name: f"components/{name}.md"} for name in components()]})
        config.nav.append({"API": [{title: path} for path, (title, _) in api().items()]})
    return config


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages that are no files in docs/."""
    for source, page in pages().items():
        if not source.startswith("docs/"):
            files.append(File.generated(config, page, content=(ROOT / source).read_text("utf-8")))
    for page, (_, text) in api().items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Let links that hold in the checkout hold on the site."""
    at = page.file.src_uri
    source = next((source for source, target in pages().items() if target == at), None)
    if source is None:
        return markdown
    parts = CODE.split(markdown)
    repository = config.extra["repository"]
    parts[::2] = [LINK.sub(lambda match: relink(match, source, at, repository), part) for part in parts[::2]]
    return "".join(parts)


def relink(match: re.Match[str], source: str, at: str, repository: str) -> str:
    """Return a link of a file of the checkout as it stands on its page.

    Args:
        match: Of `LINK`.
        source: The file, as a path of the checkout.
        at: The page, as a path of the site.
        repository: Where the checkout can be seen.

    Raises:
        ValueError: there is no such file.
    """
    before, target, anchor, after = match.groups("")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    if path in (found := pages()):
        target = posixpath.relpath(found[path], posixpath.dirname(at) or ".")
    elif path.startswith("docs/img/"):
        target = posixpath.relpath(path.removeprefix("docs/"), posixpath.dirname(at) or ".")
    elif (ROOT / path).exists():
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        target = f"{repository}/{kind}/main/{path}"
    else:
        raise ValueError(f"{source}: there is no {path}")
    return f"{before}{target}{anchor}{after}"
