"""The process beneath everything: its clock, its threads, and files read within bounds.

``clock`` stands while the process is stopped; ``background`` does long work beside who serves;
``files`` reads no more than a limit, and nothing that is no file; ``filewatch`` sees a change.

Refuses to know: what the work, the time and the files are for.
"""
