"""Activation sparsity: weights that zeros multiply are not read."""
