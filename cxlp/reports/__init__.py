"""What a run leaves to look at: figures, overlays, tables, the report page."""
