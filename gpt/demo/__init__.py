"""The writing page and its server."""
