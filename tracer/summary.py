"""Print the outcome or the state of a scan as tables on a terminal."""

from collections.abc import Iterable, Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .corpus import printable
from .parts import claims_of, failures_of
from .progress import Meter
from .store import Store

CURVE_TOKENS = 10_000_000  # no mean curve of more tokens: reading these takes a few seconds


def print_summary(store: Store, meter: Meter, console: Console) -> None:
    """Print the store's path and content, what was skipped, and the mean curve."""
    facts = Table(title="scan", title_justify="left", show_header=False)
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    for row in _facts(store, meter):
        facts.add_row(*map(Text, row))  # not markup: a file may be called [red]
    console.print(facts)
    if not 0 < store.part_tokens(store.done_parts()) <= CURVE_TOKENS:
        return
    strata = Table(title="mean curve", title_justify="left")
    for name in (store.rule.name, "size", "TV"):
        strata.add_column(name, justify="right")
    for row in store.stratum_means().itertuples(index=False):
        strata.add_row(f"{row.stratum:.3g}", f"{row.size:.3%}", f"{row.tv:.3f}")
    console.print(strata)


def print_status(store: Store, damaged: Mapping[int, str], console: Console) -> None:
    """Print the progress of a scan, the parts being traced and by whom, failures and damage."""
    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    done = store.done_parts()
    tokens = store.part_tokens(done)
    total = store.attributes["tokens"]
    rows = [
        ("store", printable(str(store.path))),
        ("model", f"{store.model_id} ({store.attributes['architecture']})"),
        ("parts done", f"{len(done):,} of {store.n_parts:,}"),
        ("tokens done", f"{tokens:,} of {total:,} ({tokens / total:.1%})"),
    ]
    for part, claim in claims_of(store.storage).items():
        state = "" if claim.alive() else " (gone)"
        if claim.deaths:
            state += f"; {claim.deaths} workers before it were lost"
        rows.append((f"part {part}", f"traced by process {claim.process} on {claim.host}{state}"))
    rows += [(f"part {part}", f"failed: {why}") for part, why in failures_of(store.storage).items()]
    rows += [(f"part {part}", f"damaged, to be done again: {why}") for part, why in damaged.items()]
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def _facts(store: Store, meter: Meter) -> Iterable[tuple[str, str]]:
    attributes = store.attributes
    yield "store", printable(str(store.path))
    yield "model", f"{attributes['model']} ({attributes['architecture']})"
    yield "importance", f"{attributes['importance']}, {attributes['attention']} attention"
    yield "documents", f"{attributes['corpus']['documents']:,}"
    for kind, count in attributes["corpus"]["skipped"].items():
        yield "skipped", f"{count:,} {kind}: {', '.join(attributes['corpus']['examples'][kind])}"
    yield "windows", f"{store.n_windows:,}"
    yield "tokens", f"{attributes['tokens']:,}"
    done = len(store.done_parts())
    if done < store.n_parts:
        yield "parts", f"{done:,} of {store.n_parts:,} done; run the same command to continue"
    if meter.tokens:
        speed = meter.tokens / meter.seconds
        yield "this run", f"{meter.tokens:,} tokens, {speed:,.0f} tokens/s"
    else:
        complete = done == store.n_parts
        yield "this run", "nothing to do: the store was complete" if complete else "nothing traced"
