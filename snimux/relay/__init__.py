"""Two connected sockets until both are done: every byte, either way, each end and each reset.

``interface`` says what every relay owes; ``engine`` is Linux's, ``portable`` any system's; both
pass one conformance suite, ``tests/relay/test_relay.py``.

Refuses to know: what the bytes are, and who the two are. Begin with ``interface``.
"""
