"""What clients say and routes are, drawn by Hypothesis: for what decides about them."""

from dataclasses import replace

from hypothesis import strategies as st

from snimux.proto import tls_schema
from snimux.routing.access import Access
from snimux.routing.address import UnixAddress
from snimux.routing.networks import Networks, parse_network
from snimux.routing.routes import Backend, Pattern, Route, targets

LABELS = st.sampled_from(["a", "b", "c"])
NAMES = st.lists(LABELS, min_size=1, max_size=3).map(".".join)
HOSTS = st.one_of(NAMES, NAMES.map("*.{}".format), NAMES.map("**.{}".format), st.just("*"))
PROTOCOLS = st.lists(st.sampled_from([b"h2", b"h3", b"x"]), max_size=3)
NOBODY = Backend((UnixAddress("/nobody/listens/here"),))
UNSEEN = replace(NOBODY, transparent=True)  # which has no address for anybody
SOURCES = st.sampled_from(["192.0.2.7", "2001:db8::7", "unix"])
NETWORKS = st.sampled_from(
    [
        None,
        Networks((parse_network("192.0.2.0/24"),)),
        Networks((parse_network("2001:db8::/32"),), unix=True),
    ]
)
ACCESS = st.builds(Access, NETWORKS, NETWORKS, st.booleans())
ACME = [b"acme-tls/1"]
PATHS = st.sampled_from(["/", "/x?y", "/.well-known/acme-challenge/x", "*"])


LISTENERS = st.sampled_from([None, None, "internal", "public"])


@st.composite
def routes(draw: st.DrawFn) -> list[Route]:
    patterns = draw(
        st.lists(
            st.builds(Pattern, HOSTS, st.sampled_from([None, None, b"h2", b"h3"]), LISTENERS),
            max_size=8,
            unique=True,
        )
    )
    found = []
    for pattern in patterns:
        which = draw(st.sampled_from(["tls", "both", "http"] if pattern.alpn is None else ["tls"]))
        somewhere = draw(st.sampled_from([NOBODY, NOBODY, UNSEEN]))
        backend = None if which == "http" else somewhere
        access = draw(st.none() | st.none() | ACCESS)
        if draw(st.integers(0, 7)) == 0:
            found.append(Route(pattern, targets(), refuses=True))
            continue
        found.append(
            Route(pattern, targets(tls=backend, http=None if which == "tls" else somewhere), access)
        )
    return found


def hello(name: str | None, alpn: list[bytes]) -> bytes:
    """The bytes of a hello."""
    extensions = []
    if name is not None:
        server_name = {"name_type": 0, "host_name": name.encode()}
        extensions.append((tls_schema.SERVER_NAME, tls_schema.SERVER_NAME_LIST.build(server_name)))
    if alpn:
        extensions.append((tls_schema.ALPN, tls_schema.PROTOCOL_NAMES.build(tuple(alpn))))
    body = tls_schema.CLIENT_HELLO.build(
        {
            "legacy_version": 0x0303,
            "random": bytes(32),
            "legacy_session_id": b"",
            "cipher_suites": b"\x13\1",
            "legacy_compression_methods": b"\0",
            "extensions": extensions,
        }
    )
    message = tls_schema.HANDSHAKE.build({"msg_type": 1, "body": body})
    record: bytes = tls_schema.PLAINTEXT.build(
        {"type": 22, "legacy_record_version": 0x0301, "fragment": message}
    )
    return record


DATA = st.one_of(
    st.builds(hello, st.none() | NAMES, PROTOCOLS | st.just(ACME)),
    st.builds(lambda name, cut: hello(name, [])[:cut], NAMES, st.integers(0, 99)),
    st.builds(
        lambda name, path, rest: f"GET {path} HTTP/1.1\r\nHost: {name}\r\n{rest}".encode(),
        NAMES,
        PATHS,
        st.sampled_from(
            ["\r\n", "Connection: close\r\n\r\n", "Connection: close\r\n\r\nGET / HTTP/1.1\r\n"]
        ),
    ),
    st.binary(max_size=20),
)  # fmt: skip
