"""Pooling heads: maps in, one vector per image out; one file a head."""
