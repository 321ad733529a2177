"""Words and sentences: nothing lost, nothing cut that belongs together."""

import json
from pathlib import Path

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from densitrace.estimator.words import sentence_starts, word_spans

CORPUS = Path(__file__).parents[2] / "examples" / "corpus" / "scan.jsonl"
TEXTS: dict[str, str] = {}
for line in CORPUS.read_text(encoding="utf-8").splitlines():
    record = json.loads(line)
    TEXTS.setdefault(record["lang"], record["text"])
TEXTS |= {
    "th": "สวัสดีครับ ผมชื่อสมชาย",
    "ko": "안녕하세요 세계",
    "combining": "cafe\u0301 a\u0302\u0323b \u0301 нрав\u0301",
    "emoji": "ok 👨‍👩‍👧!🇫🇮🇸🇪 👍🏽 1️⃣ done",
    "odd": "a\u200bb\u00a0c\r\nd\u2028e \ufeff",
}


def words(text: str) -> list[str]:
    return [text[start:end] for start, end in word_spans(text)]


def check_round_trip(text: str) -> None:
    spans = word_spans(text)
    assert (spans[:, 0] < spans[:, 1]).all()
    assert (spans[1:, 0] >= spans[:-1, 1]).all()
    covered = {at for start, end in spans for at in range(start, end)}
    # White space inside a word can only be part of a grapheme cluster (a space with an accent).
    assert {at for at, c in enumerate(text) if not c.isspace()} <= covered
    clusters = {match.end() for match in regex.finditer(r"\X", text)} | {0}
    for start, end in spans:
        assert start in clusters or text[:start][-1:].isspace()
        assert end in clusters or text[end : end + 1].isspace()


@pytest.mark.parametrize("language", TEXTS)
def test_words_cover_every_character_that_is_no_space(language: str) -> None:
    check_round_trip(TEXTS[language])
    assert len(word_spans(TEXTS[language])) >= 2


@given(st.text())
def test_words_of_any_text(text: str) -> None:
    check_round_trip(text)


def test_words_are_what_a_reader_would_say() -> None:
    assert words("Don't stop, naïve café.") == ["Don't", "stop", ",", "naïve", "café", "."]
    assert words("cafe\u0301 3.14") == ["cafe\u0301", "3.14"]
    assert words("猫と犬") == ["猫", "と", "犬"]
    assert words("ok 👨‍👩‍👧🇫🇮🇸🇪 👍🏽") == ["ok", "👨‍👩‍👧", "🇫🇮", "🇸🇪", "👍🏽"]
    assert words("नमस्ते दुनिया") == ["नमस्ते", "दुनिया"]
    assert words(" \n") == words("") == []


def test_sentences_begin_after_end_marks_and_line_breaks() -> None:
    text = "One. “Two?” Three 3.5!\nFour 猫だ。五 (six.) seven"
    starts = sentence_starts(text).tolist()
    pieces = [text[a:b].strip() for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]
    assert pieces == ["One.", "“Two?”", "Three 3.5!", "Four 猫だ。", "五 (six.)", "seven"]
    assert sentence_starts("").tolist() == []
    assert sentence_starts("no end").tolist() == [0]
