"""The README and the changelog as pages of the documentation: their links count from the folder above."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add both, before pages are made of the files."""
    for page, name in {"index.md": "README.md", "CHANGELOG.md": "CHANGELOG.md"}.items():
        text = (Path(config.docs_dir).parent / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text.replace("](docs/", "](")))
    return files
