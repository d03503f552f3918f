"""Chrome trace JSON of a journal, for Perfetto."""
