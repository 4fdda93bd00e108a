"""Studies behind figures of the documents, run from a checkout: python -m studies.microworld.grid, for example."""
