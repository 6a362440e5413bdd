"""What vLLM and llama.cpp reserve of a card."""
