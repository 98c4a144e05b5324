"""What is known about a release."""
