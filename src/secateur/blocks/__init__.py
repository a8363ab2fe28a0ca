"""Runs decoder blocks. The weights of a model that is pruned change here, and nowhere else."""
