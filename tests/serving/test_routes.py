"""Where the proxy sends a request: to a version that was verified, or nowhere."""

from __future__ import annotations

import json
import threading

import pytest

from rsp.serving.metrics import Metrics
from rsp.serving.proxy import Proxy
from rsp.serving.routes import NoRouteError, Routes
from rsp.serving.tokens import BEARER
from tests.serving.echo import Backend, connect, raw


@pytest.fixture(scope="module")
def backend():
    running = Backend()
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield running
    running.go.set()
    running.shutdown()
    running.server_close()


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def routes():
    made = Routes(["roofs", "roads"], Clock())
    made.switch("roofs", "v1")
    return made


@pytest.fixture
def metrics():
    made = Metrics()
    made.serves("roofs", ["v1", "v2"], "v1")
    return made


@pytest.fixture
def proxy(backend, routes, metrics):
    backend.got.clear()
    backend.go.clear()
    backend.says.clear()
    local = {"/status": lambda: (200, {"ready": True}), "/healthz": lambda: (503, {"reason": "no model"})}
    made = Proxy(
        "127.0.0.1", 0, backend.server_port, max_body=1000, routes=routes, local=local, metrics=metrics,
        may=lambda given: given in (None, "Bearer good"),
    )  # fmt: skip
    made.start()
    yield made
    made.stop()


def ask(proxy, path, method="POST", body=b"x", headers=None):
    connection = connect(proxy)
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    return answer, answer.read()


def test_the_table(routes):
    assert routes.enter("roofs", None) == "v1" and routes.last_asked("roofs", "v1") is None
    assert routes.busy("roofs", "v1") == 1
    routes.switch("roofs", "v2")
    assert routes.enter("roofs", None) == "v2" and routes.default("roofs") == "v2"
    assert routes.enter("roofs", "v1") == "v1"  # whoever holds on to it still gets it
    assert (routes.busy("roofs", "v1"), routes.last_asked("roofs", "v1")) == (2, 100.0)
    routes.close("roofs", "v1")
    with pytest.raises(NoRouteError, match="version v2 is") as caught:
        routes.enter("roofs", "v1")
    assert caught.value.status == 404 and routes.busy("roofs", "v1") == 2
    for _ in range(2):
        routes.leave("roofs", "v1")
    assert routes.busy("roofs", "v1") == 0
    routes.close_all()
    for version in (None, "v2"):
        with pytest.raises(NoRouteError, match="no verified release of roofs") as caught:
            routes.enter("roofs", version)
        assert caught.value.status == 503
    with pytest.raises(NoRouteError, match="there is roads, roofs") as caught:
        routes.enter("trees", None)
    assert caught.value.status == 404


def test_only_verified_versions_are_asked(proxy, backend, routes):
    """A version that TorchServe has registered, but that nobody has compared yet, answers no client."""
    assert ask(proxy, "/predictions/roofs?query=is&left=out")[0].status == 200
    assert backend.got[-1][0] == "POST /predictions/roofs/v1 HTTP/1.1"
    answer, body = ask(proxy, "/predictions/roofs/v2")
    assert answer.status == 404 and "version v1 is" in json.loads(body)["detail"]
    answer, body = ask(proxy, "/predictions/roads")
    assert answer.status == 503 and answer.headers["Retry-After"] == "1"
    assert "no verified release of roads" in json.loads(body)["detail"]
    assert ask(proxy, "/predictions/trees")[0].status == 404
    assert len(backend.got) == 1
    assert routes.busy("roofs", "v1") == 0


@pytest.mark.parametrize(
    "path",
    ["/", "/ping", "/models", "/v1/models/roofs:predict", "/explanations/roofs", "/predictions/",
     "/predictions/a/b/c", "/predictions/../models", "/predictions/%72oofs", "//predictions/roofs",
     "/predictions/roofs/", "*", "http://127.0.0.1/predictions/roofs"],
)  # fmt: skip
def test_nothing_but_predictions_reaches_torchserve(proxy, backend, path):
    answer = raw(proxy, b"GET %b HTTP/1.1\r\n\r\n" % path.encode())
    assert answer.startswith(b"HTTP/1.1 404 ") and b"/predictions/NAME" in answer
    assert not backend.got


@pytest.mark.parametrize("method", ["DELETE", "OPTIONS", "HEAD", "PATCH"])
def test_other_methods(proxy, backend, method):
    answer, _ = ask(proxy, "/predictions/roofs", method)
    assert answer.status == 405 and answer.headers["Allow"] == "POST, GET, PUT"
    assert not backend.got


def test_what_is_answered_here(proxy, backend, monkeypatch):
    monkeypatch.setattr("rsp.serving.proxy.MAX_CONNECTIONS", 0)  # a server that is full has not died
    answer, body = ask(proxy, "/status?x", "GET", None)
    assert answer.status == 200 and json.loads(body) == {"ready": True}
    assert answer.headers["Content-Type"] == "application/json" and answer.headers["Cache-Control"] == "no-store"
    answer, body = ask(proxy, "/healthz", "GET", None)
    assert answer.status == 503 and json.loads(body) == {"reason": "no model"}
    answer, body = ask(proxy, "/healthz", "HEAD", None)
    assert answer.status == 503 and body == b""
    for method, body in (("POST", b"x"), ("DELETE", None), ("GET", b"x")):
        assert ask(proxy, "/status", method, body)[0].status == 405
    assert ask(proxy, "/predictions/roofs")[0].status == 503
    assert not backend.got


def test_tokens(proxy, backend):
    answer, body = ask(proxy, "/predictions/roofs", headers={"Authorization": "Bearer bad"})
    assert answer.status == 401 and answer.headers["WWW-Authenticate"] == BEARER
    assert "not known" in json.loads(body)["detail"] and not backend.got
    two = b"POST /predictions/roofs HTTP/1.1\r\nAuthorization: Bearer good\r\nAuthorization: Bearer good\r\n\r\n"
    assert raw(proxy, two).startswith(b"HTTP/1.1 401 ")
    assert ask(proxy, "/status", "GET", None, {"Authorization": "Bearer bad"})[0].status == 200
    assert ask(proxy, "/predictions/roofs", headers={"Authorization": "Bearer good"})[0].status == 200
    assert "Authorization" not in backend.got[-1][1]  # TorchServe has no use for it


def test_every_answer_has_the_id_of_its_request(proxy, backend):
    given = {"X-Request-Id": "abc-1"}
    assert ask(proxy, "/predictions/roofs", headers=given)[0].headers.get_all("X-Request-Id") == ["abc-1"]
    assert backend.got[-1][1]["X-Request-Id"] == "abc-1"
    for path, method in (("/predictions/roofs", "POST"), ("/status", "GET"), ("/nothing", "GET")):
        one, two = (
            ask(proxy, path, method, None, {"X-Request-Id": "no\tgood"})[0].headers["X-Request-Id"] for _ in "12"
        )
        assert one and two and one != two and "no" not in one
    assert ask(proxy, "/nothing", headers=given)[0].headers["X-Request-Id"] == "abc-1"


ERRORS = {
    "queue": (503, {"code": 503, "type": "ServiceUnavailableException", "message": "full"}, 503, "full"),
    "raised": (503, {"code": 503, "type": "x", "message": "Prediction failed"}, 500, "Prediction failed"),
    "died": (507, {"code": 507, "type": "x", "message": "Worker died."}, 507, "Worker died."),
    "handler": (400, {"error": "bad tile", "detail": "not an image"}, 400, "not an image"),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_errors_have_one_form(proxy, backend, kind):
    status, content, wanted, detail = ERRORS[kind]
    backend.says["/predictions/roofs/v1"] = status, content
    answer, body = ask(proxy, "/predictions/roofs")
    found = json.loads(body)
    assert (answer.status, found["detail"], set(found)) == (wanted, detail, {"error", "detail"})
    assert answer.headers["Retry-After"] == ("1" if wanted == 503 else None)


def test_what_is_cut_off_is_refused(proxy, backend):
    start = b"POST /predictions/roofs HTTP/1.1\r\nContent-Length: 9\r\n"
    for data, reason in ((start + b"\r\nabc", b"the body ended"), (start, b"the head of the request ended")):
        answer = raw(proxy, data)
        assert answer.startswith(b"HTTP/1.1 400 ") and reason in answer
    assert raw(proxy, b"") == b"" and not backend.got


def test_requests_are_counted_by_model_and_version(proxy, backend, metrics):
    backend.says["/predictions/roofs/v1"] = 400, {"error": "bad tile", "detail": "not an image"}
    ask(proxy, "/predictions/roofs")
    backend.says.clear()
    for path in ("/predictions/roofs", "/predictions/roofs/v1", "/predictions/roofs/v9", "/predictions/other/x"):
        ask(proxy, path)
    ask(proxy, "/status", "GET", None)
    text = metrics.render().decode()
    for labels, count in (
        ('model="roofs",status="200",version="v1"', 2), ('model="roofs",status="400",version="v1"', 1),
        ('model="roofs",status="404",version="unknown"', 1), ('model="unknown",status="404",version="unknown"', 1),
    ):  # fmt: skip
        assert f"rsp_requests_total{{{labels}}} {count}.0" in text
