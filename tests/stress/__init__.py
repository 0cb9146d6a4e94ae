"""Stress tests: short ones run with all tests, the long ones with `make stress`."""
