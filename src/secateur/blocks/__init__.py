"""Runs decoder blocks and changes their weights, which of all rooms of a pruning run only this and
checkpoint/ do."""
