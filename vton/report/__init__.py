"""Results for people: tables (tables.py) and grids of pictures (grid.py)."""
