"""The commands beside the server: check, print, demo and health."""
