"""Tables for the terminal, of made-up results."""

from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from densitrace.estimator.density import DensityResult
from densitrace.estimator.plots import percent
from densitrace.estimator.terminal import BAR, label_table

MakeResult = Callable[..., DensityResult]


def lines(table: Table) -> list[str]:
    """The rows of a table as printed, without its title and head."""
    console = Console(width=100)
    with console.capture() as capture:
        console.print(table)
    return capture.get().splitlines()[2:]


def documents(**counts: int) -> list[dict[str, str]]:
    return [
        {"id": f"{domain}-{i}", "domain": domain, "text": "some words " * (1 + i)}
        for domain, count in counts.items()
        for i in range(count)
    ]


def test_values_of_few_documents_share_the_last_row(make_result: MakeResult) -> None:
    result = make_result(documents(drama=6, law=7, letters=2, speech=3))
    *rows, others = lines(label_table(result, "domain"))
    summary = result.summary("domain").loc[lambda table: table["documents"] >= 5]
    assert [row.split()[:3] for row in rows] == [
        [str(value), f"{row['documents']:.0f}", percent(row["density@0.1"])]
        for value, row in summary.iterrows()
    ]
    assert others.split() == ["2", "others", "5", "in", "the", "report"]
    assert rows[0].count("█") == BAR > rows[1].count("█")


def test_where_all_values_have_few_documents_each_has_a_row(make_result: MakeResult) -> None:
    rows = lines(label_table(make_result(documents(drama=2, law=1)), "domain"))
    assert sorted(row.split()[0] for row in rows) == ["drama", "law"]
    assert all("too few" in row for row in rows)
