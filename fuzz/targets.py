"""The list of the targets."""

from fuzz import caddy, client_hello, config, http_head
from fuzz.target import Target

TARGETS: dict[str, Target] = {
    module.TARGET.name: module.TARGET for module in (client_hello, http_head, caddy, config)
}
