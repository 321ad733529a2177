"""The store: what is in it, who can read it, and what it refuses."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st

from densitrace import (
    AutoStrata,
    InputError,
    Nucleus,
    Store,
    StoreError,
    Threshold,
    Tracer,
    open_store,
    scan,
)
from densitrace.tracer import layout
from densitrace.tracer.run import Limits
from densitrace.tracer.sizes import by_quartile
from densitrace.tracer.storage import Folder

RULE = Threshold([0.2, 0.05, 0.01])


@pytest.fixture
def store(byte_tracer: Tracer, corpus: Path, tmp_path: Path) -> Store:
    return scan(byte_tracer, corpus, tmp_path / "s.zarr", select=RULE, context=16)


def test_shapes_types_and_dimensions(store: Store) -> None:
    n, t, k = 10, 16, 3
    shapes = {"window": n, "column": t, "stratum": k, "edge_kind": 4, "depth_quartile": 4}
    for spec in layout.window_arrays():
        array = store.array(spec.name)
        assert array.shape == tuple(shapes[dim] for dim in spec.dims), spec.name
        assert array.dtype == spec.dtype
        assert array.dims == spec.dims
        assert array.attributes.get("units", "") == spec.units
    np.testing.assert_array_equal(store.stratum[:], [0.2, 0.05, 0.01])


def test_padding(store: Store) -> None:
    padding = store.token[:] < 0
    assert 0 < padding.sum() < padding.size
    for spec in layout.window_arrays():
        values = store.array(spec.name)[:]
        if values.ndim > 1:
            np.testing.assert_array_equal(values[padding], spec.fill)
    assert np.isfinite(store.size[:][~padding]).all()
    assert np.isfinite(store.tv[:][~padding]).all()


def test_documents_and_labels(store: Store, corpus: Path) -> None:
    rows = [json.loads(line) for line in corpus.read_text(encoding="utf-8").splitlines()]
    frame = store.documents
    assert list(frame.columns) == ["id", "lang", "year", "text"]
    assert frame.to_dict("records") == [
        {"id": row["id"], "lang": row["lang"], "year": str(row["year"]), "text": row["text"]}
        for row in rows
    ]
    assert store.labels == ("lang", "year")


def test_spans_lead_to_the_text(store: Store, byte_tracer: Tracer) -> None:
    assert byte_tracer.tokenizer is not None
    tokens, starts, ends = store.token[:], store.char_start[:], store.char_end[:]
    for window, text in enumerate(store.documents["text"].iloc[store.document[:]]):
        for column in np.flatnonzero(tokens[window] >= 0):
            piece = byte_tracer.tokenizer.decode([tokens[window, column]])
            span = text[starts[window, column] : ends[window, column]]
            assert piece in (span, "<bos>") or piece == "\ufffd" != span


def test_fields(store: Store, byte_tracer: Tracer) -> None:
    assert store.complete
    assert store.model_id == byte_tracer.model_id
    assert store.rule == store.select == RULE
    assert store.controls == ()
    about = store.attributes
    assert about["weight_hash"] == byte_tracer.weight_hash
    assert about["tokenizer_hash"] == byte_tracer.tokenizer_hash
    assert about["architecture"] == "llama"
    assert (about["importance"], about["attention"]) == ("norm_l1", "live")
    assert (about["scope"], about["count"], about["context"]) == ("all", "window", 16)
    assert about["corpus"] == {"documents": 6, "skipped": {}, "examples": {}}
    assert about["tokens"] == int((store.token[:] >= 0).sum())
    assert set(about["versions"]) == {"densitrace", "torch", "transformers", "zarr", "numpy"}


def test_plain_zarr_reads_everything_without_a_warning(store: Store) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open_group(store.path, mode="r")
        arrays = dict(group.arrays())
        for array in arrays.values():
            assert np.asarray(array[:]).shape == array.shape
            names = getattr(array.metadata, "dimension_names", None)
            assert len(names or ()) == array.ndim
    assert {"token", "size", "tv", "label", "text", "part_done"} <= set(arrays)
    plan: Any = group["plan"]
    assert sum(plan["length"][:]) == store.attributes["tokens"]


def test_tokens_table(store: Store) -> None:
    frame = store.tokens(["density@0.1", "density@0.5", "auc_tv"])
    token = store.token[:]
    window, column = np.nonzero(token >= 0)
    np.testing.assert_array_equal(frame["token"], token[window, column])
    np.testing.assert_array_equal(frame["window"], window)
    np.testing.assert_array_equal(frame["document"], store.document[:][window])
    np.testing.assert_array_equal(frame["position"], store.position[:][window, column])
    assert (frame["density@0.5"] <= frame["density@0.1"]).all()
    assert (frame["auc_tv"] >= 0).all()
    for name in ("density", "density@x", "density@-1", "nonsense"):
        with pytest.raises(InputError, match=f"'{name}' is no measure"):
            store.tokens([name])


def test_stratum_means(store: Store) -> None:
    valid = store.token[:] >= 0
    means = store.stratum_means()
    np.testing.assert_allclose(means["size"], store.size[:][valid].mean(0, dtype=np.float64))
    np.testing.assert_allclose(means["tv"], store.tv[:][valid].mean(0, dtype=np.float64))


def test_topology_adds_up_to_the_size(store: Store) -> None:
    valid = store.token[:] >= 0
    edges = store.topology[:].sum((-2, -1))[valid]
    size = edges / store.full_edge_count[:][valid][:, None]
    np.testing.assert_allclose(store.size[:][valid], size, rtol=1e-6)


def test_quartiles_of_depth() -> None:
    assert by_quartile(torch.arange(1, 7)).tolist() == [1 + 2, 3, 4 + 5, 6]
    assert by_quartile(torch.tensor([[5, 7]])).tolist() == [[5, 0, 7, 0]]
    for blocks in range(1, 41):
        quartile = [4 * block // blocks for block in range(blocks)]
        expected = np.bincount(quartile, np.arange(blocks) + 1, minlength=4)
        assert by_quartile(torch.arange(blocks) + 1).tolist() == expected.tolist()


@given(st.integers(1, 5000), st.integers(1, 255), st.integers(1, 10**7))
def test_parts_are_bounded_and_whole_chunks(columns: int, strata: int, windows: int) -> None:
    parts = layout.parts(columns, strata, windows)
    assert parts.windows % parts.chunk == 0
    for size, most in ((parts.chunk, layout.CHUNK_VALUES), (parts.windows, layout.PART_VALUES)):
        # A part is rounded up to whole chunks.
        values = (size if size == parts.chunk else size - parts.chunk) * columns * strata
        assert size == 1 or values <= most


@pytest.mark.parametrize(("edges", "dtype"), [(2**32 - 1, "uint32"), (2**32, "uint64")])
def test_topology_can_count_the_full_graph(edges: int, dtype: str) -> None:
    found = {spec.name: spec.dtype for spec in layout.window_arrays((), edges)}
    assert found["topology"] == dtype


def test_labels_that_some_documents_lack(byte_tracer: Tracer, tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"text": "a", "x/y": "1"}\n{"text": "b", "..": "2"}\n')
    store = scan(byte_tracer, path, tmp_path / "s.zarr", select=RULE)
    assert store.labels == ("x/y", "..")
    assert store.documents[["x/y", ".."]].to_numpy().tolist() == [["1", ""], ["", "2"]]


def test_no_labels(byte_tracer: Tracer, tmp_path: Path) -> None:
    path = tmp_path / "c.txt"
    path.write_text("a")
    store = scan(byte_tracer, path, tmp_path / "s.zarr", select=RULE)
    assert store.labels == ()
    assert store.documents.to_dict("records") == [{"id": "c.txt", "text": "a"}]


def test_files_that_are_gone_are_found_by_one_listing_an_array(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by a question a file, of which a large store has hundreds of thousands."""
    listed: list[str] = []
    files, arrays = Folder.files, layout.window_arrays()

    def noted(storage: Folder, folder: str) -> dict[str, int]:
        listed.append(folder)
        return files(storage, folder)

    monkeypatch.setattr(Folder, "files", noted)
    monkeypatch.setattr(Folder, "size", lambda *_: pytest.fail("a file was asked for"))
    for read in (store.tokens, lambda: list(store.damage())):
        listed.clear()
        read()
        assert sorted(listed) == sorted(["part_done", *(array.name for array in arrays)])


def test_what_is_no_store(tmp_path: Path) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("x")
    folder.mkdir()
    zarr.create_group(tmp_path / "other.zarr")
    newer = zarr.create_group(tmp_path / "newer.zarr")
    newer.attrs.update({"format": layout.FORMAT, "format_version": 99})
    (tmp_path / "broken.zarr").mkdir()
    (tmp_path / "broken.zarr" / "zarr.json").write_text("{")
    for name, message in (
        ("none", "does not exist"),
        ("file", "not a densitrace store"),
        ("folder", "not a densitrace store"),
        ("other.zarr", "not a densitrace store"),
        ("broken.zarr", "not a densitrace store"),
        ("newer.zarr", "format version 99"),
    ):
        with pytest.raises(StoreError, match=message) as caught:
            open_store(tmp_path / name)
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tracer": "examples/model"}, "tracer='examples/model' is no Tracer"),
        ({"corpus": ["a text"]}, r"corpus=\['a text'\]: the path of a file or folder is needed"),
        ({"path": None}, "path=None: the folder or URL of a store is needed"),
        ({"worker": 1}, "worker=1 is no Worker"),
        ({"limits": 60}, "limits=60 is no Limits"),
        ({"controls": "random"}, r"controls='random': a list is needed"),
    ],
)
def test_arguments_of_another_kind(
    byte_tracer: Tracer, corpus: Path, tmp_path: Path, wrong: dict[str, Any], message: str
) -> None:
    given: dict[str, Any] = {"tracer": byte_tracer, "corpus": corpus, "path": tmp_path / "s"}
    with pytest.raises(InputError, match=message):
        scan(**(given | wrong))
    assert not (tmp_path / "s").exists()


def test_an_open_store_is_returned_as_it_is(store: Store) -> None:
    assert open_store(store) is store


def test_missing_arrays_are_named(store: Store) -> None:
    with pytest.raises(AttributeError, match="no array 'nope'"):
        store.nope  # noqa: B018  (the access is what fails)
    with pytest.raises(StoreError, match="no array 'nope'"):
        store.array("nope")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"select": Threshold([0.2, 0.05])}, r"rule is threshold\(0.2, 0.05, 0.01\) there, thre"),
        ({"select": Nucleus([0.2, 0.05, 0.01])}, r"rule is threshold.*, nucleus.* here"),
        ({"select": AutoStrata(3)}, r"auto\(3\) here"),
        ({"importance": "norm_l2"}, "importance is norm_l1 there, norm_l2 here"),
        ({"attention": "frozen"}, "attention is live there, frozen here"),
        ({"scope": "output"}, "scope is all there, output here"),
        ({"count": "causal"}, "count is window there, causal here"),
        ({"seed": 1}, "seed is 0 there, 1 here"),
        ({"controls": ("random",)}, "controls is none there, random here"),
        ({"context": 8}, "context is 16 there, 8 here"),
        ({"batch_tokens": 7}, "batch_tokens is 1024 there, 7 here"),
        ({"label_fields": ("lang",)}, "corpus is .* there, .* here"),
    ],
)
def test_another_scan_is_refused(
    store: Store,
    byte_tracer: Tracer,
    corpus: Path,
    snapshot: Callable[[Path], dict[str, bytes]],
    change: dict[str, Any],
    message: str,
) -> None:
    before = snapshot(Path(store.path))
    options: dict[str, Any] = {"select": RULE, "context": 16, **change}
    with pytest.raises(StoreError, match=message):
        scan(byte_tracer, corpus, store.path, **options)
    assert snapshot(Path(store.path)) == before


def test_a_store_goes_on_with_what_it_began_with(
    byte_folder: Path, byte_tracer: Tracer, corpus: Path, tmp_path: Path
) -> None:
    """The last bits of sums depend on what runs together, and on what serves the ops."""
    options: dict[str, Any] = {"select": RULE, "context": 16}
    path = tmp_path / "s.zarr"
    scan(byte_tracer, corpus, path, batch_tokens=7, limits=Limits(max_parts=1), **options)
    plain = Tracer.from_pretrained(byte_folder, device="cpu", backend="reference")
    with pytest.raises(StoreError, match="arithmetic is cpu by cpu there, cpu by reference here"):
        scan(plain, corpus, path, **options)
    assert scan(byte_tracer, corpus, path, **options).recipe.batch_tokens == 7


def test_a_model_of_another_config_is_refused(
    byte_folder: Path, byte_tracer: Tracer, corpus: Path, tmp_path: Path
) -> None:
    """The same weights may be turned by other angles; a name or a dtype it is called by is none."""
    options: dict[str, Any] = {"select": RULE, "context": 16}
    path = tmp_path / "s.zarr"
    scan(byte_tracer, corpus, path, limits=Limits(max_parts=1), **options)
    other = Tracer.from_pretrained(byte_folder, device="cpu")
    config = other._decoder.model.config
    config.name_or_path, config.use_cache = "elsewhere", not config.use_cache
    assert other.config_hash == byte_tracer.config_hash
    config.rope_parameters = {"rope_type": "default", "rope_theta": 50.0}
    assert other.weight_hash == byte_tracer.weight_hash
    with pytest.raises(StoreError, match=r"model's config is .* there, .* here"):
        scan(other, corpus, path, **options)


def test_a_tokenizer_that_was_told_to_pad_is_the_same(
    byte_folder: Path, byte_tracer: Tracer, corpus: Path, tmp_path: Path
) -> None:
    """Its file may hold how it was last called."""
    options: dict[str, Any] = {"select": RULE, "context": 16}
    path, folder = tmp_path / "s.zarr", tmp_path / "model"
    shutil.copytree(byte_folder, folder)
    called: Any = Tracer.from_pretrained(folder, device="cpu").tokenizer
    called.pad_token = called.bos_token
    called(["abc", "d"], padding=True, truncation=True, max_length=64)
    called.backend_tokenizer.save(str(folder / "tokenizer.json"))
    assert '"truncation": {' in (folder / "tokenizer.json").read_text(encoding="utf-8")
    scan(byte_tracer, corpus, path, limits=Limits(max_parts=1), **options)
    again = Tracer.from_pretrained(folder, device="cpu")
    assert scan(again, corpus, path, **options).complete


def test_controls_in_any_order(byte_tracer: Tracer, corpus: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"select": RULE, "context": 16}
    path, other = tmp_path / "s.zarr", tmp_path / "other.zarr"
    limits = Limits(max_parts=1)
    scan(byte_tracer, corpus, path, controls=("random", "inverse"), limits=limits, **options)
    store = scan(byte_tracer, corpus, path, controls=("inverse", "random"), **options)
    whole = scan(byte_tracer, corpus, other, controls=("inverse", "random"), **options)
    for name in ("tv_inverse", "tv_random"):
        np.testing.assert_array_equal(store.array(name)[:], whole.array(name)[:])


def test_overwrite(store: Store, byte_tracer: Tracer, corpus: Path) -> None:
    options: dict[str, Any] = {"select": Threshold([0.3]), "context": 16, "overwrite": True}
    again = scan(byte_tracer, corpus, store.path, **options)
    assert again.rule == Threshold([0.3])
    assert again.size.shape == (10, 16, 1)
    assert again.complete
    assert sorted(path.name for path in Path(store.path).parent.iterdir()) == [
        "corpus.jsonl",
        "s.zarr",
    ]
