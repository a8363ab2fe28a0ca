"""One pruning run from end to end: start reading at pipeline.py."""
