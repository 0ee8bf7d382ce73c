"""Tests of the LightningModules and of their optimizer."""
