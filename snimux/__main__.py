"""``python -m snimux``: the same as the ``snimux`` command."""

from snimux.cli import main

if __name__ == "__main__":
    main()
