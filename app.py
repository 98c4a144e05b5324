"""Serve the app."""

from dpwg.launch import launching

if __name__ == "__main__":
    with launching():
        from dpwg.ui.demo import serve

        serve()
