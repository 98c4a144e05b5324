"""Serve the app."""

from dpwg.launch import launching

if __name__ == "__main__":
    with launching():
        from dpwg.ui.serving import serve

        serve()
