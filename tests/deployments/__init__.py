"""The parts that one machine runs."""
