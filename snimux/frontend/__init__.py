"""Accept connections within limits, serve each, and say how it went.

``acceptor`` accepts; ``connection`` is one connection from its first byte to its last; ``limits``
and ``source_limits`` count connections, over all and by client. Who wants to hear of connections
is an observer (``events``): ``access_log`` writes the line, ``recheck`` has doubts settled.

Refuses to know: where routes come from, processes, and how backends are chosen. Begin with
``connection.serve``.
"""
