"""What a run would cost on hardware that is not there: compiled for it, or estimated from shapes."""
