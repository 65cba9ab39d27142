"""A store in S3 before networks and servers that fail, and who it says it is."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import socket
import ssl
import subprocess
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from rsp.shared.errors import ChangedError, ConflictError, StorageError, UsageError
from rsp.shared.http import Backoff
from rsp.shared.storage import connection, multipart, open_storage
from rsp.shared.storage import s3 as module
from tests.faults import LOST_ANSWER, LOST_REQUEST, NONE, Fault, FaultyProxy

BACKOFF = Backoff(attempts=4, first=0.001)
MiB = 1 << 20


@contextmanager
def faulty(s3, monkeypatch, *faults, when=lambda method, path: True):
    """A store behind a proxy: the faults happen to the requests for which `when` holds, in turn."""
    left = list(faults)

    def fault(method, path, _headers):
        return left.pop(0) if left and when(method, path) else NONE

    with FaultyProxy(s3.host, fault) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        store = open_storage(f"s3://{s3.bucket()}/p", backoff=BACKOFF)
        yield store, proxy
    assert not left


def direct(s3, monkeypatch, store):
    """The same store without the proxy: what somebody else does."""
    with monkeypatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL_S3", f"http://{s3.host}")
        return open_storage(store.address)


def status(code, **headers):
    return Fault(forward=False, status=code, headers=tuple((k.replace("_", "-"), v) for k, v in headers.items()))


def refusal(code, name, **headers):
    body = f"<Error><Code>{name}</Code><Message>The reason</Message></Error>".encode()
    return Fault(
        forward=False,
        status=code,
        body=body,
        headers=(("Content-Type", "application/xml"), *((k.replace("_", "-"), v) for k, v in headers.items())),
    )


@pytest.mark.parametrize("fault", [LOST_REQUEST, LOST_ANSWER, status(503), status(429, Retry_After="0")])
def test_what_breaks_is_asked_again(s3, monkeypatch, fault, tmp_path):
    with faulty(s3, monkeypatch, fault, fault) as (store, _):
        written = store.write("a", b"1")
    with faulty(s3, monkeypatch, fault, fault, when=lambda method, _: method in ("GET", "HEAD")) as (store, _):
        store.write("a", b"1")
        assert store.stat("a") == written
        assert store.read("a") == (b"1", written)
        assert list(store.list()) == [written]
    with faulty(s3, monkeypatch, fault, when=lambda method, _: method == "DELETE") as (store, _):
        store.write("a", b"1")
        store.delete("a")
        assert store.stat("a") is None


def test_attempts_end(s3, monkeypatch):
    with faulty(s3, monkeypatch, *[status(503)] * 4) as (store, proxy):
        with pytest.raises(StorageError, match=r"cannot write s3://\S+/p/a: http\S+ answered 503 again and again"):
            store.write("a", b"1")
        assert len(proxy.asked) == 4
    with faulty(s3, monkeypatch, *[LOST_REQUEST] * 4) as (store, proxy):
        with pytest.raises(
            StorageError, match=r"cannot read s3://\S+/p/a: cannot reach the S3 server .*without an ans"
        ):
            store.stat("a")
        assert len(proxy.asked) == 4
    # What is no passing state is asked for once.
    with faulty(s3, monkeypatch, refusal(403, "AccessDenied")) as (store, proxy):
        with pytest.raises(StorageError, match="denies it to the credentials from AWS_ACCESS_KEY_ID"):
            store.read("a")
        assert len(proxy.asked) == 1


def test_no_server(monkeypatch, s3):
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
    store = open_storage("s3://bucket/x", backoff=BACKOFF)
    for act in (lambda: store.stat("a"), lambda: store.write("a", b""), lambda: list(store.list())):
        with pytest.raises(
            StorageError, match=rf"s3://bucket/x/\S*: cannot reach the S3 server {address}: Connection"
        ):
            act()


def test_a_server_that_stops_answering(monkeypatch, s3):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{silent.getsockname()[1]}")
        store = open_storage("s3://bucket/x", backoff=Backoff(2, 0.001), timeout=0.05)
        with pytest.raises(StorageError, match="the server stopped answering"):
            store.read("a")


def test_downloads_go_on_where_they_broke(s3, monkeypatch, tmp_path):
    data = random.Random(1).randbytes(3 * MiB)
    with faulty(
        s3,
        monkeypatch,
        Fault(cut=2 * MiB),
        Fault(cut=5),
        Fault(cut=70_000),
        when=lambda method, _: method == "GET",
    ) as (store, proxy):
        written = store.write("a", data)
        ranges = []
        inner = proxy.fault

        def note(method, path, headers):
            if method == "GET":
                ranges.append((headers.get("Range"), headers.get("If-Match")))
            return inner(method, path, headers)

        proxy.fault = note
        digest = hashlib.sha256(data).hexdigest()
        assert store.download("a", tmp_path / "a", sha256=digest) == written
        assert (tmp_path / "a").read_bytes() == data
    assert ranges[0] == (None, None)
    begins = [int(found.removeprefix("bytes=").partition("-")[0]) for found, _ in ranges[1:]]
    assert MiB < begins[0] <= begins[1] < begins[2] < len(data)
    assert {etag for _, etag in ranges[1:]} == {f'"{written.etag}"'}


def test_downloads_that_get_nowhere_end(s3, monkeypatch, tmp_path):
    with faulty(s3, monkeypatch, *[Fault(cut=100)] * 4, when=lambda method, _: method == "GET") as (store, _):
        store.write("a", bytes(1000))
        with pytest.raises(StorageError, match=r"cannot read s3://\S+/a: the answer was cut off"):
            store.download("a", tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_downloads_never_mix_two_objects(s3, monkeypatch, tmp_path):
    with faulty(s3, monkeypatch, Fault(cut=MiB), when=lambda method, _: method == "GET") as (store, proxy):
        store.write("a", bytes(2 * MiB))
        inner, other = proxy.fault, direct(s3, monkeypatch, store)

        def replace(method, path, headers):
            if len([asked for asked, _ in proxy.asked if asked == "GET"]) == 2:
                other.write("a", b"1" * (2 * MiB))
            return inner(method, path, headers)

        proxy.fault = replace
        with pytest.raises(ChangedError, match="has changed since it was opened"):
            store.download("a", tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_ignores_conditions_of_reads_is_noticed(s3, monkeypatch):
    with faulty(s3, monkeypatch, Fault(headers=(("ETag", '"another"'),)), when=lambda m, _: m == "GET") as (
        store,
        _,
    ):
        etag = store.write("a", b"12345").etag
        with pytest.raises(ChangedError):
            store.read_range("a", 0, 3, etag=etag)


def test_a_server_that_ignores_ranges_is_refused(s3, monkeypatch):
    whole = Fault(status=200, headers=(("Content-Range", ""),), body=b"12345")
    with faulty(s3, monkeypatch, whole, when=lambda method, _: method == "GET") as (store, _):
        store.write("a", b"12345")
        with pytest.raises(StorageError, match="the server ignores byte ranges"):
            store.read_range("a", 2, 2)
    elsewhere = Fault(headers=(("Content-Range", "bytes 0-1/5"),))
    with faulty(s3, monkeypatch, elsewhere, when=lambda method, _: method == "GET") as (store, _):
        store.write("a", b"12345")
        with pytest.raises(StorageError, match="does not say which bytes it sends"):
            store.read_range("a", 2, 2)


def test_a_lost_answer_to_a_write_on_condition_is_our_own_success(s3, monkeypatch):
    def puts(method, _):
        return method == "PUT"

    with faulty(s3, monkeypatch, LOST_ANSWER, when=puts) as (store, _):
        first = store.write_if("a", b"1", etag=None)
        assert store.read("a") == (b"1", first)
    with faulty(s3, monkeypatch, NONE, LOST_ANSWER, when=puts) as (store, _):
        first = store.write("a", b"1")
        second = store.write_if("a", b"2", etag=first.etag)
        assert store.read("a") == (b"2", second)
    # The answer was lost, and then somebody else was quicker: the content tells.
    with faulty(s3, monkeypatch, LOST_ANSWER, when=puts) as (store, proxy):
        inner, other = proxy.fault, direct(s3, monkeypatch, store)

        def overtake(method, path, headers):
            if method == "PUT" and len([asked for asked in proxy.asked if asked[0] == "PUT"]) == 2:
                other.write("a", b"9")
            return inner(method, path, headers)

        proxy.fault = overtake
        with pytest.raises(ConflictError, match="is there already"):
            store.write_if("a", b"1", etag=None)


def test_a_refusal_without_a_lost_answer_is_a_conflict_whatever_the_content(s3, monkeypatch):
    """Two writers of the same bytes: one of them is second."""
    conflict = refusal(412, "PreconditionFailed")
    with faulty(s3, monkeypatch, conflict, when=lambda method, _: method == "PUT") as (store, proxy):
        inner, other = proxy.fault, direct(s3, monkeypatch, store)

        def first(method, path, headers):
            if method == "PUT":
                other.write("a", b"1")
            return inner(method, path, headers)

        proxy.fault = first
        with pytest.raises(ConflictError):
            store.write_if("a", b"1", etag=None)


@pytest.mark.parametrize(
    "fault",
    [refusal(409, "ConditionalRequestConflict"), refusal(412, "PreconditionFailed"), refusal(404, "NoSuchKey")]
    + [Fault(forward=False, status=status) for status in (404, 409, 412)],
)
def test_refused_conditions_are_conflicts(s3, monkeypatch, fault):
    with faulty(s3, monkeypatch, fault, when=lambda method, _: method == "PUT") as (store, _):
        with pytest.raises(ConflictError):
            store.write_if("a", b"1", etag=None)
        assert store.write_if("a", b"1", etag=None) == store.stat("a")


def test_servers_that_ignore_conditions_are_found_out(s3, monkeypatch):
    with faulty(s3, monkeypatch) as (store, proxy):
        assert store.honours_conditions()
        asked = len(proxy.asked)
        assert store.honours_conditions()
        assert len(proxy.asked) == asked  # known by now
        assert list(store.list()) == []
        assert list(s3.client().list_objects(store.bucket, recursive=True)) == []
    for forgotten in (["If-None-Match", "If-Match"], ["If-Match"], ["If-None-Match"]):
        with faulty(s3, monkeypatch) as (store, proxy):

            def forget(method, _path, headers, forgotten=forgotten):
                for name in forgotten if method == "PUT" else ():
                    del headers[name]
                return NONE

            proxy.fault = forget
            assert not store.honours_conditions()
            assert list(s3.client().list_objects(store.bucket, recursive=True)) == []
            # Where one writes alone, a stale ETag is noticed all the same.
            first = store.write_if("a", b"1", etag=None)
            store.write_if("a", b"2", etag=first.etag)
            with pytest.raises(ConflictError):
                store.write_if("a", b"3", etag=first.etag)


def test_servers_without_conditions_are_found_out(s3, monkeypatch):
    with faulty(s3, monkeypatch) as (store, proxy):

        def unknown(method, _path, headers):
            conditional = method == "PUT" and ("If-Match" in headers or "If-None-Match" in headers)
            return refusal(501, "NotImplemented") if conditional else NONE

        proxy.fault = unknown
        first = store.write_if("a", b"1", etag=None)
        assert not store.honours_conditions()
        store.write_if("a", b"2", etag=first.etag)
        assert store.read("a")[0] == b"2"
        with pytest.raises(ConflictError):
            store.write_if("a", b"3", etag=first.etag)


def test_a_probe_that_is_denied_says_so(s3, monkeypatch):
    def conditional_puts(method, _):
        return method == "PUT"

    with faulty(s3, monkeypatch, NONE, refusal(403, "AccessDenied"), when=conditional_puts) as (store, _):
        with pytest.raises(StorageError, match="denies it to the credentials"):
            store.honours_conditions()
        assert list(s3.client().list_objects(store.bucket, recursive=True)) == []


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of the least size that S3 takes."""
    monkeypatch.setattr(module, "SINGLE", 5 * MiB)
    monkeypatch.setattr(multipart, "PART", 5 * MiB)


def uploads(s3, bucket):
    return s3.client()._list_multipart_uploads(bucket).uploads


@pytest.fixture
def big(tmp_path):
    path = tmp_path / "big"
    path.write_bytes(random.Random(1).randbytes(11 * MiB))
    return path


@pytest.mark.parametrize("fault", [None, LOST_REQUEST, LOST_ANSWER, status(503)])
def test_large_files_go_in_parts(s3, monkeypatch, small_parts, big, tmp_path, fault):
    faults = [fault] * 2 if fault else []
    with faulty(s3, monkeypatch, *faults, when=lambda method, _: method in ("PUT", "POST")) as (store, proxy):
        stat = store.upload("big", big)
        assert store.stat("big") == stat
        assert stat.size == 11 * MiB and stat.etag.endswith("-3")
        digest = hashlib.sha256(big.read_bytes()).hexdigest()
        store.download("big", tmp_path / "back", sha256=digest)
        assert len({path for method, path in proxy.asked if "partNumber" in path and method == "PUT"}) == 3


def test_a_lost_answer_to_the_last_step_of_an_upload_is_a_success(s3, monkeypatch, small_parts, big):
    def last(method, path):
        return method == "POST" and "uploadId=" in path

    with faulty(s3, monkeypatch, LOST_ANSWER, when=last) as (store, _):
        assert store.upload("big", big) == store.stat("big")
    # But not where the object is another's.
    with faulty(s3, monkeypatch, Fault(forward=False, cut=-1), refusal(404, "NoSuchUpload"), when=last) as (
        store,
        _,
    ):
        store.write("big", b"another")
        with pytest.raises(StorageError, match="NoSuchUpload"):
            store.upload("big", big)
        assert store.read("big")[0] == b"another"


@pytest.mark.parametrize("failing", ["partNumber=1&", "partNumber=3&", "POST"])
def test_failed_uploads_leave_no_parts(s3, monkeypatch, small_parts, big, failing):
    def fails(method, path):
        return failing in path or (method == failing and "uploadId" in path)

    with faulty(s3, monkeypatch, refusal(403, "AccessDenied"), when=fails) as (store, _):
        store.write("big", b"old")
        with pytest.raises(StorageError, match=r"cannot write .*/big: .* denies it"):
            store.upload("big", big)
        assert store.read("big")[0] == b"old"
        assert uploads(s3, store.bucket) == []


def test_uploads_whose_parts_cannot_be_joined(s3, monkeypatch, small_parts, big):
    """The status was sent before the server began to join: 200, and the body says what went wrong."""
    error = Fault(forward=False, status=200, body=b"<Error><Code>InternalError</Code></Error>")
    with faulty(s3, monkeypatch, error, when=lambda m, path: m == "POST" and "uploadId" in path) as (store, _):
        with pytest.raises(StorageError, match="InternalError"):
            store.upload("big", big)
        assert store.stat("big") is None
        assert uploads(s3, store.bucket) == []


def test_interrupted_uploads_leave_no_parts(s3, monkeypatch, small_parts, big):
    with faulty(s3, monkeypatch) as (store, _):
        send = multipart.send

        def interrupted(*args, **options):
            if options.get("query", {}).get("partNumber") == "2":
                raise KeyboardInterrupt
            return send(*args, **options)

        monkeypatch.setattr(multipart, "send", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.upload("big", big)
        assert uploads(s3, store.bucket) == []


def test_a_file_that_shrinks_while_it_is_uploaded(s3, monkeypatch, small_parts, big):
    with faulty(s3, monkeypatch) as (store, proxy):

        def shrink(method, path, _):
            if "uploads" in path:
                os.truncate(big, 6 * MiB)
            return NONE

        proxy.fault = shrink
        with pytest.raises(StorageError, match="the file became shorter while it was uploaded"):
            store.upload("big", big)
        assert uploads(s3, store.bucket) == []


def test_reasons(s3, monkeypatch):
    """What an error of S3 means, and what to do about it."""
    for fault, said in [
        (refusal(403, "InvalidAccessKeyId"), "does not accept the credentials from AWS_ACCESS_KEY_ID and AWS_SEC"),
        (refusal(403, "ExpiredToken"), "have expired .ExpiredToken.: renew them"),
        (refusal(403, "AccessDenied"), "denies it to the credentials .* need s3:ListBucket"),
        (refusal(400, "AuthorizationHeaderMalformed"), "another region .The reason.: set AWS_REGION"),
        (refusal(400, "EntityTooLarge"), "does not take an object of this size"),
        (refusal(400, "Odd"), "says Odd: The reason"),
        (Fault(forward=False, status=403, body=b"<html>"), "answered 403, and not as S3 does"),
        (Fault(forward=False, status=200, body=b"{}"), "answers, and not as S3 does"),
    ]:
        with faulty(s3, monkeypatch, fault) as (store, _), pytest.raises(StorageError, match=said):
            list(store.list())
    # HEAD has no body that would say why: the same is asked with GET.
    wrong = refusal(403, "SignatureDoesNotMatch")
    with faulty(s3, monkeypatch, wrong, wrong) as (store, _), pytest.raises(StorageError, match="check both keys"):
        store.stat("a")


def test_the_clock_is_wrong(s3, monkeypatch):
    for minutes, said in [(20, "behind"), (-20, "ahead")]:
        date = format_datetime(datetime.now(UTC) + timedelta(minutes=minutes), usegmt=True)
        fault = refusal(403, "RequestTimeTooSkewed", Date=date)
        with (
            faulty(s3, monkeypatch, fault) as (store, _),
            pytest.raises(StorageError, match=rf"clock of this machine is wrong by 1\d+ s: it is {said}"),
        ):
            store.read("a")


def test_buckets(s3, monkeypatch):
    store = open_storage(f"s3://{s3.bucket()}")
    assert list(store.list()) == []
    assert store.stat("a") is None
    store = open_storage("s3://not-there/x")
    for act in (
        lambda: store.stat("a"),
        lambda: store.read("a"),
        lambda: store.write("a", b""),
        lambda: store.write_if("a", b"", etag=None),
        lambda: list(store.list()),
        lambda: store.delete("a"),
        lambda: store.delete("a", "b"),
        lambda: store.honours_conditions(),
    ):
        with pytest.raises(StorageError, match=r"there is no bucket not-there at http\S+: make it, or correct"):
            act()
    for name in ("", "a", "ä-bucket", "-bucket", "bucket/a/..", "bucket/../x", "bucket/a//x"):
        with pytest.raises((UsageError, StorageError), match=r"no name of a bucket|cannot be the key"):
            open_storage(f"s3://{name}")


def test_more_keys_than_one_answer_holds(s3):
    from moto.s3.models import s3_backends

    bucket = s3.bucket()
    (backend,) = [backend for backend in s3_backends["123456789012"].values() if bucket in backend.buckets]
    keys = sorted(f"{number}/ü {number * 7 % 13}" for number in range(2100))
    for key in keys:
        backend.put_object(bucket, f"p/{key}", b"")
    # Tools draw folders so; and what is ours is no object.
    for key in ("p/", "p/0/", "p/.rsp-probe-1", "p/x/.rsp-y", "q"):
        backend.put_object(bucket, key, b"")
    store = open_storage(f"s3://{bucket}/p")
    assert [found.key for found in store.list()] == keys
    store.delete(*keys)
    assert list(store.list()) == []


def test_what_failed_to_be_deleted_is_said(s3, monkeypatch):
    error = b"<Error><Key>p/b</Key><Code>AccessDenied</Code><Message>No</Message></Error>"
    body = b"<DeleteResult>%s</DeleteResult>" % error
    fault = Fault(forward=False, status=200, body=body, headers=(("Content-Type", "application/xml"),))
    with (
        faulty(s3, monkeypatch, fault) as (store, _),
        pytest.raises(StorageError, match=r"cannot delete s3://\S+/p/b: AccessDenied"),
    ):
        store.delete("a", "b")


def test_answers_have_a_bound(s3, monkeypatch):
    monkeypatch.setattr(connection, "LARGEST_ANSWER", 10_000)
    with (
        faulty(s3, monkeypatch, Fault(body=b" " * 10_001)) as (store, _),
        pytest.raises(StorageError, match="more than 10000 bytes where a few were expected"),
    ):
        list(store.list())
    with (
        faulty(s3, monkeypatch, Fault(status=403, body=b" " * 10_001)) as (store, _),
        pytest.raises(StorageError, match="more than 10000 bytes where a few were expected"),
    ):
        store.read("a")


def test_content_arrives_as_it_is_stored(s3):
    """Whatever Content-Encoding another tool has given it."""
    bucket, data = s3.bucket(), gzip.compress(b"text" * 100)
    s3.client().put_object(bucket, "a", io.BytesIO(data), len(data), metadata={"Content-Encoding": "gzip"})
    store = open_storage(f"s3://{bucket}")
    assert store.read("a")[0] == data
    assert store.read_range("a", 2, 5) == data[2:7]


def test_certificates(s3, monkeypatch, tmp_path):
    """A server whose certificate nobody knows is not spoken to, until its certificate is named."""
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=x -addext subjectAltName=DNS:localhost"
    command = [*make.split(), "-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "pem")]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pem", tmp_path / "key")
    address = f"s3://{s3.bucket()}"
    with FaultyProxy(s3.host, tls=context) as proxy:
        port = proxy.url.rpartition(":")[2]
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"https://localhost:{port}")
        with pytest.raises(StorageError, match=r"certificate of the server is not trusted; name .* AWS_CA_BUNDLE"):
            open_storage(address).stat("a")
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "pem"))
        store = open_storage(address, backoff=BACKOFF)
        assert store.write_if("a", b"1", etag=None) == store.stat("a")
        assert store.read("a")[0] == b"1"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"https://{s3.host}")
    with pytest.raises(StorageError, match="it does not speak TLS; is it http://"):
        open_storage(address, backoff=BACKOFF).stat("a")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "nowhere"))
    with pytest.raises(StorageError, match=r"AWS_CA_BUNDLE .*nowhere"):
        open_storage(address)
