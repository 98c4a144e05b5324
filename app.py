"""Serve the app; GRADIO_SERVER_NAME and GRADIO_SERVER_PORT say where."""

from dpwg.ui.demo import serve

if __name__ == "__main__":
    serve()
