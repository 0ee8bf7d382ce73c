"""What a test reports."""
