"""The public stage: coarse images to full size by frozen public models."""
