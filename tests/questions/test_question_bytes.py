"""The same bytes: of datasets without options of questions as ever, of those with any from any store of the same."""

from __future__ import annotations

import hashlib
import itertools
import zipfile
from pathlib import Path
from typing import Any

import pytest

import featurestore
from featurestore.store import backend, layout
from tests.questions.study import FEATURE, FEATURES, LAYERS, Options, Study, make_study
from tests.sentences import SAMPLE

GOLDEN: list[tuple[str, Options, str]] = [
    ("hidden-to-concept", {"layer": 12}, "ba7677322df153b0ad50b49967d336b76ba478b7c3d401d54ffc1c863e15a14e"),
    ("hidden-to-concept", {"layers": "0-2,10,15-17", "normalize": "minmax"},
     "c73d4029005eb62d9cde668f9d3a7a33886b79ecc19b894be8c0a5513e98449f"),
    ("hidden-to-concept", {"layers": [17, 0], "test_size": 0.25, "seed": 1, "drop_nonfinite": True},
     "9dafdbca902cc908ddfe52e82c9baabd28eb4cb32ed7f6623cfb6b0b0ecc917d"),
    ("embedding-to-concept", {"folds": 4, "group_by": "n_tokens", "normalize": "none"},
     "3a17c56a4e3e58cdf5ea250c2da476208c15c4e87856ff54d3a47e5efcff4ec0"),
    ("embedding-to-feature", {"target_layer": 12, "target_feature": 1000},
     "cda09b76c0d719ce82b5d8707198a98339d632dee67e1da03be60470f93b8715"),
    ("hidden-to-feature", {"target_layer": 15, "target_feature": 3, "input_layer": 4, "normalize": "none"},
     "99fc30c35b071be330a7ed79f985bd25a27f4440a7c43f0a910209527fe0b2c2"),
    ("hidden-to-features", {"target_layer": 15, "target_features": "61,5,1022", "test_size": 0.2},
     "719b9487279d8f3340b4d39d6ac7895aaa843bd8f40af4126a3f4144c0e428b9"),
    ("activation-to-concept", {"layer": 15, "normalize": "minmax"},
     "3f0fa862d6cdc48c97ccce17fac9f3961ae3cf7cd2dd5a3ad08290a1d263f518"),
    ("activation-to-concept", {"layer": 12, "densest": 30, "test_size": 0.25, "folds": 3, "seed": 1},
     "872286a041bb1193fb635cf31810c0f85bbd4d81ca217f2efadc3753fa2db302"),
]  # fmt: skip
"""Builds of the sample, and the digests that they had before there were questions to ask."""

DEFAULTS: Options = {"tokens": "final", "combine": "concat", "special": False, "drop_short": False}


@pytest.fixture(scope="module")
def sample_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sample") / "dishonesty.zarr"
    featurestore.ingest(SAMPLE, path)
    return path


def digest(path: Path) -> str:
    """SHA-256 of all arrays as they are in the file, in their order, but the version of the package."""
    found = hashlib.sha256()
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name != "meta_featurestore_version.npy":
                found.update(name.encode())
                found.update(archive.read(name))
    return found.hexdigest()


@pytest.mark.parametrize(("strategy", "options", "expected"), GOLDEN)
def test_other_datasets_keep_their_bytes(
    sample_store: Path, tmp_path: Path, strategy: str, options: Options, expected: str
) -> None:
    """Metadata and fingerprint, too; also where what is so anyway is asked for."""
    featurestore.build(sample_store, strategy, output=tmp_path / "x.npz", **options)
    assert digest(tmp_path / "x.npz") == expected
    featurestore.build(sample_store, strategy, output=tmp_path / "y.npz", **options, **DEFAULTS)
    assert digest(tmp_path / "y.npz") == expected


BUILDS: list[tuple[str, Options]] = [
    *((LAYERS[0], LAYERS[1] | {"tokens": tokens}) for tokens in ("mean", "max", "last-2", "first-3", "all")),
    *((FEATURE[0], FEATURE[1] | {"target_tokens": tokens}) for tokens in ("mean", "max", "last-2", "first-3")),
    *((LAYERS[0], LAYERS[1] | {"combine": combine, "tokens": "all"}) for combine in ("mean", "sum")),
    ("hidden-to-concept", {"layers": "5,1", "combine": "difference"}),
    (FEATURES[0], FEATURES[1] | {"tokens": "all", "special": True}),
    (LAYERS[0], LAYERS[1] | {"where": ["label=0,3", "n_tokens=2-6"]}),
    (LAYERS[0], LAYERS[1] | {"classes": "0=0,3=1", "labels_from": None}),
    (LAYERS[0], LAYERS[1] | {"labels_from": "labels.csv:kind"}),
    (FEATURE[0], FEATURE[1] | {"labels_from": "texts.csv:strength", "tokens": "mean"}),
    *(
        (FEATURE[0], FEATURE[1] | {"control": control, "tokens": tokens})
        for control in ("shuffled-labels", "random-columns", "text")
        for tokens in ("final", "all")
    ),
    *((LAYERS[0], LAYERS[1] | {"control": control}) for control in ("shuffled-labels", "random-columns", "text")),
    ("activation-to-concept", {"layer": 1, "densest": 3, "tokens": "max"}),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The store of `study`, but ingested at once."""
    return make_study(tmp_path_factory.mktemp("whole"), portions=1)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The same in many small chunks, and in three portions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "ROWS", 4)
        patch.setattr(layout, "BATCH_ROWS", 4)
        patch.setattr(layout, "TOKENS", 2)
        return make_study(tmp_path_factory.mktemp("small"), portions=3)


@pytest.mark.parametrize(("strategy", "options"), BUILDS, ids=lambda value: str(value))
def test_the_same_bytes_from_any_store(
    study: Study, whole: Study, small: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    strategy: str, options: Options,
) -> None:  # fmt: skip
    options = options | {"test_size": 0.25, "folds": 2, "seed": 1}
    found = {"portions": bytes_of(study, tmp_path / "portions.npz", strategy, options)}
    found["whole"] = bytes_of(whole, tmp_path / "whole.npz", strategy, options)
    monkeypatch.setattr(backend, "SENTENCES_PER_CHUNK", 5)
    found["dask"] = bytes_of(whole, tmp_path / "dask.npz", strategy, options)
    monkeypatch.setattr("featurestore.datasets.raw.IN_MEMORY_BYTES", 0)
    monkeypatch.setattr("featurestore.datasets.dataset._WINDOW_BYTES", 1)
    found["small"] = bytes_of(small, tmp_path / "small.npz", strategy, options)
    assert len(set(found.values())) == 1, {name: hashlib.sha256(data).hexdigest()[:8] for name, data in found.items()}


def test_a_sweep_makes_the_same_files(study: Study, tmp_path: Path) -> None:
    """Datasets that share what is read, but not what becomes of it."""
    split: Options = {"test_size": 0.25, "seed": 1}
    tokens = ["final", "mean", "all"]
    entries: list[tuple[str, Options]] = [
        ("hidden-to-concept", {"layers": "5,1", "tokens": tokens, "combine": ["concat", "difference"]}),
        (FEATURE[0], FEATURE[1] | {"tokens": "all", "target_tokens": ["final", "all"]}),
        ("activation-to-concept", {"layer": 5, "classes": ["0=0,3=1", "1=0,2=1"], "tokens": "max"}),
        ("embedding-to-concept", {"where": ["n_tokens=2-6", "n_tokens=3-7"], "tokens": "mean"}),
    ]
    controls = ["shuffled-labels", "random-columns"]
    done = featurestore.sweep(
        {
            "stores": str(study.store), "output": str(tmp_path / "out"), "split": split, "drop_short": True,
            "controls": controls, "min_active": 1, "datasets": [{"strategy": name} | asked for name, asked in entries],
        }
    )  # fmt: skip
    assert {planned.problem for planned in done.datasets} == {""}
    expected = set()
    for number, (name, asked) in enumerate(entries):
        listed = [values if isinstance(values, list) else [values] for values in asked.values()]
        for chosen in itertools.product(*listed):
            for control in (None, *controls):
                options = dict(zip(asked, chosen, strict=True)) | split | {"control": control}
                data = bytes_of(study, tmp_path / f"{number}.npz", name, options, overwrite=True)
                expected.add(hashlib.sha256(data).hexdigest())
    files = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "out").rglob("*.npz")]
    assert len(files) == len(set(files)) == len(expected)
    assert set(files) == expected


def bytes_of(study: Study, output: Path, strategy: str, options: Options, **further: Any) -> bytes:
    if options.get("labels_from"):
        options = options | {"labels_from": study.table(options["labels_from"])}
    featurestore.build(study.store, strategy, drop_short=True, output=output, **options, **further)
    return output.read_bytes()
