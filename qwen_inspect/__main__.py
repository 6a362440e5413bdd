"""`python -m qwen_inspect`."""

from .cli import script

if __name__ == "__main__":
    script()
