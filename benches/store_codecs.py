"""Which codec, and which chunks, should a store have?

    python benches/store_codecs.py --store traces.zarr --out benches/results/store-codecs-DATE

Real parts of a finished scan are written again with every candidate and read back: whole, as a
report does, and one window of the curves, as one who looks at a passage does. The files are in the
system's cache.
"""

import sys
import time
from collections.abc import Callable, Mapping
from datetime import date
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
from ledger import figure, machine, write_record

from densitrace import open_store
from densitrace.tracer import layout
from densitrace.tracer.store import Store
from densitrace.tracer.stored_edges import COMPRESSORS

ROUNDS = 3
CHUNK_VALUES = (1 << 14, 1 << 17, 1 << 20)  # (token, stratum) pairs; the last is a whole part
CODECS: Mapping[str, Any] = {
    "none": (),
    "zstd 3": (ZstdCodec(level=3),),
    "lz4, shuffled": (BloscCodec(cname="lz4", clevel=5, shuffle="shuffle"),),
    "zstd 1, shuffled": (BloscCodec(cname="zstd", clevel=1, shuffle="shuffle"),),
    "zstd 3, shuffled": (BloscCodec(cname="zstd", clevel=3, shuffle="shuffle"),),
    "zstd 3, bits shuffled": (BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle"),),
    "zstd 7, shuffled": (BloscCodec(cname="zstd", clevel=7, shuffle="shuffle"),),
}
READ = ("size", "tv")  # what one who looks at a window reads
Arrays = Mapping[str, NDArray[Any]]


def part_of(store: Store) -> dict[str, NDArray[Any]]:
    """All arrays of the store's first part."""
    names = [spec.name for spec in layout.window_arrays(store.controls, most_edges=0)]
    return {name: store.array(name)[store.windows(0)] for name in names}


def write(folder: Path, arrays: Arrays, windows: int, codecs: Any) -> None:
    """The arrays as one part: a shard each, in chunks of so many windows."""
    group = zarr.create_group(folder, overwrite=True, zarr_format=3)
    for name, values in arrays.items():
        whole = -(-len(values) // windows) * windows
        array = group.create_array(
            name,
            shape=values.shape,
            shards=(whole, *values.shape[1:]),
            chunks=(windows, *values.shape[1:]),
            dtype=values.dtype,
            chunk_key_encoding=layout.KEYS,
            compressors=(*codecs, Crc32cCodec()),
            config={"write_empty_chunks": True},
        )
        array[:] = values


def seconds(run: Callable[[], object]) -> float:
    """The median of some rounds."""
    found = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return median(found)


def measured(folder: Path, arrays: Arrays, windows: int, codecs: Any) -> dict[str, float]:
    """One candidate."""
    writing = seconds(lambda: write(folder, arrays, windows, codecs))
    group = zarr.open_group(folder, mode="r")

    def array(name: str) -> "zarr.Array[Any]":
        found = group[name]
        assert isinstance(found, zarr.Array)
        return found

    for name, values in arrays.items():
        np.testing.assert_array_equal(np.asarray(array(name)[:]), values)
    middle = len(arrays["token"]) // 2
    return {
        "windows a chunk": windows,
        "bytes a token": sum(path.stat().st_size for path in folder.rglob("c.*"))
        / int((arrays["token"] >= 0).sum()),
        "write, s": writing,
        "read all, s": seconds(lambda: [array(name)[:] for name in arrays]),
        "read a window, ms": 1e3 * seconds(lambda: [array(name)[middle] for name in READ]),
    }


def record_of(store: Store, folder: Path) -> dict[str, Any]:
    """Every candidate."""
    arrays = part_of(store)
    count, columns, strata = arrays["tv"].shape
    rows = []
    for values in CHUNK_VALUES:
        windows = min(count, max(1, values // (columns * strata)))
        for name, codecs in CODECS.items():
            chosen = codecs == COMPRESSORS[:-1] and values == layout.CHUNK_VALUES
            found = measured(folder / "part", arrays, windows, codecs)
            rows.append({"codec": name + (" (chosen)" if chosen else ""), **found})
    return {
        "date": str(date.today()),
        "machine": machine(),
        "zarr": zarr.__version__,
        "tokens": int((arrays["token"] >= 0).sum()),
        "raw bytes": sum(values.nbytes for values in arrays.values()),
        "rows": rows,
    }


def page(record: dict[str, Any]) -> str:
    """Markdown."""
    info, rows = record["machine"], record["rows"]
    return "\n".join(
        [
            f"# Codecs and chunks of a store, {record['date']}",
            "",
            f"`python benches/store_codecs.py` on {info['processor']}, {info['threads']} threads, "
            f"zarr {record['zarr']}. One part of a scan, {record['tokens']:,} tokens, "
            f"{figure(record['raw bytes'])} bytes with padding; a checksum on every chunk. Medians "
            f"of {ROUNDS}.",
            "",
            "| " + " | ".join(rows[0]) + " |",
            "|" + " --- |" * len(rows[0]),
            *("| " + " | ".join(figure(value) for value in row.values()) + " |" for row in rows),
            "",
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
