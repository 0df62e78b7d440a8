"""The list of the targets."""

from fuzz import caddy, client_hello, config, http_head, proxy_header
from fuzz.target import Target

TARGETS: dict[str, Target] = {
    module.TARGET.name: module.TARGET
    for module in (client_hello, http_head, proxy_header, caddy, config)
}
