"""The inverse questions: what fits a card, how far it goes, and what to change."""
