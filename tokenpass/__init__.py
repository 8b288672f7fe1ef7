"""A torch.compile backend that spends only the share of a transformer's cost that you name."""
