"""List the protocols that are served: the one list of them, by name."""

from collections.abc import Mapping

from snimux.proto.client_hello import TLS
from snimux.proto.http_head import HTTP
from snimux.proto.verdict import Protocol

PROTOCOLS: Mapping[str, Protocol] = {protocol.name: protocol for protocol in (TLS, HTTP)}
