"""The listing of datasets that answer further questions, and the files that they depend on; written by numpy alone."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import featurestore
from featurestore.cli import reports
from featurestore.datasets.journal import Journal, tables
from featurestore.errors import NpzError, ParameterError, speaking
from featurestore.recipes import jobs
from featurestore.schema import CONTROLS

LABELS_DIGEST = hashlib.sha256(b"labels").hexdigest()


@pytest.fixture
def store_digest(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What identifies the sentences of ``stores/trait.zarr``."""
    monkeypatch.chdir(tmp_path)
    featurestore.ingest(folder)
    ds = featurestore.open_store("stores/trait.zarr")
    content = sorted(zip(ds["sentence"].values.tolist(), ds["source_digest"].values.tolist(), strict=True))
    return hashlib.sha256(repr(content).encode()).hexdigest()


def write(name: str, store_digest: str, **metadata: Any) -> str:
    """Write a dataset to ``out``; return its fingerprint."""
    plan = json.dumps({"strategy": "hidden-to-concept", "name": name})
    labels = [f"labels {metadata['labels_digest']}"] if "labels_digest" in metadata else []
    made_of = hashlib.sha256(json.dumps([1, plan, store_digest, "", *labels]).encode()).hexdigest()
    recorded = {
        "strategy": "hidden-to-concept",
        "store": "trait",
        "input_layers": [1],
        "parameters": plan,
        "store_digest": store_digest,
        "fingerprint": made_of,
        **metadata,
    }
    arrays: dict[str, Any] = {"X": np.ones((5, 2), np.float32), "y": np.arange(5), "norm_method": "none"}
    Path("out").mkdir(exist_ok=True)
    np.savez(f"out/{name}.npz", **arrays | {f"meta_{key}": np.array(value) for key, value in recorded.items()})
    return made_of


def states() -> dict[str, tuple[str, str]]:
    return {entry.file: (entry.state, entry.reason) for entry in featurestore.list_datasets("out")}


def test_controls_and_tokens(store_digest: str) -> None:
    write("real", store_digest)
    write("pooled", store_digest, input_tokens="mean")
    for control in CONTROLS:
        write(control, store_digest, control=control, input_tokens="mean")

    def listed(control: str | None) -> dict[str, tuple[str, str]]:
        entries = featurestore.list_datasets("out", control=control)
        assert {entry.state for entry in entries} == {"current"}
        return {Path(entry.file).stem: (entry.control, entry.tokens) for entry in entries}

    controls = {name: (name, "mean") for name in CONTROLS}
    assert listed("none") == {"real": ("", "final"), "pooled": ("", "mean")}
    assert listed(None) == listed("none") | controls
    for control in CONTROLS:
        assert listed(control) == {control: (control, "mean")}
    with speaking("command line"), pytest.raises(ParameterError) as refused:
        featurestore.list_datasets("out", control="shuffled")
    assert str(refused.value) == (
        "--control: expected one of shuffled-labels, random-columns, text, length, none, found 'shuffled'"
    )


def test_columns_that_tell_nothing_are_not_shown(store_digest: str) -> None:
    def header() -> list[str]:
        return reports.datasets(featurestore.list_datasets("out"), None).splitlines()[0].split()

    write("real", store_digest)
    plain = header()
    assert "rows" in plain
    assert not {"tokens", "control", "split"} & {*plain}
    write("pooled", store_digest, input_tokens="last-3")
    assert {*header()} - {*plain} == {"tokens"}
    write("chance", store_digest, control="text")
    assert {*header()} - {*plain} == {"tokens", "control"}
    table = csv.DictReader(io.StringIO(reports.datasets(featurestore.list_datasets("out"), "csv")))
    assert [(row["file"], row["tokens"], row["control"]) for row in table] == [
        ("chance.npz", "final", "text"),
        ("pooled.npz", "last-3", ""),
        ("real.npz", "final", ""),
    ]


def test_files_of_labels(store_digest: str) -> None:
    Path("labels.csv").write_text("sentence_index,truth\n0,1\n")
    made_of = write("named", store_digest, labels_digest=LABELS_DIGEST, labels_from="truth")
    write("other", store_digest)
    files = tables(labels_from="labels.csv:truth")
    assert [(file.kind, file.path) for file in files] == [("labels", "labels.csv")]
    assert files[0].identity == hashlib.sha256(Path("labels.csv").read_bytes()).hexdigest()
    Journal().add(Path("out/named.npz"), made_of, files)
    assert states() == {"named.npz": ("current", ""), "other.npz": ("current", "")}
    Path("labels.csv").write_text("sentence_index,truth\n0,2\n")
    assert states() == {"named.npz": ("stale", "labels: ../labels.csv has changed"), "other.npz": ("current", "")}
    Path("labels.csv").unlink()
    assert states()["named.npz"] == ("stale", "labels: ../labels.csv is gone")


def test_labels_are_part_of_the_fingerprint(store_digest: str) -> None:
    made_of = write("named", store_digest, labels_digest=LABELS_DIGEST)
    assert states()["named.npz"] == ("unknown", "where the file of its labels is, is not noted beside it")
    write("named", store_digest, labels_digest=hashlib.sha256(b"others").hexdigest(), fingerprint=made_of)
    assert states()["named.npz"] == ("stale", "the fingerprint is another")


def test_a_journal_tells_files_of_groups_from_those_of_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("groups.csv", "labels.csv", "ranked.csv"):
        Path(name).write_text(name)
    both = tables("groups.csv:topic", "ranked.csv", "labels.csv:truth")
    assert {file.kind: file.path for file in both} == {
        "groups": "groups.csv", "labels": "labels.csv", "ranking": "ranked.csv",
    }  # fmt: skip
    assert tables("n_tokens", None, "nowhere.csv:truth") == []
    dataset = tmp_path / "a.npz"
    Journal().add(dataset, "1" * 64, both)
    journal = Journal()

    def same(kind: str, **files: str) -> bool:
        return journal.has_same(kind, dataset, "1" * 64, tables(**files))

    Path("labels.csv").write_text("other labels in the same file")
    assert same("labels", labels_from="labels.csv:honesty")
    assert same("groups", group_by="groups.csv:topic", labels_from="ranked.csv:truth")
    assert not same("labels", group_by="groups.csv:topic", labels_from="ranked.csv:truth")
    assert not same("labels", labels_from="groups.csv:topic")  # which was the file of groups
    assert not same("groups", labels_from="groups.csv:topic")
    assert not same("labels")
    assert not journal.has_same("labels", dataset, "2" * 64, both)


@pytest.mark.parametrize(
    ("labels_from", "digest", "sentences", "state"),
    [
        ("labels.csv:truth", "1" * 64, "", "current"),
        ("labels.csv:truth", "2" * 64, "", "stale"),
        ("others.csv:truth", "1" * 64, "", "current"),
        ("others.csv:truth", "2" * 64, "", "other"),
        ("others.csv:truth", "2" * 64, "more", "stale"),
    ],
)
def test_labels_of_another_file_are_another_dataset(
    labels_from: str, digest: str, sentences: str, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with groups: of the same file they are an earlier state, and so are all of other sentences."""
    monkeypatch.chdir(tmp_path)
    for name in ("labels.csv", "others.csv"):
        Path(name).write_text("sentence_index,truth\n0,1\n")
    made_of = write("a", "0" * 64, labels_digest="1" * 64)
    journal = Journal()
    journal.add(tmp_path / "out/a.npz", made_of, tables(labels_from="labels.csv:truth"))
    recorded = featurestore.load_dataset("out/a.npz").metadata
    view: Any = SimpleNamespace(
        name="trait",
        digest=f"{'0' * 64}{sentences}",
        groups_digest=lambda _: "",
        split_version=lambda _: "",
        labels_digest=lambda _: digest,
        fingerprint=lambda _: made_of if state == "current" else "another",
    )
    plan: Any = SimpleNamespace(
        strategy=SimpleNamespace(code=""), json=str(recorded["parameters"]), files=tables(labels_from=labels_from)
    )
    assert jobs._state(tmp_path / "out/a.npz", view, plan, journal) == state


FORMS: dict[str, tuple[list[Any], list[Any]]] = {
    "token": ([[-1] * 5], [-1, [-1] * 4, ["a"] * 5, [0.5] * 5]),
    "input_tokens": (["mean"], [3, ["mean"]]),
    "target_tokens": (["max"], [3, ["max"]]),
    "combine": (["sum"], [3, ["sum"]]),
    "where": ([["label=0,3"], ["label=0,3", "n_tokens=5-12"]], ["label=0,3", [3]]),
    "labels_from": (["truth"], [3, ["truth"]]),
    "labels_digest": ([LABELS_DIGEST], ["truth", 3, [LABELS_DIGEST]]),
    "label_names": ([["honest", "lie"]], ["honest", [0, 1]]),
    "classes": (["0=0,3=1"], [3, ["0=0"]]),
    "control": (["text"], [3, ["text"]]),
    "short_sentence_indices": ([[3, 8], np.array([], np.int64)], [3, ["a"], [0.5]]),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_of_metadata(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    good, bad = FORMS[name]
    for value in good:
        write("a", "0" * 64, **{name: value})
        assert np.array_equal(featurestore.load_dataset("out/a.npz").metadata[name], np.array(value))
    for value in bad:
        write("a", "0" * 64, **{name: value})
        with pytest.raises(NpzError, match=f"meta_{name}"):
            featurestore.load_dataset("out/a.npz")
