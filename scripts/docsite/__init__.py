"""What the documentation site has beside the pages in docs: made of the code and of files that lie elsewhere."""
