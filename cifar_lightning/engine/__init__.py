"""Lightning's Trainer and torch.compile, built and made ready."""
