"""Errors, files, text and optional packages: helpers that import nothing else of the library."""
