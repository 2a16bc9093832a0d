"""From the returns of single episodes to estimates with intervals: data frames in, numbers out."""
