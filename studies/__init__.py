"""Studies behind the figures in docs/. Run them from a checkout, for example: python -m studies.microworld.grid"""
