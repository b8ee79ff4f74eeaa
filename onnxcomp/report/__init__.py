"""Renderings of one pipeline report: JSON, terminal tables, Markdown, HTML."""
