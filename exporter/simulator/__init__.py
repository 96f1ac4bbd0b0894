"""A simulated Braze, for the demo and the tests."""
