"""Results as tables, picture grids, charts and notebook pages."""
