"""What a run leaves to look at: tables, figures, overlays, the report page."""
