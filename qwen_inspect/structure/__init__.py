"""What a model is: its parameters, attention, cache and files, held against each other."""
