"""Serve the app."""

import sys

from dpwg.launch import run


def serve() -> None:
    """Import the app only inside of `run`, which tells what is missing."""
    from dpwg.ui.serving import serve

    serve()


if __name__ == "__main__":
    sys.exit(run(serve))
