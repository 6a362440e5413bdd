"""The towers of --mmproj that see or hear."""
