"""Where an S3 server is, and as whom it is asked."""

from __future__ import annotations

import pickle
import re

import pytest

from rsp.shared.errors import StorageError, UsageError
from rsp.shared.http import Backoff
from rsp.shared.storage import open_storage
from rsp.shared.storage.settings import find_endpoint
from tests.faults import NONE, Fault, FaultyProxy

BACKOFF = Backoff(attempts=2, first=0.001)
SECRET = "very-secret-key"


@pytest.fixture
def asked(s3, monkeypatch):
    """Who asks: `asked()` asks something of a store and returns the access key that signed."""
    signed = []

    def note(_method, _path, headers):
        signed.append(re.search("Credential=([^/]+)/", headers["Authorization"])[1])
        return NONE

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    bucket = s3.bucket()
    with FaultyProxy(s3.host, note) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        store = None

        def ask():
            nonlocal store
            store = store or open_storage(f"s3://{bucket}", backoff=BACKOFF)
            list(store.list())
            return signed[-1]

        yield ask


def test_credentials_of_the_environment(asked, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "aws")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("MINIO_ACCESS_KEY", "minio")
    monkeypatch.setenv("MINIO_SECRET_KEY", SECRET)
    assert asked() == "aws"


def test_credentials_of_minio(asked, monkeypatch):
    monkeypatch.setenv("MINIO_ACCESS_KEY", "minio")
    monkeypatch.setenv("MINIO_SECRET_KEY", SECRET)
    assert asked() == "minio"


def test_credentials_of_a_file(asked, monkeypatch, tmp_path):
    (tmp_path / "credentials").write_text(
        "[default]\naws_access_key_id = one\naws_secret_access_key = 1\n"
        "[other]\naws_access_key_id = two\naws_secret_access_key = 2\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "other")
    assert asked() == "two"


def test_credentials_of_a_mounted_secret(asked, monkeypatch, tmp_path, s3):
    """They come before all others, and count as soon as they are rotated."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "other")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other")
    monkeypatch.setenv("RSP_S3_SECRETS", str(tmp_path))
    with pytest.raises(StorageError, match="that folder has not both access_key and secret_key"):
        asked()
    (tmp_path / "access_key").write_text("first\n")
    (tmp_path / "secret_key").write_text(f"{SECRET}\n")
    assert asked() == "first"
    (tmp_path / "access_key").write_text("second\n")
    assert asked() == "second"


def test_credentials_of_a_token_of_the_cluster(asked, monkeypatch, tmp_path, s3):
    """A token of Kubernetes is exchanged for credentials that pass."""
    (tmp_path / "token").write_text("the-token")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/reader")
    monkeypatch.setenv("AWS_ROLE_SESSION_NAME", "reader")
    tokens = []

    def as_aws_routes_it(_method, path, headers):
        # On one port moto tells its services apart by this.
        headers["Authorization"] = "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/sts/aws4_request"
        tokens.append(re.search("WebIdentityToken=([^&]*)", path)[1])
        return NONE

    with FaultyProxy(s3.host, as_aws_routes_it) as service:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", service.url)
        assert asked().startswith("ASIA")
        assert asked().startswith("ASIA")
    assert tokens == ["the-token"]  # good for an hour


def test_a_token_that_is_refused(asked, monkeypatch, tmp_path, s3):
    (tmp_path / "token").write_text("the-token")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    with FaultyProxy(s3.host, lambda *_: Fault(forward=False, status=403)) as service:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", service.url)
        with pytest.raises(StorageError, match=r"Tried: .*AWS_WEB_IDENTITY_TOKEN_FILE \(") as caught:
            asked()
    assert "the-token" not in str(caught.value)


def test_no_credentials(asked, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    said = r"no credentials for S3: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name .* RSP_S3_SECRETS"
    with pytest.raises(StorageError, match=said):
        asked()
    (tmp_path / "none").write_text("no file of this kind")
    with pytest.raises(StorageError, match=said):
        asked()


@pytest.mark.parametrize(
    ("environ", "host", "secure", "region"),
    [
        ({}, "s3.amazonaws.com", True, None),
        ({"AWS_REGION": "eu-west-1"}, "s3.amazonaws.com", True, "eu-west-1"),
        ({"AWS_DEFAULT_REGION": "eu-west-1"}, "s3.amazonaws.com", True, "eu-west-1"),
        ({"S3_ENDPOINT": "minio:9000"}, "minio:9000", True, "us-east-1"),
        ({"S3_ENDPOINT": "http://minio:9000/"}, "minio:9000", False, "us-east-1"),
        ({"AWS_ENDPOINT_URL": "https://A", "S3_ENDPOINT": "http://b"}, "a", True, "us-east-1"),
        ({"AWS_ENDPOINT_URL_S3": "https://a", "AWS_ENDPOINT_URL": "http://b"}, "a", True, "us-east-1"),
        ({"AWS_ENDPOINT_URL_S3": "http://[::1]:9000", "AWS_REGION": "x"}, "[::1]:9000", False, "x"),
        ({"AWS_ENDPOINT_URL_S3": "https://s3.eu-west-1.amazonaws.com"}, "s3.eu-west-1.amazonaws.com", True, None),
    ],
)
def test_endpoints(monkeypatch, s3, environ, host, secure, region):
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    found = find_endpoint()
    assert (found.host, found.secure, found.region) == (host, secure, region)
    assert open_storage("s3://bucket").address == "s3://bucket"


def test_endpoints_of_a_mounted_secret(monkeypatch, s3, tmp_path):
    monkeypatch.setenv("RSP_S3_SECRETS", str(tmp_path))
    assert find_endpoint().host == s3.host
    (tmp_path / "endpoint").write_text("http://other:9000\n")
    (tmp_path / "region").write_text("north\n")
    found = find_endpoint()
    assert (found.host, found.secure, found.region) == ("other:9000", False, "north")
    (tmp_path / "endpoint").write_bytes(b"\xff")
    with pytest.raises(StorageError, match=r"cannot read .*endpoint"):
        find_endpoint()


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ("ftp://host", "expected the URL of an S3 server"),
        ("https://", "expected the URL of an S3 server"),
        ("http://host:port", "expected the URL of an S3 server"),
        ("http://host/path", "expected scheme, host and port only"),
        ("http://host?x=1", "expected scheme, host and port only"),
        (f"http://key:{SECRET}@host", "holds credentials"),
    ],
)
def test_endpoints_that_cannot_be_meant(monkeypatch, s3, endpoint, said):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    with pytest.raises(StorageError, match=rf"AWS_ENDPOINT_URL_S3 .*{said}") as caught:
        open_storage("s3://bucket")
    assert SECRET not in str(caught.value)


def test_nothing_shows_a_secret(s3, monkeypatch, caplog):
    caplog.set_level("DEBUG")
    caplog.set_level("DEBUG", "urllib3.connectionpool")  # kfp's client silences all of urllib3
    for address in (f"s3://tester:{SECRET}@bucket/x", f"s3://{SECRET}@bucket"):
        with pytest.raises(UsageError, match="holds no credentials: set AWS_ACCESS_KEY_ID") as caught:
            open_storage(address)
        assert SECRET not in str(caught.value)
    store = open_storage(f"s3://{s3.bucket()}/x", backoff=BACKOFF)
    store.write_if("a", b"", etag=None)
    said = [repr(store), str(store), repr(vars(store)), store.address, pickle.dumps(store).decode("latin-1")]
    with FaultyProxy(s3.host, lambda *_: Fault(forward=False, cut=-1)) as broken:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", broken.url)
        other = open_storage(store.address, backoff=BACKOFF)
        for act in (lambda: other.read("a"), lambda: other.write("a", b""), lambda: other._put_if("a", b"", None)):
            with pytest.raises(StorageError) as caught:
                act()
            said += [str(caught.value), repr(caught.value), repr(caught.value.__context__)]
    for text in (*said, caplog.text):
        assert SECRET not in text
        assert not re.search(r"Signature=[^.]", text)
    assert "X-Amz-Signature=... HTTP/1.1" in caplog.text
