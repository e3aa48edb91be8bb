"""How many instances a pool should have now, from contracts and load. It starts and stops none."""
