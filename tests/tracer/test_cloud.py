"""Stores beyond the disk: a real S3 server on loopback, and memory."""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event
from typing import Any

import boto3  # type: ignore[import-untyped]
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from densitrace import Store, StoreError, Threshold, Tracer, open_store, scan
from densitrace.tracer import layout, storage
from densitrace.tracer.parts import Claims, Worker, claims_of
from densitrace.tracer.run import Limits
from densitrace.tracer.storage import LAST, TICKET, Bucket, storage_of

OPTIONS: dict[str, Any] = {
    "select": Threshold([0.2, 0.05, 0.01]), "context": 16, "batch_tokens": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket on a server of this process, found through the environment as anywhere."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    endpoint = f"http://127.0.0.1:{port}"
    settings = {
        "AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": "true",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="traces")
        yield "s3://traces"
    server.stop()


@pytest.fixture(params=["s3", "memory"])
def url(request: pytest.FixtureRequest, bucket: str, tmp_path: Path) -> str:
    root = bucket if request.param == "s3" else "memory://traces"
    return f"{root}/{tmp_path.name}"


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of two windows."""
    monkeypatch.setattr(layout, "PART_VALUES", 2 * 16 * 3)


def assert_same(ours: Store, expected: Store) -> None:
    assert ours.complete
    for spec in layout.window_arrays():
        np.testing.assert_array_equal(ours.array(spec.name)[:], expected.array(spec.name)[:])
    assert ours.documents.equals(expected.documents)
    assert ours.tokens().equals(expected.tokens())


def test_a_scan_to_a_bucket_is_the_scan_to_a_folder(
    byte_tracer: Tracer, corpus: Path, tmp_path: Path, url: str
) -> None:
    part = scan(byte_tracer, corpus, url, limits=Limits(max_parts=2), **OPTIONS)
    assert part.done_parts() == [0, 1]
    assert claims_of(part.storage) == {}
    scan(byte_tracer, corpus, url, **OPTIONS)
    assert_same(open_store(url), scan(byte_tracer, corpus, tmp_path / "s", **OPTIONS))


class Puts:
    """Something happens as so many objects have been put."""

    def __init__(self, patch: pytest.MonkeyPatch, after: int, happens: Callable[[], None]) -> None:
        self.put, self.left, self.happens = Bucket.put, after, happens
        patch.setattr(Bucket, "put", lambda bucket, key, data: self(bucket, key, data))

    def __call__(self, bucket: Bucket, key: str, data: bytes) -> None:
        if self.left == 0:
            self.happens()
        self.left -= 1
        self.put(bucket, key, data)


def keys(url: str) -> list[str]:
    """All that lies in a bucket."""
    bucket = storage_of(url)
    assert isinstance(bucket, Bucket)
    return sorted(item["path"] for chunk in bucket._listed("") for item in chunk)


@pytest.mark.parametrize("puts", [7, 30])
def test_a_plan_whose_upload_was_interrupted_is_made_again(
    byte_tracer: Tracer, corpus: Path, tmp_path: Path, url: str, puts: int
) -> None:
    def dies() -> None:
        raise KeyboardInterrupt

    longer = tmp_path / "longer.txt"
    longer.write_text("of which nothing may stay " * 40)
    with pytest.MonkeyPatch.context() as patch:
        Puts(patch, puts, dies)
        with pytest.raises(KeyboardInterrupt):
            scan(byte_tracer, longer, url, **OPTIONS)
    with pytest.raises(StoreError, match="is not planned yet"):
        open_store(url)
    scan(byte_tracer, corpus, url, **OPTIONS)
    scan(byte_tracer, corpus, f"{url}-undisturbed", **OPTIONS)
    assert keys(url) == keys(f"{url}-undisturbed")
    assert_same(open_store(url), open_store(f"{url}-undisturbed"))


def test_whether_a_bucket_can_be_written_leaves_no_trace(url: str) -> None:
    storage_of(url).check_writable()
    assert keys(url) == []


def test_a_bucket_while_a_plan_is_uploaded(url: str) -> None:
    there = storage_of(url)
    there.put(".probe", b"")  # of who died as it checked whether it may write
    assert not there.exists()
    there.put(TICKET, b"t")
    there.put("text/c.0", b"a")
    assert there.exists()
    assert there.unfinished()
    there.put(LAST, b"{}")  # who uploads it may die before the ticket is gone
    assert not there.unfinished()


@pytest.mark.parametrize(
    ("found", "left"),
    [
        ({LAST: b"theirs", "text/c.0": b"a"}, {LAST: b"theirs", "text/c.0": b"a"}),  # was first
        ({TICKET: b"ours", "text/c.0": b"a"}, {LAST: b"ours", "text/c.0": b"a"}),  # uploads it too
        ({TICKET: b"theirs", "text/c.0": b"a"}, {LAST: b"ours"}),
    ],
)
def test_a_plan_meets_another(
    url: str, tmp_path: Path, found: dict[str, bytes], left: dict[str, bytes]
) -> None:
    there = storage_of(url)
    for key, data in found.items():
        there.put(key, data)
    (tmp_path / LAST).write_bytes(b"ours")
    first = there.publish(tmp_path, ticket=b"ours", replace=False)
    assert first == (LAST not in found)
    assert {key: there.get(key) for key in keys(url)} == left


def test_a_worker_waits_until_a_plan_is_there_whole(
    byte_folder: Path, corpus: Path, tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One each, as blocks are told what to do in place.
    tracers = [Tracer.from_pretrained(byte_folder, device="cpu") for _ in range(2)]
    halfway, go_on = Event(), Event()

    def waits() -> None:
        halfway.set()
        assert go_on.wait(60)

    Puts(monkeypatch, 10, waits)
    with ThreadPoolExecutor(2) as workers:
        first, second = (
            workers.submit(scan, tracer, corpus, url, worker=Worker(index, 2), **OPTIONS)
            for index, tracer in enumerate(tracers)
        )
        assert halfway.wait(60)
        assert not wait([second], timeout=0.5).done
        go_on.set()
        for worker in (first, second):
            worker.result()
    assert_same(open_store(url), scan(tracers[0], corpus, tmp_path / "s", **OPTIONS))


def test_another_scan_is_refused_and_may_overwrite(
    byte_tracer: Tracer, corpus: Path, url: str
) -> None:
    scan(byte_tracer, corpus, url, **OPTIONS)
    other = {**OPTIONS, "context": 8}
    with pytest.raises(StoreError, match=f"store '{url}' holds another scan: context"):
        scan(byte_tracer, corpus, url, **other)
    assert scan(byte_tracer, corpus, url, overwrite=True, **other).complete
    assert open_store(url).size.shape[1] == 8


def test_one_of_two_claims_is_taken(bucket: str, tmp_path: Path) -> None:
    """Conditional puts: of two workers that claim a part one gets it."""
    ours = Claims(storage_of(f"{bucket}/{tmp_path.name}"))
    assert ours.storage.create(
        "part_done/claim.0", b'{"host": "elsewhere", "process": 1, "beat": 0}'
    )
    assert not ours.take(0)
    assert ours.take(1)


def test_a_bucket_that_is_not_there(byte_tracer: Tracer, corpus: Path, bucket: str) -> None:
    with pytest.raises(StoreError, match=r"store 's3://nowhere/x' cannot be reached: .* 404"):
        scan(byte_tracer, corpus, "s3://nowhere/x", **OPTIONS)
    with pytest.raises(StoreError, match="store 'spam://x' cannot be reached"):
        open_store("spam://x")


def test_without_obstore(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    storage._object_store.cache_clear()
    with pytest.raises(StoreError, match=r"needs obstore: pip install '\.\[cloud\]' in a checkout"):
        open_store("s3://traces/x")
