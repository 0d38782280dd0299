"""A folder of sentence NPZs compared with a store: what is new in it, and what of that is bad."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from featurestore.errors import NpzError, SourceError, shown, spelled
from featurestore.schema import Progress, SentenceFile, Skipped
from featurestore.sources import sentences
from featurestore.store.seen import Seen
from featurestore.store.snapshot import Snapshot


@dataclass(frozen=True)
class Changes:
    """Files whose content is not in a store, and how many sentences are, of the folder and in all."""

    new: list[Path]
    present: int
    n_sentences: int


@dataclass(frozen=True)
class Scan:
    """New files, checked.

    Attributes
    ----------
    files : list of SentenceFile
        The good ones.
    bad : list of Skipped
        The others, each with its reason.
    corrected : int
        How many of the bad ones differ from the store in their label or text alone.
    """

    files: list[SentenceFile]
    bad: list[Skipped]
    corrected: int


def compare(paths: Sequence[Path], store: Snapshot | None, seen: Seen, progress: Progress) -> Changes:
    """Tell by their digests which files a store has; at most, the archive's directory is read of each."""
    digests = set(store.coord("source_digest").tolist()) if store else set()
    new, present = [], set()
    for done, path in enumerate(paths, start=1):
        try:
            digest = seen.digest(path)
        except NpzError:
            digest = ""  # scanning says why
        if digest in digests:
            present.add(digest)
        else:
            new.append(path)
        progress("comparing files", done, len(paths))
    return Changes(new, len(present), store.sizes["sentence"] if store else 0)


def scan(paths: Sequence[Path], store: Snapshot | None, progress: Progress) -> Scan:
    """Check new files, also against what the store holds."""
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        progress("checking new files", done, len(paths))

    scanned, bad = sentences.scan_all(paths, store.extraction if store else None, advance)
    if store is None:
        return Scan(scanned, bad, 0)
    index, *known = (
        store.coord(name) for name in ("sentence", "source", "source_digest", "text", "label", "has_label")
    )
    rows = {sentence_index: row for row, sentence_index in enumerate(index.tolist())}
    files, corrected = [], 0
    for file in scanned:
        if (row := rows.get(file.sentence_index)) is None:
            files.append(file)
            continue
        source, digest, text, label, has_label = (values[row] for values in known)
        alone = sentences.changed_alone(file.path, digest, int(label) if has_label else None, text)
        corrected += bool(alone)
        bad.append(Skipped(file.path.name, _conflict(file, str(source), alone)))
    return Scan(files, bad, corrected)


def refusal(source: Path, bad: Sequence[Skipped], n_files: int) -> SourceError:
    """Make the error that names every bad file of a folder."""
    out = f"ingest with {spelled('skip_bad', True)} leaves them out"
    advice = "none is left to ingest" if len(bad) == n_files else out
    lines = [f"{source}: {len(bad)} of {n_files} files cannot be ingested, so nothing was written ({advice}):"]
    return SourceError("\n".join([*lines, *(f"  {shown(source / entry.file)}: {entry.reason}" for entry in bad)]))


def _conflict(file: SentenceFile, source: str, alone: str | None) -> str:
    how = f"but for its {alone}, which alone differs" if alone else "with other content"
    origin = f" (from {source})" if source else ""
    relabel = f"; or keep it, and build with other labels by {spelled('labels_from')}" if _of_label(alone) else ""
    return (
        f"sentence_index {file.sentence_index} is in the store {how}{origin}, which stays; if it was "
        f"{'corrected' if alone else 'extracted again'}, remove the store and ingest everything, otherwise choose "
        f"another with {spelled('store')}{relabel}"
    )


def _of_label(alone: str | None) -> bool:
    """Tell whether a file differs in its label alone, not in its text, too."""
    return alone is not None and not alone.endswith("text")
