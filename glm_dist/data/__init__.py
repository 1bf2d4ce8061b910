"""From raw text to fixed-shape training rows."""
