"""Tests of the run's page."""
