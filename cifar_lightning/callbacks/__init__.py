"""What happens at the hooks of training: one callback per file."""
