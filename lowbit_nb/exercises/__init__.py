"""What each exercise of the notebooks is checked against; one file a notebook."""
