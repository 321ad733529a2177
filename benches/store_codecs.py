"""Which codec, which chunks, and how much at once should a store have?

    python benches/store_codecs.py --store traces.zarr --out benches/results/store-codecs-DATE

Windows of a finished scan, as many as a part of the largest size holds, are rewritten with every
candidate and read back: whole, as a report does, and one window of the curves, as for looking at a
passage. Copies of that part are also read by several threads. Candidates alternate, round after
round, so that other load on the machine affects all of them. The files are in the page cache.
"""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

sys.path.insert(0, str(Path(__file__).parent / "measuring"))
from ledger import figure, machine, table, write_record
from timing import Run, seconds

from densitrace import open_store
from densitrace.tracer import layout
from densitrace.tracer.store import READERS as CHOSEN_READERS
from densitrace.tracer.store import Store
from densitrace.tracer.stored_edges import COMPRESSORS

ROUNDS = 5
CHUNK_VALUES = (1 << 14, layout.CHUNK_VALUES, 1 << 21)  # (token, stratum) pairs; last: a part
AT_ONCE = (1, 4, 10, 32)  # concurrent chunk requests: Zarr's async.concurrency, 10 by default
READERS = (1, 2, 4, 8)  # threads that read parts
PARTS = 8  # read by them
CODECS: Mapping[str, Any] = {
    "none": (),
    "zstd 3": (ZstdCodec(level=3),),
    "lz4, shuffled": (BloscCodec(cname="lz4", clevel=5, shuffle="shuffle"),),
    "zstd 1, shuffled": (BloscCodec(cname="zstd", clevel=1, shuffle="shuffle"),),
    "zstd 3, shuffled": (BloscCodec(cname="zstd", clevel=3, shuffle="shuffle"),),
    "zstd 3, bits shuffled": (BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle"),),
    "zstd 7, shuffled": (BloscCodec(cname="zstd", clevel=7, shuffle="shuffle"),),
}
CHOSEN = next(name for name, codecs in CODECS.items() if codecs == COMPRESSORS[:-1])
READ = ("size", "tv")  # read when looking at one window
Arrays = Mapping[str, NDArray[Any]]
Row = dict[str, Any]


def part_of(store: Store) -> dict[str, NDArray[Any]]:
    """All arrays of the first windows of a store, as many as a part of the largest size holds."""
    _, columns, strata = store.array("tv").shape
    count = layout.parts(columns, strata, sys.maxsize).windows
    if store.n_windows < count or not store.complete:
        raise click.UsageError(f"--store holds fewer than {count} windows that are scanned")
    names = [spec.name for spec in layout.window_arrays(store.controls)]
    return {name: store.array(name)[:count] for name in names}


def write(folder: Path, arrays: Arrays, windows: int, codecs: Any, parts: int = 1) -> None:
    """Write the arrays as identical parts: one shard each, in chunks of `windows` windows."""
    group = zarr.create_group(folder, overwrite=True, zarr_format=3)
    for name, values in arrays.items():
        whole = -(-len(values) // windows) * windows
        array = group.create_array(
            name,
            shape=(parts * whole, *values.shape[1:]),
            shards=(whole, *values.shape[1:]),
            chunks=(windows, *values.shape[1:]),
            dtype=values.dtype,
            chunk_key_encoding=layout.KEYS,
            compressors=(*codecs, Crc32cCodec()),
            config={"write_empty_chunks": True},
        )
        for part in range(parts):
            array[part * whole : part * whole + len(values)] = values


def stored(folder: Path) -> "dict[str, zarr.Array[Any]]":
    """Open the arrays of a folder."""
    return dict(zarr.open_group(folder, mode="r").arrays())


def in_turns(runs: Sequence[Mapping[str, Run]]) -> list[dict[str, float]]:
    """Time the candidates in turns: the median seconds over `ROUNDS` rounds."""
    times: list[dict[str, list[float]]] = [{name: [] for name in run} for run in runs]
    for _ in range(ROUNDS):
        for run, taken in zip(runs, times, strict=True):
            for name, do in run.items():
                taken[name].append(seconds(do))
    return [{name: median(figures) for name, figures in taken.items()} for taken in times]


# ---- what is measured ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """One way to store a part."""

    folder: Path
    arrays: Arrays
    codec: str
    windows: int  # per chunk
    at_once: int = zarr.config.get("async.concurrency")

    def runs(self) -> Mapping[str, Run]:
        """What is timed, by column of the table."""
        middle = len(self.arrays["token"]) // 2

        def read(names: Iterable[str], where: Any) -> None:
            with zarr.config.set({"async.concurrency": self.at_once}):
                arrays = stored(self.folder)
                for name in names:
                    arrays[name][where]

        def written() -> None:
            with zarr.config.set({"async.concurrency": self.at_once}):
                write(self.folder, self.arrays, self.windows, CODECS[self.codec])

        return {
            "write, s": written,
            "read all, s": lambda: read(self.arrays, slice(None)),
            "read a window, s": lambda: read(READ, middle),
        }

    def bytes_a_token(self) -> float:
        """Bytes per token of what was written, after checking its values."""
        for name, array in stored(self.folder).items():
            written = np.asarray(array[: len(self.arrays[name])])
            np.testing.assert_array_equal(written, self.arrays[name])
        tokens = int((self.arrays["token"] >= 0).sum())
        return sum(path.stat().st_size for path in self.folder.rglob("c.*")) / tokens


def codecs_and_chunks(folder: Path, arrays: Arrays) -> list[Row]:
    """Every codec with chunks of the chosen size, and the chosen codec with every size."""
    count, columns, strata = arrays["tv"].shape
    sizes = [min(count, max(1, values // (columns * strata))) for values in CHUNK_VALUES]
    if len(set(sizes)) < len(sizes):
        raise click.UsageError(f"chunks of {sizes} windows: sizes have to differ")
    chosen = sizes[CHUNK_VALUES.index(layout.CHUNK_VALUES)]
    ways = [(name, chosen) for name in CODECS]
    ways += [(CHOSEN, size) for size in sizes if size != chosen]
    candidates = [
        Candidate(folder / str(number), arrays, name, size)
        for number, (name, size) in enumerate(ways)
    ]
    times = in_turns([candidate.runs() for candidate in candidates])
    return [
        {
            "codec": candidate.codec + (" (chosen)" if ways[number] == (CHOSEN, chosen) else ""),
            "windows a chunk": candidate.windows,
            "bytes a token": candidate.bytes_a_token(),
            **timed,
        }
        for number, (candidate, timed) in enumerate(zip(candidates, times, strict=True))
    ]


def chunks_at_once(folder: Path, arrays: Arrays, windows: int) -> list[Row]:
    """The chosen codec and chunks, with different numbers of concurrent chunk requests."""
    candidates = [
        Candidate(folder / f"at-once-{number}", arrays, CHOSEN, windows, number)
        for number in AT_ONCE
    ]
    times = in_turns([candidate.runs() for candidate in candidates])
    return [
        {"chunks at once": number, **timed} for number, timed in zip(AT_ONCE, times, strict=True)
    ]


def readers(folder: Path, arrays: Arrays, windows: int) -> list[Row]:
    """Several parts, each read by one of `threads` threads: all arrays, and the curves alone."""
    write(folder, arrays, windows, CODECS[CHOSEN], PARTS)
    opened = stored(folder)
    size = opened["token"].shape[0] // PARTS

    def read(names: Iterable[str], part: int) -> None:
        for name in names:
            opened[name][part * size : (part + 1) * size]

    def by(threads: int, names: Iterable[str]) -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(partial(read, list(names)), range(PARTS)))

    times = in_turns(
        [
            {
                "read all, s": partial(by, threads, arrays),
                "read curves, s": partial(by, threads, READ),
            }
            for threads in READERS
        ]
    )
    return [
        {"readers": f"{threads}{' (chosen)' if threads == CHOSEN_READERS else ''}", **timed}
        for threads, timed in zip(READERS, times, strict=True)
    ]


def record_of(store: Store, folder: Path) -> dict[str, Any]:
    """Run all measurements."""
    arrays = part_of(store)
    _, columns, strata = arrays["tv"].shape
    windows = max(1, layout.CHUNK_VALUES // (columns * strata))
    before = os.getloadavg()[0]
    measured = {
        "codecs and chunks": codecs_and_chunks(folder, arrays),
        "chunks at once": chunks_at_once(folder, arrays, windows),
        "readers": readers(folder / "parts", arrays, windows),
    }
    return {
        "date": str(date.today()),
        "machine": machine(),
        "zarr": zarr.__version__,
        "windows": len(arrays["token"]),
        "tokens": int((arrays["token"] >= 0).sum()),
        "raw bytes": sum(values.nbytes for values in arrays.values()),
        "load, before and after": [before, os.getloadavg()[0]],
        **measured,
    }


# ---- the page ------------------------------------------------------------------------------------


def table_of(rows: Sequence[Row]) -> list[str]:
    """Markdown."""
    return [*table(rows[0], (map(figure, row.values()) for row in rows)), ""]


def page(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    info = record["machine"]
    load = " and ".join(map(figure, record["load, before and after"]))
    return "\n".join(
        [
            f"# Codecs, chunks and concurrency of a store, {record['date']}",
            "",
            f"`python benches/store_codecs.py` on {info['processor']}, {info['threads']} threads, "
            f"zarr {record['zarr']}. A part of the largest size: {record['windows']} windows, "
            f"{record['tokens']:,} tokens, {figure(record['raw bytes'])} bytes with padding; a "
            f"checksum on every chunk. Medians of {ROUNDS} rounds in which each has its turn. "
            f"Processes that wanted a core, before and after: {load}.",
            "",
            *table_of(record["codecs and chunks"]),
            "Chunks of one array at which Zarr is together (`async.concurrency`):",
            "",
            *table_of(record["chunks at once"]),
            f"Threads that read {PARTS} such parts, a part each at a time:",
            "",
            *table_of(record["readers"]),
        ]
    )


@click.command()
@click.option("--store", "path", required=True, help="of a finished scan")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="without suffix")
def main(path: str, out: Path) -> None:
    """Measure, and write OUT.json and OUT.md."""
    with TemporaryDirectory() as temporary:
        record = record_of(open_store(path), Path(temporary))
    write_record(out, record, page(record))


if __name__ == "__main__":
    main()
