"""What the stages of an experiment are: their inputs, settings, keys and outputs, one file each; work/ makes them."""
