"""Private set intersection: which records two parties have in common, and nothing about the others."""
