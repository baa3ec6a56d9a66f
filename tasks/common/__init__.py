"""What stages share: the stage as an object, reading tables, classifiers and scorers by name."""
