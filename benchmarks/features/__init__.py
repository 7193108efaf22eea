"""How fast ranking features are made, beside the same windows written by hand in DuckDB's SQL."""
