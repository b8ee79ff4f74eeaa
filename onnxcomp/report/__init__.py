"""One report, many renderings: JSON is the truth; tables, Markdown and HTML are made from it."""
