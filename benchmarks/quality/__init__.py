"""Quality: the data, training and evaluation of the demo checkpoint in `engine/demo`."""
