"""Watching a released detector without labels: what its images and answers are like, against what they were."""
