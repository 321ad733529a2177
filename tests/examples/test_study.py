"""The study: claims that are true, false or open by construction, and the whole command."""

import importlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from byte_model import byte_model, byte_tokenizer, save
from click.testing import CliRunner
from numpy.typing import NDArray
from scipy import stats

from densitrace import Store, Threshold, Tracer, open_store, scan
from densitrace.estimator.frames import token_frame
from densitrace.estimator.intervals import Interval
from densitrace.estimator.summaries import trace_parts
from densitrace.tracer.storage import storage_of
from densitrace.tracer.store import open_store_in

STUDY = Path(__file__).resolve().parents[2] / "examples" / "study"
SEED = 0
DOCUMENTS, WORDS = 24, 9
# Of the strata; at the end of a first word no trace is smaller than the first of them.
SIZES = np.array([0.01, 0.05, 0.2, 0.5])
Floats = NDArray[np.float64]
Cells = tuple[Floats, Floats, Floats]  # [N, T] each: document, context, letter


@pytest.fixture(scope="module")
def study() -> Any:
    """The study's modules by their names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(STUDY)
        names = ("claims", "effects", "record", "thresholds", "run")
        modules = {name: importlib.import_module(name) for name in names}
        yield type("Study", (), modules)


def write_corpus(path: Path, texts: list[str]) -> Path:
    rows = [
        {"id": f"d{n}", "domain": "ab"[n % 2], "lang": "en", "text": text}
        for n, text in enumerate(texts)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Base:
    """A store whose arrays are overwritten, and what its tokens are."""

    store: Store
    folder: Path

    def like(
        self,
        name: str,
        log_density: Callable[[np.random.Generator, Cells], Floats],
        more: Callable[[np.random.Generator, dict[str, Any]], None] = lambda rng, arrays: None,
    ) -> Store:
        """A store in which every token has a chosen log10 of `density@0.1`, in (-2, 0).

        `more` changes further arrays in place.
        """
        rng = np.random.default_rng(SEED)
        path = self.folder / f"{name}.zarr"
        shutil.copytree(self.store.path, path)
        store = open_store_in(storage_of(path), to_write=True)
        for part in store.done_parts():
            windows = store.windows(part)
            names = ("document", "token", "topology", "model_entropy", "tv_random", "size", "tv")
            arrays = {name: store.array(name)[windows] for name in names}
            shape = arrays["token"].shape
            document = np.broadcast_to(arrays["document"][:, None], shape).astype(float)
            context = np.broadcast_to(1.0 + np.arange(shape[1]), shape)
            wanted = log_density(rng, (document, context, arrays["token"].astype(float)))
            assert ((wanted > -2) & (wanted < 0)).all()
            # Straight in log size, through 0.1 at the wanted size and 0 at the full graph.
            tv = np.minimum(0.1 * np.log10(SIZES) / wanted[..., None], 1)
            arrays["size"] = np.broadcast_to(SIZES, arrays["tv"].shape)
            arrays["tv"] = tv
            arrays["tv_random"] = np.minimum(tv + 0.2, 1)
            more(rng, arrays)
            del arrays["document"], arrays["token"]
            store.write_part(
                part, {n: np.asarray(a, store.array(n).dtype) for n, a in arrays.items()}
            )
        return open_store(path)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp("study")
    rng = np.random.default_rng(SEED)
    letters = np.array(list("etaoinshrdlucmf"))
    share = 1 / np.arange(1, len(letters) + 1)
    share /= share.sum()
    texts = [
        " ".join("".join(word) for word in rng.choice(letters, (WORDS, 4), p=share))
        for _ in range(DOCUMENTS)
    ]
    store = scan(
        Tracer(byte_model(), byte_tokenizer(), model_id="bytes"),
        write_corpus(folder / "corpus.jsonl", texts),
        folder / "base.zarr",
        select=Threshold([0.2, 0.1, 0.05, 0.01]),
        context=64,
        controls=("random",),
    )
    return Base(store, folder)


def noise(rng: np.random.Generator, cells: Cells) -> Floats:
    return np.clip(rng.normal(-1.2, 0.2, cells[0].shape), -1.7, -0.7)


def by_document(rng: np.random.Generator, cells: Cells, scale: float) -> Floats:
    """Documents that differ: their levels are normal with this spread, tokens with 0.2."""
    level = stats.norm.ppf((np.arange(DOCUMENTS) + 0.5) / DOCUMENTS) * scale
    return np.asarray(np.clip(noise(rng, cells) + level[cells[0].astype(int)], -1.99, -0.1))


def half(cells: Cells) -> NDArray[np.bool_]:
    """The cells of every second document."""
    return np.asarray(cells[0] % 2 == 0)


# ---- the rule ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("effect", "least", "expected"),
    [
        ((0.3, 0.2, 0.4), 0.1, "holds"),
        ((0.3, 0.05, 0.4), 0.1, "undecided"),
        ((0.05, 0.02, 0.08), 0.1, "fails"),  # there, but too small to count
        ((-0.3, -0.4, -0.2), 0.1, "fails"),
        ((-0.3, -0.4, -0.2), -0.1, "holds"),
        ((0.0, -0.08, 0.08), -0.1, "fails"),
        ((0.0, -0.12, 0.08), -0.1, "undecided"),
        ((0.5, np.nan, np.nan), 0.1, "undecided"),
    ],
)
def test_verdicts(
    study: Any, effect: tuple[float, float, float], least: float, expected: str
) -> None:
    assert study.claims.verdict(Interval(*effect), least) == expected


def test_a_claim_over_models_counts_where_these_differ(study: Any) -> None:
    def line(value: float, main: bool = True) -> Any:
        effect = Interval(value, value - 0.01, value + 0.01)
        return study.claims.Finding("varies", "m", "w", effect, main)

    standing = study.claims.standing
    assert standing([line(0.3), line(0.4), line(-1, main=False)]) == "holds"
    assert standing([line(0.3), line(0.0), line(0.0)]) == "holds in 1, fails in 2 of 3"
    assert standing([line(0.3, main=False)]) == "not tested"


# ---- claims by construction ----------------------------------------------------------------------


def lines(study: Any, store: Store, test: str) -> list[Any]:
    """What one of the study's tests finds in a store."""
    one = study.claims.Scan("m", store, resamples=199)
    return list(getattr(study.claims, test)(one, one.tokens()))


def main_line(study: Any, store: Store, test: str) -> Any:
    (line,) = [f for f in lines(study, store, test) if f.main]
    return line


@pytest.mark.parametrize(
    ("gain", "expected"),
    [((0.2, 0.2), "holds"), ((-0.1, 0.0), "fails"), ((0.1, 0.0), "undecided")],
)
def test_traces_against_random_subgraphs(
    study: Any, base: Base, gain: tuple[float, float], expected: str
) -> None:
    """Every second document gains one amount, the others another."""

    def more(rng: np.random.Generator, arrays: dict[str, Any]) -> None:
        amounts = np.where(arrays["document"] % 2 == 0, *gain)[:, None, None]
        arrays["tv_random"] = arrays["tv"] + amounts

    store = base.like(f"random{gain}", lambda rng, cells: noise(rng, cells) * 0.3 - 1.4, more)
    line = main_line(study, store, "better_than_random")
    assert line.verdict == expected
    # At the full graph, which ends the curve, no subgraph differs: half of the last gap.
    decades = -np.log10(SIZES)
    inner = 1 - decades[-1] / 2 / decades[0]
    assert line.effect.value == pytest.approx(inner * np.mean(gain), abs=2e-3)


@pytest.mark.parametrize(
    ("scale", "expected"), [(0.2, "holds"), (0.0, "fails"), (0.065, "undecided")]
)
def test_density_that_varies_with_the_document(
    study: Any, base: Base, scale: float, expected: str
) -> None:
    store = base.like(f"varies{scale}", lambda rng, cells: by_document(rng, cells, scale))
    line = main_line(study, store, "varies")
    assert line.verdict == expected
    assert line.effect.value == pytest.approx(scale**2 / (scale**2 + 0.04), abs=0.06)


@pytest.mark.parametrize(
    ("slopes", "expected"),
    [((-0.4, -0.2), "holds"), ((0.0, 0.2), "fails"), ((-0.4, 0.2), "undecided")],
)
def test_density_that_depends_on_context(
    study: Any, base: Base, slopes: tuple[float, float], expected: str
) -> None:
    def log_density(rng: np.random.Generator, cells: Cells) -> Floats:
        power = np.where(half(cells), *slopes)
        return np.asarray(noise(rng, cells) / 4 - 1.1 + power * np.log10(cells[1] / 16))

    store = base.like(f"context{slopes}", log_density)
    size, edges, per_token = lines(study, store, "longer_is_sparser")
    assert size.main and size.verdict == expected
    assert size.effect.value == pytest.approx(np.mean(slopes), abs=0.05)
    tokens = token_frame(store).query("context >= 8")
    full = np.polyfit(np.log(tokens["context"]), np.log(tokens["full_edges"]), 1)[0]
    assert edges.effect.value == pytest.approx(size.effect.value + full, abs=1e-6)
    assert per_token.effect.value == pytest.approx(edges.effect.value - 1, abs=1e-6)


@pytest.mark.parametrize(
    ("slopes", "expected"),
    [((-0.3, -0.3), "holds"), ((0.3, 0.0), "fails"), ((-0.3, 0.17), "undecided")],
)
def test_density_that_depends_on_the_predicted_tokens_frequency(
    study: Any, base: Base, slopes: tuple[float, float], expected: str
) -> None:
    ids, counts = np.unique(np.asarray(base.store.token[:]), return_counts=True)
    frequency = dict(zip(ids.tolist(), np.log10(counts).tolist(), strict=True))

    def log_density(rng: np.random.Generator, cells: Cells) -> Floats:
        following = np.roll(cells[2], -1, axis=1)
        of_next = np.vectorize(frequency.get)(following).astype(float)
        return np.asarray(noise(rng, cells) + np.where(half(cells), *slopes) * (of_next - 1.8))

    store = base.like(f"rare{slopes}", log_density)
    assert main_line(study, store, "rarer_is_denser").verdict == expected


@pytest.mark.parametrize(
    ("sign", "expected"), [(1.0, "holds"), (-1.0, "fails"), (0.0, "undecided")]
)
def test_density_that_goes_with_entropy(study: Any, base: Base, sign: float, expected: str) -> None:
    """In the open case the two go together in some documents and oppositely in others."""

    def more(rng: np.random.Generator, arrays: dict[str, Any]) -> None:
        density = arrays["tv"][..., 1]
        signs = np.where(arrays["document"] % 12 < 7, 1, -1)[:, None] if sign == 0 else sign
        arrays["model_entropy"] = 5 + signs * (density - density.mean()) * 10

    store = base.like(f"entropy{sign}", noise, more)
    assert main_line(study, store, "uncertain_is_denser").verdict == expected


# Shares of the core's edges in the lower half, of the added ones, and of attention in each.
PHASES = {
    "two": ((0.9, 0.3, 0.2, 0.8), ("holds", "holds", "holds")),
    "none": ((0.5, 0.5, 0.6, 0.6), ("fails", "fails", "fails")),
    "the other way": ((0.2, 0.9, 0.8, 0.2), ("fails", "fails", "fails")),
    "open": (None, ("undecided", "undecided", "undecided")),
}


@pytest.mark.parametrize("case", PHASES)
def test_the_two_phases(study: Any, base: Base, case: str) -> None:
    shares, expected = PHASES[case]

    def edges(total: float, lower: Any, attention: Any) -> Floats:
        """[..., 4 kinds, 4 quartiles] of so many edges."""
        halves = np.stack([lower / 2, lower / 2, (1 - lower) / 2, (1 - lower) / 2], -1)
        kinds = np.stack([attention, 0 * attention, 1 - attention, 0 * attention], -1)
        return np.asarray(np.round(total * kinds[..., :, None] * halves[..., None, :]))

    def more(rng: np.random.Generator, arrays: dict[str, Any]) -> None:
        if shares is None:  # half of the documents show both phases, half show none
            even = arrays["document"] % 2 == 0
            values = [
                np.where(even, *pair) for pair in ((0.6, 0.5), (0.5, 0.5), (0.5, 0.5), (0.6, 0.5))
            ]
        else:
            values = [np.full(len(arrays["document"]), share) for share in shares]
        core_lower, added_lower, core_attention, added_attention = (
            np.broadcast_to(v[:, None], arrays["token"].shape) for v in values
        )
        core = edges(1000, core_lower, core_attention)
        refined = core + edges(1000, added_lower, added_attention)
        arrays["tv"] = np.broadcast_to([0.9, 0.4, 0.05, 0.01], arrays["tv"].shape)
        arrays["topology"] = np.stack([core // 2, core, refined, 2 * refined], 2)

    store = base.like(f"phases {case}", noise, more)
    found = lines(study, store, "phases")
    names = ("core is early", "refined late", "refined by attention")
    by_claim = {f.claim: f for f in found if f.claim in names and f.main}
    assert tuple(by_claim[name].verdict for name in names) == expected
    if shares is not None:
        assert [by_claim[name].effect.value for name in names] == pytest.approx(
            [shares[0] - 0.5, shares[0] - shares[1], shares[3] - shares[2]], abs=2e-3
        )


@pytest.mark.parametrize(("alike", "expected"), [(24, "holds"), (-24, "fails"), (3, "undecided")])
def test_densities_that_two_models_share(study: Any, base: Base, alike: int, expected: str) -> None:
    """So many of the 24 documents are alike to both models, or opposite where negative."""
    rng = np.random.default_rng(7)
    common, own = rng.normal(scale=0.15, size=(2, *base.store.token.shape))

    def second(_: np.random.Generator, cells: Cells) -> Floats:
        agreement = np.where(cells[0] < abs(alike), 0.8 * np.sign(alike), 0)
        return np.asarray(-1 + agreement * common + 0.6 * own)

    first = base.like(f"first{alike}", lambda _, cells: -1 + common)
    other = base.like(f"second{alike}", second)
    claims = study.claims
    found = claims.judge_pairs([claims.Scan("a", first), claims.Scan("b", other)])
    (line,) = [f for f in found if f.main]
    assert line.subject == "a and b"
    assert line.verdict == expected


# ---- tables --------------------------------------------------------------------------------------


def test_an_error_at_a_threshold_lies_between_those_of_the_strata(study: Any, base: Base) -> None:
    tokens = token_frame(base.store)
    tv = np.asarray(base.store.tv[:])[np.asarray(base.store.token[:]) >= 0]
    means = [
        tv[rows.index].mean(0, dtype=float) for _, rows in tokens.groupby("document")
    ]  # [documents][strata]
    error_at = study.thresholds.error_at
    for stratum, threshold in enumerate(base.store.strata):
        found = error_at(base.store, threshold)
        assert found.value == pytest.approx(np.mean(means, 0)[stratum])
        assert found.low <= found.value <= found.high
    between = error_at(base.store, np.sqrt(0.1 * 0.05)).value
    assert between == pytest.approx(np.mean(means, 0)[1:3].mean())


def test_shares_of_traces_are_those_of_the_summaries(study: Any, base: Base) -> None:
    rows = study.run.topology("m", base.store)
    for stratum, row in enumerate(rows):
        share = trace_parts(base.store, stratum)["share"].unstack()
        assert row["attention"] == pytest.approx(share.loc["attention"].sum())
        assert row["lower_half"] == pytest.approx(share[[1, 2]].to_numpy().sum())
        assert row["threshold"] == base.store.strata[stratum]


def test_the_full_graphs_lower_half(study: Any) -> None:
    found = study.run.lower_half(Tracer(byte_model(), byte_tokenizer()), 3)
    # Two blocks of four heads: 3 + 4 (t + 1) edges to a token, the last block's output alone.
    degree = 3 + 4 * np.arange(1, 4)
    assert found == pytest.approx(np.cumsum(degree) / (np.cumsum(degree) + degree))


def test_siblings_are_trained_by_recipes_that_the_trainer_takes(
    study: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[list[str]] = []

    def note(command: list[str], check: bool) -> None:
        calls.append(command)

    monkeypatch.setattr(study.run.subprocess, "run", note)
    found = study.run.train_siblings(tmp_path, tmp_path / "out", ["--steps", "1"])
    assert [Path(c[1]).name for c in calls] == ["train.py", "evaluate.py"] * 2
    monkeypatch.syspath_prepend(STUDY.parent / "model")
    train = importlib.import_module("train")
    for sibling, command in zip(study.run.SIBLINGS, calls[::2], strict=True):
        with train.main.make_context("train", command[2:]) as context:
            settings = context.params["settings"]
        recipe = train.changed(train.Recipe(), settings)
        bundled = json.loads((STUDY / "models" / sibling.name / "training.json").read_text())
        assert train.asdict(recipe) == bundled["recipe"]
        assert found[sibling.name] == tmp_path / "out" / "models" / sibling.name


# ---- the whole command ---------------------------------------------------------------------------


def test_the_whole_command(study: Any, tmp_path: Path, base: Base) -> None:
    folders = [save(tmp_path / name, byte_model(seed=seed)) for seed, name in enumerate("ab")]
    texts = base.store.documents["text"].tolist()[:12]
    corpus = write_corpus(tmp_path / "corpus.jsonl", [text[:16] for text in texts])
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "x-en.txt").write_text("\n\n".join(texts), encoding="utf-8")
    out = tmp_path / "out"
    arguments = ["--out", out, "--corpus", corpus, "--training-corpus", tmp_path]
    arguments += ["--strata", 3, "--context", 32, "--resamples", 19, "--pilot", 2]
    arguments += [part for folder in folders for part in ("--model", f"{folder.name}={folder}")]
    result = CliRunner().invoke(study.run.main, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0
    record = json.loads((out / "study.json").read_text(encoding="utf-8"))
    assert [claim["claim"] for claim in record["claims"]] == list(study.claims.CLAIMS)
    check_record(study, record)
    assert {f["subject"] for f in record["findings"]} == {"a", "b", "a and b"}
    assert "token predicted, reference corpus, auc_tv" in {f["what"] for f in record["findings"]}
    assert {(row["model"], row["value"]) for row in record["thresholds"]} == {
        (model, value) for model in "ab" for value in ("(all)", "a", "b")
    }
    assert len(record["carried"]) == 4 and len(record["topology"]) == 2 * 3
    page = (out / "study.md").read_text(encoding="utf-8")
    for claim in record["claims"]:
        assert claim["text"] in page and claim["text"].split()[0] in result.output
    counts = json.loads((out / "reference_counts.json").read_text(encoding="utf-8"))
    assert sum(counts["a"]) == sum(map(len, texts))


def check_record(study: Any, record: dict[str, Any]) -> None:
    """Verdicts and standings follow from the numbers beside them."""
    claims = study.claims
    findings = []
    for row in record["findings"]:
        ends = (np.nan if row[name] is None else row[name] for name in ("value", "low", "high"))
        finding = claims.Finding(
            row["claim"], row["subject"], row["what"], Interval(*ends), row["main"]
        )
        assert finding.verdict == row["verdict"], row
        findings.append(finding)
    for claim in record["claims"]:
        of_claim = [finding for finding in findings if finding.claim == claim["claim"]]
        assert claims.standing(of_claim) == claim["standing"]
        assert claim["least"] == claims.CLAIMS[claim["claim"]].least
    assert record["rule"] == claims.RULE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "a=x"], "two or more"),
        (["--model", "a=x", "--model", "a=y"], "two or more"),
        (["--model", "a", "--model", "b=y"], "NAME=FOLDER"),
        (["--model", "a=x", "--model", "b=y", "--train"], "exclude one another"),
        (["--train"], "--training-corpus"),
    ],
)
def test_what_cannot_be_studied_is_refused(
    study: Any, tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = CliRunner().invoke(study.run.main, ["--out", str(tmp_path), *arguments])
    assert result.exit_code == 2
    assert message in result.output


# ---- what is in the repository -------------------------------------------------------------------


def test_the_committed_record_follows_from_its_numbers(study: Any) -> None:
    record = json.loads((STUDY / "results" / "study.json").read_text(encoding="utf-8"))
    check_record(study, record)
    page = (STUDY / "results" / "study.md").read_text(encoding="utf-8")
    assert page == study.record.page(record)


def test_the_committed_record_is_of_the_models_here(study: Any) -> None:
    record = json.loads((STUDY / "results" / "study.json").read_text(encoding="utf-8"))
    folders = {"bundled": STUDY.parent / "model"}
    folders |= {s.name: STUDY / "models" / s.name for s in study.run.SIBLINGS}
    counts = json.loads((STUDY / "reference_counts.json").read_text(encoding="utf-8"))
    assert [model["name"] for model in record["models"]] == list(folders) == list(counts)
    for model in record["models"]:
        tracer = Tracer.from_pretrained(folders[model["name"]], "cpu", "float32")
        assert tracer.weight_hash == model["weights"]
        assert len(counts[model["name"]]) == tracer.vocab_size == model["vocabulary"]
        assert model["parameters"] == study.run.parameters(folders[model["name"]])
