"""What a model is: its parameters, attention and KV cache, and checks of the files against them."""
