"""Records the data pipeline: batches, samples, transforms, in whichever process they are made."""
