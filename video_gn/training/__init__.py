"""Training: the Lightning module, optimizer, schedule, mixing, and the callbacks that change weights."""
