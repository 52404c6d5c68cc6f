"""The client side of a run: it prepares, starts, watches and ends workers. Without torch."""
