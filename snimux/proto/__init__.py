"""The first bytes of a connection: bytes in, a verdict out; and the bytes of a refusal.

TLS (``client_hello``), plain HTTP (``http_head``) and the PROXY protocol (``proxy_header``). Each
has a ``peek``, which looks at what has come so far and concludes more bytes are needed, or a hello,
or why there is none.

Refuses to know: sockets, clocks, trio, routes, and where a connection goes. A new protocol begins
here, with ``verdict.Protocol``, which says what it is made of.
"""
