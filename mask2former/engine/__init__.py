"""Training: `trainer.Trainer` with its hooks, optimiser, schedules and checks; `launch.launch`; `setup.setup`.

Nothing is imported here, so that what predicts does not pay for what only training needs.
"""
