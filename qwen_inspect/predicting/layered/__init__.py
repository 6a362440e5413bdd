"""A run from a family's trace, held and replayed layer by layer instead of event by event."""
