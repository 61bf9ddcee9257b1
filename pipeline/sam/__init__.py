"""SAM candidates: the models, the small embedded SAM and the automatic mask generator."""
