"""Probes: readouts fitted on stored activations, many at a time on one shared matrix."""
