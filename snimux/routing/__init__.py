"""The route for a hello: host patterns, ALPN, networks, and the addresses that routes lead to.

Values and pure functions. A table is never changed: another one takes its place.

Refuses to know: sockets, clocks, trio, flags and files, and whether a backend is up. Begin with
``routes``; ``address`` has the addresses that people write.
"""
