"""Labels out of candidates and probabilities: strategies, label quality. Needs no torch."""
