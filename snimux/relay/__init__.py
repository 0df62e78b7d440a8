"""Two connected sockets until both are done: every byte, either way, each end and each reset.

``interface`` says what every relay owes. Linux's is ``engine``, which waits, with ``mover``, which
moves the bytes; ``portable`` is any system's. Both pass one conformance suite,
``tests/relay/test_relay.py``.

Refuses to know: what the bytes are, and who the two are. Begin with ``interface``.
"""
