"""Accept connections within limits, serve each, and say how it went.

``acceptor`` accepts; ``connection`` is one connection from its first byte to its last; ``limits``
and ``source_limits`` count connections, over all and by client; ``access_log`` writes the line.

Refuses to know: where routes come from, processes, and how backends are chosen. Begin with
``connection.serve``.
"""
