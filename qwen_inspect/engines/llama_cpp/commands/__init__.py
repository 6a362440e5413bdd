"""What a pasted line, a log or a store asks of llama.cpp."""
