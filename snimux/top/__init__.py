"""A running snimux in a terminal: ``snimux top``.

``poll`` asks for the pages every so often; ``tree`` makes rows with rates of two samples;
``columns`` makes text of rows; ``app`` is the terminal.

Refuses to know: the inside of a running snimux. It reads by ``status.client``. Begin with ``tree``.
"""
