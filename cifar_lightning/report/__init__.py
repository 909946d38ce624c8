"""What people read: figures and tables."""
