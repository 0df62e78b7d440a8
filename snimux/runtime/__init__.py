"""The process beneath everything: its clock, its threads, and files read within bounds.

``clock`` stands while the process is stopped; ``background`` does long work beside who serves;
``files`` reads no more than a limit, and nothing that is no file; ``filewatch`` sees a change;
``keyed_tasks`` runs one task for each of some keys.

Refuses to know: what the work, the time and the files are for.
"""
