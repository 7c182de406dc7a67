"""Results as people read them: tables, CSV, JSON, pictures and self-contained pages, written whole or not at all."""
