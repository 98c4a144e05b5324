"""Serve the app."""

from dpwg.ui.demo import serve

if __name__ == "__main__":
    serve()
