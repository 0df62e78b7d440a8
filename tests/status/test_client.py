"""``status.client``: what a running snimux shows is read, or is said not to be what it should."""

import base64
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snimux.proto.reason import Reason
from snimux.status.client import ApiError, find_refused, read_route_rows, read_routes
from tests.hellos import HERE

WHERE = "127.0.0.1:9443"


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (b"<html>", "not a snimux"),
        (b"[]", "not a snimux"),
        (b"[" * 10**5, "not a snimux"),
        (b"{}", "cannot be understood"),
        (b'{"routes": [{}]}', "cannot be understood"),
        (b'{"routes": 1}', "cannot be understood"),
        (b'{"routes": [{"pattern": "a b", "backend": null, "proxy": null, "http": null, '
         b'"http_proxy": null}]}', "cannot be understood"),
        (b'{"routes": [{"pattern": "a", "backend": ["x"], "proxy": null, "http": null, '
         b'"http_proxy": null}]}', "cannot be understood"),
        (b'{"routes": [{"pattern": "a", "backend": null, "proxy": null, "http": null, '
         b'"http_proxy": null, "list": 0, "access_of": "a"}]}', "cannot be understood"),
        (b'{"routes": [], "lists": [{"allow": ["x"], "deny": null, "acme_exempt": false}]}',
         "cannot be understood"),
    ],
)  # fmt: skip
def test_what_is_no_page_of_routes(page: bytes, words: str) -> None:
    with pytest.raises(ApiError, match=words):
        read_routes(WHERE, page)


def row(number: int, **rest: Any) -> dict[str, Any]:
    received = base64.b64encode((HERE / "curl.bin").read_bytes()).decode()
    return {"worker": 1, "number": number, "time": 1764000000.5, "client": "192.0.2.7:1",
            "protocol": None, "name": "secure.ciso.com", "alpn": None, "ech": None,
            "reason": "no-route", "detail": None, "seconds": 0.1, "hello": received,
            **rest}  # fmt: skip


def page(*rows: dict[str, Any]) -> bytes:
    return json.dumps({"refused": rows}).encode()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (page(row(3), row(4)), "no number 17 is kept there any more, or yet; 1.3 to 1.4 are"),
        (page(), "or yet; none is"),
        (page(row(17, hello=None)), "of number 17 nothing is kept but that it was refused: no-r"),
        (page(row(17, hello="!")), "cannot be understood"),
        (page(row(17, hello="\xfc")), "cannot be understood"),
        (page(row(17, time=float("nan"))), "cannot be understood"),
        (page(row(17, time=10**30)), "cannot be understood"),
        (b'{"refused": [{}]}', "cannot be understood"),
        (b'{"refused": 1}', "cannot be understood"),
        (b"x", "not a snimux"),
    ],
)
def test_what_is_not_there(content: bytes, words: str) -> None:
    with pytest.raises(ApiError, match=words):
        find_refused(content, "17")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from([*row(1), "routes", "refused", "pattern", "backend", "http"]), inner
    ),
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(["routes", "refused", "total"]), JSON), JSON)
def test_whatever_answers_is_read_or_not_understood(shown: dict[str, Any], value: Any) -> None:
    for content in (shown, {"refused": [row(17) | {"hello": value}]},
                    {"refused": [row(17) | {"client": value, "time": value}]}):  # fmt: skip
        body = json.dumps(content).encode()
        for read in (lambda b: read_routes(WHERE, b), lambda b: find_refused(b, "17")):
            with contextlib.suppress(ApiError):
                read(body)


def test_reasons_are_words_of_the_log() -> None:
    assert Reason(row(1)["reason"]) is Reason.NO_ROUTE


def test_a_route_that_refuses_has_that_for_its_backend() -> None:
    row = {"pattern": "a.test", "backend": None, "http": None, "source": "x", "refuses": True}
    page = json.dumps({"routes": [row], "total": 1}).encode()
    (shown,) = read_route_rows(page).shown
    assert (shown.backend, shown.http) == (("refuse",), None)
