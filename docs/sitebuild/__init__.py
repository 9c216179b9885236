"""Makes the documentation site out of the Markdown pages of the repository."""
