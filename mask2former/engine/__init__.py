"""Training: the trainer with its hooks, optimiser, schedules, launch and checks."""
