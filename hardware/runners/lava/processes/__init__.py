"""Our Lava processes. Lava executes every file in this folder when it looks for process models: keep others out."""
