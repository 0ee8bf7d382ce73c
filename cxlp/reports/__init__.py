"""The reports of a run: tables, figures, overlays, and the HTML page."""
