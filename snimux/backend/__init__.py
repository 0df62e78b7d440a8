"""Reach a backend: which address, when it is down, and who waits for it.

``pool`` connects and remembers; ``queue`` lets waiting clients go as fast as an address answers;
``health_check`` and ``probe`` ask addresses how they are, and whether they understand the PROXY
protocol.

Refuses to know: clients' hellos, and what is relayed. Each process remembers for itself. Begin
with ``pool.Backends``.
"""
