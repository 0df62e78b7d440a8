"""``routing.decide``: what it says is what ``connection`` does, and what ``explain`` said."""

import trio
from hypothesis import given
from hypothesis import strategies as st

from snimux.explain import explain
from snimux.explain.input import of_bytes
from snimux.frontend.outcome import Outcome
from snimux.proto.client_hello import TLS
from snimux.proto.http_head import HTTP
from snimux.proto.reason import Reason
from snimux.proto.verdict import Hello, Protocol
from snimux.routing.access import Access, Admission
from snimux.routing.decide import Decision, Redirection, Refusal, Relaying, decide
from snimux.routing.routes import Route, RouteTable
from tests.explain.test_explain import config_of, served
from tests.support.drawn import ACCESS, DATA, SOURCES, routes


@given(routes(), ACCESS | st.just(Access()), SOURCES, DATA, st.sampled_from([TLS, HTTP]))
def test_it_is_what_connections_and_explain_decide(
    written: list[Route], access: Access, source: str, data: bytes, protocol: Protocol
) -> None:
    config = config_of(written, access)
    case = of_bytes(data, config.limits.max_hello, "it", protocol=protocol)
    admission, host = Admission(access), None if source == "unix" else source
    table = RouteTable(written)
    by_explain = explain.decide(case, config, table, source=source)
    outcome, farewell = trio.run(served, data, case, config, source)
    if admission.denies(host):
        assert outcome.reason is by_explain.reason is Reason.ACCESS_DENIED
        assert outcome.hello is None
        return
    if not isinstance(case.verdict, Hello):
        assert outcome.hello is None
        return
    behind = len(data) - case.verdict.size
    decision = decide(
        case.verdict, host, protocol, admission, table, behind=behind, https_port=8443
    )
    is_the_connections(decision, outcome, farewell)
    is_explained(decision, by_explain)
    unseen = decide(
        case.verdict, None, protocol, admission, table,
        behind=behind, https_port=8443, checks_host=False,
    )  # fmt: skip
    is_explained(unseen, explain.decide(case, config, table))


def is_the_connections(decision: Decision, outcome: Outcome, farewell: bytes) -> None:
    assert outcome.route == decision.route
    match decision:
        case Relaying(_, to):
            assert (outcome.to, outcome.reason) == (to, Reason.BACKEND_DOWN)
        case Redirection(location, said):
            assert (outcome.ended, outcome.reason) == ("redirected", None)
            assert (outcome.detail, farewell) == (location.partition("?")[0], said)
        case Refusal(reason, detail, said):
            assert outcome.ended == "refused"
            assert (outcome.reason, outcome.detail, farewell) == (reason, detail, said)


def is_explained(decision: Decision, by_explain: explain.Decision) -> None:
    assert by_explain.route == decision.route
    farewell = by_explain.told and by_explain.told.content
    match decision:
        case Relaying(_, to):
            assert by_explain.to == to
        case Redirection(location, said):
            assert (by_explain.location, farewell) == (location, said)
        case Refusal(reason, detail, said):
            assert (by_explain.reason, by_explain.detail, farewell) == (reason, detail, said)
