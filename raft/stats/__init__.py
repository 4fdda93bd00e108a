"""Statistics of scores: intervals over items and trainings, paired tests, retention."""
