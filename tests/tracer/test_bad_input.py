"""Everything that can be wrong with a scan: one line, the right exit code, nothing lost."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from byte_model import BYTES, byte_model, save
from click.testing import CliRunner

from densitrace import open_store
from densitrace.tracer.cli import cli

Snapshot = Callable[[Path], dict[str, bytes]]
OPTIONS = ("--thresholds", "0.1,0.01", "--context", "16")


def scan(corpus: Path, model: Path | str, out: Path, *options: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    args = ["scan", str(corpus), "--model", str(model), "--out", str(out), *(options or OPTIONS)]
    result = CliRunner().invoke(cli, args)
    return result.exit_code, result.stdout, result.stderr


def assert_refused(
    found: tuple[int, str, str], code: int, out: Path, *names: str, written: bool = False
) -> None:
    """One line that names things, and no trace of the store."""
    exit_code, stdout, stderr = found
    assert (exit_code, stdout) == (code, ""), stderr
    assert stderr.startswith("densitrace: ")
    assert stderr.count("\n") == 1
    for name in names:
        assert name in stderr
    if not written:
        assert not out.exists()
        assert not list(out.parent.glob(f".{out.name}*"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where the store would be."""
    return tmp_path / "s.zarr"


# ---- the corpus ----------------------------------------------------------------------------------


def test_no_such_corpus(byte_folder: Path, tmp_path: Path, out: Path) -> None:
    found = scan(tmp_path / "nowhere.jsonl", byte_folder, out)
    assert_refused(found, 1, out, "nowhere.jsonl", "does not exist")


@pytest.mark.parametrize("name", ["c.txt", "c.jsonl", "folder"])
def test_empty_corpus(byte_folder: Path, tmp_path: Path, out: Path, name: str) -> None:
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
    else:
        path.touch()
    assert_refused(scan(path, byte_folder, out), 1, out, name, "holds no document")


def test_a_corpus_of_nothing_but_bad_lines(byte_folder: Path, tmp_path: Path, out: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'{"text": ""}\n{"text": "\xff"}\n{')
    found = scan(path, byte_folder, out)
    kinds = ("empty text", "invalid UTF-8", "does not parse as a JSON object")
    assert_refused(found, 1, out, *kinds, "c.jsonl:1", "c.jsonl:2", "c.jsonl:3")


def test_bad_lines_are_skipped_counted_and_named(
    byte_folder: Path, tmp_path: Path, out: Path
) -> None:
    path = tmp_path / "c.jsonl"
    lines = [b'{"text": "good"}', b"{", b'{"t": 1}', b'{"text": "\xff"}', b'{"text": ""}', b"{"]
    path.write_bytes(b"\n".join(lines))
    code, stdout, stderr = scan(path, byte_folder, out)
    assert (code, stderr) == (0, "")
    text = " ".join(stdout.replace("│", " ").split())
    assert "2 does not parse as a JSON object: c.jsonl:2" in text
    assert "1 lacks the text field: c.jsonl:3" in text
    assert "1 invalid UTF-8: c.jsonl:4" in text
    assert "1 empty text: c.jsonl:5" in text
    store = open_store(out)
    assert store.documents["text"].tolist() == ["good"]
    assert sum(store.attributes["corpus"]["skipped"].values()) == 5


def test_a_folder_goes_on_past_bad_files(byte_folder: Path, tmp_path: Path, out: Path) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"\xff")
    (folder / "b.txt").write_text(" \n")
    (folder / "c.parquet").write_text("x")
    (folder / "[red]d.txt").write_text("good")
    code, stdout, stderr = scan(folder, byte_folder, out)
    assert (code, stderr) == (0, "")
    for name in ("a.txt", "b.txt", "c.parquet"):
        assert name in stdout
    assert open_store(out).documents["id"].tolist() == ["[red]d.txt"]


def test_names_that_are_no_utf8(byte_folder: Path, tmp_path: Path) -> None:
    """Standard output takes UTF-8 alone here."""
    folder, out = tmp_path / os.fsdecode(b"c\xff"), tmp_path / os.fsdecode(b"s\xff.zarr")
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no such names here: {error}")
    (folder / os.fsdecode(b"\xff.csv")).touch()
    (folder / os.fsdecode(b"\xff.txt")).write_text("good")
    code, stdout, stderr = scan(folder, byte_folder, out)
    assert (code, stderr) == (0, "")
    assert r"parquet: \xff.csv" in stdout
    assert open_store(out).documents["id"].tolist() == [r"\xff.txt"]
    assert CliRunner().invoke(cli, ["status", str(out)]).exit_code == 0


# ---- the model -----------------------------------------------------------------------------------


def test_a_model_folder_without_weights(
    byte_folder: Path, corpus: Path, tmp_path: Path, out: Path
) -> None:
    model = tmp_path / "weightless"
    model.mkdir()
    (model / "config.json").write_text((byte_folder / "config.json").read_text())
    assert_refused(scan(corpus, model, out), 1, out, "weightless", "cannot be loaded")


def test_an_empty_model_folder(corpus: Path, tmp_path: Path, out: Path) -> None:
    model = tmp_path / "hollow"
    model.mkdir()
    assert_refused(scan(corpus, model, out), 1, out, "hollow")


def test_no_such_model(corpus: Path, tmp_path: Path, out: Path) -> None:
    assert_refused(scan(corpus, tmp_path / "nowhere", out), 1, out, "nowhere")


def test_an_undeclared_architecture(corpus: Path, tmp_path: Path, out: Path) -> None:
    model = tmp_path / "mamba"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    assert_refused(scan(corpus, model, out), 1, out, "'mamba' is not a declared architecture")


def test_weights_that_hold_nan(corpus: Path, tmp_path: Path, out: Path) -> None:
    model = byte_model()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = torch.nan
    folder = save(tmp_path / "nan", model)
    assert_refused(scan(corpus, folder, out), 1, out, "NaN", "layers.1.mlp.up_proj")


def test_token_ids_out_of_range(corpus: Path, tmp_path: Path, out: Path) -> None:
    folder = save(tmp_path / "small", byte_model(vocabulary=BYTES))
    found = scan(corpus, folder, out)
    assert_refused(found, 2, out, f"token id {BYTES}", "corpus.jsonl:1", f"0..{BYTES - 1}")


def test_a_model_without_a_tokenizer(corpus: Path, tmp_path: Path, out: Path) -> None:
    byte_model().save_pretrained(tmp_path / "mute")
    assert_refused(scan(corpus, tmp_path / "mute", out), 2, out, "/mute' has no tokenizer")


@pytest.mark.parametrize(
    ("option", "value"), [("--device", "abacus"), ("--dtype", "float7"), ("--dtype", "nn")]
)
def test_devices_and_dtypes_that_do_not_exist(
    byte_folder: Path, corpus: Path, out: Path, option: str, value: str
) -> None:
    assert_refused(scan(corpus, byte_folder, out, option, value), 2, out, value)


# ---- the rule ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--thresholds", "0.1,1.5", "value 1.5 is outside [0, 1)"),
        ("--thresholds", "-0.1", "value -0.1 is outside"),
        ("--thresholds", "nan", "value nan is outside"),
        ("--thresholds", "0.1,0.2,0.1", "0.1 is given twice"),
        ("--thresholds", "0.1,", "'0.1,' is not a list of numbers"),
        ("--thresholds", ",".join(f"{k / 257:.6f}" for k in range(256)), "256 values"),
        ("--nucleus", "0", "value 0 is outside (0, 1]"),
        ("--top-fraction", "2", "value 2 is outside"),
        ("--strata", "256", "n=256"),
        ("--strata", "0", "n=0"),
        ("--strata", "many", "'many' is not a valid integer"),
        ("--sizes", "0.1", "--scope output"),
        ("--importance", "norm_l7", "'norm_l7'"),
        ("--context", "0", "0 is not in the range"),
        ("--nonsense", "1", "--nonsense"),
    ],
)
def test_values_that_cannot_be(
    byte_folder: Path, corpus: Path, out: Path, option: str, value: str, message: str
) -> None:
    assert_refused(scan(corpus, byte_folder, out, option, value), 2, out, option, message)


def test_two_rules(byte_folder: Path, corpus: Path, out: Path) -> None:
    found = scan(corpus, byte_folder, out, "--strata", "3", "--nucleus", "0.5")
    assert_refused(found, 2, out, "--strata and --nucleus cannot be combined")


# ---- the store -----------------------------------------------------------------------------------


def test_a_store_of_another_scan(
    byte_folder: Path, corpus: Path, tmp_path: Path, out: Path, snapshot: Snapshot
) -> None:
    assert scan(corpus, byte_folder, out)[0] == 0
    before = snapshot(out)
    other_model = save(tmp_path / "other", byte_model(seed=1))
    other_corpus = tmp_path / "other.txt"
    other_corpus.write_text("something else")
    for args, names in (
        ((corpus, other_model, out), ("model is ",)),
        ((other_corpus, byte_folder, out), ("corpus is ",)),
        (
            (corpus, byte_folder, out, "--thresholds", "0.5", "--context", "16"),
            ("rule is threshold(0.1, 0.01) there, threshold(0.5) here",),
        ),
    ):
        assert_refused(scan(*args), 1, out, "s.zarr", *names, written=True)
        assert snapshot(out) == before


@pytest.mark.parametrize("options", [(), ("--overwrite",)])
def test_something_else_is_there(
    byte_folder: Path, corpus: Path, tmp_path: Path, snapshot: Snapshot, options: tuple[str, ...]
) -> None:
    folder, file = tmp_path / "photos", tmp_path / "letter.txt"
    folder.mkdir()
    (folder / "cat.jpg").write_bytes(b"cat")
    file.write_text("dear")
    before = snapshot(tmp_path)
    for place in (folder, file):
        found = scan(corpus, byte_folder, place, *OPTIONS, *options)
        assert_refused(found, 1, place, place.name, "not a densitrace store", written=True)
    assert snapshot(tmp_path) == before


def test_an_empty_folder_is_replaced(byte_folder: Path, corpus: Path, out: Path) -> None:
    out.mkdir(mode=0o750)
    assert CliRunner().invoke(cli, ["status", str(out)]).exit_code == 1
    code, _, stderr = scan(corpus, byte_folder, out)
    assert (code, stderr) == (0, "")
    assert open_store(out).complete
    assert out.stat().st_mode & 0o777 == 0o750


def test_an_empty_folder_that_cannot_be_replaced(
    byte_folder: Path, corpus: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out.mkdir()
    monkeypatch.chdir(out)
    found = scan(corpus, byte_folder, Path())
    assert_refused(found, 1, out, "s.zarr' is the current folder", "a path in it", written=True)
    monkeypatch.chdir(out.parent)
    (out.parent / "link").symlink_to(out)
    found = scan(corpus, byte_folder, out.parent / "link")
    assert_refused(found, 1, out, "link' is not a densitrace store", written=True)
    assert not list(out.iterdir())


def test_a_folder_that_cannot_be_written(byte_folder: Path, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    out = tmp_path / "file" / "s.zarr"
    exit_code, stdout, stderr = scan(corpus, byte_folder, out)
    assert (exit_code, stdout) == (1, "")
    assert stderr.count("\n") == 1
    assert "file' cannot be written" in stderr
    assert (tmp_path / "file").read_text() == "x"


def test_a_failure_while_reading_leaves_an_old_store_alone(
    byte_folder: Path, corpus: Path, tmp_path: Path, out: Path, snapshot: Snapshot
) -> None:
    assert scan(corpus, byte_folder, out)[0] == 0
    before = snapshot(out)
    found = scan(tmp_path / "nowhere.txt", byte_folder, out, *OPTIONS, "--overwrite")
    assert_refused(found, 1, out, "nowhere.txt", written=True)
    assert snapshot(out) == before
