"""The networks, teacher prediction, student training, evaluation, rounds."""
