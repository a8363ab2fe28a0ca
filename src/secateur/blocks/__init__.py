"""Runs decoder blocks. The only place where weights change."""
