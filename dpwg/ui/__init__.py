"""The Gradio app: one file a page, its handlers first and then its builder."""
