"""What several rooms of tests share: small models, files as the real libraries write them, and ways to run the command."""
