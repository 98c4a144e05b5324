"""What leaves the house: release folders, the hub, exported data sets, the Space."""
