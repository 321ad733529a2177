"""What tests of scans share: a tiny model in a folder, a small corpus, the bytes of a folder."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from byte_model import byte_model, save

from densitrace import Tracer


@pytest.fixture(scope="session")
def byte_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny model and its tokenizer."""
    return save(tmp_path_factory.mktemp("byte-llama"), byte_model())


@pytest.fixture(scope="session")
def byte_tracer(byte_folder: Path) -> Tracer:
    """The tiny model of `byte_folder`, loaded."""
    return Tracer.from_pretrained(byte_folder, device="cpu")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Six labelled documents of different lengths, one of them several windows of 16 tokens."""
    texts = ("To be, or not to be.", "x", "Wer reitet so spät durch Nacht und Wind?", "天地玄黃")
    rows = [
        {"id": f"d{index}", "text": text, "lang": lang, "year": 1800 + index}
        for index, (text, lang) in enumerate(
            zip((*texts, "ab" * 9, "The end."), ("en", "en", "de", "zh", "en", "en"), strict=True)
        )
    ]
    path = tmp_path / "corpus.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def snapshot() -> Callable[[Path], dict[str, bytes]]:
    """The bytes of every file below a folder."""

    def take(folder: Path) -> dict[str, bytes]:
        files = (path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    return take


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the workers have: torch's own products round differently with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
